"""Run Django's own test suite on PostgreSQL without and with the toolkit, and print what differs.

    python -m tests.django_suite [--django 6.1.3] [--release-after 0.001 0] [label ...]

The runs go side by side, each in databases of its own. Exits with 1 if a test fails only with the toolkit, and is not
in `EXPECTED`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import django

from conn_hygiene.conf import Settings
from example_project.embedded import ROOT, database_url
from tests.django_suite import RUN_VARIABLE
from tests.django_suite.runner import INSTALL_VARIABLE, REPORT_VARIABLE

CACHE = ROOT / ".cache" / "django-suite"

# What touches connections, transactions and the request cycle, and what builds test databases.
LABELS = [
    *("backends", "transactions", "transaction_hooks", "select_for_update"),
    *("basic", "get_or_create", "fixtures_regress", "migrations"),
    *("async", "asgi", "servers", "test_utils"),
]

_HEALTH_CHECKS = "backends.base.test_base.ConnectionHealthChecksTests"
# Tests that assert what the toolkit is there to change, each with the reason. All of these pass when no pause inside
# them is longer than RELEASE_AFTER; with 0, the first of them never does.
EXPECTED = {
    f"{_HEALTH_CHECKS}.test_health_checks_disabled": "asserts that two queries of an idle thread share a connection",
    f"{_HEALTH_CHECKS}.test_health_checks_enabled": "asserts that an idle thread's next query finds the same one",
    f"{_HEALTH_CHECKS}.test_health_checks_enabled_errors_occurred": (
        "asserts that the connection of an idle thread stays the same from one request to the next"
    ),
}


def main() -> int:
    options = _parse_arguments()
    source = _fetch(options.django)
    # All runs, and every process that a test starts, share one server.
    database_url()

    calls = [_Call(RELEASE="always", RELEASE_AFTER=seconds) for seconds in options.release_after]
    with ThreadPoolExecutor() as executor:
        plain, *with_toolkit = executor.map(partial(_run, source, options.labels), [None, *calls])

    print(f"\nDjango {options.django}: {' '.join(options.labels)}")
    _print_outcomes("plain", plain)
    # Each is compared, whatever the one before has come to.
    return max([_compare(str(call), plain, found) for call, found in zip(calls, with_toolkit, strict=True)])


class _Call(dict[str, Any]):
    """The arguments of a call of ``install()``."""

    def __str__(self) -> str:
        return f"install({', '.join(f'{name}={value!r}' for name, value in self.items())})"


class _Found(NamedTuple):
    """What one run has come to: each test's outcome by its id, and how often a connection was given back."""

    outcomes: dict[str, str]
    releases: int


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", nargs="*", default=LABELS, help="labels of Django's suite (default: %(default)s)")
    parser.add_argument("--django", default=django.get_version(), help="the release to test (default: %(default)s)")
    # At the default few pauses of a test are long enough; without a grace every query ends in a release.
    parser.add_argument(
        "--release-after",
        type=float,
        nargs="+",
        default=[Settings.RELEASE_AFTER, 0.0],
        help="RELEASE_AFTER for each of the runs with the toolkit (default: %(default)s)",
    )
    return parser.parse_args()


def _fetch(version: str) -> Path:
    """Return the unpacked source of a release: the tests are only in there, and not in the wheel."""
    source = CACHE / f"django-{version}"
    if not source.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Unpacked beside its place and then moved: an interrupted run leaves no half of a suite behind.
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, f"--dest={directory}", f"django=={version}"], check=True)
            (archive,) = Path(directory).glob("*.tar.gz")
            shutil.unpack_archive(archive, directory)
            (Path(directory) / source.name).rename(source)
    return source


def _run(source: Path, labels: list[str], call: _Call | None) -> _Found:
    """Run the suite in a process of its own, plain or after *call*, and print what it has said when it is over."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        environment = os.environ | {
            # The release's own code comes before the Django that is installed here.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(source)]),
            REPORT_VARIABLE: str(report),
            # A name for its databases, beside those of the other runs.
            RUN_VARIABLE: secrets.token_hex(4),
        }
        if call is not None:
            environment[INSTALL_VARIABLE] = json.dumps(call)
        # One process: the order of the tests is then the same in all runs.
        command = [sys.executable, "runtests.py", "--settings=tests.django_suite.settings", "--parallel=1", "--noinput"]
        finished = subprocess.run(
            [*command, *labels],
            cwd=source / "tests",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(f"{call or 'plain'}:\n{finished.stdout}", flush=True)
        if not report.exists():
            sys.exit("The run broke off before its end: see above.")
        return _Found(**json.loads(report.read_text()))


def _print_outcomes(name: str, found: _Found) -> None:
    counts = Counter(found.outcomes.values())
    print(f"  {name}: " + ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "skipped", "failed")))


def _compare(name: str, plain: _Found, with_toolkit: _Found) -> int:
    """Print what differs between two runs; return 1 if a test fails in the second alone, and 0 otherwise."""
    _print_outcomes(name, with_toolkit)
    print(f"  connections were given back {with_toolkit.releases} times")
    if not with_toolkit.releases:
        print("  The toolkit was not at work, so this comparison proves nothing.")
        return 1
    failed = {test for test, outcome in with_toolkit.outcomes.items() if outcome == "failed"}
    # A test that did not run at all counts as a failure too.
    failed |= plain.outcomes.keys() - with_toolkit.outcomes.keys()
    surprises = 0
    for test in sorted(failed):
        if plain.outcomes.get(test) == "failed":
            print(f"  fails without the toolkit too: {test}")
        elif test in EXPECTED:
            print(f"  expected failure: {test} ({EXPECTED[test]})")
        else:
            surprises += 1
            print(f"  NEW FAILURE: {test}")
    print(f"  {surprises} new failures")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
