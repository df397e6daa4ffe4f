"""Configuration: the defaults and their checks.

A config is an ml_collections ConfigDict with the sections data, process, model, optim, train, tune, sample, evaluate,
likelihood, latents, restore, export, schedule and diagnose.
Fields that are None are left to the data (`run.derive`) or to the solver; `run_record` keeps the config with everything
derived. JAX is imported only by `check`, so that a misspelt key is refused at once.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pfgm_jax.errors import UserError, nearest, printable, quoted

# What None leaves to the data.
DERIVED = ("process.sigma_min", "process.sigma_max", "process.sigma_data", "process.M", "process.max_norm")
# Options of all solvers and their types: `sampling.option_kinds()`, repeated here because solvers import JAX.
SOLVER_OPTIONS = {
    "rtol": float, "atol": float, "per_sample": bool, "fixed_steps": int, "max_steps": int, "last_denoise": bool,
    "steps": int, "grid": str, "rho": float, "S_churn": float, "S_min": float, "S_max": float, "S_noise": float,
    "start": str, "eta": float, "variance": str, "clip": float, "predictor": str, "corrector_steps": int, "snr": float,
    "noise": float, "equal_weights": bool, "levels": str,
}  # fmt: skip
# What may be None: that, and what a solver has a default for.
OPTIONAL = (
    *DERIVED,
    "data.resident",
    "sample.D",
    "likelihood.sigma_min",
    *(f"restore.{name}" for name in ("level", "steps", "sweeps", "resample")),
    *(f"sample.{name}" for name in SOLVER_OPTIONS),
)
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


def default():
    """Every field with its default and meaning."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.size = 8  # image side in pixels; 1 for points in the plane
    config.data.dir = ""  # folder with the files; "" downloads to the cache
    config.data.check_md5 = True  # refuse a file in data.dir that is not the official one
    config.data.channels = 0  # of a folder's images: 1 grey, 3 colours, 0: grey if all of them are
    config.data.pages = "first"  # of a folder's multi-page TIFFs and animations: first, or all as images of one split
    config.data.window = ""  # values of a folder's images of more than 8 bits that become black and white: LOW,HIGH,
    # auto (percentiles of the set), or "" for 0,65535
    config.data.group = ""  # regular expression that finds a patient in a folder's file names, to stay in one split
    config.data.val = 0.1  # shares of images without splits of their own (a folder, an npz file) that are held out
    config.data.test = 0.1
    config.data.split_seed = 0  # seed of that split
    config.data.resident = placeholder(bool)  # keep the images on the devices; None: where they fit

    config.process = ConfigDict()
    config.process.name = "pfgmpp"  # pfgmpp, pfgm, edm, ve, vp, subvp, ddpm
    config.process.D = 128.0  # extra dimensions, any real >= 0.5 or inf; 1 for pfgm and inf for all others but pfgmpp
    config.process.sigma_min = placeholder(float)  # None: the process's own (0.002 EDM, 0.001 PFGM's z, 0.02 VE)
    config.process.sigma_max = placeholder(float)  # None: from the data (pfgmpp, edm, pfgm's z_max, ve)
    config.process.sigma_data = placeholder(float)  # None: the data's standard deviation
    config.process.P_mean = -1.2  # pfgmpp, edm: ln σ in training ~ N(P_mean, P_std²)
    config.process.P_std = 1.2
    config.process.M = placeholder(int)  # PFGM's largest exponent; None: from the data's norm
    config.process.max_norm = placeholder(float)  # PFGM: the prior's largest norm; None: from M
    config.process.restrict_M = True
    config.process.gamma = 5.0  # PFGM's γ
    config.process.near = 5.0  # PFGM: below this z the field's norm gives the denoiser (5 on CIFAR-10)
    config.process.beta_min = 0.1  # vp, subvp
    config.process.beta_max = 20.0
    config.process.T = 1000  # ddpm: noise levels
    config.process.betas = "linear"  # ddpm: linear, cosine

    config.model = ConfigDict()
    # Published and other networks by name: config.model.update(**presets.preset("ncsnpp")).
    config.model.name = "unet"  # unet (DDPM++, NCSN++), adm, ncsnv2, mlp, dit
    config.model.channels = 128
    config.model.multipliers = (2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.head_channels = 64  # adm, dit: channels of an attention head
    config.model.patch = 4  # dit: side of a patch in pixels
    config.model.encoder = "standard"  # unet: standard, skip, residual
    config.model.decoder = "standard"  # unet: standard, skip
    config.model.resample_filter = (1, 1)  # unet: (1, 1), or (1, 3, 3, 1) for NCSN++
    config.model.keep_width = False  # unet: blocks that resample keep their input's width, as published
    config.model.embedding = "positional"  # unet: positional, fourier
    config.model.log_noise = False  # unet: features of the noise level's logarithm
    config.model.noise_channels = 0  # features of the noise level; 0: as many as channels
    config.model.embedding_channels = 512
    config.model.conditional = False  # class-conditional
    config.model.dropout = 0.13
    config.model.remat = False  # keep less for the backward pass, and compute it again
    config.model.dtype = "float32"  # of the computation: float32, bfloat16 (float64 for tests)

    config.optim = ConfigDict()
    config.optim.name = "adam"  # adam, radam
    config.optim.lr = 1e-3  # at batch lr_batch; scaled by √(batch/lr_batch), the rule for Adam (arXiv 2205.10287)
    config.optim.lr_batch = 512
    config.optim.warmup = 10_000_000  # images
    config.optim.decay = "constant"  # constant, cosine (to lr_end × lr at train.images)
    config.optim.lr_end = 0.01
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip = math.inf  # largest gradient norm

    config.train = ConfigDict()
    config.train.objective = "mean"  # what the network learns: mean, E[y | x, σ]; or consistency, the flow's end (tune)
    config.train.images = 200_000_000  # length of the run; all lengths and intervals below are in images too
    config.train.batch = 512
    config.train.large_batch = 0  # references of the posterior-mean target; 0: the clean image (PFGM needs > 0)
    config.train.order = "real"  # real: every image once an epoch; balanced: every class as often
    config.train.label_dropout = 0.0  # label dropout of a class-conditional network: share of examples
    config.train.augment = 0.0  # probability of EDM's augmentations, which the network gets as labels; 0: none
    config.train.flip = False  # mirror half of the images, left to right; not an augmentation label
    config.train.ema_halflife = 500_000
    config.train.ema_ramp = 0.05  # half-life at most this part of the images seen; 0: no ramp
    config.train.log_every = 10_000
    config.train.eval_every = 500_000
    config.train.sample_every = 1_000_000
    config.train.save_every = 1_000_000
    config.train.keep = 2  # checkpoints, the newest ones,
    config.train.keep_best = True  # and the one with the lowest validation loss; saved when an evaluation finds it
    config.train.init = ""  # start from other weights: a run's folder, or pretrained:NAME; "": random ones
    config.train.eval_images = 1024  # of train and of val, at most
    config.train.grace = 15.0  # seconds in which a stop by SIGTERM or Ctrl-C ends, saved or not
    config.train.steps_per_call = 0  # training steps in one device call; 0: 8 on a CPU, 32 elsewhere

    config.tune = ConfigDict()  # consistency tuning (ECT, arXiv 2406.14548): --mode=tune
    config.tune.step = 0  # of the weights in train.init that were tuned, and
    config.tune.digest = ""  # what identifies them; both are recorded by the mode
    config.tune.P_mean = -1.1  # the upper level of a pair: ln t ~ N(P_mean, P_std²), within the process's range
    config.tune.P_std = 2.0
    config.tune.q = 2.0  # the step of a pair is t q^−(stage + 1) (1 + 8 sigmoid(−t)); 256 with one stage for short runs
    config.tune.stages = 4  # of equal length, to train.images
    config.tune.c = 0.0  # constant of the Pseudo-Huber distance; 0: the norm

    config.sample = ConfigDict()
    config.sample.n = 64
    config.sample.seed = 0
    config.sample.batch = 256  # samples at once
    config.sample.solver = "rk45"  # see sampling.SOLVERS
    config.sample.labels = "real"  # classes to ask for: real (frequencies), balanced, a name, or numbers like 3,5
    config.sample.guidance = 1.0  # weight w of guide + w (network − guide); 1: none
    config.sample.guide = ""  # run directory of a weaker network as the guide; "": the network without the label
    config.sample.D = placeholder(float)  # sample with another D than the one trained; None: the same
    config.sample.frames = 48  # of the trajectory's animation; 0: none
    config.sample.files = False  # write every image as a PNG of its own too, in a folder a class
    for name, kind in SOLVER_OPTIONS.items():  # rtol, steps, grid, …; None: the solver's own default
        config.sample[name] = placeholder(kind)

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 0  # 0: as many as training images, at most 10 000; for pixels, as held-out ones
    config.evaluate.features = ""  # pixels, inception, domain (a classifier); "": pixels for digits, else inception
    config.evaluate.split = "train"  # real images that figures compare with: train, val, test
    config.evaluate.copies = True  # look for copies of training images
    config.evaluate.usefulness = False  # train classifiers on labelled samples, and on real images beside them,
    config.evaluate.seeds = 3  # each so many times
    config.evaluate.inception = ""  # file with the weights of the Inception network; "" fetches them to the cache
    config.evaluate.solvers = "heun,dpmpp_2m,rk45"  # the quality curve: solvers,
    config.evaluate.steps = (5, 9, 18, 36)  # numbers of steps (adaptive ones take tolerances),
    config.evaluate.D = ""  # and values of D like 64,128,inf; "": the run's own

    config.likelihood = ConfigDict()
    config.likelihood.n = 128  # images of each set, at most
    config.likelihood.against = ""  # a further set to tell apart: a data set's name, such as retinamnist, or a folder
    config.likelihood.vectors = 2  # trace vectors an image; 1 gives no error of an image; 0: the exact trace
    config.likelihood.sigma_min = placeholder(float)  # density of the data smoothed to it; None: the process's smallest
    config.likelihood.rtol = 1e-4  # of the adaptive solver,
    config.likelihood.atol = 1e-4
    config.likelihood.steps = 0  # or so many equal steps in ln σ
    config.likelihood.seed = 0  # of dequantisation and trace vectors
    config.likelihood.batch = 64  # images at once

    config.latents = ConfigDict()
    config.latents.n = 6  # pairs of images that are joined, a row each
    config.latents.points = 9  # images of a row
    config.latents.path = "slerp"  # slerp (along the sphere, at kept norm), straight
    config.latents.solver = "dpmpp_3m"  # rk45, tsit5, euler, heun, dpmpp_2m, dpmpp_3m, ipndm, unipc, reversible
    config.latents.steps = 36  # of a solver with fixed steps
    config.latents.split = "test"  # the real images that are encoded: train, val, test
    config.latents.seed = 0  # which of them

    config.restore = ConfigDict()
    config.restore.task = "inpaint"  # denoise, inpaint, superres, deblur
    config.restore.n = 8  # draws of each image
    config.restore.method = ""  # matched, repaint, pigdm, split_gibbs; "": the task's own
    config.restore.steps = placeholder(int)  # of the method, as the others; None: its default
    config.restore.sweeps = placeholder(int)  # split_gibbs
    config.restore.resample = placeholder(int)  # repaint
    config.restore.mask = "centre"  # inpaint: what is hidden (centre, right, random), or a picture, white: observed
    config.restore.factor = 2  # superres: pixels of a side that are averaged
    config.restore.width = 1.0  # deblur: the blur's standard deviation in pixels
    config.restore.noise = "gaussian"  # gaussian, poisson, heavy
    config.restore.level = placeholder(float)  # in the unit scale [-1, 1]; None: estimated for denoise, else 0
    config.restore.label = ""  # the class of all images, by name or number; "": none
    config.restore.simulate = False  # the source's images are clean: they are measured first, and are the truth
    config.restore.seed = 0
    config.restore.batch = 64  # draws at once

    config.export = ConfigDict()
    config.export.dtype = "float32"  # of the weights' file: float32, or bfloat16, which halves it
    config.export.samples = 3421  # drawn for the release gate; 0: no gate, which then needs force
    config.export.force = False  # export what the gate refuses, or could not examine

    config.schedule = ConfigDict()
    config.schedule.field = "network"  # whose paths grids are searched on: network, data (the training set's own field)
    config.schedule.steps = (4, 5, 6, 7, 8, 10)  # numbers of evaluations, a grid each
    config.schedule.draws = 128  # paths from the prior, and training images of each level of the trace
    config.schedule.seed = 0  # of both

    config.diagnose = ConfigDict()
    config.diagnose.studies = "norms,truth,paths,solvers,noise,steps,weights"
    config.diagnose.n = 128  # samples whose ways are studied, and training images
    config.diagnose.num_samples = 0  # of a figure of quality; 0: as evaluate takes, at most 1000
    config.diagnose.solvers = "euler,heun,dpmpp_2m,dpmpp_3m,rk45"  # whose error is measured, by these numbers of steps
    config.diagnose.steps = (5, 9, 18, 36, 50)
    config.diagnose.alphas = "0,0.1,0.2"  # noise that is added before every step, over σ
    config.diagnose.bits = (9, 8, 7, 6, 5, 4)  # of the network's weights, but for those with these words in their names
    config.diagnose.exact = "norm,affine,embed,conv_in,conv_out,enc0_,dec0_"
    config.diagnose.seed = 0
    config.diagnose.batch = 128  # states at once
    config.diagnose.quick = False  # a smoke test: few samples, few settings
    return config.lock()


def D_of(name, D=128.0):
    """The D of the process called `name`; for pfgmpp, which takes any, D."""
    return {"pfgmpp": D, "pfgm": 1.0}.get(name, math.inf)


def parse_arg(arg, **defaults):
    """Reads a config's argument string: "D=128,quick" with typed defaults -> ConfigDict.

    A key without a value is True; a value takes its default's type (a default of None takes a string).

    Raises:
      UserError: an unknown key, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, has_value, text = item.partition("=")
        if key not in defaults:
            options = ", ".join(defaults)
            raise UserError(f"unknown config argument {quoted(key)}; there are {options}{nearest(key, defaults)}")
        kind = str if defaults[key] is None else type(defaults[key])
        try:
            if kind is bool:
                values[key] = {"": True, "true": True, "false": False}[text.lower()]
            elif not has_value:
                raise ValueError
            else:
                values[key] = kind(text)
        except (KeyError, ValueError):
            got = f"got {quoted(text)}" if has_value else f"such as {key}={defaults[key] or 'NAME'}"
            raise UserError(f"config argument {key!r} takes {_KINDS[kind]}, {got}") from None
    return ConfigDict(values)


_ONE_OF = {
    "process.betas": ("linear", "cosine"),
    "model.embedding": ("positional", "fourier"),
    "model.encoder": ("standard", "skip", "residual"),
    "model.decoder": ("standard", "skip"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "optim.decay": ("constant", "cosine"),
    "optim.name": ("adam", "radam"),
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
    ("1 for grey, 3 for colours, 0 for what the images are", lambda v: v in (0, 1, 3), ("data.channels",)),
    ("greater than 0, or None for the process's smallest", lambda v: v is None or v > 0, ("likelihood.sigma_min",)),
    ("0 for none, or at least 2", lambda v: v >= 0 and v != 1, ("sample.frames",)),
    ("0 for the default, or more", lambda v: v >= 0, ("evaluate.num_samples",)),
    ("0 for no gate, or at least 12", lambda v: v == 0 or v >= 12, ("export.samples",)),
    ("0 for the default, or at least 12", lambda v: v == 0 or v >= 12, ("diagnose.num_samples",)),
    ("each at least 2", lambda v: len(v) > 0 and min(v) >= 2, ("diagnose.steps",)),
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


def _check_process(config, require):
    """D, and the fields that a process has no use for."""
    from pfgm_jax.flow.process import SMALLEST_D as least

    c, name, D = config.process, config.process.name, config.sample.D
    require(c.D >= least, "process.D", f"D is a number from {least} on, or inf")
    own = D_of(name, c.D)
    require(c.D == own, "process.D", f"process={name} is D = {own:g}; process=pfgmpp takes any D")
    require(0 < c.beta_min < c.beta_max, "process.beta_min", "0 < beta_min < beta_max")
    for key in ("sigma_min", "sigma_max"):
        good = c[key] is None or name not in ("vp", "subvp", "ddpm")
        require(good, f"process.{key}", f"process={name} has it from beta_min, beta_max, T")
    require(c.max_norm is None or name == "pfgm", "process.max_norm", f"process={name} clips no prior")
    require(D is None or D >= least, "sample.D", f"D is a number from {least} on, inf, or None")


def _check_model(config, require):
    """The resampling filter, and options that the network has not."""
    from pfgm_jax import models

    c, taps = config.model, tuple(config.model.resample_filter)
    good = len(taps) > 0 and len(taps) % 2 == 0 and taps == taps[::-1] and sum(taps) > 0
    require(good, "model.resample_filter", "an even number of taps, the same from both ends, like 1,1 or 1,3,3,1")
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
    rule = "the network of process=pfgm is not x at σ = 0, where tuning begins; use pfgmpp with D=1, the same kernel"
    require(not (tuned and pfgm), "train.objective", rule)
    rule = "tuning begins from a trained run: use --mode=tune --source=RUN"
    require(not tuned or c.init, "train.objective", rule)
    require(c.large_batch > 0 or not pfgm, "train.large_batch", "PFGM's target is the field of a large batch")
    rule = "0, or at least train.batch, which is part of it"
    require(not c.large_batch or c.large_batch >= c.batch, "train.large_batch", rule)
    require(
        config.model.conditional or not c.label_dropout, "train.label_dropout", "model.conditional=True gives labels"
    )
    if not c.augment:
        return
    able = "augment_channels" in models.options(config.model.name)
    require(able, "train.augment", f"the network {config.model.name} takes no augmentation labels")
    instead = "PFGM goes with train.flip=True instead" if pfgm else "use train.large_batch=0"
    require(not c.large_batch, "train.augment", f"the field of a large batch is of images as they are; {instead}")
    require(not c.flip, "train.flip", "train.augment mirrors half of the images itself")


def _check_data(config, require):
    """The shares of the splits."""
    require(config.data.val + config.data.test < 1, "data.test", "with data.val it leaves nothing to train on")


_SECTIONS = (_check_process, _check_model, _check_train, _check_data)


def flatten(config):
    """{"section.field": value}, tuples as lists, as JSON would give them back."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def described(config):
    """The config as text, a section after the other, its values as the command line takes them."""
    lines = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            lines += [
                f"{key}:",
                *(f"  {name}: {inner if inner != '' else repr('')}" for name, inner in flatten(value).items()),
            ]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)


