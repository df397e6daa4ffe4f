"""Guidance: at D = ∞ the gradient of the tilted density, at finite D an extrapolation; labels that are asked for."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.scipy.special import logsumexp

from configs import digits, medmnist
from pfgm_jax import data
from pfgm_jax import run as run_lib
from pfgm_jax.config import default
from pfgm_jax.config_rules import check
from pfgm_jax.data.class_labels import class_labels
from pfgm_jax.errors import UserError
from pfgm_jax.flow import field, losses, process
from pfgm_jax.flow.guidance import guided
from pfgm_jax.training import step

N, SIGMA, WEIGHTS = 4, 0.9, (-1.0, 0.0, 0.5, 1.0, 3.0)


@pytest.fixture
def labelled(x64):
    """24 charges of three classes, queries among them, and the class that each query is told."""
    rng = np.random.default_rng(0)
    classes = np.arange(24) % 3
    points = rng.normal(size=(24, N)) + 2 * np.eye(3, N)[classes]
    told = np.asarray([0, 1, 2, 0, 1])
    return jnp.asarray(points), jnp.asarray(points[:5] + rng.normal(size=(5, N))), jnp.asarray(told[:, None] == classes)


def log_density(x, points, D, allowed):
    """log p_σ(x) of the charges that are allowed, up to a constant: the kernel's formula, by direct differences."""
    squared = jnp.sum((x - points) ** 2, axis=1)
    if math.isinf(D):
        log_kernel = -squared / (2 * SIGMA**2)
    else:
        log_kernel = -(N + D) / 2 * jnp.log(squared + D * SIGMA**2)
    return logsumexp(jnp.where(allowed, log_kernel, -jnp.inf))


@jax.jit(static_argnums=2)
def tilted_gradient(x, points, D, allowed, weight):
    """∇ log p(x) + w (log p(x | c) − log p(x)), [B, N]."""

    def tilted(x, allowed):
        free = log_density(x, points, D, True)
        return free + weight * (log_density(x, points, D, allowed) - free)

    return jax.vmap(jax.grad(tilted))(x, allowed)


def denoisers(points, D, allowed):
    """The exact fields of each query's class, and of all charges."""
    conditional = lambda x, sigma: field.posterior_mean(x, sigma, points, D, allowed=jnp.asarray(allowed))
    return jax.jit(conditional), jax.jit(field.exact_denoiser(points, D))


def test_gaussian_guidance_is_the_gradient_of_the_tilted_density(labelled):
    points, x, allowed = labelled
    fields = denoisers(points, math.inf, allowed)
    for weight in WEIGHTS:
        score = (guided(*fields, weight)(x, jnp.full(5, SIGMA)) - x) / SIGMA**2
        expected = tilted_gradient(x, points, math.inf, allowed, weight)
        # Sums of 24 terms in float64: some 1e-15.
        assert np.linalg.norm(score - expected) < 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("D", [1.0, 3.5, 128.0])
def test_finite_D_is_an_extrapolation_and_no_gradient(labelled, D):
    points, x, allowed = labelled
    sigma, fields = np.full(5, SIGMA), denoisers(points, D, allowed)
    # An oracle that shares nothing: the posterior mean of each query by NumPy.
    free = oracles.posterior_mean(x, sigma, points, D)
    own = np.concatenate([oracles.posterior_mean(x[i : i + 1], sigma[:1], points[allowed[i]], D) for i in range(5)])
    for weight in WEIGHTS:
        result = guided(*fields, weight)(x, jnp.asarray(sigma))
        np.testing.assert_allclose(result, free + weight * (own - free), rtol=1e-11, atol=1e-11)
        # Not even its direction is that of the tilted density's gradient; they meet as 1/D goes to 0.
        direction = lambda a: np.asarray(a) / np.linalg.norm(a, axis=1, keepdims=True)
        apart = direction(result - x) - direction(tilted_gradient(x, points, D, allowed, weight))
        assert np.linalg.norm(apart, axis=1).max() > {1.0: 0.05, 3.5: 0.05, 128.0: 1e-3}[D]


@pytest.mark.parametrize("D", [128.0, math.inf])
def test_weights_0_and_1_are_exact(D):
    rng = np.random.default_rng(1)
    points = jnp.asarray(rng.normal(size=(24, N)), jnp.float32)
    x, sigma = (jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(64, N)), rng.uniform(0.01, 3, 64)))
    own, free = denoisers(points, D, np.arange(64)[:, None] % 3 == np.arange(24) % 3)
    # The weight is an argument of the program, as when sampling.
    run = jax.jit(lambda weight: (guided(own, free, weight)(x, sigma), own(x, sigma), free(x, sigma)))
    for weight in (0.0, 1.0):
        result, *ends = run(weight)
        np.testing.assert_array_equal(result, ends[weight == 0])


def test_the_labelled_field_of_digits_gives_digits_of_that_class():
    train = data.load(default().data).train
    points, wanted = jnp.asarray(data.to_unit(train.images)), np.arange(20) % 10
    flow = process.pfgmpp(D=128.0)
    own, free = denoisers(points, 128.0, wanted[:, None] == train.labels)
    x = oracles.draw(flow, 20, points.shape[1:])
    hits = {}
    for weight in (0.0, 3.0):
        images, _ = oracles.solve("heun", flow, guided(own, free, weight), x, steps=12)
        squared = np.square(np.asarray(images)[:, None] - points[None]).sum(axis=(2, 3, 4))
        hits[weight] = np.mean(train.labels[squared.argmin(axis=1)] == wanted)
    assert hits[3.0] == 1
    assert hits[0.0] < 0.5  # the field of all digits: one in ten, by chance


# ---- labels

NAMES = ["basophil", "immature granulocytes(myelocytes, and others)", "platelet", "3"]
COUNTS = [60, 30, 10, 0]


