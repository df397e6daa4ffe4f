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
        images=2_000_000, batch=512, large_batch=1024, ema_halflife=50_000, log_every=51_200, eval_every=500_000,
        sample_every=500_000, save_every=1_000_000,
    )  # fmt: skip
    config.sample.update(n=4000, batch=4000)
    return config
