"""Foreign checkpoints: every number is read as it was written, and nothing that a file asks for happens.

The files in `fixtures` were written by PyTorch 2.13 and EDM's `persistence.py`, of toy networks of our own whose arrays
are a function of their position; the others by `foreign_files.py`.
"""

import collections
import pathlib

import foreign_files as ff
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from pfgm_jax.errors import UserError
from pfgm_jax.storage import torch_files

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
A = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def load(tmp_path):
    def load(data, name="file.pt"):
        (tmp_path / name).write_bytes(data)
        return torch_files.read(tmp_path / name)

    return load


def equal(got, want):
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == np.asarray(array).dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)


def filled(shapes, dtype=np.float32):
    """The arrays of the fixtures: the i-th is its positions / 8 + i."""
    return {
        name: (np.arange(np.prod(shape)).reshape(shape) / 8 + i).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


TOY = filled(
    {
        "freqs": (4,),
        "blocks.in.weight": (4, 3),
        "blocks.in.bias": (4,),
        "blocks.out.weight": (3, 4),
        "blocks.out.bias": (3,),
        "plain.weight": (2, 2),
    }
)


def test_a_network_pickle_of_edm():
    tree = torch_files.read(FIXTURES / "network.pkl")
    equal(torch_files.state_dict(tree["ema"]), TOY)
    assert tree["ema"]["class"] == "Toy"
    assert tree["ema"]["state"]["sigma_data"] == 0.5
    assert tree["ema"]["state"]["_init_args"] == (4,)
    assert tree["ema"]["state"]["_modules"]["act"]["class"] == "torch.nn.modules.activation.SiLU"
    assert (tree["loss_fn"], tree["dataset_kwargs"]) == (None, {"path": "toy"})


def test_a_training_state_of_edm():
    tree = torch_files.read(FIXTURES / "training-state.pt")
    equal(torch_files.state_dict(tree["net"]), TOY)
    assert tree["optimizer_state"]["param_groups"][0]["lr"] == 0.001


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint-legacy.pth"])
def test_a_checkpoint_of_pfgm(name):
    tree = torch_files.read(FIXTURES / name)
    shapes = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}
    weights = filled(shapes | {"1.running_mean": (3,), "1.running_var": (3,)})
    equal(torch_files.state_dict(tree["model"]), weights | {"1.num_batches_tracked": np.array(6)})
    assert tree["ema"]["num_updates"] == 3
    for got, name in zip(tree["ema"]["shadow_params"], shapes, strict=True):
        np.testing.assert_array_equal(got, weights[name])
    np.testing.assert_array_equal(tree["optimizer"]["state"][1]["exp_avg"], np.full(3, np.float32(0.1)))
    assert tree["step"] == 3


def test_views_and_types_of_tensors():
    half = np.arange(6) / 4 - 0.5
    want = {
        "transposed": A.T, "part": A[1:, ::2], "half": half.astype(np.float16),
        "bfloat16": half.astype(ml_dtypes.bfloat16), "double": half, "long": np.arange(3) - 1,
        "flags": np.array([True, False]), "scalar": np.array(2.5, np.float32),
        "uint16": np.array([1, 65535], np.uint16),
    }  # fmt: skip
    equal(torch_files.read(FIXTURES / "odd.pt"), want)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle(load, protocol):
    tree = {
        "net": ff.persistent("Toy", _parameters={"w": ff.parameter(A)}, _buffers={"b": ff.tensor(A * 2, "1")}),
        "plain": [1, -(2**40), 2.5, True, False, None, "é\n", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {3: []}],
        "bytes": b"\x00\xff",
        "set": {"a"},
        "ordered": collections.OrderedDict(a=1),
        "numpy": [np.float64(0.5), np.int32(-7), np.bool_(True)],
        "arrays": [A.copy(), np.asfortranarray(A), A.astype(">i4"), np.zeros((0, 3)), np.array([True, False])],
        "device": ff.Call("torch.device", "cuda", 1),
        "dtype": ff.Global("torch.float32"),
        "size": ff.Call("torch.Size", [2, 3]),
        "easy": ff.Call("dnnlib.util.EasyDict", {"a": 1}),
    }
    got = load(ff.dumps(tree, protocol))
    equal(torch_files.state_dict(got["net"]), {"w": A, "b": A * 2})
    for name in ("plain", "bytes", "set", "ordered", "numpy"):
        assert got[name] == tree[name]
    assert [type(n) for n in got["numpy"]] == [float, int, bool]
    for array, want in zip(got["arrays"], tree["arrays"], strict=True):
        np.testing.assert_array_equal(array, want)
        assert array.flags.c_contiguous and array.dtype.isnative
    assert (got["device"], got["dtype"], got["size"], got["easy"]) == ("cuda:1", "torch.float32", (2, 3), {"a": 1})


