"""A run that is killed again and again, against one that was left alone: what is lost must be nothing.

    python -m benchmarks.kills [--kills=100] [--devices=1] [--seed=0] [--folder=FOLDER]

A tiny network is trained on digits twice by the command line. One process is left alone. The other is killed by SIGKILL
at random moments, half of them by the clock, half where a file has just appeared or gone (the moments around a save, a
rotation, a picture, a record), and started again by the same command until it is done. Then parameters, averages, the
optimiser's state, the records of metrics.jsonl but for clocks, and the sample pictures must be equal to the last bit.
"""

import argparse
import collections
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# Every interval is short, so that a process of a few seconds passes through all that a run does.
SETTINGS = {
    "train.images": 8_192, "train.batch": 64, "train.steps_per_call": 4, "train.log_every": 512,
    "train.eval_every": 2_048, "train.save_every": 1_024, "train.sample_every": 4_096, "train.eval_images": 64,
    "sample.n": 4, "sample.solver": "heun", "sample.steps": 4, "sample.frames": 0, "model.name": "mlp",
    "model.channels": 8, "model.blocks": 1, "model.embedding_channels": 8, "model.noise_channels": 8,
    "optim.warmup": 1_024,
}  # fmt: skip
CLOCKS = {"images_per_second", "input_wait", "save_wait"}
LONGEST = 120  # seconds that a start may take before it counts as hanging, or five times a whole run's


def command(workdir):
    """The command line of the run in `workdir`."""
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    return [sys.executable, "-m", "pfgm_jax.main", "--config=configs/digits.py", f"--workdir={workdir}", *settings]


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Every program is kept, so that a start after a kill compiles nothing.
    cache = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | cache | {"XLA_FLAGS": flags, "PYTHONPATH": path}


def listing(workdir):
    """What lies in a run's folder, two levels deep."""
    found = set()
    for path in (workdir, workdir / "checkpoints", workdir / "samples"):
        try:
            found |= {f"{path.name}/{entry.name}" for entry in os.scandir(path)}
        except OSError:  # not there yet, or just removed
            continue
    return found


def progress(workdir):
    """Size of the records: it grows while steps are taken."""
    try:
        return (workdir / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def killed_once(workdir, devices, rng, span):
    """Starts the run and kills it: what it was doing, or "" if it ended by itself. `span`: seconds of a whole run."""
    files, at_a_file, longest = listing(workdir), rng.random() < 0.5, max(LONGEST, 5 * span)
    patience = rng.uniform(0, span) if not at_a_file else longest
    changes_left = int(rng.integers(1, 12))
    process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment(devices), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    begun, moment, records = time.monotonic(), "before the first step", progress(workdir)
    while process.poll() is None:
        now = listing(workdir)
        for name in now ^ files:
            changes_left -= 1
            moment = _moment(name, name in now)
        if now == files and progress(workdir) != records:
            records, moment = progress(workdir), "between steps"
        files = now
        elapsed = time.monotonic() - begun
        if elapsed > longest:
            process.kill()
            raise RuntimeError(f"the run hangs: {longest:.0f} s after its start it has not ended")
        if elapsed > patience or (at_a_file and changes_left <= 0):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return moment
        time.sleep(0.004)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the run ended with exit code {process.returncode}:\n{errors[-2000:]}")
    return ""


def _moment(name, appeared):
    """What a run was doing when a file of this name appeared or went."""
    if "orbax-checkpoint-tmp" in name:
        return "while a checkpoint is written" if appeared else "right after a checkpoint's rename"
    if re.fullmatch(r"checkpoints/\d+", name):
        return "right after a checkpoint's rename" if appeared else "while old checkpoints are removed"
    if name.startswith("samples/"):
        return "while a picture is written"
    return "while the folder is set up"


def contents(workdir):
    """What must be equal: {name: array, records or bytes}."""
    from pfgm_jax.storage.metrics_file import read_metrics

    records = [{k: v for k, v in record.items() if k not in CLOCKS} for record in read_metrics(workdir)]
    pictures = {f"samples/{path.name}": path.read_bytes() for path in sorted((workdir / "samples").glob("*.png"))}
    return arrays(workdir) | {"metrics.jsonl": records} | pictures


def arrays(workdir):
    """Every array of the newest checkpoint by its name, as it lies on the disk."""
    import orbax.checkpoint as ocp

    from pfgm_jax.storage import checkpoint

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax wants to be told what each item is; plain arrays will do
    step = checkpoint.steps(workdir)[-1]
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        restored = manager.restore(step)
    found = {"step": step}
    for item, tree in restored.items():
        if item != "digest":
            found |= {f"{item}{path}": np.asarray(leaf) for path, leaf in tree.items()}
    return found


def differences(alone, killed):
    """Names of what differs between two `contents`."""
    names = alone.keys() ^ killed.keys()
    for name in alone.keys() & killed.keys():
        a, b = alone[name], killed[name]
        equal = np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b
        names |= set() if equal else {name}
    return sorted(names)


def soak(folder, kills, devices=1, seed=0, say=print):
    """Counter of the moments of `kills` kills; RuntimeError where a start fails, or anything is lost."""
    rng, folder = np.random.default_rng(seed), pathlib.Path(folder)
    alone = folder / "alone"
    for workdir in (folder / "first", alone):  # the first compiles: the other one takes as long as every later start
        begun = time.monotonic()
        subprocess.run(command(workdir), cwd=ROOT, env=environment(devices), check=True, capture_output=True)
    span, expected = time.monotonic() - begun, contents(alone)
    moments, runs = collections.Counter(), 0
    while sum(moments.values()) < kills:
        workdir, runs = folder / f"killed_{runs}", runs + 1
        while moment := killed_once(workdir, devices, rng, span):
            moments[moment] += 1
            say(f"{sum(moments.values()):4} kills  {moment}")
            if sum(moments.values()) >= kills:
                subprocess.run(command(workdir), cwd=ROOT, env=environment(devices), check=True, capture_output=True)
                break
        if lost := differences(expected, contents(workdir)):
            raise RuntimeError(f"{workdir} differs from the run that was left alone in {', '.join(lost)}")
        say(f"      run {runs} is done: equal to the last bit")
    return moments


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs lie; a temporary folder otherwise")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        moments = soak(flags.folder or temporary, flags.kills, flags.devices, flags.seed)
    print(f"\n{sum(moments.values())} kills on {flags.devices} devices, nothing lost:")
    for moment, count in moments.most_common():
        print(f"  {count:4}  {moment}")


if __name__ == "__main__":
    main()
