"""What an installation is made of and whether it works, in a text to paste into a report (`--mode=doctor`)."""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time

from pfgm_jax import __version__
from pfgm_jax.errors import UserError
from pfgm_jax.storage import atomic

NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "ml-collections", "clu", "numpy", "scipy")
OPTIONAL = ("medmnist", "tensorflow-datasets", "tensorboard", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
GIB, MIB = 2**30, 2**20


def doctor():
    """Prints versions, devices, caches and free space, then what works: about 20 s on two CPU cores.

    Raises:
      UserError: something does not work; which, and by what exception, is in the lines before.
    """
    print(f"pfgm_jax   {__version__} in {pathlib.Path(__file__).parent}")
    print(f"python     {platform.python_version()} ({sys.executable}), {platform.platform()}")
    print(f"packages   {', '.join(f'{name} {version(name)}' for name in NEEDED)}")
    print(f"optional   {', '.join(f'{name} {version(name)}' for name in OPTIONAL)}")
    print(f"settings   {_settings() or 'no JAX_*, XLA_FLAGS or PFGM_JAX_* in the environment'}")
    print(f"caches     {_size(atomic.cache_root())} in {atomic.cache_root()}")
    print(f"disk       {_free(atomic.cache_root())} free there, {_free(pathlib.Path())} here")
    print(_devices(), flush=True)
    failed = [name for name, check in CHECKS.items() if not _passes(name, check)]
    if failed:
        raise UserError(f"{len(failed)} of {len(CHECKS)} checks failed: {', '.join(failed)}; see the lines above")
    return "all is well"


def version(package):
    """The version of an installed package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _settings():
    named = sorted(key for key in os.environ if key.startswith(("JAX_", "PFGM_JAX_")) or key == "XLA_FLAGS")
    return ", ".join(f"{key}={os.environ[key]}" for key in named)


def _size(folder):
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return f"{sum(path.stat().st_size for path in files) / MIB:,.0f} MiB"


def _free(folder):
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    return f"{shutil.disk_usage(there).free / GIB:,.1f} GiB"


def _devices():
    import jax

    from pfgm_jax import parallel

    memory = f"{parallel.device_memory() / GIB:.1f} GiB each; host {parallel.host_memory() / GIB:.1f} GiB free"
    return (
        f"devices    {parallel.device_count()} × {parallel.device_kind()} ({jax.default_backend()}), {memory}, "
        f"{os.cpu_count()} cores"
    )


def _passes(name, check):
    """Runs a check, prints its line, and says whether it passed."""
    begun = time.perf_counter()
    print(f"check      {name} … ", end="", flush=True)
    try:
        check()
    except Exception as error:  # whatever it is, it belongs in the report
        print(f"FAILED, {type(error).__name__}: {error}")
        return False
    print(f"works, {time.perf_counter() - begun:.1f} s", flush=True)
    return True


def _field():
    """The posterior mean of three charges at D = 128, by its definition in float64 (arXiv 2302.04265, eq. 4 and 6)."""
    import jax
    import numpy as np

    import pfgm_jax

    points, x, sigma, D = np.array([[0.0, 1.0], [2.0, 0.0], [-1.0, 0.5]]), np.array([[0.3, 0.4]]), 0.7, 128.0
    weights = (1 + ((x - points) ** 2).sum(1) / (D * sigma**2)) ** (-(points.shape[1] + D) / 2)
    expected = weights @ points / weights.sum()
    found = np.asarray(jax.jit(pfgm_jax.exact_denoiser(points.astype(np.float32), D))(x.astype(np.float32), sigma))
    # float32 rounds to 6e-8; the sums of three terms of size 2 keep 1e-5 with room.
    if not np.allclose(found, expected, rtol=0, atol=1e-5):
        raise ArithmeticError(f"got {found}, not {expected}")


def _sampling():
    import jax
    import numpy as np

    import pfgm_jax

    images, _ = pfgm_jax.load("pretrained:digits").sample(jax.random.key(0), 16, solver="euler", steps=18)
    ink = (np.asarray(images) > 127).mean()
    # Of scikit-learn's digits 30 % of the pixels are brighter than half; of noise about half would be, or none.
    if not (np.isfinite(images).all() and 0.2 < ink < 0.4):
        raise ArithmeticError(f"{ink:.0%} of the pixels are brighter than half, where of digits 30 % are")


def _training():
    """A run of points in the plane: trained, saved, opened again and sampled, in a folder that is removed."""
    import jax
    import numpy as np

    import pfgm_jax

    # Nearly all of the time is compilation: of a training step, of the losses, of sampling; so no distance to the truth
    # (which balanced classes rule out), no kernel of finite D, which sampling has, and the same samples twice.
    short = {"train.images": "1024", "train.large_batch": "0", "train.order": "balanced", "sample.n": "4"}
    short |= {"sample.solver": "euler", "sample.steps": "4", "sample.frames": "0"}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
            pfgm_jax.train(pfgm_jax.load_config("toy:process=edm,quick", short), folder)
            points, _ = pfgm_jax.load(folder).sample(jax.random.key(0), 4)
    if not np.isfinite(points).all():
        raise ArithmeticError("its samples are not finite")


CHECKS = {
    "the field of three charges": _field,
    "sampling pretrained:digits": _sampling,
    "training, saving and opening a run": _training,
}
