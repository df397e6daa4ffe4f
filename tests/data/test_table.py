"""labels.csv: its columns, separators, splits and patients, and what is said where it does not fit."""

import csv
import os

import numpy as np
import pytest
from image_folders import classes, config, counts, fails, put, table

from pfgm_jax import data
from pfgm_jax.data import folder_listing


def test_classes_and_splits_by_a_table(tmp_path, capsys):
    classes(tmp_path, {"x": 4, "y": 4})
    rows = [(f"{name}/{i}.png", label, split) for name in "xy" for i, (label, split) in
            enumerate([("red, dark", "train"), ("é", "train"), ("é", "Val"), ("red, dark", "test")])]  # fmt: skip
    table(tmp_path, [*rows, rows[0]], ("file", "Label", "split"), encoding="utf-8-sig")
    put(tmp_path / "z.png")
    made = data.load(config(tmp_path))
    assert counts(made) == [4, 2, 2] and made.classes == ("red, dark", "é")
    np.testing.assert_array_equal(made.train.labels, [0, 1, 0, 1])
    said = capsys.readouterr().err
    assert (
        "1 row that labels.csv lists twice (x/0.png)" in said and "1 image without a row in labels.csv (z.png)" in said
    )
    table(tmp_path, [row[:2] for row in rows])
    assert sum(counts(data.load(config(tmp_path)))) == 8


@pytest.mark.parametrize(
    "rows, columns, words",
    [
        ([("0.png", "a"), ("absent.png", "a"), ("b/c.png", "a")], ("file", "label"), ["names 2 files", "absent.png"]),
        (
            [("0.png", "a"), ("0.png", "b")],
            ("file", "label"),
            ["line 3", "0.png is listed twice with different labels"],
        ),
        ([("0.png", "a"), ("1.png",)], ("file", "label"), ["line 3 has 1 value for the columns file,label"]),
        ([("0.png", "")], ("file", "label"), ["line 2", "lacks a file, a label"]),
        ([("0.png", "a", "holdout")], ("file", "label", "split"), ["line 2", "train, val or test"]),
        ([("0.png", "a", "val")], ("file", "label", "split"), ["no image to train on"]),
        ([("0.png", "a")], ("scan", "class"), ["has the columns scan,class: write file,label or file,label,split"]),
        (
            [("0.png", "0", "a")],
            ("file", "class", "target"),
            ["has the columns class and target: name one of them label"],
        ),
        ([("0.png", "a", "b")], ("file", "label", "label"), ["has the columns label and label"]),
        ([("../0.png", "a")], ("file", "label"), ["line 2: '../0.png' is outside"]),
        ([("/etc/passwd", "a")], ("file", "label"), ["line 2: '/etc/passwd' is outside"]),
        ([("\x1b[31m.png", "a")], ("file", "label"), [r"names a file that is not there, such as \x1b[31m.png"]),
        ([], (), ["has the columns none"]),
    ],
)
def test_tables_that_do_not_fit(tmp_path, rows, columns, words):
    for i in range(2):
        put(tmp_path / f"{i}.png")
    table(tmp_path, rows, columns)
    fails(tmp_path, tmp_path, *words)


def test_whole_paths_in_a_folder_that_is_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes(tmp_path / "here", {"cat": 3})
    table(tmp_path / "here", [(str(tmp_path / f"here/cat/{i}.png"), "feline") for i in range(3)])
    assert data.load(config("here")).classes == ("feline",)


def test_a_table_in_a_folder_by_a_way_round(tmp_path, capsys):
    classes(tmp_path / "here", {"cat": 3})
    table(tmp_path / "here", [(f"cat/{i}.png", "cat") for i in range(3)])
    assert sum(counts(data.load(config(tmp_path / "here" / ".." / "here")))) == 3
    assert "skipped" not in capsys.readouterr().err


