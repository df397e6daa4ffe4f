"""Studies of runs: what they measure against closed forms and the exact field, their files, and what they refuse."""

import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats

from pfgm_jax import config as config_lib
from pfgm_jax import data, generator, main, sampling, stored_run
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import diagnose
from pfgm_jax.evaluation.diagnose import journey, norms, quality, quantise, robustness, solvers, subject, truth
from pfgm_jax.flow import process
from pfgm_jax.inference import FLOW_SOLVERS

PARAMS = {"conv": {"kernel": np.linspace(-1, 3, 200).reshape(10, 20).astype(np.float32), "bias": np.ones(3)},
          "norm": {"kernel": np.ones((2, 2), np.float32)}}  # fmt: skip


class Bar:
    """Stands for tqdm."""

    def set_description(self, text):
        pass

    update = lambda self: None


@pytest.fixture
def store(tmp_path):
    return diagnose.Store(tmp_path, "", Bar())


def settings(**changes):
    return ConfigDict(config_lib.default().diagnose.to_dict() | {"n": 6, "batch": 4, "quick": True} | changes)


def studied(images=None, flow=None, **changes):
    """The digits' weights as a Subject, or a subject of other images whose network is their exact field."""
    opened = generator.load("pretrained:digits")
    if images is None:
        return subject.Subject("run", opened, data.load(opened.config.data), settings(**changes))
    train = types.SimpleNamespace(images=images, labels=np.zeros(len(images), np.int32))
    result = subject.Subject("run", opened, types.SimpleNamespace(train=train), settings(**changes))
    result.flow, result.denoise = (
        flow or result.flow,
        lambda x, sigma, labels, params=None: result.exact(x, sigma, labels),
    )
    return result


@pytest.mark.parametrize("bits", [2, 4, 9])
def test_rounding_is_to_the_nearest_of_evenly_spaced_values(bits):
    values = np.random.default_rng(0).normal(0.3, 1, (40, 30)).astype(np.float32)
    values[0, 0] = 0
    rounded = quantise.rounded(values, bits)
    step = (values.max() - values.min()) / (2**bits - 1)
    assert len(np.unique(rounded)) <= 2**bits and rounded[0, 0] == 0
    np.testing.assert_allclose(rounded / step, np.rint(rounded / step), atol=1e-4)  # whole multiples, float32
    # Half a step, but at the ends, from which the zero point may be half a step more.
    inside = np.abs(rounded - values) <= 0.5001 * step
    assert inside.mean() > (0.9 if bits > 2 else 0.6) and np.abs(rounded - values).max() <= 1.001 * step


def test_rounding_leaves_constants_and_positive_values_in_place():
    np.testing.assert_array_equal(quantise.rounded(np.zeros((3, 3)), 4), 0)
    np.testing.assert_allclose(quantise.rounded(np.full((2, 2), 5.0), 4), 5)  # 0 and 5 are the ends


def test_biases_and_named_tensors_are_exact():
    changed = quantise.quantised(PARAMS, 2, ("norm",))
    assert len(np.unique(changed["conv"]["kernel"])) == 4
    for name, leaf in (("conv", "bias"), ("norm", "kernel")):
        np.testing.assert_array_equal(changed[name][leaf], PARAMS[name][leaf])
    assert quantise.share(PARAMS, ("norm",)) == pytest.approx(200 / 207)
    assert quantise.share(PARAMS, ("conv", "norm")) == 0


def test_injected_noise_has_the_variance_of_its_recursion():
    # Data N(0, s²): Heun's step is a factor f, so with noise α σ before it v' = f² (v + α² σ²).
    flow, s, alpha, n, steps = process.edm(0.01, 10.0), 0.5, 0.3, 20_000, 6
    keys, of_prior = (jax.random.split(jax.random.key(seed), n) for seed in (0, 1))
    x = process.prior(flow, of_prior, (1,))
    shrink = lambda sigma: s**2 / (s**2 + sigma**2)
    denoise = lambda x, sigma: x * shrink(sigma)[:, None]
    ends, found = jax.jit(lambda x: quality.heun_with_noise(flow, denoise, x, keys=keys, alpha=alpha, steps=steps))(x)
    sigmas = (10.0 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.01 ** (1 / 7) - 10.0 ** (1 / 7))) ** 7
    variance = 100.0
    for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (1 - shrink(high)) / high
        predicted = 1 + (low - high) * slope
        factor = 1 + (low - high) * (slope + predicted * (1 - shrink(low)) / low) / 2
        variance = factor**2 * (variance + alpha**2 * high**2)
    variance = shrink(0.01) ** 2 * (variance + alpha**2 * 0.01**2)
    assert float(jnp.var(ends)) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert int(found.nfe) == 2 * steps - 1
    same, _ = jax.jit(lambda x: quality.heun_with_noise(flow, denoise, x, keys=keys, alpha=0.0, steps=steps))(x[:9])
    np.testing.assert_allclose(
        same, jax.jit(lambda x: sampling.heun(flow, denoise, x, steps=steps)[0])(x[:9]), rtol=1e-6
    )


