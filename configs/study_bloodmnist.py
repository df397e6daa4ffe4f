"""PFGM++ against DDPM and the others on BloodMNIST at 28 px: the same network, budget, data and seed.

    python -m pfgm_jax.main --mode=study --config=configs/study_bloodmnist.py --workdir=studies/bloodmnist
    python -m pfgm_jax.main --mode=study --config=configs/study_bloodmnist.py:cpu,few,runs=/path/of/runs --workdir=…

Arguments: cpu (the network `cpu_28` and what two CPU cores do: curves in the features of a classifier of the eight
classes, Inception for the headline alone, against the test images; shorter solves, fewer classifiers), images=7500000
(of every run), few (PFGM++, DDPM, EDM and PFGM alone), pair (PFGM++ and DDPM alone), runs=FOLDER (take
FOLDER/bloodmnist_28_pfgmpp, …_ddpm, such as a queue trains, as they are; train none), n=3421 (the test set's number),
curve=1000 (samples of every other point), report (measure nothing, write the report of what there is).
"""

import dataclasses

from pfgm_jax.config import parse_arg
from pfgm_jax.study import Study, Variant

DDPM = ("ancestral", 250)
VARIANTS = {
    "PFGM++ D=128": ("pfgmpp", Variant()),
    "DDPM": ("ddpm", Variant("process=ddpm", own=DDPM)),
    "EDM": ("edm", Variant("process=edm")),
    "PFGM": ("pfgm", Variant("process=pfgm", own=("rk45", 1e-4))),
    "PFGM++ D=64": ("pfgmpp_64", Variant("D=64")),
    "PFGM++ D=2048": ("pfgmpp_2048", Variant("D=2048")),
    "VP": ("vp", Variant("process=vp", own=("euler_maruyama", 250))),
    "VE": ("ve", Variant("process=ve", own=("predictor_corrector", 125))),
    "sub-VP": ("subvp", Variant("process=subvp", own=("euler_maruyama", 250))),
}


def get_study(arg=None):
    args = parse_arg(
        arg, cpu=False, images=7_500_000, few=False, pair=False, runs="", n=3421, curve=1000, report=False
    )  # fmt: skip
    variants = dict(list(VARIANTS.items())[: 2 if args.pair else 4 if args.few else None])
    if args.runs:
        runs = {name: f"{args.runs}/bloodmnist_28_{folder}" for name, (folder, _) in variants.items()}
        variants = {name: Variant(own=variant.own, run=runs[name]) for name, (_, variant) in variants.items()}
    else:
        variants = {name: variant for name, (_, variant) in variants.items()}
    study = Study(
        title="BloodMNIST, 28 px: Poisson flow against diffusion",
        base="medmnist.py:dataset=bloodmnist,conditional",
        common={"train.images": args.images},
        variants=variants,
        ways={"heun": (3, 5, 9, 18), "dpmpp_3m": (5, 9, 18, 36), "rk45": (1e-2, 1e-3), "ancestral": (50, 250)},
        headline=("dpmpp_3m", 18),
        n=args.n, curve=args.curve, features="inception", also=("inception64", "domain"), usefulness=3,
        measure=not args.report,
    )  # fmt: skip
    return on_cpu(study) if args.cpu else study


def on_cpu(study):
    """What two CPU cores measure of a Study in some hours: the test images are a third of the training images."""
    return dataclasses.replace(
        study,
        base=study.base + ",cpu",
        variants={name: shorter(variant) for name, variant in study.variants.items()},
        ways={"heun": (9, 18), "dpmpp_3m": (5, 9), "ancestral": (50,)},
        features="domain", also=("inception",), split="test", usefulness=2, likelihood=16,
    )  # fmt: skip


def shorter(variant):
    """The Variant with 100 steps of its own sampler, or at a tolerance of 1e-3."""
    solver, number = variant.own or ("", 0)
    return dataclasses.replace(variant, own=(solver, min(number, 100) if number > 1 else 1e-3) if solver else ())
