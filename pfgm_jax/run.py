"""From a config and its data to a `Run`: derived numbers, process, parametrisation, network."""

import dataclasses
import math
import types
from collections.abc import Mapping

import numpy as np
from ml_collections import FrozenConfigDict

from pfgm_jax import models
from pfgm_jax.data import augment
from pfgm_jax.data.dataset import diameter, moments
from pfgm_jax.errors import UserError
from pfgm_jax.flow import parametrization, process
from pfgm_jax.inference.restoration import condition

# The mismatch between prior and data that EDM's σ_max of 80 leaves on CIFAR-10, in nats.
PRIOR_NATS = 0.06


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is, made once by `make_run` and never changed.

    Attributes:
      config: the checked config, read-only.
      derived: what the data decide (`derive`), read-only.
      process, parametrization, model: made from these two.
    """

    config: FrozenConfigDict
    derived: Mapping
    process: process.Process
    parametrization: parametrization.Parametrization
    model: object

    @property
    def condition(self):
        """The image that the network is conditioned on, a `restoration.condition.Condition`; None for none."""
        return condition.parse(self.config.data.condition)

    @property
    def tuned(self):
        """See `is_tuned`."""
        return is_tuned(self.config)

    @property
    def init_images(self):
        """The images that the weights of train.init had seen, None where that is not known; 0 for random weights."""
        return self.derived.get("init_images", 0)

    def images_seen(self, step):
        """How many images the weights of `step` were trained on, in words: `seen`."""
        return f"{seen(self.init_images, step * self.config.train.batch)} images"


def seen(before, own):
    """Images of a run's first weights, None for an unknown number, and of the run: "1,000", "500 + 1,000"."""
    first = "" if before == 0 else "an unknown number + " if before is None else f"{before:,} + "
    return f"{first}{own:,}"


def make_run(config, derived):
    """The Run of a checked config and its derived numbers."""
    return Run(
        FrozenConfigDict(config),
        types.MappingProxyType(dict(derived)),
        make_process(config, derived),
        make_parametrization(config, derived),
        make_model(config, derived),
    )


def is_tuned(config):
    """Whether a run's network is the consistency function, the end of the flow, and no posterior mean."""
    return config.train.objective == "consistency"


def weighs_by_class(order, num_labels):
    """Whether what a network learns weighs the images by class: it saw every class as often, and is given none.

    Its exact posterior mean is then not that of the training set.
    """
    return order == "balanced" and not num_labels


def prior_mismatch(mean_square_norm, sigma_max):
    """Bound, in nats, on the mismatch at σ_max of data with this E‖y‖² and a prior centred at 0: E‖y‖²/(2σ_max²)."""
    return mean_square_norm / (2 * sigma_max**2)


def sigma_max_of(mean_square_norm):
    """The σ_max at which `prior_mismatch` is PRIOR_NATS."""
    return math.sqrt(mean_square_norm / (2 * PRIOR_NATS))


def scaled_rate(optim, batch):
    """config.optim's learning rate at a batch: by the square root, the rule for Adam (arXiv 2205.10287)."""
    return optim.lr * math.sqrt(batch / optim.lr_batch)


def derive(config, dataset):
    """Everything that the data decide, as plain numbers for config.json.

    For EDM and PFGM++, σ_max bounds the mismatch between the prior, which is centred at 0, and the data at σ_max,
    E‖y‖²/(2σ_max²), by PRIOR_NATS: EDM's 80 on CIFAR-10. PFGM's M, z_max and largest prior norm follow its formulas
    (`process.pfgm`); VE's σ_max is the largest distance between two images (arXiv 2006.09011, technique 1).

    Raises:
      UserError: an image size that the network cannot take, a batch larger than the training set, or images that are
        all alike.
    """
    facts = moments(dataset.train.images)
    if facts.std < 1e-9:  # of bytes it is exactly 0
        raise UserError(
            f"all training images of {dataset.name} are of one colour ({facts.mean:+.3f} in [-1, 1]): there is nothing "
            "to learn; look at the images, and at data.window where they have more than 8 bits"
        )
    N = math.prod(dataset.shape)
    if config.train.batch > dataset.train_images:
        fitting = 2 ** int(math.log2(dataset.train_images))
        raise UserError(
            f"train.batch={config.train.batch} is more than the {dataset.train_images} training images; "
            f"write train.batch={fitting}"
        )
    if dataset.train.images.dtype != np.uint8 and (config.train.augment or config.train.flip):
        raise UserError(f"{dataset.name} holds points: train.augment and train.flip are for images; leave them out")
    if dataset.train.images.dtype != np.uint8 and config.data.condition:
        raise UserError(f"{dataset.name} holds points: data.condition is for images; leave it out")
    derived = {
        "shape": list(dataset.shape),
        "dtype": str(dataset.train.images.dtype),
        "N": N,
        "classes": list(dataset.classes),
        "label_counts": np.bincount(dataset.train.labels, minlength=dataset.num_classes).tolist(),
        "train_images": dataset.train_images,
        "licence": dataset.licence,
        "window": dataset.window and list(dataset.window),
        "mean": float(facts.mean),
        "std": float(facts.std),
        "mean_norm": float(facts.mean_norm),
        "largest_norm": float(facts.largest_norm),
        "sigma_data": float(facts.std if config.process.sigma_data is None else config.process.sigma_data),
        "M": process.pfgm_M(facts.mean_norm, N) if config.process.M is None else config.process.M,
        "sigma_max": config.process.sigma_max,
        "lr": scaled_rate(config.optim, config.train.batch),
    }
    if derived["sigma_max"] is None and config.process.name == "ve":
        derived["sigma_max"] = diameter(dataset.train.images)
        if not derived["sigma_max"] > 0:
            raise UserError(
                f"all training images of {dataset.name} are equal: ve takes σ_max from the largest distance between "
                "two of them; give others, or write process.sigma_max"
            )
    elif derived["sigma_max"] is None and config.process.name in ("edm", "pfgmpp"):
        derived["sigma_max"] = sigma_max_of(facts.mean_square_norm)
    # The others have a σ_max of their own, which may depend on M.
    derived["sigma_max"] = make_process(config, derived).sigma_max
    make_model(config, derived).check_size(dataset.shape[:2])
    if asked := condition.parse(config.data.condition):
        asked.operator(dataset.shape)
    return derived


