"""Run Django's own test suite on PostgreSQL without and with the toolkit, and print what differs.

    python -m tests.django_suite [--django 6.1.3] [--release-after 0.001 0] [label ...]

The runs go side by side, each in databases of its own. Exits with 1 if a test fails only with the toolkit, and is not
in `EXPECTED`.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import django

from conn_hygiene.conf import Settings
from example_project.embedded import ROOT, database_url
from tests.django_suite.comparing import Call, Found, compare, fetch, print_outcomes, run

if TYPE_CHECKING:
    from pathlib import Path

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
    source = fetch("django", options.django, CACHE)
    # All runs, and every process that a test starts, share one server.
    database_url()

    calls = [Call(RELEASE="always", RELEASE_AFTER=seconds) for seconds in options.release_after]
    with ThreadPoolExecutor() as executor:
        plain, *with_toolkit = executor.map(partial(_run, source, options.labels), [None, *calls])

    print(f"\nDjango {options.django}: {' '.join(options.labels)}")
    print_outcomes("plain", plain)
    # Each is compared, whatever the one before has come to.
    return max([compare(str(call), plain, found, EXPECTED) for call, found in zip(calls, with_toolkit, strict=True)])


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


def _run(source: Path, labels: list[str], call: Call | None) -> Found:
    # One process: the order of the tests is then the same in all runs.
    command = [sys.executable, "runtests.py", "--settings=tests.django_suite.settings", "--parallel=1", "--noinput"]
    return run([*command, *labels], [source], source / "tests", call)


if __name__ == "__main__":
    sys.exit(main())
