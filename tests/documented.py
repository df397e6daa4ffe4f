"""What README.md, CONTRIBUTING.md and docs/ tell people to type."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in ROOT.glob("docs/*.md") if not p.is_symlink())]
)
# First words of a command, after variables of the environment.
PROGRAMS = ("python", "pfgm-jax", "bash", "pip", "sbatch", "tensorboard", "tfds", "pre-commit", "pyrefly", "cp")
MAIN = r"(python -m pfgm_jax\.main|pfgm-jax) "  # how a command of the package begins
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, *languages):
    """The texts of a page's code blocks in some languages ("" for none)."""
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


def prose(page):
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def spans(page):
    """Texts of the code spans of a page's prose, on one line each."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page))]


def commands(page):
    """Every command of a page, in blocks and in prose: single spaces, no comment, quotes only where they are needed."""
    lines = [line for text in blocks(page, "sh", "") for line in text.replace("\\\n", " ").splitlines()]
    found = (split(line) for line in [*lines, *spans(page)])
    return [shlex.join(words) for words in found if is_command(words)]


def split(line):
    """The words of a line, without its comment; none where it is no line of a shell."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def is_command(words):
    """Whether words are a whole command: a program with an argument, whatever is set before it."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    return len(words) > 1 and words[0] in PROGRAMS
