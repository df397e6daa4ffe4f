"""Published PyTorch weights as parameters of the networks here: `from_torch(model, state, kind)`.

Each parameter knows from which tensors it is made, by the names that the published module has; what is left over on
either side is an error. PyTorch keeps convolutions as OIHW and linear layers as (out, in); here they are HWIO and
(in, out).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pfgm_jax import models
from pfgm_jax.errors import UserError, nearest

# Buffers that hold no weights: the taps of the resampling filters, and score_sde's table of noise levels.
BUFFERS = re.compile(r"(^|\.)(resample_filter|sigmas)$")


def from_torch(model, state, kind, size=32):
    """Parameters of `model` from a published network's state_dict.

    Args:
      model: a network with the published architecture (see `models.PRESETS`).
      state: {name: array}, a state_dict as NumPy arrays; leading "module." and "model." do not matter.
      kind: "edm" for SongUNet and DhariwalUNet of EDM and PFGM++, "score_sde" for NCSNpp of score_sde and PFGM,
        "ncsnv2" for score_sde's NCSNv2.
      size: side of the images, which places the attention; EDM's names tell it.

    Returns:
      The tree that `model.apply({"params": tree}, …)` takes, float32. With a Fourier embedding it holds the published
      frequencies too, which `models.init` leaves out.

    Raises:
      UserError: an unknown kind; tensors that are missing, left over, or of another shape.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of weights {kind!r}; choose from {', '.join(KINDS)}{nearest(kind, KINDS)}")
    state = {bare(name): np.asarray(value) for name, value in state.items()}
    _check_filters(model, state)
    state = {name: value for name, value in state.items() if not BUFFERS.search(name)}
    first, resolve = KINDS[kind]
    convolutions = [value.shape for name, value in state.items() if re.search(first, name) and value.ndim == 4]
    if not convolutions:
        raise UserError(f"these are not weights of kind {kind!r}: no tensor is called {first}")
    channels = min(shape[1] for shape in convolutions)  # the first one's, which sees the image
    size = max((int(s) for name in state for s in re.findall(r"^enc\.(\d+)x", name)), default=size)
    tree = jax.eval_shape(lambda: models.init(model, (size, size, channels)))
    wanted = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}
    if getattr(model, "embedding", "") == "fourier":
        wanted["fourier", "frequencies"] = ((model.noise_channels or model.channels) // 2,)

    source, used, params, missing, misshapen = resolve(model, wanted, state), set(), {}, [], []
    for path, shape in wanted.items():
        names, make = source(path)
        used |= set(names)
        absent = [name for name in names if name not in state]
        if absent:
            missing += absent
            continue
        value = make(*(state[name] for name in names))
        if value.shape != shape:
            misshapen.append(f"{names[0]} {state[names[0]].shape} for {'/'.join(path)} {shape}")
        params[path] = jnp.asarray(value, jnp.float32)
    for what, names in (
        ("missing", missing),
        ("of another shape", misshapen),
        ("left over", sorted(set(state) - used)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"the weights do not fit this network: {what} {', '.join(names[:3])}{more}")
    return traverse_util.unflatten_dict(params)


def bare(name):
    """A tensor's name without the wrappers that its network was in."""
    return re.sub(r"^((module|model)\.)+", "", name)


def _check_filters(model, state):
    """The filters that come with the weights must be the model's."""
    taps = np.asarray(getattr(model, "resample_filter", (1, 1)), float)
    square = np.outer(taps, taps) / taps.sum() ** 2
    for name, value in state.items():
        if name.endswith("resample_filter") and not (value.size == square.size and np.allclose(value, square)):
            raise UserError(f"the weights do not fit this network: {name} is not of resample_filter={tuple(taps)}")


def _kernel(weight):
    """A weight of a convolution or linear layer, or of a norm, in our layout."""
    return {4: lambda w: w.transpose(2, 3, 1, 0), 2: lambda w: w.T, 1: lambda w: w}[weight.ndim](weight)


def _dense(weight):
    """A 1×1 convolution's or linear layer's weight [O, I(, 1, 1)] as [I, O]."""
    return weight.reshape(weight.shape[:2]).T


def _swap(kernel):
    """Rows of a layer that takes (cos, sin) for those of one that takes (sin, cos), or the reverse."""
    return np.roll(kernel, len(kernel) // 2, axis=0)


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _features(model, convention, path, make):
    """`make`, for a layer that reads or adds to the features of the noise level, in the published order of sin and cos.

    Args:
      convention: "sin" or "cos", the half that the published network puts first.
    """
    ours = "cos" if getattr(model, "embedding", "positional") == "fourier" else "sin"
    if ours == convention:
        return make
    if path == ("embed0", "kernel"):
        return lambda *tensors: _swap(make(*tensors))
    # What a label adds lies in the output: its columns.
    return lambda *tensors: _swap(make(*tensors).T).T


# ---- EDM


def _edm(model, wanted, state):
    """SongUNet and DhariwalUNet: names by resolution, "enc.32x32_block0.conv0.weight"."""
    sides = sorted({int(s) for name in state for s in re.findall(r"^(?:enc|dec)\.(\d+)x", name)}, reverse=True)
    adm = isinstance(model, models.ADM)
    top = {"embed0": "map_layer0", "embed1": "map_layer1", "label": "map_label", "augment": "map_augment"}
    inner = {"norm": "norm2"}  # inside attention; qkv and proj have their names

    def module(path):
        """Ours to theirs, without the last name, that of the leaf."""
        name, rest = path[0], [inner.get(part, part) for part in path[1:-1] if part != "attention"]
        if name in top:
            return top[name]
        if name in ("norm_out", "conv_out") and adm:
            return {"norm_out": "out_norm", "conv_out": "out_conv"}[name]
        if name in ("norm_out", "conv_out", "conv_in"):
            half, level, part = "enc" if name == "conv_in" else "dec", 0, f"aux_{name[:4]}"
            part = "conv" if name == "conv_in" else part
        elif name in ("mid_in", "mid_out"):
            half, level, part = "dec", -1, "in0" if name == "mid_in" else "in1"
        else:
            half, level, part = re.fullmatch(r"(enc|dec)(\d+)_(\w+)", name).groups()
            aux = {"aux": f"aux_{model.encoder}", "norm": "aux_norm", "conv": "aux_conv"} if not adm else {}
            part = aux.get(part, part)
        side = sides[int(level)] if int(level) < len(sides) else "?"
        return ".".join([half, f"{side}x{side}_{part}", *rest])

    def source(path):
        if path == ("fourier", "frequencies"):
            return ("map_noise.freqs",), lambda freqs: freqs
        name, leaf = module(path), path[-1]
        if path[-2] == "qkv":
            heads = _heads(model, wanted[*path[:-1], "bias"][0] // 3)
            return (f"{name}.{LEAVES[leaf]}",), lambda a: _by_kind(_dense(a) if a.ndim > 1 else a, heads)
        if path[-2] == "proj" and leaf == "kernel":
            return (f"{name}.weight",), _dense
        if path[0] == "embed0" and leaf == "bias" and not adm and model.num_labels:
            # The published label layer has a bias, which every example gets: the next layer's bias takes it in.
            names = (f"{name}.bias", f"{name}.weight", "map_label.bias")
            return names, lambda bias, weight, label: bias + weight @ label
        make = _kernel
        if path[0] == "augment" or (path[0] == "label" and not adm) or path == ("embed0", "kernel"):
            make = _features(model, "cos" if adm else "sin", path, make)
        return (f"{name}.{LEAVES[leaf]}",), make

    return source


def _heads(model, width):
    return max(1, width // model.head_channels) if isinstance(model, models.ADM) else 1


def _by_kind(a, heads):
    """EDM's order (head, channel, which of q, k, v) of the last axis as ours (which, head, channel)."""
    split = a.reshape(*a.shape[:-1], heads, -1, 3)
    return np.moveaxis(split, -1, -3).reshape(a.shape)


# ---- score_sde and PFGM


def _score_sde(model, wanted, state):
    """NCSNpp: modules in one list, numbered in the order of their making."""
    present, levels = {path[0] for path in wanted}, len(model.multipliers)
    order = ["fourier"] if model.embedding == "fourier" else []
    order += ["embed0", "embed1", "conv_in"]

    def block(name):
        return [name, f"{name}/attention"] if any(path[:2] == (name, "attention") for path in wanted) else [name]

    for level in range(levels):
        for i in range(model.blocks):
            order += block(f"enc{level}_block{i}")
        order += [name for name in (f"enc{level + 1}_down", f"enc{level + 1}_aux") if name in present]
    order += [*block("mid_in"), "mid_out"]
    for level in reversed(range(levels)):
        for i in range(model.blocks + 1):
            order += block(f"dec{level}_block{i}")
        order += [name for name in (f"dec{level}_norm", f"dec{level}_conv", f"dec{level - 1}_up") if name in present]
    order += ["norm_out", "conv_out"]
    number = {name: i for i, name in enumerate(order)}
    parts = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1",
             "skip": "Conv_2", "norm": "GroupNorm_0", "proj": "NIN_3"}  # fmt: skip

    def source(path):
        leaf = LEAVES.get(path[-1])
        if path[0] == "fourier":
            return (f"all_modules.{number['fourier']}.W",), lambda w: w
        if path[0] not in number:
            raise UserError(f"{path[0]} has no counterpart in score_sde's networks, which take no labels")
        if "attention" in path:
            prefix, part = f"all_modules.{number[path[0] + '/attention']}", path[2]
            if part == "norm":
                return (f"{prefix}.GroupNorm_0.{leaf}",), _kernel
            names = ["NIN_0", "NIN_1", "NIN_2"] if part == "qkv" else ["NIN_3"]
            letter = "W" if leaf == "weight" else "b"
            return tuple(f"{prefix}.{name}.{letter}" for name in names), lambda *a: np.concatenate(a, axis=-1)
        prefix = f"all_modules.{number[path[0]]}"
        if path[0].endswith("_aux"):
            return (f"{prefix}.{'Conv2d_0' if model.encoder == 'residual' else 'Conv_0'}.{leaf}",), _kernel
        make = _features(model, "sin", path, _kernel) if path == ("embed0", "kernel") else _kernel
        return (".".join([prefix, *(parts[part] for part in path[1:-1]), leaf]),), make

    return source


# ---- NCSNv2


def _ncsnv2(model, wanted, state):
    """NCSNv2: stages res1 … downwards, and refine1 … upwards."""
    named = lambda prefix: {name.split(".")[0] for name in state if re.match(prefix + r"\d", name)}
    # The network for 256 px has res31 above res4 and refine31, which works on its output, below refine3.
    stages = sorted(named("res"))
    refines = sorted(named("refine"), key=lambda name: (name[:7], -len(name)))[::-1]
    blocks = {"norm1": "normalize1", "norm2": "normalize2", "skip": "shortcut"}
    top = {"conv_in": "begin_conv", "norm_out": "normalizer", "conv_out": "end_conv"}

    def module(path):
        name = path[0]
        if name in top:
            return top[name]
        kind, i, j = re.fullmatch(r"(stage|refine)(\d+)(?:_block(\d+))?", name).groups()
        listed = stages if kind == "stage" else refines
        published = listed[int(i)] if int(i) < len(listed) else f"{kind}?"
        if kind == "stage":
            return f"{published}.{j}.{blocks.get(path[1], path[1])}"
        part = re.sub(r"^units(\d)$", r"adapt_convs.\1", path[1]).replace("units_out", "output_convs")
        part = re.sub(r"^fuse(\d)$", r"msf.convs.\1", part)
        part = re.sub(r"^pool(\d)$", r"crp.convs.\1", part)
        inner = re.sub(r"conv(\d)_(\d)", lambda m: f".{int(m[1]) + 1}_{int(m[2]) + 1}_conv", "".join(path[2:-1]))
        return f"{published}.{part}{inner}"

    def source(path):
        prefix, leaf = module(path), LEAVES.get(path[-1], path[-1])
        # A convolution that is followed by averaging is wrapped once more.
        name = f"{prefix}.conv.{leaf}" if f"{prefix}.conv.{leaf}" in state else f"{prefix}.{leaf}"
        return (name,), _kernel

    return source


# kind: (the name of the first convolution's weight, which tells the image's channels; path -> (tensors, what to make)).
KINDS = {
    "edm": (r"^enc\.\d+x\d+_conv\.weight$", _edm),
    "score_sde": (r"^all_modules\.\d+\.weight$", _score_sde),
    "ncsnv2": (r"^begin_conv\.weight$", _ncsnv2),
}
