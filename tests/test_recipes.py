"""The published recipes: every hyper-parameter beside its published value, in published units, and each network's size.

The values are from the configs and command lines of the papers' code; the sizes were counted on its PyTorch modules.
"""

import functools
import importlib
import math

import jax
import numpy as np
import optax
import pytest

from configs import medmnist
from pfgm_jax import config_rules, data, main, models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.training import dry_run, optimizer, step

# Steps count batches; σ is in the units of images in [−1, 1]; `scale` is our loss over theirs: 1/N where they sum over
# pixels and we average, (N + 1)/2 where they average and we take half the sum.
EDM = dict(
    batch=512, steps=200e6 / 512, lr=1e-3, warmup=10e6 / 512, decay=0.5 ** (512 / 500e3), ramp=0.05, clip=math.inf,
    dropout=0.13, sigma=(0.002, 80), scale=1 / 3072, large=0, flip=False, augment=0.12, solver="heun",
    options=dict(steps=18, rho=7.0, grid="edm"),
)  # fmt: skip
SONG = dict(batch=128, steps=1.3e6, lr=2e-4, warmup=5000, decay=0.9999, ramp=0, clip=1.0, dropout=0.1, scale=1, large=0,
            flip=True, augment=0.0)  # fmt: skip
DEEP = SONG | dict(steps=0.95e6)
PFGM = SONG | dict(sigma=(1e-3, 40), prior=(291, 3000, 5), large=4096, ramp=0.077, solver="rk45",
                   options=dict(rtol=1e-4, atol=1e-4))  # fmt: skip
# σ = √(e^B − 1) at B = 0.1 t + 19.95 t²/2 from t = 1e-3 to 1; sub-VP's 2 sinh(B/2).
VP = dict(sigma=(0.010486, 152.17), solver="euler_maruyama", options=dict(steps=1000))
SUBVP = VP | dict(sigma=(1.0995e-4, 152.16))
DDPM = dict(sigma=(0.0100005, 157.407), solver="ancestral", options=dict(steps=1000, variance="large"))
VE = dict(decay=0.999, sigma=(0.02, 100), solver="predictor_corrector",
          options=dict(steps=1000, snr=0.16, corrector_steps=1, predictor="reverse_diffusion"))  # fmt: skip
V2 = dict(lr=1e-4, warmup=0, clip=math.inf, dropout=None, parameters=29_694_083)


def sampled(**options):
    return dict(options=VE["options"] | options)


