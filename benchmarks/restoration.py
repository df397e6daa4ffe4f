"""Whether restorations are calibrated: on exact fields, where the posterior is known, and on trained networks.

    python -m benchmarks.restoration exact --set=digits --D=128 [--task=denoise,inpaint,superres]
    python -m benchmarks.restoration exact --set=bloodmnist --D=inf [--dir=FOLDER]
    python -m benchmarks.restoration network RUN [RUN …] [--images=200] [--task=denoise,…,deblur] [--dir=FOLDER]
    python -m benchmarks.restoration robust RUN [RUN …] [--images=200] [--picture=FILE]

`exact`: the posterior over 500 training images given noisy measurements of some of them, at a noise that leaves 3 to 50
effective images. Draws of the exact conditional flow, and of every method on the exact *unconditional* field, are
counted at the image they end nearest to. Given are the total variation between these shares and the exact posterior,
beside that of as many draws of the posterior itself; and the exact posterior mass of the sets that hold 90 % of a
method's draws, beside that of the posterior's own draws. A method that is calibrated has the figures of the posterior's
draws. `off` is the share of draws that end further than a tenth of the noise-free pixel range from any image.

`network`: PSNR and SSIM of the mean, the Fréchet distance of single draws to the truth in pixels, and the share of
hidden values within the range of 5 draws (67 % if calibrated), at 1, 35 and 300 evaluations; noise 0.6 for denoising,
0.1 for the blur of 1 pixel, none for inpainting the centre and for superres, ×2. An image-conditional RUN
(data.condition denoise:0.6, inpaint:centre, superres:2 or deblur:1:0.1) restores its own measurement.

`robust`: the PSNR of E[y | x, σ], one evaluation, where the noise is not σ: on the exact fields of the training digits,
and by the runs, which are of digits too.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

import pfgm_jax
from benchmarks.sets import SIZES, load, training_points
from pfgm_jax import plots
from pfgm_jax.data import to_unit
from pfgm_jax.evaluation.restoration import in_range, mask_of
from pfgm_jax.flow import process
from pfgm_jax.inference.restoration import METHODS, Problem, exact, noise, operators
from pfgm_jax.inference.restoration.methods import CONDITIONAL
from pfgm_jax.metrics.frechet import fid
from pfgm_jax.metrics.image_quality import psnr, ssim

POINTS, MEASUREMENTS, DRAWS = 500, 6, 40
SIGMA_MAX = 80.0  # well above the data's norms, 7 and 29, so that the prior's centre is no part of the figures


def _measured(points, task):
    """(operator, mask, level, measurements, Posterior): the level leaves about 12 effective points of the median."""
    shape = points.shape[1:]
    mask = np.ones(shape, bool)
    if task == "inpaint":
        mask = np.broadcast_to(mask_of("centre", shape, 0)[..., None], shape)
    operator = {
        "denoise": lambda: operators.identity,
        "inpaint": lambda: operators.masked(mask),
        "superres": lambda: operators.average(2, shape),
    }[task]()
    seen = np.ones(operator.forward(jnp.asarray(points[:1])).shape[1:], bool) if task == "superres" else mask
    clean = operator.forward(jnp.asarray(points[:: POINTS // 40][:40]))
    keys = jax.random.split(jax.random.key(1), len(clean))
    level = 0.1
    while True:  # the first level at which enough of the measurements leave 3 to 50
        m = jnp.where(seen, noise.draw("gaussian", keys, jnp.full(len(clean), level), clean), 0)
        posterior = exact.posterior(points, m, operator, "gaussian", level, seen)
        good = (posterior.effective >= exact.FEW) & (posterior.effective <= exact.MANY)
        if good.sum() >= MEASUREMENTS and np.median(posterior.effective) > 5:
            break
        level *= 1.15
    chosen = np.flatnonzero(good)[:MEASUREMENTS]
    posterior = exact.Posterior(points, posterior.log_likelihood[chosen])
    posterior.require_calibratable()
    return operator, mask, level, np.asarray(m)[chosen], posterior


def _figures(indices, posterior):
    """(total variation, exact mass of the 90 % sets), means over measurements."""
    shares = exact.frequencies(indices, len(posterior.points))
    mass = np.sum(posterior.weights * exact.credible_set(shares), axis=1)
    return exact.total_variation(shares, posterior.weights).mean(), mass.mean()


def on_exact_fields(flags):
    points, D = training_points(flags.set, flags.dir, POINTS), float(flags.D)
    rng = np.random.default_rng(3)
    flow = process.pfgmpp(D, sigma_max=SIGMA_MAX)
    denoise = pfgm_jax.exact_denoiser(points, D)
    print(f"{flags.set}, {len(points)} points, D = {D:g}, {MEASUREMENTS} measurements × {DRAWS} draws")
    print(f"{'task':10}{'level':>7}{'points':>8}  {'method':24}{'TV':>7}{'mass':>7}{'off':>7}{'s':>6}", flush=True)
    for task in flags.task.split(","):
        operator, mask, level, m, posterior = _measured(points, task)
        effective = np.median(posterior.effective)

        def say(name, figures, off=0.0, begun=None):
            seconds = "" if begun is None else f"{time.perf_counter() - begun:.0f}"
            head = f"{task:10}{level:7.2f}{effective:8.1f}"  # noqa: B023
            print(f"{head}  {name:24}{figures[0]:7.3f}{figures[1]:7.3f}{off:7.2f}{seconds:>6}", flush=True)

        own = [
            _figures(np.stack([rng.choice(len(points), DRAWS, p=w) for w in posterior.weights]), posterior)
            for _ in range(200)
        ]
        say("the posterior itself", np.mean(own, axis=0))
        say("  ± of one such figure", np.std(own, axis=0))
        begun = time.perf_counter()
        say("exact conditional flow", _figures(posterior.draws(flow, jax.random.key(2), DRAWS), posterior), begun=begun)
        for name, method in METHODS.items():
            if (
                name == CONDITIONAL
                or (method.tasks and task not in method.tasks)
                or (method.gaussian and math.isfinite(D))
            ):
                continue
            if flags.methods and name not in flags.methods.split(","):
                continue
            begun = time.perf_counter()
            x = _draw(method, denoise, flow, operator, mask, level, m, points)
            gap = np.sqrt(np.mean((x - points[exact.nearest(x, points)]) ** 2, axis=(1, 2, 3)))
            indices = exact.nearest(x, points).reshape(MEASUREMENTS, DRAWS)
            say(name, _figures(indices, posterior), np.mean(gap > 0.2), begun)


def _draw(method, denoise, flow, operator, mask, level, m, points):
    m = jnp.repeat(jnp.asarray(m), DRAWS, axis=0)
    seen = jnp.asarray(mask) if operator.name == "mask" else jnp.ones((1,) * m.ndim, bool)

    @jax.jit
    def run(m, keys):
        problem = Problem(m, operator, "gaussian", jnp.full(len(m), level), False, seen, float(points.std()))
        return method.run(problem, denoise, flow, keys, **method.options)

    return np.asarray(run(m, jax.random.split(jax.random.key(5), len(m))))


def on_networks(flags):
    N = 5
    print(f"{'run':24}{'task':10}{'method':13}{'calls':>6}{'PSNR':>7}{'SSIM':>7}{'Fréchet':>9}{'in range':>10}{'s':>6}")
    for run in flags.runs:
        generator = pfgm_jax.load(run).with_overrides({"sample.batch": 600})
        sets = load(generator.config.data.name, flags.dir)
        truth = np.concatenate([sets.test.images, sets.val.images])[: flags.images]
        clean = to_unit(truth)
        reference = clean.reshape(len(clean), -1)
        for task, how, m, hidden in _tasks(clean):
            if task not in flags.task.split(","):
                continue
            for method, options, calls in _ways(task, generator):
                if calls > flags.calls:
                    continue
                begun = time.perf_counter()
                result = generator.restore(
                    m, task, N, jax.random.key(0), method=method, progress=False, **how, **options
                )
                single = result.draws[0].reshape(len(clean), -1)
                figures = psnr(result.mean, clean, 2).mean(), ssim(result.mean, clean, 2).mean(), fid(reference, single)
                held = in_range(result.draws[:, hidden], clean[hidden])
                head = f"{run.rstrip('/').split('/')[-1]:24}{task:10}{method:13}{calls:6}"
                tail = f"{figures[0]:7.2f}{figures[1]:7.3f}{figures[2]:9.2f}{held:10.1%}"
                print(f"{head}{tail}{time.perf_counter() - begun:6.0f}", flush=True)


def _tasks(clean):
    """(task, arguments, measurement, hidden values) of each task."""
    shape, everywhere = clean.shape[1:], np.ones(clean.shape, bool)
    normal = np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    yield "denoise", {"level": 0.6}, clean + 0.6 * normal, everywhere
    mask = mask_of("centre", shape, 0)
    yield "inpaint", {"mask": mask}, clean, np.broadcast_to(~mask[..., None], clean.shape)
    yield "superres", {"factor": 2}, np.asarray(operators.average(2, shape).forward(jnp.asarray(clean))), everywhere
    blurred = np.asarray(operators.blur(1.0, shape).forward(jnp.asarray(clean)))
    yield "deblur", {"width": 1.0, "level": 0.1}, blurred + 0.1 * normal, everywhere


def _ways(task, generator):
    """(method, options, evaluations) at 1 and at 35 evaluations; of an image-conditional network its own task's."""
    condition, flow = generator.run.condition, generator.process
    if condition:
        if task == condition.task:
            yield from ((CONDITIONAL, {"steps": steps}, 2 * steps - 1) for steps in (1, 18))
        return
    if task == "denoise":
        yield from (("matched", {"steps": steps}, steps) for steps in (1, 35))
    elif task == "inpaint":
        yield from (("repaint", {"steps": steps, "resample": 1}, steps) for steps in (1, 35))
    elif flow.is_gaussian:
        yield from (("pigdm", {"steps": steps}, steps) for steps in (1, 35))
    for sweeps, steps in ((7, 5), (60, 5)):
        yield "split_gibbs", {"sweeps": sweeps, "steps": steps}, sweeps * steps


