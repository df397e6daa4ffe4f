"""Which values of images of more than 8 bits become black and white: the setting data.window.

Scanners and microscopes store 12 or 14 bits in files of 16, or Hounsfield units and intensities as signed or
floating-point numbers, and nothing in a PNG or TIFF says which of them are black and white. So a person does, for the
whole set alike: values below LOW are 0, above HIGH 255, and linear between.
"""

import math

import numpy as np

from pfgm_jax.errors import UserError

WHOLE = (0, 65535)  # of files of 16 bits, where nothing else is said
PERCENTILES = (0.1, 99.9)  # of data.window=auto: what a few hot or dead pixels hold does not count
MOST_VALUES = 2**24  # of which percentiles are taken exactly; of more, of an even sample
ADVICE = "say which values are black and white, data.window=LOW,HIGH, or auto"


def parse(text):
    """None for "", "auto", or (LOW, HIGH) of "LOW,HIGH"; UserError for anything else."""
    if text in ("", "auto"):
        return text or None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not low < high or math.isinf(high - low):
        raise UserError(f"data.window={text} is not possible: write LOW,HIGH with LOW < HIGH, such as 0,4095, or auto")
    return low, high


def apply(values, window):
    """uint8 of values of any shape and type: LOW and below become 0, HIGH and above 255, rounded between."""
    low, high = window
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def automatic(samples):
    """(LOW, HIGH) of a list of arrays of values: their PERCENTILES, or None where there are no values."""
    values = np.concatenate([*samples, np.empty(0)])
    if not len(values):
        return None
    low, high = map(float, np.percentile(values, PERCENTILES))
    if not low < high:  # nearly everything is one value
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1)
