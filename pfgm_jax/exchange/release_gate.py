"""What is asked of weights before they are given away: do they give their training images away?

Two questions, each with its limit:

* Copies. As many samples as `export.samples` says, their distances to the nearest training image beside those of
  held-out images (`metrics.memorisation`). Refused where fresh images would give as many near copies with a probability
  below CHANCE. With 3421 samples and 5000 held-out images 1 % of copies is caught; with fewer held-out images more
  are needed, and the gate says how many.
* Membership. An attacker who has an image and the network guesses from the network's error on it whether it was trained
  on it: the area under the ROC curve, training images against held-out ones (a loss-based attack: Yeom et al.,
  arXiv 1709.01604; for diffusion models: Matsumoto et al., arXiv 2302.03262). Refused where its interval lies above
  AREA. Held-out images that are harder for another reason, such as other patients, raise it too.

An image-conditional network draws no samples. In their place stand its restorations of held-out images, one of each,
measured as in its training; and the attacker of the second question measures the image too.

Both look at pixels and average errors. Passing is no proof of privacy: stronger attacks exist (arXiv 2301.13188), and
images of a person can be recognised without being copied.
"""

import dataclasses
import pathlib
import shutil
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.data.dataset import to_uint8, to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol, sample_cache
from pfgm_jax.evaluation.copies_and_usefulness import HELD_OUT
from pfgm_jax.flow.process import perturb
from pfgm_jax.metrics import memorisation
from pfgm_jax.metrics.detection import Area, auc
from pfgm_jax.storage import atomic
from pfgm_jax.storage.digests import of_images

CHANCE = 1e-3  # that fresh images give as many near copies: refused below
AREA = 0.6  # of the membership attack, a convention: refused where the whole interval lies above
SIGMAS = (0.1, 0.3, 1.0, 3.0)  # noise levels of the attack, of images in [-1, 1]
EXAMINED = 1024  # images of each side, at most
PANEL = "copies.png"


class Gate(NamedTuple):
    """The gate's answer.

    reasons: why the weights are refused, () if they pass.
    lines: what was measured, in words.
    panel: the path of the picture of nearest neighbours, "" without.
    """

    reasons: tuple = ()
    lines: tuple = ()
    panel: str = ""


def examine(generator, workdir):
    """The Gate of a Generator; samples and panel are kept in workdir/results.

    Raises:
      UserError: a folder that cannot be written.
    """
    config = generator.config
    if generator.derived.get("dtype", "uint8") == "float32":
        return Gate(lines=("not applied: these are generated points, not images",))
    if not config.export.samples:
        return Gate(("the gate was left out (export.samples=0)",))
    try:
        dataset = protocol.real_images(generator)
    except UserError as error:
        return Gate((f"its training images are not available, so nothing was examined ({error})",))
    held_out = [split for split in (dataset.val, dataset.test) if len(split)]
    number = sum(map(len, held_out))
    if number < HELD_OUT:
        return Gate((f"{number} held-out images of {dataset.name} are fewer than the {HELD_OUT} required",))
    folder = atomic.writable(pathlib.Path(workdir, "results"))
    try:
        copies, panel = _copies(generator, dataset, held_out, folder)
    except memorisation.TooFew as error:
        return Gate((f"of {dataset.name}, {error}",))
    near = memorisation.near_copies(copies.distances, copies.held_out_distances, CHANCE)
    area = membership(generator, dataset, held_out)
    reasons = []
    if near.chance < CHANCE:
        reasons.append(f"{near.count} samples lie nearer to a training image than {near.expected:.3g} would by chance "
                       f"(p = {near.chance:.1g})")  # fmt: skip
    if area.low > AREA:
        reasons.append(f"its error tells training images from held-out ones: area {area}, above {AREA}")
    condition = generator.run.condition
    lines = (
        *(
            [f"samples are here restorations of held-out images, one of each, conditioned on {condition}"]
            if condition
            else []
        ),
        *memorisation.text(copies).split("\n"),
        f"near copies: {near.count} samples where {near.expected:.3g} are expected, p = {near.chance:.2g} (refused "
        f"below {CHANCE:g}); exact copies are caught in 19 of 20 draws from {near.caught:.2%} of the samples on",
        f"membership: area {area} by the denoising error at σ = {', '.join(map(str, SIGMAS))} (0.5: no knowledge; "
        f"refused where the interval lies above {AREA})",
    )
    return Gate(tuple(reasons), lines, panel)


