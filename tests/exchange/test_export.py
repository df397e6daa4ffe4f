"""Weights that travel: an exported folder is the run, bit for bit, wherever it lies; damaged ones are refused."""

import errno
import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import pfgm_jax
from configs import digits
from pfgm_jax import data, generator, models, run_record, stored_run
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import protocol
from pfgm_jax.exchange import export_run, release_gate
from pfgm_jax.storage import checkpoint, safetensors

FEW = {
    "sample.n": "8",
    "sample.solver": "heun",
    "sample.steps": "3",
    "sample.frames": "3",
    "sample.batch": "8",
    "export.samples": "64",
}
ARGUMENTS = [f"--config.{key}={value}" for key, value in FEW.items()]  # of --mode=export
SAMPLE = [word for word in ARGUMENTS if ".sample." in word]


def tiny(condition=""):
    config = digits.get_config("quick")
    config.data.condition = condition
    if condition:
        config.train.large_batch = 0
    config.model.update(channels=4, multipliers=(1,), embedding_channels=8, noise_channels=8)
    return config, run_lib.derive(config, data.load(config.data))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint whose weights are not those that a network begins with."""
    return untrained(tmp_path_factory.mktemp("run"), *tiny())


def untrained(workdir, config, derived):
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init(run_lib.make_model(config, derived), derived["shape"]))
    ema = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape).astype(np.float32), shapes)
    run_record.save(workdir, config, derived)
    checkpoint.save(workdir, 32, {"ema": ema}, 2)
    return workdir


@pytest.fixture(scope="module")
def exported(run):
    export_run.export(run, FEW)
    return run / "export"


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported folder elsewhere, to be changed."""
    return shutil.copytree(exported, tmp_path / "elsewhere")


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sample(made):
    return made.sample(jax.random.key(5), 8, solver="heun", steps=3)[0]


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ---- there and back


def test_the_exported_folder_is_the_run(run, folder):
    there, back = pfgm_jax.load(run), pfgm_jax.load(folder)
    same(back.params, jax.device_get(there.params))
    assert back.step == 32 and back.derived == there.derived | {"step": 32}
    changed = {"sample": back.config.sample.to_dict(), "export": back.config.export.to_dict()}
    assert back.config.to_dict() == there.config.to_dict() | changed
    assert back.config.sample.solver == "heun"  # what it was exported with
    np.testing.assert_array_equal(sample(back), sample(there))


def test_an_image_conditional_network(command, tmp_path):
    run = untrained(tmp_path, *tiny("inpaint:random"))
    code, out, err = command("--mode=export", f"--workdir={run}", *ARGUMENTS)
    assert code == 0 and "gate       passed" in out and "64 restorations of held-out images" in err
    card, back = (run / "export/README.md").read_text(), pfgm_jax.load(run / "export")
    assert "conditioned on inpaint:random" in card and "g.restore(measurements" in card and "g.sample" not in card
    assert (
        "restore.simulate=True" in card and "samples are here restorations" in card and "evaluate the run" not in card
    )
    assert "*Restorations of the first 12 images of val" in card
    assert Image.open(run / "export/samples.png").size[0] > Image.open(run / "export/samples.png").size[1]
    images = data.load(back.config.data).test.images[:2]
    measured, how = back.measured(images, jax.random.key(0))
    restored = back.restore(measured, n=2, key=jax.random.key(1), steps=2, **how).draws
    same(restored, pfgm_jax.load(run).restore(measured, n=2, key=jax.random.key(1), steps=2, **how).draws)
    with pytest.raises(UserError, match="has no image condition"):
        pfgm_jax.load("pretrained:digits").measured(images)


def test_the_attacker_of_an_image_conditional_network_measures_too(tmp_path, monkeypatch):
    g = pfgm_jax.load(untrained(tmp_path, *tiny("superres:2")))
    images = data.load(g.config.data).test.images[:4]
    told = release_gate.denoising_errors(g, images)
    monkeypatch.setattr(type(g.run.condition), "draw", lambda self, keys, y: y)
    assert (told != release_gate.denoising_errors(g, images)).all()


