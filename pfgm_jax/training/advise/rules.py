"""Advice on a plan, given the findings: pure functions; `judge` puts them together.

Thresholds are rules of thumb unless they name a source, and are printed as such.
"""

import math
from typing import NamedTuple

from pfgm_jax import models
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError, counted
from pfgm_jax.training.advise import trial
from pfgm_jax.training.dry_run import size

HOPELESS_HOURS = 30 * 24
LONG_HOURS = {True: 12, False: 72}  # on a CPU: a night; else a weekend
SMALLEST_BATCH, GOOD_BATCH = 16, 32
# Parameters a training image: EDM's CIFAR-10 network has 56 million for 50 000, which is 1 100.
MANY_PARAMETERS = 2_000
# Epochs. EDM sees CIFAR-10 4 000 times, with augmentation. The training time at which copying begins is proportional to
# the number of images (arXiv 2505.17638), so that epochs are its unit.
MANY_EPOCHS, MANY_AUGMENTED = 1_000, 4_000
# A learning rate may be so many times EDM's under the rule √batch; small networks bear more.
EDM_RATE, EDM_BATCH = 1e-3, 512
LARGE_NETWORK, HIGH_RATE, HIGH_RATE_SMALL = 10_000_000, 3.0, 12.0
# Muon's, of `cpu_28`: a third to three times of it did alike, more was not tried (benchmarks/RESULTS.md).
MUON_RATE, MUON_BATCH, HIGH_RATE_MUON = 1e-2, 64, 3.0
BUSY = 1.5  # programs for each core, this one not counted
MOST_NATS = 0.5  # of mismatch between prior and data
FEW_IMAGES, FEW_STEPS = 100_000, 2_000  # a run of fewer is not worth proposing
# Presets by image side: up to it, and the side that each is for, from small to large.
NETWORKS = (
    (40, {"cpu_28": 28, "medical_28": 28, "ddpmpp": 32}),
    (96, {"cpu_64": 64, "medical_64": 64, "ddpmpp_song": 64}),
    (160, {"cpu_128": 128, "medical_128": 128}),
    (math.inf, {"cpu_224": 224, "medical_224": 224}),
)


class Network(NamedTuple):
    """A preset that a plan could have, with its attention at this size: fields of config.model, and parameters."""

    name: str
    fields: dict
    parameters: int


class Findings(NamedTuple):
    """What advice is derived from.

    checkpoint: bytes. mean_square_norm: E‖y‖² of the data, None where others stand for them. recommended: a Network, or
    None where no preset can take the images. speedup: how many times fewer operations it takes than the planned one, or
    None where they were not counted.
    """

    config: object
    derived: dict
    machine: trial.Machine
    trial: trial.Trial
    parameters: int
    checkpoint: float
    mean_square_norm: float | None
    recommended: Network | None
    speedup: float | None


class Line(NamedTuple):
    """A piece of advice: "ok", "note", "CHANGE" or "STOP", why, and {key: value} of what to change."""

    mark: str
    why: str
    change: dict = {}


def networks_for(config, derived):
    """The Networks that can take images of the data's size, from small to large; none below 16 px."""
    shape, networks = derived["shape"], []
    side = max(shape[:2])
    for name, made_for in next(names for limit, names in NETWORKS if side <= limit).items() if side >= 16 else ():
        try:
            fields = models.attend_alike(models.preset(name), made_for, side)
        except UserError:  # such a side cannot be halved as often
            continue
        changed = config.copy_and_resolve_references()
        changed.model.update(fields)
        networks.append(Network(name, fields, trial.parameters(run_lib.make_model(changed, derived), shape)))
    return networks


def recommend(networks, images, cpu):
    """The largest Network with at most MANY_PARAMETERS an image, or on a CPU the smallest; None where there is none."""
    fitting = [network for network in networks if network.parameters <= MANY_PARAMETERS * images]
    return (networks[:1] if cpu or not fitting else fitting[-1:] or [None])[0] if networks else None


def batch_lines(facts):
    """(lines, the batch to train with): against memory and gradient noise. The batch is 0 if none fits."""
    tried, planned, limit = facts.trial, facts.config.train.batch, trial.HEADROOM * facts.machine.memory
    if not tried.largest:
        smallest = min(tried.memory)
        need = size(tried.memory[smallest])
        why = (
            f"no batch fits: {smallest} takes {need} a device, and {size(limit)} may be filled. Smaller images, a "
            "smaller network, model.remat=True, or on a GPU or TPU model.dtype=bfloat16"
        )
        return [Line("STOP", why, _lighter(facts))], 0
    if tried.memory[planned] > limit:
        batch = tried.largest
        change = batch_changes(facts.config, batch, facts.machine.devices)
        lines = [Line("CHANGE", f"batch {planned} does not fit; {batch} does", change)]
    elif planned < SMALLEST_BATCH <= tried.largest:
        batch = min(tried.largest, GOOD_BATCH)
        why = (
            f"batch {planned}: a step sees {planned} of all noise levels, so its gradient is mostly luck and the loss "
            f"jumps. At least {SMALLEST_BATCH} (rule of thumb); {batch} fits"
        )
        lines = [Line("CHANGE", why, batch_changes(facts.config, batch, facts.machine.devices))]
    else:
        batch, lines = planned, []
    if batch < SMALLEST_BATCH:
        why = (
            f"batch {batch}, and no more than {tried.largest} fits: a step sees {batch} of all noise levels and its "
            "gradient is mostly luck. Smaller images, a smaller network or model.remat=True make room"
        )
        lines.append(Line("note", why))
    elif batch == planned:
        lines.append(Line("ok", f"batch {batch}; the largest power of two that fits is {tried.largest}"))
    return lines, batch


