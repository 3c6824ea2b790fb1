"""The tables of ``manage.py connections`` on a terminal, drawn by rich (the extra ``rich``)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from conn_hygiene.management.rendering import BAD, GOOD, PLAIN, QUIET, WARN, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conn_hygiene.management.rendering import Block

_STYLES = {BAD: "bold red", WARN: "yellow", GOOD: "green", QUIET: "dim", PLAIN: ""}

# No pid and no duration is longer.
_SHORT = 12
# What is left of a text at least, before it is folded.
_FOLDED = 8


def console(stream: Any, *, no_color: bool, force_terminal: bool) -> Console:
    """Return a console that writes to *stream*, with or without colours as the options of Django's commands say."""
    return Console(file=stream, no_color=no_color or None, force_terminal=force_terminal or None, highlight=False)


def show(to: Console, blocks: Iterable[Block]) -> None:
    """Print *blocks*."""
    to.print(_drawn(blocks))


@contextlib.contextmanager
def live(to: Console) -> Iterator[Callable[[Iterable[Block]], None]]:
    """Yield a function that draws blocks in the place of those that it drew before."""
    with Live(console=to, auto_refresh=False) as drawing:
        yield lambda blocks: drawing.update(_drawn(blocks), refresh=True)


def _drawn(blocks: Iterable[Block]) -> Group:
    # Text and not markup: what a server reports may contain brackets.
    return Group(
        *[
            _table(block) if isinstance(block, Table) else Text(block.text, style=_STYLES[block.mood])
            for block in blocks
        ]
    )


def _table(block: Table) -> RichTable | Text:
    used = [place for place in range(len(block.columns)) if any(row[place] for row in block.rows)]
    if not used:
        return Text()
    table = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place in used:
        width = max(len(row[place]) for row in (block.columns, *block.rows))
        # On a narrow terminal texts are folded, so that numbers can still be read.
        short = width <= _SHORT
        table.add_column(block.columns[place], min_width=width if short else _FOLDED, no_wrap=short, overflow="fold")
    for number, (row, mood) in enumerate(zip(block.rows, block.moods, strict=True), 1):
        table.add_row(
            *[Text(row[place]) for place in used],
            style=_STYLES[mood],
            end_section=number < len(block.rows) and block.rows[number][0] != row[0],
        )
    return table
