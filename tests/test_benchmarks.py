"""The benchmarks: what is made of their numbers, and one run that is too short to mean anything."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from example_project.benchmarks import network, processors, report
from example_project.benchmarks.bars import Bar, bars
from example_project.benchmarks.contenders import (
    ALIASES,
    AT_ONCE,
    CONTENDERS,
    FAR,
    FEW,
    HERDS,
    HOLDING,
    LARGE_TOOLKIT,
    NETWORK_TOOLKIT,
    NEVER,
    PAGES_HOLDING,
    PAGES_TOOLKIT,
    PAIR,
    PEER,
    PGBOUNCER,
    TENANT_TOOLKIT,
    TOOLKIT,
    UNPOOLED,
    Contender,
)
from example_project.benchmarks.herd import herd, together
from example_project.benchmarks.load import WRONG, Visitor, aside, drive, summary
from example_project.benchmarks.measuring import done_with, order
from example_project.benchmarks.rounds import Summary, percentile, ratios, summarise
from example_project.benchmarks.workloads import FULL, SMOKE, workloads
from tests.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from example_project.benchmarks.measuring import Results

pytestmark = pytest.mark.usefixtures("unmeasured")

IDEALS = {workload.key: workload.ideal for workload in workloads(FULL) if workload.ideal}


# ##### Numbers #####


def test_a_summary_is_the_median_and_what_is_around_it() -> None:
    assert summarise([3, 1, 100]) == Summary(3, 1, 100)
    assert summarise([]) is None


def test_ratios_are_of_the_same_round() -> None:
    # The machine was half as fast in the second round, for both.
    assert ratios([100, 200], [50, 100]) == [2, 2]
    assert ratios([1, 0], [0, 0]) == [math.inf, 1]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_percentile(percent: float, expected: float) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_percentile_of_nothing() -> None:
    assert percentile([], 99) == 0


def test_a_load_counts_answers_alone_as_its_rate() -> None:
    quick, slow = Visitor(10, 12, [0.5] * 4), Visitor(10, 14, [2, 2])
    quick.statuses.update({200: 4})
    slow.statuses.update({200: 1, 503: 1, WRONG: 1})
    assert summary([quick, slow]) == {
        "rate": 4 / 2 + 1 / 4,
        "requests": 7,
        "timeouts": 1,
        "errors": 0,
        "wrong": 1 / 7,
        "p50": 500,
        "p99": 2000,
        "slowest_share": 1.0,
    }


def test_the_requests_of_a_second_crowd_count_among_all() -> None:
    found = {"requests": 60.0, "timeouts": 2.0, "errors": 0.0, "p50": 500.0, "p99": 900.0, "rate": 30.0}
    short = {"requests": 600.0, "timeouts": 0.0, "errors": 1.0, "p50": 5.0, "p99": 9.0, "rate": 300.0}
    assert {**found, **aside(found, short)} == {
        **found,
        "requests": 660,
        "timeouts": 2,
        "errors": 1,
        "beside_p50": 5,
        "beside_p99": 9,
    }


def test_two_crowds_ask_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one's page has its answer only while the first one's is being made."""
    long_began, short_served = threading.Event(), threading.Event()

    def ask(path: str) -> int:
        if path == "/long":
            long_began.set()
            return 200 if short_served.wait(10) else 500
        if path == "/short":
            assert long_began.wait(10)
            short_served.set()
        return 200

    short = {"path": "/short", "threads": 2, "pause": 0.001}
    with ThreadPoolExecutor(5) as threads:
        monkeypatch.setattr("example_project.benchmarks.load.threads_of_site", threads)
        visitor = contextlib.nullcontext(ask)
        found = drive(lambda: visitor, path="/long", threads=3, seconds=0.01, beside=short)
    assert found["errors"] == 0
    assert found["requests"] >= 5
    assert found["beside_p50"] <= found["beside_p99"]


def test_a_herd_adds_up() -> None:
    few = {"rate": 8, "requests": 10, "timeouts": 0, "errors": 0, "cpu": 3, "reaper": 0.1, "p50": 1}
    many = {"rate": 24, "requests": 30, "timeouts": 1, "errors": 0, "cpu": 1, "reaper": 0.3, "p50": 2}
    # 30 ms in one process, 3 of them the reaper's, and 30 ms in the other, 9 of them.
    assert together([few, many]) == {
        "rate": 32,
        "requests": 40,
        "timeouts": 1,
        "errors": 0,
        "cpu": 1.5,
        "reaper": pytest.approx(0.2),
    }


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
# Of eventlet, where another test has imported it.
@pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_herd_begins_when_all_are_ready() -> None:
    """Each process tells which one it is, and has waited for the others."""

    def member(seconds: float, ready: Callable[[], object]) -> dict[str, float]:
        ready()
        return {"rate": seconds, "requests": 1, "timeouts": 0, "errors": 0, "cpu": 1, "reaper": 0}

    assert herd(member, 3, seconds=2)["rate"] == 6


