"""Networks by name: fields of config.model, for `config.model.update(**preset("ncsnpp"))`.

Each sets all the fields that its network has but `conditional`, `remat` and `dtype`, so that one may follow another.
Nothing here imports JAX, so that a config file is read at once.
"""

from pfgm_jax.errors import UserError, nearest, quoted

# DDPM++ and NCSN++ as EDM has them for 32 px (arXiv 2206.00364, table 7).
_DDPMPP = dict(
    name="unet", channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), encoder="standard",
    decoder="standard", resample_filter=(1, 1), keep_width=True, embedding="positional", stored_frequencies=False,
    log_noise=False, noise_channels=128, embedding_channels=512, dropout=0.13,
)  # fmt: skip
_NCSNPP = _DDPMPP | dict(encoder="residual", resample_filter=(1, 3, 3, 1), embedding="fourier", noise_channels=256)
# As score_sde and PFGM have them (arXiv 2011.13456, appendix H; arXiv 2209.11178, appendix C).
_SONG = dict(multipliers=(1, 2, 2, 2), dropout=0.1)
_DEEP = _SONG | dict(blocks=8)
# Small enough for the few thousand images of a medical data set.
_MEDICAL = _DDPMPP | dict(
    channels=64, multipliers=(1, 2, 2, 4), blocks=2, keep_width=False, noise_channels=0, embedding_channels=256,
    dropout=0.1,
)  # fmt: skip
_CPU = _MEDICAL | dict(channels=32, multipliers=(1, 2, 2), blocks=1, embedding_channels=128, dropout=0.0)

PRESETS = {
    "ddpmpp": _DDPMPP,
    "ncsnpp": _NCSNPP,
    "ddpmpp_song": _DDPMPP | _SONG,
    "ncsnpp_song": _NCSNPP | _SONG,
    "ddpmpp_deep": _DDPMPP | _DEEP,
    "ncsnpp_deep": _NCSNPP | _DEEP,
    # PFGM gives the network z itself; its NCSN++ takes ln z.
    "ncsnpp_pfgm": _NCSNPP | _SONG | dict(log_noise=True),
    # EDM's for 64 px (arXiv 2206.00364, table 7).
    "adm": dict(
        name="adm", channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_channels=64,
        noise_channels=192, embedding_channels=768, dropout=0.1,
    ),
    # Below 96 px, to 128 and to 256 (arXiv 2006.09011, appendix A).
    "ncsnv2": dict(name="ncsnv2", channels=128, multipliers=(1, 2, 2, 2)),
    "ncsnv2_128": dict(name="ncsnv2", channels=128, multipliers=(1, 2, 2, 4, 4)),
    "ncsnv2_256": dict(name="ncsnv2", channels=128, multipliers=(1, 2, 2, 2, 4, 4)),
    # For points in the plane: minutes on a CPU.
    "mlp": dict(
        name="mlp", channels=128, blocks=3, embedding="positional", log_noise=False, noise_channels=32,
        embedding_channels=64, dropout=0.0,
    ),
    # A patch transformer: on a CPU more images a second than `cpu_28`, and behind it at equal time.
    "dit_cpu": dict(
        name="dit", channels=192, blocks=8, patch=4, head_channels=64, embedding="positional", log_noise=False,
        noise_channels=0, embedding_channels=256, dropout=0.0,
    ),
    # Attention at the two coarsest levels of at most 32 px (one on a CPU): it costs the side's fourth power.
    "medical_28": _MEDICAL | dict(multipliers=(2, 2, 2), blocks=3, attention=(14, 7)),
    "medical_64": _MEDICAL | dict(attention=(16, 8)),
    "medical_128": _MEDICAL | dict(attention=(32, 16)),
    "medical_224": _MEDICAL | dict(attention=(28,)),
    "cpu_28": _CPU | dict(attention=(7,)),
    "cpu_64": _CPU | dict(attention=(16,)),
    "cpu_128": _CPU | dict(attention=(32,)),
    "cpu_224": _CPU | dict(attention=()),
}  # fmt: skip


def level_sizes(size, levels):
    """(H, W) of each level: halved upwards each time.

    Raises:
      UserError: images smaller than 8 px, or so many levels that the smallest would be under 2 px.
    """
    if min(size) < 8:
        raise UserError(
            f"the U-Net takes images of 8 px or more, got {size[0]}×{size[1]}; for points use model.name=mlp"
        )
    sizes = [tuple(size)]
    for _ in range(levels - 1):
        sizes.append(tuple(-(-s // 2) for s in sizes[-1]))
    if min(sizes[-1]) < 2:
        raise UserError(
            f"{levels} levels (model.multipliers) are too many for {size[0]}×{size[1]} px: the last would be one pixel"
        )
    return sizes


def attend_alike(fields, made_for, size):
    """Fields of a U-Net for images of `size` px that attends at the levels at which it does at `made_for` px.

    Levels are halved upwards, so that 28 px has 14 where 32 has 16. A resolution that is no level at `made_for` px
    stays, and with it the attention in the middle of the network.
    """
    if "attention" not in fields:
        return fields
    there, here = ([side for side, _ in level_sizes((s, s), len(fields["multipliers"]))] for s in (made_for, size))
    here = dict(zip(there, here, strict=True))
    return fields | dict(attention=tuple(here.get(side, side) for side in fields["attention"]))


def preset(name):
    """Fields of config.model for the network called `name`.

    Raises:
      UserError: no such name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown network {quoted(name)}; choose from {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    return dict(PRESETS[name])
