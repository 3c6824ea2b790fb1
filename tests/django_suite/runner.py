"""The test runner for Django's suite: installs the toolkit if told so, and writes down each test's outcome."""

from __future__ import annotations

import faulthandler
import json
import os
import unittest
from pathlib import Path
from typing import Any

from django.test.runner import DiscoverRunner

import conn_hygiene

# How __main__ talks to this process: a file for the report, and the arguments of install() as JSON, if any.
REPORT_VARIABLE = "DJANGO_SUITE_REPORT"
INSTALL_VARIABLE = "DJANGO_SUITE_INSTALL"

HANGS_AFTER = 110


class RecordingResult(unittest.TextTestResult):
    """Keeps the outcome of each test: "passed", "skipped" or "failed"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        # A test that never ends says where it stands, and ends the run.
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.outcomes.setdefault(test.id(), "passed")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.outcomes.setdefault(test.id(), "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes.setdefault(test.id(), "skipped")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[test.id()] = "failed"

    # For setUpClass and the like, unittest calls this with a stand-in whose id names the method and the class.
    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.outcomes[test.id()] = "failed"

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.outcomes[test.id()] = "failed"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = "failed"


class Runner(DiscoverRunner):
    def get_resultclass(self) -> type[RecordingResult]:
        return RecordingResult

    def run_tests(self, test_labels: list[str], **kwargs: Any) -> int:
        if arguments := os.environ.get(INSTALL_VARIABLE):
            conn_hygiene.install(**json.loads(arguments))
        return super().run_tests(test_labels, **kwargs)

    def suite_result(self, suite: unittest.TestSuite, result: Any, **kwargs: Any) -> int:
        # Zero without the toolkit; with it, the proof that it was at work.
        report = {"outcomes": result.outcomes, "releases": conn_hygiene.stats().releases}
        Path(os.environ[REPORT_VARIABLE]).write_text(json.dumps(report))
        return super().suite_result(suite, result, **kwargs)