@pytest.mark.parametrize("write", [ff.zipped, ff.legacy, ff.dumps])
def test_every_type_in_every_format(load, write):
    names = [name for name in ff.STORAGES if name != "bool"]
    arrays = {name: np.arange(5).astype(np.dtype(getattr(ml_dtypes, name, name))) for name in names}
    tensors = {name: ff.tensor(array, str(i)) for i, (name, array) in enumerate(arrays.items())}
    equal(load(write(tensors)), arrays)


@pytest.mark.parametrize("write", [ff.zipped, ff.legacy, ff.dumps])
def test_storages_are_shared_by_views(load, write):
    storage = ff.Storage(A)
    view = lambda offset, shape, stride: ff.tensor(A, offset=offset, shape=shape, stride=stride, storage=storage)
    tree = {
        "whole": view(0, (4, 6), (6, 1)),
        "transposed": view(0, (6, 4), (1, 6)),
        "corner": view(23, (1, 1), (6, 1)),
        "columns": view(1, (4, 2), (6, 3)),
        "expanded": view(7, (3, 2), (0, 1)),
        "one": view(9, (), ()),
        "none": view(24, (0, 6), (6, 1)),
    }
    want = [A, A.T, A[3:, 5:], A[:, 1:6:3], np.tile(A[1, 1:3], (3, 1)), A[1, 3], A[:0]]
    got = load(write(tree))
    equal(got, dict(zip(tree, want, strict=True)))
    assert all(array.flags.owndata and array.flags.writeable for array in got.values())


def test_truth_values_are_zero_or_one(load):
    storage = ff.Storage(np.array([0, 1, 2, 255], np.uint8), kind="Bool")
    got = load(ff.dumps({"t": ff.tensor(np.zeros(4, bool), storage=storage)}))["t"]
    assert got.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_safetensors(tmp_path):
    arrays = {"a.weight": A, "b": np.arange(3), "c": np.array([True, False]), "d": A.astype(ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "x.safetensors")
    got = torch_files.read(tmp_path / "x.safetensors")
    equal(dict(sorted(got.items())), arrays)
    assert torch_files.state_dict(got).keys() == arrays.keys()


def test_buffers_that_are_not_persistent_are_left_out(load):
    buffers = {"a": ff.tensor(A), "b": ff.tensor(A, "1"), "c": None}
    net = ff.persistent("Toy", _parameters={"w": None}, _buffers=buffers, _non_persistent_buffers_set={"b"})
    assert torch_files.state_dict(load(ff.dumps(net))).keys() == {"a"}


def test_state_dict_needs_one_network(load):
    tree = load(ff.dumps({"ema": ff.persistent("Toy", _parameters={"w": ff.tensor(A)}), "step": 3}))
    with pytest.raises(UserError, match="one module or a flat dict of arrays, not a dict; it holds ema, step"):
        torch_files.state_dict(tree)
    for wrong in (None, [], {}, A, {"class": "Toy", "state": {"_modules": {"x": 3}}}):
        with pytest.raises(UserError):
            torch_files.state_dict(wrong)


def test_modules_that_share_modules_do_not_name_endlessly_many_arrays(load):
    module = ff.module("torch.nn.modules.linear.Linear", _parameters={"w": ff.tensor(A)})
    for _ in range(20):
        module = ff.module("torch.nn.modules.container.Sequential", _modules={"0": module, "1": module})
    tree = load(ff.dumps(module))
    with pytest.raises(UserError, match="more than 100000 parts"):
        torch_files.state_dict(tree)


def test_names_of_arrays_are_bounded(load):
    module = ff.module("torch.nn.modules.linear.Linear", _parameters={"w": ff.tensor(A)})
    for _ in range(2):
        module = ff.module("torch.nn.modules.container.Sequential", _modules={"a" * 600: module})
    with pytest.raises(UserError, match="too deep"):
        torch_files.state_dict(load(ff.dumps(module)))
