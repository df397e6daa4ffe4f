"""`--mode=likelihood`: bits per dimension of real images, and how well they tell unusual images from usual ones."""

import io
import pathlib
import sys
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageFilter

from pfgm_jax import data, inference, plots
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.metrics import tables
from pfgm_jax.metrics.detection import auc
from pfgm_jax.storage import atomic

# What everyone should know who reads such a table (arXiv 1810.09136, 1909.11480).
CAUTION = (
    "a likelihood does not measure how usual an image is: simple images get fewer bits per dimension than the training "
    "images themselves, whatever they show. bits − PNG leaves out an image's own complexity, the size of its PNG file"
)


def likelihood(workdir, overrides):
    """Log-likelihoods of a run's images; returns a table with its protocol.

    Sets are images of training and test, uniform noise, blurred test images, and those of likelihood.against. Figures
    go to results/likelihood-*.json, per-image values to .npz, a histogram to .png.

    Raises:
      UserError: no real images that fit the run, or settings that do not.
    """
    generator = protocol.open_run(workdir, overrides)
    settings = generator.config.likelihood
    generator = generator.with_overrides({"sample.batch": settings.batch})
    if generator.needs_label:
        raise UserError(
            "this network needs a label, and likelihoods are measured without: train one with train.label_dropout=0.1"
        )
    sets = compared(generator)
    folder = atomic.writable(pathlib.Path(workdir, "results"))
    stem, begun = stem_of(generator, folder), time.perf_counter()
    values, errors, nfe = {}, {}, []
    for name, images in sets.items():
        print(f"log-likelihood of {len(images)} images: {name}", file=sys.stderr, flush=True)
        result = generator.log_likelihood(
            images, jax.random.key(settings.seed), sigma_min=settings.sigma_min, vectors=settings.vectors,
            rtol=settings.rtol, atol=settings.atol, steps=settings.steps,
        )  # fmt: skip
        N = images[0].size
        of_bytes = images.dtype == np.uint8
        values[name] = inference.bits_per_dim(result.log_prob, N, inference.LEVELS_PER_UNIT if of_bytes else 1)
        errors[name] = np.asarray(result.error) / (N * np.log(2))
        nfe.append(result.nfe)
    sizes = {name: _png_bits(images) for name, images in sets.items() if images.dtype == np.uint8}
    rows, figures = _table(values, errors, sizes)
    low = settings.sigma_min or generator.process.sigma_min
    trace = f"trace vectors: {settings.vectors}" if settings.vectors else "the exact trace"
    control = f"{settings.steps} equal steps" if settings.steps else f"rtol {settings.rtol:g}, atol {settings.atol:g}"
    said = (
        f"{generator.process.name} D = {generator.process.D:g}, step {generator.step:,}, density of the data smoothed "
        f"to σ = {low:.4g}, uniform dequantisation, {trace}, rk45 with {control}, {np.mean(nfe):.0f} evaluations, seed "
        f"{settings.seed}, {time.perf_counter() - begun:.0f} s"
    )
    with atomic.writing_to(folder):
        protocol.save_record(f"{stem}.json", {"protocol": said, "figures": figures})
        with atomic.replacing(f"{stem}.npz") as temporary, open(temporary, "wb") as stream:
            per_image = {f"{name} {what}": a for what, group in (("bits", values), ("error", errors), ("png", sizes))
                         for name, a in group.items()}  # fmt: skip
            np.savez_compressed(stream, **per_image)
        plots.histograms(values, f"{stem}.png", "bits per dimension", "log-likelihood")
    lines = [tables.aligned(rows), "", CAUTION, said, f"  picture    {stem}.png", f"  per image  {stem}.npz"]
    return "\n".join(lines)


def stem_of(generator, folder):
    """The path, without suffix, of what `likelihood` writes into the folder results of a run."""
    config = generator.config
    return f"{folder}/likelihood-{naming.key_of([generator.step, dict(config.likelihood), dict(config.data)])}"


def compared(generator):
    """{name: images} whose likelihoods are asked for."""
    config, settings = generator.config, generator.config.likelihood
    dataset = protocol.real_images(generator)
    rng = np.random.default_rng(settings.seed)
    pick = lambda split: split.images[np.sort(rng.permutation(len(split))[: settings.n])]
    held_out = dataset.test if len(dataset.test) else dataset.val
    sets = {"training": pick(dataset.train)} | ({"held out": pick(held_out)} if len(held_out) else {})
    images = sets.get("held out", sets["training"])
    if images.dtype != np.uint8:
        return sets
    sets["blurred"] = np.stack([_blurred(image) for image in images])
    sets["noise"] = rng.integers(0, 256, images.shape, dtype=np.uint8)
    if settings.against:
        sets[settings.against] = pick(_other(settings.against, config.data, dataset))
    return sets


def _other(name, own, dataset):
    """The images of likelihood.against: a data set by name or a folder, of the size of the run's."""
    config = ConfigDict(own.to_dict()).unlock()
    if pathlib.Path(name).is_dir():
        config.update(name="folder", dir=name, group="", channels=dataset.shape[-1], val=0.0, test=0.0)  # all of it
        if dataset.window:  # with "auto" its own values would decide what is black and white
            config.update(window=",".join(map(str, map(float, dataset.window))))
    else:
        config.update(name=name, pages="first", window="", group="")
        if own.name in ("folder", "npz") or own.name.startswith("tfds:"):
            config.update(dir="")  # that of the run's own images
    try:
        other = data.load(config)
    except UserError as error:
        raise UserError(f"likelihood.against={name} cannot be read: {error}") from None
    if other.shape != dataset.shape:
        raise UserError(f"likelihood.against={name} has images of {other.shape}, but the run makes {dataset.shape}")
    return other.test if len(other.test) else other.train


def _blurred(image):
    """An image [H, W, C] blurred by a Gaussian of one pixel."""
    pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(pillow.filter(ImageFilter.GaussianBlur(1))).reshape(image.shape)


def _png_bits(images):
    """Bits per dimension of each image as a PNG file (arXiv 1909.11480, section 3)."""
    sizes = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG", optimize=True)
        sizes.append(8 * stream.tell() / image.size)
    return np.array(sizes)


def _table(values, errors, sizes):
    """(rows of cells, figures as JSON) of {set: bits per dimension [n]}, their errors and PNG sizes."""
    usual = "held out" if "held out" in values else "training"
    header = ["", "n", "bits/dim", "± mean", "± one image", "AUC bits", "AUC bits − PNG"]
    rows, figures = [header], {}
    for name, bits in values.items():
        error = bits.std(ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else np.nan
        of_one = float(np.sqrt(np.mean(np.square(errors[name]))))
        areas = {}
        if name not in ("training", usual):
            areas["bits"] = auc(values[usual], bits)
            areas["bits − PNG"] = auc(values[usual] - sizes[usual], bits - sizes[name])
        cells = [str(areas[score]) if areas else "" for score in ("bits", "bits − PNG")]
        one = f"{of_one:.3f}" if np.isfinite(of_one) else "unknown"
        rows.append([name, str(len(bits)), f"{bits.mean():.3f}", f"{error:.3f}", one, *cells])
        figures[name] = {
            "n": len(bits), "bits per dimension": float(bits.mean()), "standard error": float(error),
            "error of an image": of_one if np.isfinite(of_one) else None,
            "areas": {score: area._asdict() for score, area in areas.items()},
        }  # fmt: skip
    return rows, figures
