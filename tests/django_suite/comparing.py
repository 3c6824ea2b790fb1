"""Running a suite in a process of its own, without and with the toolkit, and comparing what came of its tests."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from example_project.embedded import ROOT
from tests.django_suite import RUN_VARIABLE
from tests.django_suite.runner import INSTALL_VARIABLE, REPORT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping


class Call(dict[str, Any]):
    """The arguments of a call of ``install()``."""

    def __str__(self) -> str:
        return f"install({', '.join(f'{name}={value!r}' for name, value in self.items())})"


class Found(NamedTuple):
    """What one run has come to: each test's outcome by its id, and how often a connection was given back."""

    outcomes: dict[str, str]
    releases: int


def fetch(name: str, version: str, cache: Path) -> Path:
    """Return the unpacked source of a release: the tests are only in there, and not in the wheel."""
    source = cache / f"{name}-{version}"
    if not source.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Unpacked beside its place and then moved: an interrupted run leaves no half of a suite behind.
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, f"--dest={directory}", f"{name}=={version}"], check=True)
            (archive,) = Path(directory).glob("*.tar.gz")
            shutil.unpack_archive(archive, directory)
            # Of what the archive is called the name may be written in another way.
            (unpacked,) = (each for each in Path(directory).iterdir() if each.is_dir())
            unpacked.rename(source)
    return source


def run(command: list[str], paths: list[Path], directory: Path, call: Call | None) -> Found:
    """Run *command* in *directory*, plain or after *call*, and print what it has said when it is over.

    Its own code is found in *paths*, before what is installed here.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *paths])),
            REPORT_VARIABLE: str(report),
            # A name for its databases, beside those of the other runs.
            RUN_VARIABLE: secrets.token_hex(4),
        }
        if call is not None:
            environment[INSTALL_VARIABLE] = json.dumps(call)
        finished = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(f"{call or 'plain'}:\n{finished.stdout}", flush=True)
        if not report.exists():
            sys.exit("The run broke off before its end: see above.")
        return Found(**json.loads(report.read_text()))


def print_outcomes(name: str, found: Found) -> None:
    counts = Counter(found.outcomes.values())
    print(f"  {name}: " + ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "skipped", "failed")))


def compare(name: str, plain: Found, with_toolkit: Found, expected: Mapping[str, str]) -> int:
    """Print what differs between two runs; return 1 if a test fails in the second alone, and 0 otherwise.

    *expected* are tests that may, each with the reason.
    """
    print_outcomes(name, with_toolkit)
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
        elif test in expected:
            print(f"  expected failure: {test} ({expected[test]})")
        else:
            surprises += 1
            print(f"  NEW FAILURE: {test}")
    print(f"  {surprises} new failures")
    return 1 if surprises else 0
