"""Restoration with uncertainty: draws of the posterior of an image given a linear, noisy measurement of it.

`restore(weighted, measurement, task, …)` does it with a network; `tasks.task` checks what is asked. Methods take any
denoiser, an exact field as well as a network. `exact.posterior` is the oracle that they are measured by: the exact
posterior of a data set, and the flow that ends in it, at every D. docs/restoration.md says when each is trusted.
"""

from pfgm_jax.inference.restoration.condition import Condition
from pfgm_jax.inference.restoration.exact import Posterior, conditional_mean, posterior
from pfgm_jax.inference.restoration.methods import METHODS, Problem
from pfgm_jax.inference.restoration.noise import KINDS
from pfgm_jax.inference.restoration.operators import Operator
from pfgm_jax.inference.restoration.restore import Restoration, restore
from pfgm_jax.inference.restoration.tasks import TASKS, Task, measurements, task

__all__ = [
    "KINDS",
    "METHODS",
    "TASKS",
    "Condition",
    "Operator",
    "Posterior",
    "Problem",
    "Restoration",
    "Task",
    "conditional_mean",
    "measurements",
    "posterior",
    "restore",
    "task",
]
