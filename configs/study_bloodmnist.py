"""PFGM++ against DDPM and the others on BloodMNIST at 28 px: the same network, budget, data and seed.

    python -m pfgm_jax.main --mode=study --config=configs/study_bloodmnist.py --workdir=studies/bloodmnist
    python -m pfgm_jax.main --mode=study --config=configs/study_bloodmnist.py:cpu,pair,runs=/path/of/runs --workdir=…

Arguments: cpu (the network `cpu_28` and what two CPU cores do: curves in the features of a classifier of the eight
classes, Inception for the headline alone), images=7500000 (of every run), pair (PFGM++ and DDPM alone), runs=FOLDER
(take FOLDER/bloodmnist_28_pfgmpp, …_ddpm, such as a queue trains, as they are; train none), n=3421 (the test set's
number), curve=1000 (samples of every other point), report (measure nothing, write the report of what there is).
"""

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
        arg, cpu=False, images=7_500_000, pair=False, runs="", n=3421, curve=1000, report=False
    )  # fmt: skip
    chosen = list(VARIANTS)[:2] if args.pair else list(VARIANTS)
    variants = {name: VARIANTS[name][1] for name in chosen}
    if args.runs:
        variants = {
            name: Variant(own=VARIANTS[name][1].own, run=f"{args.runs}/bloodmnist_28_{VARIANTS[name][0]}")
            for name in chosen
        }
    features = ("domain", "inception", "inception64") if args.cpu else ("inception", "inception64", "domain")
    return Study(
        title="BloodMNIST, 28 px: Poisson flow against diffusion",
        base="medmnist.py:dataset=bloodmnist,conditional" + (",cpu" if args.cpu else ""),
        common={"train.images": args.images},
        variants=variants,
        ways={"heun": (3, 5, 9, 18), "dpmpp_3m": (5, 9, 18, 36), "rk45": (1e-2, 1e-3), "ancestral": (50, 250)},
        headline=("dpmpp_3m", 18),
        n=args.n, curve=args.curve, features=features[0], also=features[1:], usefulness=3, measure=not args.report,
    )  # fmt: skip
