"""A person's own images, of any sizes and types that Pillow reads: the source "folder".

`folder_listing.py` says how a folder tells classes and splits. Every image is decoded once as the folder is read, so
that what is damaged is known, and listed, before anything is trained. Images are turned upright, cut to their central
square and resized by Lanczos' filter, as the tool of EDM and PFGM++ prepares its data: it averages over what it leaves
out, and where an image has to be enlarged it shows no blocks. Of files with several pages (TIFF, animations) the first
is read, or with data.pages=all every page; values of more than 8 bits are scaled by data.window.
"""

import sys

import numpy as np

from pfgm_jax.data import folder_listing, images, inventory
from pfgm_jax.data import window as windows
from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.splits import NAMES, TRAIN, hold_out, warn_missing
from pfgm_jax.errors import UserError, nearest, printable
from pfgm_jax.storage import atomic

PAGES = ("first", "all")


def load(data_config) -> Dataset:
    """The images of the folder `dir` as squares of `size` px; their inventory goes to stderr.

    They are grey if all of them are, unless data.channels says otherwise. Splits that the folder does not have are
    taken from the training images: the shares data.val and data.test, by data.split_seed; the pages of a file, and the
    images of a patient (a column of labels.csv, or data.group), stay in one split. Images that give no picture
    are skipped and listed. More than HOST_BYTES of pixels stay in their files and are decoded as they are needed.

    Raises:
      UserError: no such folder, no images, none to train on, a labels.csv that does not fit its files, or a setting
        that is not possible.
    """
    images.check_size(data_config.size)
    if data_config.pages not in PAGES:
        hint = nearest(data_config.pages, PAGES)
        raise UserError(f"data.pages={data_config.pages} is not possible: write first or all{hint}")
    window = windows.parse(data_config.window)
    if not data_config.dir:
        raise UserError("give the folder of the images: data.dir=FOLDER")
    listing = folder_listing.find(atomic.expanded(data_config.dir), data_config.group)
    counts = np.ones(len(listing.paths), int)
    if data_config.pages == "all":
        counts = np.array(images.each(lambda i: images.count_pages(listing.paths[i]), len(counts), "counting pages"))
    sampled = False
    if window == "auto":
        window, sampled = _automatic(listing.paths, counts)
    square = images.Square(data_config.size, data_config.channels or 3, shrink=True, window=window)
    facts, pixels = _decode(listing, counts, square)

    good = np.array([i for i, fact in enumerate(facts) if isinstance(fact, inventory.Fact)], int)
    if not len(good):
        lines = "; ".join(listing.skipped.lines(listing.root)) or "nothing of a known type"
        raise UserError(f"{listing.root} holds no images ({', '.join(s[1:] for s in images.SUFFIXES)}): {lines}")
    files, pages = _pages(counts)
    facts, files, pages = [facts[i] for i in good], files[good], pages[good]
    if not data_config.channels and all(fact.grey for fact in facts):
        square = square._replace(channels=1)
    names = [listing.labels[i] for i in files]
    classes = sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in names], np.int32)
    groups = _groups(listing, files)
    given = np.array([listing.parts[i] for i in files])
    missing = [part for part in range(len(NAMES)) if part not in given]
    if TRAIN in missing:
        raise UserError(f"{listing.root} has no image to train on: put some into the split train")
    parts = hold_out(given, labels, data_config, missing, groups)

    fits, splits = images.fits(len(good), square.shape), {}
    for part, split in enumerate(NAMES):
        chosen = np.flatnonzero(parts == part)
        if pixels is not None:
            found = pixels[..., : square.channels][good[chosen]]
        else:
            found = images.lazily([listing.paths[i] for i in files[chosen]], square, pages[chosen])
            found = images.in_memory(found, f"reading {split}") if fits else found
        splits[split] = Split(found, labels[chosen], groups[chosen] if listing.grouped else None)
    deep = any(fact.values for fact in facts)
    dataset = Dataset(
        data_config.name,
        **splits,
        classes=tuple(classes),
        licence="that of your images",
        source=str(listing.root),
        window=(window or windows.WHOLE) if deep else None,
    )
    how = listing.how + ("" if not missing else f", {' and '.join(NAMES[part] for part in missing)} by seed")
    lines = inventory.lines(dataset, listing, facts, how, data_config, sampled)
    print("\n".join(map(printable, lines)), file=sys.stderr)
    warn_missing(dataset)
    return dataset


def _automatic(paths, counts):
    """((LOW, HIGH) of data.window=auto or None, whether it is of a sample of the values)."""
    most = max(16, windows.MOST_VALUES // max(1, len(paths)))
    found = images.each(lambda i: images.deep_values(paths[i], counts[i], most), len(paths), "looking at values")
    sampled = any(len(values) < whole for values, whole in found)
    return windows.automatic([values for values, _ in found]), sampled


def _decode(listing, counts, square):
    """([what each page of each file is, or why it gives no image], their pixels, None where they do not fit)."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    keep = images.fits(starts[-1], square.shape)
    pixels = np.empty((starts[-1], *square.shape), np.uint8) if keep else None

    def one(i):
        facts = []
        for place, result in enumerate(images.each_page(listing.paths[i], square, counts[i]), starts[i]):
            if isinstance(result, images.Decoded):
                if keep:
                    pixels[place] = result.pixels
                result = inventory.fact(result)
            facts.append(result)
        return facts

    facts = images.each(one, len(counts), "reading images")
    for path, of_file in zip(listing.paths, facts, strict=True):
        for page, reason in enumerate(of_file):
            if isinstance(reason, images.Unreadable):
                where = f"{path}, page {page + 1}" if len(of_file) > 1 else path
                details = "".join(f": {detail}" for detail in reason.args[1:])
                noun = "page" if len(of_file) > 1 else "file"
                listing.skipped.add(noun, reason.args[0], where + details)
    return [fact for of_file in facts for fact in of_file], pixels


def _pages(counts):
    """(file, page in it) of every image: int [n] each."""
    files = np.repeat(np.arange(len(counts)), counts)
    return files, np.arange(len(files)) - (np.cumsum(counts) - counts)[files]


def _groups(listing, files):
    """int [n], equal for images that stay in one split; None where every image is by itself.

    A file whose patient is not known is a group of its own.
    """
    if not listing.grouped and len(files) == len(np.unique(files)):
        return None
    names = [("group", listing.groups[i]) if listing.groups[i] else ("file", listing.paths[i]) for i in files]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])
