"""Image files to squares of uint8, many at once.

Pillow reads them; of its formats only those of FORMATS, none of which runs another program.
"""

import contextlib
import functools
import itertools
import os
import stat
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from pfgm_jax import parallel
from pfgm_jax.data import window as windows
from pfgm_jax.data.dataset import HOST_BYTES, LazyImages
from pfgm_jax.data.download import one_line
from pfgm_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PAGED = ("TIFF", "GIF", "WEBP", "PNG")  # a JPEG's further pictures are previews and depth maps of the first
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_SIDE = 4096  # of a square: 50 MB of colours, far above what any network here is given
MAX_PIXELS = 10**8  # a file that declares more is refused before any of them takes memory
LARGE = 2**24  # pixels from which on images are decoded one at a time, so that threads do not fill the memory
_one_large = threading.Lock()
warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is said once, where it is skipped


class Unreadable(Exception):
    """A file that gives no image; args are the reason in a few words, and details."""


class Square(NamedTuple):
    """What is made of an image file: a square of uint8 [size, size, channels].

    The image is turned upright (EXIF), cut to its central square of `crop` px (None: its shorter side) and resized by
    Pillow's filter `resample`, all of which average over what they leave out; a square of `size` px stays as it is.
    Transparency lies on white and CMYK is converted.
    """

    size: int
    channels: int = 3  # or 1 for luma
    resample: Image.Resampling = Image.Resampling.LANCZOS
    crop: int | None = None
    # Let a JPEG of twice `size` or more be decoded at a fraction of its size, which averages blocks of pixels and takes
    # a fraction of the time.
    shrink: bool = False
    # The values that become 0 and 255 in images of more than 8 bits. None: 0 and 65535, and what is beyond is refused.
    window: tuple[float, float] | None = None

    @property
    def shape(self):
        return (self.size, self.size, self.channels)


class Decoded(NamedTuple):
    """The square, and what the file held."""

    pixels: np.ndarray
    width: int
    height: int
    pages: int  # of the file; for one that is damaged behind a page, with the one that cannot be read
    values: tuple[float, float] | None  # the least and the largest value in the square, of more than 8 bits
    reduced: bool  # colours of 16 bits a channel, of which Pillow reads the high 8


def check_size(size):
    """UserError unless squares can have `size` px a side."""
    if not 1 <= size <= MAX_SIDE:
        advice = f"give the side in pixels, 1 to {MAX_SIDE}, such as 64"
        raise UserError(f"data.size={size} is not possible: {advice}")


def decode(path, square, page=0) -> Decoded:
    """The `Square` of a page of an image file, by its path or open; Unreadable where it gives none."""
    with _reasons(), _opened(path) as image:
        return _decode(image, square, page)


def each_page(path, square, count):
    """Yields `Decoded`, or the Unreadable in its place, for each of the first `count` pages of a file.

    Frames of an animation build on each other: one after another they are decoded once.
    """
    done = 0
    try:
        with _reasons(), _opened(path) as image:
            for done in range(1, count + 1):
                try:
                    with _reasons():
                        result = _decode(image, square, done - 1)
                except Unreadable as error:
                    result = error
                yield result
    except Unreadable as error:
        for _ in range(done, count):
            yield error


def count_pages(path) -> int:
    """How many pages a file has; 1 for a file that gives no image, as decoding it will say."""
    try:
        with _reasons(), _opened(path) as image:
            return _pages(image)
    except Unreadable:
        return 1


