"""Which images a folder holds, of which classes and in which splits: what the source "folder" makes of file names.

FOLDER/CLASS/…/a.png                     classes by subfolder
FOLDER/train/CLASS/…/a.png, FOLDER/val/… splits by subfolder, with classes or without, or with a labels.csv each
FOLDER/labels.csv: file,label[,split]    both by a table
FOLDER/a.png                             images of one class

Folders are splits where one for training (train, training) stands beside one for validation (val, valid, validation,
dev) or for testing (test, tests, testing, eval, evaluation), in upper or lower case. Otherwise these names are classes.
"""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from pfgm_jax.data import table
from pfgm_jax.data.download import one_line
from pfgm_jax.data.images import SUFFIXES
from pfgm_jax.data.splits import SPLITS, TRAIN
from pfgm_jax.errors import UserError, counted

ONE_CLASS = "images"


class Skipped(dict):
    """{(noun, reason): [how many, the first of them]}."""

    def add(self, noun, reason, example):
        self.setdefault((noun, reason), [0, example])[0] += 1

    def lines(self, root):
        """A line a reason: how many, why, and the first of them."""
        for (noun, reason), (count, first) in self.items():
            yield f"{counted(count, noun)}{reason and ' '}{reason} ({str(first).removeprefix(f'{root}/')})"

    def total(self):
        return sum(count for count, _ in self.values())


class Listing(NamedTuple):
    """The images of a folder, sorted by path."""

    root: Path
    paths: list[str]
    labels: list[str]  # names of classes
    parts: list[int]  # TRAIN, VAL or TEST; all TRAIN where the folder has no splits
    groups: list[str]  # patients, whose images are to stay in one split; "": not known
    how: str  # what tells classes and splits, in words
    grouped: str  # what tells the groups; "": nothing
    notes: list[str]  # for the inventory
    skipped: Skipped


class _Finding(NamedTuple):
    """What is noted on the way."""

    skipped: Skipped
    notes: list
    grouped: set
    tables: set  # paths of those that are read


def find(root: Path, group="") -> Listing:
    """The images of the folder `root`, of whose paths the regular expression `group` finds the patient.

    The patient is what the first parenthesis of `group` matches, or all of it.

    Raises:
      UserError: a path that is no folder, a table that does not fit its files, or a `group` that finds none.
    """
    finding = _Finding(Skipped(), [], set(), set())
    root = _descend(_check(root), finding)
    if table.find(root):
        rows, how = _by_table(root, None, finding)
    else:
        folders = {name: SPLITS.get(name.lower()) for name in _folders(root)}
        if {TRAIN} < set(folders.values()) - {None}:
            rows, how = _by_split(root, folders, finding)
        else:
            rows, how = _by_class(root, TRAIN, finding)
            alike = [name for name, part in folders.items() if part is not None]
            if alike and len(folders) > 1:
                names = f"{', '.join(alike)} {'is a class' if len(alike) == 1 else 'are classes'}"
                finding.notes.append(f"{names}, not a split: splits are train beside val or test")
    rows.sort()
    paths, labels, parts, groups = ([row[i] for row in rows] for i in range(4))
    if group:
        if finding.grouped:
            raise UserError(f"data.group={group} and {', '.join(finding.grouped)} both name groups: leave one out")
        groups = _match(group, paths, root)
        finding.grouped.add("data.group")
    return Listing(
        root, paths, labels, parts, groups, how, ", ".join(sorted(finding.grouped)), finding.notes, finding.skipped
    )


def _check(root):
    """`root`; UserError unless it is a folder that can be read."""
    if root.is_file():
        kind = root.suffix.lower()
        if kind == ".npz":
            raise UserError(f"{root} is an npz file: write data.name=npz")
        advice = "extract it and give the folder" if kind in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z") else ""
        raise UserError(f"data.dir={root} is a file: {advice or 'give the folder of the images'}")
    if not root.is_dir():
        raise UserError(f"data.dir={root} does not exist: give the folder of the images")
    try:
        os.listdir(root)
    except OSError as error:
        raise UserError(f"data.dir={root} cannot be read ({one_line(error)})") from error
    return root