def to_text(value):
    """A value as `override` reads it from the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)


def override(config, key, value):
    """Sets config["a.b"] to a value, or to the value that a text from the command line or a JSON file says.

    Raises:
      UserError: an unknown key (with the nearest right one) or a wrong type.
    """
    flat = flatten(config)
    if key not in flat:
        raise UserError(f"unknown config key {quoted(key)}{nearest(key, flat)}")
    section, _, field = key.rpartition(".")
    place = config[section] if section else config
    kind = place.get_type(field)
    try:
        if isinstance(value, str):
            value = None if key in OPTIONAL and value.lower() == "none" else _read(value, kind)
        elif kind is tuple:
            value = tuple(value)
        if value is None and key not in OPTIONAL:
            raise ValueError
        place[field] = value
    except (TypeError, ValueError, SyntaxError, KeyError):
        got = quoted(value) if isinstance(value, str) else repr(value)
        raise UserError(f"config key {key!r} takes {_KINDS[kind]}, got {got}") from None


_KINDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a word", tuple: "whole numbers like 1,2,2"
}  # fmt: skip


def _read(text, kind):
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    if kind is tuple:
        return tuple(int(item) for item in text.strip("()[] ").split(",") if item.strip())
    return kind(text.replace("_", "")) if kind is int else kind(text)