def test_sampling_from_the_exported_folder(command, folder):
    code, out, _ = command("--mode=sample", f"--workdir={folder}", *SAMPLE)
    assert code == 0 and "EMA weights after 2,048 images" in out
    assert np.load(folder / "samples" / "heun.npz")["images"].shape == (8, 8, 8, 1)
    code, out, _ = command("--mode=export", f"--workdir={folder}", *ARGUMENTS)
    assert code == 0
    same(pfgm_jax.load(folder / "export").params, pfgm_jax.load(folder).params)


def test_export_says_what_it_wrote(command, run):
    code, out, _ = command("--mode=export", f"--workdir={run}", *ARGUMENTS)
    assert code == 0
    assert "gate       passed" in out
    for name in ("model.safetensors", "config.json", "samples.png", "copies.png", "README.md"):
        assert name in out and (run / "export" / name).stat().st_size > 100


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.bool_])
def test_every_bit_comes_back(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, 24).astype(dtype) if dtype == np.bool_ else (
        np.frombuffer(np.random.default_rng(0).bytes(24 * np.dtype(dtype).itemsize), dtype))  # fmt: skip
    tree = {"a": {"b": values.reshape(4, 6).T, "scalar": values[3].reshape(())}, "empty": values[:0].reshape(0, 3)}
    safetensors.save(tmp_path / "w.safetensors", tree, {"who": "me"})
    back = safetensors.load(
        tmp_path / "w.safetensors", jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    )
    same(back, tree)
    assert not list(tmp_path.glob("*.tmp"))


# ---- the model card


def test_the_card_says_what_the_weights_are(exported):
    card = (exported / "README.md").read_text()
    for words in ("digits, 1437 training images", "CC BY 4.0", "pfgmpp, D = 128", "2,048 images at batch 64",
                  "half-life 20,000", "None measured", "8 samples", "heun (", "seed 0", "8×8×1"):  # fmt: skip
        assert words in card, words


def test_the_card_shows_results_with_their_protocol(run):
    made = protocol.open_run(run, FEW)
    scores = {"samples, heun": {"density": 0.987654, "n": 360, "failed": []}, "noise": {"density": "inf"}}
    record = {"protocol": {"score": "360 held-out digits", "heun": "360 samples"}, "scores": scores}
    folder = run / "results"
    kept = shutil.move(folder, run / "kept") if folder.exists() else ""
    folder.mkdir()
    try:
        (folder / "pixel_score.json").write_text(json.dumps(record))
        (folder / "other.json").write_text("[1, 2]")  # not a score: left out
        other = json.dumps(record | {"weights": "those of an earlier checkpoint"})
        (folder / "copies.json").write_text(other)
        (folder / "domain.json").write_text(json.dumps(record | {"weights": made.weights_digest}))
        found = export_run._results(run, made.weights_digest)
        assert list(found) == ["domain", "pixel_score"]
        card = export_run.model_card(made, "8 samples", found)
        assert "### pixel score" in card and "| samples, heun | 0.988 | 360 |" in card and "| noise | inf |  |" in card
        assert "* score: 360 held-out digits" in card and "* heun: 360 samples" in card and "None measured" not in card
        (folder / "pixel_score.json").write_text('{"scores"')
        assert "pixel_score.json cannot be read" in refusal(export_run._results, run, "")
    finally:
        shutil.rmtree(folder)
        if kept:
            shutil.move(kept, folder)