@pytest.mark.slow
def test_a_subject_samples_as_its_generator_does():
    run = studied(n=6)
    x, found = run.solve("heun", 6, steps=3)
    expected, _ = run.generator.sample_unit(jax.random.key(0), 6, solver="heun", steps=3, progress=False)
    # Batches of 4 and 2, the last filled up; two programs of float32 round apart.
    np.testing.assert_allclose(x, expected, atol=1e-4)
    assert int(found.nfe) == 5
    zero = jax.tree.map(np.zeros_like, run.generator.params)
    assert (
        np.abs(np.asarray(run.denoise(x, 1.0, np.full(6, -1), zero)) - run.denoise(x, 1.0, np.full(6, -1))).max() > 0.1
    )


def test_images_weighed_by_class_have_another_truth(store, monkeypatch):
    run = studied()
    balanced = config_lib.default()
    balanced.train.order = "balanced"
    run.generator = types.SimpleNamespace(config=balanced, num_classes=0)
    assert run.points is None
    with pytest.raises(UserError, match="was trained on class-balanced batches; leave truth out of diagnose"):
        truth.study([run], store)
    run.generator.num_classes = 10
    assert not run.no_truth
    monkeypatch.setattr(subject, "TRUTH_LIMIT", 0)
    with pytest.raises(UserError, match="the training set is too large"):
        truth.study([run], store)


def test_one_image_is_reached_on_straight_lines(store):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    way = journey.travelled(studied(image), store)
    assert way["walk"].max() < 1e-5 and way["error"].max() < 1e-6  # the posterior mean is the image at every state
    np.testing.assert_allclose(way["length"] / way["chord"], 1, atol=1e-4)
    # x = y + σ/σ_max (x_max − y) on the way to it.
    y = image.astype(np.float64).ravel() / 127.5 - 1
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(6))
    start = np.asarray(process.prior(studied(image).flow, keys, (64,)), np.float64)
    middle = way["sigmas"][4] / way["sigmas"][0]
    np.testing.assert_allclose(way["norms"][4], np.linalg.norm(y + middle * (start - y), axis=1), rtol=1e-3)


def test_the_exact_field_has_no_error_and_bends_as_itself(store):
    digits = data.load(config_lib.default().data).train.images[:40]
    run = studied(digits)
    way = journey.travelled(run, store)
    assert way["error"].max() < 1e-6
    np.testing.assert_allclose(way["walk"], way["exact_walk"], rtol=1e-5)
    assert (way["mean_length"] >= way["mean_chord"] - 1e-4).all()
    np.testing.assert_allclose(truth.errors(run, [0.1, 2.0]), 0, atol=1e-6)
    run.solve = None  # kept: it is not solved again
    np.testing.assert_array_equal(journey.travelled(run, store)["walk"], way["walk"])


def test_norms_of_pairs_follow_their_laws():
    images = np.full((3, 8, 8, 1), 128, np.uint8)  # almost 0
    N, sigma, n = 64, 3.0, 4000
    kernel = norms.pair_norms(studied(images, process.pfgmpp(8.0)), np.array([sigma]), n)[0]
    # ‖x‖²/(N σ²) = (χ²_N/N) / (χ²_D/D), an F law.
    assert stats.kstest(kernel**2 / (N * sigma**2), stats.f(N, 8).cdf).statistic < 1.95 / math.sqrt(n)
    gaussian = norms.pair_norms(studied(images, process.edm()), np.array([sigma]), n)[0]
    assert stats.kstest(gaussian / sigma, stats.chi(N).cdf).statistic < 1.95 / math.sqrt(n)
    spread = lambda values: norms.summary(values[None])["spread"][0]
    assert spread(gaussian) == pytest.approx(1 / math.sqrt(2 * N), rel=0.1) and spread(kernel) > 2 * spread(gaussian)


