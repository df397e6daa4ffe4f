"""Figures of any images, from any generator, and reference features computed beforehand."""

from pathlib import Path

import numpy as np
from PIL import Image

from pfgm_jax import data
from pfgm_jax.data import folder_listing, npz
from pfgm_jax.data import images as image_files
from pfgm_jax.errors import UserError, printable
from pfgm_jax.evaluation import copies_and_usefulness, naming, protocol
from pfgm_jax.evaluation.score import check_count, check_real, measure_against
from pfgm_jax.metrics.references import cached_at
from pfgm_jax.storage import atomic, digests


def audit(images, real, labels=None, features="", split="train", inception="", name="images"):
    """A `Measured` of images, with the same figures, protocol and floor as for a run.

    Args:
      images: uint8 [n, H, W, C], or the path of a folder of image files or of an npz file with `images` (and `labels`).
      real: a Dataset, such as `data.load(config.data)`, or training images uint8 [N, H, W, C].
      labels: [n] classes of the images, to measure each class separately as well.
      features: one of `score.FEATURES` (`score.extractor`); "": pixels for digits, else inception.
      split: of `real`, to compare with.
      inception: file with the network's weights; "" fetches them to the cache.
      name: what the images are called in errors and the protocol.

    Raises:
      UserError: no images, too few, or others than the real ones in size, channels or type.
    """
    if not isinstance(real, data.Dataset):
        real = _as_dataset(np.asarray(real))
    check_real(real, split)
    if isinstance(images, str | Path):
        name = str(images)
        images, labels = read(images, real)
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1:] != real.shape:
        got, shape = f"{images.dtype} [{', '.join(map(str, images.shape))}]", ", ".join(map(str, real.shape))
        raise UserError(f"{name} are {got}, but the real ones are uint8 [n, {shape}]: convert them before measuring")
    check_count(len(images))
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise UserError(f"labels must be {len(images)} whole numbers, one an image, not {labels.shape}")
    measure = measure_against(real, split, features, inception)
    source = f"{len(images)} images of {name}, SHA-256 {digests.sha256(images)}"
    return measure(measure.extractor(images), labels, source, by_class=labels is not None and real.num_classes > 1)


def stats(config):
    """Makes and caches the features of a config's real images, of its evaluate.split; returns lines that say so."""
    dataset = data.load(config.data)
    options = config.evaluate
    measure = measure_against(dataset, options.split, options.features, options.inception)
    lines = [f"reference  {measure.reference.name}"]
    return "\n".join([*lines, f"  file       {cached_at(dataset, options.split, measure.extractor)}"])


def run(source, config, workdir=None):
    """`audit` for the command line; writes results/audit-NAME-KEY.json, if there is a workdir; returns a table.

    KEY is a hash of the images and of what they are compared with.
    """
    options, real, stem = config.evaluate, data.load(config.data), None
    check_real(real, options.split)
    folder = atomic.writable(Path(workdir, "results")) if workdir else None
    images, labels = read(source, real)
    measured = audit(images, real, labels, options.features, options.split, options.inception, name=str(source))
    lines = [str(measured)]
    if workdir:
        digest = [] if labels is None else np.asarray(labels).tolist()
        stem = folder / f"audit-{naming.safe(Path(source).stem)}-{naming.key_of([measured.protocol, digest])}"
        protocol.save_record(f"{stem}.json", measured.record())
        lines.append(f"  figures    {stem}.json")
    to = copies_and_usefulness.Destination(stem, measured.protocol["samples"])
    with atomic.writing_to(folder):
        if options.copies:
            lines += copies_and_usefulness.copies(real, images, to, mirror=True)
        if options.usefulness:
            lines += copies_and_usefulness.use(real, images, labels, to, options.seeds)
    return "\n".join(lines)


def read(source, real):
    """(images uint8 [n, H, W, C], labels [n] or None) of a folder of image files or an npz file.

    Nothing is resized: a filter would be measured with the images.

    Raises:
      UserError: no such file, no images, or others than those of the Dataset `real`.
    """
    source = atomic.expanded(source)
    if source.is_file() and source.suffix == ".npz":
        return _read_npz(source, real)
    if not source.is_dir():
        raise UserError(f"{printable(source)} is neither a folder of images nor an npz file with images uint8")
    return _read_folder(source, real)


def _read_npz(path, real):
    with npz.opened(path) as archive:
        names = {Path(name).stem for name in archive.namelist()}
        images = next((key for key in ("images", "x") if key in names), None)
        if images is None:
            raise UserError(f"{path} has {', '.join(sorted(names)[:6])}: name the array of images `images`")
        labels = next((key for key in ("labels", "y") if key in names), None)
        arrays = npz.read_arrays(archive, path, [key for key in (images, labels) if key], real.shape[0])
    pixels = arrays[images]
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.shape[3] != real.shape[2]:
        raise UserError(f"{path} has images of {pixels.shape[3]} channels, but the real ones have {real.shape[2]}")
    return pixels, arrays[labels].reshape(-1) if labels else None


def _read_folder(folder, real):
    listing = folder_listing.find(folder)
    square = image_files.Square(real.shape[0], resample=Image.Resampling.NEAREST, window=real.window)
    size, channels = real.shape[0], real.shape[2]
    if not listing.paths:
        raise UserError(f"{folder} holds no images ({', '.join(s[1:] for s in image_files.SUFFIXES)})")

    def one(i):
        path = listing.paths[i]
        try:
            decoded = image_files.decode(path, square)
        except image_files.Unreadable as error:
            raise UserError(
                f"{path} cannot be read as an image ({', '.join(error.args)}): replace or remove it"
            ) from None
        if (decoded.width, decoded.height) != (size, size):
            given = f"{decoded.width}×{decoded.height}"
            raise UserError(f"{path} is {given} px, but the real images are {size}×{size}: convert it before measuring")
        if channels == 1 and not (decoded.pixels == decoded.pixels[..., :1]).all():
            raise UserError(f"{path} is in colour, but the real images are grey: convert it before measuring")
        return decoded.pixels[..., :channels]

    pixels = np.stack(image_files.each(one, len(listing.paths), "reading images"))
    known = {name: i for i, name in enumerate(real.classes)}
    named = real.num_classes > 1 and set(listing.labels) <= known.keys()
    return pixels, np.array([known[name] for name in listing.labels]) if named else None


def _as_dataset(images):
    """A Dataset of training images alone."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise UserError(f"real images must be uint8 [n, H, W, 1 or 3], not {images.dtype} {images.shape}")
    none = data.Split(images[:0], np.zeros(0, np.int32))
    whole = data.Split(images, np.zeros(len(images), np.int32))
    return data.Dataset("images", whole, none, none, ("images",), "that of your images", "an array")