def check_derived(derived):
    """Raises UserError, naming the field, for derived numbers that make no Generator."""

    def require(good, key, rule):
        if not good:
            value = repr(derived.get(key, "nothing"))
            raise UserError(f"'derived.{key}' must be {rule}, got {value if len(value) < 80 else value[:77] + '...'}")

    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    positive = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    shape, classes, counts = (derived.get(key) for key in ("shape", "classes", "label_counts"))
    good = isinstance(shape, list) and len(shape) == 3 and all(whole(side) and 0 < side <= 2**14 for side in shape)
    require(good and math.prod(shape) <= 2**28, "shape", "[height, width, channels], each at least 1")
    good = isinstance(classes, list) and len(classes) > 0 and all(isinstance(name, str) for name in classes)
    require(good, "classes", "a list of names")
    good = isinstance(counts, list) and len(counts) == len(classes) and all(whole(n) and n >= 0 for n in counts)
    require(good and sum(counts) > 0, "label_counts", f"{len(classes)} numbers of images, one a class")
    for key in ("sigma_data", "sigma_max", "lr"):
        require(positive(derived.get(key)), key, "a number above 0")
    require(derived.get("N") == math.prod(shape), "N", f"{math.prod(shape)}, the numbers of an image")
    require(whole(derived.get("M")) and 0 <= derived["M"] < 2**31, "M", "a whole number, 0 or more")
    require(derived.get("dtype", "uint8") in ("uint8", "float32"), "dtype", "uint8 or float32")
    step, before = derived.get("step", 0), derived.get("init_images", 0)
    require(whole(step) and step >= 0, "step", "a whole number, 0 or more")
    require(before is None or whole(before) and before >= 0, "init_images", "a whole number, 0 or more, or null")


def _given(**options):
    """Those options that are not left to their default."""
    return {name: value for name, value in options.items() if value is not None}


# name: (its Process, the parametrisation it was published with), from c = config.process and d = the derived numbers.
PROCESSES = {
    "pfgmpp": (
        lambda c, d: process.pfgmpp(c.D, P_mean=c.P_mean, P_std=c.P_std, **_range(c, d)),
        lambda c, d: parametrization.EDM(d["sigma_data"]),
    ),
    "pfgm": (
        lambda c, d: process.pfgm(
            d["M"],
            d["N"],
            restrict_M=c.restrict_M,
            z_max=d["sigma_max"],
            max_norm=c.max_norm,
            **_given(z_min=c.sigma_min),
        ),
        lambda c, d: parametrization.PoissonField(c.gamma, c.near),
    ),
    "edm": (
        lambda c, d: process.edm(P_mean=c.P_mean, P_std=c.P_std, **_range(c, d)),
        lambda c, d: parametrization.EDM(d["sigma_data"]),
    ),
    "ve": (lambda c, d: process.ve(**_range(c, d)), lambda c, d: parametrization.Score()),
    "vp": (lambda c, d: process.vp(c.beta_min, c.beta_max), lambda c, d: parametrization.Epsilon()),
    "subvp": (lambda c, d: process.subvp(c.beta_min, c.beta_max), lambda c, d: parametrization.Epsilon()),
    "ddpm": (lambda c, d: process.ddpm(c.T, c.betas), lambda c, d: parametrization.Epsilon(1.0, -1.0)),
}


def _range(c, d):
    return _given(sigma_min=c.sigma_min, sigma_max=d["sigma_max"])


def make_process(config, derived):
    """The Process of a checked config."""
    return PROCESSES[config.process.name][0](config.process, derived)


def make_parametrization(config, derived):
    """The parametrisation that the process was published with."""
    return PROCESSES[config.process.name][1](config.process, derived)


def make_model(config, derived):
    """The network of a checked config."""
    decided = {"out_channels": derived["shape"][-1] + make_parametrization(config, derived).extra_channels}
    if config.model.conditional:
        decided["num_labels"] = len(derived["classes"])
    if config.train.augment:
        decided["augment_channels"] = augment.CHANNELS
    if asked := condition.parse(config.data.condition):
        decided["condition_channels"] = asked.channels(derived["shape"][-1])
    return models.make(config.model, **decided)
