"""CIFAR-10, 32×32, as published: PFGM, PFGM++, EDM, score-based SDEs and DDPM.

    python -m pfgm_jax.main --config=configs/cifar10.py:process=pfgmpp,network=ncsnpp,D=128 --workdir=runs/cifar10

The official binary archive is downloaded to the cache (170 MB) and its MD5 checked, or read from
--config.data.dir=FOLDER, as cifar-10-binary.tar.gz, extracted, or as cifar10.npz.

| process | network | FID, IS, evaluations; bits/dim as published | by |
|---|---|---|---|
| pfgmpp | ncsnpp | 1.96 (D=64), 1.92 (D=128), 1.91 (D=2048); 1.74 (D=2048, conditional); 35 | arXiv 2302.04265 |
| pfgmpp | ddpmpp | its code's default, no score | its code |
| edm | ncsnpp | 1.98; 1.79 conditional; 35 | arXiv 2206.00364 |
| edm | ddpmpp | 1.97; 1.79 conditional; 35 | arXiv 2206.00364 |
| pfgm | ddpmpp | 2.48, 9.65, about 104; 3.19 | arXiv 2209.11178 |
| pfgm | ddpmpp_deep | 2.35, 9.68, about 110 | arXiv 2209.11178 |
| pfgm | ncsnpp | a config of its code, no score | its code |
| vp | ddpmpp | 2.55, 9.58, 1000; ode 3.93; 3.16 | arXiv 2011.13456 |
| vp | ddpmpp_deep | 2.41, 9.68, 1000; ode 3.08; 3.13 | arXiv 2011.13456 |
| vp | ncsnpp, ncsnpp_deep | configs of its code, no score | its code |
| subvp | ddpmpp | 2.61, 9.56, 1000; ode 3.16; 3.02 | arXiv 2011.13456 |
| subvp | ddpmpp_deep | 2.41, 9.57, 1000; ode 2.92; 2.99 | arXiv 2011.13456 |
| subvp | ncsnpp, ncsnpp_deep | configs of its code, no score | its code |
| ve | ncsnpp | 2.38, 9.83, 2000 | arXiv 2011.13456 |
| ve | ncsnpp_deep | 2.20, 9.89, 2000 | arXiv 2011.13456 |
| ve | ncsnv2 | a config of score_sde's code, no score there | arXiv 2006.09011 |
| ddpm | ddpmpp | 2.78, 9.64, 1000 | arXiv 2011.13456 |

Arguments: process, network, D=128 (pfgmpp only), conditional (published for edm and pfgmpp), ode (vp, subvp, ve:
sampled by RK45 at 1e-5).

EDM and PFGM++ augment with probability 0.12 and augmentation labels; all others mirror half of the images.

Not as published: `ve` with `ncsnv2` was trained on 232 levels and sampled by annealed Langevin steps alone; here time
is continuous and a predictor step follows the five Langevin steps of each level. DDPM's own network (FID 3.24) is not
built.
"""

from pfgm_jax import recipes
from pfgm_jax.config import parse_arg
from pfgm_jax.presets import preset

DEEP = ("ddpmpp", "ddpmpp_deep", "ncsnpp", "ncsnpp_deep")
PUBLISHED = [
    *(("pfgmpp", network) for network in ("ncsnpp", "ddpmpp")),
    *(("edm", network) for network in ("ncsnpp", "ddpmpp")),
    *(("pfgm", network) for network in ("ddpmpp", "ddpmpp_deep", "ncsnpp")),
    *(("vp", network) for network in DEEP),
    *(("subvp", network) for network in DEEP),
    *(("ve", network) for network in ("ncsnpp", "ncsnpp_deep", "ncsnv2")),
    ("ddpm", "ddpmpp"),
]


def get_config(arg=None):
    args = parse_arg(arg, process="pfgmpp", network="ncsnpp", D=float, conditional=False, ode=False)
    config = recipes.start("cifar10", 32, args, PUBLISHED)
    config.model.update(network(args.process, args.network) | dict(conditional=args.conditional))
    name = args.process
    if name in ("edm", "pfgmpp"):
        recipes.edm(config)
    elif name == "pfgm":
        recipes.song(config, decay=0.999 if args.network == "ncsnpp" else 0.9999)
        recipes.pfgm(config, M=291, z_max=40, max_norm=3000, near=5.0, large_batch=4096)
    else:
        deep = args.network.endswith("deep")
        recipes.song(config, steps=950_000 if deep else 1_300_000, decay=0.999 if name == "ve" else 0.9999)
        if name == "ve":
            recipes.ve(config, sigma_max=50, snr=0.16)
        else:
            recipes.vp(config)
    if args.network == "ncsnv2":
        recipes.song(config, lr=1e-4, warmup=0, clip=float("inf"), decay=0.999)
        recipes.ve(config, sigma_max=50, snr=0.176, steps=232, corrector_steps=5)
    if args.ode:
        recipes.ode(config)
    return config


def network(process, name):
    """Fields of config.model: EDM's widths for EDM and PFGM++, score_sde's for all others."""
    if process in ("edm", "pfgmpp") or name.endswith("deep") or name == "ncsnv2":
        fields = preset(name)
    elif process == "pfgm" and name == "ncsnpp":
        fields = preset("ncsnpp_pfgm")
    else:
        fields = preset(f"{name}_song")
    if process in ("vp", "subvp"):  # NCSN++ too has the positional embedding of 999 t there
        fields.update(embedding="positional", noise_channels=128)
    return fields
