"""Configuration: the defaults, and values read from text.

A config is an ml_collections ConfigDict with the sections data, process, model, optim, train, tune, sample, evaluate,
likelihood, latents, restore, export, schedule and diagnose.
Fields that are None are derived from the data (`run.derive`) or set by the solver; `run_record` keeps the config with
everything derived. Nothing here imports JAX, so that a misspelt key is refused at once; what values must be is in
`config_rules`.
"""

import functools
import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pfgm_jax.errors import UserError, nearest, quoted

# What None leaves to the data.
DERIVED = ("process.sigma_min", "process.sigma_max", "process.sigma_data", "process.M", "process.max_norm")


def default():
    """Every field with its default and meaning."""
    config = ConfigDict()
    config.seed = 0  # of the first weights, the order of the images and the noise of training

    config.data = ConfigDict()
    config.data.name = "digits"  # digits, a toy, a name of MedMNIST, cifar10, celeba, lsun-…, folder, npz
    config.data.size = 8  # image side in pixels; 1 for points in the plane
    config.data.dir = ""  # folder with the files; "" downloads to the cache
    config.data.check_md5 = True  # refuse a file in data.dir that is not the official one
    config.data.channels = 0  # of a folder's images: 1 grey, 3 colours, 0: grey if all of them are
    config.data.pages = "first"  # of a folder's multi-page TIFFs and animations: first, or all as images of one split
    config.data.window = ""  # values of a folder's images of more than 8 bits that become black and white: LOW,HIGH,
    # auto (percentiles of the set), or "" for 0,65535
    config.data.group = ""  # regular expression that finds a patient in a folder's file names, to stay in one split
    config.data.val = 0.1  # shares of images without splits of their own (a folder, an npz file) that are held out
    config.data.test = 0.1  # the same for the test split
    config.data.split_seed = 0  # seed of that split
    config.data.condition = ""  # condition the network on a measurement of each image, such as inpaint:centre,
    # superres:2, deblur:1, denoise:0.4 (docs/restoration.md); "": none
    config.data.resident = placeholder(bool)  # keep the images on the devices; None: where they fit

    config.process = ConfigDict()
    config.process.name = "pfgmpp"  # pfgmpp, pfgm, edm, ve, vp, subvp, ddpm
    config.process.D = 128.0  # extra dimensions, any real >= 0.5 or inf; 1 for pfgm and inf for all others but pfgmpp
    config.process.sigma_min = placeholder(float)  # None: the process's own (0.002 EDM, 0.001 PFGM's z, 0.02 VE)
    config.process.sigma_max = placeholder(float)  # None: from the data (pfgmpp, edm, pfgm's z_max, ve)
    config.process.sigma_data = placeholder(float)  # None: the data's standard deviation
    config.process.P_mean = -1.2  # pfgmpp, edm: ln σ in training ~ N(P_mean, P_std²)
    config.process.P_std = 1.2  # pfgmpp, edm: their standard deviation
    config.process.M = placeholder(int)  # PFGM's largest exponent; None: from the data's norm
    config.process.max_norm = placeholder(float)  # PFGM: the prior's largest norm; None: from M
    config.process.restrict_M = True  # pfgm: smaller exponents where σ is small, as published
    config.process.gamma = 5.0  # PFGM's γ
    config.process.near = 5.0  # PFGM: below this z the field's norm gives the denoiser (5 on CIFAR-10)
    config.process.beta_min = 0.1  # vp, subvp
    config.process.beta_max = 20.0  # vp, subvp: β grows linearly from beta_min to it
    config.process.T = 1000  # ddpm: noise levels
    config.process.betas = "linear"  # ddpm: linear, cosine

    config.model = ConfigDict()
    # Published and other networks by name: config.model.update(**presets.preset("ncsnpp")).
    config.model.name = "unet"  # unet (DDPM++, NCSN++), adm, ncsnv2, mlp, dit
    config.model.channels = 128  # of the first level, the width of a transformer
    config.model.multipliers = (2, 2, 2)  # channels of each level, each at half the side, over channels
    config.model.blocks = 4  # residual blocks of a level; of a transformer or mlp in all
    config.model.attention = (16,)  # sides in pixels of the levels with self-attention
    config.model.head_channels = 64  # adm, dit: channels of an attention head
    config.model.patch = 4  # dit: side of a patch in pixels
    config.model.encoder = "standard"  # unet: standard, skip, residual
    config.model.decoder = "standard"  # unet: standard, skip
    config.model.resample_filter = (1, 1)  # unet: (1, 1), or (1, 3, 3, 1) for NCSN++
    config.model.keep_width = False  # unet: blocks that resample keep their input's width, as published
    config.model.embedding = "positional"  # unet: positional, fourier
    config.model.stored_frequencies = False  # unet, fourier: its frequencies are with the weights, as imported ones are
    config.model.log_noise = False  # unet: features of the noise level's logarithm
    config.model.noise_channels = 0  # features of the noise level; 0: as many as channels
    config.model.embedding_channels = 512  # width of the embedding of noise level and labels
    config.model.conditional = False  # class-conditional
    config.model.dropout = 0.13  # share of activations that are dropped in training
    config.model.remat = False  # keep less for the backward pass, and compute it again
    config.model.dtype = "float32"  # of the computation: float32, bfloat16 (float64 for tests)

    config.optim = ConfigDict()
    config.optim.name = "adam"  # adam, radam, muon (arXiv 2502.16982; its lr is about 10 times Adam's)
    config.optim.lr = 1e-3  # at batch lr_batch; scaled by √(batch/lr_batch), the rule for Adam (arXiv 2205.10287)
    config.optim.lr_batch = 512  # the batch that lr is for
    config.optim.warmup = 10_000_000  # images in which the learning rate rises linearly from 0
    config.optim.decay = "constant"  # constant, cosine (to lr_end × lr at train.images)
    config.optim.lr_end = 0.01  # cosine: the last learning rate over lr
    config.optim.beta1 = 0.9  # Adam's decay rate of the first moment (of muon's other parameters too),
    config.optim.beta2 = 0.999  # and of the second
    config.optim.eps = 1e-8  # Adam's ε
    config.optim.weight_decay = 0.0  # decoupled (AdamW); 0: none
    config.optim.clip = math.inf  # largest gradient norm

    config.train = ConfigDict()
    config.train.objective = "mean"  # what the network learns: mean, E[y | x, σ]; or consistency, the flow's end (tune)
    config.train.images = 200_000_000  # length of the run; all lengths and intervals below are in images too
    config.train.batch = 512  # images in a step, over all devices
    config.train.microbatch = 0  # images at once: a step's gradient is a sum over parts of the batch; 0: all of it
    config.train.large_batch = 0  # references of the posterior-mean target; 0: the clean image (PFGM needs > 0)
    config.train.order = "real"  # real: every image once an epoch; balanced: every class as often
    config.train.label_dropout = 0.0  # label dropout of a class-conditional network: share of examples
    config.train.augment = 0.0  # probability of EDM's augmentations, which the network gets as labels; 0: none
    config.train.flip = False  # mirror half of the images, left to right; not an augmentation label
    config.train.ema_halflife = 500_000  # half-life of the weights that are averaged exponentially
    config.train.ema_ramp = 0.05  # half-life at most this part of the images seen; 0: no ramp
    config.train.power_ema = False  # track two more averages, of which sample.ema_width makes one of any length
    config.train.skip_outliers = 0.0  # pass over a step whose gradient norm is above so many times its running median,
    # such as 10, or which is not finite; 0: none, and one that is not finite ends the run
    config.train.log_every = 10_000  # loss, gradient norm and speed are logged
    config.train.eval_every = 500_000  # losses of training and validation images and the distance to the truth
    config.train.sample_every = 1_000_000  # a picture of samples
    config.train.save_every = 1_000_000  # a checkpoint
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
    config.tune.P_std = 2.0  # its standard deviation in ln t
    config.tune.q = 2.0  # the step of a pair is t q^−(stage + 1) (1 + 8 sigmoid(−t)); 256 with one stage for short runs
    config.tune.stages = 4  # of equal length, to train.images
    config.tune.c = 0.0  # constant of the Pseudo-Huber distance; 0: the norm

    config.sample = ConfigDict()
    config.sample.n = 64  # number of samples
    config.sample.seed = 0  # of the samples: sample i depends on it and i
    config.sample.batch = 256  # samples at once
    config.sample.solver = "rk45"  # see sampling.SOLVERS
    config.sample.labels = "real"  # classes to ask for: real (frequencies), balanced, a name, or numbers like 3,5
    config.sample.guidance = 1.0  # weight w of guide + w (network − guide); 1: none
    config.sample.guide = ""  # run directory of a weaker network as the guide; "": the network without the label
    config.sample.D = placeholder(float)  # sample with another D than the one trained; None: the same
    config.sample.ema_width = 0.0  # part of the training to average weights over (train.power_ema); 0: the run's own
    config.sample.frames = 48  # of the trajectory's animation; 0: none
    config.sample.files = False  # write every image as a PNG of its own too, in a folder a class
    config.sample.steps = placeholder(int)  # levels of the solver's grid; None, as all below: the solver's own default
    config.sample.grid = placeholder(str)  # where they lie: edm, log, time, searched, or numbers like 80,9.3,0.002
    config.sample.rho = placeholder(float)  # exponent ρ of grid=edm
    config.sample.last_denoise = placeholder(bool)  # end with E[y | x, σ_min], one step from σ_min to 0
    config.sample.rtol = placeholder(float)  # rk45, tsit5: tolerances of the local error, relative
    config.sample.atol = placeholder(float)  # and absolute
    config.sample.per_sample = placeholder(bool)  # rk45, tsit5: each sample has step sizes of its own
    config.sample.fixed_steps = placeholder(int)  # rk45, tsit5: so many equal steps in ln σ, without error control
    config.sample.max_steps = placeholder(int)  # rk45, tsit5: limit on steps, accepted and rejected
    config.sample.S_churn = placeholder(float)  # heun: noise that is added before a step is γ = S_churn/steps of σ,
    config.sample.S_min = placeholder(float)  # at levels from S_min
    config.sample.S_max = placeholder(float)  # to S_max,
    config.sample.S_noise = placeholder(float)  # of this standard deviation (EDM, 2206.00364, algorithm 2)
    config.sample.noise = placeholder(float)  # sde: its strength λ; 0 is the flow, 1 the reverse-time SDE
    config.sample.start = placeholder(str)  # dpmpp_2m, dpmpp_3m, ipndm: the first steps, published or rk4
    config.sample.equal_weights = placeholder(bool)  # ipndm: published weights; False: those of the grid (DEIS)
    config.sample.levels = placeholder(str)  # consistency: lower levels at which noise is added anew
    config.sample.eta = placeholder(float)  # ddim: η from 0, no noise, to 1
    config.sample.variance = placeholder(str)  # ancestral: small or large
    config.sample.clip = placeholder(float)  # ancestral: E[y | x, σ] is kept within ± this
    config.sample.predictor = placeholder(str)  # predictor_corrector: reverse_diffusion, ancestral, euler_maruyama
    config.sample.corrector_steps = placeholder(int)  # predictor_corrector: Langevin steps at each level
    config.sample.snr = placeholder(float)  # and their signal-to-noise ratio

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 0  # 0: as many as training images, at most 10 000; for pixels, as held-out ones
    config.evaluate.features = ""  # pixels, inception, inception64, domain; "": pixels for digits, else inception
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
    config.likelihood.atol = 1e-4  # relative and absolute
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
    config.restore.seed = 0  # which images, their noise and masks, and the draws
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
    config.diagnose.studies = "norms,truth,paths,solvers,noise,steps,weights"  # as docs/diagnostics.md
    config.diagnose.n = 128  # samples whose ways are studied, and training images
    config.diagnose.num_samples = 0  # of a figure of quality; 0: as evaluate takes, at most 1000
    config.diagnose.solvers = "euler,heun,dpmpp_2m,dpmpp_3m,rk45"  # whose error is measured, by these numbers of steps
    config.diagnose.steps = (5, 9, 18, 36, 50)  # of solvers with fixed steps
    config.diagnose.alphas = "0,0.1,0.2"  # noise that is added before every step, over σ
    config.diagnose.bits = (9, 8, 7, 6, 5, 4)  # of the network's weights, but for those with these words in their names
    config.diagnose.exact = "norm,affine,embed,conv_in,conv_out,enc0_,dec0_"  # parts whose weights keep all bits
    config.diagnose.seed = 0  # of all that is drawn
    config.diagnose.batch = 128  # states at once
    config.diagnose.quick = False  # a smoke test: few samples, few settings
    return config.lock()


