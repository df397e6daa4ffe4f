"""The course of a study: what is done, what is to do, each measurement kept when it is made, and the report at the end.

    WORKDIR/runs/NAME                       a run directory a variant, unless it is trained elsewhere
    WORKDIR/records/NAME/STAGE-KEY.json     a measurement; KEY is a hash of the weights and settings that it depends on
    WORKDIR/report.html, report.md, tables/*.csv, figures/*.svg and *.png

A study that was stopped goes on where it was: runs from their checkpoints, samples from their chunks.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from pfgm_jax import run_record
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.storage import atomic, checkpoint, digests, safetensors
from pfgm_jax.study import plan, report, stages
from pfgm_jax.study.findings import ALSO, OWN

PLACES = ("data.", "evaluate.inception")  # where something lies, which changes no figure


class Task(NamedTuple):
    """A stage of an entry.

    Attributes:
      stage: its name, with what it is of: "heun 18".
      settings: what its record depends on, beside the weights.
      act: `() -> record`.
      others: entries whose weights it depends on too.
    """

    stage: str
    place: stages.Place
    settings: list
    act: Callable
    others: tuple = ()


class State(NamedTuple):
    """Where a task stands: "done", "to do" or "failed: why"; its record, where there is one."""

    task: Task
    words: str
    record: dict | None


def study(description, entries, workdir):
    """Trains, measures and reports the Entries of a Study; returns its table of states and where the report is.

    Raises:
      UserError: an unknown solver or half a step, runs that are sampled with other labels, a folder that cannot be
        written, or runs there with settings that the study has no more. What goes wrong in a stage is kept in the table
        of states, and the others go on.
    """
    points = [(solver, number) for solver, numbers in description.ways.items() for number in numbers]
    for solver, number in [*points, description.headline, *(entry.own for entry in entries if entry.own)]:
        plan.steps_or_tolerance(solver, number)
    _require_alike(entries)
    folder = atomic.writable(workdir)
    for entry in entries:
        _require_same(entry)
    tasks = _tasks(description, entries, folder)
    begun, failures = time.perf_counter(), {}
    if description.measure:
        for i, task in enumerate(tasks):
            if _read(task) is not None:
                continue
            task.place.folder.mkdir(parents=True, exist_ok=True)
            name = f"{task.place.entry.name}: {task.stage}"
            print(f"[{i + 1}/{len(tasks)}] {name} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)
            try:
                _write(task, task.act())
            except UserError as error:
                failures[task.place.entry.name, task.stage] = str(error)
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
    states = [_state(task, failures) for task in tasks]
    with atomic.writing_to(folder):
        written = report.write(description, entries, states, folder)
    return f"{shown(states)}\n\n{written}"


def _tasks(description, entries, folder):
    """Every Task of a study, in the order in which they are done: what most of the report needs comes first."""
    measure = _Measures()
    places = [stages.Place(description, entry, folder / "records" / plan.folder_name(entry.name), measure)
              for entry in entries]  # fmt: skip
    seen = [description.features, description.split]
    n, solver, number = description.n, *description.headline
    tasks = [Task("train", place, [place.entry.config.train.images], functools.partial(stages.train, place))
             for place in places]  # fmt: skip

    def each(stage, settings, act, some=places, others=()):
        tasks.extend(Task(stage, place, settings, functools.partial(act, place), others) for place in some)

    each("headline", [seen, n, solver, number], stages.headline)
    for features in description.also:
        settings = [features, description.split, n, solver, number]
        each(ALSO + features, settings, functools.partial(stages.also, features=features))
    each("copies", [n, solver, number], stages.copies)
    first = places[0]
    for place in places[1:]:
        act = functools.partial(stages.difference, place, first)
        tasks.append(Task("difference", place, [seen, n, solver, number], act, (first.entry,)))
    for place in places:
        own = place.entry.own
        if own:
            act = functools.partial(stages.way, place, *own, n)
            tasks.append(Task(OWN, place, [seen, n, *own], act))
    if description.cost:
        each("cost", [solver, number], stages.cost)
    if description.usefulness:
        settings = [n, solver, number, description.usefulness]
        each("usefulness", settings, functools.partial(stages.usefulness, first=True), places[:1])
        each("usefulness", settings, stages.usefulness, places[1:])
    if description.latents:
        each("latents", [description.latents], stages.latents)
    if description.likelihood:
        each("likelihood", [description.likelihood], stages.likelihoods)
    if description.robustness:
        each("robustness", [seen, description.robustness], stages.robustness)
    one_seed = [place for place in places if place.entry.name == place.entry.variant]
    for name, numbers in description.ways.items():
        for value in numbers:
            some = [place for place in one_seed if stages.admits(place.entry, name)]
            act = functools.partial(stages.way, solver=name, number=value, n=description.curve)
            each(f"{name} {value:g}", [seen, description.curve, name, value], act, some)
    return tasks


class _Measures:
    """`Generator -> Measure`, made once for all runs of the same data and features."""

    def __init__(self):
        self._made = {}

    def __call__(self, generator):
        config = generator.config
        key = naming.key_of([dict(config.data), config.evaluate.features, config.evaluate.split])
        if key not in self._made:
            self._made[key] = protocol.measure_for(generator)
        return self._made[key]


def _require_alike(entries):
    """Raises UserError where networks that know classes are asked for others: their figures would not compare."""
    asked = {entry.config.sample.labels: entry.name for entry in entries if entry.config.model.conditional}
    if len(asked) > 1:
        (one, first), (other, second) = list(asked.items())[:2]
        raise UserError(
            f"{first} is sampled with sample.labels={one} and {second} with {other}, which do not compare: "
            "--config.sample.labels=real is for all"
        )


def _require_same(entry):
    """Raises UserError where the run that the study has trained for an entry is of other settings than it has now."""
    if entry.trained_here and (entry.folder / "config.json").exists():
        recorded, _ = run_record.load(entry.folder)
        if different := run_record.differences(entry.config, recorded):
            raise UserError(
                f"{entry.name}: {entry.folder} holds a run with different {', '.join(different)}; rename the "
                "variant, use its values or another workdir"
            )


def _weights(entry):
    """What tells an entry's weights and sampling from its earlier ones and another run's; None without weights."""
    there = checkpoint.steps(entry.folder) if entry.folder.exists() else []
    exported = entry.folder / safetensors.EXPORTED
    if not there and not exported.exists():
        return None
    weights = there[-1] if there else _digest(exported, exported.stat().st_mtime_ns)
    changed = {key: value for key, value in stages.uses_of(entry).items() if not key.startswith(PLACES)}
    return [weights, run_record.fingerprint(run_record.read(entry.folder)), *([changed] if changed else [])]


@functools.lru_cache(maxsize=64)
def _digest(path, changed):
    """The digest of a file that was `changed` last then: every stage asks for it."""
    del changed
    return digests.of_file(path)


def _path(task):
    """Where the record of a task is, None where there are no weights yet."""
    weights = [_weights(entry) for entry in (task.place.entry, *task.others)]
    if None in weights:
        return None
    stage = task.stage.replace(" ", "-")
    return task.place.folder / f"{stage}-{naming.key_of([task.settings, weights])}.json"


def _read(task):
    """The record of a task, None where there is none, or not of these weights."""
    path, entry = _path(task), task.place.entry
    if path is None or not path.exists():
        return None
    if task.stage == "train" and entry.trained_here and not stages.trained(entry):
        return None
    return json.loads(path.read_text())


def _write(task, record):
    path = _path(task)
    protocol.save_record(path, record)


def _state(task, failures):
    record = _read(task)
    failed = failures.get((task.place.entry.name, task.stage))
    words = "done" if record else f"failed: {failed}" if failed else "to do"
    if record and "skipped" in record:
        words = f"left out: {record['skipped']}"
    return State(task, words, record)


def shown(states):
    """The states as text: a line an entry, a column a stage."""
    names = list(dict.fromkeys(state.task.stage for state in states))
    lines = [["", *names]]
    for entry in dict.fromkeys(state.task.place.entry.name for state in states):
        words = {s.task.stage: s.words.split(":")[0] for s in states if s.task.place.entry.name == entry}
        lines.append([entry, *(words.get(name, "–") for name in names)])
    failed = [f"{s.task.place.entry.name}, {s.task.stage}: {s.words}" for s in states if s.words.startswith("failed")]
    return "\n".join([aligned(lines), *failed])
