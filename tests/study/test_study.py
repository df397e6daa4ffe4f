"""A study: what its file makes, what its figures say, and that its report stands alone."""

import csv
import dataclasses
import html.parser
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import digits, study_bloodmnist, study_digits
from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, run_record, stored_run
from pfgm_jax.errors import UserError
from pfgm_jax.study import Study, course, plan, report, stages, tables, verdict
from pfgm_jax.study import figures as figures_lib
from pfgm_jax.study.findings import Findings

ROOT = pathlib.Path(__file__).parents[2]


def entry(name, arg="", variant=None, changed=0):
    return plan.Entry(name, variant or name, digits.get_config(arg), pathlib.Path("/nowhere", name), changed=changed)


def figures(fd, precision, width=0.1):
    around = lambda value: {"value": value, "error": width / 2, "low": value - width, "high": value + width}
    return {"fd": around(fd), "precision": around(precision)}


def point(solver, setting, nfe, fd, seconds=0.01):
    real = {"real, test": {"n": 180, "fd": 0.3, "precision": 0.9}}
    return {"name": solver, "solver": solver, "setting": setting, "nfe": nfe, "seconds": seconds, "n": 360,
            "figures": figures(fd, 0.8), "real": real, "protocol": "", "measured": {"features": "pixels"}}  # fmt: skip


def trained(entry, D, images=2048):
    curves = [{"images": 1024, "eval/val": 0.5, "truth/sigma=0.1": 0.2, "truth/sigma=1": 0.4},
              {"images": images, "eval/val": 0.25, "truth/sigma=0.1": 0.1, "truth/sigma=1": 0.2}]  # fmt: skip
    config = {key: value for key, value in config_lib.flatten(entry.config).items()}
    return {"images": images, "asked": images, "parameters": 1000,
            "process": [entry.config.process.name, str(D), 20, 0.002],
            "parametrisation": "EDM", "law": "LogNormal", "lr": 1e-3, "config": config, "changed": entry.changed,
            "images a second": 100.0, "curves": curves}  # fmt: skip


def difference(a, b, half, resolved):
    ends = {"value": a - b, "error": half / 2, "low": a - b - half, "high": a - b + half}
    return {"a": a, "b": b, "difference": ends, "resolved": resolved}


def cost(ms, memory):
    return {"batch": 64, "nfe": 11, "seconds to compile sampling": 1.0, "ms an image": ms, "images a second": 1000 / ms,
            "seconds to compile training": 2.0, "bytes of training": 2**20, "bytes at the peak of sampling": memory,
            "bytes before sampling": 1, "device": "cpu", "devices": 1}  # fmt: skip


@pytest.fixture
def findings():
    """Three entries: the first ahead of the second in distance, behind in precision; the third barely measured."""
    study = Study("T", "", {}, {"heun": (3, 18), "dpmpp_3m": (9,)}, ("heun", 18), n=360, curve=180)
    first, second, third = entry("A <pp>"), entry("B|", "process=edm", changed=2), entry("C", "process=pfgm")
    records = {(e.name, "train"): trained(e, D) for e, D in ((first, 128), (second, math.inf), (third, 1))}
    for each, few, many, fast in ((first, 0.9, 0.4, 0.42), (second, 1.5, 0.5, 0.9)):
        records |= {
            (each.name, "headline"): point("heun", "18 steps", 35, many),
            (each.name, "heun 3"): point("heun", "3 steps", 5, few),
            (each.name, "heun 18"): point("heun", "18 steps", 35, many),
            (each.name, "dpmpp_3m 9"): point("dpmpp_3m", "9 steps", 9, fast),
        }  # fmt: skip
    records["C", "headline"] = point("heun", "18 steps", 35, 0.7)
    records["B|", "difference"] = {"first": "A <pp>", "second": "B|", "paired": False, "figures": {
        "fd": difference(0.4, 0.5, 0.05, True), "precision": difference(0.7, 0.8, 0.05, True),
        "recall": difference(0.8, 0.81, 0.05, False), "density": difference(0.9, 0.8, 0.01, True)}}  # fmt: skip
    records |= {("A <pp>", "cost"): cost(10.0, 2**30), ("B|", "cost"): cost(25.0, 2**30 + 1)}
    arm = lambda mean: {"accuracy": {"mean": mean, "error": 0.01}, "balanced accuracy": {"mean": mean, "error": 0.01}}
    both = {"synthetic": arm(0.90), "filled": arm(0.95)}
    records["A <pp>", "usefulness"] = {
        "n": 360,
        "scores": both | {"real": arm(0.97), "repeated": arm(0.96)},
        "protocol": "p",
    }
    records["B|", "usefulness"] = {"n": 360, "scores": both | {"synthetic": arm(0.88)}, "protocol": "p"}
    return Findings(study, [first, second, third], records)


