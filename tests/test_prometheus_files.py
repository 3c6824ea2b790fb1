"""The alert rules and the dashboard ask for what is exported; and the files by which several processes export it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conn_hygiene.contrib import gunicorn, prometheus
from conn_hygiene.contrib.prometheus import __main__ as files
from tests import metered
from tests.processes import in_fresh_process, unmeasured

if TYPE_CHECKING:
    from pathlib import Path


NO_PROJECT = {"DJANGO_SETTINGS_MODULE": ""}

Samples = dict[str, dict[tuple[str, ...], float]]


def samples(text: str) -> Samples:
    """Return the toolkit's samples in *text*, by name and by the values of their labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("conn_hygiene_"):
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def exported() -> set[str]:
    """Return the names of all samples that there are."""
    names = {family.name for family in prometheus.families.GAUGES}
    names |= {f"{family.name}_total" for family in prometheus.families.COUNTERS}
    for family in prometheus.families.HISTOGRAMS:
        names |= {f"{family.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return names


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"\bconn_hygiene_\w+", text))


def expressions_of_alerts() -> list[str]:
    return re.findall(r"^        expr: (.+)$", prometheus.ALERTS.read_text("utf-8"), re.MULTILINE)


def expressions_of_dashboard() -> list[str]:
    dashboard: dict[str, Any] = json.loads(prometheus.DASHBOARD.read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize(
    "expression",
    [*expressions_of_alerts(), *expressions_of_dashboard()],
    ids=lambda text: re.sub(r"\W+", "-", text)[:60],
)
def test_an_expression_asks_for_what_is_exported(expression: str) -> None:
    assert asked_for(expression)
    assert asked_for(expression) <= exported()
    assert {label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")} <= {
        *("job", "alias", "state", "le"),
    }
    assert expression.count("(") == expression.count(")")


def test_every_alert_and_panel_has_an_expression_and_says_what_it_is() -> None:
    text = prometheus.ALERTS.read_text("utf-8")
    assert len(re.findall(r"- alert: ConnHygiene\w+\n", text)) == len(expressions_of_alerts()) == 8
    assert len(re.findall(r"severity: (?:critical|warning|info)\n", text)) == 8
    dashboard = json.loads(prometheus.DASHBOARD.read_text("utf-8"))
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {query for variable in dashboard["templating"]["list"] for query in asked_for(str(variable))} <= exported()


def test_the_files_are_printed_without_a_project() -> None:
    command = [sys.executable, "-m", "conn_hygiene.contrib.prometheus", "alerts"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured() | NO_PROJECT)
    assert printed.stdout == prometheus.ALERTS.read_text("utf-8")


def test_a_file_may_be_asked_for_by_its_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prometheus", "dashboard", "--path"])
    files.main()
    assert capsys.readouterr().out == f"{prometheus.DASHBOARD}\n"


# ##### gunicorn's hook #####


class _Worker:
    pid = 4711


def test_the_gauges_of_a_dead_worker_go_and_its_counters_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["gauge_livesum_4711.db", "gauge_livesum_4712.db", "counter_4711.db", "histogram_4711.db"]
    for name in names:
        (tmp_path / name).touch()
    gunicorn.child_exit(None, _Worker())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    gunicorn.child_exit(None, _Worker())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names[1:])


# ##### Several processes #####


def test_whoever_counts_first_is_waited_for_by_the_next() -> None:
    """Who would end the process otherwise, with nothing written: a pool's own thread may be the first."""
    assert in_fresh_process(metered.two_threads) == [["conn-hygiene-prometheus"]] * 2


def test_what_is_written_follows_the_process() -> None:
    # Checkouts, the largest sizes of all pools, and threads that write.
    assert in_fresh_process(metered.a_life) == {
        "registered": [0, 0, 0],
        "queried": [1, 4, 1],
        "another process makes its file": [1, 4, 1],
        "forked": [3, 8, 1],
        "marked": [3, 4, 1],
        # It was marked by nobody.
        "forked by multiprocessing": [4, 4, 1],
        "closed": [4, 0, 1],
        "installed anew": [4, 0, 1],
        "queried again": [5, 4, 1],
        "unregistered": [5, 0, 0],
    }