# The layer of nine augmentation labels, to as many features as the noise level has: 256 in NCSN++, 128 in DDPM++.
CIFAR10 = {
    "pfgmpp,network=ncsnpp,D=2048": EDM | dict(D=2048, parameters=56_395_523 + 9 * 256),
    # Their class layer has a bias, which only adds to that of the next layer; ours has none.
    "pfgmpp,network=ncsnpp,conditional": EDM | dict(D=128, parameters=56_398_339 - 256 + 9 * 256),
    "pfgmpp,network=ddpmpp": EDM | dict(D=128, parameters=55_732_739 + 9 * 128),
    "edm,network=ncsnpp": EDM | dict(parameters=56_395_523 + 9 * 256),
    "edm,network=ddpmpp,conditional": EDM | dict(parameters=55_734_147 - 128 + 9 * 128),
    "pfgm,network=ddpmpp": PFGM | dict(parameters=61_805_572),
    "pfgm,network=ddpmpp_deep": PFGM | dict(parameters=106_633_732),
    "pfgm,network=ncsnpp": PFGM | dict(parameters=62_759_940, decay=0.999),
    "vp,network=ddpmpp": SONG | VP | dict(parameters=61_804_419),
    "vp,network=ddpmpp_deep": DEEP | VP | dict(parameters=106_632_579),
    "vp,network=ncsnpp": SONG | VP | dict(parameters=62_693_251),
    "vp,network=ncsnpp_deep": DEEP | VP | dict(parameters=107_521_411),
    "subvp,network=ddpmpp": SONG | SUBVP | dict(parameters=61_804_419),
    "subvp,network=ddpmpp_deep": DEEP | SUBVP | dict(parameters=106_632_579),
    "subvp,network=ncsnpp": SONG | SUBVP | dict(parameters=62_693_251),
    "subvp,network=ncsnpp_deep": DEEP | SUBVP | dict(parameters=107_521_411),
    "ve,network=ncsnpp": SONG | VE | dict(parameters=62_758_787),
    "ve,network=ncsnpp_deep": DEEP | VE | dict(parameters=107_586_947),
    "ve,network=ncsnv2": SONG | VE | V2 | sampled(steps=232, snr=0.176, corrector_steps=5),
    "ddpm,network=ddpmpp": SONG | DDPM | dict(parameters=61_804_419),
}
CELEBA64 = {
    "pfgm,network=ddpmpp": PFGM | dict(sigma=(1e-3, 60), prior=(291, 6000, 1), large=512, parameters=61_805_572),
    # Fourier features here, a positional embedding of 128 there: 65 536 parameters less.
    "ve,network=ncsnpp": SONG | VE | dict(sigma=(0.02, 180), parameters=62_693_251 + 65_536) | sampled(snr=0.17),
    "ve,network=ncsnv2": SONG | VE | V2 | dict(sigma=(0.02, 180)) | sampled(steps=500, snr=0.128, corrector_steps=5),
}
LSUN = {
    "pfgm,network=ddpmpp": PFGM | dict(batch=32, steps=2.4e6, lr=2e-5, sigma=(1e-3, 100), prior=(356, 30_000, 0.1),
                                       large=32, dropout=0, scale=196_609 / 2, parameters=124_076_292),
    "ve,network=ncsnpp": SONG | VE | dict(batch=64, steps=2.4e6, dropout=0, sigma=(0.02, 756), parameters=65_574_421)
                         | sampled(steps=2000, snr=0.075),
}  # fmt: skip
FILES = {"cifar10": CIFAR10, "celeba64": CELEBA64, "lsun_bedroom256": LSUN}
TABLE = [(file, f"process={arg}", row) for file, rows in FILES.items() for arg, row in rows.items()]
every_recipe = pytest.mark.parametrize("file, arg, row", TABLE, ids=[f"{file}:{arg}" for file, arg, _ in TABLE])


def load(file, arg):
    return importlib.import_module(f"configs.{file}").get_config(arg)


@functools.cache
def count(model, shape):
    tree = jax.eval_shape(lambda: models.init(model, shape))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_table_has_every_published_pair():
    for file, rows in FILES.items():
        pairs = {tuple(part.partition("=")[2] or part for part in arg.split(",")[:2]) for arg in rows}
        assert pairs == set(importlib.import_module(f"configs.{file}").PUBLISHED)


@every_recipe
def test_recipe(file, arg, row):
    config = load(file, arg)
    dataset, derived, task, cadence = dry_run.prepare(config, stand_in=True)
    optim, batch = config.optim, row["batch"]
    assert (config.train.batch, config.train.large_batch) == (batch, row["large"])
    # Whole device calls of eight steps each.
    assert cadence.total == pytest.approx(row["steps"], abs=cadence.per_call)
    assert optim.warmup == pytest.approx(row["warmup"] * batch) and optim.decay == "constant"
    assert derived["lr"] == optim.lr == row["lr"]
    assert (optim.beta1, optim.beta2, optim.weight_decay) == (0.9, 0.999, 0)
    assert optim.eps == pytest.approx(1e-8 * row["scale"]) and optim.clip == pytest.approx(row["clip"] * row["scale"])
    # Half-lives are whole images.
    assert 0.5 ** (batch / config.train.ema_halflife) == pytest.approx(row["decay"], abs=1e-8)
    assert config.train.ema_ramp == pytest.approx(row["ramp"], abs=1e-4)
    assert (config.train.flip, config.train.augment) == (row["flip"], row["augment"])
    if row["dropout"] is not None:
        assert task.model.dropout == row["dropout"]

    flow = task.process
    # float32 schedules.
    assert (flow.sigma_min, flow.sigma_max) == pytest.approx(row["sigma"], rel=2e-4)
    assert flow.D == row.get("D", 1 if config.process.name == "pfgm" else math.inf)
    if config.process.name == "pfgm":
        assert (flow.training_law.M, flow.max_norm, task.parametrization.near) == row["prior"]
        assert flow.training_law.restrict_M and task.parametrization.gamma == 5
    if config.process.name in ("edm", "pfgmpp"):
        assert (task.parametrization.sigma_data, config.process.P_mean, config.process.P_std) == (0.5, -1.2, 1.2)
    assert config.sample.solver == row["solver"]
    assert {name: config.sample[name] for name in row["options"]} == row["options"]

    assert count(task.model.clone(canonical_conv=False), dataset.shape) == row["parameters"]
    assert dataset.train_images == {"cifar10": 50_000, "celeba64": 162_770, "lsun_bedroom256": 3_033_042}[file]


