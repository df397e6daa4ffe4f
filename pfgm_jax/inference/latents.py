"""Latents, the states at σ_max that the flow joins with images, and what can be done with them.

The flow is a bijection: an image x at σ_min and its latent z at σ_max determine each other, at every D. Latents are
unscaled states on the hyperplane r = σ_max √D of the augmented space; `to_hemisphere` moves them along rays from the
origin to a hemisphere around it, where PFGM's prior is uniform (arXiv 2209.11178, section 3.2).
"""

import dataclasses
import json
import math
import zipfile
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float

from pfgm_jax.array_types import Arrays
from pfgm_jax.errors import UserError
from pfgm_jax.inference import reversible
from pfgm_jax.sampling import arguments
from pfgm_jax.storage import atomic


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """Latents and what is needed to decode them.

    Attributes:
      states: float32 [n, H, W, C] at σ_max, unscaled; of the reversible solver int32 [n, 2, H, W, C], a pair that only
        together leads back to the same bytes.
      labels: int32 [n] classes that the network was given, −1 for none.
      solver: its name; options: its options, as sorted pairs.
      sigma: the level σ_max.
      run: identifies the weights.
    """

    states: np.ndarray
    labels: np.ndarray
    solver: str
    options: tuple
    sigma: float
    run: str

    def __post_init__(self):
        pairs = self.solver == "reversible"
        good = self.states.ndim == (5 if pairs else 4) and self.states.dtype == (np.int32 if pairs else np.float32)
        if not good or (pairs and self.states.shape[1] != 2):
            wanted = "pairs, int32 [n, 2, H, W, C]" if pairs else "states, float32 [n, H, W, C]"
            raise UserError(
                f"latents of {self.solver} are {wanted}, got {self.states.dtype} {list(self.states.shape)}"
                + ("; a single state of a pair does not lead back" if pairs else "")
            )
        if self.labels.shape != self.states.shape[:1]:
            raise UserError(f"{len(self.states)} latents need one label each, got {list(self.labels.shape)}")

    def __len__(self):
        return len(self.states)

    def __getitem__(self, index):
        """Some of them: z[2:5], z[[0, 3]]; z[4] is z[4:5]."""
        index = np.arange(len(self))[index].reshape(-1)
        return dataclasses.replace(self, states=self.states[index], labels=self.labels[index])

    @property
    def z(self):
        """The states at σ_max, float32 [n, H, W, C]: of a pair, its mean."""
        return reversible.to_states(self.states, self.sigma) if self.solver == "reversible" else self.states

    def replaced(self, function):
        """With `function(floats [n, …]) -> floats` done to the states: of pairs, to each member."""
        if self.solver != "reversible":
            return dataclasses.replace(self, states=np.asarray(function(self.states), np.float32))
        members = [function(self.states[:, i].astype(np.float64)) for i in (0, 1)]
        limit = np.iinfo(np.int32).max
        states = np.clip(np.round(np.stack(members, axis=1)), -limit, limit)
        return dataclasses.replace(self, states=states.astype(np.int32))

    def scaled(self, factor):
        """At another temperature: their norms times `factor`, a number or [n]. Directions stay."""
        factors = np.asarray(factor, np.float64)
        if factors.shape not in ((), (len(self),)):
            raise UserError(f"a temperature is a number or [{len(self)}] of them, got {list(factors.shape)}")
        factors = np.broadcast_to(factors, (len(self),))
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise UserError(f"a temperature must be above 0, got {factor}")
        return self.replaced(lambda z: z * _column(factors, z))

    def moved(self, direction):
        """Moved by a vector [H, W, C] or [n, H, W, C] at σ_max, such as a multiple of `class_direction`."""
        unit = self.sigma * reversible.UNIT if self.solver == "reversible" else 1.0
        return self.replaced(lambda z: z + np.asarray(direction, np.float64) / unit)

    def save(self, path):
        """Writes one npz file."""
        facts = {name: getattr(self, name) for name in ("solver", "options", "sigma", "run")}
        with atomic.replacing(path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream, states=self.states, labels=self.labels, facts=json.dumps(facts, default=_number)
            )


