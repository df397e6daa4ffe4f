"""Other people's checkpoints as runs: what they compute is what PyTorch computed; what a file leaves out is asked for.

`fixtures/imported.npz` holds outputs of the published classes in PyTorch on weights of a recipe (`fixtures/imported.py`
made it); the files are written here, in the real formats, with the same weights.
"""

import collections
import json

import foreign_files as ff
import jax
import numpy as np
import pytest
from fixtures import imported
from flax import traverse_util
from safetensors.numpy import save_file

import pfgm_jax
from configs import digits
from pfgm_jax import config_file
from pfgm_jax.errors import UserError
from pfgm_jax.exchange import import_run, torch_networks
from pfgm_jax.training import loop

FIGURES = imported.load()
PFGM = """from pfgm_jax.config import default
from pfgm_jax import models

def get_config(arg=None):
    config = default()
    config.data.update(name="imported", size=8)
    config.process.update(name="pfgm", D=1.0, M=291, sigma_max=40.0)
    config.train.large_batch = 4096
    config.model.update(**models.preset("ncsnpp_pfgm"))
    config.model.update(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), noise_channels=32,
                        embedding_channels=64)
    return config
"""


def recipe(case):
    return {name: imported.weight(name, shape) for name, shape in FIGURES[case]["shapes"].items()}


def snapshot(case, state=None, loss=None, wrapper=None, arguments=None, **attributes):
    """What EDM's and PFGM++'s training writes: a wrapper and its network, both with their source text."""
    made = FIGURES[case]
    arguments = {"_init_args": (), "_init_kwargs": made["arguments"]} if arguments is None else arguments
    model = ff.network(made["network"], recipe(case) if state is None else state, **arguments)
    empty = {name: collections.OrderedDict() for name in ("_parameters", "_buffers")}
    net = ff.persistent(
        wrapper or made["wrapper"], **empty, _modules=collections.OrderedDict(model=model), **made["attributes"]
        | attributes,
    )  # fmt: skip
    return {"ema": net, "loss_fn": ff.persistent("EDMLoss", **(loss or {"P_mean": -1.2, "P_std": 1.2}))}


def checkpoint(shadow=None, state=None):
    """What PFGM and score_sde save: the network as it is, and a list of moving averages."""
    made = FIGURES["pfgm"]
    arrays = {name.removeprefix("module."): shape for name, shape in made["shapes"].items()}
    arrays = {name: imported.weight(name, shape) for name, shape in arrays.items()}
    raw = {f"module.{name}": a if name.endswith(".W") and a.ndim == 1 else 0 * a for name, a in arrays.items()}
    raw["module.sigmas"] = np.ones(10, np.float32)
    averages = [arrays[name.removeprefix("module.")] for name in made["trained"]] if shadow is None else shadow
    tensors = lambda values: [ff.tensor(a, f"{i}") for i, a in enumerate(values)]
    raw = raw if state is None else state
    named = dict(zip(raw, tensors(raw.values()), strict=True))
    # Storages of one file have one numbering.
    averages = [ff.tensor(a, f"ema{i}") for i, a in enumerate(averages)]
    return {"optimizer": {}, "model": named, "ema": {"decay": 0.99, "shadow_params": averages}, "step": 7}


