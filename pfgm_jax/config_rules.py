"""What a config's values must be, whatever the data are."""

import math

from pfgm_jax.config import DERIVED, D_of, default, flatten, to_text
from pfgm_jax.errors import UserError, nearest, printable

# Limits beyond any machine: a number with some zeros too many is refused before memory is allocated.
_LARGEST = {"data.size": 8_192, "model.channels": 16_384, "model.blocks": 256, "model.head_channels": 16_384,
            "model.noise_channels": 16_384, "model.embedding_channels": 65_536, "train.batch": 2**24,
            "train.large_batch": 2**24, "train.steps_per_call": 2**16, "tune.stages": 64, "train.keep": 10_000,
            "sample.batch": 2**24, "sample.steps": 10**6,
            "likelihood.n": 10**9, "likelihood.vectors": 10**4, "latents.n": 10**4, "latents.points": 10**4,
            "restore.n": 10**4, "restore.batch": 2**20, "restore.steps": 10**5, "restore.sweeps": 10**5,
            "restore.resample": 10**3,
            "export.samples": 10**6,
            "schedule.draws": 10**6,
            "diagnose.n": 10**6, "diagnose.num_samples": 10**9, "diagnose.batch": 2**24,
            "sample.max_steps": 10**6, "sample.fixed_steps": 10**6,
            "sample.corrector_steps": 10**4,
            "sample.frames": 10_000, "evaluate.num_samples": 10**9, "evaluate.seeds": 1_000, "process.T": 100_000,
            "optim.warmup": 10**12, "train.images": 10**12, "train.ema_halflife": 10**12}  # fmt: skip