def deep_values(path, count, most=windows.MOST_VALUES):
    """(values float64, how many there are) of those of the first `count` pages of a file that have more than 8 bits.

    They are of the central squares, and evenly spaced where there are more than `most`. Pages that cannot be read have
    none.
    """
    samples, whole = [np.empty(0)], 0
    with contextlib.suppress(Unreadable), _reasons(), _opened(path) as image:
        for page in range(count):
            with contextlib.suppress(Unreadable), _reasons():
                image.seek(page)
                if _is_deep(image):
                    values = _values(_centre(_loaded(image), None)).reshape(-1)
                    samples.append(values[:: -(-len(values) * count // most)].astype(np.float64))
                    whole += len(values)
    return np.concatenate(samples), whole


@contextlib.contextmanager
def _reasons():
    """What Pillow raises, as Unreadable."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("without an image") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"of more than {MAX_PIXELS / 1e6:.0f} million pixels", one_line(error)) from None
    except (FileNotFoundError, PermissionError) as error:
        raise Unreadable("unreadable", error.strerror) from None
    except Exception as error:  # Pillow's readers raise nearly anything over damage
        raise Unreadable("cut short or damaged", one_line(error)) from None


def _opened(path):
    """The file as Pillow's image, not yet decoded."""
    if isinstance(path, str | os.PathLike):
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise Unreadable("a pipe, socket or device")  # opening it could wait for ever
        if not facts.st_size:
            raise Unreadable("of 0 bytes")
    return Image.open(path, formats=FORMATS)


def _pages(image):
    if image.format not in PAGED:
        return 1
    try:
        return image.n_frames
    except Exception:  # damaged: up to the first page that cannot be reached, whose decoding will say why
        for page in itertools.count():
            try:
                image.seek(page)
            except EOFError:
                return page
            except Exception:
                return page + 1


def _decode(image, square, page):
    pages = _pages(image)
    image.seek(page)
    width, height = image.size
    reduced = not _is_deep(image) and any(";16" in str(tile[3]) for tile in image.tile)
    if square.shrink:
        image.draft(None, (2 * square.size, 2 * square.size))
    with _one_large if image.width * image.height > LARGE else contextlib.nullcontext():
        cut, values = _plain(_centre(_loaded(image), square.crop), square.window)
        cut = cut.convert("L" if square.channels == 1 else "RGB")
    if cut.width != square.size:
        cut = cut.resize((square.size, square.size), square.resample)
    return Decoded(np.asarray(cut).reshape(square.shape), width, height, pages, values, reduced)


def _loaded(image):
    """The page where the image is, decoded and upright as its EXIF says, which a damaged EXIF block does not."""
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"of more than {MAX_PIXELS / 1e6:.0f} million pixels", f"{image.width}×{image.height}")
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _centre(image, crop):
    """The central square of `crop` px, None: of the shorter side."""
    side = crop or min(image.size)
    if side > min(image.size):
        raise Unreadable(f"smaller than the crop of {crop} px", f"{image.width}×{image.height}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _is_deep(image):
    """Whether pixels are single numbers of more than 8 bits, which Pillow's convert() would clip."""
    return image.mode == "F" or image.mode.startswith("I")


def _values(image):
    """The numbers of a deep image; Unreadable unless all are finite."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise Unreadable("with values that are not numbers", "NaN or infinite")
    return values


def _plain(image, window):
    """(the image in 8 bits without palette and transparency, the least and the largest of its values or None)."""
    if _is_deep(image):
        values = _values(image)
        low, high = values.min().item(), values.max().item()
        if window is None and image.mode == "F":
            raise Unreadable("of floating-point numbers", windows.ADVICE)
        if window is None and not windows.WHOLE[0] <= low <= high <= windows.WHOLE[1]:
            raise Unreadable("of values beyond 16 bits", f"from {low} to {high}; {windows.ADVICE}")
        return Image.fromarray(windows.apply(values, window or windows.WHOLE)), (low, high)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("L" if image.mode in ("1", "L") else "RGB"), None


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that decode: Pillow works outside Python's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


def each(function, count, what) -> list:
    """[function(0), …, function(count − 1)] by the pool, with a progress bar where it takes more than a second."""
    try:
        return list(tqdm(pool().map(function, range(count)), total=count, unit=" files", desc=what, delay=1))
    except MemoryError:
        raise UserError(f"{what} takes more memory than is free: lower data.size or give smaller files") from None


def lazily(paths, square, pages=None) -> LazyImages:
    """LazyImages of files: the `square` of each, or of its page `pages[i]`, by the pool.

    Reading a file that gives no image is a UserError that names it.
    """

    def read(indices):
        images = np.empty((len(indices), *square.shape), np.uint8)

        def one(place):
            path = paths[indices[place]]
            try:
                images[place] = decode(path, square, 0 if pages is None else int(pages[indices[place]])).pixels
            except Unreadable as error:
                raise UserError(f"{path} cannot be read as an image ({', '.join(error.args)}): replace it") from None

        list(pool().map(one, range(len(indices))))
        return images

    return LazyImages((len(paths), *square.shape), read)


def fits(count, shape) -> bool:
    """Whether so many images of `shape` are to be kept in memory: HOST_BYTES, or half of what is free of it."""
    return count * int(np.prod(shape)) <= min(HOST_BYTES, parallel.host_memory() // 2)


def in_memory(images: LazyImages, what) -> np.ndarray:
    """All of the images, with a progress bar."""
    whole = np.empty(images.shape, np.uint8)
    with tqdm(total=len(images), unit=" images", desc=what, delay=1) as bar:
        for start in range(0, len(images), 256):
            stop = min(start + 256, len(images))
            whole[start:stop] = images[start:stop]
            bar.update(stop - start)
    return whole
