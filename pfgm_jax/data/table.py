"""labels.csv: the classes, splits and patients of the images of a folder, as a table says.

Its first line names the columns, which commas, semicolons or tabs separate: the file, its label and, if it likes, the
split and the patient. Other columns are named in the inventory and not read.
"""

import csv
import io
import os
from pathlib import Path

from pfgm_jax.data.download import one_line
from pfgm_jax.data.splits import NAMES, SPLITS, TRAIN
from pfgm_jax.errors import UserError, counted

NAME = "labels.csv"  # in whatever case
SEPARATORS = ",;\t"
# What a column is, and what it may be called; the first name wins over the others.
COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "image"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group": ("patient", "patient_id", "group"),
}


def find(folder) -> Path | None:
    """The table of a folder, or None; UserError where there are two, or none that can be read."""
    tables = [entry for entry in sorted(Path(folder).iterdir()) if entry.name.lower() == NAME and not entry.is_dir()]
    if len(tables) > 1:
        raise UserError(f"{folder} has {' and '.join(table.name for table in tables)}: keep one of them")
    if tables and not tables[0].is_file():
        raise UserError(f"{tables[0]} cannot be read as a file: replace or remove it")
    return tables[0] if tables else None


def read(table: Path, finding, part=None) -> dict:
    """{path: (path, label, split, group)} of a table, whose files are in its folder or below.

    finding: `folder_listing`'s notes of what is skipped, and of what tells the patients.
    part: the split that the table's folder is; None: the column split says it, and without one all images are TRAIN.

    Raises:
      UserError: a table that cannot be read, or that does not fit its files.
    """
    columns, lines = _lines(table)
    roles = _roles(table, columns)
    unused = [name for i, name in enumerate(columns) if name and i not in roles.values()]
    if unused:
        finding.notes.append(f"of {table.name} the {_columns(unused)} not used")
    if "group" in roles:
        finding.grouped.add(f"the column {columns[roles['group']]} of {table.name}")
    rows, absent = {}, []
    for number, cells in lines:
        where = f"{table}, line {number}"
        if len(cells) != len(columns):
            raise UserError(f"{where} has {counted(len(cells), 'value')} for the columns {','.join(columns)}")
        row = {role: cells[i].strip() for role, i in roles.items()}
        split = SPLITS.get(row["split"].lower()) if "split" in row else TRAIN if part is None else part
        if not row["file"] or not row["label"] or split is None:
            raise UserError(f"{where}: {','.join(cells)[:80]!r} lacks a file, a label, or train, val or test")
        if part not in (None, split):
            raise UserError(f"{where}: the split {row['split']} in the folder of {NAMES[part]}: remove the column")
        path = os.path.normpath(table.parent / row["file"].replace("\\", "/"))
        if os.path.isabs(path) and not table.is_absolute():
            path = os.path.relpath(path)
        if not path.startswith(os.path.join(os.path.normpath(table.parent), "")):
            raise UserError(f"{where}: {row['file']!r} is outside {table.parent}: list only files of that folder")
        entry = (path, row["label"], split, row.get("group", ""))
        if rows.setdefault(path, entry) != entry:
            raise UserError(f"{where}: {row['file']} is listed twice with different labels, splits or patients")
        if rows[path] is not entry:
            finding.skipped.add("row", f"that {table.name} lists twice", row["file"])
        elif not os.path.isfile(path):
            absent.append(row["file"])
    if absent:
        what = "a file that is" if len(absent) == 1 else f"{len(absent):,} files that are"
        raise UserError(f"{table} names {what} not there, such as {absent[0]}")
    return rows


def _lines(table):
    """(names of the columns, [(number, cells)] of the lines below), by the separator that the first line shows."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
        header = text.lstrip().partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=header.count))
        lines = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a UTF-8 table ({one_line(error)}): save it as CSV") from error
    return [name.strip().lower() for name in lines[0][1]] if lines else [], lines[1:]


def _roles(table, columns):
    """{role: index of its column}; UserError where file or label is missing or may be one of several."""
    roles = {}
    for role, names in COLUMNS.items():
        there = [i for i, name in enumerate(columns) if name in names]
        own = [i for i in there if columns[i] == names[0]] or there
        if len(own) > 1:
            present = " and ".join(columns[i] for i in own)
            raise UserError(f"{table} has the columns {present}: name one of them {names[0]} and rename the others")
        roles |= {role: own[0]} if own else {}
    if "file" not in roles or "label" not in roles:
        present = ",".join(columns)[:80] or "none"
        raise UserError(f"{table} has the columns {present}: write file,label or file,label,split")
    return roles


def _columns(names):
    return f"column {names[0]} is" if len(names) == 1 else f"columns {', '.join(names)} are"
