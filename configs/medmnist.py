"""PFGM++ (arXiv 2302.04265) on any 2-D MedMNIST set (arXiv 2110.14795): D = 128, batch 512, 7.5 million images.

    python -m pfgm_jax.main --config=configs/medmnist.py:dataset=bloodmnist,size=28 --workdir=runs/bloodmnist

Arguments: dataset=bloodmnist, size=28|64|128|224, process=pfgmpp|pfgm|edm|ve|vp|subvp|ddpm, D=128 (pfgmpp only),
network=ddpmpp|ncsnpp|adm|ncsnv2|dit_cpu|… (one of `presets.PRESETS`; without, one that fits the size), conditional
(class-conditional, with 10 % label dropout), balanced (train on every class as often), augment (as EDM does, with
probability 0.12; the network gets augmentation labels), remat (recompute in the backward pass what would not fit in
memory, at 128 and 224 px), cpu (a network and budget that two CPU cores can train in less than an hour), quick (a smoke
test).

At 28 and 224 px, which are 7/8 of the powers of two that published networks are for, these attend at 7/8 of their
resolutions.

EDM's schedule for 200 million images ramps the learning rate over 10 million; a run of 7.5 million would end before
that, so the ramp here is its twentieth, as 10 is of 200.
"""

from pfgm_jax import recipes
from pfgm_jax.config import default, parse_arg
from pfgm_jax.errors import UserError
from pfgm_jax.presets import preset

SIZES = (28, 64, 128, 224)


def get_config(arg=None):
    args = parse_arg(
        arg,
        dataset="bloodmnist",
        size=28,
        process="pfgmpp",
        D=float,
        network="",
        conditional=False,
        balanced=False,
        augment=False,
        remat=False,
        cpu=False,
        quick=False,
    )
    if args.size not in SIZES:
        there = f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"
        raise UserError(f"size={args.size} is not possible: MedMNIST comes at {there} px")
    config = default()
    config.data.update(name=args.dataset, size=args.size)
    config.process.update(name=args.process, D=recipes.asked_D(args.process, args.D))
    kind = "cpu" if args.cpu or args.quick else "medical"
    fields = recipes.published_network(args.network, args.size) if args.network else preset(f"{kind}_{args.size}")
    config.model.update(fields | dict(remat=args.remat))
    config.optim.update(lr=1e-3, lr_batch=512, warmup=375_000, clip=1.0)
    config.train.update(images=7_500_000, batch=512, ema_halflife=500_000, log_every=25_600)
    config.sample.update(n=64)
    recipes.variations(config, args)
    if args.process == "pfgm":
        config.train.large_batch = 4096
    if args.cpu:
        recipes.two_cores(config)
    if args.quick:
        recipes.smoke_test(config)
    return config
