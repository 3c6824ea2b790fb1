"""Run the test suites of django-tenants and django-pgschemas without and with the toolkit, and print what differs.

    python -m tests.tenant_suites [--release-after 0.001 0] [suite ...]

The runs of a suite go side by side, each in a database of its own, all on the native pool. Exits with 1 if a test fails
only with the toolkit.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.conf import Settings
from example_project.embedded import ROOT, database_url
from tests.django_suite.comparing import Call, Found, compare, fetch, print_outcomes, run

if TYPE_CHECKING:
    from pathlib import Path

CACHE = ROOT / ".cache" / "tenant-suites"


class Suite(NamedTuple):
    """One product's tests, which only its source distribution has."""

    name: str
    version: str
    #: Where they are run, and what is importable beside the product, below the source.
    directory: str
    command: list[str]
    #: Tests that assert what the toolkit is there to change, each with the reason.
    expected: dict[str, str]


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "django-tenants",
            "4.0.1",
            "dts_test_project",
            ["django", "test", "django_tenants.tests", "--settings=tests.tenant_suites.django_tenants", "--noinput"],
            {},
        ),
        Suite(
            "django-pgschemas",
            "1.3.2",
            ".",
            [
                "pytest",
                "-q",
                "-p",
                "tests.tenant_suites.plugin",
                "--ds=tests.tenant_suites.django_pgschemas",
                "sandbox",
            ],
            {},
        ),
    )
}


def main() -> int:
    options = _parse_arguments()
    # All runs, and every process that a test starts, share one server.
    database_url()
    calls = [Call(RELEASE="always", RELEASE_AFTER=seconds) for seconds in options.release_after]
    # Each is compared, whatever the one before has come to.
    return max([_run_suite(SUITES[name], calls) for name in options.suites])


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tenant_suites", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", nargs="*", default=list(SUITES), metavar="suite", help="default: %(default)s")
    # At the default few pauses of a test are long enough; without a grace every query ends in a release.
    parser.add_argument(
        "--release-after",
        type=float,
        nargs="+",
        default=[Settings.RELEASE_AFTER, 0.0],
        help="RELEASE_AFTER for each of the runs with the toolkit (default: %(default)s)",
    )
    return parser.parse_args()


def _run_suite(suite: Suite, calls: list[Call]) -> int:
    source = fetch(suite.name, suite.version, CACHE)
    with ThreadPoolExecutor() as executor:
        plain, *with_toolkit = executor.map(partial(_run, suite, source), [None, *calls])
    print(f"\n{suite.name} {suite.version}:")
    print_outcomes("plain", plain)
    return max(
        [compare(str(call), plain, found, suite.expected) for call, found in zip(calls, with_toolkit, strict=True)]
    )


def _run(suite: Suite, source: Path, call: Call | None) -> Found:
    directory = source / suite.directory
    return run([sys.executable, "-m", *suite.command], [source, directory], directory, call)


if __name__ == "__main__":
    sys.exit(main())
