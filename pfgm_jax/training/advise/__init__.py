"""Advice before a long run: what the planned one takes of this machine, what is wrong with it, and what to type."""

import math
import pathlib
import shlex
import sys
import textwrap
import time

import jax

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, data, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.errors import counted
from pfgm_jax.training import dry_run
from pfgm_jax.training.advise import rules, trial
from pfgm_jax.training.advise.rules import Findings, Line
from pfgm_jax.training.dry_run import size
from pfgm_jax.training.step import init_state

__all__ = ["advise"]


def advise(config, argument, overrides, workdir=None):
    """Advice on a plan as text: its derived constants, memory, speed and hours, what to change, and a command.

    Takes about 20 s of training steps, and what compiling takes. Nothing is written but caches: the compiler's, and of
    data that have to be downloaded.

    Args:
      config: the plan. argument, overrides: --config and the {key: text} that it is made from, for the command.
      workdir: where the run would be, for the command and the disk's free space.

    Raises:
      UserError: a plan that is not one: unknown values, absent data, images that the network cannot take.
    """
    begun = time.perf_counter()
    say = lambda doing: print(f"advise     {time.perf_counter() - begun:4.0f} s  {doing}", file=sys.stderr, flush=True)
    workdir = workdir or f"runs/{config.data.name}"
    config_rules.check(config)
    machine = trial.look_at_machine(workdir)
    say("loading the data")
    dataset = data.load(config.data, stand_in=True)
    first = possible_batch(config, dataset.train_images, parallel.device_count())
    plan = dry_run.prepare(config, dataset=dataset)
    _, derived, task, cadence = plan
    state = init_state(task, dataset.shape)
    resident = dry_run.is_resident(config, dataset)
    result = trial.run(task, state, dataset, cadence.per_call, machine, resident, say)
    findings = find(config, dataset, derived, state, machine, result, say)
    lines, hours = rules.judge(findings)
    memory = result.memory[task.batch]
    memory = None if math.isinf(memory) else memory
    described = dry_run.describe(config, plan, state, memory)
    return report(described, findings, [*first, *lines], hours, argument, overrides, workdir)


def possible_batch(config, images, devices):
    """Sets a batch that devices can share and data can fill, where the planned one is neither: lines that say so."""
    planned = config.train.batch
    if planned < 1 or images < devices or (planned % devices == 0 and planned <= images):
        return []  # it is possible, or no other is
    batch = max(devices, planned // devices * devices) if planned <= images else trial.power_of_two(images, devices)
    change = rules.batch_changes(config, batch, devices)
    config.train.update({key.removeprefix("train."): value for key, value in change.items()})
    there = f"{counted(devices, 'device')} and {counted(images, 'training image')}"
    why = f"batch {planned} is not possible with {there}; {batch} is"
    return [Line("CHANGE", why, change)]


def find(config, dataset, derived, state, machine, result, say):
    """The Findings of a plan that was tried."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    networks = rules.networks_for(config, derived)
    best = rules.recommend(networks, dataset.train_images, machine.cpu)
    speedup = None
    slowest = min((speed[0] for speed in result.speed.values()), default=math.inf)
    hopeless = config.train.images / slowest / 3600 > rules.HOPELESS_HOURS
    if hopeless and best and best.parameters < parameters:
        say(f"counting the operations of the network {best.name}")
        changed = config.copy_and_resolve_references()
        changed.model.update(best.fields)
        counts = [trial.operations(run_lib.make_model(c, derived), dataset.shape) for c in (config, changed)]
        speedup = counts[0] / counts[1] if all(counts) else None
    return Findings(
        config,
        derived,
        machine,
        result,
        parameters,
        float(sum(leaf.nbytes for leaf in jax.tree.leaves(state))),
        None if dataset.stands_for else data.moments(dataset.train.images).mean_square_norm,
        best,
        speedup,
    )


def report(described, result, lines, hours, argument, overrides, workdir):
    """The advice as text, with the command at its end."""
    machine, tried = result.machine, result.trial
    speeds = [
        f"{rate:,.4g} images/s at batch {batch} ({counted(steps, 'step')} in {seconds:.1f} s)"
        for batch, (rate, seconds, steps) in sorted(tried.speed.items(), reverse=True)
    ]
    fits = ", ".join(f"{batch} takes {size(need)}" for batch, need in sorted(tried.memory.items()))
    parts = [
        f"machine    {machine.devices} × {machine.kind}, {size(machine.memory)} of memory "
        f"{'to share' if machine.cpu else 'each'}, {size(machine.disk)} of disk free",
        described,
        f"batches    {fits} (the compiler's estimates; {size(trial.HEADROOM * machine.memory)} may be filled)",
        f"speed      {'; '.join(speeds) or 'not measured'}",
        f"compiling  {tried.compiling:.0f} s for all of this; what a run needs of it is kept",
        "",
    ]
    for mark, why, change in lines:
        text = why + "".join(f"\n{_flag(key, value)}" for key, value in change.items())
        parts += _hang(f"  {mark:8}", text)
    return "\n".join([*parts, "", *verdict(result, lines, hours, argument, overrides, workdir)])


def verdict(result, lines, hours, argument, overrides, workdir):
    """The last lines: whether the plan goes, and what to type."""
    changes = {key: value for line in lines for key, value in line.change.items()}
    stops = [line for line in lines if line.mark == "STOP"]
    takes = "" if hours is None else f": {rules.duration(hours)} of training"
    if stops:
        head = f"HOPELESS on this machine as planned{takes}."
    else:
        head = f"This plan goes{' with the changes above' if changes else ''}{takes}."
    if any(not line.change for line in stops):
        return [head, "No single setting fixes that: see the lines marked STOP."]
    flags = {key: config_lib.to_text(value) for key, value in changes.items()}
    untried = any(key.startswith("model.") for key in changes)
    mode = ["--mode=advise"] if untried else []
    command = [pathlib.Path(sys.executable).name, "-m", "pfgm_jax.main", *mode, f"--config={argument}"]
    command += [f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in (overrides | flags).items())]
    next_step = "Not tried with those changes; ask again:" if untried else "Run it:"
    if stops and not untried:
        images = changes.get("train.images", result.config.train.images)
        shorter = f"about {rules.duration(hours * images / result.config.train.images)}"
        next_step = f"With the changes above, {shorter}:"
    return [head, next_step, "  " + " ".join(shlex.quote(word) for word in command)]


def _flag(key, value):
    return f"--config.{key}={config_lib.to_text(value)}"


def _hang(head, text, width=120):
    """Lines of `head` and text, which is wrapped to the width and hangs below its own beginning."""
    wrapped = [part for line in text.split("\n") for part in textwrap.wrap(line, width - len(head))]
    return [f"{head if i == 0 else ' ' * len(head)}{part}" for i, part in enumerate(wrapped)]
