"""The inventory of a folder of images: what was read and how, what was left out and why, as lines for a person."""

from typing import NamedTuple

import numpy as np

from pfgm_jax.data import window as windows
from pfgm_jax.data.splits import NAMES, shared_groups
from pfgm_jax.errors import counted

SHOWN = 20  # classes
DARK = 2**14  # values of a file of 16 bits that stay below come out in the darkest quarter


class Fact(NamedTuple):
    """What is known of an image that was read."""

    width: int
    height: int
    pages: int  # of its file
    values: tuple | None  # the least and the largest, of more than 8 bits
    reduced: bool  # 16 bits a channel in colour, of which the high 8 are read
    grey: bool
    brightest: int  # of its bytes


def fact(decoded):
    """The Fact of an `images.Decoded`."""
    pixels = decoded.pixels
    return Fact(*decoded[1:], bool((pixels == pixels[..., :1]).all()), int(pixels.max()))


def lines(dataset, listing, facts, how, data_config, sampled):
    """Lines: counts of classes and splits, sizes, colours, depth, pages, patients, and what was skipped and why.

    Args:
      dataset: what was made. listing: `layout.Listing`. facts: a Fact an image. how: what tells classes and splits.
      data_config: the settings. sampled: whether data.window=auto is of a sample of the values.
    """
    n, size = len(facts), dataset.shape[0]
    by_area = sorted((fact.width * fact.height, fact.width, fact.height) for fact in facts)
    least, middle, most = (f"{by_area[i][1]}×{by_area[i][2]}" for i in (0, n // 2, -1))
    sizes = f"all {least}" if least == most else f"{least} (smallest), {middle} (median), {most} (largest)"
    small = sum(min(fact.width, fact.height) < size for fact in facts)
    enlarged = f"; {counted(small, 'smaller image')} enlarged" if small else ""
    grey = sum(fact.grey for fact in facts)
    read_as = "grey" if dataset.shape[2] == 1 else "RGB"
    return [
        f"folder     {listing.root}: {counted(n, 'image')}, {how}",
        *(f"note       {note}" for note in listing.notes),
        *_classes(dataset),
        f"sizes      {sizes}; made {size}×{size} by a central crop and Lanczos' filter{enlarged}",
        f"colours    {n - grey:,} in colour, {grey:,} grey; read as {read_as}",
        *_depth(dataset, facts, data_config, sampled),
        *_pages(facts, data_config),
        *_patients(dataset, listing),
        *_skipped(listing),
    ]


def _classes(dataset):
    """The table of classes and splits."""
    splits = [getattr(dataset, split) for split in NAMES]
    counts = np.stack([np.bincount(split.labels, minlength=dataset.num_classes) for split in splits], axis=1)
    width = max(10, *(len(name) for name in dataset.classes[:SHOWN])) + 1
    yield f"  {'':{width}}" + "".join(f"{split:>9}" for split in NAMES)
    for name, row in list(zip(dataset.classes, counts, strict=True))[:SHOWN]:
        yield f"  {name:{width}}" + "".join(f"{count:>9,}" for count in row)
    if dataset.num_classes > SHOWN:
        yield f"  … and {counted(dataset.num_classes - SHOWN, 'more class')}"
    if dataset.num_classes > 1:
        yield f"  {'all':{width}}" + "".join(f"{count:>9,}" for count in counts.sum(axis=0))


def _depth(dataset, facts, data_config, sampled):
    """What became of images of more than 8 bits."""
    ranges = [fact.values for fact in facts if fact.values]
    if ranges:
        lows, highs = np.array(ranges, float).T
        low, high = dataset.window
        text = f"values {lows.min():g} to {highs.max():g}; {low:g} becomes black and {high:g} white"
        source = _window_source(data_config.window, sampled)
        yield f"depth      {counted(len(ranges), 'image')} of more than 8 bits, {text} ({source})"
        if beyond := int(((lows < low) | (highs > high)).sum()):
            yield f"           {counted(beyond, 'image')} with values beyond, which become black or white"
        dark = highs[highs < DARK]
        if not data_config.window and len(dark):
            fitting = 2 ** max(1, int(dark.max()).bit_length()) - 1  # the largest of the fewest bits that hold them
            text = f"{counted(len(dark), 'image')} without a value above {dark.max():g}, so nearly black"
            yield f"           {text}: write data.window=0,{fitting}, or auto"
    if reduced := [fact.brightest for fact in facts if fact.reduced]:
        dark = sum(brightest < DARK // 256 for brightest in reduced)
        text = f"; {counted(dark, 'image')} nearly black: scale to 8 bits first" if dark else ""
        what = "in colour of 16 bits a channel, of which the high 8 are read, without data.window"
        yield f"depth      {counted(len(reduced), 'image')} {what}{text}"


def _window_source(window, sampled):
    """Where the window comes from, in words."""
    if window != "auto":
        return f"data.window={window}" if window else "the range of 16 bits"
    low, high = windows.PERCENTILES
    of = "an even sample of the set's values" if sampled else "all of the set's values"
    return f"data.window=auto: percentiles {low:g} and {high:g} of {of}"


def _pages(facts, data_config):
    """What became of files with several pages. Each page that is read is an image of `facts`."""
    several = [fact.pages for fact in facts if fact.pages > 1]
    if several and data_config.pages == "first":
        text = f"{counted(len(several), 'file')} of several pages, {sum(several):,} in all"
        yield f"pages      {text}: the first of each is read; data.pages=all reads every one"
    elif several:
        yield f"pages      {counted(len(several), 'image')} from files of several pages, which stay in one split each"


def _patients(dataset, listing):
    """How many groups there are, and whether splits share any."""
    if not listing.grouped:
        return
    groups = {name: getattr(dataset, name).groups for name in NAMES}
    number = len(set(filter(None, listing.groups)))
    alone = sum(not group for group in listing.groups)
    yield f"patients   {number:,}, by {listing.grouped}" + (
        f"; {counted(alone, 'file')} without, each by itself" if alone else ""
    )
    for (split, other), shared in shared_groups(groups).items():
        yield f"           {shared:,} of them in {split} and {other} both: a leak"
    if not shared_groups(groups):
        yield "           none in two splits"


def _skipped(listing):
    """How many things were left out, and why."""
    if listing.skipped:
        yield f"skipped    {listing.skipped.total():,}"
        yield from (f"  {line}" for line in listing.skipped.lines(listing.root))