_ONE_OF = {
    "process.betas": ("linear", "cosine"),
    "model.embedding": ("positional", "fourier"),
    "model.encoder": ("standard", "skip", "residual"),
    "model.decoder": ("standard", "skip"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "optim.decay": ("constant", "cosine"),
    "optim.name": ("adam", "muon", "radam"),
    "train.order": ("real", "balanced"),
    "train.objective": ("mean", "consistency"),
    "latents.split": ("train", "val", "test"),
    "restore.task": ("denoise", "inpaint", "superres", "deblur"),
    "restore.noise": ("gaussian", "poisson", "heavy"),
    "export.dtype": ("float32", "bfloat16"),
    "schedule.field": ("network", "data"),
}
# What a value must be whatever the others are: (rule, test, fields).
_RULES = (
    ("at least 1", lambda v: v >= 1, (
        "model.channels", "model.blocks", "model.embedding_channels", "model.head_channels", "train.images",
        "train.log_every", "train.eval_every", "train.sample_every", "train.save_every", "train.eval_images",
        "train.keep", "tune.stages", "sample.n", "sample.batch", "likelihood.batch", "latents.n",
        "restore.n", "restore.batch", "schedule.draws", "diagnose.batch")),
    ("greater than 1, at most 1e6", lambda v: 1 < v <= 1e6, ("tune.q",)),
    ("at least 2", lambda v: v >= 2, ("likelihood.n", "latents.points", "latents.steps", "diagnose.n")),
    ("greater than 0", lambda v: v > 0, (
        "optim.lr", "optim.lr_batch", "optim.clip", "optim.eps", "process.gamma", "process.P_std", "tune.P_std",
        "likelihood.rtol", "likelihood.atol", "train.grace")),
    ("0 or more", lambda v: v >= 0, (
        "optim.weight_decay", "optim.warmup", "optim.lr_end", "train.ema_ramp", "train.steps_per_call", "tune.c",
        "train.microbatch",
        "tune.step", "likelihood.vectors", "likelihood.steps")),
    ("at least 0 and below 1", lambda v: 0 <= v < 1, (
        "model.dropout", "optim.beta1", "optim.beta2", "train.label_dropout", "data.val", "data.test")),
    ("greater than 0, or None to take it from the data", lambda v: v is None or v > 0, DERIVED),
    ("a whole number from 0 to 2³² − 1", lambda v: 0 <= v < 2**32, (
        "seed", "sample.seed", "data.split_seed", "likelihood.seed", "latents.seed", "restore.seed",
        "schedule.seed", "diagnose.seed")),
    ("even, for sines and cosines", lambda v: v >= 0 and v % 2 == 0, ("model.channels", "model.noise_channels")),
    ("each >= 1", lambda v: len(v) > 0 and min(v) >= 1, ("model.multipliers",)),
    ("up to 16, each up to 1,024", lambda v: len(v) <= 16 and max(v) <= 1_024, ("model.multipliers",)),
    ("a probability from 0 to 1", lambda v: 0 <= v <= 1, ("train.augment",)),
    ("at least 0 images", lambda v: v >= 0, ("train.ema_halflife",)),
    ("1 for grey, 3 for colour, 0 to follow the images", lambda v: v in (0, 1, 3), ("data.channels",)),
    ("greater than 0, or None for the process's smallest", lambda v: v is None or v > 0, ("likelihood.sigma_min",)),
    ("0 for none, or at least 2", lambda v: v >= 0 and v != 1, ("sample.frames",)),
    ("0 for the default, or more", lambda v: v >= 0, ("evaluate.num_samples",)),
    ("0 for the run's own average, or from 0.01 to 0.27", lambda v: v == 0 or 0.01 <= v <= 0.27, ("sample.ema_width",)),
    ("0 for none, or above 1", lambda v: v == 0 or 1 < v < math.inf, ("train.skip_outliers",)),
    ("0 for no gate, or at least 12", lambda v: v == 0 or v >= 12, ("export.samples",)),
    ("0 for the default, or at least 12", lambda v: v == 0 or v >= 12, ("diagnose.num_samples",)),
    ("each at least 2", lambda v: len(v) > 0 and min(v) >= 2, ("diagnose.steps", "schedule.steps")),
    ("each from 2 to 16", lambda v: len(v) > 0 and 2 <= min(v) and max(v) <= 16, ("diagnose.bits",)),
)  # fmt: skip


def check(config):
    """Raises UserError for a value that no data set could make right."""
    from pfgm_jax import inference, models, run, sampling

    flat = flatten(config)

    def require(good, key, rule):
        if not good:
            raise UserError(f"{key}={printable(to_text(flat[key]))} is not possible: {rule}")

    names = {"process.name": run.PROCESSES, "model.name": models.NETWORKS, "sample.solver": sampling.SOLVERS,
             "latents.solver": (*inference.FLOW_SOLVERS, "reversible"), "latents.path": inference.PATHS}  # fmt: skip
    for key, options in (names | _ONE_OF).items():
        require(flat[key] in options, key, f"it is one of {', '.join(options)}{nearest(flat[key], options)}")
    for key, most in _LARGEST.items():
        require((flat[key] or 0) <= most, key, f"at most {most:,}")
    for key, value in flat.items():
        bounded = key.startswith(("process.", "optim.", "tune.")) and key not in ("process.D", "optim.clip")
        require(not (bounded and isinstance(value, float)) or math.isfinite(value), key, "a finite number")
    for rule, test, keys in _RULES:
        for key in keys:
            require(test(flat[key]), key, rule)
    for section in _SECTIONS:
        section(config, require)


# Fields of config.process that some processes alone have, and those that have them. P_mean and P_std are not among
# them: config files set them whatever the process.
_OF_PROCESSES = {
    **dict.fromkeys(("M", "max_norm", "restrict_M", "gamma", "near"), ("pfgm",)),
    **dict.fromkeys(("beta_min", "beta_max"), ("vp", "subvp")),
    **dict.fromkeys(("T", "betas"), ("ddpm",)),
}


def check_new(config):
    """Raises UserError for a setting that a new run has no use for; runs of older versions may hold such."""
    from pfgm_jax import data, run

    c, usual = config.process, default()
    for key, processes in _OF_PROCESSES.items():
        # A tuned run has the process of its source.
        if c.name not in processes and c[key] != usual.process[key] and not run.is_tuned(config):
            value = printable(to_text(c[key]))
            raise UserError(f"process.{key}={value} is for process.name={' or '.join(processes)}: leave it out")
    for key in data.unused(config.data.name):
        if config.data[key] != usual.data[key]:
            value = printable(to_text(config.data[key]))
            raise UserError(f"data.{key}={value} does nothing for data.name={config.data.name}: leave it out")


def _check_process(config, require):
    """D, and the fields that a process has no use for."""
    from pfgm_jax.flow.kernel import SMALLEST_D as least

    c, name, D = config.process, config.process.name, config.sample.D
    require(c.D >= least, "process.D", f"D must be at least {least}, or inf")
    own = D_of(name, c.D)
    require(c.D == own, "process.D", f"process={name} has D = {own:g}; use process=pfgmpp for another D")
    require(0 < c.beta_min < c.beta_max, "process.beta_min", "0 < beta_min < beta_max")
    source = {"vp": "beta_min, beta_max", "subvp": "beta_min, beta_max", "ddpm": "T, betas"}.get(name)
    for key in ("sigma_min", "sigma_max"):
        require(c[key] is None or not source, f"process.{key}", f"process={name} derives it from {source}")
    require(c.max_norm is None or name == "pfgm", "process.max_norm", f"process={name} does not clip its prior")
    require(D is None or D >= least, "sample.D", f"D must be at least {least}, inf, or None")


def _check_model(config, require):
    """The resampling filter, and options that the network has not."""
    from pfgm_jax import models

    c, taps = config.model, tuple(config.model.resample_filter)
    good = len(taps) > 0 and len(taps) % 2 == 0 and taps == taps[::-1] and sum(taps) > 0
    require(good, "model.resample_filter", "an even number of taps, symmetric, like 1,1 or 1,3,3,1")
    # Numbers that only differ from network to network may stay; asking for an option that is missing may not.
    numbers = ("channels", "multipliers", "blocks", "attention", "head_channels", "patch", "noise_channels",
               "embedding_channels", "dropout")  # fmt: skip
    for key in models.unused(c):
        unchanged = key in numbers or c[key] == default().model[key]
        require(unchanged, f"model.{key}", f"the network {c.name} has no such option")


def _check_train(config, require):
    """The large batch, labels, augmentation and tuning, which go together or do not."""
    from pfgm_jax import models, run

    c, name = config.train, config.process.name
    pfgm, tuned = name == "pfgm", run.is_tuned(config)
    rule = "tuning needs a network that returns x at σ = 0, unlike process=pfgm; use pfgmpp with D=1, the same kernel"
    require(not (tuned and pfgm), "train.objective", rule)
    rule = "tuning begins from a trained run: use --mode=tune --source=RUN"
    require(not tuned or c.init, "train.objective", rule)
    rule = "it needs a run trained with train.power_ema=True"
    require(c.power_ema or not config.sample.ema_width, "sample.ema_width", rule)
    rule = f"0 for the whole batch, or a number that divides train.batch={c.batch}"
    require(not c.microbatch or c.batch % c.microbatch == 0, "train.microbatch", rule)
    require(c.large_batch > 0 or not pfgm, "train.large_batch", "PFGM's target is the field of a large batch")
    rule = "0, or at least train.batch, which is part of it"
    require(not c.large_batch or c.large_batch >= c.batch, "train.large_batch", rule)
    require(
        config.model.conditional or not c.label_dropout,
        "train.label_dropout",
        "it needs labels: set model.conditional=True",
    )
    if not c.augment:
        return
    able = "augment_channels" in models.options(config.model.name)
    require(able, "train.augment", f"the network {config.model.name} does not take augmentation labels")
    instead = "for PFGM use train.flip=True instead" if pfgm else "use train.large_batch=0"
    require(not c.large_batch, "train.augment", f"the large-batch target needs images without augmentation; {instead}")
    require(not c.flip, "train.flip", "train.augment already mirrors half of the images")


def _check_data(config, require):
    """The shares of the splits, and the image that the network is conditioned on."""
    from pfgm_jax import models, run
    from pfgm_jax.inference.restoration import condition

    c = config.data
    require(c.val + c.test < 1, "data.test", "together with data.val it leaves nothing to train on")
    try:
        asked = condition.parse(c.condition)
    except UserError as error:
        require(False, "data.condition", str(error))
    if asked is None:
        return
    able = "condition_channels" in models.options(config.model.name)
    require(able, "data.condition", f"the network {config.model.name} does not take a conditioning image")
    rule = "image-conditional training has the clean image as its target: use train.large_batch=0"
    require(not config.train.large_batch, "train.large_batch", rule)
    rule = "an image-conditional network cannot be tuned"
    require(not run.is_tuned(config), "data.condition", rule)


_SECTIONS = (_check_process, _check_model, _check_train, _check_data)
