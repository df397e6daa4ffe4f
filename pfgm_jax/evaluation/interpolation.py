"""`--mode=interpolate`: pictures of what lies between images, at other temperatures, and from class to class."""

import dataclasses
import pathlib
import sys

import numpy as np

from pfgm_jax import inference, plots
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.storage import atomic

TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)
AMOUNTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)  # of the way from one class to another
PER_CLASS = 64  # images whose latents make a class mean


def interpolate(workdir, overrides):
    """Encodes real images and decodes what lies around their latents; returns the lines that say where.

    samples/interpolation-*.png has a row for each pair of images, temperature-*.png one for each of TEMPERATURES,
    which multiply the norms of latents, and classes-*.png moves images of the most frequent class toward the others.
    interpolation-*.gif shows all pairs at once. Latents go to interpolation-*.npz.

    Raises:
      UserError: no real images that fit the run, points in the plane, or settings that do not fit.
    """
    generator = protocol.open_run(workdir, overrides)
    settings = generator.config.latents
    dataset = protocol.real_images(generator)
    if dataset.train.images.dtype != np.uint8:
        raise UserError(f"{dataset.name} holds points, and interpolation is for images")
    options = {} if settings.solver in ("rk45", "tsit5") else {"steps": settings.steps}
    inference.check_solver(settings.solver, options)
    split = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[settings.split]
    if len(split) < 2 * settings.n:
        raise UserError(f"{settings.n} pairs need {2 * settings.n} images, but {settings.split} has {len(split)}")
    folder = atomic.writable(pathlib.Path(workdir, "samples"))
    path = lambda name, kind: path_of(generator, folder, name, kind)
    rng = np.random.default_rng(settings.seed)
    indices = _pairs(split.labels, settings.n, rng)
    images, labels = split.images[indices], split.labels[indices] if generator.classes else None
    _say(f"encoding {len(images)} images with {settings.solver}")
    latents = generator.encode(images, labels, settings.solver, **options)
    back = generator.decode(latents)
    lines = [_round_trip(images, back, settings)]

    ways = [inference.between(latents[2 * i], latents[2 * i + 1], settings.points, settings.path)
            for i in range(settings.n)]  # fmt: skip
    _say(f"decoding {settings.n} paths of {settings.points} latents")
    between = generator.decode(_joined(ways)).reshape(settings.n, settings.points, *generator.shape)
    rows = np.concatenate([images[::2, None], between, images[1::2, None]], axis=1)  # a pair each
    some = latents[: settings.n * 2 : 2]
    _say("other temperatures")
    warm = [(f"norms × {factor:g}", generator.decode(some.scaled(factor))) for factor in TEMPERATURES]
    with atomic.writing_to(folder):
        plots.save(plots.grid(rows.reshape(-1, *generator.shape), rows.shape[1]), path("interpolation", "png"))
        there = [plots.grid(between[:, i]) for i in range(settings.points)]
        plots.film(there + there[-2:0:-1], path("interpolation", "gif"))
        latents.save(path("interpolation", "npz"))
        plots.save(plots.labelled_rows(warm), path("temperature", "png"))
        lines += [f"  ways         {path('interpolation', 'png')}: a real image at each end, {settings.path} between",
                  f"  in motion    {path('interpolation', 'gif')}", f"  latents      {path('interpolation', 'npz')}",
                  f"  temperature  {path('temperature', 'png')}: norms × {', '.join(map(str, TEMPERATURES))}",
                 ]  # fmt: skip
        if len(dataset.classes) > 1 and not generator.needs_label:  # the network is given no class there
            _say("directions from class to class")
            plots.save(_class_rows(generator, dataset, settings, options), path("classes", "png"))
            lines.append(
                f"  classes      {path('classes', 'png')}: {', '.join(map(str, AMOUNTS))} of the way to a class"
            )
    return "\n".join(lines)


def path_of(generator, folder, name, kind="png"):
    """The file that `interpolate` writes into a run's folder samples: "interpolation", "temperature", "classes"."""
    config = generator.config
    key = naming.key_of([generator.step, dict(config.latents), dict(config.data)])
    return f"{folder}/{name}-{key}.{kind}"


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _pairs(labels, n, rng):
    """Indices [2 n] of n pairs of images, each pair of two classes where there are several."""
    order = rng.permutation(len(labels))
    chosen, free = [], list(order)
    for _ in range(n):
        first = free.pop(0)
        other = next((i for i, index in enumerate(free) if labels[index] != labels[first]), 0)
        chosen += [first, free.pop(other)]
    return np.array(chosen)


def _joined(ways):
    """Latents one after another."""
    states, labels = (np.concatenate([getattr(way, name) for way in ways]) for name in ("states", "labels"))
    return dataclasses.replace(ways[0], states=states, labels=labels)


def _round_trip(images, back, settings):
    error = back.astype(np.float64) - images
    if not error.any():
        return f"{len(images)} images encoded and decoded with {settings.solver}: the same bytes"
    return (
        f"{len(images)} images encoded and decoded with {settings.solver}: rms {np.sqrt(np.mean(error**2)):.3g} grey "
        f"levels, at most {np.abs(error).max():.0f}, {np.mean(error == 0):.1%} of the values the same"
    )


def _class_rows(generator, dataset, settings, options):
    """Images of the most frequent class moved along the difference of class means of latents, a row a class."""
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    # The network is given no class here: what moves is the latent alone.
    chosen = [np.flatnonzero(dataset.train.labels == k)[:PER_CLASS] for k in np.flatnonzero(counts)]
    classes = np.concatenate([np.full(len(c), k) for k, c in zip(np.flatnonzero(counts), chosen, strict=True)])
    latents = generator.encode(dataset.train.images[np.concatenate(chosen)], None, settings.solver, **options)
    origin = int(np.argmax(counts))
    start = latents[np.flatnonzero(classes == origin)[0]]
    rows = []
    for target in np.flatnonzero(counts):
        if target == origin:
            continue
        direction = inference.class_direction(latents, classes, origin, target)
        moved = _joined([start.moved(amount * direction) for amount in AMOUNTS])
        rows.append((f"{dataset.classes[origin]} → {dataset.classes[target]}", generator.decode(moved)))
    return plots.labelled_rows(rows)
