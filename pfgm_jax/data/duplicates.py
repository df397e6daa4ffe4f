"""What is in a split, image by image: exact copies, constant images, grey images stored as colours.

Every function slices in chunks, so that it works on images that are read from disk where they are asked for. Of a split
of more than EXAMINED_BYTES, a subset of that size stands for it: `chosen` says which.
"""

from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pfgm_jax.storage.digests import of_images

EXAMINED_BYTES = 2**31
_CHUNK_BYTES = 2**26


class Census(NamedTuple):
    """Facts of the k images examined of a split, in the order of `indices`."""

    indices: np.ndarray  # int64 [k], ascending
    digests: np.ndarray  # bytes [k], equal where the images are
    constant: np.ndarray  # bool [k]: one colour throughout
    grey: np.ndarray  # bool [k]: three channels, all the same


class Copies(NamedTuple):
    """Exact copies among several splits, which are numbered in the order given.

    groups: lists of (split, index) of equal images, each of at least two.
    """

    groups: list

    def among(self, split, labels):
        """(images that have a copy in the same split, pairs of copies there, pairs of them whose labels differ)."""
        images, pairs, apart = 0, 0, 0
        for group in self.groups:
            classes_of = [int(labels[split][i]) for s, i in group if s == split]
            if len(classes_of) > 1:
                same = sum(n * (n - 1) // 2 for n in np.bincount(classes_of))
                all_pairs = len(classes_of) * (len(classes_of) - 1) // 2
                images, pairs, apart = images + len(classes_of), pairs + all_pairs, apart + all_pairs - same
        return images, pairs, apart

    def between(self, split, other):
        """Pairs ((split, i), (other, j)) of equal images: one for each image of `split` that is also in `other`."""
        pairs = []
        for group in self.groups:
            partner = next((member for member in group if member[0] == other), None)
            if partner is not None:
                pairs += [(member, partner) for member in group if member[0] == split]
        return pairs


def chosen(images, limit=None):
    """Indices int64, ascending, of the images to examine: all, or a subset of `limit` bytes drawn with a fixed seed."""
    n, each = len(images), max(1, images.nbytes // max(1, len(images)))
    most = max(1, (EXAMINED_BYTES if limit is None else limit) // each)
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def chunks(images, indices, limit=_CHUNK_BYTES):
    """Yields (rows, array): a slice of `indices` and those images, at most `limit` bytes at a time."""
    rows = _rows(images, limit)
    for start in range(0, len(indices), rows):
        part = indices[start : start + rows]
        yield slice(start, start + len(part)), np.asarray(images[part])


def _rows(images, limit=_CHUNK_BYTES):
    """How many images have at most `limit` bytes, at least 1."""
    return max(1, limit // max(1, images.nbytes // max(1, len(images))))


def take(images):
    """The Census of images [n, H, W, C]; empty for n = 0."""
    indices = chosen(images)
    digests = np.empty(len(indices), "S32")
    constant, grey = np.zeros(len(indices), bool), np.zeros(len(indices), bool)
    blocks = chunks(images, indices)
    for rows, block in tqdm(blocks, total=-(-len(indices) // _rows(images)), desc="examining", unit=" blocks", delay=1):
        digests[rows] = of_images(block)
        pixels = block.reshape(len(block), -1, block.shape[-1])
        grey[rows] = (pixels == pixels[..., :1]).all(axis=(1, 2)) if block.shape[-1] == 3 else False
        constant[rows] = (pixels == pixels[:, :1]).all(axis=(1, 2))
    return Census(indices, digests, constant, grey)


def copies(censuses):
    """The Copies among several splits' Census, largest groups first."""
    seen = {}
    for split, census in enumerate(censuses):
        for index, digest in zip(census.indices, census.digests, strict=True):
            seen.setdefault(digest, []).append((split, int(index)))
    return Copies(sorted((group for group in seen.values() if len(group) > 1), key=len, reverse=True))
