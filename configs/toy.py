"""HEADER"""

from pfgm_jax.config import D_of, default, parse_arg
from pfgm_jax.models import preset


def get_config(arg=None):
    args = parse_arg(arg, dataset="swissroll", process="pfgmpp", D=128.0, quick=False)
    config = default()
    config.data.update(name=args.dataset, size=1)
    config.process.update(name=args.process, D=D_of(args.process, args.D))
    config.model.update(preset("mlp"))
    config.optim.update(lr=3e-3, lr_batch=512, warmup=51_200, decay="cosine", beta2=0.99, clip=1.0)
    config.train.update(
        images=1_500_000, batch=512, ema_halflife=50_000, log_every=51_200, eval_every=375_000, sample_every=375_000,
        save_every=750_000,
    )  # fmt: skip
    if args.process == "pfgm":
        # γ = 5 at N = 3072 is 0.09 √N. The formulas, made for large N, give z_max = 1.7, and a prior half of which is clipped.
        config.process.update(gamma=0.13, near=0.13, sigma_max=10.0, M=390, max_norm=1000.0)
        config.train.update(batch=256, large_batch=256)
        config.model.log_noise = True
    config.sample.update(n=4000, batch=4000)
    return config
