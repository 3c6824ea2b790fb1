"""Counting bytecodes: the same each time, and the toolkit's own are held to those that are committed."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import django.db
import psycopg_pool
import pytest

from conn_hygiene import middleware
from conn_hygiene.leases import lease
from example_project.benchmarks import counts, instructions, report
from example_project.benchmarks.bytecodes import counted, package, summary
from example_project.benchmarks.contenders import AT_ONCE, HOLDING, NEVER, PEER, TOOLKIT
from example_project.benchmarks.workloads import COUNTABLE, COUNTED, FULL, workloads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from example_project.benchmarks.counts import Counts

countable = pytest.mark.skipif(not COUNTABLE, reason="before version 3.12, Python has nothing to count bytecodes by")


# ##### Counting #####


def add(numbers: range) -> int:
    total = 0
    for number in numbers:
        total += number
    return total


def add_some(how_many: int) -> Callable[[], int]:
    numbers = range(how_many)
    return lambda: add(numbers)


@countable
def test_a_count_is_the_same_each_time_and_grows_with_the_work() -> None:
    few, again, many, more = (summary([counted(add_some(number))])["all"] for number in (10, 10, 20, 30))
    assert few == again
    assert many - few == more - many
    # At least a turn of the loop, an addition and a jump for each number.
    assert many - few >= 10 * 3


@countable
def test_other_threads_are_counted_by_themselves_until_they_are_done() -> None:
    begin, done = threading.Event(), threading.Event()

    def alongside() -> None:
        begin.wait(10)
        add(range(1000))
        done.set()

    def wait() -> None:
        begin.set()
        assert done.wait(10)

    thread = threading.Thread(target=alongside)
    thread.start()
    alone, beside = counted(add_some(10)), counted(add_some(10), until=wait)
    thread.join()
    assert beside.own == alone.own
    assert alone.others == 0
    assert beside.others > 3000


@countable
def test_nothing_is_counted_after_it() -> None:
    counted(add_some(10))
    assert sys.monitoring.get_tool(4) is None  # type: ignore[attr-defined,unused-ignore]
    assert sys.monitoring.get_events(4) == 0  # type: ignore[attr-defined,unused-ignore]


def test_whose_code_it_is() -> None:
    modules = (lease, middleware, django.db, psycopg_pool, report, threading)
    assert [package(str(module.__file__)) for module in modules] == [
        "toolkit.leases",
        "toolkit.middleware",
        "django",
        "psycopg",
        "elsewhere",
        "elsewhere",
    ]


# ##### What is committed #####


def test_a_growth_of_more_than_5_percent_fails_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"toolkit-0": {"select": 1000, "get": 1000}, "never": {"select": 300}}
    now = {"toolkit-0": {"select": 1050, "get": 1051}, "never": {"select": 300}}
    assert not counts.verdict(before, now)
    printed = capsys.readouterr()
    assert "toolkit-0, select: 1,050 bytecodes, 1,000 committed (+5.0 %)" in printed.out
    assert "toolkit-0, get: 1,051 bytecodes, 1,000 committed (+5.1 %)" in printed.err
    assert "select" not in printed.err
    assert "make counts WRITE=1" in printed.err


@pytest.mark.parametrize(("now", "told"), [(1050, False), (1000, False), (960, False), (900, True)])
def test_what_has_not_grown_passes(now: int, told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.verdict({"toolkit": {"select": 1000}}, {"toolkit": {"select": now}})
    printed = capsys.readouterr()
    assert printed.err == ""
    assert ("make counts WRITE=1" in printed.out) is told


@pytest.mark.parametrize("now", [{"toolkit": {"select": 1}}, {"toolkit": {"select": 1, "get": 1, "cycle": 1}}, {}])
def test_other_counts_than_those_committed_fail(now: Counts, capsys: pytest.CaptureFixture[str]) -> None:
    assert not counts.verdict({"toolkit": {"select": 1, "get": 1}}, now)
    assert "What is counted has changed" in capsys.readouterr().err


def test_a_python_without_committed_counts_passes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts, "PYTHON", "2.7")
    assert counts.check()
    assert capsys.readouterr().out == "No counts of Python 2.7 are committed: nothing to compare with.\n"


@countable
def test_all_that_is_compared_is_committed_for_each_version() -> None:
    expected = {
        each.key: {what for what in COUNTED if (f"count-{what}", each.key) not in counts.TIMED}
        for each in (AT_ONCE, TOOLKIT, NEVER)
    }
    committed = counts.read()
    assert "3.13" in committed
    for python, found in committed.items():
        assert {contender: set(numbers) for contender, numbers in found.items()} == expected, python


def test_versions_are_written_in_their_order_and_others_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(counts, "COMMITTED", tmp_path / "counts.json")
    assert counts.read() == {}
    old, new = {"never": {"select": 1}}, {"never": {"select": 2}}
    counts.write({"3.14": new, "3.9": old})
    assert counts.read() == {"3.9": old, "3.14": new}
    assert list(counts.read()) == ["3.9", "3.14"]


# ##### The report #####


@pytest.fixture
def run() -> report.Run:
    results = {
        "count-select": {
            HOLDING.key: [{"all": 1200.0, "django": 1200.0, "others": 0.0}],
            PEER.key: [{"all": 2600.0, "django": 2400.0, "peer": 200.0, "others": 0.0}],
            AT_ONCE.key: [
                {"all": 4900.0, "toolkit": 3000.0, "toolkit.leases": 2000.0, "toolkit.pools": 1000.0, "others": 70.0}
            ],
        },
        "count-get": {
            AT_ONCE.key: [{"all": 9000.0, "toolkit": 2000.0, "toolkit.leases": 2000.0, "others": 0.0}],
        },
    }
    chosen = [each for each in workloads(FULL) if each.key in results]
    return report.Run(chosen, results, [], {}, "a machine", [], quick=False)


@countable
def test_the_report_has_the_counts_and_where_the_toolkits_own_are(run: report.Run) -> None:
    of_all, of_toolkit = report.counts_grids(run)
    rows = {row[0][0]: row[1:] for row in of_all.rows}
    assert of_all.headings == ["", "SELECT 1", ".get()"]
    assert rows[HOLDING.name] == [("1,200", ""), ("-", "")]
    assert rows[PEER.name] == [("2,600", "own 200"), ("-", "")]
    assert rows[AT_ONCE.name] == [("4,900", "own 3,000, others 70"), ("9,000", "own 2,000")]
    assert of_toolkit.title == "Counts (13): the toolkit's own, of conn_hygiene, 0"
    assert of_toolkit.headings == ["", "leases", "pools"]
    assert of_toolkit.rows == [
        [("SELECT 1", ""), ("2,000", ""), ("1,000", "")],
        [(".get()", ""), ("2,000", ""), ("-", "")],
    ]
    assert "Counts (13)" in report.markdown(run, [])


def test_the_report_of_other_workloads_has_no_counts(run: report.Run) -> None:
    assert list(report.counts_grids(report.Run([], {}, [], {}, "a machine", [], quick=False))) == []


# ##### Instructions of the processor #####


def test_a_profile_of_callgrind_ends_with_its_sum() -> None:
    profile = "# callgrind format\nevents: Ir\n\nfn=(1) main\n3 1200\n+1 34\ntotals: 1234\n"
    assert instructions.total(profile) == 1234


def test_the_table_has_a_row_for_each_contender(capsys: pytest.CaptureFixture[str]) -> None:
    counted = {contender.name: [150_000, 1_000_000] for contender in instructions.CONTENDERS}
    instructions.print_table(counted, {"Django": "6.1"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines if "150,000" in line] == [["150,000", "1,000,000"]] * len(counted)
    assert lines[-1] == f"Django 6.1, on {report.machine()}."