@pytest.fixture
def write(tmp_path):
    def write(content, name="network.pkl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else ff.dumps(content))
        return path

    return write


@pytest.fixture
def pfgm_config(tmp_path):
    (tmp_path / "pfgm.py").write_text(PFGM)
    return config_file.load_config(str(tmp_path / "pfgm.py"), {})


def close(got, want, tolerance=1e-4):
    """Within float32's round-off of a few hundred layers, relative to the largest value of each image."""
    want = np.asarray(want)
    scale = np.abs(want).max(axis=tuple(range(1, want.ndim)), keepdims=True)
    np.testing.assert_allclose(got / scale, want / scale, atol=tolerance)


def same_as_torch(made, case):
    x, denoise = imported.inputs(1, imported.SIGMAS), jax.jit(made.denoise)
    close(denoise(x, imported.SIGMAS), FIGURES[f"{case}/none"])
    if f"{case}/told" in FIGURES:
        close(denoise(x, imported.SIGMAS, np.full(4, -1)), FIGURES[f"{case}/none"])
        close(denoise(x, imported.SIGMAS, imported.TOLD), FIGURES[f"{case}/told"])


def output(made):
    """What the network itself says at PFGM's (x, z)."""
    network = jax.jit(lambda params, x, z: made.model.apply({"params": params}, x, z))
    return network(made.params, imported.inputs(1, imported.Z), imported.Z)


def samples(made):
    images, _ = made.sample(jax.random.key(0), 8, solver="heun", steps=3)
    assert images.shape == (8, 8, 8, 1) and images.dtype == np.uint8 and images.std() > 1


@pytest.mark.parametrize("case", ["edm", "vp", "ve"])
def test_networks_of_edm_denoise_as_in_pytorch(write, tmp_path, case):
    out = import_run.import_run(write(snapshot(case)), tmp_path / "run")
    assert out.count("\n") == 2 and "images 8×8×1" in out
    made = pfgm_jax.load(tmp_path / "run")
    same_as_torch(made, case)
    flow = made.process
    if case == "vp":
        assert flow.name == "vp" and flow.schedule.beta_max == pytest.approx(15.1)
    if case == "ve":
        assert (flow.name, flow.sigma_max) == ("ve", pytest.approx(80.0)) and made.derived["classes"] == ["images"]


def test_imported_frequencies_stay_what_they_are_in_training(write, tmp_path):
    import_run.import_run(write(snapshot("ve")), tmp_path / "source")
    source = pfgm_jax.load(tmp_path / "source")
    config = digits.get_config("process=ve,quick")
    config.model.update(source.config.model)
    config.train.update(init=str(tmp_path / "source"), batch=8, images=16, eval_images=8, ema_halflife=1)
    config.optim.update(weight_decay=0.5, lr=1.0, lr_batch=8, warmup=0, decay="constant")
    config.sample.update(n=2, solver="heun", steps=2)
    loop.train(config, str(tmp_path / "run"))
    before, after = (traverse_util.flatten_dict(g.params) for g in (source, pfgm_jax.load(tmp_path / "run")))
    assert before.keys() == after.keys()
    same = [path for path in before if np.array_equal(before[path], after[path])]
    assert same == [("fourier", "frequencies")]


def test_a_training_state(write, tmp_path):
    data = ff.zipped({"optimizer_state": {}, "step": 7000, "net": snapshot("edm", pfgmpp=True, D=32)["ema"]})
    import_run.import_run(write(data, "training-state.pt"), tmp_path / "run")
    made = pfgm_jax.load(tmp_path / "run")
    assert (made.process.name, made.process.D) == ("pfgmpp", 32)
    same_as_torch(made, "edm")
    samples(made)


def test_moving_averages_of_pfgm(write, tmp_path, pfgm_config):
    import_run.import_run(write(ff.zipped(checkpoint()), "checkpoint.pth"), tmp_path / "run", pfgm_config)
    made = pfgm_jax.load(tmp_path / "run")
    assert (made.process.D, made.process.sigma_max, made.step) == (1, 40, 7)
    raw = output(made)
    close(raw[..., :1], FIGURES["pfgm/none"])
    close(raw[..., 1].mean(axis=(1, 2)), FIGURES["pfgm/z"])
    samples(made)


def test_safetensors_with_the_published_names(write, tmp_path, pfgm_config):
    arrays = {name: imported.weight(name.removeprefix("module."), shape)
              for name, shape in FIGURES["pfgm"]["shapes"].items()}  # fmt: skip
    save_file(arrays, tmp_path / "pfgm.safetensors")
    import_run.import_run(tmp_path / "pfgm.safetensors", tmp_path / "run", pfgm_config)
    made = pfgm_jax.load(tmp_path / "run")
    close(output(made)[..., :1], FIGURES["pfgm/none"])


def test_what_is_not_a_weight_is_not_taken_for_one(write, tmp_path):
    """Filters and the layer of augmentation labels go; a filter that the network has not got is an error."""
    state = recipe("edm") | {"map_augment.weight": np.ones((8, 9), np.float32)}
    import_run.import_run(write(snapshot("edm", state)), tmp_path / "run")
    same_as_torch(pfgm_jax.load(tmp_path / "run"), "edm")
    filtered = recipe("edm") | {"enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 4, 4), np.float32) / 16}
    with pytest.raises(UserError, match="resample_filter"):
        import_run.import_run(write(snapshot("edm", filtered)), tmp_path / "other")


@pytest.mark.parametrize(
    "loss, attributes, overrides, name, D",
    [
        ({"D": 2048}, dict(pfgmpp=True, D=2048), {}, "pfgmpp", 2048),
        ({"D": 2048}, dict(pfgmpp=False, D=2048), {}, "edm", np.inf),
        ({}, dict(pfgmpp=True, D=128), {}, "pfgmpp", 128),
        ({}, {}, {}, "edm", np.inf),
        ({}, {}, {"process.D": "512"}, "pfgmpp", 512),
        ({"D": 2048}, {}, {"process.D": "2048"}, "pfgmpp", 2048),
        ({"D": 2048}, {}, {"process.D": "inf"}, "pfgmpp", np.inf),
    ],
)
def test_D_of_pfgmpp(write, tmp_path, loss, attributes, overrides, name, D):
    import_run.import_run(write(snapshot("edm", loss=loss, **attributes)), tmp_path / "run", None, overrides)
    process = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (process["process.name"], float(process["process.D"])) == (name, D)
    assert process["process.sigma_data"] == 0.6


def test_lsun_raises_the_noise_of_training(write, tmp_path):
    loss = {"P_mean": -1.2, "P_std": 1.2, "D": 8, "opts": ff.Call("dnnlib.util.EasyDict", {"lsun": True})}
    import_run.import_run(write(snapshot("edm", loss=loss, pfgmpp=True, D=8)), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["process.P_mean"] == pytest.approx(-1.2 + np.log(380 / 80))


# ---- what is refused


@pytest.fixture
def refused(write, tmp_path):
    """Imports a file and expects one line, and no folder."""

    def run(content, name="network.pkl", config=None, **overrides):
        with pytest.raises(UserError) as caught:
            import_run.import_run(write(content, name), tmp_path / "run", config, overrides)
        assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)
        return str(caught.value)

    return run


def test_D_not_said(refused):
    assert "process.D" in refused(snapshot("edm", loss={"D": 2048}))
    assert "process.D" in refused(snapshot("edm", pfgmpp=True))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(wrapper="iDDPMPrecond"), "iDDPMPrecond"),
        (dict(M=4000), "4000"),
        (dict(arguments={"_init_args": ()}), "_init_kwargs"),
        (dict(arguments={"_init_args": (8,), "_init_kwargs": {}}), "_init_kwargs"),
        (dict(img_resolution=2**40), "img_resolution"),
        (dict(img_channels="3"), "img_channels"),
        (dict(beta_d="much"), "lacks the description"),
    ],
)
def test_files_that_say_other_things(refused, change, words):
    assert words in refused(snapshot("vp", **change))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(num_blocks=10**9), "num_blocks"),
        (dict(num_blocks=1000), "cannot fill its network"),
        (dict(channel_mult=[1, "2"]), "channel_mult"),
        (dict(model_channels=-8), "model_channels"),
        (dict(encoder_type="sideways"), "encoder"),
        (dict(num_heads=4), "num_heads"),
        (dict(model_channels=16), "fit"),
    ],
)
def test_arguments_that_no_network_has(refused, arguments, words):
    arguments = {"_init_args": (), "_init_kwargs": FIGURES["edm"]["arguments"] | arguments}
    assert words in refused(snapshot("edm", arguments=arguments))