def test_a_table_that_is_none(tmp_path):
    put(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00,1\n")
    fails(tmp_path, "labels.csv is not a UTF-8 table")


@pytest.mark.parametrize("file", ["file", "filename", "file_name", "path", "image", "Image"])
@pytest.mark.parametrize("label", ["label", "class", "target"])
@pytest.mark.parametrize("separator, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_columns_by_other_names_and_separators(tmp_path, file, label, separator, encoding):
    for i in range(2):
        (tmp_path / f"{i}.png").touch()
    with open(tmp_path / "labels.csv", "w", newline="", encoding=encoding) as stream:
        rows = [("age", file, label), (7, "0.png", "ä, b;"), (8, "1.png", "c")]
        csv.writer(stream, delimiter=separator).writerows(rows)
    listing = folder_listing.find(tmp_path)
    assert listing.labels == ["ä, b;", "c"]
    assert [os.path.basename(path) for path in listing.paths] == ["0.png", "1.png"]
    assert listing.notes == ["of labels.csv the column age is not used"]


def test_a_first_name_of_a_column_wins(tmp_path, capsys):
    classes(tmp_path, {"x": 4})
    table(tmp_path, [(f"x/{i}.png", "other.png", "cat", i) for i in range(4)], ("file", "path", "label", "class"))
    assert data.load(config(tmp_path, val=0, test=0)).classes == ("cat",)
    assert "of labels.csv the columns path, class are not used" in capsys.readouterr().err


def test_a_table_in_every_split(tmp_path, capsys):
    for split, numbers in {"train": range(8), "val": range(3), "testing": range(2)}.items():
        for i in numbers:
            put(tmp_path / split / "scans" / f"{i}.png", (9 * i, 7, 7))
        table(tmp_path / split, [(f"scans/{i}.png", "ab"[i % 2]) for i in numbers])
    made = data.load(config(tmp_path))
    assert counts(made) == [8, 3, 2] and made.classes == ("a", "b")
    assert made.train.labels.tolist() == [0, 1] * 4
    said = capsys.readouterr().err
    assert "13 images, classes by labels.csv, splits by subfolder\n" in said and "skipped" not in said
    # One split with classes by subfolder goes with them; a contradiction does not.
    (tmp_path / "val" / "labels.csv").unlink()
    classes(tmp_path / "val", {"a": 2})
    assert counts(data.load(config(tmp_path)))[1] == 5
    table(tmp_path / "testing", [("scans/0.png", "a", "train")], ("file", "label", "split"))
    fails(tmp_path, "line 2: the split train in the folder of test: remove the column")
    table(tmp_path / "testing", [("../train/scans/0.png", "a")])
    fails(tmp_path, "line 2: '../train/scans/0.png' is outside", "testing: list only files of that folder")


def test_a_table_in_capitals_and_beside_a_folder(tmp_path, capsys):
    classes(tmp_path, {"images": 6})
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    (tmp_path / "Labels.CSV").write_text("file,label\n" + rows)
    assert data.load(config(tmp_path)).classes == ("a", "b")
    assert "classes by Labels.CSV" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    fails(tmp_path, "has Labels.CSV and labels.csv: keep one of them")
    for name in ("Labels.CSV", "labels.csv"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "labels.csv")
    fails(tmp_path, "labels.csv cannot be read as a file")


def test_tables_that_are_not_read_are_named(tmp_path, capsys):
    classes(tmp_path, {"archive/images/cat": 4, "archive/images/dog": 4})
    (tmp_path / "metadata.csv").write_text("x")
    (tmp_path / "archive" / "train.csv").write_text("x")
    (tmp_path / "archive" / "images" / "cat" / "labels.csv").write_text("x")
    assert data.load(config(tmp_path)).classes == ("cat", "dog")
    assert "3 files of another type (.csv)" in capsys.readouterr().err


# ---- patients


def patients(folder, column="patient"):
    """60 images of 12 patients in a table, of two classes."""
    rows = []
    for i in range(60):
        put(folder / f"{i}.png", (i, 9, 9))
        rows.append((f"{i}.png", "ab"[i // 5 % 2], f"P{i // 5}"))
    table(folder, rows, ("file", "label", column))
    return rows


def owners(split):
    """Patients of a split, from the red of its images."""
    return set((split.images[:, 0, 0, 0] // 5).tolist())


@pytest.mark.parametrize("how", ["patient", "group", "data.group"])
def test_a_patient_stays_in_one_split(tmp_path, how, capsys):
    rows = patients(tmp_path, how if how != "data.group" else "other")
    if how == "data.group":
        for name, label, patient in rows:
            put(tmp_path / "by name" / label / f"{patient}_{name}", (int(name[:-4]), 9, 9))
    folder, options = (tmp_path / "by name", {"group": r"/(P\d+)_"}) if how == "data.group" else (tmp_path, {})
    made = data.load(config(folder, val=0.2, test=0.2, **options))
    train, val, test = owners(made.train), owners(made.val), owners(made.test)
    assert len(train | val | test) == 12 and not train & val and not train & test and not val & test
    assert counts(made) == [35, 15, 10] or abs(counts(made)[0] - 36) <= 5 and min(counts(made)[1:]) >= 10
    said = capsys.readouterr().err
    assert f"patients   12, by {how if how == 'data.group' else f'the column {how} of labels.csv'}\n" in said
    assert "none in two splits" in said


def test_given_splits_that_share_patients_are_counted(tmp_path, capsys):
    for i in range(12):
        put(tmp_path / ("train" if i < 8 else "test") / f"p{i % 6}_{i}.png", (i, 9, 9))  # p2 … p5 in both
    made = data.load(config(tmp_path, val=0, group=r"p\d"))
    assert counts(made) == [8, 0, 4]
    want = len({i % 6 for i in range(8)} & {i % 6 for i in range(8, 12)})
    assert f"{want} of them in train and test both: a leak" in capsys.readouterr().err


def test_images_without_a_patient_are_by_themselves(tmp_path, capsys):
    for i in range(20):
        put(tmp_path / (f"p{i // 5}_{i}.png" if i < 10 else f"{i}.png"), (i, 9, 9))
    data.load(config(tmp_path, group=r"p(\d)"))
    assert "patients   2, by data.group; 10 files without, each by itself" in capsys.readouterr().err


def test_groups_that_are_none(tmp_path):
    patients(tmp_path)
    fails(tmp_path, "and the column patient of labels.csv both name groups: leave one out", group="x")
    (tmp_path / "labels.csv").unlink()
    fails(tmp_path, "data.group=( is not a valid regular expression", group="(")
    fails(tmp_path, "data.group=x matches none of the paths, such as 0.png", group="x")
