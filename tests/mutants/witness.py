"""A pytest plugin that writes down which test fell first, and from where the toolkit was imported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import conn_hygiene
from tests import waiting

REPORT_VARIABLE = "CONN_HYGIENE_MUTANT_REPORT"

_seen: dict[str, Any] = {}


def _write(**facts: Any) -> None:
    _seen.update(facts)
    Path(os.environ[REPORT_VARIABLE]).write_text(json.dumps(_seen))


# Seconds after which what a test waits for will not come any more. On unbroken copies it comes within this time, too.
PATIENCE = 4


def pytest_configure() -> None:
    waiting.wait_until.__defaults__ = (PATIENCE,)
    _write(imported_from=conn_hygiene.__file__)


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(running=nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(
    node: pytest.Item | pytest.Collector,
    call: pytest.CallInfo[Any],
    report: pytest.CollectReport | pytest.TestReport,
) -> None:
    if "fell" not in _seen and call.excinfo is not None and isinstance(report, pytest.TestReport):
        kinds = [kind.__name__ for kind in call.excinfo.type.__mro__]
        _write(fell=node.nodeid, kinds=kinds, message=call.excinfo.exconly().splitlines()[0])


def pytest_sessionfinish() -> None:
    _write(finished=True)
