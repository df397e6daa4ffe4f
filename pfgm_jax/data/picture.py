"""One picture of any size as a square of the size that a run asks for."""

from PIL import Image


def square(image: Image.Image, size: int, crop: int | None = None) -> Image.Image:
    """The central square of `image`, resized to size × size pixels by Lanczos, its mode unchanged.

    Args:
      image: any size; mode L, RGB, or another in which Pillow can interpolate.
      size: side of the result in pixels. A square that has it already is not resampled.
      crop: side of the central square, at most the shorter side; None: the shorter side.
    """
    side = min(crop or image.height, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # `reducing_gap` would shrink by whole factors first, which is faster but no longer the filter alone.
    return image.crop(box) if side == size else image.crop(box).resize((size, size), Image.Resampling.LANCZOS)