def load(path: Any) -> Latents:
    """The Latents that `save` wrote.

    Raises:
      UserError: no such file, or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            options = tuple((str(name), value) for name, value in facts["options"])
            return Latents(
                file["states"], file["labels"], facts["solver"], options, float(facts["sigma"]), facts["run"]
            )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a file of latents, as Latents.save writes it") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise UserError(f"{path} is not a file of latents; Latents.save writes one") from None


def _number(value):
    """A number of NumPy's as Python's own, for JSON."""
    return value.item()


def _column(factors, like):
    return factors.reshape(factors.shape + (1,) * (like.ndim - 1))


def slerp(a: Float[Arrays, "*S"], b: Float[Arrays, "*S"], t: Any) -> Float[np.ndarray, "points *S"]:
    """From a to b along the great circle of their directions: [len(t), *S] between vectors a, b [*S], t in [0, 1].

    Norms go geometrically from one to the other, so equal norms are kept: a straight line between two draws of a
    prior in many dimensions leads through norms that the prior never has.
    """
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if not (norm_a > 0 and norm_b > 0):
        raise UserError("a latent of zeros has no direction")
    a, b = np.asarray(a, np.float64) / norm_a, np.asarray(b, np.float64) / norm_b
    # The angle by its half: the arc cosine of a product near 1 keeps half the digits.
    angle = 2 * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    if math.pi - angle < 1e-6:
        raise UserError("latents that point away from each other lie on many great circles: take path=straight")
    t = _column(np.asarray(t, np.float64), a[None])
    if angle < 1e-12:
        direction = np.broadcast_to(a, t.shape[:1] + a.shape)
    else:
        direction = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / math.sin(angle)
    return norm_a ** (1 - t) * norm_b**t * direction


def straight(a: Float[Arrays, "*S"], b: Float[Arrays, "*S"], t: Any) -> Float[np.ndarray, "points *S"]:
    """From a to b in a straight line: [len(t), *S]."""
    t = _column(np.asarray(t, np.float64), np.asarray(a)[None])
    return (1 - t) * a + t * b


PATHS = {"slerp": slerp, "straight": straight}


def between(first: Latents, second: Latents, count: Any, path: str = "slerp") -> Latents:
    """The way from one latent to another: Latents of `count` points, both ends among them.

    Args:
      first, second: Latents of one each, of the same run and solver; labels are those of the nearer end.
      path: "slerp" or "straight".

    Raises:
      UserError: an unknown path, fewer than 2 points, or latents that do not go together.
    """
    if path not in PATHS:
        raise UserError(f"unknown path {path!r}; choose from {', '.join(PATHS)}")
    count = arguments.whole("n", count, 2)
    for name, kind in (("run", "runs"), ("solver", "solvers"), ("options", "options"), ("sigma", "sigma")):
        if getattr(first, name) != getattr(second, name):
            raise UserError(
                f"latents of different {kind} cannot be combined: {getattr(first, name)} and {getattr(second, name)}"
            )
    if len(first) != 1 or len(second) != 1:
        raise UserError(
            f"interpolation is between two single latents, got {len(first)} and {len(second)}: use z[0], z[1]"
        )
    t = np.linspace(0, 1, count)
    if first.solver == "reversible":
        ends = [[z.states[0, i].astype(np.float64) for i in (0, 1)] for z in (first, second)]
        states = np.stack([PATHS[path](a, b, t) for a, b in zip(*ends, strict=True)], axis=1)
        states = np.round(states).astype(np.int32)
    else:
        states = PATHS[path](first.states[0], second.states[0], t).astype(np.float32)
    labels = np.where(t < 0.5, first.labels[0], second.labels[0]).astype(np.int32)
    return dataclasses.replace(first, states=states, labels=labels)


def class_direction(
    latents: Latents, classes: Any, origin: SupportsIndex, target: SupportsIndex
) -> Float[np.ndarray, "*S"]:
    """From the mean latent of one class to that of another, [H, W, C].

    Args:
      latents: Latents of labelled images; classes: their classes [n]. origin, target: numbers of classes.

    Raises:
      UserError: another number of classes than latents, or a class of which there is no latent.
    """
    classes = np.asarray(classes)
    if classes.shape != (len(latents),):
        raise UserError(f"{len(latents)} latents have {len(latents)} classes, got {list(classes.shape)}")
    for number in (origin, target):
        if not (classes == number).any():
            raise UserError(f"there is no latent of class {number}")
    return latents.z[classes == target].mean(axis=0) - latents.z[classes == origin].mean(axis=0)


def to_hemisphere(z: Float[Arrays, "n *S"], r: float) -> Float[np.ndarray, "n M"]:
    """Latents [n, *S] on the hyperplane at extra radius r = σ_max √D as directions [n, N + 1] from the origin.

    A ray (x, r)/‖(x, r)‖: the last coordinate, above 0, is that of the extra dimensions. At D = 1 the prior is uniform
    on this hemisphere.
    """
    z = np.asarray(z, np.float64).reshape(len(z), -1)
    points = np.concatenate([z, np.full((len(z), 1), float(r))], axis=1)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def from_hemisphere(directions: Float[Arrays, "n M"], r: float, shape: tuple) -> Float[np.ndarray, "n *S"]:
    """The inverse of `to_hemisphere`: [n, *shape].

    Raises:
      UserError: a direction that does not point to the hyperplane.
    """
    directions = np.asarray(directions, np.float64)
    if not (directions[:, -1] > 0).all():
        raise UserError("directions of a hemisphere must have a last coordinate above 0")
    return (r * directions[:, :-1] / directions[:, -1:]).reshape(len(directions), *shape).astype(np.float32)