@pytest.mark.parametrize("file, arg", [("lsun_bedroom256", "process=pfgm"), ("cifar10", "process=edm")])
def test_adam_forgets_the_scale_of_the_loss(file, arg):
    # Their optimiser on their gradient and ours on ours, which is `scale` times it, take the same steps.
    config = load(file, arg)
    scale = FILES[file]["pfgm,network=ddpmpp" if "pfgm" in arg else "edm,network=ncsnpp"]["scale"]
    clip = optax.clip_by_global_norm(1.0) if "pfgm" in arg else optax.identity()
    theirs = optax.chain(clip, optax.adam(1.0, eps=1e-8))
    ours = optimizer.make_optimizer(config, {"lr": config.optim.lr})
    params = np.zeros(5, np.float32)
    states = theirs.init(params), ours.init(params)
    rate = optimizer.learning_rate(config, {"lr": config.optim.lr})
    for k, size in enumerate([1e-7, 0.1, 30.0]):  # near ε, small, beyond the clip
        gradient = size * np.linspace(-1, 1, 5, dtype=np.float32)
        a, first = theirs.update(gradient, states[0], params)
        b, second = ours.update(scale * gradient, states[1], params)
        states = first, second
        np.testing.assert_allclose(a * rate(k), b, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    "file, arg, message",
    [("cifar10", "process=edm,network=ncsnv2", "process=edm: ncsnpp, ddpmpp"),
     ("cifar10", "process=ve,network=ncsnp", "did you mean 'ncsnpp'"),
     ("celeba64", "process=vp,network=ddpmpp", "not published for celeba64.*process=pfgm: ddpmpp"),
     ("lsun_bedroom256", "process=ve,network=ncsnv2", "process=ve: ncsnpp"),
     ("cifar10", "process=pfgm,network=ddpmpp,ode", "ode is for vp, subvp and ve")],
)  # fmt: skip
def test_what_was_not_published_is_refused(file, arg, message):
    with pytest.raises(UserError, match=message) as caught:
        load(file, arg)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
def test_ode(process):
    config = load("cifar10", f"process={process},ode")
    assert (config.sample.solver, config.sample.rtol, config.sample.atol) == ("rk45", 1e-5, 1e-5)
    dry_run.prepare(config, stand_in=True)


# ---- their data


def write(folder, name, size, n=4, labels=None, channels=(3,)):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, size, size, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.zeros(n, np.uint8) if labels is None else labels
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


def test_a_prepared_file(tmp_path):
    config = load("cifar10", "process=vp,network=ddpmpp")
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError, match="has no cifar10.npz, cifar-10-.*leave out data.dir"):
        dry_run.prepare(config)
    arrays = write(tmp_path, "cifar10", 32, labels=np.array([0, 9, 3, 3]))
    for stand_in in (False, True):
        dataset = data.load(config.data, stand_in)
        np.testing.assert_array_equal(dataset.train.images, arrays["train_images"])
        assert dataset.train.labels.tolist() == [0, 9, 3, 3] and dataset.train_images == 4
    with pytest.raises(UserError, match="more than the 4 training images"):
        dry_run.prepare(config)
    write(tmp_path, "cifar10", 32, labels=np.array([0, 10, 3, 3]))
    with pytest.raises(UserError, match="a label 10; those of cifar10 are 0 to 9"):
        data.load(config.data)
    write(tmp_path, "cifar10", 32, channels=())
    with pytest.raises(UserError, match="grey images"):
        data.load(config.data)
    config.data.size = 64
    with pytest.raises(UserError, match="write data.size=32"):
        data.load(config.data)


def test_only_a_dry_run_takes_stand_ins():
    for file in set(FILES) - {"cifar10"}:  # which is downloaded
        with pytest.raises(UserError, match="not downloaded.*data.dir=FOLDER"):
            dry_run.prepare(importlib.import_module(f"configs.{file}").get_config())


NARROW = ["--config.model.channels=4", "--config.model.blocks=1", "--config.model.multipliers=1",
          "--config.model.embedding_channels=8", "--config.model.attention="]  # fmt: skip


