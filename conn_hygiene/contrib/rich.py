"""The tables of ``manage.py connections`` on a terminal, drawn by rich (the extra ``rich``)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from conn_hygiene.management.fitting import fitted
from conn_hygiene.management.rendering import BAD, GOOD, PLAIN, QUIET, WARN, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import ConsoleOptions

    from conn_hygiene.management.rendering import Block

_STYLES = {BAD: "bold red", WARN: "yellow", GOOD: "green", QUIET: "dim", PLAIN: ""}


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


def _drawn(blocks: Iterable[Block]) -> _Drawing:
    return _Drawing(list(blocks))


class _Drawing:
    """Blocks, drawn as wide as the console is whenever it draws them: a terminal changes its width."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable | Text]:
        for block in self._blocks:
            # Text and not markup: what a server reports may contain brackets.
            if isinstance(block, Table):
                yield _table(block, options.max_width)
            else:
                yield Text(block.fitted(options.max_width), style=_STYLES[block.mood])


# Between two columns, and what the box adds on both sides.
_GAP, _EDGES = 2, 3


def _table(block: Table, width: int) -> RichTable | Text:
    if not any(map(any, block.rows)):
        return Text()
    block = fitted(block, width - _EDGES, _GAP)
    table = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in block.columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for number, (row, mood) in enumerate(zip(block.rows, block.moods, strict=True), 1):
        table.add_row(
            *map(Text, row),
            style=_STYLES[mood],
            end_section=number < len(block.rows) and block.rows[number][0] != row[0],
        )
    return table