def test_verdicts_come_from_measured_rows(findings):
    first, second, third = findings.entries
    found = verdict.judged(findings, first, second)
    assert found["Fréchet distance"][0] == "ahead" and found["precision"][0] == "behind"  # lower and higher is better
    assert found["recall"][0] == "not resolved" and "density" not in found  # which has no better side
    assert found["time an image"] == ("ahead", "2.5 times less")
    assert found["memory of sampling"][0] == "not resolved"  # a byte is no difference
    # 9 evaluations reach 0.42 ≤ 1.1 × 0.4; the second needs 35, as 0.9 > 1.1 × 0.5.
    assert found["evaluations to its own best"] == ("ahead", "3.89 times less")
    # 0.90 ± 0.01 against 0.88 ± 0.01: two standard errors are 0.028.
    assert found["usefulness of samples"][0] == "not resolved"
    assert found["likelihood"] == ("not measured", "")
    nothing = verdict.judged(findings, first, third)
    assert {words for words, _ in nothing.values()} == {"not measured"}
    table = verdict.table(findings)
    assert table.rows[1][1:4] == ["–", "–", "–"] and "figures of samples" in table.rows[1][4]


def test_tables_say_what_was_measured(findings):
    made = {table.name: table for table in tables.every(findings)}
    quality = {row[0]: row for row in made["quality"].rows}
    assert quality["A <pp>"][5] == "0.4 [0.3, 0.5]" and quality["real, test"][4] == "180"
    assert [row[0] for row in made["D"].rows] == ["1", "128", "inf"]
    assert made["truth"].header == ["σ", "0.1", "1"] and made["truth"].rows[0][1:] == ["0.100", "0.200"]
    assert [row[3] for row in made["fewest"].rows] == ["3.89", "1"]
    assert made["fewest"].rows[0][4] == "heun 2.25"  # 0.9 / 0.4
    assert made["usefulness"].rows[0][0] == "real images" and len(made["usefulness"].rows) == 3
    assert made["cost"].rows[2][4] == "not measured"
    different = {row[0]: row[1:] for row in made["settings"].rows}
    assert different["process.name"] == ["pfgmpp", "edm", "pfgm"] and "optim.lr" not in different
    assert made["likelihood"].rows == [] and "not measured" in made["likelihood"].markdown()
    assert "B\\|" in made["quality"].markdown()


def test_other_features_have_floors_of_their_own(findings):
    assert tables.also(findings).rows == []
    also = findings._replace(study=dataclasses.replace(findings.study, also=("inception", "inception64")))
    also.records["B|", "in inception64"] = point("heun", "18 steps", 35, 0.02)
    assert (
        Findings(also.study, also.entries, {("B|", "in inception"): {"nfe": 9, "figures": {"fid": 1}}}).distance is None
    )
    made = tables.also(also)
    assert [row[:3] for row in made.rows] == [["inception64", "B|", "360"], ["inception64", "real, test", "180"]]
    assert made.rows[0][3].startswith("0.02 [") and made.rows[1][3] == "0.3"


def test_robustness_has_a_column_a_disturbance(findings):
    at = lambda value, **what: {"value": value, "low": value / 2, "high": 2 * value, "nfe": 17} | what
    noise = [at(0.4 + alpha, steps=9, alpha=alpha) for alpha in (0.0, 0.2)]
    points = {"noise": noise, "weights": [at(0.4, bits=32), at(0.8, bits=4)]}
    findings.records["B|", "robustness"] = {"n": 60, "points": points, "floor": 0.3, "protocol": "60 samples"}
    made = tables.robustness(findings)
    assert made.header == ["", "noise, 9 steps, α = 0", "noise, 9 steps, α = 0.2", "4 bits"]
    assert made.rows == [["B|", "0.4 [0.2, 0.8]", "0.6 [0.3, 1.2]", "0.8 [0.4, 1.6]"]]
    drawn = figures_lib.robustness(findings)
    assert [ax.get_title() for ax in drawn.canvas.axes] == ["noise, 9 steps", "weights"]


def test_seeds_are_put_together(findings):
    again = entry("A <pp>, seed 1", variant="A <pp>")
    findings.entries.append(again)
    findings.records[again.name, "headline"] = point("heun", "18 steps", 35, 0.6)
    row = next(row for row in tables.quality(findings).rows if "2 training seeds" in row[0])
    assert row[5] == f"0.5 ± {np.std([0.4, 0.6], ddof=1):.4g}"


