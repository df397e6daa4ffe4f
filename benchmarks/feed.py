"""Whether training waits for its images: kept on the devices, streamed from memory, and decoded from files.

    python -m benchmarks.feed [--size=64] [--network=cpu_28] [--batch=64] [--calls=12]

Trains the same run three times on the same smooth random images, written as JPEG files of twice the size, and prints a
Markdown table: images a second, as a part of what the resident set reaches; and `input_wait`, the share of the time in
which the loop had nothing to run because its images were not there yet. Medians over the log lines after the first.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile

import numpy as np
from PIL import Image, ImageFilter

from configs import folder
from pfgm_jax import models
from pfgm_jax.data import dataset, images
from pfgm_jax.training import loop

WAYS = {
    "resident on the devices": (True, dataset.HOST_BYTES),
    "streamed from memory": (False, dataset.HOST_BYTES),
    "decoded from JPEG files": (False, 0),
}


def write(place, count, size):
    """`count` blurred random JPEG files of twice `size`."""
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = rng.integers(0, 256, (2 * size, 2 * size, 3), dtype=np.uint8)
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).save(place / f"{i:05d}.jpg")


def measure(files, args, resident, host_bytes):
    """(images a second, input wait) of a run."""
    images.HOST_BYTES = host_bytes
    config = folder.get_config(f"dir={files},size={args.size},cpu")
    config.model.update(models.preset(args.network))
    config.data.resident = resident
    images_per_call = 8 * args.batch
    config.train.update(
        batch=args.batch, steps_per_call=8, images=args.calls * images_per_call, log_every=images_per_call
    )
    config.train.update(eval_every=10**9, sample_every=10**9, save_every=10**9, eval_images=8)
    config.sample.update(n=4, solver="heun", steps=2)
    with tempfile.TemporaryDirectory() as workdir:
        with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to stdout
            loop.train(config, workdir)
        records = [json.loads(line) for line in pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()]
    timed = [record for record in records if "input_wait" in record]
    return tuple(float(np.median([record[key] for record in timed])) for key in ("images_per_second", "input_wait"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--network", default="cpu_28")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = pathlib.Path(place, "photographs")
        files.mkdir()
        write(files, 2048, args.size)
        rows = {}
        for name, (resident, host_bytes) in WAYS.items():
            print(f"== {name}", file=sys.stderr)
            rows[name] = measure(files, args, resident, host_bytes)
    base = rows["resident on the devices"][0]
    print(f"{args.network}, {args.size} px, batch {args.batch}, one run each of {args.calls} calls of 8 steps\n")
    print("| images | images/s | of resident | input wait |\n|---|--:|--:|--:|")
    for name, (speed, wait) in rows.items():
        print(f"| {name} | {speed:.1f} | {speed / base:.2f} | {wait:.1%} |")


if __name__ == "__main__":
    main()
