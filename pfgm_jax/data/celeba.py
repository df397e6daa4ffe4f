"""CelebA (Liu et al. 2015, arXiv 1411.7766) at 64 px: 162 770 faces to train on, 19 867 for val, 19 962 for test.

`data.dir` holds celeba64.npz with MedMNIST's six arrays, or the official files: img_align_celeba/*.jpg and
list_eval_partition.txt (or .csv, as Kaggle has it). As score_sde and PFGM have them, the aligned images (178×218) are
cut to their central 140 px and resized with antialiasing: a triangle filter, Pillow's BILINEAR.
"""

import numpy as np
from PIL import Image

from pfgm_jax.data import images, published
from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.download import one_line
from pfgm_jax.data.splits import NAMES
from pfgm_jax.errors import UserError, counted

SETS = {"celeba64": published.Facts(64, 162_770, ("face",), "non-commercial research only")}
CROP = 140
PHOTOS = ("img_align_celeba/img_align_celeba", "img_align_celeba")
PARTITIONS = [f"{place}list_eval_partition{suffix}" for suffix in (".txt", ".csv") for place in ("", "Eval/")]


def load(data_config) -> Dataset:
    """CelebA from `data.dir`; UserError where its files are absent, incomplete or damaged."""
    facts = SETS[data_config.name]
    facts.check(data_config)
    path = find(data_config)
    if path is None:
        where = f"in {published.folder(data_config)}" if data_config.dir else "with data.dir=FOLDER"
        raise UserError(
            "celeba64 is not downloaded automatically: put img_align_celeba (unzipped) and "
            f"list_eval_partition.txt of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html {where}, or "
            "celeba64.npz with MedMNIST's six arrays"
        )
    if path.suffix == ".npz":
        splits = published.from_npz(data_config, path, facts)
        return published.dataset(data_config, facts, splits, f"{path.name}, not checked")
    partition = next((path / name for name in PARTITIONS if (path / name).is_file()), None)
    if partition is None:
        raise UserError(f"{path} has the images of CelebA but no list_eval_partition.txt: put it beside them")
    files = _read_partition(partition)
    photos = next(path / name for name in PHOTOS if (path / name).is_dir())
    absent = [name for names in files.values() for name in names if not (photos / name).is_file()]
    if absent:
        raise UserError(
            f"{photos} lacks {counted(len(absent), 'image')} of {partition.name}, such as {absent[0]}: unzip it again"
        )
    square = images.Square(facts.size, resample=Image.Resampling.BILINEAR, crop=CROP)
    keep = images.fits(sum(map(len, files.values())), square.shape)
    splits = {}
    for split, names in files.items():
        lazy = images.lazily([str(photos / name) for name in names], square)
        pixels = images.in_memory(lazy, f"celeba64 {split}") if keep else lazy
        splits[split] = Split(pixels, np.zeros(len(names), np.int32))
    return published.dataset(data_config, facts, splits, "CelebA, aligned and cropped, not checked")


def find(data_config):
    """celeba64.npz in `data.dir`, or that folder where it holds img_align_celeba, or None."""
    given = published.folder(data_config)
    if given is None or given.suffix == ".npz":
        return given if given is not None and given.is_file() else None
    if (given / "celeba64.npz").is_file():
        return given / "celeba64.npz"
    return given if (given / "img_align_celeba").is_dir() else None


def _read_partition(path) -> dict[str, list[str]]:
    """File names by split; each line is a name and 0, 1 or 2 for train, val or test."""
    files = {name: [] for name in NAMES}
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): download it again") from error
    for number, line in enumerate(lines, 1):
        name, _, part = line.strip().replace(",", " ").partition(" ")
        if number == 1 and part.strip() == "partition" or not name:
            continue
        if part.strip() not in ("0", "1", "2"):
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} is not a name and 0, 1 or 2")
        files[NAMES[int(part)]].append(name)
    if not files["train"]:
        raise UserError(f"{path} names no training images: download it again")
    return files