class Page(html.parser.HTMLParser):
    """Tags of a page, checked for balance; its ids, links and sources."""

    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.images = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.sources += [attrs[key] for key in ("src", "srcset") if key in attrs]
        self.images += [attrs.get("alt")] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_stands_alone(findings, tmp_path):
    study, entries, records = findings
    Image.new("L", (8, 8)).save(tmp_path / "grid.png")
    records["C", "headline"] |= {"pictures": ["grid.png"]}
    states = [course.State(course.Task(stage, stages.Place(study, each, tmp_path, None), [], None), "done",
                           records.get((each.name, stage))) for each in entries
              for stage in ("train", "headline", "heun 3", "heun 18", "dpmpp_3m 9", "cost", "difference",
                            "usefulness")]  # fmt: skip
    assert "report.html" in report.write(study, entries, states, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(page.images) and not re.search(r"url\((?!#)", text) and "@import" not in text and "<script" not in text
    assert {link[1:] for link in page.links} <= set(page.ids)
    for reference in re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", text):
        assert "".join(reference) in page.ids  # of the drawings, whose ids were made their own
    assert "A &lt;pp&gt;" in text and "A <pp>" not in text
    assert "prefers-color-scheme: dark" in text and "no substitute" not in text and "nobody has tested" in text
    for table in tables.every(findings):
        rows = list(csv.reader((tmp_path / "tables" / f"{table.name}.csv").open()))
        assert rows == [table.header, *table.rows]
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        f"{name}.{kind}" for name in ("evaluations", "D", "truth", "training", "time") for kind in ("svg", "png")
    }
    assert "![" in (tmp_path / "report.md").read_text()


def test_images_of_the_first_weights_are_told_apart(findings):
    findings.records["A <pp>", "train"]["init_images"] = 1024
    shown = {row[0]: row[1] for row in tables.quality(findings).rows}
    assert shown["A <pp>"] == "1,024 + 2,048" and shown["B|"] == "2,048"
    different = {row[0]: row[1:3] for row in tables.settings(findings).rows}
    assert different["→ images trained"] == ["1,024 + 2,048", "2,048"]


# ---- the study's file