def test_a_network_counts_round_trips(tmp_path: Path) -> None:
    conninfo = make_conninfo(os.environ["DATABASE_URL"])
    with (
        network.in_front_of(conninfo, seconds=0, directory=tmp_path) as found,
        psycopg.connect(found.conninfo, autocommit=True) as connection,
    ):
        before = network.round_trips(found.counter)
        for _ in range(3):
            connection.execute("SELECT 1")
        assert network.round_trips(found.counter) - before == 3


def test_who_has_nothing_left_to_do_is_done() -> None:
    all_of_them = workloads(FULL)
    gone = [done_with(workload, all_of_them) for workload in all_of_them]
    assert gone[all_of_them.index(next(each for each in all_of_them if each.key == "far-database"))] == {
        each.key for each in FAR.values()
    }
    for number, keys in enumerate(gone):
        later = {each.key for workload in all_of_them[number + 1 :] for each in workload.contenders}
        assert keys.isdisjoint(later)
    everybody = [each.key for workload in all_of_them for each in workload.contenders]
    assert sorted(key for keys in gone for key in keys) == sorted(set(everybody))


def test_everybody_is_first_and_last_at_some_time() -> None:
    rounds = [order(CONTENDERS, number) for number in range(2 * len(CONTENDERS))]
    assert {each[0].key for each in rounds} == {each[-1].key for each in rounds} == {each.key for each in CONTENDERS}
    assert all(sorted(each, key=CONTENDERS.index) == CONTENDERS for each in rounds)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not put processes on processors")
def test_processes_share_a_processor_for_a_while() -> None:
    everywhere = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        # The second is nobody's.
        with processors.sharing_one([process.pid, 2**22 + 1]):
            assert os.sched_getaffinity(process.pid) == {min(everywhere)}
        assert os.sched_getaffinity(process.pid) == everywhere
        process.communicate(b"\n")


# ##### Bars #####


def rounds(**measures: list[float]) -> list[dict[str, float]]:
    return [dict(zip(measures, values, strict=True)) for values in zip(*measures.values(), strict=True)]


def load(rate: float, p99: float = 100, **more: float) -> list[dict[str, float]]:
    return [{"rate": rate, "p99": p99, "timeouts": 0, "errors": 0, "requests": 480, "slowest_share": 0.9, **more}] * 3


def beside(p99: float) -> dict[str, float]:
    return {"beside_p50": p99 / 2, "beside_p99": p99}


FAR_AWAY = ("slow", "mixed", "database")


def results(**changes: dict[str, Any]) -> Results:
    """Return results with which every bar is met; `changes` are rounds by contender, by workload."""
    fast, even = {"microseconds": [100.0, 110.0, 90.0]}, {"microseconds": [100.0, 109.0, 91.0]}
    query = {HOLDING.key: rounds(**fast), TOOLKIT.key: rounds(**even)}
    never = {HOLDING.key: rounds(**fast), NEVER.key: rounds(**even)}
    pages = {PAGES_HOLDING.key: load(50), PAGES_TOOLKIT.key: load(49)}
    database = {HOLDING.key: load(150), TOOLKIT.key: load(149)}
    found: Results = {
        "get": query,
        "select": {**query, PEER.key: rounds(microseconds=[160.0] * 3), AT_ONCE.key: rounds(microseconds=[159.0] * 3)},
        "slow": {TOOLKIT.key: load(159)},
        "mixed": {PEER.key: load(480), PGBOUNCER.key: load(550), TOOLKIT.key: load(545, 99)},
        "database": database,
        "transaction": database,
        "scale-8": {TOOLKIT.key: load(390, cpu=1.0, reaper=0.01)},
        "scale-512": {TOOLKIT.key: load(390, cpu=1.2, reaper=0.015)},
        **{f"aliases-{count}": {ALIASES[count][-1].key: load(390, cpu=1 + count / 100, reaper=0)} for count in ALIASES},
        **{f"processes-{count}": {HERDS[count][-1].key: load(390, cpu=1 + count / 250, reaper=0)} for count in HERDS},
        "fork-64": {LARGE_TOOLKIT.key: rounds(milliseconds=[8, 9, 30])},
        "never-get": never,
        "never-select": never,
        "beside": {HOLDING.key: load(7, **beside(1600)), TOOLKIT.key: load(6, **beside(40))},
        "fair": {PAIR[TOOLKIT.key].key: load(6, waited=4, **beside(40))},
        "tenants-none": {TENANT_TOOLKIT.key: load(150, wrong=0)},
        "tenants-set": {TENANT_TOOLKIT.key: load(148, wrong=0)},
        "tenants-function": {TENANT_TOOLKIT.key: load(145, wrong=0)},
        "network-set": {NETWORK_TOOLKIT.key: load(140, wrong=0, round_trips=6)},
        "few-set": {FEW.key: load(38, wrong=0)},
        "clean": {AT_ONCE.key: rounds(microseconds=[120.0] * 3)},
        "few-role": {FEW.key: load(36, wrong=0)},
        "pages-shop": pages,
        "pages-list": pages,
        "pages-form": pages,
        "pages-todo": pages,
        **{f"far-{key}": {each.key: load(140, round_trips=2) for each in FAR.values()} for key in FAR_AWAY},
    }
    return {key: {**value, **changes.get(key.replace("-", "_"), {})} for key, value in found.items()}


