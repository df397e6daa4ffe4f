"""What is asked of a restoration: a task, its noise and a method, checked in one place."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.flow.process import Process
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration import operators
from pfgm_jax.inference.restoration.condition import Condition
from pfgm_jax.inference.restoration.methods import CONDITIONAL, METHODS
from pfgm_jax.inference.restoration.operators import Operator
from pfgm_jax.sampling import arguments

TASKS = ("denoise", "inpaint", "superres", "deblur", "linear")


@dataclasses.dataclass(frozen=True)
class Task:
    """A checked task.

    Attributes:
      name: one of TASKS.
      operator: A and Aᵀ; for inpainting None, as the mask belongs to each image.
      mask: bool [H, W, C] or [B, H, W, C], True where observed; None but for inpainting.
      kind, level: of the noise; a level of None is to be estimated.
      method: a name in METHODS.
      options: of the method, all of them, as sorted pairs.
      measured: the shape of one measurement.
      condition: what the network is conditioned on, None for nothing.
    """

    name: str
    operator: Operator | None
    mask: np.ndarray | None
    kind: str
    level: float | None
    method: str
    options: tuple
    measured: tuple
    condition: Condition | None = None


def task(
    name: Any,
    shape: tuple[int, ...],
    process: Process,
    *,
    condition: Condition | None = None,
    mask: Any = None,
    factor: Any = None,
    width: Any = None,
    noise: str | None = None,
    level: Any = None,
    method: str | None = None,
    **options,
) -> Task:
    """The Task of a person's words; `Generator.restore` has the arguments.

    An image-conditional network, `condition`, restores its own measurement: its values are the defaults.

    Raises:
      UserError: an unknown task, noise, method or option, a mask of another shape or type, an operator without an
        adjoint, a level outside the process's range, a method that does not serve the task or D, or other values than
        the network is conditioned on.
    """
    if condition is not None:
        asked = {"factor": factor, "width": width, "noise": noise, "level": level, "method": method}
        own = _of_condition(condition, name, asked)
        factor, width, level, method = own.get("factor"), own.get("width"), own["level"], own["method"]
        mask = _trained_mask(condition, mask, shape)
    elif method == CONDITIONAL:
        raise UserError(
            "the method conditional needs a network conditioned on the measurement: data.condition trains one"
        )
    else:
        of_another = {"factor": (factor, "superres"), "width": (width, "deblur")}
        for key, (value, owner) in of_another.items():
            if value is not None and name != owner:
                raise UserError(f"{key}= is for {owner}: leave it out")
    noise, factor, width = noise or "gaussian", 2 if factor is None else factor, 1.0 if width is None else width
    operator, name = (name, "linear") if isinstance(name, Operator) else (None, name)
    if operator is None:
        _one_of("task", name, TASKS[:-1], "an Operator(name, A, Aᵀ)")
    _one_of("noise", noise, noises.KINDS)
    if (mask is None) == (name == "inpaint"):
        raise UserError("inpaint needs mask=, True where a pixel is observed" if mask is None else
                        f"mask= is for inpaint, not for {name}")  # fmt: skip
    if operator is None:
        operator = {
            "denoise": lambda: operators.identity,
            "superres": lambda: operators.average(arguments.whole("factor", factor, 2), tuple(shape)),
            "deblur": lambda: operators.blur(arguments.number("width", width), tuple(shape)),
            "inpaint": lambda: None,
        }[name]()
    measured = tuple(shape) if operator is None else operators.check(operator, tuple(shape))
    if level is None and name != "denoise":
        level = 0.0
    level = level if level is None else _checked_level(level, name, noise, process)
    usual = _usual(name, process, level)
    method = method or usual
    _one_of("method", method, METHODS)
    chosen = METHODS[method]
    if chosen.tasks and name not in chosen.tasks:
        raise UserError(f"the method {method} is for {' and '.join(chosen.tasks)}, not for {name}: use {usual}")
    if chosen.gaussian and not process.is_gaussian:
        raise UserError(
            f"the method {method} needs the score, which only D = inf has, and this network has D = "
            f"{process.D:g}: use split_gibbs"
        )
    mask = None if mask is None else _checked_mask(mask, shape)
    return Task(name, operator, mask, noise, level, method, _checked_options(method, options), measured, condition)


def _of_condition(condition, name, asked):
    """The arguments that a network conditioned on `condition` has; UserError for a task or values that are others."""
    own = condition.how | {"noise": "gaussian", "method": CONDITIONAL}
    if name != condition.task:
        raise UserError(
            f"this network is conditioned on {condition} and restores nothing else: the task is {condition.task!r}"
        )
    for key, value in asked.items():
        if value is not None and value != own.get(key):
            raise UserError(
                f"this network is conditioned on {condition}, and {key}={value} contradicts that: leave it out"
            )
    return own


def _trained_mask(condition, mask, shape):
    """The mask of an image-conditional network, which is the trained one unless that was drawn at random."""
    if condition.task != "inpaint" or condition.value == "random":
        return mask
    own = np.asarray(condition.mask(jax.random.split(jax.random.key(0), 1), shape))[0]
    if mask is not None and (_checked_mask(mask, shape) != own).any():
        raise UserError(f"this network was trained only with the mask {condition.value}: leave mask out")
    return own


def _usual(name, process, level):
    """The method of a task where none is asked for.

    Replacement needs pixels without noise: of noisy ones it says little once the level is below their noise.
    """
    if name == "denoise":
        return "matched"
    if name == "inpaint" and not level:
        return "repaint"
    return "pigdm" if process.is_gaussian else "split_gibbs"


def _one_of(what, value, options, more=""):
    if not isinstance(value, str) or value not in options:
        there = ", ".join(options) + (f", or {more}" if more else "")
        raise UserError(f"unknown {what} {value!r}; choose from {there}{nearest(value, options)}")


def _checked_level(level, name, kind, process):
    level = arguments.number("level", level)
    if not 0 <= level < math.inf:
        raise UserError(f"level must be 0 for no noise, or above, got {level:g}")
    if name == "denoise" and not process.sigma_min <= level <= process.sigma_max:
        raise UserError(
            f"a noise level of {level:g} is outside the trained range, {process.sigma_min:.4g} to "
            f"{process.sigma_max:.4g} in the unit scale (a grey level is 0.0078)"
        )
    if kind != "gaussian" and level == 0:
        raise UserError(f"{kind} noise needs a level above 0")
    return level


def _checked_mask(mask, shape):
    """A mask [H, W], [H, W, 1 or C] or [B, H, W, 1 or C] of booleans as [..., H, W, C]."""
    mask = np.asarray(mask)
    H, W, C = shape
    if mask.dtype != bool:
        raise UserError(f"mask must be of booleans, True where a pixel is observed, got {mask.dtype}")
    wide = mask[..., None] if mask.ndim == 2 else mask
    if wide.ndim not in (3, 4) or wide.shape[-3:-1] != (H, W) or wide.shape[-1] not in (1, C):
        raise UserError(f"mask must be [{H}, {W}], or one per image [B, {H}, {W}, 1 or {C}], got {list(mask.shape)}")
    return np.broadcast_to(wide, (*wide.shape[:-1], C))


def _checked_options(method, options):
    known = METHODS[method].options
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"the method {method} has no option {name!r}; it takes {', '.join(known)}{nearest(name, known)}"
            )
        if isinstance(known[name], int):
            arguments.whole(name, value, 1)
        elif not 0 < arguments.number(name, value) < math.inf:
            raise UserError(f"{name} must be above 0, got {value:g}")
    return tuple(sorted((known | options).items()))


def measurements(measurement: Any, task: Task) -> np.ndarray:
    """Measurements [B, *M], uint8 or floats in the unit scale, as float32 in the unit scale.

    Raises:
      UserError: another shape, type, or values that are not finite; a mask for other images.
    """
    images = arguments.images(measurement, task.measured)
    if task.mask is not None and task.mask.ndim == 4 and len(task.mask) not in (1, len(images)):
        raise UserError(f"there are {len(task.mask)} masks for {len(images)} images: give one, or one for each")
    return images