def test_weights_that_do_not_fit(refused):
    state = recipe("edm")
    first = "enc.8x8_conv.weight"
    assert "missing map_layer1.weight" in refused(
        snapshot("edm", {k: state[k] for k in state if k != "map_layer1.weight"})
    )
    assert "left over more.weight" in refused(snapshot("edm", state | {"more.weight": np.ones(3, np.float32)}))
    assert "of another shape" in refused(snapshot("edm", state | {first: state[first][:4]}))
    assert "cannot fill its network" in refused(snapshot("edm", {}))


def test_arrays_alone_need_a_config(refused, pfgm_config):
    assert "config file" in refused(ff.zipped(checkpoint()), "a.pth")
    assert "leave out the config" in refused(snapshot("edm"), config=pfgm_config)
    assert "no supported network" in refused(ff.zipped({"a": ff.tensor(np.ones(3))}), "a.pth", pfgm_config)
    flat = {"all_modules.0.weight": ff.tensor(np.ones(3))}
    assert "no convolution" in refused(ff.zipped(flat), "a.pth", pfgm_config)


def test_configs_that_leave_something_open(refused, pfgm_config):
    data = ff.zipped(checkpoint())
    assert "takes no labels" in refused(data, "a.pth", _with(pfgm_config, conditional=True))
    pfgm_config.model.conditional = False
    pfgm_config.process.M = None
    assert "process.M" in refused(data, "a.pth", pfgm_config)
    assert "bacth" in refused(data, "a.pth", pfgm_config, **{"train.bacth": "3"})


