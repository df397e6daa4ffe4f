"""Runs measured: samples made once and in parts, figures with the protocol of their samples, sweeps and comparisons."""

import dataclasses
import errno
import json
import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from pfgm_jax import data, generator, main, models, run_record, stored_run
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, nfe_curve, protocol, sample_cache
from pfgm_jax.evaluation.score import Pixels
from pfgm_jax.exchange import export_run
from pfgm_jax.metrics import inception_weights
from pfgm_jax.storage import safetensors

FEW = {"sample.solver": "heun", "sample.steps": 2, "sample.batch": 8}
ARGUMENTS = [f"--config.{key}={value}" for key, value in FEW.items()]


class Fake(Pixels):
    """Stands for Inception: counts the images that it was given, and stops at a wanted number."""

    name, fingerprint, distances = "a stand-in", "fake", ("fid", "kid")

    def __init__(self, stop=None):
        self.seen, self.stop = 0, stop

    def __call__(self, images):
        if self.stop is not None and self.seen >= self.stop:
            raise KeyboardInterrupt
        self.seen += len(images)
        return super().__call__(images)


@pytest.fixture
def workdir(tmp_path):
    """The pretrained digits as a run."""
    return shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "run")


@pytest.fixture
def made(workdir):
    """Its Generator, and the numbers of first samples that were drawn."""
    made = protocol.open_run(workdir, FEW)
    drawn, sample = [], made.sample

    def counted(*args, first=0, **options):
        drawn.append(first)
        return sample(*args, first=first, **options)

    made.sample, made.drawn = counted, drawn
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))


def collect(made, folder, n, extractor, **options):
    return sample_cache.collect(made, dataclasses.replace(made.settings, n=n), folder, extractor, **options)