def _descend(root, finding):
    """Down through folders that hold one folder and nothing else of interest, as unpacked archives often do."""
    seen = set()
    while os.path.realpath(root) not in seen:
        seen.add(os.path.realpath(root))
        try:
            folders, files = _folders(root), [name for name in os.listdir(root) if _is_image(name)]
            if len(folders) != 1 or files or table.find(root):
                break
            _loose(root, finding)  # what is passed by is listed
        except OSError:
            break
        root = root / folders[0]
    return root


def _match(pattern, paths, root):
    """The group of every path, "" where the pattern does not match."""
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"data.group={pattern} is not a valid regular expression ({one_line(error)})") from None
    matches = [search(os.path.relpath(path, root)) for path in paths]
    groups = [(match.group(1 if match.re.groups else 0) or "") if match else "" for match in matches]
    if paths and not any(groups):
        example = os.path.relpath(paths[0], root)
        raise UserError(f"data.group={pattern} matches none of the paths, such as {example}: change the pattern")
    return groups


def _by_class(root, part, finding):
    """([(path, class, part, group)], what tells them) of a folder with a subfolder a class, or of images alone."""
    inside = {name: _walk(root / name, finding) for name in _folders(root)}
    loose = _loose(root, finding)
    if not any(inside.values()):
        return [(path, ONE_CLASS, part, "") for path in loose], "one class"
    for name, paths in inside.items():
        if not paths:
            finding.skipped.add("folder", "without images", root / name)
    for path in loose:
        finding.skipped.add("image", "beside the class folders", path)
    return [(path, name, part, "") for name, paths in inside.items() for path in paths], "classes by subfolder"


def _by_split(root, folders, finding):
    """The same for a folder with the subfolders train and val or test; others are skipped."""
    rows, found = [], []
    for name, part in folders.items():
        if part is None:
            finding.skipped.add("folder", "beside those of the splits", root / name)
            continue
        if table.find(root / name):
            own, way = _by_table(root / name, part, finding)
        else:
            own, way = _by_class(root / name, part, finding)
        if own:
            found.append((way, own))
    for path in _loose(root, finding):
        finding.skipped.add("image", "beside the folders of the splits", path)
    classes = sorted({way for way, _ in found} - {"one class"})
    for way, own in found:
        if classes and way == "one class":  # of splits with classes and without, those without have no labels
            for path, *_ in own:
                finding.skipped.add("image", "without a class, unlike other splits", path)
        else:
            rows += own
    if classes == ["classes by subfolder"]:
        return rows, "classes and splits by subfolder"
    return rows, f"{' and '.join(classes) or 'one class'}, splits by subfolder"


def _by_table(folder, part, finding):
    """The same for a folder with labels.csv."""
    path = table.find(folder)
    finding.tables.add(str(path))
    rows = table.read(path, finding, part)
    for image in _walk(folder, finding):
        if os.path.normpath(image) not in rows:
            finding.skipped.add("image", f"without a row in {path.name}", image)
    return list(rows.values()), f"classes by {path.name}"


def _walk(folder, finding):
    """Paths of the images below a folder; links to folders are followed, once."""
    paths, seen = [], set()

    def unreadable(error):
        finding.skipped.add("unreadable folder", "", error.filename)

    walk = os.walk(folder, followlinks=True, onerror=unreadable)
    for parent, folders, names in tqdm(walk, unit=" folders", desc="listing", delay=1, leave=False):
        real = os.path.realpath(parent)
        if real in seen:
            finding.skipped.add("folder", "read already, through a link", parent)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        paths += [path for name in sorted(names) if _is_wanted(path := os.path.join(parent, name), finding)]
    return paths


def _loose(root, finding):
    """Paths of the images in a folder itself."""
    return [path for name in sorted(os.listdir(root)) if _is_wanted(path := os.path.join(root, name), finding)]


def _folders(root):
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name))


def _is_hidden(name):
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_wanted(path, finding):
    """Whether a path is a file with an image's name; what else there is of files is noted."""
    name = os.path.basename(path)
    if _is_hidden(name) or path in finding.tables:
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError:  # a link to nowhere, which reading will say
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        return False
    if not stat.S_ISREG(mode):
        finding.skipped.add("special file", "such as a pipe", path)
        return False
    if _is_image(name):
        return True
    finding.skipped.add("file", f"of another type ({os.path.splitext(name)[1].lower() or 'no suffix'})", path)
    return False