def D_of(name, D=128.0):
    """The D of the process called `name`; for pfgmpp, which takes any, D."""
    return {"pfgmpp": D, "pfgm": 1.0}.get(name, math.inf)


def parse_arg(arg, **defaults):
    """Reads a config's argument string: "D=128,quick" with typed defaults -> ConfigDict.

    A key without a value is True; a value takes its default's type (a default of None takes a string). A type in the
    place of a default means None if no value is given.

    >>> args = parse_arg("D=64,quick", process="pfgmpp", D=128.0, quick=False)
    >>> args.process, args.D, args.quick
    ('pfgmpp', 64.0, True)

    Raises:
      UserError: an unknown key, or a value of another type.
    """
    values = {key: None if isinstance(value, type) else value for key, value in defaults.items()}
    for item in filter(None, (arg or "").split(",")):
        key, has_value, text = item.partition("=")
        if key not in defaults:
            options = ", ".join(defaults)
            raise UserError(f"unknown config argument {quoted(key)}; choose from {options}{nearest(key, defaults)}")
        default = defaults[key]
        kind = default if isinstance(default, type) else str if default is None else type(default)
        try:
            if kind is bool:
                values[key] = {"": True, "true": True, "false": False}[text.lower()]
            elif not has_value:
                raise ValueError
            else:
                values[key] = kind(text)
        except (KeyError, ValueError):
            example = 128 if isinstance(default, type) else default or "NAME"
            got = f"got {quoted(text)}" if has_value else f"such as {key}={example}"
            raise UserError(f"config argument {key!r} takes {_KINDS[kind]}, {got}") from None
    return ConfigDict(values)


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
        there = " or ".join(map(repr, keys_of(key)))
        meant = f"; did you mean {there}?" if there else nearest(key, flat)
        raise UserError(f"unknown config key {quoted(key)}{meant}")
    section, _, field = key.rpartition(".")
    place = config[section] if section else config
    kind = place.get_type(field)
    try:
        if isinstance(value, str):
            value = None if key in optional() and value.lower() == "none" else _read(value, kind)
        elif kind is tuple:
            value = tuple(value)
        if value is None and key not in optional():
            raise ValueError
        place[field] = value
    except (TypeError, ValueError, SyntaxError, KeyError):
        got = quoted(value) if isinstance(value, str) else repr(value)
        raise UserError(f"config key {key!r} takes {_KINDS[kind]}, got {got}") from None


@functools.cache
def optional():
    """The fields that may be None: those that are so by default."""
    return frozenset(key for key, value in flatten(default()).items() if value is None)


def keys_of(name):
    """At most three keys that a name without its section, or with a wrong one, may mean: lr -> [optim.lr]."""
    field, config = name.rpartition(".")[2], flatten(default())
    usual = ("train", "optim", "sample", "data", "model", "process")
    sections = dict.fromkeys((*usual, *(key.partition(".")[0] for key in config)))
    return [key for key in (field, *(f"{section}.{field}" for section in sections)) if key in config][:3]


_KINDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a word", tuple: "whole numbers like 1,2,2"
}  # fmt: skip


def _read(text, kind):
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    if kind is tuple:
        return tuple(int(item) for item in text.strip("()[] ").split(",") if item.strip())
    return kind(text.replace("_", "")) if kind is int else kind(text)
