"""Weights made elsewhere as runs: checkpoints of EDM, PFGM++ (.pkl, .pt), score_sde and PFGM (.pth), and packaged ones.

A checkpoint is read by `torch_files`, which executes nothing in it. EDM's files say what network they hold; the others
hold arrays alone, and a config file says it for them.
"""

import math
import os
import pathlib
import re
import shutil

import jax
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, run_record, stored_run
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError, counted
from pfgm_jax.exchange import torch_networks
from pfgm_jax.storage import safetensors, torch_files
from pfgm_jax.storage.torch_files.limits import short

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
_NETWORKS = {"SongUNet": "unet", "DhariwalUNet": "adm"}
# Arguments that say what the wrapper says too, or matter in training alone.
_KNOWN_ARGUMENTS = ("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim", "label_dropout",
                    "channel_mult_noise", "channel_mult_emb")  # fmt: skip
_LARGEST = 65536  # of any number in a file: more pixels, channels or classes than any network's


def import_run(source, workdir, config=None, overrides=()):
    """Makes a run in `workdir`, config.json and EMA weights, from the checkpoint file `source`.

    Args:
      source: .pkl or .pt of EDM or PFGM++; .pth of score_sde or PFGM; .safetensors with the names of either; or
        `pretrained:NAME`, packaged weights, which are copied as they are.
      config: the config that the checkpoint was trained with; needed but for EDM's and PFGM++'s files.
      overrides: {"section.field": text} on top. process.D makes PFGM++ of a file that does not say whether it is.

    Returns:
      The lines that say what was imported.

    Raises:
      UserError: a file that is refused, weights that do not fit the network, something that the file does not say, or a
        folder that holds a run already or cannot be written.
    """
    workdir, name, overrides = pathlib.Path(workdir), pathlib.Path(source).name, dict(overrides)
    if os.path.exists(workdir / "config.json"):
        raise UserError(f"{workdir} holds a run already; import into another workdir")
    if str(source).startswith("pretrained:"):
        if config is not None or overrides:
            raise UserError(f"{source} says what network it holds: leave out the config")
        return _copied(source, workdir)
    _refuse_runs(pathlib.Path(source))
    tree = torch_files.read(source)
    module = next((tree[key] for key in ("ema", "net") if _is_module(tree.get(key))), None) if _is_dict(tree) else None
    if module is not None:
        if config is not None:
            raise UserError(f"{source} says what network it holds: leave out the config")
        try:
            config, derived = _from_edm(module, tree.get("loss_fn"), name)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError):  # of a file that EDM's code did not write
            raise UserError(f"{name} lacks the description of the network that EDM's files have") from None
        if config.process.name == "edm" and {"process.D"} == overrides.keys() & {"process.D", "process.name"}:
            config.process.name = "pfgmpp"
        state, kind, step = _plain(torch_files.state_dict(module["state"]["_modules"]["model"])), "edm", 0
        if config.model.blocks * len(config.model.multipliers) > len(state):
            raise UserError(f"{name}: {counted(len(state), 'weight')} cannot fill its network")
    else:
        if config is None:
            raise UserError(f"{source} holds only arrays: describe their network with a config file")
        state, step = _averaged(tree)
        state = _plain(state)
        kind = _kind(state, source)
        side, classes = config.data.size, _classes(config, state, kind)
        derived = {"shape": [side, side, _channels(state, name)], "classes": classes}
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    config.model.stored_frequencies = config.model.embedding == "fourier"
    config.train.augment = 0.0  # the layer of augmentation labels is left out: it adds nothing to a sample
    if math.isnan(config.process.D):
        raise UserError(f"{name} does not record its D: give it, such as process.D=128, or inf for EDM")
    config_rules.check(config)
    derived = _derive(config, derived, step) | {"imported": name}
    run = run_lib.make_run(config, derived)
    params = jax.device_get(torch_networks.from_torch(run.model, state, kind, config.data.size))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        safetensors.save(workdir / safetensors.EXPORTED, params, {"imported": name})
        run_record.save(workdir, config, derived)  # last: it makes the folder a run
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror or error}") from None
    flow, counts = run.process, sum(leaf.size for leaf in jax.tree.leaves(params))
    classes = f", class-conditional: {counted(len(derived['classes']), 'class')}" if config.model.conditional else ""
    return (
        f"imported   {source} into {workdir}\n"
        f"process    {flow.name}: D = {flow.D:g}, σ from {flow.sigma_max:.4g} to {flow.sigma_min:.4g}\n"
        f"network    {config.model.name}: {counts:,} parameters, images {'×'.join(map(str, derived['shape']))}{classes}"
    )


