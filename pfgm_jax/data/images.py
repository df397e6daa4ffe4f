"""Image files to squares of uint8, many at once.

Pillow reads them; of its formats only those of FORMATS, none of which runs another program.
"""

import contextlib
import functools
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from pfgm_jax.data.dataset import HOST_BYTES, LazyImages
from pfgm_jax.data.download import one_line
from pfgm_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 10**8  # a file that declares more is refused before any of them takes memory
LARGE = 2**24  # pixels from which on images are decoded one at a time, so that threads do not fill the memory
_one_large = threading.Lock()
warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is said once, where it is skipped


class Unreadable(Exception):
    """A file that gives no image; args are the reason in a few words, and details."""


class Decoded(NamedTuple):
    """A square of uint8 [size, size, channels], and what the file held."""

    pixels: np.ndarray
    width: int
    height: int
    brightest: int  # of the values of 16 bits; 0: the file is of 8 bits


def decode(path, size, resample, channels=3, crop=None, shrink=False) -> Decoded:
    """The centre of an image file, by its path or open, as a square of `size` px; Unreadable where it gives none.

    The image is turned upright (EXIF), cut to its central square of `crop` px (None: its shorter side) and resized by
    Pillow's filter `resample`, all of which average over what they leave out; a square of `size` px stays as it is.
    Transparency lies on white, 16 bits are scaled to 8, CMYK is converted, and of an animation the first frame counts.

    channels: 3, or 1 for luma. shrink: let a JPEG of twice `size` or more be decoded at a fraction of its size, which
    averages blocks of pixels and takes a fraction of the time.
    """
    try:
        if isinstance(path, str | os.PathLike) and not os.path.getsize(path):
            raise Unreadable("empty file")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(f"more than {MAX_PIXELS / 1e6:.0f} million pixels", f"{width}×{height}")
            if shrink:
                image.draft(None, (2 * size, 2 * size))
            with _one_large if image.width * image.height > LARGE else contextlib.nullcontext():
                image.load()
                upright = _upright(image)
                side = crop or min(upright.size)
                if side > min(upright.size):
                    raise Unreadable(f"smaller than the crop of {crop} px", f"{width}×{height}")
                left, top = (upright.width - side) // 2, (upright.height - side) // 2
                square, brightest = _plain(upright.crop((left, top, left + side, top + side)))
                square = square.convert("L" if channels == 1 else "RGB")
            if side != size:
                square = square.resize((size, size), resample)
            return Decoded(np.asarray(square).reshape(size, size, channels), width, height, brightest)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS / 1e6:.0f} million pixels", one_line(error)) from None
    except (FileNotFoundError, PermissionError) as error:
        raise Unreadable("unreadable file", error.strerror) from None
    except Exception as error:  # Pillow's readers raise nearly anything over damage
        raise Unreadable("cut short or damaged", one_line(error)) from None


def _upright(image):
    """The image as its EXIF orientation says, which a damaged EXIF block does not."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _plain(image):
    """(the image in 8 bits without palette and transparency, the brightest of its 16-bit values or 0)."""
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("more than 16 bits a pixel", f"values from {values.min()} to {values.max()}")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), int(values.max())
    if image.mode == "F":
        raise Unreadable("pixels are floating-point numbers", "save 8 or 16 bits")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("L" if image.mode in ("1", "L") else "RGB"), 0


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that decode: Pillow works outside Python's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


def each(function, count, what) -> list:
    """[function(0), …, function(count − 1)] by the pool, with a progress bar where it takes more than a second."""
    return list(tqdm(pool().map(function, range(count)), total=count, unit=" images", desc=what, delay=1))


def lazily(paths, read_one, shape) -> LazyImages:
    """LazyImages of files: read_one(path) -> uint8 `shape` (H, W, C), by the pool.

    Reading a file that gives no image is a UserError that names it.
    """

    def read(indices):
        images = np.empty((len(indices), *shape), np.uint8)

        def one(place):
            path = paths[indices[place]]
            try:
                images[place] = read_one(path)
            except Unreadable as error:
                raise UserError(f"{path} gives no image ({', '.join(error.args)}): replace it") from None

        list(pool().map(one, range(len(indices))))
        return images

    return LazyImages((len(paths), *shape), read)


def fits(count, shape) -> bool:
    """Whether so many images of `shape` are to be kept in memory."""
    return count * int(np.prod(shape)) <= HOST_BYTES


def in_memory(images: LazyImages, what) -> np.ndarray:
    """All of the images, with a progress bar."""
    whole = np.empty(images.shape, np.uint8)
    with tqdm(total=len(images), unit=" images", desc=what, delay=1) as bar:
        for start in range(0, len(images), 256):
            stop = min(start + 256, len(images))
            whole[start:stop] = images[start:stop]
            bar.update(stop - start)
    return whole