def test_imported_weights_are_exported_as_imported(run, tmp_path, command):
    """A run as `import_run` writes it: what the data decide is not there."""
    made = pfgm_jax.load(run)
    known = {key: made.derived[key] for key in ("shape", "N", "sigma_data", "M", "sigma_max", "lr")}
    unknown = {"classes": ["images"], "label_counts": [1], "step": 0, "imported": "edm-cifar10.pkl"}
    config, _ = run_record.load(run)
    config.data.name = "imported"
    run_record.save(tmp_path, config, known | unknown)
    safetensors.save(tmp_path / safetensors.EXPORTED, made.params, {})
    code, _, err = command("--mode=export", f"--workdir={tmp_path}", *ARGUMENTS)
    assert code == 2 and "its training images are not available" in err and "--config.export.force=True" in err
    assert not (tmp_path / "export").exists()
    force = "--config.export.force=True"
    assert command("--mode=export", f"--workdir={tmp_path}", *ARGUMENTS, force)[0] == 0
    card = (tmp_path / "export" / "README.md").read_text()
    assert "imported from edm-cifar10.pkl" in card and card.count("unknown: the imported file") == 2
    for words in ("0 images", "images 1", "learning rate", "digits"):
        assert words not in card
    code, out, _ = command("--mode=sample", f"--workdir={tmp_path}/export", *SAMPLE)
    assert code == 0 and "weights of edm-cifar10.pkl" in out
    assert list((tmp_path / "export" / "samples").glob("heun.[gw]*"))  # the animation
    same(pfgm_jax.load(tmp_path / "export").params, jax.device_get(made.params))
    code, _, err = command("--mode=evaluate", f"--workdir={tmp_path}")
    assert code == 2 and "give the real images to compare with" in err


# ---- what is refused