def with_a_wrong_level(flags):
    """PSNR of E[y | x, σ] where the noise is not σ, of exact fields and of networks: a table and a picture."""
    from matplotlib.figure import Figure

    sets = pfgm_jax.load_data(pfgm_jax.default_config().data)
    clean = to_unit(np.concatenate([sets.test.images, sets.val.images])[: flags.images])
    fields = {D: pfgm_jax.exact_denoiser(to_unit(sets.train.images), D) for D in (8.0, 128.0, math.inf)}
    networks = {g.process.D: g.denoise for g in map(pfgm_jax.load, flags.runs)}
    colours = dict(zip(sorted({*fields, *networks}), plots.PALETTE, strict=False))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    both = (("exact field of the training digits", fields), ("trained networks", networks))
    for axes, (title, denoisers) in zip(panels, both, strict=True):
        for D, denoise in denoisers.items():
            values = np.array([_right_and_wrong(jax.jit(denoise), clean, SAID, ratio) for ratio in RATIOS])
            name = "∞" if math.isinf(D) else f"{D:g}"
            axes.plot(RATIOS, values[:, 0] - values[:, 1], marker="o", label=f"D = {name}", color=colours[D])
            for column, what in enumerate(("said level", "right level")):
                print(f"{title:36}D = {name:5}{what:12}" + "".join(f"{v:7.2f}" for v in values[:, column]), flush=True)
        axes.axhline(0, color="0.7", linewidth=1, zorder=0)
        axes.set(xlabel="true noise / noise that was said", title=title, xscale="log")
        axes.set_xticks(RATIOS, [f"{r:g}" for r in RATIOS])
        axes.minorticks_off()
        axes.legend()
    panels[0].set_ylabel("dB gained by saying the wrong level")
    plots.save_figure(figure, flags.picture)


SAID, RATIOS = 0.4, (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


def _right_and_wrong(denoise, clean, said, ratio):
    """PSNR in dB, means over images, of the posterior mean at the said level and at the noise's own."""
    noise_level = said * ratio
    x = clean + noise_level * np.random.default_rng(1).normal(size=clean.shape).astype(np.float32)
    levels = (said, noise_level)
    return [psnr(np.asarray(denoise(x, np.full(len(x), level, np.float32))), clean, 2).mean() for level in levels]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("exact", "network", "robust"))
    parser.add_argument("runs", nargs="*", default=["pretrained:digits"])
    parser.add_argument("--set", default="digits", choices=SIZES)
    parser.add_argument("--dir", default="")
    parser.add_argument("--D", default="128")
    parser.add_argument("--task", default="denoise,inpaint,superres")
    parser.add_argument("--methods", default="")
    parser.add_argument("--calls", type=int, default=1000, help="network: methods of more evaluations are left out")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--picture", default="docs/restoration_D.png")
    flags = parser.parse_args()
    {"exact": on_exact_fields, "network": on_networks, "robust": with_a_wrong_level}[flags.part](flags)


if __name__ == "__main__":
    main()