FILE = """
from pfgm_jax.study import Study, Variant

def get_study(arg=None):
    return Study("T", "digits.py:quick", {
        "PFGM++, D = 64": Variant("D=64", seeds=(0, 7)), "DDPM": Variant("process=ddpm", {"optim.lr": 1e-4})},
        {"heun": (3,), "ancestral": (20,)}, ("heun", 3), common={"train.images": 1024})
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "digits.py").write_text((ROOT / "configs/digits.py").read_text())
    path = tmp_path / "study.py"
    path.write_text(FILE)
    return path


def test_a_file_makes_runs(file, tmp_path):
    study, path = plan.load_study(str(file))
    made = plan.entries(study, path, tmp_path / "out", {"train.batch": "32"})
    assert [each.name for each in made] == ["PFGM++, D = 64", "DDPM", "PFGM++, D = 64, seed 7"]  # later seeds last
    assert [each.folder.name for each in made] == ["pfgmpp_d_64", "ddpm", "pfgmpp_d_64_seed_7"]
    assert [each.config.seed for each in made] == [0, 0, 7] and {each.config.train.batch for each in made} == {32}
    assert [each.config.process.D for each in made] == [64, math.inf, 64]
    assert [each.changed for each in made] == [1, 3, 1]  # D; name, D and learning rate
    assert {each.config.train.images for each in made} == {1024}
    assert [stages.admits(each, "ancestral") for each in made] == [False, True, False]
    with pytest.raises(UserError, match="unknown config key 'train.bach'; did you mean 'train.batch'"):
        plan.entries(study, path, tmp_path, {"train.bach": "1"})
    with pytest.raises(UserError, match=r"seed=5 has no effect in a study: .* Variant\(seeds=\(5,\)\)"):
        plan.entries(study, path, tmp_path, {"seed": "5"})


def test_mistakes_in_a_study(file, tmp_path, command):
    for text, words in (
        (FILE.replace("get_study", "get_config"), "has no function get_study(arg)"),
        ("def get_study(arg=None):\n    return 'x'\n", "must return the Study, not str"),
        (FILE.replace('("heun", 3)', "()"), "a headline such as"),
        (FILE.replace("common=", "usefulness=1, common="), "error bars need 2 or more classifiers"),
        (FILE.replace('"DDPM"', '"PFGM++: D   64"'), "would share a folder"),
        (FILE.replace("digits.py:quick", "digit.py:quick"), "no such file; did you mean"),
        (FILE.replace("D=64", "E=64"), "unknown config argument 'E'"),
    ):
        file.write_text(text)
        code, _, err = command("--mode=study", f"--config={file}", f"--workdir={tmp_path / 'out'}")
        assert code == 2 and words in err and err.count("\n") == 1, err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arg", ["", "quick", "few", "images=32768", "report"])
def test_the_digits_study(arg, tmp_path):
    study = study_digits.get_study(arg)
    made = plan.entries(study, ROOT / "configs/study_digits.py", tmp_path, {})
    for each in made:
        config_rules.check(each.config)
        budget = (each.config.train.images, each.config.train.batch, each.config.train.ema_halflife)
        assert budget == (made[0].config.train.images, 64, 20_000)
    assert len({config_lib.flatten(e.config)["model.channels"] for e in made if e.config.model.name == "unet"}) == 1
    assert all(plan.steps_or_tolerance(*each.own) for each in made if each.own)


@pytest.mark.parametrize("arg", ["", "cpu,pair", "cpu,few", "images=2000000"])
def test_the_bloodmnist_study(arg, tmp_path):
    study = study_bloodmnist.get_study(arg)
    for each in plan.entries(study, ROOT / "configs/study_bloodmnist.py", tmp_path, {}):
        config_rules.check(each.config)
        assert each.config.model.conditional and each.config.data.name == "bloodmnist"
    assert all(plan.steps_or_tolerance(*v.own) for v in study.variants.values() if v.own)
    taken = study_bloodmnist.get_study("pair,runs=/q").variants
    assert [variant.run for variant in taken.values()] == ["/q/bloodmnist_28_pfgmpp", "/q/bloodmnist_28_ddpm"]


def test_half_a_step_is_refused():
    assert plan.steps_or_tolerance("heun", 3) == {"steps": 3}
    assert plan.steps_or_tolerance("rk45", 1e-3) == {"rtol": 1e-3, "atol": 1e-3}
    for solver, number in (("heun", 1e-3), ("heun", 0), ("huen", 3)):
        with pytest.raises(UserError):
            plan.steps_or_tolerance(solver, number)


# ---- its course


def test_measurements_are_kept_until_weights_or_settings_change(tmp_path, monkeypatch):
    weights, calls = {"a": 5}, []
    monkeypatch.setattr(course, "_weights", lambda each: weights.get(each.name))
    place = stages.Place(None, plan.Entry("a", "a", None, tmp_path, trained_here=False), tmp_path, None)
    task = course.Task("heun 3", place, [100], lambda: calls.append(1))
    assert course._read(task) is None
    course._write(task, {"n": 100})
    assert course._read(task) == {"n": 100}
    assert course._read(task._replace(settings=[200])) is None
    assert course._read(task._replace(others=(plan.Entry("b", "b", None, tmp_path),))) is None  # not trained yet
    weights["a"] = 6
    assert course._read(task) is None
    assert course._state(task, {("a", "heun 3"): "no memory"}).words == "failed: no memory"


def elsewhere(name, folder):
    """An Entry of an exported run in `folder`."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(name.encode())
    config = digits.get_config("")
    run_record.save(folder, config, {"shape": [8, 8, 1]})
    return plan.Entry(name, name, config, folder)


def paths(entries, workdir):
    study = Study("t", "b", {"A": None, "B": None}, {"heun": (5, 9, 18)}, ("heun", 18))
    return {(task.place.entry.name, task.stage): course._path(task) for task in course._tasks(study, entries, workdir)}


def test_each_run_has_records_of_its_own(tmp_path):
    """Also where folders have one name, and of a difference to another run; of other weights they are others."""
    a, b, c = elsewhere("A", tmp_path / "a/run"), elsewhere("B", tmp_path / "b/run"), elsewhere("C", tmp_path / "c")
    found = paths([a, b, c], tmp_path)
    assert len(set(found.values())) == len(found)
    assert paths([b, a, c], tmp_path)["C", "difference"] != found["C", "difference"]
    (c.folder / "model.safetensors").write_bytes(b"trained further")
    assert paths([a, b, c], tmp_path)["C", "headline"] != found["C", "headline"]


def test_a_variant_that_was_changed_is_refused(tmp_path):
    made = dataclasses.replace(elsewhere("wide", tmp_path / "wide"), trained_here=True)
    course._require_same(made)
    changed = digits.get_config("")
    changed.model.channels = 64
    with pytest.raises(UserError, match="holds a run with different model.channels; rename the variant"):
        course._require_same(dataclasses.replace(made, config=changed))


