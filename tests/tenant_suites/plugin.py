"""What `tests.django_suite.runner` is for Django's runner, for pytest: installs the toolkit, writes down outcomes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import conn_hygiene
from tests.django_suite.runner import INSTALL_VARIABLE, REPORT_VARIABLE

if TYPE_CHECKING:
    import pytest

outcomes: dict[str, str] = {}


def pytest_sessionstart() -> None:
    if arguments := os.environ.get(INSTALL_VARIABLE):
        conn_hygiene.install(**json.loads(arguments))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        outcomes[report.nodeid] = "failed"
    elif report.skipped or report.when == "call":
        outcomes.setdefault(report.nodeid, report.outcome)


def pytest_sessionfinish() -> None:
    found = {"outcomes": outcomes, "releases": conn_hygiene.stats().releases}
    Path(os.environ[REPORT_VARIABLE]).write_text(json.dumps(found))