def _lighter(facts):
    """What makes a step that does not fit lighter: the recommended network if it is smaller, else recomputing."""
    if facts.recommended and facts.recommended.parameters < facts.parameters:
        return network_changes(facts)
    model = facts.config.model
    able = "remat" in models.options(facts.config.model.name)
    return {"model.remat": True} if able and not model.remat else {}


def rate_lines(facts, batch):
    """The learning rate against EDM's, or that of Muon here, by the same rule, and its warm-up against the run."""
    c, images = facts.config.optim, facts.config.train.images
    whose, known, at, most = "EDM's", EDM_RATE, EDM_BATCH, HIGH_RATE_SMALL
    if c.name == "muon":
        whose, known, at, most = "Muon's", MUON_RATE, MUON_BATCH, HIGH_RATE_MUON
    elif facts.parameters >= LARGE_NETWORK:
        most = HIGH_RATE
    rate, rule = run_lib.scaled_rate(c, batch), known * math.sqrt(batch / at)
    if rate > most * rule:
        why = (
            f"learning rate {rate:.1e} at batch {batch} is {rate / rule:.1f} times {whose} ({known:g} at batch {at}, "
            f"by the rule √batch): the loss may jump. optim.lr is the rate at batch optim.lr_batch, here {c.lr_batch}, "
            "and is scaled to train.batch by itself"
        )
        lines = [Line("CHANGE", why, {"optim.lr": known, "optim.lr_batch": at})]
    else:
        lines = [Line("ok", f"learning rate {rate:.1e} at batch {batch}; {whose}, by the rule √batch, is {rule:.1e}")]
    if 2 * c.warmup > images:
        why = f"the learning rate rises for {c.warmup:,} images, of {images:,}; EDM's rises for a twentieth of the run"
        lines.append(Line("CHANGE", why, {"optim.warmup": images // 20}))
    return lines


def network_lines(facts):
    """Parameters and epochs against the number of images."""
    config, images, best = facts.config, facts.derived["train_images"], facts.recommended
    each, epochs = facts.parameters / images, config.train.images / images
    why = f"{facts.parameters:,} parameters, {each:,.0f} a training image (EDM on CIFAR-10: 1,100)"
    if best and best.parameters < facts.parameters and each > MANY_PARAMETERS:
        why += f": many, and a network that is large for its data copies it sooner. {best.name} has {best.parameters:,}"
        lines = [Line("CHANGE", why, network_changes(facts))]
    elif best and abs(math.log(best.parameters / facts.parameters)) > math.log(1.5):
        reason = "the smallest, for a CPU" if facts.machine.cpu else f"the largest below {MANY_PARAMETERS:,} an image"
        lines = [Line("ok", f"{why}. Of the presets {best.name} would be it: {best.parameters:,}, {reason}")]
    else:
        lines = [Line("ok", why)]
    augmented = config.train.augment > 0
    most = MANY_AUGMENTED if augmented else MANY_EPOCHS
    if epochs > most:
        why = (
            f"{epochs:,.0f} epochs are many (rule of thumb: {most:,} {'with' if augmented else 'without'} "
            "augmentation): expect copies of training images. Watch eval/gap and the share of copies, or stop at "
            f"train.images={most * images}"
        )
        lines.append(Line("note", why))
    return lines


def process_lines(facts):
    """D, and σ_max against the data."""
    c, sigma_max, lines = facts.config.process, facts.derived["sigma_max"], []
    if c.name == "pfgmpp" and c.D <= 2:
        why = (
            f"D = {c.D:g}: the kernel has no variance, so the network's input is unbounded. D = 1 has its own "
            "process, pfgm; otherwise use 128"
        )
        lines.append(Line("CHANGE", why, {"process.D": 128.0}))
    elif c.name == "pfgmpp" and c.D < 16:
        lines.append(Line("note", f"D = {c.D:g} has heavy tails; published scores are best from D = 64 on"))
    elif c.name == "pfgmpp":
        why = f"D = {c.D:g}; published CIFAR-10 scores are best at 128 and 2048 (arXiv 2302.04265)"
        lines.append(Line("ok", why))
    if c.name in ("vp", "subvp", "ddpm") or facts.mean_square_norm is None:
        return lines
    nats = run_lib.prior_mismatch(facts.mean_square_norm, sigma_max)
    rule = run_lib.sigma_max_of(facts.mean_square_norm)
    why = f"σ_max = {sigma_max:.4g}: prior and data differ by at most {nats:.2g} nats"
    if c.sigma_max is None:
        return [*lines, Line("ok", f"{why}; it is from the data")]
    if nats > MOST_NATS and c.name in ("pfgmpp", "edm"):
        why += (
            f", so samples start where no data come from. The value derived from the data is {rule:.4g} "
            f"({run_lib.PRIOR_NATS} nats)"
        )
        return [*lines, Line("CHANGE", why, {"process.sigma_max": None})]
    far = nats > MOST_NATS or sigma_max > 8 * rule
    return [*lines, Line("note" if far else "ok", f"{why}; EDM's rule gives {rule:.4g} for these data")]


def hours_lines(facts, hours):
    """The length of the run, and what would be shorter."""
    config, machine, best = facts.config, facts.machine, facts.recommended
    long, length = LONG_HOURS[machine.cpu], duration(hours)
    affordable = round(config.train.images * long / hours)
    if hours <= long:
        return [Line("ok", f"{length} of training")]
    within = f"in {long} hours this machine trains on {affordable:,} images"
    if hours <= HOPELESS_HOURS:
        return [Line("note", f"{length} of training is long; {within}")]
    faster = facts.speedup if facts.speedup and facts.speedup > 1.5 else None
    options, change = [within], {}
    if affordable >= FEW_IMAGES:
        change = images_changes(facts, affordable)
    elif faster and affordable * faster >= FEW_IMAGES:
        change = network_changes(facts) | images_changes(facts, affordable * faster)
    if faster:
        options.append(f"the network {best.name} takes {faster:.0f} times fewer operations (counted, not tried)")
    if not machine.cpu and config.model.dtype == "float32":
        options.append("model.dtype=bfloat16 may be faster (not tried)")
    if not change:
        options.append("smaller images or another machine would help")
    return [Line("STOP", f"{length} of training: " + "; ".join(options), change)]


def images_changes(facts, images):
    """A run of at most `images`, two digits of it, with its warm-up, and a batch that leaves it FEW_STEPS steps."""
    config, devices = facts.config, facts.machine.devices
    images = min(config.train.images, int(float(f"{images:.1e}")))
    change = {"train.images": images}
    if 2 * config.optim.warmup > images:
        change["optim.warmup"] = images // 20
    if images < FEW_STEPS * config.train.batch:
        batch = trial.power_of_two(max(images / FEW_STEPS, GOOD_BATCH, devices), devices)
        change |= batch_changes(config, batch, devices) if batch < config.train.batch else {}
    return change


def batch_changes(config, batch, devices):
    """{key: value} that give a plan another batch: with a large batch that it is part of, and parts that divide it."""
    change, (part, large) = {"train.batch": batch}, (config.train.microbatch, config.train.large_batch)
    if 0 < large < batch:
        change["train.large_batch"] = batch
    if part and batch % part:
        fitting = range(devices, min(part, batch) + 1, devices)  # what the devices can share
        change["train.microbatch"] = max((size for size in fitting if batch % size == 0), default=0)
    return change


def network_changes(facts):
    """{key: value} that turn the planned network into the recommended one."""
    now = facts.config.model.to_dict()
    return {f"model.{key}": value for key, value in facts.recommended.fields.items() if now[key] != value}


def judge(facts):
    """(lines, hours of the plan or None where no step ran) of Findings."""
    lines, batch = batch_lines(facts)
    speed = facts.trial.speed
    measured = batch if batch in speed else max(speed, default=None)
    hours = facts.config.train.images / speed[measured][0] / 3600 if measured else None
    if batch:
        lines += [*rate_lines(facts, batch), *network_lines(facts), *process_lines(facts)]
    if hours is not None:
        if measured != batch:
            lines.append(Line("note", f"the hours below are at the speed of batch {measured}; others were not tried"))
        if facts.machine.load > BUSY:
            why = (
                f"{facts.machine.load:.0f} programs per core are running here: alone, this one is faster than measured"
            )
            lines.append(Line("note", why))
        lines += hours_lines(facts, hours)
    copies = facts.config.train.keep + 1  # the new one is there before the oldest goes
    if facts.checkpoint * copies > facts.machine.disk:
        need, free = size(facts.checkpoint * copies), size(facts.machine.disk)
        lines.append(Line("note", f"{copies} checkpoints take {need}, and the disk has {free} free"))
    return lines, hours


def duration(hours):
    """Hours as text, in minutes, hours or days."""
    if hours < 1:
        return counted(max(1, round(60 * hours)), "minute")
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
