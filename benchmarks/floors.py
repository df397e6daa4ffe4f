"""What real images reach against real ones: the FID and KID of a perfect generator at some numbers of images.

    python -m benchmarks.floors [--set=bloodmnist] [--dir=FOLDER] [--inception=FILE]

Each of a set's PAIRS is two disjoint parts of its images, in Inception's 2048 features unless `--features` says others.
A part is the first so many images of its split in one random order, `default_rng(0).permutation`, or those behind them.
FID depends on both numbers of images; KID does not. Figures go to `--record` (benchmarks/floors.json). Inception takes
about 0.2 s an image of one CPU core.
"""

import argparse
import json
import pathlib

import numpy as np

from benchmarks import sets
from pfgm_jax.evaluation import score
from pfgm_jax.metrics import fid, kid
from pfgm_jax.storage import atomic

# (split, first, last) twice: the images in between, in the split's random order.
PAIRS = {
    "bloodmnist": (
        (("test", 0, 3421), ("train", 0, 3584)),
        (("train", 0, 1792), ("train", 1792, 3584)),
        (("test", 0, 1792), ("train", 0, 1792)),
        (("test", 0, 1000), ("train", 0, 1000)),
    ),
    "cifar10": ((("train", 0, 1000), ("test", 0, 1000)),),
    "digits": ((("train", 0, 180), ("test", 0, 180)),),
}


def features(dataset, split, number, extractor):
    """Features of the first `number` images of a split in its random order."""
    part = getattr(dataset, split)
    order = np.random.default_rng(0).permutation(len(part))[:number]
    return extractor(part.images[order])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="bloodmnist", choices=PAIRS)
    parser.add_argument("--dir", default="")
    parser.add_argument("--features", default="inception", choices=score.FEATURES)
    parser.add_argument("--inception", default="", help="file of the network's weights; downloaded without")
    parser.add_argument("--record", default="benchmarks/floors.json")
    flags = parser.parse_args()
    dataset = sets.load(flags.set, flags.dir)
    extractor = score.extractor(flags.features, dataset, flags.inception)
    pairs = PAIRS[flags.set]
    largest = {
        split: max(last for pair in pairs for name, _, last in pair if name == split) for split in ("train", "test")
    }
    known = {split: features(dataset, split, number, extractor) for split, number in largest.items()}
    rows = []
    for pair in pairs:
        a, b = (known[split][first:last] for split, first, last in pair)
        names = [f"{split} {first} to {last}" for split, first, last in pair]
        rows.append({"sets": names, "n": [len(a), len(b)], "fid": float(fid(a, b)), "kid": float(kid(a, b))})
        print(f"{names[0]:22}{names[1]:22}FID {rows[-1]['fid']:8.3f}  KID {rows[-1]['kid']:9.5f}", flush=True)
    path = pathlib.Path(flags.record)
    record = json.loads(path.read_text()) if path.exists() else {}
    record[flags.set] = {"features": extractor.name, "source": dataset.source, "rows": rows}
    atomic.write_text(path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
