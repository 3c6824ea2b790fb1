"""Tables of the command, as wide as a terminal: a row a line, and what matters least gives way."""

from __future__ import annotations

import io

import pytest

from conn_hygiene.management import fitting, rendering
from conn_hygiene.management.fitting import end_cut, head_cut, middle_cut, statement_cut

COLUMNS = ("State", "Pid", "In state", "Transaction", "Application", "Client", "Database", "Statement")
SELECT = (
    'SELECT "shop_order"."id", (SELECT count(*) FROM "shop_line" U0) AS "lines", "shop_order"."from" FROM "shop_order" '
    'WHERE "shop_order"."status" = ? LIMIT ?'
)
ROWS = [
    ("idle in transaction", "48123", "12.0 s", "12.4 s", "gunicorn: shop web-7f8d9c 4711", "10.20.30.40", "", SELECT),
    ("active", "48124", "1 h 10 min", "", "psql", "local", "", 'UPDATE "shop_order" SET "status" = ?'),
]
TABLE = rendering.Table(COLUMNS, ROWS, [rendering.WARN, rendering.GOOD])


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (None, set()),
        (300, set()),
        (120, set()),
        (80, {"Client", "Application"}),
        (64, {"Client", "Application", "Transaction"}),
        (40, {"Client", "Application", "Transaction", "Statement"}),
        (1, {"Client", "Application", "Transaction", "Statement"}),
    ],
)
def test_what_matters_least_gives_way_first(width: int | None, gone: set[str]) -> None:
    # What tells nothing goes in any case.
    kept = [name for name in COLUMNS if name not in {*gone, "Database"}]
    assert list(fitting.fitted(TABLE, width, 2).columns) == kept


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(width: int) -> None:
    from conn_hygiene.contrib import rich

    plain = rendering.plain([TABLE], width).splitlines()
    out = io.StringIO()
    console = rich.console(out, no_color=True, force_terminal=False)
    console.width = width
    rich.show(console, [TABLE])
    drawn = [line for line in out.getvalue().splitlines() if line.strip()]
    # The head of the table and its rows, and with rich a rule.
    assert (len(plain), len(drawn)) == (3, 4)
    assert max(map(len, plain + drawn)) <= width
    assert all(pid in row for pid, row in zip(("48123", "48124"), plain[1:], strict=True))


def test_whatever_is_left_of_the_width_is_used() -> None:
    assert max(map(len, rendering.plain([TABLE], 100).splitlines())) == 100
    # The short ones first: all of the application's name is shown before the statement takes what it can.
    assert "gunicorn: shop web-7f8d9c 4711" in rendering.plain([TABLE], 160)


def test_a_row_that_tells_nothing_is_shown() -> None:
    assert rendering.plain([rendering.Table(("A", "B"), [("", "")], [rendering.PLAIN])], 80) == "A\n"
    assert rendering.plain([rendering.Table(("A", "B"), [], [])], 80) == ""


def test_how_texts_are_cut() -> None:
    assert middle_cut("web-7f8d9c-abcde", 9) == "web-…bcde"
    assert head_cut("/srv/shop/views.py:12 in pay", 18) == "…iews.py:12 in pay"
    assert end_cut("abcdef", 4) == "abc…"
    for cut in (middle_cut, head_cut, end_cut, statement_cut):
        assert cut("abc", 3) == "abc"
        assert len(cut("abcdef", 4)) == 4


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (SELECT, 'SELECT … FROM "shop_order" WHERE "shop_order"."…'),
        # What stands in parentheses or in quotes is no FROM of its own.
        (f'SELECT {"x, " * 20}extract(year FROM "a") FROM "b"', 'SELECT … FROM "b"'),
        (f'SELECT {"x, " * 20}" FROM " FROM "b"', 'SELECT … FROM "b"'),
        (f"select {'x, ' * 20}y from b", "SELECT … from b"),
        (f"SELECT {'x, ' * 20}y", f"SELECT {'x, ' * 20}"[:47] + "…"),
        (f'DELETE FROM "{"b" * 50}"', 'DELETE FROM "' + "b" * 34 + "…"),
    ],
)
def test_a_list_of_columns_gives_way_to_its_from(sql: str, expected: str) -> None:
    assert statement_cut(sql, 48) == expected
