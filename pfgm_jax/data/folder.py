"""A person's own images, of any sizes and types that Pillow reads: the source "folder".

`layout.py` says how a folder tells classes and splits. Every image is decoded once as the folder is read, so that what is
damaged is known, and listed, before anything is trained. Images are turned upright, cut to their central square and
resized by Lanczos' filter, as the tool of EDM and PFGM++ prepares its data: it averages over what it leaves out, and where
an image has to be enlarged it shows no blocks.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pfgm_jax.data import images, layout
from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.splits import NAMES, TRAIN, hold_out, warn_missing
from pfgm_jax.errors import UserError

SHOWN = 20  # classes in the inventory


def load(data_config) -> Dataset:
    """The images of the folder `dir` as squares of `size` px; their inventory goes to stderr.

    They are grey if all of them are, unless data.channels says otherwise. Splits that the folder does not have are
    taken from the training images: the shares data.val and data.test, by data.split_seed. Images that give no picture
    are skipped and listed. More than HOST_BYTES of pixels stay in their files and are decoded as they are needed.

    Raises:
      UserError: no such folder, no images, none to train on, or a labels.csv that does not fit its files.
    """
    size = data_config.size
    if size < 1:
        raise UserError(f"--config.data.size={size} is not possible: give the side in pixels, such as 64")
    if not data_config.dir:
        raise UserError("say which folder: --config.data.dir=FOLDER")
    listing = layout.find(Path(data_config.dir).expanduser())
    channels = data_config.channels or 3
    shape = (size, size, channels)
    keep = images.fits(len(listing.paths), shape)
    pixels = np.empty((len(listing.paths) if keep else 0, *shape), np.uint8)

    def one(i):
        """What image i is, without its pixels, and whether it is grey; or why it is none."""
        try:
            decoded = _decode(listing.paths[i], size, channels)
        except images.Unreadable as error:
            return error
        if keep:
            pixels[i] = decoded.pixels
        return decoded._replace(pixels=None), bool((decoded.pixels == decoded.pixels[..., :1]).all())

    results = images.each(one, len(listing.paths), "reading images")
    good = np.array([i for i, result in enumerate(results) if isinstance(result, tuple)], int)
    for path, result in zip(listing.paths, results, strict=True):
        if isinstance(result, images.Unreadable):
            listing.skipped.add(result.args[0], path + "".join(f": {detail}" for detail in result.args[1:]))
    if not len(good):
        lines = "; ".join(_skipped(listing)) or "nothing of a known type"
        raise UserError(f"{listing.root} holds no images ({', '.join(s[1:] for s in images.SUFFIXES)}): {lines}")
    facts, grey = zip(*(results[i] for i in good), strict=True)
    if not data_config.channels and all(grey):
        channels = 1

    names = [listing.labels[i] for i in good]
    classes = sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in names], np.int32)
    given = np.array([listing.parts[i] for i in good])
    missing = [part for part in range(len(NAMES)) if part not in given]
    if TRAIN in missing:
        raise UserError(f"{listing.root} has no image to train on: put some into the split train")
    parts = hold_out(given, labels, data_config, missing)

    shape = (size, size, channels)
    fits = images.fits(len(good), shape)
    splits = {}
    for part, split in enumerate(NAMES):
        chosen = np.flatnonzero(parts == part)
        if keep:
            found = pixels[..., :channels][good[chosen]]
        else:
            paths = [listing.paths[good[i]] for i in chosen]
            found = images.lazily(paths, lambda path: _decode(path, size, channels).pixels, shape)
            found = images.in_memory(found, f"reading {split}") if fits else found
        splits[split] = Split(found, labels[chosen])
    made = Dataset(
        data_config.name, **splits, classes=tuple(classes), licence="that of your images", source=str(listing.root)
    )
    how = listing.how + ("" if not missing else f", {' and '.join(NAMES[part] for part in missing)} by seed")
    print("\n".join(inventory(made, listing, facts, grey, how)), file=sys.stderr)
    warn_missing(made)
    return made


def inventory(made, listing, facts, grey, how):
    """Lines: counts of classes and splits, sizes, colours, and what was skipped and why."""
    n, size = len(facts), made.shape[0]
    splits = [getattr(made, split) for split in NAMES]
    counts = np.stack([np.bincount(split.labels, minlength=made.num_classes) for split in splits], axis=1)
    width = max(10, *(len(name) for name in made.classes[:SHOWN])) + 1
    lines = [f"folder     {listing.root}: {n:,} images, {how}"]
    lines += [f"  {'':{width}}" + "".join(f"{split:>9}" for split in NAMES)]
    for name, row in list(zip(made.classes, counts, strict=True))[:SHOWN]:
        lines += [f"  {name:{width}}" + "".join(f"{count:>9,}" for count in row)]
    if made.num_classes > SHOWN:
        lines += [f"  … and {made.num_classes - SHOWN} more classes"]
    if made.num_classes > 1:
        lines += [f"  {'all':{width}}" + "".join(f"{count:>9,}" for count in counts.sum(axis=0))]
    by_area = sorted((fact.width * fact.height, fact.width, fact.height) for fact in facts)
    least, middle, most = (f"{by_area[i][1]}×{by_area[i][2]}" for i in (0, n // 2, -1))
    sizes = f"all {least}" if least == most else f"{least} (smallest), {middle} (median), {most} (largest)"
    small = sum(min(fact.width, fact.height) < size for fact in facts)
    enlarged = f"; {small:,} are smaller and are enlarged" if small else ""
    lines += [f"sizes      {sizes}; made {size}×{size} by a central crop and Lanczos' filter{enlarged}"]
    lines += [f"colours    {n - sum(grey):,} in colour, {sum(grey):,} grey; read as {'grey' if made.shape[2] == 1 else 'RGB'}"]
    if deep := [fact.brightest for fact in facts if fact.brightest]:
        dark = "; files that use fewer bits come out dark: scale them to 65535" if max(deep) < 2**15 else ""
        lines += [f"16 bits    {len(deep):,} images, of 65535 the brightest has {max(deep)}{dark}"]
    if listing.skipped:
        lines += [f"skipped    {sum(count for count, _ in listing.skipped.values()):,}"]
        lines += [f"  {line}" for line in _skipped(listing)]
    return lines


def _skipped(listing):
    """A line a reason: how many, why, and the first of them."""
    some = listing.skipped.items()
    return [f"{count:,} {reason} ({str(first).removeprefix(f'{listing.root}/')})" for reason, (count, first) in some]


def _decode(path, size, channels):
    return images.decode(path, size, Image.Resampling.LANCZOS, channels, shrink=True)
