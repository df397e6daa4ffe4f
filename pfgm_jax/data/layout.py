"""Which images a folder holds, of which classes and in which splits: what the source "folder" makes of file names.

FOLDER/CLASS/…/a.png                     classes by subfolder
FOLDER/train/CLASS/…/a.png, FOLDER/val/… splits by subfolder, with classes or without
FOLDER/labels.csv: file,label[,split]    both by a table
FOLDER/a.png                             images of one class
"""

import csv
import os
from pathlib import Path
from typing import NamedTuple

from pfgm_jax.data.download import one_line
from pfgm_jax.data.images import SUFFIXES
from pfgm_jax.data.splits import TEST, TRAIN, VAL
from pfgm_jax.errors import UserError

TABLE = "labels.csv"
SPLITS = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
ONE_CLASS = "images"


class Skipped(dict):
    """{reason: [how many files, the first of them]}."""

    def add(self, reason, example):
        self.setdefault(reason, [0, example])[0] += 1


class Listing(NamedTuple):
    """The images of a folder, sorted by path."""

    root: Path
    paths: list[str]
    labels: list[str]  # names of classes
    parts: list[int]  # TRAIN, VAL or TEST; all TRAIN where the folder has no splits
    how: str  # what tells classes and splits, in words
    skipped: Skipped


def find(root: Path) -> Listing:
    """The images of the folder `root`; UserError for a folder that is none or a table that does not fit its files."""
    root, skipped = _descend(_check(root)), Skipped()
    if (root / TABLE).is_file():
        rows, how = _by_table(root, skipped), f"classes by {TABLE}"
    else:
        folders = {name: SPLITS.get(name.lower()) for name in _folders(root)}
        if {TRAIN} < set(folders.values()) - {None}:
            rows, how = _by_split(root, folders, skipped)
        else:
            rows, how = _by_class(root, TRAIN, skipped)
    rows.sort()
    paths, labels, parts = ([row[i] for row in rows] for i in range(3))
    return Listing(root, paths, labels, parts, how, skipped)


def _check(root):
    """`root`; UserError unless it is a folder that can be read."""
    if root.is_file():
        kind = root.suffix.lower()
        if kind == ".npz":
            raise UserError(f"{root} is an npz file: write --config.data.name=npz")
        advice = "extract it and give the folder" if kind in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z") else ""
        raise UserError(f"--config.data.dir={root} is a file: {advice or 'give the folder of the images'}")
    if not root.is_dir():
        raise UserError(f"--config.data.dir={root} does not exist: give the folder of the images")
    try:
        os.listdir(root)
    except OSError as error:
        raise UserError(f"--config.data.dir={root} cannot be read ({one_line(error)})") from error
    return root


def _descend(root):
    """Down through folders that hold one folder and nothing else of interest, as unpacked archives often do."""
    seen = set()
    while os.path.realpath(root) not in seen:
        seen.add(os.path.realpath(root))
        try:
            folders, files = _folders(root), [name for name in os.listdir(root) if _is_image(name) or name == TABLE]
        except OSError:
            break
        if len(folders) != 1 or files:
            break
        root = root / folders[0]
    return root


def _by_class(root, part, skipped):
    """([(path, class, part)], what tells them) of a folder with a subfolder a class, or of images alone."""
    inside = {name: _walk(root / name, skipped) for name in _folders(root)}
    loose = [str(root / name) for name in sorted(os.listdir(root)) if _is_wanted(root / name, skipped)]
    if not any(inside.values()):
        return [(path, ONE_CLASS, part) for path in loose], "one class"
    for name, paths in inside.items():
        if not paths:
            skipped.add("folders without images", root / name)
    for path in loose:
        skipped.add("images beside the class folders", path)
    return [(path, name, part) for name, paths in inside.items() for path in paths], "classes by subfolder"


def _by_split(root, folders, skipped):
    """The same for a folder with the subfolders train and val or test; others are skipped."""
    rows, ways = [], set()
    made = {}
    for name, part in folders.items():
        if part is None:
            skipped.add("folders beside those of the splits", root / name)
        else:
            found, way = _by_class(root / name, part, skipped)
            made.setdefault(part, []).extend(found)
            ways |= {way} if found else set()
    for name in sorted(os.listdir(root)):
        if _is_wanted(root / name, skipped):
            skipped.add("images beside the folders of the splits", root / name)
    classes = len(ways) > 1  # of splits with classes and without, those without have no labels
    for split in made.values():
        for row in split:
            if classes and row[1] == ONE_CLASS:
                skipped.add("images without a class, as other splits have them", row[0])
            else:
                rows.append(row)
    return rows, f"{'classes and ' if 'classes by subfolder' in ways else 'one class, '}splits by subfolder"


def _by_table(root, skipped):
    """The same for a folder with labels.csv, of columns file, label and, if it likes, split."""
    table, rows = root / TABLE, {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            lines = [(reader.line_num, row) for reader in [csv.reader(stream)] for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no table in UTF-8 ({one_line(error)}): save it as CSV") from error
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    if sorted(columns) not in (["file", "label"], ["file", "label", "split"]):
        found = ",".join(columns)[:80] or "none"
        raise UserError(f"{table} has the columns {found}: write file,label or file,label,split")
    absent = []
    for number, row in lines[1:]:
        if len(row) != len(columns):
            raise UserError(f"{table}, line {number} has {len(row)} values for the columns {','.join(columns)}")
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
        part = SPLITS.get(cells.get("split", "train").lower())
        if not cells["file"] or not cells["label"] or part is None:
            text = ",".join(row)[:80]
            raise UserError(f"{table}, line {number}: {text!r} lacks a file, a label, or train, val or test")
        path = os.path.normpath(root / cells["file"].replace("\\", "/"))
        entry = (path, cells["label"], part)
        if rows.setdefault(path, entry) != entry:
            raise UserError(f"{table}, line {number}: {cells['file']} is there twice with different labels or splits")
        if rows[path] is not entry:
            skipped.add(f"rows that {TABLE} has twice", cells["file"])
        elif not os.path.isfile(path):
            absent.append(cells["file"])
    if absent:
        raise UserError(f"{table} names {len(absent)} files that are not there, such as {absent[0]}")
    for path in _walk(root, skipped):
        if os.path.normpath(path) not in rows and path != str(table):
            skipped.add(f"images without a row in {TABLE}", path)
    return list(rows.values())


def _walk(folder, skipped):
    """Paths of the images below a folder; links to folders are followed, once."""
    paths, seen = [], set()

    def unreadable(error):
        skipped.add("unreadable folders", error.filename)

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            skipped.add("folders met before, by a link", parent)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        paths += [os.path.join(parent, name) for name in sorted(names) if _is_wanted(Path(parent, name), skipped)]
    return paths


def _folders(root):
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name))


def _is_hidden(name):
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_wanted(path, skipped):
    """Whether a path has an image's name; of files that have not, it is noted."""
    if _is_image(path.name):
        return not path.is_dir()
    if not _is_hidden(path.name) and path.name != TABLE and not path.is_dir():
        skipped.add(f"files of other types ({path.suffix.lower() or 'no suffix'})", path)
    return False