def asked(labels, n=6, key=0):
    return class_labels(labels, n, jax.random.key(key), NAMES, COUNTS).tolist()


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("balanced", [0, 1, 2, 0, 1, 2]), (2, [2] * 6), (np.int64(2), [2] * 6), ("2", [2] * 6),
        ("platelet", [2] * 6), (NAMES[1], [1] * 6), ("3", [3] * 6), ("3,1", [3, 1] * 3), ("3, 1", [3, 1] * 3),
        ([0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 3, 3]), (jnp.zeros(6, jnp.int32), [0] * 6),
    ],
)  # fmt: skip
def test_labels_in_every_form(labels, expected):
    assert asked(labels) == expected


def test_a_name_comes_before_a_number():
    assert class_labels("0", 2, jax.random.key(0), ["1", "0"], [1, 1]).tolist() == [1, 1]
    assert class_labels(0, 2, jax.random.key(0), ["1", "0"], [1, 1]).tolist() == [0, 0]


def test_labels_of_real_frequencies():
    drawn = asked("real", 4000)
    # Five standard deviations of a share of 0.6 among 4000.
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, np.asarray(COUNTS) / 100, atol=0.04)
    assert drawn[3990:] != asked("real", 4000, key=1)[3990:] and drawn[:7] == asked("real", 7)


@pytest.mark.parametrize(
    "labels, words",
    [
        ("platelets", "did you mean 'platelet'"), ("balancd", "did you mean 'balanced'"), ("4", "from 0 to 3"),
        ("", "no class is called ''"), ("1,9", "from 0 to 3"), (-1, "from 0 to 3"), ([], "6 integers"),
        ([0, 1], "6 integers"), (True, "6 integers"),
        ([0.5] * 6, "6 integers"), (1.0, "6 integers"), (["platelet"] * 6, "6 integers"), ([[0] * 6], "6 integers"),
    ],
)  # fmt: skip
def test_labels_that_there_are_not(labels, words):
    with pytest.raises(UserError) as caught:
        asked(labels)
    message = str(caught.value)
    assert words in message and "\n" not in message
    assert "0 basophil, 1 immature granulocytes(myelocytes, and others), 2 platelet, 3" in message


def test_names_that_are_numbers_are_names():
    grades = ["1", "2", "3", "4", "5"]  # as folders are called
    ask = lambda labels, counts=(9,) * 5: class_labels(labels, 4, jax.random.key(0), grades, counts).tolist()
    assert ask("3") == [2] * 4 and ask("3,5") == [2, 4, 2, 4] and ask("0") == [0] * 4
    assert ask(3) == [3] * 4  # a number in Python is a number
    assert ask("balanced", (9, 0, 9, 0, 9)) == [0, 2, 4, 0]  # not those that no training image has


def test_an_error_names_only_so_many_classes():
    with pytest.raises(UserError) as caught:
        class_labels(1000, 1, jax.random.key(0), [f"class {i}" for i in range(1000)], [1] * 1000)
    assert (
        "from 0 to 999" in str(caught.value) and "19 class 19, …" in str(caught.value) and len(str(caught.value)) < 500
    )


# ---- labels that are not told in training


class Told:
    """A network that returns zeros and keeps the labels that it is told."""

    num_labels = 10

    def apply(self, variables, x, noise, labels, dropout_keys=None, augment=None):
        self.labels = np.asarray(labels)
        return jnp.zeros_like(x)


def test_dropped_labels_and_their_targets(monkeypatch):
    dataset = data.load(default().data)
    config = digits.get_config("conditional,quick")
    task = dataclasses.replace(step.make_task(config, run_lib.derive(config, dataset)), model=Told())
    images, labels = jnp.asarray(dataset.train.images[:200]), jnp.asarray(dataset.train.labels[:200])
    calls, target = [], losses.posterior_target
    monkeypatch.setattr(losses, "posterior_target", lambda *args: calls.append(args) or args[3])

    def told(indices, seed=0, train=True):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
        examples = data.Examples(images[indices], labels[indices], images, labels)
        step.example_losses(task, {}, examples, keys, train)
        return task.model.labels

    everything = np.arange(200)
    np.testing.assert_array_equal(told(everything, train=False), labels)
    first = told(everything)
    dropped = first < 0
    # A Binomial(200, 0.1): mean 20, standard deviation 4.2; other seeds drop others.
    assert config.train.label_dropout == 0.1 and 5 <= dropped.sum() <= 40
    np.testing.assert_array_equal(first[~dropped], labels[~dropped])
    assert ((told(everything, seed=1) < 0) != dropped).any()
    # The field of one's own class where the label is told, of all where it is not. (Float32 against float64.)
    points = np.asarray(data.to_unit(images), np.float64).reshape(200, -1)
    _, x, sigma, *_ = calls[1]
    means = jax.jit(lambda *args: target(task.process, *args))(*calls[1][1:])
    for i in [*np.flatnonzero(dropped)[:4], *np.flatnonzero(~dropped)[:4]]:
        own = points if dropped[i] else points[labels == labels[i]]
        expected = oracles.posterior_mean(np.reshape(x[i], (1, -1)), sigma[i : i + 1], own, task.process.D)
        np.testing.assert_allclose(np.ravel(means[i]), expected[0], atol=1e-5)
    # By example, not by batch.
    np.testing.assert_array_equal(told(everything[50:90]), first[50:90])


@pytest.mark.parametrize("recipe", [digits, medmnist])
def test_recipes_that_tell_the_class_can_be_guided(recipe):
    for arg, expected in (("conditional", (True, 0.1)), (None, (False, 0.0))):
        config = recipe.get_config(arg)
        check(config)
        assert (config.model.conditional, config.train.label_dropout) == expected
