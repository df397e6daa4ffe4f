"""What encoding and decoding cost in accuracy, solver by solver at equal numbers of network calls.

    python -m benchmarks.inference [--workdir=pretrained:digits] [--n=64] [--calls=20,40,80,160]

Images of the test split are encoded and decoded. A latent's error is against rk45 at tolerances of 1e-6, as the root
mean square over pixels in units of σ_max; the round trip is in grey levels, rms; a sample's error is that of decoding
latents of the prior against rk45 at 1e-6, rms in grey levels. Numbers of calls are those of one direction; those of
encoding with the settled reversible solver are given beside it.
"""

import argparse
import dataclasses

import jax
import numpy as np

import pfgm_jax
from pfgm_jax import data, inference
from pfgm_jax.flow import process
from pfgm_jax.inference import reversible
from pfgm_jax.sampling import levels

SOLVERS = ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "reversible, unsettled", "reversible")


def options_for(solver, calls):
    """Options of a solver with so many network calls in one direction."""
    steps = {"euler": calls + 1, "heun": calls // 2 + 1, "dpmpp_2m": calls + 1, "dpmpp_3m": calls + 1}
    if solver.startswith("reversible"):
        return {"steps": calls // 2, "settle": solver == "reversible"}
    return {"steps": steps[solver]}


def calls_up(generator, solver, calls):
    """Network calls of encoding: the settled reversible solver takes four more for every level below SETTLE_TO."""
    if solver != "reversible":
        return calls
    low = np.sum(levels(generator.process, "edm", calls // 2 + 1) <= reversible.SETTLE_TO)
    return calls + 4 * max(int(low) - 1, 1)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="pretrained:digits")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--calls", default="20,40,80,160")
    flags = parser.parse_args()
    generator = pfgm_jax.load(flags.workdir)
    images = data.load(generator.config.data).test.images[: flags.n]
    quiet = {"progress": False}
    exact = generator.encode(images, solver="rk45", rtol=1e-6, atol=1e-6, **quiet)
    keys = jax.random.split(jax.random.key(0), len(images))
    prior = np.asarray(process.prior(generator.process, keys, generator.shape))
    exact_samples = inference.decode(generator.weighted, dataclasses.replace(exact, states=prior), **quiet)
    print(f"{len(images)} images, {generator}\n")
    print(f"{'solver':24}{'calls':>6}{'up':>6}{'latent':>10}{'round trip':>12}{'same bytes':>12}{'sample':>10}")
    for solver in SOLVERS:
        for calls in map(int, flags.calls.split(",")):
            latents = generator.encode(images, solver=solver.partition(",")[0], **options_for(solver, calls), **quiet)
            back = generator.decode(latents, **quiet)
            start = reversible.to_pair(prior, latents.sigma) if solver.startswith("reversible") else prior
            samples = inference.decode(generator.weighted, dataclasses.replace(latents, states=start), **quiet)
            print(
                f"{solver:24}{calls:6}{calls_up(generator, solver, calls):6}"
                f"{rms(latents.z - exact.z) / exact.sigma:10.4f}{rms(back.astype(float) - images):12.3f}"
                f"{np.mean(np.all(back == images, axis=(1, 2, 3))):12.0%}{127.5 * rms(samples - exact_samples):10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
