"""What a run costs: memory, compilation and speed, each in a process that has done nothing else.

    python -m pfgm_jax.study.cost RUN SOLVER NUMBER USES

prints one line of JSON; USES is JSON of settings of its use that are not the run's own. Programs are compiled anew, as
the cache of programs is off.
"""

import dataclasses
import json
import os
import resource
import sys
import time

BATCH = 64  # images at once: of sampling, and of nothing else


def main(folder, solver, number, changed):
    """The costs of the run in a folder, as a dict: seconds, bytes, images a second."""
    from pfgm_jax import generator as generator_lib
    from pfgm_jax import parallel
    from pfgm_jax.study.plan import steps_or_tolerance
    from pfgm_jax.training import dry_run
    from pfgm_jax.training.step import init_state

    generator = generator_lib.load(folder).with_overrides(json.loads(changed))
    settings = generator.settings.changed(n=BATCH, solver=solver, **steps_or_tolerance(solver, float(number)))
    settings = dataclasses.replace(settings, batch=BATCH)
    before = _peak()
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        _, stats = generator.sample(settings=settings, progress=False)
        seconds.append(time.perf_counter() - begun)
    sampling = _peak()
    plan = dry_run.prepare(generator.config)
    state = init_state(plan.task, plan.dataset.shape)
    begun = time.perf_counter()
    resident = dry_run.is_resident(generator.config, plan.dataset)
    training = dry_run.memory_estimate(plan.task, state, plan.dataset, plan.cadence.per_call, resident)
    return {
        "batch": BATCH,
        "nfe": float(stats.nfe),
        "seconds to compile sampling": seconds[0] - min(seconds[1:]),
        "ms an image": 1000 * min(seconds[1:]) / BATCH,
        "images a second": BATCH / min(seconds[1:]),
        "seconds to compile training": time.perf_counter() - begun,
        "bytes of training": training,
        "bytes at the peak of sampling": sampling,
        "bytes before sampling": before,
        "device": parallel.device_kind(),
        "devices": parallel.device_count(),
    }


def _peak():
    """The most bytes that this process has had in memory."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    print(json.dumps(main(*sys.argv[1:])))
