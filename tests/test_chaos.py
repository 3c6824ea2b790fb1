"""The chaos: what is made of its numbers, and the network that can be lost. CI makes the chaos itself."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from example_project.chaos import report
from example_project.chaos.__main__ import chosen, parser
from example_project.chaos.accounting import Account, Answer, Books, Request, account
from example_project.chaos.contenders import CONTENDERS, PLAIN, PLAIN_CHECKED, TOOLKIT, TOOLKIT_CHECKED
from example_project.chaos.faults import FAULTS
from example_project.chaos.measuring import Outcome, Row
from example_project.chaos.proxy import in_front_of
from example_project.chaos.targets import targets
from example_project.chaos.traffic import understood, wishes
from example_project.embedded import database_url
from tests.processes import ROOT
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from example_project.chaos.targets import Target

CUT = next(fault for fault in FAULTS if fault.key == "cut")
KILLED = next(fault for fault in FAULTS if fault.key == "killed")
HUNG = next(fault for fault in FAULTS if fault.key == "hung")


# ##### Accounts #####


def request(answer: Answer, token: str | None = None, *, ended: float = 0, error: str = "") -> Request:
    return Request(ended - 0.1, ended, answer, token, error)


def accounted(*requests: Request, entries: dict[str, int], total: int = 100, wrong: int = 0) -> Account:
    return account(requests, Books(entries, total, wrong), total=100, fault_ended=10)


def test_what_was_told_and_is_not_found_is_lost() -> None:
    found = accounted(request(Answer.DONE, "a"), request(Answer.DONE, "b"), entries={"a": 1})
    assert (found.told, found.found, found.lost, found.ghosts) == (2, 1, 1, 0)


@pytest.mark.parametrize("entries", [{}, {"a": 1}])
def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_a_ghost(entries: dict[str, int]) -> None:
    found = accounted(request(Answer.UNKNOWN, "a"), entries=entries)
    assert (found.lost, found.ghosts, found.failed) == (0, 0, 1)


def test_what_was_surely_not_done_and_is_found_is_a_ghost() -> None:
    assert accounted(request(Answer.UNDONE, "a"), entries={"a": 1}).ghosts == 1


@pytest.mark.parametrize("answer", [Answer.DONE, Answer.UNKNOWN])
def test_what_is_found_twice_is_a_ghost(answer: Answer) -> None:
    assert accounted(request(answer, "a"), entries={"a": 2}).ghosts == 1


def test_what_nobody_asked_for_is_a_ghost() -> None:
    assert accounted(entries={"a": 1}).ghosts == 1


def test_money_is_counted_in_all_and_by_account() -> None:
    # Less than there was, and two accounts are not what the ledger makes them.
    assert accounted(entries={}, total=93, wrong=2).money == 9


def test_recovery_is_until_the_last_failure_after_the_fault() -> None:
    moments = [(9, Answer.UNKNOWN), (10.5, Answer.UNDONE), (12, Answer.UNKNOWN), (15, Answer.DONE)]
    found = accounted(*(request(answer, ended=moment, error="gone") for moment, answer in moments), entries={})
    assert (found.recovered, found.failures, found.errors) == (2, [-1, 0.5, 2], {"gone": 3})
    assert accounted(request(Answer.UNKNOWN, ended=9), entries={}).recovered is None


# ##### Visitors #####


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (b'HTTP/1.1 200 OK\r\nA: b\r\n\r\n{"done": "a"}', (Answer.DONE, "")),
        (b'HTTP/1.1 503 No\r\n\r\n{"undone": true, "error": "E: x"}', (Answer.UNDONE, "E: x")),
        (b'HTTP/1.1 500 No\r\n\r\n{"error": "E: x"}', (Answer.UNKNOWN, "E: x")),
        (b"HTTP/1.1 502 No\r\n\r\n<html>", (Answer.UNKNOWN, "status 502")),
        (b"HTTP/1.1 200 OK\r\nA:", (Answer.UNKNOWN, "cut off in the middle")),
        (b"", (Answer.UNKNOWN, "cut off in the middle")),
    ],
)
def test_only_a_whole_answer_is_one(response: bytes, answer: tuple[Answer, str]) -> None:
    assert understood(response) == answer


def test_all_contenders_have_the_same_visitors() -> None:
    def without_tokens() -> list[Any]:
        return [(each.path, each.form and {**each.form, "token": ""}) for each in itertools.islice(wishes(1), 100)]

    assert without_tokens() == without_tokens()
    tokens = [each.token for each in itertools.islice(wishes(1), 100) if each.token]
    assert len({*tokens}) == len(tokens)


# ##### Targets #####


def row(failed: int = 0, *, after: int = 0, recovered: float | None = None, **more: Any) -> Row:
    failures = [-1.0] * (failed - after) + [0.5] * after
    found = Account(100, failed, 50, 50, 0, 0, 0, recovered, failures)
    kept = {name: more.pop(name) for name in ("never_back", "in_transaction") if name in more}
    return Row(replace(found, **more), **{"never_back": 0, "in_transaction": 0, **kept})


def missed(fault: Any, toolkit: Row, plain: Row) -> list[Target]:
    outcome = Outcome(-1, {PLAIN.key: plain, TOOLKIT.key: toolkit})
    return [each for each in targets([fault], [PLAIN, TOOLKIT], {fault.key: outcome}) if not each.met]


@pytest.mark.parametrize("name", ["lost", "ghosts", "money", "never_back", "in_transaction"])
def test_a_run_fails_if_anything_is_lost_or_does_not_come_back(name: str) -> None:
    found = missed(HUNG, row(**{name: 1}), row())
    assert [(each.must, each.measured) for each in found] == [(True, "1")]
    # For plain Django nobody has promised it.
    assert missed(HUNG, row(), row(**{name: 1})) == []


def test_the_other_targets_are_only_told() -> None:
    found = missed(CUT, row(90, recovered=1.5), row(20))
    assert [(each.text, each.measured, each.must) for each in found] == [
        ("recovered within 1 s", "1.50 s", False),
        ("fails no more than Django", "90 to 20", False),
        ("fails half as often, or less", "90 to 20", False),
    ]


def test_counts_may_differ_by_chance() -> None:
    assert missed(HUNG, row(19), row(10)) != []
    assert missed(HUNG, row(17), row(10)) == []


def test_where_nobody_can_be_served_only_later_failures_have_to_be_fewer() -> None:
    assert missed(KILLED, row(60, after=1), row(60, after=20)) == []
    assert [each.measured for each in missed(KILLED, row(60, after=18), row(60, after=20))] == ["18 to 20"]
    # A server that only hangs breaks no connection.
    assert missed(HUNG, row(60, after=20), row(60, after=20)) == []


def test_the_toolkit_is_held_against_the_same_settings_without_it() -> None:
    assert [(each.key, each.rival) for each in CONTENDERS if each.toolkit] == [
        (TOOLKIT.key, PLAIN.key),
        (TOOLKIT_CHECKED.key, PLAIN_CHECKED.key),
    ]


# ##### Reports #####


def a_run(**more: Any) -> report.Run:
    outcome = Outcome(-3.5, {PLAIN.key: row(24, after=2, recovered=0.7), TOOLKIT.key: row(4, lost=1)})
    contenders = [PLAIN, TOOLKIT]
    reached = list(targets([CUT], contenders, {CUT.key: outcome}))
    return report.Run([CUT], contenders, {CUT.key: outcome}, reached, {"Django": "6"}, **more)


def test_the_report_has_a_line_for_each_contender_and_what_was_missed() -> None:
    run = a_run(missing={"A fault": "PgBouncer is not installed."})
    lines = [" ".join(line.split()) for line in report.text(run).splitlines()]
    assert f"{CUT.title} Django 24 of 100 0.70 s 50 50 0 0 0 0" in lines
    assert "conn_hygiene 4 of 100 - 50 50 1 0 0 0" in lines
    assert f"{CUT.title} conn_hygiene nothing lost 1 failed" in lines
    assert "Left out: A fault. PgBouncer is not installed." in lines
    assert run.failed


def test_the_results_are_written_for_programs(tmp_path: Path) -> None:
    report.write(a_run(), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["faults"]["cut"]["rows"]["plain"]["account"]["failed"] == 24


def test_the_pictures_are_for_light_and_for_dark_pages(tmp_path: Path) -> None:
    if not importlib.util.find_spec("matplotlib"):
        pytest.skip("matplotlib is not installed.")
    # In a process of its own: matplotlib keeps its fonts open.
    script = "import sys, pathlib\nfrom tests import test_chaos as it\nit.pictures_of(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT)
    for theme in ("light", "dark"):
        assert CUT.title in (tmp_path / f"failures-{theme}.svg").read_text()


def pictures_of(directory: Path) -> None:
    from example_project.chaos import pictures

    pictures.draw(a_run(), directory)


def test_the_short_form_is_of_the_most_important() -> None:
    faults, contenders = chosen(parser().parse_args(["--quick"]))
    assert [fault.key for fault in faults] == ["cut", "killed", "workers"]
    assert contenders == [PLAIN, TOOLKIT]
    assert chosen(parser().parse_args([])) == ([*FAULTS], [*CONTENDERS])


# ##### The network #####


def connect(conninfo: str) -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo, autocommit=True, dbname="postgres")


def test_a_network_that_was_lost_has_forgotten_its_connections(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not str(conninfo_to_dict(database_url()).get("host", "")).startswith("/"):
        pytest.skip("The server is not reached by a socket in the file system.")
    # Not below the test's own directory: a socket's path must be short.
    directory = tmp_path_factory.mktemp("n")
    with in_front_of(database_url(), directory=directory) as (network, through):
        with connect(through) as quiet, connect(through) as talking:
            network.lose()
            talking.pgconn.send_query(b"SELECT 1")
            talking.pgconn.flush()
            # Nobody is told, until it is back.
            talking.pgconn.consume_input()
            assert talking.pgconn.is_busy()
            network.heal()

            def told() -> bool:
                try:
                    talking.pgconn.consume_input()
                except psycopg.OperationalError:
                    return True
                return False

            wait_until(told, "the connection is reset")
            # One that was quiet looks fine until it is used.
            assert quiet.pgconn.status == psycopg.pq.ConnStatus.OK
            with pytest.raises(psycopg.OperationalError):
                quiet.execute("SELECT 1")
        with connect(through) as anew:
            assert anew.execute("SELECT 1").fetchone() == (1,)