def _copied(source, workdir):
    """Copies the packaged weights `pretrained:NAME` to `workdir`, a run that can be sampled and measured there."""
    there = stored_run.folder(source)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name in (safetensors.EXPORTED, "config.json"):  # last: it makes the folder a run
            shutil.copyfile(there / name, workdir / name)
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror or error}") from None
    return f"imported   {source} into {workdir}"


def _refuse_runs(source):
    """Raises UserError for a run, an exported folder or its weights: they need no import."""
    folder = source.parent if source.name == safetensors.EXPORTED else source
    if (folder / "config.json").is_file():
        raise UserError(f"{source} needs no import: pfgm_jax.load({str(folder)!r}) opens it")
    if source.is_dir():
        raise UserError(f"{source} is a folder: give the checkpoint file in it (.pkl, .pt, .pth or .safetensors)")


def _is_dict(tree):
    return isinstance(tree, dict)


def _is_module(tree):
    return _is_dict(tree) and tree.keys() == {"class", "state"} and _is_dict(tree["state"].get("_modules"))


def _plain(state):
    """A state_dict by the network's own names, without the layer of augmentation labels.

    Those are 0 in sampling, where their layer, which has no bias, adds nothing.
    """
    state = {torch_networks.bare(name): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith("map_augment.")}


def _from_edm(module, loss, name):
    """(config, what of `derived` the file says) of a preconditioned network of EDM or PFGM++."""
    wrapper, state = module["class"].rpartition(".")[2], module["state"]
    if wrapper not in _PROCESSES:
        raise UserError(f"networks of class {wrapper} are not supported; those that are: {', '.join(_PROCESSES)}")
    network = state["_modules"]["model"]["class"].rpartition(".")[2]
    if network not in _NETWORKS:
        raise UserError(f"networks of class {network} are not supported; those that are: {', '.join(_NETWORKS)}")
    config = config_lib.default()
    config.model.name = _NETWORKS[network]
    _set_network(config.model, _arguments(state["_modules"]["model"]["state"], name))
    side, channels, labels = (_whole(state[key], key) for key in ("img_resolution", "img_channels", "label_dim"))
    config.model.conditional = labels > 0
    config.data.name, config.data.size = "imported", side

    config.process.name, config.process.D = _PROCESSES[wrapper], math.inf
    loss = loss["state"] if _is_dict(loss) and _is_dict(loss.get("state")) else {}
    if wrapper == "EDMPrecond":
        _set_edm(config.process, state, loss)
    elif wrapper == "VEPrecond":
        # PFGM++'s code knows these arguments, and its wrapper does not keep them.
        if _is_dict(state.get("_init_kwargs")) and state["_init_kwargs"].get("pfgmpp"):
            raise UserError(f"{name} is PFGM++ with VEPrecond, which is not supported; EDMPrecond is")
        config.process.sigma_min, config.process.sigma_max = float(state["sigma_min"]), float(state["sigma_max"])
    else:
        if state["M"] != 1000:
            raise UserError(f"{name} has {state['M']} noise levels (M); only VPPrecond with 1000 is supported")
        config.process.beta_min = float(state["beta_min"])
        config.process.beta_max = config.process.beta_min + float(state["beta_d"])
    return config, {"shape": [side, side, channels], "classes": [str(i) for i in range(labels)] or ["images"]}


def _set_edm(c, state, loss):
    """Sets config.process for a network in EDMPrecond: EDM's, or PFGM++'s with the D that it was trained at."""
    c.sigma_data = float(state["sigma_data"])
    c.P_mean, c.P_std = float(loss.get("P_mean", -1.2)), float(loss.get("P_std", 1.2))
    if _is_dict(loss.get("opts")) and loss["opts"].get("lsun"):
        c.P_mean += math.log(380 / 80)  # PFGM++'s loss scales σ by this for LSUN
    # PFGM++'s wrapper says whether it is one, and its loss has a D in any case. Wrappers of before said neither.
    if state.get("pfgmpp", "D" in loss):
        c.name = "pfgmpp"
        c.D = float(loss.get("D", state.get("D", math.nan))) if "pfgmpp" in state else math.nan


