"""Errors for people: one line that says what to write instead."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input: one line that says what to write instead. main prints it and exits with code 2.

    The message may quote names from files, folders and servers: it is made `printable` here, so nowhere else.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def nearest(word: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the option closest to `word`, or "" when none is close.

    No correction is suggested for a number.

    >>> nearest("huen", ["heun", "euler", "rk45"])
    "; did you mean 'heun'?"
    """
    matches = difflib.get_close_matches(str(word), [str(option) for option in options], n=1)
    return f"; did you mean {matches[0]!r}?" if matches and not _is_number(word) else ""


def _is_number(word):
    try:
        float(word)
    except (TypeError, ValueError):
        return False
    return True


def counted(n: int, noun: str) -> str:
    """A number and its noun: "1 image", "2 images", "1 class", "1,437 classes"."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def quoted(text: str, length: int = 80) -> str:
    """Text of a user or a file in quotes, printable, on one line and of about `length` characters at most."""
    text = printable(text[: length + 1])
    return f"'{text}'" if len(text) <= length else f"'{text[: length - 1]}…'"


def printable(text: str) -> str:
    r"""The text with control characters, and those that the terminal cannot encode, escaped: such as \x1b for ESC.

    Names that come from files (classes, columns, a server's answer) pass through here before they are shown.
    """
    shown = (c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(shown)
