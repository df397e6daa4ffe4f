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
from tqdm.auto import tqdm

from pfgm_jax import parallel
from pfgm_jax.evaluation import naming
from pfgm_jax.sampling import arguments
from pfgm_jax.sampling.settings import labels_for
from pfgm_jax.storage import atomic, digests

SHOWN = 100  # images that are kept in memory, for a picture


class SampleSet(NamedTuple):
    """Features [n, d], labels [n] and the cost of n samples; `images` are the first SHOWN of them.

    seconds: for a sample, without compilation; NaN where no chunk was drawn by a compiled program.
    """

    key: str
    features: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    nfe: float
    sample_nfe: np.ndarray
    seconds: float


def facts(generator, settings):
    """All that samples of a Generator with these SampleSettings depend on, but for their number, as JSON."""
    flow, settings = settings.process(generator.process), generator.prepared(settings)
    return {
        "weights": _digest(generator.params),
        "process": [flow.name, str(flow.D), float(flow.sigma_max), float(flow.sigma_min)],
        "solver": settings.solver,
        "options": settings.solver_options,
        "labels": settings.labels,
        "guidance": [str(settings.guidance), _digest(settings.guide.params) if settings.guide else ""],
        "seed": settings.seed,
        "chunk": settings.batch,
    }


def key_of(facts):
    """A short name for `facts`."""
    return naming.key_of(facts, 16)


def collect(generator, settings, folder, extractor, timed=False, silent=False):
    """A SampleSet of settings.n samples of a Generator, of which those in `folder` are not drawn again.

    Args:
      settings: SampleSettings; their guide is a Generator, if there is one.
      folder: of the sets, such as a run's results/.
      extractor: uint8 images -> features [n, d], with a `fingerprint`.
      timed: draw a chunk once without counting it, so that the others are timed without compilation.
      silent: show no progress.

    Of several processes all draw; the first alone has folder and extractor, and the others get None.
    """
    depends_on, n, chunk = facts(generator, settings), settings.n, settings.batch
    key = key_of(depends_on)
    arguments.require_memory("sample.batch", chunk, generator.shape)
    arguments.require_memory("evaluate.num_samples", n, generator.shape)
    first = parallel.is_first()
    if first:
        place = pathlib.Path(folder, f"samples-{key}")
        place.mkdir(parents=True, exist_ok=True)
        atomic.write_text(place / "facts.json", json.dumps(depends_on, indent=1, default=str) + "\n")
    count = -(-n // chunk)
    seed = jax.random.key(settings.seed)
    labels = labels_for(generator.run, settings.labels, count * chunk, seed)
    compiled, parts = False, []
    for i in tqdm(range(count), desc=f"{settings.solver}, {chunk} at once", disable=silent or count < 2 or not first):
        rows = slice(i * chunk, (i + 1) * chunk)

        def draw(rows=rows):
            own = labels[rows] if generator.classes else None
            return generator.sample(seed, chunk, labels=own, first=rows.start, progress=not silent, settings=settings)

        part = _read(place / f"{i:05}.npz", ("images", "labels", "sample_nfe", "nfe", "seconds")) if first else None
        if parallel.largest(int(first and part is None)):
            if timed and not compiled:
                draw()
                compiled = True
            begun = time.perf_counter()
            images, stats = draw()
            seconds = (time.perf_counter() - begun) / chunk if compiled else np.nan
            compiled = True
            part = {
                "images": images,
                "labels": labels[rows],
                "sample_nfe": stats.sample_nfe,
                "nfe": np.float64(stats.nfe),
                "seconds": np.float64(seconds),
            }
            if first:
                _write(place / f"{i:05}.npz", part)
        if not first:
            continue
        path = place / f"{i:05}-{extractor.fingerprint[:16]}.npz"
        features = _read(path, ("features",))
        if features is None:
            features = {"features": extractor(part["images"])}
            _write(path, features)
        shown = part.pop("images")[: max(0, SHOWN - rows.start)]
        parts.append(part | features | {"images": shown})
    if not first:
        return None
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
    place, chunks = pathlib.Path(folder, f"samples-{key}"), []
    for path in sorted(place.glob("[0-9]*[0-9].npz")):
        if "-" not in path.stem and sum(map(len, chunks)) < n:
            chunks.append(_read(path, ("images",))["images"])
    return np.concatenate(chunks)[:n]


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
