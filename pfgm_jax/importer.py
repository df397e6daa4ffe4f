"""Other people's checkpoints as runs: those of EDM, PFGM++ (.pkl, .pt), score_sde and PFGM (.pth).

The file is read by `foreign`, which executes nothing in it. EDM's files say what network they hold; the others hold
arrays alone, and a config file says it for them.
"""

import math
import pathlib
import re

import jax

from pfgm_jax import build, convert, foreign, weights
from pfgm_jax import config as config_lib
from pfgm_jax.errors import UserError

# Fields of config.model, and how EDM's networks call and default them: (SongUNet, DhariwalUNet).
_ARGUMENTS = {
    "channels": ("model_channels", 128, 192),
    "multipliers": ("channel_mult", [1, 2, 2, 2], [1, 2, 3, 4]),
    "blocks": ("num_blocks", 4, 3),
    "attention": ("attn_resolutions", [16], [32, 16, 8]),
    "dropout": ("dropout", 0.10, 0.10),
}
_SONG = {
    "embedding": ("embedding_type", "positional"),
    "encoder": ("encoder_type", "standard"),
    "decoder": ("decoder_type", "standard"),
    "resample_filter": ("resample_filter", [1, 1]),
}
_PROCESSES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}


def import_run(source, workdir, config=None, overrides=()):
    """Makes a run in `workdir`, config.json and EMA weights, from the checkpoint file `source`.

    Args:
      source: .pkl or .pt of EDM or PFGM++; .pth of score_sde or PFGM; .safetensors with the names of either.
      config: the config that the checkpoint was trained with; needed but for EDM's and PFGM++'s files.
      overrides: {"section.field": text} on top, such as process.D of a PFGM++ training state, which does not say it.

    Returns:
      The lines that say what was imported.

    Raises:
      UserError: a file that is refused, weights that do not fit the network, or something that the file does not say.
    """
    tree = foreign.read(source)
    module = next((tree[key] for key in ("ema", "net") if _is_module(tree.get(key))), None) if _is_dict(tree) else None
    if module is not None:
        if config is not None:
            raise UserError(f"{source} says what network it holds: leave out --config")
        config, derived = _from_edm(module, tree.get("loss_fn"))
        state, kind, step = foreign.state_dict(module["state"]["_modules"]["model"]), "edm", 0
        # Labels of augmentation are 0 in sampling, where their layer, which has no bias, adds nothing.
        state = {name: value for name, value in state.items() if not name.startswith("map_augment.")}
    else:
        if config is None:
            raise UserError(f"{source} holds arrays alone: say what network they are of with --config=FILE")
        state, step = _averaged(tree)
        kind, derived = _kind(state, source), {"classes": ["images"]}
        if config.model.conditional:
            raise UserError("score_sde's networks know no labels: leave model.conditional at False")
        derived["shape"] = [config.data.size, config.data.size, _channels(state)]
    for key, text in dict(overrides).items():
        config_lib.override(config, key, text)
    config_lib.check(config)
    derived = _derive(config, derived, step)
    model = build.make_model(config, derived)
    params = jax.device_get(convert.from_torch(model, state, kind, config.data.size))
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        config_lib.save_run(workdir, config, derived)
    except OSError as error:
        raise UserError(f"cannot write to --workdir={workdir}: {error.strerror or error}") from None
    weights.save(pathlib.Path(workdir, weights.EXPORTED), params, {"imported": pathlib.Path(source).name})
    flow, counts = build.make_process(config, derived), sum(leaf.size for leaf in jax.tree.leaves(params))
    classes = f", told one of {len(derived['classes'])} classes" if config.model.conditional else ""
    return (
        f"imported   {source} into {workdir}\n"
        f"process    {flow.name}: D = {flow.D:g}, σ from {flow.sigma_max:.4g} to {flow.sigma_min:.4g}\n"
        f"network    {config.model.name}: {counts:,} parameters, images {'×'.join(map(str, derived['shape']))}{classes}"
    )


def _is_dict(tree):
    return isinstance(tree, dict)


def _is_module(tree):
    return _is_dict(tree) and tree.keys() == {"class", "state"} and "_modules" in tree["state"]