def missed(**changes: dict[str, Any]) -> list[str]:
    return [bar.text for bar in bars(results(**changes), IDEALS) if not bar.met]


def test_all_bars_are_met() -> None:
    assert missed() == []
    assert {bar.workload for bar in bars(results(), IDEALS)} == {1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"get": {TOOLKIT.key: rounds(microseconds=[105.0, 116, 80])}}, ".get(): time, of Django's pool"),
        ({"select": {AT_ONCE.key: rounds(microseconds=[161.0] * 3)}}, "SELECT 1, RELEASE_AFTER = 0: time"),
        ({"slow": {TOOLKIT.key: load(156)}}, "requests/s, of the ideal"),
        ({"slow": {TOOLKIT.key: load(159, timeouts=1)}}, "timeouts per request"),
        ({"mixed": {PEER.key: load(546)}}, "requests/s, of django-pg-real-pool"),
        ({"mixed": {PGBOUNCER.key: load(580)}}, "requests/s, of PgBouncer"),
        ({"mixed": {PEER.key: load(480, 90)}}, "99th percentile, of django-pg-real-pool"),
        ({"transaction": {TOOLKIT.key: load(145)}}, "requests/s in a transaction, of Django's pool"),
        (
            {"scale_512": {TOOLKIT.key: load(390, cpu=1.3, reaper=0.01)}},
            "CPU per request with 512 threads, of that with 8",
        ),
        ({"scale_8": {TOOLKIT.key: load(390, cpu=1.2, reaper=0.03)}}, "the reaper's share of CPU"),
        (
            {"aliases_20": {ALIASES[20][-1].key: load(390, cpu=1.3)}},
            "CPU per request with 20 databases, of that with 1",
        ),
        ({"processes_50": {HERDS[50][-1].key: load(390, cpu=1.3)}}, "CPU per request with 50 processes"),
        ({"fork_64": {LARGE_TOOLKIT.key: rounds(milliseconds=[8.0, 11, 12])}}, "ms to a child's first answer"),
        ({"never_select": {NEVER.key: rounds(microseconds=[102.0, 112, 91])}}, 'RELEASE = "never", SELECT 1'),
        ({"beside": {TOOLKIT.key: load(6, **beside(500))}}, "99th percentile of short pages"),
        ({"fair": {PAIR[TOOLKIT.key].key: load(6, waited=6)}}, "ms that a short page waits"),
        ({"far_mixed": {FAR[PEER.key].key: load(144, round_trips=2)}}, "mixed: requests/s, of the fastest other's"),
        ({"far_slow": {FAR[TOOLKIT.key].key: load(140, round_trips=3)}}, "slow: round trips, of the fewest of others"),
        ({"tenants_set": {TENANT_TOOLKIT.key: load(140, wrong=0)}}, "requests/s with SET in front"),
        ({"tenants_function": {TENANT_TOOLKIT.key: load(140, wrong=0)}}, "requests/s with a function in front"),
        ({"few_role": {FEW.key: load(26, wrong=0)}}, "requests/s with 12 threads and 2 connections"),
        ({"network_set": {NETWORK_TOOLKIT.key: load(140, wrong=0.001, round_trips=6)}}, "answers for another tenant"),
        ({"pages_list": {PAGES_TOOLKIT.key: load(48)}}, "pages (list), requests/s"),
        ({"pages_form": {PAGES_TOOLKIT.key: load(49, 120)}}, "pages (form), 99th percentile"),
    ],
)
def test_a_bar_is_missed(changes: dict[str, Any], expected: str) -> None:
    [text] = missed(**changes)
    assert text.startswith(expected)


def test_bars_without_a_measurement_are_neither_met_nor_missed() -> None:
    assert {bar.met for bar in bars({}, IDEALS)} == {None}


# ##### Contenders #####


def test_only_the_toolkit_is_installed_with_the_toolkit() -> None:
    installed = {each.key: "BENCH_TOOLKIT" in each.environment() for each in CONTENDERS}
    assert [key for key, value in installed.items() if value] == ["toolkit-0", "toolkit", "toolkit-0.01"]