def same(a, b):
    for name in ("features", "labels", "images", "sample_nfe", "nfe"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


def test_a_stopped_set_goes_on(made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(made, tmp_path / "a", 20, Fake(stop=8))
    assert made.drawn == [0, 8]  # the second chunk has its images and no features yet
    network = Fake()
    resumed = collect(made, tmp_path / "a", 20, network)
    assert made.drawn == [0, 8, 16] and network.seen == 16
    whole = collect(made, tmp_path / "b", 20, Fake())
    same(resumed, whole)
    images, stats = generator.Generator.sample(made, jax.random.key(0), 20)  # sample i is that of (key, i)
    np.testing.assert_array_equal(whole.images, images)
    assert whole.nfe == stats.nfe == 3 and whole.features.shape == (20, 64)

    del made.drawn[:]
    network = Fake()
    fewer = collect(made, tmp_path / "a", 10, network)
    assert not made.drawn and not network.seen
    np.testing.assert_array_equal(fewer.features, whole.features[:10])
    (place,) = (tmp_path / "a").iterdir()
    damaged = place / "00001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-700])
    same(collect(made, tmp_path / "a", 20, Fake()), whole)
    assert made.drawn == [8]
    collect(made, tmp_path / "a", 28, Fake(), timed=True)
    assert made.drawn == [8, 24, 24]  # one to compile, one to be timed
    assert np.isfinite(collect(made, tmp_path / "a", 28, Fake()).seconds)


def test_what_makes_another_set(made):
    keys = [sample_cache.key_of(sample_cache.facts(made, made.settings))]
    for key, value in (("sample.seed", 1), ("sample.steps", 3), ("sample.D", 64.0), ("sample.solver", "euler")):
        made = made.with_overrides({key: value})
        keys.append(sample_cache.key_of(sample_cache.facts(made, made.settings)))
    made.params = jax.tree.map(lambda a: a * 2, made.params)
    keys.append(sample_cache.key_of(sample_cache.facts(made, made.settings)))
    assert len(set(keys)) == 6
    made = made.with_overrides({"evaluate.num_samples": 77, "sample.n": 7})
    assert sample_cache.key_of(sample_cache.facts(made, made.settings)) == keys[-1]


def test_a_run_is_measured(workdir, monkeypatch, capsys):
    monkeypatch.setattr(inception_weights, "load", lambda path, early=False: Fake())
    command = ["--mode=evaluate", f"--workdir={workdir}", *ARGUMENTS, "--config.evaluate.features=inception"]
    main.run([*command, "--config.evaluate.num_samples=24"])
    out = capsys.readouterr().out
    (path,) = (workdir / "results").glob("*[0-9a-f].json")
    record = json.loads(path.read_text())
    assert path.stem.startswith("inception-heun-") and path.with_suffix(".png").exists()
    for words in ("24 samples, pfgmpp D = 128", "EMA weights after 200,192 images", "heun (steps 2,", "seed 0",
                  "3 function evaluations"):  # fmt: skip
        assert words in record["protocol"]["samples"] and words in out
    assert "1437 train images of digits" in record["protocol"]["reference"] and "FID" in out
    assert record["scores"]["samples"]["n"] == record["scores"]["real, part of train"]["n"] == 24
    assert record["scores"]["samples"]["fid"] > record["scores"]["real, test"]["fid"]  # two steps are too few
    low, high = record["intervals"]["fid"]
    assert low < record["scores"]["samples"]["fid"] < high

    monkeypatch.setattr(generator.Generator, "sample", None)  # nothing is drawn again
    main.run([*command, "--config.evaluate.num_samples=20"])
    assert "20 samples" in capsys.readouterr().out


def test_classes_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inception_weights, "load", lambda path, early=False: Fake())
    config = digits.get_config("conditional")
    config.model.update(channels=4, multipliers=(1,), embedding_channels=8, noise_channels=8)
    derived = run_lib.derive(config, data.load(config.data))
    folder = tmp_path / "told"
    folder.mkdir()
    run_record.save(folder, config, derived)
    params = models.init(run_lib.make_model(config, derived), derived["shape"])
    safetensors.save(folder / safetensors.EXPORTED, params, {})
    few = ["--config.evaluate.features=inception", "--config.evaluate.num_samples=20", "--config.sample.labels=3,5"]
    main.run(["--mode=evaluate", f"--workdir={folder}", *ARGUMENTS, *few])
    out = capsys.readouterr().out
    (path,) = (folder / "results").glob("*[0-9a-f].json")
    record = json.loads(path.read_text())
    assert {name: figures["n"] for name, figures in record["by_class"].items()} == {"3": 10, "5": 10}
    assert "labels 3,5" in out and "FID depends on n" in out
    assert path.with_suffix(".png").exists()


def test_two_runs_are_compared(workdir, monkeypatch, tmp_path, capsys):
    other = shutil.copytree(workdir, tmp_path / "other")
    few = [*ARGUMENTS, "--config.evaluate.num_samples=24"]
    main.run(["--mode=compare", f"--workdir={workdir}", f"--source={other}", *few])
    out = capsys.readouterr().out
    assert out.count("not resolved") == 6 and "from the same noise" in out  # the same network
    (path,) = (workdir / "results").glob("compare-*.json")
    assert json.loads(path.read_text())["differences"]["fd"]["difference"]["value"] == 0
    load = generator.load

    def weaker(place):
        made = load(place)
        if str(place) == str(other):
            made.params = jax.tree.map(lambda a: 0.5 * a, made.params)
        return made

    monkeypatch.setattr(generator, "load", weaker)
    main.run(["--mode=compare", f"--workdir={workdir}", f"--source={other}", *few])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Fréchet distance"))
    assert "not resolved" not in line


def test_a_curve(workdir, capsys):
    command = ["--mode=curve", f"--workdir={workdir}", "--config.sample.batch=8", "--config.evaluate.num_samples=16",
               "--config.evaluate.solvers=euler,heun", "--config.evaluate.steps=2"]  # fmt: skip
    main.run(command)
    out = capsys.readouterr().out
    (path,) = (workdir / "results").glob("curve*.json")
    assert path.stem.startswith("curve-")  # other settings than the run's own
    record = json.loads(path.read_text())
    assert [(p["name"], p["nfe"]) for p in record["points"]] == [
        ("euler", 2), ("heun", 3)
    ]  # fmt: skip
    assert all(p["seconds"] > 0 and p["figures"]["fd"]["low"] < p["figures"]["fd"]["value"] for p in record["points"])
    assert len({p["figures"]["fd"]["value"] for p in record["points"]}) == 2
    assert record["real"]["real, test"]["n"] == 16 and "16 samples a point" in out
    assert path.with_suffix(".png").stat().st_size > 10_000
    drawn = sorted((workdir / "results").rglob("0*.npz"))
    assert len(drawn) == 2 * 2 * 2  # points, chunks, and features beside images


def test_what_a_curve_sweeps(made):
    overrides = {"evaluate.solvers": "heun, rk45", "evaluate.steps": (3, 5), "evaluate.D": "64,inf"}
    found = nfe_curve.points(made.with_overrides(overrides))
    assert len(found) == 2 * (2 + len(nfe_curve.TOLERANCES))
    assert found[0] == ("heun", 64.0, {"steps": 3}) and found[-1] == ("rk45", math.inf, {"rtol": 1e-4, "atol": 1e-4})
    assert found[-1].name == "rk45, D = inf" and found[-1].setting == "tolerance 0.0001"


@pytest.mark.parametrize(
    "mode, argument, words",
    [
        ("evaluate", "evaluate.features=pixle", "not one of pixels, inception"),
        ("evaluate", "evaluate.num_samples=5", "5 images are too few"),
        ("evaluate", "sample.n=100", "sample.n=100 is for --mode=sample: write evaluate.num_samples=NUMBER"),
        ("curve", "sample.frames=0", "sample.frames=0 is for --mode=sample: leave it out"),
        ("curve", "sample.eta=0.5", "no option 'eta'"),
        ("curve", "sample.solver=heun", "has no effect on a curve: write evaluate.solvers"),
        ("curve", "sample.steps=5", "has no effect on a curve: write evaluate.steps"),
        ("curve", "sample.rtol=0.1", "has no effect on a curve: its points have rtol = atol = 0.1, 0.01"),
        ("sample", "evaluate.num_samples=20", "takes overrides of sample.*, not of evaluate.num_samples"),
        ("evaluate", "data.name=imported", "give the real images to compare with"),
        ("evaluate", "train.batch=5", "takes overrides of sample.* and evaluate.* and data.*"),
        ("curve", "evaluate.solvers=huen", "unknown solver 'huen'; choose from rk45"),
        ("curve", "evaluate.solvers=ancestral", "ancestral"),
        ("curve", "evaluate.steps=0", "evaluate.steps, such as 9,18"),
        ("curve", "evaluate.D=64,none", "give numbers > 0 or inf"),
    ],
)
def test_what_cannot_be_measured(workdir, monkeypatch, mode, argument, words):
    monkeypatch.setattr(inception_weights, "load", lambda path, early=False: Fake())
    monkeypatch.setattr(generator.Generator, "sample", None)  # refused before anything is drawn
    few = ["--config.evaluate.features=inception"] * ("evaluate.features" not in argument and mode != "sample")
    with pytest.raises(UserError) as caught:
        main.run([f"--mode={mode}", f"--workdir={workdir}", *few, f"--config.{argument}"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argument, words",
    [
        ("sample.eta=0.5", "no option 'eta'"),
        ("sample.n=100", "write evaluate.num_samples=NUMBER"),
    ],
)
def test_what_cannot_be_compared(workdir, monkeypatch, argument, words):
    monkeypatch.setattr(generator.Generator, "sample", None)
    with pytest.raises(UserError, match=words):
        main.run(["--mode=compare", f"--workdir={workdir}", f"--source={workdir}", f"--config.{argument}"])


@pytest.mark.parametrize(
    "argument, words",
    [
        ("evaluate.usefulness=True", "does not use evaluate.usefulness: leave it out, or .* evaluate.features=domain"),
        ("evaluate.split=val", "does not use evaluate.split"),
        ("evaluate.num_samples=1000", "more than the 360 held-out digits"),
    ],
)
def test_what_the_score_of_digits_does_not_use(workdir, monkeypatch, argument, words):
    monkeypatch.setattr(generator.Generator, "sample", None)
    with pytest.raises(UserError, match=words):
        main.run(["--mode=evaluate", f"--workdir={workdir}", f"--config.{argument}"])


def test_images_of_another_size(workdir, tmp_path):
    np.savez(tmp_path / "other.npz", images=np.zeros((60, 6, 6), np.uint8))
    arguments = ["--config.data.name=npz", f"--config.data.dir={tmp_path}/other.npz", "--config.data.size=6"]
    with pytest.raises(UserError, match="the run makes images of 8×8×1, but those of npz are 6×6×1"):
        main.run(["--mode=evaluate", f"--workdir={workdir}", *arguments])


def test_held_out_images_are_those_that_the_run_did_not_see(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", images=images)
    config = digits.get_config("quick")
    config.data.update(name="npz", dir=str(tmp_path / "own.npz"))
    config.train.update(batch=16, large_batch=0)
    made = generator.Generator(run_lib.make_run(config, run_lib.derive(config, data.load(config.data))), None)
    assert len(protocol.real_images(made).val) == 6
    for key, value in (("data.split_seed", 1), ("data.val", 0.2), ("data.test", 0.0), ("data.group", "p"),
                       ("data.condition", "superres:2")):  # fmt: skip
        with pytest.raises(UserError, match=f"{key} cannot be changed in a trained run: leave it out"):
            made.with_overrides({key: value})
    other = made.with_overrides({"data.name": "digits", "data.split_seed": 1})  # another set has not been trained on
    assert protocol.real_images(other).name == "digits"
    for changed, words in ((np.concatenate([images, images[:10]]), "train_images"), (images // 2, "mean, std")):
        np.savez(tmp_path / "own.npz", images=changed)
        with pytest.raises(UserError, match=f"other images than the run was trained on .different {words}") as caught:
            protocol.real_images(made.with_overrides({"sample.n": 2}))
        assert "\n" not in str(caught.value)
    imported = run_lib.make_run(config, dict(made.derived) | {"imported": "a.pth"})  # of which nothing is known
    protocol.real_images(generator.Generator(imported, None).with_overrides({"data.split_seed": 1}))


def test_scores_of_other_settings_do_not_replace_the_score(workdir, capsys):
    main.run(["--mode=evaluate", f"--workdir={workdir}", *ARGUMENTS[1:], "--config.sample.solver=heun",
              "--config.evaluate.num_samples=20"])  # fmt: skip
    out = capsys.readouterr().out
    (path,) = (workdir / "results").glob("pixel_score*.json")
    assert path.name == "pixel_score-heun-num_samples=20,batch=8,steps=2.json" and str(path) in out
    record = json.loads(path.read_text())
    assert "samples, heun" in record["scores"] and "samples, rk45" not in record["scores"] and not record["full"]
    assert record["weights"] == generator.load(workdir).weights_digest
    assert not export_run._results(workdir, record["weights"])  # and none of it is shown in a model card
    for few, shown in ((3, False), (360, True)):  # of records that do not say it
        old = {"protocol": {}, "scores": {"samples, rk45": {"n": few}}}
        (workdir / "results" / "pixel_score.json").write_text(json.dumps(old))
        assert bool(export_run._results(workdir, record["weights"])) == shown
    with pytest.raises(UserError, match="no option 'eta'"):
        main.run(["--mode=evaluate", f"--workdir={workdir}", "--config.sample.eta=0.5"])


def test_samples_of_other_settings_lie_beside_each_other(workdir):
    few = ["--mode=sample", f"--workdir={workdir}", *ARGUMENTS, "--config.sample.frames=0"]
    for more in (["n=2"], ["n=3"], ["n=3", "seed=1"], ["n=3", "seed=1"], ["n=2", "files=True"]):
        main.run([*few, *(f"--config.sample.{item}" for item in more)])
    names = sorted(path.name for path in (workdir / "samples").glob("*.npz"))
    assert names == [
        "heun-batch=8,n=2,steps=2.npz",
        "heun-batch=8,n=3,seed=1,steps=2.npz",
        "heun-batch=8,n=3,steps=2.npz",
    ]
    singles = sorted((workdir / "samples" / "heun-batch=8,n=2,steps=2_files").iterdir())
    assert [path.name for path in singles] == ["000000.png", "000001.png"]
    images = np.load(workdir / "samples" / names[0])["images"]
    for path, image in zip(singles, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path))[..., None], image)


def test_names_of_settings():
    own, config = digits.get_config("quick"), digits.get_config("quick")
    relevant = {"sample.n", "sample.guide", "sample.labels", "sample.rtol"}
    config.sample.frames = 7  # not relevant
    assert naming.suffix(config, own, relevant) == ""
    config.sample.update(n=5, rtol=1e-3)
    assert naming.suffix(config, own, relevant) == "-n=5,rtol=0.001"
    config.sample.guide = "../runs/weak"
    hashed = naming.suffix(config, own, relevant)
    config.sample.guide = "../runs/weaker"
    assert len(hashed) == 9 and naming.suffix(config, own, relevant) != hashed


def test_folders_of_classes():
    names = naming.folder_names(["3", "red cell", "../x", "..", "a/b", "a:b", "Ä\x1b[2J", "Cat", "cat", "n" * 300])
    assert names[:2] == ["3", "red cell"] and len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name.isprintable() and not set(name) & set('/\\:*?"<>|') and len(name) <= 60 and name.strip(".")


def test_a_full_disk_is_one_line(workdir, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="the disk that holds .*results is full: free some space"):
        main.run(["--mode=curve", f"--workdir={workdir}", "--config.sample.batch=8", "--config.evaluate.solvers=euler",
                  "--config.evaluate.num_samples=16", "--config.evaluate.steps=2"])  # fmt: skip
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match="the disk that holds .*samples is full: free some space"):
        main.run(["--mode=sample", f"--workdir={workdir}", *ARGUMENTS, "--config.sample.n=2"])
    assert not list((workdir / "samples").glob("*.tmp"))


@pytest.mark.parametrize("item", ["sample.n=1000000000000000000", "sample.steps=0", "sample.steps=999999999999",
                                  "sample.frames=1000000000000"])  # fmt: skip
def test_absurd_numbers_are_refused_at_once(workdir, monkeypatch, item):
    monkeypatch.setattr(generator.Generator, "sample", None)
    with pytest.raises(UserError) as caught:
        main.run(["--mode=sample", f"--workdir={workdir}", "--config.sample.solver=heun", f"--config.{item}"])
    assert "\n" not in str(caught.value) and not (workdir / "samples").exists()


def test_an_absurd_chunk_is_refused_at_once(made, tmp_path):
    settings = dataclasses.replace(made.settings, n=20, batch=10**15)
    with pytest.raises(UserError, match="sample.batch=1000000000000000 is too large"):
        sample_cache.collect(made, settings, tmp_path, Fake())
