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

_NUMBERS = frozenset(("tensors", "params", "before", "after", "size", "bits/weight", "count", "groups"))
"""Headers of columns of numbers, which are aligned to the right."""
_GAP = 2
"""Number of blanks between two columns."""
_WORD = re.compile(r"""(?:-[\w-]+ (?!-))?(?:[^\s'"]|'[^']*'|"[^"]*")+""")
"""A word of a command, with its quotes, and before it the option that it is the value of."""
_JOINED = " \\"
"""End of a line that the shell joins with the next."""
_DEEPER = 6
_LEAST = 24
"""Least width at which a column of folded text is readable."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = _NUMBERS) -> Table:
    """Return a table of texts under headers; long cells fold, and no text is cut."""
    numbers = frozenset(right)
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        number = column in numbers
        made.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        made.add_row(*(escape(printable(cell)) for cell in row))
    return made


def fitted(
    columns: Sequence[str], rows: Iterable[Sequence[str]], width: int, *, spare: Iterable[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows that fit the terminal, without as many spare columns as needed; the last may fold.

    Args:
        columns: headers.
        rows: rows with a cell for each header.
        width: width of the terminal.
        spare: headers of columns that may be left out, in this order.
    """
    heads, left = tuple(columns), [*map(tuple, rows)]
    for name in spare:
        widths = [max(map(len, cells)) for cells in zip(heads, *left, strict=True)]
        if sum(widths[:-1]) + min(widths[-1], _LEAST) + _GAP * (len(widths) - 1) <= width:
            break
        heads, left = without(heads, left, (name,))
    return heads, left


def without(
    columns: Sequence[str], rows: Iterable[Sequence[str]], spare: Iterable[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows without the columns that have these headers."""
    left_out = frozenset(spare)
    kept = [place for place, head in enumerate(columns) if head not in left_out]
    heads, *left = (tuple(line[place] for place in kept) for line in (columns, *rows))
    return heads, left


def facts(rows: Mapping[str, str], *, indent: int = 0, dim: bool = False) -> Table:
    """Return a table of facts: a name and a text on each line, the text wrapped beside its name."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold", style="dim" if dim else "")
    for name, text in rows.items():
        made.add_row(" " * indent + escape(printable(name)), escape(printable_lines(text)))
    return made


def prose(out: Console, text: str, *, indent: int = 0) -> None:
    """Print a sentence, with markup: wrapped at words on a terminal, one line elsewhere, where grep looks for it.

    Commands are for `in_lines`, as a shell must read them when they are copied.
    """
    if out.is_terminal:
        put(out, Padding(Text.from_markup(printable_lines(text)), (0, 0, 0, indent)))
    else:
        out.print(" " * indent + text, soft_wrap=True)


def in_lines(begin: str, command: str, width: int) -> str:
    """Return a command in lines that fit and that a shell joins, the first after `begin`; its words stay whole."""
    line, *words = _WORD.findall(command)
    lines, line = [], begin + line
    for word in words:
        if len(f"{line} {word}{_JOINED}") > width:
            lines.append(line + _JOINED)
            line = " " * _DEEPER + word
        else:
            line += f" {word}"
    return "\n".join([*lines, line])


def put(out: Console, what: RenderableType, *, width: int = 10_000) -> None:
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