def test_pgbouncer_has_the_settings_that_django_documents() -> None:
    entry = json.loads(PGBOUNCER.environment()["BENCH_DATABASE"])
    assert entry["DISABLE_SERVER_SIDE_CURSORS"] is True
    assert entry["conn_max_age"] is None
    assert json.loads(PGBOUNCER.environment(asgi=True)["BENCH_DATABASE"])["conn_max_age"] == 0


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert UNPOOLED.missing is None
    absent = Contender("absent", "Absent", engine="no_such_engine.native")
    assert absent.missing == "no_such_engine is not installed: pip install no-such-engine"
    monkeypatch.setattr("example_project.benchmarks.pgbouncer.find", lambda: None)
    assert "apt-get install pgbouncer" in str(PGBOUNCER.missing)


# ##### The report #####


@pytest.fixture
def run() -> report.Run:
    found = results()
    return report.Run(
        [workload for workload in workloads(FULL) if workload.key in found],
        found,
        bars(found, IDEALS),
        {"Django": "6.1"},
        "Linux x86_64 with 2 cores",
        ["the peer"],
        quick=True,
    )


def test_markdown_is_well_formed(run: report.Run) -> None:
    text = report.markdown(run, ["scale.svg"])
    assert "![scale](scale.svg)" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table
        assert set(table[1]) <= set("|-: ")
    for part in "Django 6.1, on Linux", "Missing: the peer", "A quick run", "| met |":
        assert part in text


def test_text_fits_and_has_all_that_the_markdown_has(run: report.Run) -> None:
    text = report.text(run)
    assert max(map(len, text.splitlines())) <= report.WIDTH
    for part in "conn_hygiene, 0.001", "545", "slow (2)", "Django 6.1, on Linux", "Missing: the peer":
        assert part in text


def test_bars_show_their_verdict() -> None:
    grid = report.bars_grid(
        [
            Bar(2, "speed", 0.98, True, Summary(0.99, 0.9, 1)),
            Bar(1, "cost", 1.05, False, Summary(1.2, 1, 1.3)),
            Bar(2, "timeouts", 1 / 100_000, False, None),
        ]
    )
    shown = [[value for value, _ in row] for row in grid.rows]
    assert shown == [
        ["2", "speed", "at least 0.98", "0.990", "met"],
        ["1", "cost", "at most 1.05", "1.200", "NOT MET"],
        ["2", "timeouts", "at most 0.00001", "-", "not measured"],
    ]


def test_json_has_all_rounds(run: report.Run) -> None:
    shown = json.loads(report.as_json(run))
    assert shown["rounds"]["fork-64"] == {"large-toolkit": [{"milliseconds": value} for value in (8, 9, 30)]}
    assert all(bar["met"] for bar in shown["bars"])


# ##### A run #####


# In parts, which together would take longer than a test may.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "pictures"),
    [
        (range(1, 5), ["requests-per-second", "one-thread"]),
        ([5], ["over-http"]),
        ([6], ["scale"]),
        ([7, 8], []),
        ([9, 10], []),
        ([11, 13], []),
        ([12], []),
    ],
    ids=[
        "one thread and crowds",
        "over HTTP",
        "growth",
        "forks and never",
        "turns and tenants",
        "pages and counts",
        "distance",
    ],
)
def test_everything_runs(numbers: Sequence[int], pictures: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the pictures, is not installed")
    only = ["--only", *map(str, numbers)]
    arguments = ["--scale=smoke", *only, "--contenders", "holding", "toolkit", f"--output={tmp_path}"]
    finished = subprocess.run(
        [sys.executable, "-m", "example_project.benchmarks", *arguments],
        cwd=ROOT,
        # Not with a settings module of the tests.
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    expected = [workload.key for workload in workloads(SMOKE) if workload.number in numbers]
    shown = json.loads((tmp_path / "results.json").read_text())
    assert list(shown["rounds"]) == expected
    for key, contenders in shown["rounds"].items():
        assert contenders, key
        assert all(contenders.values()), key
        for each in (each for turns in contenders.values() for each in turns):
            assert each.get("timeouts", 0) == each.get("errors", 0) == each.get("wrong", 0) == 0, (key, contenders)
    assert "## The targets" in (tmp_path / "results.md").read_text()
    printed = [line.rstrip() for line in finished.stdout.splitlines()]
    assert "\n".join((tmp_path / "results.txt").read_text().splitlines()) in "\n".join(printed)
    for picture in pictures:
        assert (tmp_path / f"{picture}.svg").read_text().rstrip().endswith("</svg>")


def test_trouble_is_explained() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "example_project.benchmarks", "--scale=smoke", "--only=1"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 1
    assert "The benchmarks could not be run." in finished.stdout
    assert "Traceback" not in finished.stderr
