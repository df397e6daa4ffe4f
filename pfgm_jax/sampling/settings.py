"""How samples are drawn, as one frozen record: the `sample` section of a config, changed by arguments of a call."""

import dataclasses
import math
from typing import Any

import numpy as np

from pfgm_jax import sampling
from pfgm_jax.data.class_labels import class_labels
from pfgm_jax.errors import UserError
from pfgm_jax.flow import process
from pfgm_jax.sampling import arguments


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
      n: number of samples.
      seed: of the PRNG key.
      batch: samples at once.
      solver: a name in `sampling.SOLVERS`.
      options: {option: value} of those that are set, of whatever solver; `solver_options` are those of this one.
      D: the D to sample with; None for the trained one.
      labels: as `Generator.sample` takes them.
      guidance: the weight, 1 for none.
      guide: a Generator, what `generator.load` takes, or "" for the network without its label.
      second_moment: what noise at finite D needs of the network, a TraceCurve; None for none.
    """

    n: int
    seed: int
    batch: int
    solver: str
    options: dict
    D: float | None
    labels: Any
    guidance: float
    guide: Any
    second_moment: Any = None

    @classmethod
    def of(cls, section):
        """The settings in the `sample` section of a config."""
        options = {name: section[name] for name in sampling.option_kinds() if section[name] is not None}
        names = [field.name for field in dataclasses.fields(cls) if field.name not in ("options", "second_moment")]
        return cls(options=options, **{name: section[name] for name in names})

    @property
    def solver_options(self):
        """The options that this solver takes, {option: value}, without those left to its default."""
        own = {name: self.options[name] for name in sampling.find(self.solver)[1] if name in self.options}
        return own if self.second_moment is None else own | {"second_moment": self.second_moment}

    @property
    def draws_noise(self):
        """Whether the solver adds noise that at finite D asks for a second moment."""
        options = sampling.find(self.solver)[1] | self.options
        amount = {"sde": options.get("noise"), "heun": options.get("S_churn")}.get(self.solver)
        return amount is not None and amount > 0

    def process(self, trained):
        """The process to sample with: the trained one, or the same with another D."""
        return trained if self.D is None else process.with_D(trained, self.D)

    def check(self, trained, **options):
        """Raises UserError if the solver is not defined for the process, or not with its options and these."""
        sampling.check(self.solver, self.process(trained), self.solver_options | options)

    def changed(self, n=None, labels=None, solver=None, D=None, guidance=None, guide=None, **options):
        """These settings with those arguments that are not None; options are the solver's.

        An explicit guidance of 1 leaves out the guide, which would do nothing; a guide of "" is none.

        Raises:
          UserError: an unknown solver or option, a value of another type, or an option without effect.
        """
        changes = {
            "n": None if n is None else arguments.whole("n", n, 1),
            "labels": labels,
            "solver": solver or None,
            "D": None if D is None else arguments.number("D", D),
            "guidance": None if guidance is None else arguments.number("guidance", guidance),
            "guide": "" if guidance == 1 else guide,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        options = {name: value for name, value in options.items() if value is not None}
        sampling.check_options(solver or self.solver, options)
        sampling.check_effect(solver or self.solver, self.options | options, options)
        return dataclasses.replace(self, options=self.options | options, **changes)


def labels_for(run, labels, n, key):
    """`class_labels` [n] for the network of a run; −1 for an unconditional one."""
    if run.config.model.conditional:
        return class_labels(labels, n, key, run.derived["classes"], run.derived["label_counts"])
    if isinstance(labels, str) and labels == "real":
        return np.full(n, -1)
    raise UserError("this network was trained without labels; train one with model.conditional=True")


def check_network(run, settings):
    """Raises UserError for a solver or guidance that a run's network cannot have.

    A tuned network is the flow's end: it serves the solver `consistency` alone, without guidance, which would bend the
    flow. Any other is a posterior mean and serves all others. Guidance is refused for a weight that is no number, for a
    guide at weight 1, and without a guide where the network was trained without labels or without label dropout.
    """
    config, weight, guide = run.config, settings.guidance, settings.guide
    if run.tuned != (settings.solver == "consistency"):
        tuned = "this network is tuned to the end of the flow: sample with sample.solver=consistency"
        other = (
            "consistency needs a tuned network, and this one predicts the posterior mean: --mode=tune makes one from it"
        )
        raise UserError(tuned if run.tuned else other)
    if run.tuned and weight != 1:
        raise UserError(
            "a tuned network cannot be guided, as guidance changes the flow whose end it has learnt: leave it out"
        )
    if not math.isfinite(weight):
        raise UserError(f"guidance must be a number, 1 for none, got {weight:g}")
    if guide and weight == 1:
        raise UserError(
            "a guide has no effect at guidance 1: set sample.guidance, such as to 2, or leave the guide out"
        )
    away = "guidance needs the network's output without a label, and this one was trained"
    weaker = "give a weaker network as sample.guide"
    if weight != 1 and not guide and not config.model.conditional:
        raise UserError(f"{away} without labels: {weaker}, or train one with model.conditional and train.label_dropout")
    if weight != 1 and not guide and not config.train.label_dropout:
        raise UserError(f"{away} with every label: train one with train.label_dropout=0.1, or {weaker}")