def _from_edm(module, loss):
    """(config, what of `derived` the file says) of a preconditioned network of EDM or PFGM++."""
    wrapper, state = module["class"].rpartition(".")[2], module["state"]
    if wrapper not in _PROCESSES:
        raise UserError(f"networks of class {wrapper} are not known; there are {', '.join(_PROCESSES)}")
    arguments = _arguments(state["_modules"]["model"])
    adm = state["_modules"]["model"]["class"].endswith("DhariwalUNet")
    config = config_lib.default()
    for field, (theirs, *defaults) in _ARGUMENTS.items():
        value = arguments.get(theirs, defaults[adm])
        config.model[field] = tuple(value) if isinstance(value, list | tuple) else value
    config.model.name = "adm" if adm else "unet"
    if not adm:
        for field, (theirs, default) in _SONG.items():
            value = arguments.get(theirs, default)
            config.model[field] = tuple(value) if isinstance(value, list | tuple) else value
        config.model.keep_width = True
    config.model.noise_channels = config.model.channels * arguments.get("channel_mult_noise", 1)
    config.model.embedding_channels = config.model.channels * arguments.get("channel_mult_emb", 4)
    config.model.conditional = state["label_dim"] > 0
    config.data.name, config.data.size = "imported", state["img_resolution"]
    loss = loss["state"] if _is_dict(loss) and "state" in loss else {}
    config.process.name, config.process.D = _PROCESSES[wrapper], math.inf
    if wrapper == "EDMPrecond":
        config.process.sigma_data = float(state["sigma_data"])
        config.process.P_mean, config.process.P_std = float(loss.get("P_mean", -1.2)), float(loss.get("P_std", 1.2))
        if loss.get("pfgmpp") or state.get("pfgmpp"):
            config.process.name, config.process.D = "pfgmpp", float(loss.get("D", state.get("D", math.nan)))
    elif wrapper == "VEPrecond":
        config.process.sigma_min, config.process.sigma_max = 0.02, 100.0
    else:
        config.process.beta_min, config.process.beta_max = state["beta_min"], state["beta_min"] + state["beta_d"]
    classes = [str(i) for i in range(state["label_dim"])] or ["images"]
    side = state["img_resolution"]
    return config, {"shape": [side, side, state["img_channels"]], "classes": classes}


def _arguments(module):
    """The arguments that a network of EDM was made with, which its file records."""
    return dict(module["state"].get("_init_kwargs") or {})


def _averaged(tree):
    """(state_dict with the moving averages in it, step) of a checkpoint of score_sde or PFGM, or a flat state_dict."""
    if not (_is_dict(tree) and _is_dict(tree.get("model"))):
        return foreign.state_dict(tree), 0
    state, ema = foreign.state_dict(tree["model"]), tree.get("ema")
    if _is_dict(ema) and "shadow_params" in ema:
        # Averages are a list, in the order of the parameters that are trained.
        fixed = re.compile(r"(^|\.)(sigmas|W)$")
        trained = [name for name in state if not (fixed.search(name) and state[name].ndim == 1)]
        if len(trained) != len(ema["shadow_params"]):
            raise UserError(f"{len(ema['shadow_params'])} moving averages for {len(trained)} parameters")
        state |= dict(zip(trained, ema["shadow_params"], strict=True))
    return state, int(tree.get("step", 0))


def _kind(state, source):
    """Which of `convert.KINDS` has tensors of these names."""
    for kind, (first, _) in convert.KINDS.items():
        if any(re.search(first, re.sub(r"^((module|model)\.)+", "", name)) for name in state):
            return kind
    raise UserError(f"{source} holds no network that is known: {', '.join(list(state)[:3])}, …")


def _channels(state):
    """Channels of the images: those that the first convolution reads."""
    return min(value.shape[1] for value in state.values() if value.ndim == 4)


def _derive(config, facts, step):
    """The derived numbers that sampling needs, from what the file and the config say."""
    c, N = config.process, math.prod(facts["shape"])
    if c.name == "pfgm" and (c.M is None or c.sigma_max is None):
        raise UserError("the data are not here: say PFGM's M and z_max with process.M and process.sigma_max")
    if c.name == "ve" and c.sigma_max is None:
        raise UserError("the data are not here: say VE's σ_max with process.sigma_max")
    if math.isnan(c.D):
        raise UserError("the file does not say PFGM++'s D: say it with --config.process.D=…")
    derived = facts | {
        "N": N,
        "label_counts": [1] * len(facts["classes"]),
        "sigma_data": 0.5 if c.sigma_data is None else c.sigma_data,
        "M": c.M or 0,
        "sigma_max": 80.0 if c.sigma_max is None else c.sigma_max,
        "lr": config.optim.lr,
        "step": step,
    }
    return derived | {"sigma_max": build.make_process(config, derived).sigma_max}