def test_sampling_that_was_changed_is_measured_anew(tmp_path):
    folder = shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "digits")
    config, _ = run_record.load(folder)
    first = plan.Entry("A", "A", config, folder)
    config = run_record.with_overrides(config, {"sample.batch": 8, "sample.S_churn": 5.0})
    second = dataclasses.replace(first, config=config)
    assert stages.uses_of(first) == {}
    settings = stages.Place(Study("t", "b", {}, {}, ("heun", 18)), second, tmp_path, None).generator().settings
    assert settings.batch == 8 and settings.options["S_churn"] == 5
    assert paths([first], tmp_path)["A", "headline"] != paths([second], tmp_path)["A", "headline"]


def test_runs_that_are_asked_for_other_classes_do_not_compare(tmp_path):
    study, entries = Study("t", "b", {}, {}, ("heun", 18), measure=False), []
    for name, labels in (("A", "balanced"), ("B", "real")):
        config = digits.get_config("conditional")
        config.sample.labels = labels
        entries.append(plan.Entry(name, name, config, tmp_path / name))
    with pytest.raises(UserError, match="A is sampled with sample.labels=balanced and B with real, which do not"):
        course.study(study, entries, tmp_path / "work")


@pytest.mark.parametrize(
    ("name", "seeds", "words"),
    [("A", (), "needs seeds"), ("A", (0, 0), "seeds that differ"), ("A", 0, "needs seeds"), ("..", (0,), "a name")],
)
def test_variants_that_are_none(tmp_path, name, seeds, words):
    study = Study("t", "digits.py", {name: plan.Variant(seeds=seeds)}, {}, ("heun", 18))
    with pytest.raises(UserError, match=words):
        plan.entries(study, ROOT / "configs/study.py", tmp_path, {})


@pytest.mark.parametrize("change", [{"ways": {"huen": (3,)}}, {"headline": ("huen", 3)}], ids=["ways", "headline"])
def test_a_solver_that_is_misspelt_is_not_left_out(tmp_path, change):
    study = dataclasses.replace(Study("t", "b", {}, {}, ("heun", 18)), **change)
    with pytest.raises(UserError, match="unknown solver 'huen'"):
        course.study(study, [], tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_settings_of_use_reach_a_run_that_is_trained_elsewhere(tmp_path):
    folder = shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "digits")
    study = Study("t", "digits.py", {"elsewhere": plan.Variant(run=str(folder))}, {}, ("heun", 18))

    def made(**overrides):
        overrides = {key.replace("_", ".", 1): value for key, value in overrides.items()}
        return plan.entries(study, ROOT / "configs/study.py", tmp_path, overrides)[0]

    plain, other = made(), made(data_dir="/images", sample_labels="balanced", train_images="512")
    assert stages.uses_of(plain) == {}
    assert stages.uses_of(other) == {"data.dir": "/images", "sample.labels": "balanced"}
    where = [paths([each], tmp_path)["elsewhere", "headline"] for each in (plain, made(data_dir="/images"), other)]
    assert where[0] == where[1] != where[2]  # where the images lie changes no figure


def test_few_steps_against_many_on_part_of_a_curve():
    """By evaluations, not by settings: of tolerances the largest takes the fewest; one point alone says nothing."""
    study = Study("t", "b", {}, {"heun": (5, 9, 18), "rk45": (1e-1, 1e-4)}, ("heun", 18))
    records = {("A", "rk45 0.1"): point("rk45", "0.1", 14, 3.0), ("A", "rk45 0.0001"): point("rk45", "1e-4", 80, 1.0),
               ("A", "heun 5"): point("heun", "5", 9, 4.0), ("A", "heun 9"): point("heun", "9", 17, 2.0)}  # fmt: skip
    assert "heun 2, rk45 3" in tables.fewest(Findings(study, [entry("A")], records)).markdown()
    del records["A", "heun 5"]
    assert "heun" not in tables.fewest(Findings(study, [entry("A")], records)).rows[0][-1]


@pytest.mark.slow
def test_the_quick_study_from_the_command_line(command, tmp_path, monkeypatch):
    """Everything runs, what goes wrong is said, and a second call measures nothing."""
    monkeypatch.chdir(ROOT)
    arguments = ("--mode=study", "--config=configs/study_digits.py:quick", f"--workdir={tmp_path}")
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "failed" not in out and "to do" not in out, out
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png") == 4 * 4  # grid, classes, strips and copies of four runs
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    assert len(kept) > 30 and all(json.loads(path.read_text()) for path in kept)
    code, out, err = command(*arguments)
    assert code == 0 and "[" not in err
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