def test_a_guide_stays_behind(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    export_run.export(copy, FEW | {"sample.guide": str(run), "sample.guidance": "2.0"})
    config, _ = run_record.load(copy / "export")
    assert (config.sample.guide, config.sample.guidance) == ("", 1.0)
    assert f"guidance 2 from {run}" in (copy / "export" / "README.md").read_text()


def test_the_gate_refuses_copies(run, tmp_path, monkeypatch, command):
    """A generator that returns training digits, some of them slightly changed."""
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export", "results"))
    train = data.load(pfgm_jax.default_config().data).train.images
    monkeypatch.setattr(generator, "to_images", lambda derived, x: train[: len(x)])
    code, _, err = command("--mode=export", f"--workdir={copy}", *ARGUMENTS)
    assert code == 2 and err.rstrip().count("\n") <= 3  # progress, and one line
    last = err.rstrip().split("\n")[-1]
    assert "not exported: 64 samples lie nearer" in last and "--config.export.force=True exports" in last
    panel = re.search(r"look at (\S+\.png)", last)[1]
    with Image.open(panel) as picture:
        assert min(picture.size) > 300
    assert not (copy / "export").exists()
    code, out, _ = command("--mode=export", f"--workdir={copy}", *ARGUMENTS, "--config.export.force=True")
    assert code == 0 and "refused, and exported by force: 64 samples" in out
    card = (copy / "export" / "README.md").read_text()
    assert "refused, and exported by force" in card and "![the samples closest" in card and "membership: area" in card
    config, _ = run_record.load(copy / "export")
    assert not config.export.force  # an export of the export asks again


def test_without_a_gate_force_is_needed(run, command):
    code, _, err = command("--mode=export", f"--workdir={run}", *ARGUMENTS, "--config.export.samples=0")
    assert code == 2 and "the gate was left out" in err


def test_held_out_images_that_are_training_images_are_a_reason(run, tmp_path, monkeypatch):
    made = pfgm_jax.load(run).with_overrides(FEW)
    own = data.load(made.config.data)
    copied = data.Split(own.train.images[:60], own.train.labels[:60])
    alike = data.Dataset(**{**vars(own), "val": copied, "test": copied})
    monkeypatch.setattr(protocol, "real_images", lambda generator: alike)
    reasons = release_gate.examine(made, tmp_path).reasons
    assert reasons == ("of digits, 0 held-out images that equal no training image are fewer than 50",)


@pytest.mark.slow
def test_membership_is_a_matter_of_memory(run):
    """A network that knows its training digits, exactly, and one that knows nothing."""
    made = pfgm_jax.load(run)
    digits_set = data.load(made.config.data)
    held_out = [digits_set.val, digits_set.test]
    blind = release_gate.membership(made, digits_set, held_out)
    # Random weights know nothing, but these digits' test split is of other writers, who are harder or easier.
    assert abs(blind.value - 0.5) < 0.15

    class Knowing:
        def denoiser(self, params, labels):
            return pfgm_jax.exact_denoiser(data.to_unit(digits_set.train.images), D=128.0)

    class Told(generator.Generator):
        network = Knowing()

    knowing = release_gate.membership(Told(made.run, made.params), digits_set, held_out)
    assert knowing.low > 0.95


@pytest.mark.slow
def test_bfloat16_weights_are_those_that_were_sampled(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export", "results"))
    export_run.export(copy, FEW)
    whole = (copy / "export" / safetensors.EXPORTED).stat().st_size
    pictures = (copy / "export" / "samples.png").read_bytes()
    text = export_run.export(copy, FEW | {"export.dtype": "bfloat16", "data.dir": str(tmp_path)})
    half = (copy / "export" / safetensors.EXPORTED).stat().st_size
    values = sum(leaf.size for leaf in jax.tree.leaves(pfgm_jax.load(run).params))
    assert abs(whole - half - 2 * values) < 0.1 * values and "passed" in text  # offsets in the header have fewer digits
    there, back = pfgm_jax.load(run), pfgm_jax.load(copy / "export")
    for a, b in zip(jax.tree.leaves(there.params), jax.tree.leaves(back.params), strict=True):
        # Round to nearest: 8 bits of mantissa.
        np.testing.assert_allclose(b, a, rtol=2.0**-8, atol=1e-38)
        assert b.dtype == a.dtype and (np.asarray(b) == np.asarray(b).astype(ml_dtypes.bfloat16)).all()
    assert back.config.data.dir == ""
    assert (copy / "export" / "samples.png").read_bytes() != pictures
    again = export_run.export(copy / "export", FEW | {"export.dtype": "bfloat16"})
    assert "passed" in again
    same(pfgm_jax.load(copy / "export" / "export").params, back.params)


def test_training_into_weights_alone_is_refused(folder, command):
    before = (folder / "config.json").read_bytes()
    code, _, err = command("--config=configs/digits.py:quick", f"--workdir={folder}")
    assert code == 2 and "no checkpoint to continue from" in err and err.count("\n") == 1
    assert (folder / "config.json").read_bytes() == before


def rewritten(folder, change):
    """The folder with its weights changed by `change`, a function of {name: array}."""
    made = pfgm_jax.load(folder)
    arrays = {name: np.asarray(a) for name, a in safetensors._flatten(made.params).items()}
    save_file(change(arrays), folder / safetensors.EXPORTED)


def test_weights_of_another_network(folder):
    kept = (folder / safetensors.EXPORTED).read_bytes()
    bias, kernel = "conv_in/bias", "conv_in/kernel"
    for change, words in (
        (lambda a: {k: v for k, v in a.items() if k != bias}, f"lacks {bias!r}"),
        (lambda a: a | {"more": np.ones(3, np.float32)}, "has one more weight, 'more'"),
        (lambda a: a | {kernel: a[kernel][:1]}, f"{kernel!r} is (1, 3, 1, 4), not (3, 3, 1, 4)"),
        (lambda a: a | {kernel: a[kernel].astype(np.int32)}, f"{kernel!r} is int32"),
        (lambda a: {"model.weight": np.ones(3, np.float32)}, "lacks"),
    ):
        rewritten(folder, change)
        assert words in refusal(pfgm_jax.load, folder)
        (folder / safetensors.EXPORTED).write_bytes(kept)


def test_damaged_files(folder, command):
    path = folder / safetensors.EXPORTED
    whole = path.read_bytes()
    cut = (b"", whole[:7], whole[:-1], whole[: len(whole) // 2])
    for content in (*cut, b"\xff" * 8 + whole[8:], b"PK\x03\x04" + whole, whole.replace(b"F32", b"F99")):
        path.write_bytes(content)
        refusal(pfgm_jax.load, folder)
    code, _, err = command("--mode=sample", f"--workdir={folder}")
    assert code == 2 and err.count("\n") == 1 and safetensors.EXPORTED in err
    path.unlink()
    path.mkdir()
    refusal(pfgm_jax.load, folder)
    path.rmdir()
    assert "no checkpoint yet" in refusal(pfgm_jax.load, folder)


def flipped(path, at, bit):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_is_no_other_weight(folder):
    path = folder / safetensors.EXPORTED
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    # The last bits of a mantissa, and a name: none of it makes the file unreadable.
    for at in (header, header + 40, len(whole) - 4, whole.index(b"conv_in/") + 2):
        flipped(path, at, 0)
        assert "is damaged" in refusal(pfgm_jax.load, folder), at
        path.write_bytes(whole)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"sigma_max": 1', '"sigma_max": 2'))
    assert config.read_text() != text
    assert "is not the one that it was exported with" in refusal(pfgm_jax.load, folder)
    record = json.loads(text)
    record["config"]["sample.n"] = 7  # which belongs to whoever samples
    config.write_text(json.dumps(record))
    assert pfgm_jax.load(folder).config.sample.n == 7
    assert "which have only one step" in refusal(pfgm_jax.load, folder, 32)


def test_folders_of_older_versions_have_no_checksum(folder):
    rewritten(folder, lambda arrays: arrays)
    pfgm_jax.load(folder)


def test_the_weights_that_come_with_the_package_have_checksums(tmp_path):
    copy = shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "digits")
    assert pfgm_jax.load(copy).step == 3128
    flipped(copy / safetensors.EXPORTED, -4, 0)
    assert "is damaged" in refusal(pfgm_jax.load, copy)


def test_a_full_disk_leaves_no_part_of_an_exported_folder(run, tmp_path, monkeypatch, command):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=lambda *_: ["export"])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pfgm_jax.storage.atomic.os.fsync", full)
    code, _, err = command("--mode=export", f"--workdir={copy}", *ARGUMENTS)
    *progress, line = err.strip().split("\n")
    assert code == 2 and "is full: free some space" in line and progress == ["release gate: 64 samples"]
    assert not (copy / "export").exists()  # what was made for it is gone too


def test_a_folder_that_cannot_be_written(run, tmp_path, command):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=lambda *_: ["export"])
    (copy / "export").write_text("a file in the way")
    code, _, err = command("--mode=export", f"--workdir={copy}")  # before the gate draws its samples
    assert code == 2 and "cannot write" in err and err.count("\n") == 1


def test_pretrained_weights(exported, tmp_path, monkeypatch, command):
    monkeypatch.setattr(stored_run, "PRETRAINED", tmp_path / "none")
    assert "there are none" in refusal(pfgm_jax.load, "pretrained:digits")
    monkeypatch.setattr(stored_run, "PRETRAINED", tmp_path)
    shutil.copytree(exported, tmp_path / "digits")
    (tmp_path / "unfinished").mkdir()
    same(pfgm_jax.load("pretrained:digits").params, pfgm_jax.load(exported).params)
    assert "did you mean 'digits'" in refusal(pfgm_jax.load, "pretrained:digit")
    assert "choose from digits" in refusal(pfgm_jax.load, "pretrained:unfinished")
    refusal(pfgm_jax.load, "pretrained:../digits")
    code, _, err = command("--mode=sample", "--workdir=pretrained:digits")
    assert code == 2 and err.count("\n") == 1 and "--mode=import --source=pretrained:digits --workdir=FOLDER" in err
    code, out, err = command("--mode=import", "--source=pretrained:digits", f"--workdir={tmp_path}/run")
    assert code == 0, err
    same(pfgm_jax.load(tmp_path / "run").params, pfgm_jax.load(exported).params)
    code, _, err = command("--mode=import", "--source=pretrained:digit", f"--workdir={tmp_path}/other")
    assert code == 2 and "did you mean 'digits'" in err and not (tmp_path / "other").exists()
    code, _, err = command(
        "--mode=import", "--source=pretrained:digits", f"--workdir={tmp_path}/other", "--config.process.D=8"
    )
    assert code == 2 and "leave out the config" in err