def test_pairs_of_pfgm_are_wide():
    flow = process.pfgm(200, 64, restrict_M=False)
    found = norms.pair_norms(studied(np.full((3, 8, 8, 1), 128, np.uint8), flow), np.geomspace(1, 0.1, 4), 200)
    # ‖x‖/z = ‖ε_x‖/|ε_z| is about √64/|N(0, 1)|, whatever z: nearly as wide as the ratio's own law.
    ratio = np.median(found, axis=1) / np.geomspace(1, 0.1, 4)
    assert (ratio > 4).all() and (ratio < 40).all() and norms.summary(found)["spread"][1] > 0.4


@pytest.mark.parametrize("text", ["", "a", "0,-1", "nan", "0,inf"])
def test_alphas_are_numbers(text):
    with pytest.raises(UserError, match="such as 0,0.1,0.2"):
        robustness.alphas_of(text)
    assert robustness.alphas_of("0, 0.25") == [0.0, 0.25]


def test_solvers_take_steps_or_tolerances():
    found = solvers.settings_of(settings(solvers="heun, rk45", steps=(5, 9), quick=False))
    assert found[:2] == [("heun", {"steps": 5}), ("heun", {"steps": 9})]
    assert found[2] == ("rk45", {"rtol": 0.1, "atol": 0.1}) and len(found) == 6


def test_sources_are_none_or_several():
    parse = lambda *words: main.parse(["--mode=diagnose", "--workdir=a", *words])[0].source
    assert parse() is None and parse("--source=b,pretrained:digits,~/c").startswith("b,pretrained:digits,/")


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("diagnose.studies=norm", "did you mean 'norms'"),
        ("diagnose.solvers=ancestral", "is not one of rk45"),
        ("diagnose.alphas=x", "such as 0,0.1,0.2"),
        ("diagnose.bits=1,8", "from 2 to 16"),
        ("diagnose.steps=1,5", "at least 2"),
        ("diagnose.num_samples=3", "at least 12"),
        ("sample.solver=heun", "takes overrides of"),
    ],
)
def test_refusals(command, run, override, words):
    code, _, err = command("--mode=diagnose", f"--workdir={run}", f"--config.{override}")
    assert code == 2 and words in err and len(err.splitlines()) == 1
    assert not (run / "diagnose").exists()


def test_a_source_that_is_no_run(command, run, tmp_path):
    code, _, err = command("--mode=diagnose", f"--workdir={run}", f"--source=pretrained:digits,{tmp_path}/none")
    assert code == 2 and "holds no run" in err


@pytest.mark.slow
def test_all_studies_of_two_runs(command, run, monkeypatch):
    argv = ("--mode=diagnose", f"--workdir={run}", "--source=pretrained:digits", "--config.diagnose.quick=True")
    code, out, _ = command(*argv)
    assert code == 0
    for study in diagnose.STUDIES:
        (record,) = (json.loads(path.read_text()) for path in run.glob(f"diagnose/{study}-*.json"))
        assert record["protocol"] and record["numbers"]
        (picture,), (text,) = run.glob(f"diagnose/{study}-*.png"), run.glob(f"diagnose/{study}-*.md")
        assert list(run.glob(f"diagnose/{study}-*.svg")) and np.asarray(Image.open(picture)).std() > 10
        assert "nan" not in text.read_text() and text.read_text().split("\n")[0] in out
    assert "PFGM++, D = 128 (run)" in out  # two of the same process are told apart
    monkeypatch.setattr(subject.Subject, "solve", None)  # all of it is kept
    assert command(*argv)[:2] == (0, out)


def test_points_move_along_their_axis():
    x = np.array([5.0, 9.0, 45.0])
    np.testing.assert_allclose(quality.moved(x, 0.1, log=False), x + 4)
    np.testing.assert_allclose(quality.moved(x, 0.5, log=True), 3 * x)


def test_every_run_and_every_solver_has_a_look_of_its_own():
    flow = types.SimpleNamespace(process=process.edm(sigma_max=80.0))
    names = diagnose._names(["first/run", "second/run"], [flow, flow])
    assert len(set(names)) == 2 and "first/run" in names[0]
    assert diagnose._names(["a/one", "b/two"], [flow, flow])[0].endswith("(one)")
    looks = solvers.looks(FLOW_SOLVERS)
    assert len(set(looks.values())) == len(FLOW_SOLVERS) > 7
