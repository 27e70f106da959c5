"""Tables and sentences that stay within the terminal."""

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from g4convert.printable import printable, printable_lines

_NUMBER_COLUMNS = frozenset(("tensors", "params", "before", "after", "size", "bits/weight", "count", "groups"))
"""Headers of columns of numbers, which are aligned to the right."""
_COLUMN_GAP = 2
"""Number of blanks between two columns."""
_WORD = re.compile(r"""(?:-[\w-]+ (?!-))?(?:[^\s'"]|'[^']*'|"[^"]*")+""")
"""A word of a command, with its quotes, and before it the option that it is the value of."""
_CONTINUATION = " \\"
"""End of a line that the shell joins with the next."""
_CONTINUATION_INDENT = 6
_LEAST_FOLDED = 24
"""Least width at which a column of folded text is readable."""


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = _NUMBER_COLUMNS
) -> Table:
    """Return a table of texts under headers; long cells fold, and no text is cut."""
    numbers = frozenset(right)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table


def fit_to_terminal(
    columns: Sequence[str], rows: Iterable[Sequence[str]], width: int, *, spare: Iterable[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows that fit the terminal, without as many spare columns as needed; the last may fold.

    Args:
        columns: headers.
        rows: rows with a cell for each header.
        width: width of the terminal.
        spare: headers of columns that may be left out, in this order.
    """
    headers, cells_left = tuple(columns), [*map(tuple, rows)]
    for name in spare:
        widths = [max(map(len, cells)) for cells in zip(headers, *cells_left, strict=True)]
        if sum(widths[:-1]) + min(widths[-1], _LEAST_FOLDED) + _COLUMN_GAP * (len(widths) - 1) <= width:
            break
        headers, cells_left = drop_columns(headers, cells_left, (name,))
    return headers, cells_left


def drop_columns(
    columns: Sequence[str], rows: Iterable[Sequence[str]], spare: Iterable[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows without the columns that have these headers."""
    left_out = frozenset(spare)
    kept = [place for place, head in enumerate(columns) if head not in left_out]
    heads, *left = (tuple(line[place] for place in kept) for line in (columns, *rows))
    return heads, left


def make_facts(rows: Mapping[str, str], *, indent: int = 0, dim: bool = False) -> Table:
    """Return a table of facts: a name and a text on each line, the text wrapped beside its name."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", style="dim" if dim else "")
    for name, text in rows.items():
        table.add_row(" " * indent + escape(printable(name)), escape(printable_lines(text)))
    return table


def print_prose(out: Console, text: str, *, indent: int = 0) -> None:
    """Print a sentence with markup: wrapped at words on a terminal, and in one line elsewhere, so that grep finds it.

    Commands go through `break_command` instead, so that a shell reads them when they are copied.
    """
    if out.is_terminal:
        print_trimmed(out, Padding(Text.from_markup(printable_lines(text)), (0, 0, 0, indent)))
    else:
        out.print(" " * indent + text, soft_wrap=True)


def break_command(begin: str, command: str, width: int) -> str:
    """Break a command into lines that fit and that a shell joins, the first after `begin`; words stay whole."""
    line, *words = _WORD.findall(command)
    lines, line = [], begin + line
    for word in words:
        if len(f"{line} {word}{_CONTINUATION}") > width:
            lines.append(line + _CONTINUATION)
            line = " " * _CONTINUATION_INDENT + word
        else:
            line += f" {word}"
    return "\n".join([*lines, line])


def print_trimmed(out: Console, what: RenderableType, *, width: int = 10_000) -> None:
    """Print at most `width` columns wide, without the trailing blanks that rich adds, which soil logs and diffs."""
    lines: list[Segment] = []
    options = out.options.update(width=min(width, out.width))
    for line in out.render_lines(what, options, pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        lines += [*line, Segment.line()]
    out.print(Segments(lines), end="")
