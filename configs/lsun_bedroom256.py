"""LSUN bedroom, 256×256, as published: PFGM and a score-based SDE.

    python -m pfgm_jax.main --config=configs/lsun_bedroom256.py:process=pfgm,network=ddpmpp --workdir=runs/bedroom \
        --config.data.dir=FOLDER

FOLDER holds the image files of LSUN, exported from its database (https://github.com/fyu/lsun), in train and val or all
in one; or lsun_bedroom256.npz with MedMNIST's six arrays. Where the pixels of image files exceed 4 GiB (all 3 033 042
have 596 GB) they are decoded as needed. `--config.data.name=lsun_church256` reads the churches alike.

| process | network | FID, evaluations as published | by |
|---|---|---|---|
| pfgm | ddpmpp | 13.66, about 122 | arXiv 2209.11178 |
| ve | ncsnpp | samples, no score | arXiv 2011.13456 |

Both networks are wider and shallower than on CIFAR-10: two blocks a level, over six levels (PFGM) or seven (VE, whose
NCSN++ sees and sums its images over a pyramid).

Arguments: process, network, ode (ve: sampled by RK45 at 1e-5).

Not as published: PFGM's code averages its loss over pixels for this data set alone; this package takes half the sum
everywhere, which for Adam is the same at an ε and a largest gradient as many times larger.
"""

from pfgm_jax import recipes
from pfgm_jax.config import parse_arg
from pfgm_jax.presets import preset

PUBLISHED = [("pfgm", "ddpmpp"), ("ve", "ncsnpp")]


def get_config(arg=None):
    args = parse_arg(arg, process="pfgm", network="ddpmpp", D=float, ode=False)
    config = recipes.start("lsun_bedroom256", 256, args, PUBLISHED)
    config.model.update(preset(args.network) | dict(blocks=2, dropout=0.0))
    if args.process == "pfgm":
        config.model.multipliers = (1, 1, 2, 2, 4, 4)
        recipes.song(config, batch=32, steps=2_400_000, lr=2e-5)
        recipes.pfgm(config, M=356, z_max=100, max_norm=30_000, near=0.1, large_batch=32)
        mean = (3 * 256**2 + 1) / 2
        config.optim.update(eps=1e-8 * mean, clip=1.0 * mean)
    else:
        config.model.update(multipliers=(1, 1, 2, 2, 2, 2, 2), encoder="skip", decoder="skip")
        recipes.song(config, batch=64, steps=2_400_000, decay=0.999)
        recipes.ve(config, sigma_max=378, snr=0.075, steps=2000)
    config.sample.update(n=16, batch=16, frames=0)
    if args.ode:
        recipes.ode(config)
    return config
