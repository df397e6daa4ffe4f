"""What the recipes share: the settings of score_sde (arXiv 2011.13456), PFGM (2209.11178) and EDM (2206.00364, with
PFGM++, 2302.04265), and those of a small machine, each as changes to a config. The files in configs/ hold what is of
one data set.

The papers count in steps and sum or average a loss over pixels; configs count in images and average. The conversions
are made here, so that a recipe's updates are the published ones.
"""

import math

from pfgm_jax.config import D_of, default
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.presets import attend_alike, preset


def asked_D(name, D):
    """`D_of` for the D of a config's arguments, None where nothing was said; UserError for one that is not possible."""
    if D is None:
        return D_of(name)
    if D_of(name, D) != D:
        raise UserError(
            f"D={D:g} is for process=pfgmpp, and process={name} has D = {D_of(name):g}: leave one of them out"
        )
    return D


def start(data, size, args, published):
    """The config of a published pair of args.process and args.network, for images of `size` px.

    Raises:
      UserError: a pair that was not published, with those that were.
    """
    if (args.process, args.network) not in published:
        processes = dict.fromkeys(process for process, _ in published)
        networks = {p: [network for process, network in published if process == p] for p in processes}
        known = args.process in networks
        hint = nearest(args.network, networks[args.process]) if known else nearest(args.process, networks)
        pairs = "; ".join(f"process={p}: {', '.join(names)}" for p, names in networks.items())
        raise UserError(
            f"process={args.process},network={args.network} was not published for {data}; there are {pairs}{hint}"
        )
    config = default()
    config.data.update(name=data, size=size)
    config.process.update(name=args.process, D=asked_D(args.process, args.D))
    return config


def halflife(decay, batch):
    """An exponential moving average's half-life in images, from its decay per step."""
    return round(-batch * math.log(2) / math.log(decay))


def song(config, batch=128, steps=1_300_000, lr=2e-4, warmup=5_000, clip=1.0, decay=0.9999):
    """score_sde's optimiser, flips and run length, in steps of `batch` images, which PFGM keeps."""
    config.optim.update(lr=lr, lr_batch=batch, warmup=warmup * batch, beta1=0.9, beta2=0.999, eps=1e-8, clip=clip)
    config.train.update(batch=batch, images=steps * batch, ema_halflife=halflife(decay, batch), ema_ramp=0.0, flip=True)
    _every(config, 50_000 * batch)


def edm(config, batch=512, images=200_000_000, lr=1e-3):
    """EDM's optimiser, augmentation, noise levels and sampler, which PFGM++ keeps.

    EDM's loss is a sum over pixels, here a mean, which for Adam is the same at an ε as many times smaller.
    """
    config.process.update(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, P_mean=-1.2, P_std=1.2)
    pixels = 3 * config.data.size**2
    config.optim.update(lr=lr, lr_batch=batch, warmup=10_000_000, beta1=0.9, beta2=0.999, eps=1e-8 / pixels)
    config.train.update(batch=batch, images=images, ema_halflife=500_000, ema_ramp=0.05, augment=0.12)
    config.sample.update(solver="heun", steps=18, grid="edm", rho=7.0)
    _every(config, 2_500_000)


def pfgm(config, M, z_max, max_norm, near, large_batch):
    """PFGM's process with the constants it was run with, its solver, and its EMA, which starts with a ramp.

    The decay is at most (1 + k)/(10 + k) after k steps: a half-life of (ln 2)/9 of the images seen.
    """
    config.process.update(
        M=M, sigma_min=1e-3, sigma_max=float(z_max), max_norm=float(max_norm), gamma=5.0, near=near, restrict_M=True
    )
    config.train.update(large_batch=large_batch, ema_ramp=math.log(2) / 9)
    config.sample.update(solver="rk45", rtol=1e-4, atol=1e-4)


def ve(config, sigma_max, snr, steps=1000, corrector_steps=1):
    """The VE SDE and its sampler; `sigma_max` as published for images in [0, 1], which here are twice as wide."""
    config.process.update(sigma_min=2 * 0.01, sigma_max=2.0 * sigma_max)
    config.sample.update(
        solver="predictor_corrector",
        predictor="reverse_diffusion",
        steps=steps,
        snr=snr,
        corrector_steps=corrector_steps,
    )


def vp(config):
    """The VP and sub-VP SDEs and DDPM, with their samplers."""
    config.process.update(beta_min=0.1, beta_max=20.0, T=1000, betas="linear")
    own = dict(solver="ancestral", variance="large") if config.process.name == "ddpm" else dict(solver="euler_maruyama")
    config.sample.update(**own, steps=1000)


def ode(config):
    """score_sde's sampling by the probability flow in place of the SDE."""
    if config.process.name not in ("vp", "subvp", "ve"):
        raise UserError(f"process={config.process.name} has one published solver; ode is for vp, subvp and ve")
    config.sample.update(steps=None, predictor=None, snr=None, corrector_steps=None)
    config.sample.update(solver="rk45", rtol=1e-5, atol=1e-5)


def published_network(name, size):
    """Fields of config.model: a published network, made for 32 or 64 px, for images of `size` px.

    It attends as it would at the next power of two: at 28 px where it does at 32.
    """
    return attend_alike(preset(name), 2 ** math.ceil(math.log2(max(size, 1))), size)


def class_conditional(config):
    """A class-conditional network with 10 % label dropout, which can be sampled by class and guided."""
    config.model.conditional, config.train.label_dropout = True, 0.1


def variations(config, args):
    """The arguments conditional, balanced and augment (as EDM does)."""
    if args.conditional:
        class_conditional(config)
    if args.balanced:
        config.train.order = "balanced"
    if args.augment:
        config.train.augment = 0.12


def two_cores(config):
    """A budget that two CPU cores can train in less than an hour, at 28 px; U-Nets by Muon (benchmarks/RESULTS.md)."""
    config.optim.update(warmup=6_400, lr_batch=64)
    if config.model.name == "unet":
        config.optim.update(name="muon", lr=1e-2)
    config.train.update(
        images=150_000,
        batch=min(config.train.batch, 64),
        ema_halflife=10_000,
        log_every=1_024,
        eval_every=16_384,
        sample_every=16_384,
        save_every=16_384,
        eval_images=256,
    )


def smoke_test(config):
    """A few steps of a narrow network, and four samples."""
    two_cores(config)
    config.train.update(images=128, batch=16, log_every=64, eval_every=64, sample_every=128, save_every=64)
    config.train.update(eval_images=32, large_batch=min(config.train.large_batch, 64))
    config.model.channels = 8
    config.sample.update(n=4, frames=4, solver="heun", steps=4)


def _every(config, images):
    """Checkpoints and samples every so many images, the losses five times as often."""
    config.train.update(save_every=images, sample_every=images, eval_every=images // 5, log_every=51_200)
