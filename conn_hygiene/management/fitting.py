"""Tables that fit into the width of a terminal: a row a line, and what matters least gives way first.

Texts are cut down to what still tells something, then whole columns go, least important first; what is left of the
width goes back to the texts, to the short ones first.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from conn_hygiene.management.rendering import Table

    Cut: TypeAlias = Callable[[str, int], str]

# All columns of all tables that may have to give way, least important first. Those that are not listed stay: what a
# session is, whose, and for how long.
_GIVE_WAY = (
    "Client",
    "Application",
    "Database",
    "Role",
    "Pinned by",
    "Waits for",
    "Session",
    "Thread",
    "Transaction",
    "Idle",
    "Thread is at",
    "Alias",
    "Left",
    "Statement",
    "Request",
    "Held by",
    "Place",
)


def middle_cut(text: str, length: int) -> str:
    """Return *text* in *length* characters: names that are made by machines differ at the end, and begin alike."""
    head = (length - 1) // 2
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def head_cut(text: str, length: int) -> str:
    """Return the last *length* characters of *text*: of a place in the code, the file's name and the function."""
    return text if len(text) <= length else f"…{text[len(text) - length + 1 :]}"


def end_cut(text: str, length: int) -> str:
    """Return the first *length* characters of *text*."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def statement_cut(sql: str, length: int) -> str:
    """Return *sql* in *length* characters. A list of columns that is too long gives way to what it is selected FROM."""
    if len(sql) <= length:
        return sql
    place = _from(sql)
    return end_cut(sql if place is None else f"SELECT … {sql[place:]}", length)


# Statements are masked: there is no string in them, and no comment.
_STEP = re.compile(r'"[^"]*"?|\(|\)|\bFROM\b|\w+|.', re.IGNORECASE | re.DOTALL)


def _from(sql: str) -> int | None:
    """Return where the FROM of a SELECT begins; None for another statement, and without one."""
    if sql[:7].upper() != "SELECT ":
        return None
    depth = 0
    for step in _STEP.finditer(sql):
        depth += {"(": 1, ")": -1}.get(step[0], 0)
        if not depth and step[0].upper() == "FROM":
            return step.start()
    return None


# How texts of a column are cut, and how much of them is left at least.
_CUTS: Mapping[str, tuple[Cut, int]] = {
    "Statement": (statement_cut, 22),
    "Request": (end_cut, 16),
    "Held by": (end_cut, 16),
    "Thread is at": (head_cut, 24),
    "Place": (head_cut, 24),
    "Left": (end_cut, 16),
}
# Of names. No pid and no duration is longer than what is left of them.
_NAME = (middle_cut, 12)
# What is never cut.
_WHOLE = frozenset({"State"})


def fitted(table: Table, width: int | None, gap: int) -> Table:
    """Return *table* without the columns that tell nothing, and no wider than *width* where that can be.

    :param width: characters in a line; None for as many as it takes.
    :param gap: characters between two columns.
    """
    used = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    # Of rows that tell nothing, the first column stays.
    table = _only(table, used or [0])
    if width is None:
        return table
    least = _least(table)
    for name in _GIVE_WAY:
        if _total(least, gap) <= width or len(table.columns) == 1:
            break
        table = _only(table, [place for place, column in enumerate(table.columns) if column != name] or [0])
        least = _least(table)
    return _cut(table, _widened(table, least, width - _total(least, gap)))


def widths(table: Table) -> list[int]:
    """Return how wide each column is."""
    return [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]


def _only(table: Table, places: Sequence[int]) -> Table:
    def chosen(row: Sequence[str]) -> tuple[str, ...]:
        return tuple(row[place] for place in places)

    return dataclasses.replace(table, columns=chosen(table.columns), rows=[chosen(row) for row in table.rows])


def _least(table: Table) -> list[int]:
    """Return how wide each column must be."""
    return [
        width if name in _WHOLE else max(len(name), min(width, _CUTS.get(name, _NAME)[1]))
        for name, width in zip(table.columns, widths(table), strict=True)
    ]


def _total(columns: Sequence[int], gap: int) -> int:
    return sum(columns) + gap * (len(columns) - 1)


def _widened(table: Table, least: Sequence[int], spare: int) -> list[int]:
    """Return *least* with the *spare* characters given to the columns, those first that need the fewest."""
    result = list(least)
    needed = [width - given for width, given in zip(widths(table), least, strict=True)]
    for place in sorted(range(len(result)), key=needed.__getitem__):
        more = max(0, min(needed[place], spare))
        result[place] += more
        spare -= more
    return result


def _cut(table: Table, to: Sequence[int]) -> Table:
    cuts = [_CUTS.get(name, _NAME)[0] for name in table.columns]
    rows = [tuple(cut(text, width) for cut, text, width in zip(cuts, row, to, strict=True)) for row in table.rows]
    return dataclasses.replace(table, rows=rows)