def _copies(generator, dataset, held_out, folder):
    """(Memorisation of export.samples samples, path of its panel)."""
    images, labels = (np.concatenate([getattr(split, name)[:] for split in held_out]) for name in ("images", "labels"))
    mirror = bool(generator.config.train.flip or generator.config.train.augment)
    with atomic.writing_to(folder):
        condition = generator.run.condition
        key, samples = _restorations(generator, images, labels) if condition else _samples(generator, folder)
        copies = memorisation.memorisation(samples, dataset.train.images, images, mirror=mirror, least=HELD_OUT)
        panel = f"{folder}/gate-{naming.key_of([key, len(samples)])}-{PANEL}"
        memorisation.plot(copies, panel)
    return copies, panel


def _samples(generator, folder):
    """(what they depend on, uint8 images) of export.samples samples, which are kept in `folder`."""
    n, guide = generator.config.export.samples, protocol.guide_of(generator)
    settings = dataclasses.replace(generator.settings, n=n, guide=guide)
    print(f"release gate: {n:,} samples", file=sys.stderr, flush=True)
    key = sample_cache.collect(generator, settings, folder, memorisation.Pixels()).key
    return key, sample_cache.images_of(folder, key, n)


def _restorations(generator, images, labels):
    """(what they depend on, uint8 images) of a restoration of each of the first export.samples of some images."""
    images = images[: generator.config.export.samples]
    print(f"release gate: {len(images):,} restorations of held-out images", file=sys.stderr, flush=True)
    key = jax.random.key(0)
    measurements, how = generator.measured(images, key)
    labels = labels[: len(images)] if generator.classes else None
    draws = generator.restore(measurements, n=1, key=key, labels=labels, **how).draws[0]
    return [generator.weights_digest, str(generator.run.condition)], to_uint8(draws)


def membership(generator, dataset, held_out) -> Area:
    """The area under the ROC curve of the attack: images of the training split of a Dataset against `held_out` splits.

    An image's score is its squared error at each of SIGMAS over the mean of all images there, averaged over the levels,
    with the same noise for every image. Images that are on both sides are left out.
    """
    same = generator.classes and generator.classes == dataset.classes
    train, held_out = _chosen([dataset.train]), _chosen(held_out)
    images, step = dataset.train.images, 4096
    in_train = {digest for i in range(0, len(images), step) for digest in of_images(images[i : i + step])}
    fresh = np.array([digest not in in_train for digest in of_images(held_out[0])], bool)
    sides = [train, (held_out[0][fresh], held_out[1][fresh])]
    images, labels = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    errors = denoising_errors(generator, images, labels if same else None)
    scores = (errors / errors.mean(axis=0)).mean(axis=1)
    members = len(train[0])
    return auc(-scores[members:], -scores[:members])


def denoising_errors(generator, images, labels=None):
    """Mean squared error per value of a Generator's denoiser on uint8 images [n, H, W, C] at SIGMAS: [n, levels]."""
    flow, batch = generator.process, min(256, len(images))
    levels = np.clip(SIGMAS, flow.sigma_min, flow.sigma_max)
    key, condition = jax.random.key(0), generator.run.condition

    @jax.jit
    def errors(params, y, labels, level, sigma):
        # One draw of noise a level, the same for every image: only images differ.
        keys = jnp.broadcast_to(jax.random.fold_in(key, level), (batch,))
        sigma = jnp.full(batch, sigma)
        x = perturb(flow, keys, y, sigma)
        channels = condition and condition.draw(keys, y)
        error = generator.network.denoiser(params, labels, channels)(x, sigma) - y
        return jnp.mean(jnp.square(error).reshape(batch, -1), axis=1)

    found = np.empty((len(images), len(levels)))
    for start in range(0, len(images), batch):
        rows = np.arange(start, min(start + batch, len(images)))
        padded = np.resize(rows, batch)
        own = None if labels is None else jnp.asarray(labels[padded])
        for i, sigma in enumerate(levels):
            found[rows, i] = errors(generator.params, to_unit(images[padded]), own, i, sigma)[: len(rows)]
    return found


def _chosen(splits):
    """(images, labels) of at most EXAMINED images of some splits, the same always."""
    sizes = [len(split) for split in splits]
    rows = np.sort(np.random.default_rng(0).permutation(sum(sizes))[:EXAMINED])
    parts, start = [], 0
    for split, size in zip(splits, sizes, strict=True):
        own = rows[(rows >= start) & (rows < start + size)] - start
        parts.append((np.asarray(split.images[own]), split.labels[own]))
        start += size
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def take_panel(gate, folder):
    """Copies the gate's picture into the exported folder: its name there, "" without."""
    if not gate.panel:
        return ""
    with atomic.replacing(folder / PANEL) as temporary:
        shutil.copyfile(gate.panel, temporary)
    return PANEL
