"""CelebA, 64×64, as published: PFGM and score-based SDEs.

    python -m pfgm_jax.main --config=configs/celeba64.py:process=pfgm,network=ddpmpp --workdir=runs/celeba64 \
        --config.data.dir=FOLDER

| process | network | FID, evaluations as published | by |
|---|---|---|---|
| pfgm | ddpmpp | 3.68, about 110 | arXiv 2209.11178 |
| ve | ncsnpp | a config of score_sde's code, no score there | arXiv 2011.13456 |
| ve | ncsnv2 | a config of score_sde's code, no score there | arXiv 2006.09011 |

The 162 770 training images, cropped to the central 140 px and resized. FOLDER holds CelebA's own files, the unzipped
img_align_celeba and list_eval_partition.txt, or celeba64.npz with MedMNIST's six arrays. They take 2.5 GB of memory.

Arguments: process, network, ode (ve: sampled by RK45 at 1e-5).

Not as published: `ve` was trained on discrete levels (ncsnpp on 1000, whose number is its input through a positional
embedding; ncsnv2 on 500, sampled by annealed Langevin steps alone). Here time is continuous, the input of NCSN++ is
ln σ through the Fourier features it has on CIFAR-10, and a predictor step follows the Langevin steps of each level.
"""

from pfgm_jax import recipes
from pfgm_jax.config import parse_arg
from pfgm_jax.presets import preset

PUBLISHED = [("pfgm", "ddpmpp"), ("ve", "ncsnpp"), ("ve", "ncsnv2")]


def get_config(arg=None):
    args = parse_arg(arg, process="pfgm", network="ddpmpp", D=float, ode=False)
    config = recipes.start("celeba64", 64, args, PUBLISHED)
    config.model.update(**preset(args.network if args.network == "ncsnv2" else f"{args.network}_song"))
    if args.process == "pfgm":
        recipes.song(config)
        recipes.pfgm(config, M=291, z_max=60, max_norm=6000, near=1.0, large_batch=512)
    elif args.network == "ncsnpp":
        recipes.song(config, decay=0.999)
        recipes.ve(config, sigma_max=90, snr=0.17)
    else:
        recipes.song(config, lr=1e-4, warmup=0, clip=float("inf"), decay=0.999)
        recipes.ve(config, sigma_max=90, snr=0.128, steps=500, corrector_steps=5)
    config.sample.update(n=36, batch=64)
    if args.ode:
        recipes.ode(config)
    return config
