"""Tables as text and HTML."""

import html


def aligned(rows, left=(0,)):
    """Rows of cells as text in columns; those numbered in `left` are aligned to the left.

    >>> print(aligned([["solver", "evaluations"], ["heun", "35"], ["rk45", "74"]]))
    solver  evaluations
    heun             35
    rk45             74
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = {column % len(widths) for column in left}
    line = lambda row: [
        cell.ljust(w) if i in to_left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    return "\n".join("  ".join(line(row)).rstrip() for row in rows)


def markdown(header, rows):
    """A Markdown table whose columns are padded, so that it reads as plain text."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def as_html(rows):
    """An HTML table of rows of cells, of which the first is the header."""
    line = lambda row, tag: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[1:])}</table>"
