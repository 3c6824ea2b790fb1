"""Run Django's own test suite on PostgreSQL without and with the toolkit, and print what differs.

    python -m tests.django_suite [--django 6.1.3] [--release-after 0] [label ...]

Exits with 1 if a test fails only with the toolkit, and is not in `EXPECTED`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import django

from example_project.embedded import ROOT, database_url
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
    # Both runs, and every process that a test starts, share one server.
    database_url()

    settings: dict[str, Any] = {"RELEASE": "always"}
    if options.release_after is not None:
        settings["RELEASE_AFTER"] = options.release_after
    call = f"install({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    print(f"Django {options.django}, plain", flush=True)
    plain, _ = _run(source, options.labels)
    print(f"Django {options.django}, {call}", flush=True)
    toolkit, releases = _run(source, options.labels, install=settings)

    print(f"\nDjango {options.django}: {' '.join(options.labels)}")
    for name, outcomes in ("plain", plain), (call, toolkit):
        counts = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "skipped", "failed")}
        print(f"  {name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"  connections were given back {releases} times")
    if not releases:
        sys.exit("The toolkit was not at work, so this comparison proves nothing.")
    return _compare(plain, toolkit)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", nargs="*", default=LABELS, help="labels of Django's suite (default: %(default)s)")
    parser.add_argument("--django", default=django.get_version(), help="the release to test (default: %(default)s)")
    parser.add_argument("--release-after", type=float, help="RELEASE_AFTER for the run with the toolkit")
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


def _run(source: Path, labels: list[str], *, install: dict[str, Any] | None = None) -> tuple[dict[str, str], int]:
    """Run the suite in a process of its own; return each test's outcome by its id, and the number of releases."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        environment = os.environ | {
            # The release's own code comes before the Django that is installed here.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(source)]),
            REPORT_VARIABLE: str(report),
        }
        if install is not None:
            environment[INSTALL_VARIABLE] = json.dumps(install)
        # One process: the order of the tests is then the same in both runs.
        arguments = ["--settings=tests.django_suite.settings", "--parallel=1", "--noinput", *labels]
        subprocess.run([sys.executable, "runtests.py", *arguments], cwd=source / "tests", env=environment, check=False)
        if not report.exists():
            sys.exit("The run broke off before its end: see above.")
        found = json.loads(report.read_text())
        return found["outcomes"], found["releases"]


def _compare(plain: dict[str, str], toolkit: dict[str, str]) -> int:
    failed = {test for test, outcome in toolkit.items() if outcome == "failed"}
    # A test that did not run at all counts as a failure too.
    failed |= plain.keys() - toolkit.keys()
    surprises = 0
    for test in sorted(failed):
        if plain.get(test) == "failed":
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