def _with(config, **model):
    config.model.update(**model)
    return config


def test_moving_averages_of_another_network(refused, pfgm_config):
    fewer = [np.ones(3, np.float32)] * 5
    assert "5 moving averages for" in refused(ff.zipped(checkpoint(fewer)), "a.pth", pfgm_config)
    odd = [np.ones(3, np.float32) for _ in FIGURES["pfgm"]["trained"]]
    assert "moving average of" in refused(ff.zipped(checkpoint(odd)), "a.pth", pfgm_config)


def test_a_folder_that_holds_a_run_or_cannot_be_written(write, tmp_path):
    path = write(snapshot("edm"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("precious")
    with pytest.raises(UserError, match="holds a run already"):
        import_run.import_run(path, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        import_run.import_run(path, tmp_path / "file" / "run")


def test_the_command_line(command, write, tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "executed"))
    source = f"--source={write(snapshot('edm'))}"
    code, out, _ = command("--mode=import", source, f"--workdir={tmp_path}/run", "--config.process.D=32")
    assert code == 0 and "D = 32" in out
    code, out, _ = command("--mode=sample", f"--workdir={tmp_path}/run", "--config.sample.solver=heun",
                           "--config.sample.steps=3", "--config.sample.n=8", "--config.sample.frames=3")  # fmt: skip
    assert code == 0 and "weights of network.pkl" in out and "0 images" not in out
    assert list((tmp_path / "run" / "samples").glob("heun-frames=3,n=8,steps=3.[gw]*"))
    for argv in (["--mode=sample", source], ["--mode=import"], [source]):
        code, out, err = command(*argv, f"--workdir={tmp_path}/run")
        assert code == 2 and "--source=" in err and "--mode=import" in err and err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_a_hostile_pickle_is_refused_and_nothing_runs(command, write, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    hostile = snapshot("edm") | {"loss_fn": Bomb()}
    code, out, err = command("--mode=import", f"--source={write(hostile)}", f"--workdir={tmp_path}/run")
    assert code == 2 and not out and err.startswith("pfgm_jax: refuses to load") and err.count("\n") == 1
    assert not (tmp_path / "executed").exists() and not (tmp_path / "run").exists()
    missing = f"--source={tmp_path}/none.pkl"
    assert command("--mode=import", missing, f"--workdir={tmp_path}/run")[0] == 2


def test_bare_names():
    assert torch_networks.bare("module.model.enc.8x8_conv.weight") == "enc.8x8_conv.weight"
