"""PFGM++ against PFGM, EDM, DDPM, VP, VE and sub-VP on scikit-learn's digits: the same network, budget, data and seed.

    python -m pfgm_jax.main --mode=study --config=configs/study_digits.py:quick --workdir=studies/quick
    python -m pfgm_jax.main --mode=study --config=configs/study_digits.py --workdir=studies/digits

Arguments: images=200000 (of every run), few (the main pair, PFGM and EDM alone), quick (few,
2048 images, a network that has learnt nothing; it shows that everything runs), report (measure nothing, write the
report of what there is). The same command goes on where it was stopped.
"""

from pfgm_jax.config import parse_arg
from pfgm_jax.study import Study, Variant

DDPM = ("ancestral", 250)  # its published sampler
# A narrow network that takes no labels: what a weak network makes of a process.
WEAK = {
    "model.name": "ncsnv2",
    "model.channels": 8,
    "model.conditional": False,
    "train.label_dropout": 0.0,
}
VARIANTS = {
    "PFGM++ D=128": Variant(seeds=(0, 1)),
    "DDPM": Variant("process=ddpm", seeds=(0, 1), own=DDPM),
    "PFGM": Variant("process=pfgm", own=("rk45", 1e-4)),
    "EDM": Variant("process=edm"),
    "PFGM++ D=64": Variant("D=64"),
    "PFGM++ D=2048": Variant("D=2048"),
    "VP": Variant("process=vp", own=("euler_maruyama", 250)),
    "VE": Variant("process=ve", own=("predictor_corrector", 125)),
    "sub-VP": Variant("process=subvp", own=("euler_maruyama", 250)),
    "PFGM++ D=128, NCSNv2": Variant(changes=WEAK),
    "DDPM, NCSNv2": Variant("process=ddpm", changes=WEAK, own=DDPM),
}
FEW = ("PFGM++ D=128", "DDPM", "PFGM", "EDM")


def get_study(arg=None):
    args = parse_arg(arg, images=200_000, few=False, quick=False, report=False)
    variants = {name: VARIANTS[name] for name in FEW} if args.few or args.quick else VARIANTS
    if args.quick:
        return Study(
            title="Digits, a trial of the study",
            base="digits.py:conditional,quick",
            variants={name: Variant(variant.arguments) for name, variant in variants.items()},
            ways={"heun": (3, 6), "dpmpp_3m": (6,), "ancestral": (20,)},
            headline=("heun", 6),
            n=360, curve=180, features="domain", likelihood=8, latents=2, robustness=60, measure=not args.report,
        )  # fmt: skip
    return Study(
        title="Digits: Poisson flow against diffusion",
        base="digits.py:conditional",
        common={
            "train.images": args.images,
            "train.eval_every": args.images // 4,
            "train.save_every": args.images // 2,
        },
        variants=variants,
        ways={"heun": (3, 5, 9, 18), "dpmpp_3m": (5, 9, 18), "rk45": (1e-1, 1e-2, 1e-4), "ancestral": (50, 250)},
        headline=("heun", 18),
        n=1437, curve=720, features="domain", usefulness=3, likelihood=64, latents=4, robustness=720,
        measure=not args.report,
    )  # fmt: skip
