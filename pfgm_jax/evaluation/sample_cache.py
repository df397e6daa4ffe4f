"""Sets of samples on disk, made in chunks: what a stopped run has made is kept, and larger sets extend smaller ones.

RUN/results/samples-KEY/00000.npz         images uint8, labels, evaluations of the network, seconds
RUN/results/samples-KEY/00000-FEATURES.npz their features

KEY is a hash of all that the samples depend on: weights, solver and its options, D, labels, guidance, seed and chunk.
Sample i is that of (seed, i), whatever the number of samples.
"""

import json
import pathlib
import time
import zipfile
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from pfgm_jax import generator
from pfgm_jax.evaluation import naming
from pfgm_jax.sampling import arguments
from pfgm_jax.storage import atomic, digests

SHOWN = 100  # images that are kept in memory, for a picture


class SampleSet(NamedTuple):
    """Features [n, d], labels [n] and what is to be told of n samples; `images` are the first SHOWN of them.

    seconds: for a sample, without compilation; NaN where no chunk was drawn by a compiled program.
    """

    key: str
    features: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    nfe: float
    sample_nfe: np.ndarray
    seconds: float


def facts(made, guide=None):
    """All that the samples of a Generator's config depend on, as JSON."""
    config = made.config
    flow = generator.sampling_process(config, made.process)
    return {
        "weights": _digest(made.params),
        "process": [flow.name, str(flow.D), float(flow.sigma_max), float(flow.sigma_min)],
        "solver": config.sample.solver,
        "options": generator.solver_options(config, config.sample.solver),
        "labels": config.sample.labels,
        "guidance": [str(config.sample.guidance), _digest(guide.params) if guide else ""],
        "seed": config.sample.seed,
        "chunk": config.sample.batch,
    }


def key_of(facts):
    """A short name for `facts`."""
    return naming.key_of(facts, 16)


def collect(made, folder, n, extractor, guide=None, timed=False, silent=False):
    """A SampleSet of n samples of the Generator `made`, of which those in `folder` are not made again.

    Args:
      folder: of the sets, such as a run's results/.
      extractor: uint8 images -> features [n, d], with a `fingerprint`.
      guide: a Generator, as for `made.sample`.
      timed: draw a chunk once without counting it, so that the others are timed without compilation.
      silent: show no progress.
    """
    told = facts(made, guide)
    key, chunk = key_of(told), told["chunk"]
    arguments.require_memory("sample.batch", chunk, made.shape)
    arguments.require_memory("evaluate.num_samples", n, made.shape)
    place = pathlib.Path(folder, f"samples-{key}")
    place.mkdir(parents=True, exist_ok=True)
    atomic.write_text(place / "facts.json", json.dumps(told, indent=1, default=str) + "\n")
    count = -(-n // chunk)
    seed = jax.random.key(made.config.sample.seed)
    labels = made.labels(seed, count * chunk)
    asked = labels if made.config.model.conditional else None
    compiled, parts = False, []
    for i in tqdm(range(count), desc=f"{made.config.sample.solver}, {chunk} at once", disable=silent or count < 2):
        rows = slice(i * chunk, (i + 1) * chunk)

        def draw(rows=rows):
            wanted = None if asked is None else asked[rows]
            return made.sample(seed, chunk, labels=wanted, guide=guide, first=rows.start, progress=not silent)

        path = place / f"{i:05}.npz"
        part = _read(path, ("images", "labels", "sample_nfe", "nfe", "seconds"))
        if part is None:
            if timed and not compiled:
                draw()
                compiled = True
            begun = time.perf_counter()
            images, stats = draw()
            seconds = (time.perf_counter() - begun) / chunk if compiled else np.nan
            compiled = True
            part = {"images": images, "labels": labels[rows], "sample_nfe": stats.sample_nfe,
                    "nfe": np.float64(stats.nfe), "seconds": np.float64(seconds)}  # fmt: skip
            _write(path, part)
        path = place / f"{i:05}-{extractor.fingerprint[:16]}.npz"
        features = _read(path, ("features",))
        if features is None:
            features = {"features": extractor(part["images"])}
            _write(path, features)
        shown = part.pop("images")[: max(0, SHOWN - rows.start)]
        parts.append(part | features | {"images": shown})
    whole = {name: np.concatenate([p[name] for p in parts])[:n] for name in ("features", "labels", "sample_nfe")}
    seconds = [float(p["seconds"]) for p in parts if np.isfinite(p["seconds"])]
    return SampleSet(
        key,
        images=np.concatenate([p["images"] for p in parts])[:n],
        nfe=float(np.mean([p["nfe"] for p in parts])),
        seconds=float(np.median(seconds)) if seconds else float("nan"),
        **whole,
    )


def images_of(folder, key, n):
    """The uint8 images [n, H, W, C] of a set that `collect` has made."""
    place, found = pathlib.Path(folder, f"samples-{key}"), []
    for path in sorted(place.glob("[0-9]*[0-9].npz")):
        if "-" not in path.stem and sum(map(len, found)) < n:
            found.append(_read(path, ("images",))["images"])
    return np.concatenate(found)[:n]


def _digest(params):
    """SHA-256 of a tree of arrays."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        parts += [f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}", array]
    return digests.sha256(*parts)


def _write(path, arrays):
    """An npz file in one piece."""
    with atomic.replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def _read(path, names):
    """The arrays of a file that `_write` made; None if it is absent or damaged, so that it is made anew."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