def _arguments(state, name):
    """The arguments that a network of EDM was made with, which its file records."""
    arguments = state.get("_init_kwargs")
    if not _is_dict(arguments) or state.get("_init_args"):
        raise UserError(f"{name} does not record the arguments of its network (_init_kwargs)")
    known = {published for published, *_ in (*_ARGUMENTS.values(), *_SONG.values())} | set(_KNOWN_ARGUMENTS)
    if unknown := sorted(map(str, arguments.keys() - known)):
        raise UserError(f"{name}: its network's argument {unknown[0]} is not supported")
    return arguments


def _set_network(c, arguments):
    """Sets config.model from the arguments of SongUNet or DhariwalUNet."""
    adm = c.name == "adm"
    fields = {ours: (published, defaults[adm]) for ours, (published, *defaults) in _ARGUMENTS.items()}
    for ours, (published, default) in (fields | ({} if adm else _SONG)).items():
        value = arguments.get(published, default)
        if isinstance(default, list):
            value = tuple(_whole(item, published) for item in value)
        elif isinstance(default, int):
            value = _whole(value, published)
        c[ours] = value
    c.keep_width = not adm
    c.attention = c.attention or (0,)  # the deepest level attends in any case, as here where there is attention at all
    c.noise_channels = c.channels * _whole(arguments.get("channel_mult_noise", 1), "channel_mult_noise")
    c.embedding_channels = c.channels * _whole(arguments.get("channel_mult_emb", 4), "channel_mult_emb")


def _whole(value, name):
    """A whole number that a file says; UserError for one that no network has."""
    if not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise UserError(f"the file says {name} = {short(str(value))}, which is not a valid network size")
    return value


def _averaged(tree):
    """(state_dict with the moving averages in it, step) of a checkpoint of score_sde or PFGM, or a flat state_dict."""
    if not (_is_dict(tree) and _is_dict(tree.get("model"))):
        return torch_files.state_dict(tree), 0
    state, ema = torch_files.state_dict(tree["model"]), tree.get("ema")
    if _is_dict(ema) and isinstance(ema.get("shadow_params"), list):
        # Averages are a list, in the order of the parameters that are trained.
        fixed, averages = re.compile(r"(^|\.)(sigmas|W)$"), ema["shadow_params"]
        trained = [name for name in state if not (fixed.search(name) and state[name].ndim == 1)]
        if len(trained) != len(averages):
            there, wanted = counted(len(averages), "moving average"), counted(len(trained), "parameter")
            raise UserError(f"{there} for {wanted}: they belong to different networks")
        for name, average in zip(trained, averages, strict=True):
            if np.shape(average) != state[name].shape:
                raise UserError(f"the moving average of {name} is {np.shape(average)}, not {state[name].shape}")
        state |= dict(zip(trained, averages, strict=True))
    return state, tree["step"] if isinstance(tree.get("step"), int) else 0


def _kind(state, source):
    """Which of `torch_networks.KINDS` has tensors of these names."""
    for kind, (first, _) in torch_networks.KINDS.items():
        if any(re.search(first, name) for name in state):
            return kind
    raise UserError(f"{source} holds no supported network, but {short(', '.join(list(state)[:3]))}, …")


def _classes(config, state, kind):
    """Names of the classes that a network without a wrapper is conditioned on."""
    if not config.model.conditional:
        return ["images"]
    label = state.get("map_label.weight")
    if kind != "edm" or label is None or label.ndim != 2:
        raise UserError("this network takes no labels: leave model.conditional=False")
    return [str(i) for i in range(label.shape[1])]


def _channels(state, name):
    """Channels of the images: those that the first convolution reads."""
    inputs = [value.shape[1] for value in state.values() if value.ndim == 4]
    if not inputs:
        raise UserError(f"{name} holds no convolution, so it is not a supported network")
    return min(inputs)


def _derive(config, facts, step):
    """The derived numbers that sampling needs, from what the file and the config say."""
    c, N = config.process, math.prod(facts["shape"])
    if c.name == "pfgm" and (c.M is None or c.sigma_max is None):
        raise UserError("PFGM's M and z_max come from data: give process.M and process.sigma_max")
    if c.name == "ve" and c.sigma_max is None:
        raise UserError("VE's σ_max comes from data: give process.sigma_max")
    derived = facts | {
        "N": N,
        "label_counts": [1] * len(facts["classes"]),
        "sigma_data": 0.5 if c.sigma_data is None else c.sigma_data,
        "M": c.M or 0,
        "sigma_max": 80.0 if c.sigma_max is None else c.sigma_max,
        "lr": config.optim.lr,
        "step": step,
    }
    return derived | {"sigma_max": run_lib.make_process(config, derived).sigma_max}
