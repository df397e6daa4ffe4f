"""Poisson flow models on points in the plane: minutes on a laptop's CPU.

    python -m pfgm_jax.main --config=configs/toy.py --workdir=runs/toy
    python -m pfgm_jax.main --config=configs/toy.py:dataset=checkerboard,D=2 --workdir=runs/toy_D2
    python -m pfgm_jax.main --mode=sample --workdir=runs/toy

samples/step_*.png has the training points on its left and samples on its right; --mode=sample adds the animation of the
way from the prior. A run takes some 80 seconds of one CPU core's time, pictures and compilation included. Histograms of
2000 samples of the swissroll (16 × 16 fields, Σ |p − q|) then differ from those of held-out points by 0.31 (D=2), 0.26
(edm) and 0.27 (pfgm); real points differ by 0.22, one Gaussian by 1.36.

A point is an image of one pixel with two channels, so data.size is 1. The target is the posterior mean of 256 points:
at small D the clean point, seen through noise of heavy tails, is a target of hardly bounded variance.

PFGM's constants are not those of its formulas, which are made for thousands of dimensions: at N = 2 they give
z_max = 1.7, where the data do not look like a single charge yet, and a prior of which half is clipped to one circle.
Here z_max is 10 and a tenth of the prior is clipped at 10 z_max; γ and `near` are 0.05, the scale of the details.

Arguments: dataset=swissroll|moons|rings|checkerboard|gaussians, process=pfgmpp|pfgm|edm|ve|vp|subvp|ddpm, D=128 (pfgmpp
only), quick (a smoke test of seconds).
"""

from pfgm_jax import recipes
from pfgm_jax.config import default, parse_arg
from pfgm_jax.presets import preset


def get_config(arg=None):
    args = parse_arg(arg, dataset="swissroll", process="pfgmpp", D=float, quick=False)
    config = default()
    config.data.update(name=args.dataset, size=1)
    config.process.update(name=args.process, D=recipes.asked_D(args.process, args.D))
    config.model.update(preset("mlp"))
    config.optim.update(lr=2e-3, lr_batch=256, warmup=25_600, decay="cosine", beta2=0.99, clip=1.0)
    config.train.update(
        images=614_400,
        batch=256,
        large_batch=256,
        ema_halflife=50_000,
        log_every=51_200,
        eval_every=204_800,
        sample_every=307_200,
        save_every=307_200,
    )
    config.sample.update(n=2000, batch=2000)
    if args.process == "pfgm":
        config.process.update(M=312, sigma_max=10.0, max_norm=100.0, gamma=0.05, near=0.05)
        config.model.log_noise = True
    if args.quick:
        config.model.update(channels=32, blocks=1)
        config.train.update(
            images=16_384,
            batch=64,
            large_batch=64,
            log_every=2_048,
            eval_every=8_192,
            sample_every=16_384,
            save_every=8_192,
            eval_images=64,
        )
        config.optim.warmup = 2_048
        config.sample.update(n=100, batch=100, frames=8, solver="heun", steps=8)
    return config
