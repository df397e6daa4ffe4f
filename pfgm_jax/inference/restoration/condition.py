"""Image-conditional networks: a measurement of the clean image as further input channels beside the noisy one.

With x = y + σ n and a measurement m of y that is drawn apart from n, the loss of every process has its minimum at
E[y | x, σ, m], at any D: its flow, from the prior down, ends in a draw of the posterior p(y | m). So a network that is
conditioned on m restores by sampling (supervised restoration), where the other methods make an unconditional network do
it; a cascade's super-resolution network is one of them.

A condition is a text, TASK:VALUE, or TASK:VALUE:LEVEL with Gaussian noise of that level in the unit scale:

    inpaint:MASK     MASK in `operators.MASKS`
    superres:FACTOR  means of FACTOR × FACTOR pixels
    deblur:WIDTH     a Gaussian blur of WIDTH pixels
    denoise:LEVEL    the image itself, with noise
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pfgm_jax.array_types import Arrays, PRNGKeys
from pfgm_jax.errors import UserError, nearest, quoted
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration import operators

OWN = 5  # folded into a key: training gives other numbers to what else it draws for an example
_VALUES: dict[str, Any] = {"denoise": None, "inpaint": str, "superres": int, "deblur": float}
_FORMS = "inpaint:centre, superres:2, deblur:1 or denoise:0.4, the first three with :LEVEL for noise"


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a network is conditioned on; hashable.

    Attributes:
      task: denoise, inpaint, superres or deblur.
      value: the mask's name, the factor, or the width; None for denoise.
      level: of the measurement's Gaussian noise, 0 for none.
    """

    task: str
    value: Any
    level: float

    def __str__(self):
        words = [self.task, *([] if self.value is None else [f"{self.value}"])]
        return ":".join([*words, *([f"{self.level:g}"] if self.level else [])])

    @property
    def how(self) -> dict[str, Any]:
        """The arguments that `tasks.task` takes for it, but for the mask."""
        name = {"superres": "factor", "deblur": "width"}.get(self.task)
        return {"level": self.level} | ({name: self.value} if name else {})

    def channels(self, C: int) -> int:
        """Input channels of the condition, for images of C channels; a mask takes one more."""
        return C + (self.task == "inpaint")

    def operator(self, shape: tuple[int, ...]) -> operators.Operator:
        """The measurement of images of `shape` (H, W, C); for inpainting the identity, as the mask is each image's own.

        Raises:
          UserError: a factor that does not divide the sides, or another value that is not possible.
        """
        if self.task == "superres":
            try:
                return operators.average(self.value, tuple(shape))
            except UserError as error:
                raise UserError(f"data.condition={self}: {error}") from None
        return operators.blur(self.value, tuple(shape)) if self.task == "deblur" else operators.identity

    def mask(self, keys: PRNGKeys, shape: tuple[int, ...]) -> Bool[Array, "B H W 1"]:
        """What is observed of each image."""
        if self.task != "inpaint":
            return jnp.ones((len(keys), *shape[:2], 1), bool)
        return jax.vmap(lambda key: operators.named_mask(self.value, shape[:2], key))(keys)[..., None]

    def measure(
        self, keys: PRNGKeys, y: Float[Arrays, "B H W C"]
    ) -> tuple[Float[Arrays, "B *M"], Bool[Array, "B H W 1"]]:
        """(measurements of clean images y, what is observed of each), one key an image.

        Its draws are apart from those of `process.perturb` and `Generator.restore` by the same keys.
        """
        pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, OWN)))(keys)
        m = self.operator(y.shape[1:]).forward(jnp.asarray(y))
        m = noises.draw("gaussian", pairs[:, 0], jnp.full(len(y), self.level, y.dtype), m)
        return m, self.mask(pairs[:, 1], y.shape[1:])

    def draw(self, keys: PRNGKeys, y: Float[Arrays, "B H W C"]) -> Float[Array, "B H W K"]:
        """The condition's channels for clean images y, one key an image."""
        return self.as_channels(*self.measure(keys, y))

    def as_channels(
        self, measurement: Float[Arrays, "B *M"], mask: Bool[Arrays, "B #H #W _"] | None
    ) -> Float[Array, "B H W K"]:
        """A measurement as channels of the image's size: means repeated, unobserved pixels 0 and the mask behind."""
        if self.task == "superres":
            return jnp.repeat(jnp.repeat(measurement, self.value, axis=1), self.value, axis=2)
        if mask is not None and self.task == "inpaint":
            seen = mask[..., :1]
            return jnp.concatenate([jnp.where(seen, measurement, 0), seen.astype(measurement.dtype)], axis=-1)
        return jnp.asarray(measurement)


def parse(text: str) -> Condition | None:
    """The Condition of a text, None for "".

    Raises:
      UserError: a text that describes no condition.
    """
    if not text:
        return None
    task, *words = text.split(":")
    if task not in _VALUES:
        raise UserError(
            f"{quoted(text)} is not a task; choose from {', '.join(_VALUES)}{nearest(task, _VALUES)}: {_FORMS}"
        )
    kind = _VALUES[task]
    try:
        value: Any = kind(words.pop(0)) if kind else None
        level = float(words.pop(0)) if words else 0.0
    except (ValueError, IndexError):
        raise UserError(f"{quoted(text)} is not {_FORMS}") from None
    if words or not 0 <= level < 100 or (task == "denoise" and not level):
        raise UserError(f"{quoted(text)} is not {_FORMS}")
    if kind is str and value not in operators.MASKS:
        there = ", ".join(operators.MASKS)
        raise UserError(f"{quoted(value)} is not a mask; choose from {there}{nearest(value, operators.MASKS)}")
    if kind in (int, float) and not 0 < float(value) < 1_000:
        raise UserError(f"{quoted(text)} is not {_FORMS}")
    return Condition(task, value, level)
