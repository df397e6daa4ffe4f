"""Digests: SHA-256 of files, of arrays and of settings, and short hashes of images.

Names in the cache, checksums of checkpoints (`checkpoint`) and of exported weights (`safetensors`) depend on these
bytes: a change here makes files of older versions look damaged or absent.
"""

import hashlib
import json

import numpy as np


def sha256(*parts):
    """SHA-256, 64 hexadecimal digits, of parts one after another: text as UTF-8, bytes, or arrays in C order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode()
        elif not isinstance(part, bytes):
            part = np.ascontiguousarray(part).reshape(-1).view(np.uint8)  # bfloat16 has no buffer of its own
        total.update(part)
    return total.hexdigest()


def of_json(facts):
    """SHA-256 of what JSON can hold, with dict keys in alphabetical order; anything else counts as its `str`."""
    return sha256(json.dumps(facts, sort_keys=True, default=str))


def of_file(path, algorithm="sha256"):
    """Hexadecimal digest of a file's content, by "sha256", or by "md5" where a publisher gives that. OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def of_images(images):
    """A hash (32 hexadecimal digits) of each image of [n, ...], equal where the images are; kept nowhere."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