@pytest.mark.parametrize(
    "argument, narrow",
    [("cifar10:process=pfgm,network=ddpmpp", NARROW),
     pytest.param("cifar10:process=pfgmpp,network=ncsnpp", [], marks=pytest.mark.slow),
     pytest.param("celeba64:process=pfgm,network=ddpmpp", [], marks=pytest.mark.slow),
     pytest.param("lsun_bedroom256:process=pfgm,network=ddpmpp", [], marks=pytest.mark.slow)],
)  # fmt: skip
def test_dry_run_without_the_file(argument, narrow, capsys, monkeypatch):
    monkeypatch.setattr(parallel, "device_memory", lambda: 2**34)  # or it would depend on the machine what is streamed
    file, _, arg = argument.partition(":")
    main.run([f"--config=configs/{file}.py:{arg}", "--dry_run", *narrow])
    out = capsys.readouterr().out
    assert "stand-ins  the file is absent: what derives from the data is of 256 images of uniform noise" in out
    number, unit = out.split("memory ")[1].split()[:2]
    held = float(number) * {"MiB": 1, "GiB": 1024}[unit]
    images = {"cifar10": 50_000 * 3072, "celeba64": 162_770 * 12_288, "lsun_bedroom256": 3_033_042 * 196_608}[file]
    if "on the devices" in out:
        assert held > images / 2**20  # the whole set, which counts
    else:  # LSUN's 596 GB: a few calls of examples, beside the state
        assert file == "lsun_bedroom256" and "streamed from the host" in out and held < images / 2**20 / 10
    if file == "cifar10" and narrow:
        assert "50000 train" in out and "1,300,000 steps × 128" in out and "largest prior norm 3000" in out


# ---- MedMNIST


@pytest.mark.parametrize("network", ["ddpmpp", "ncsnpp", "adm", "ddpmpp_song", "ncsnv2"])
@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_a_published_network_at_any_size_attends(network, size):
    config = medmnist.get_config(f"size={size},network={network}")
    config_rules.check(config)
    derived = {"shape": (size, size, 3), "classes": ["a"], "sigma_data": 0.5}
    model = run_lib.make_model(config, derived)
    heights = {side for side, _ in models.unet.level_sizes((size, size), len(config.model.multipliers))}
    # Three levels do not come down from 128 or 224 px to 16.
    assert network == "ncsnv2" or set(config.model.attention) & heights or size > 64
    if size < 128:
        model.check_size((size, size))


@pytest.mark.parametrize("size", [28, *(pytest.param(size, marks=pytest.mark.slow) for size in (64, 128, 224))])
def test_a_step_at_every_size(size, tmp_path):
    config = medmnist.get_config(f"size={size},cpu" + (",remat" if size > 64 else ""))
    config.data.update(dir=str(tmp_path), check_md5=False)
    config.train.update(batch=8, steps_per_call=1)
    config.optim.warmup = 0
    suffix = "" if size == 28 else f"_{size}"
    write(tmp_path, f"bloodmnist{suffix}", size, n=8, labels=np.arange(8))
    dataset, _, task, _ = dry_run.prepare(config)
    # Small random weights: compiling the initialisation would take as long as all the rest.
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: models.init(task.model, dataset.shape))
    params = jax.tree.map(lambda a: rng.normal(scale=0.02, size=a.shape).astype(a.dtype), shapes)
    before = step.TrainState(np.zeros((), np.int32), params, params, task.optimizer.init(params))
    # As on one device: that programs over many give the same is tested elsewhere, and they take longer to compile.
    one_step = jax.jit(jax.vmap(functools.partial(step.train_step, task), axis_name=parallel.AXIS))
    examples = data.Examples(dataset.train.images, dataset.train.labels, None, None)
    after, metrics = jax.tree.map(lambda a: a[0], one_step(*jax.tree.map(lambda a: a[None], (before, examples))))
    loss = metrics.loss
    # The output of such a network is near 0 and EDM's target has unit size.
    assert 0.1 < loss < 3 and int(after.step) == 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
    # Adam's first step is the learning rate, smaller only where gradients are near ε; with Nesterov's momentum, as
    # beside Muon, 1.47 times that.
    most = 1.48 if config.optim.name == "muon" else 1
    assert config.optim.lr * 0.2 < max(jax.tree.leaves(moved)) < config.optim.lr * most
