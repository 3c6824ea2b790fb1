"""Break lines of the core one by one, in a copy of the tree, and show that a test falls for each.

    python -m tests.mutants [--jobs 2] [--share 1/3] [--list] [part of a name ...]

Exits with 0 only if a test fell for every one of them. A mutant is one that nobody has found if its tests pass, if they
hang, or if they fail because it cannot be imported or names what is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from example_project import embedded
from example_project.embedded import ROOT
from example_project.processes import end_on_signals
from tests.mutants.lines import MUTANTS, Mutant
from tests.mutants.witness import REPORT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Seconds for one mutant, for one test of it, and for all tests on the unbroken copy.
LIMIT, LIMIT_OF_TEST, LIMIT_OF_ALL = 60, 30, 300

# Some break what only matters when two threads meet. It is enough that a test can find it; what survives each time has
# not been found by anybody.
TRIES = 3

PYTEST = [
    *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
    # One after the other, in the order in which they stand: what fell once falls again. Of the plugins only those that
    # the tests and their settings cannot do without, since importing the others takes longer than the tests.
    *("-p", "pytest_django.plugin", "-p", "xdist.plugin", "-n", "0", "-p", "tests.mutants.witness"),
    *("-o", f"faulthandler_timeout={LIMIT_OF_TEST}"),
]

# A test that meets one of these has found a mutant that is none: it breaks everything that touches it. Django exits
# if it cannot make the test database.
MISTAKES = {"ImportError", "NameError", "SyntaxError", "SystemExit"}


class Run(NamedTuple):
    """How one run of pytest ended."""

    code: int | None
    seconds: float
    seen: dict[str, Any]
    output: str

    @property
    def verdict(self) -> str:
        if self.code == 0:
            return "survived"
        # faulthandler ends a test that takes too long, and the process with it, in the same way as a failure.
        if self.code is None or (self.code == 1 and "finished" not in self.seen):
            return "hung"
        if self.code == 1 and "fell" in self.seen and not MISTAKES & set(self.seen["kinds"]):
            return "found"
        return "no mutant"

    @property
    def where(self) -> str:
        """The test that fell first, and by what; else the last that ran."""
        if "fell" in self.seen:
            return f"{self.seen['fell']}: {self.seen['kinds'][0]}"
        return str(self.seen.get("running", ""))


def main() -> int:
    options = _parse_arguments()
    chosen = [mutant for mutant in MUTANTS if not options.names or any(part in mutant.name for part in options.names)]
    nth, of = options.share
    chosen = chosen[nth - 1 :: of]
    if not chosen:
        sys.exit("No mutant has a name like that; --list shows them.")
    if options.list:
        print("\n".join(f"{mutant.file + ':':17} {mutant.name}" for mutant in chosen))
        return 0
    _check_list()
    jobs = min(options.jobs, len(chosen))
    if jobs > 1 and (os.environ.get("DATABASE_URL") or embedded._url_from_libpq_environment()):
        print("The environment names a server, and all runs would use one test database there: one at a time.")
        jobs = 1
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-mutants-") as directory:
        copies = [Copy(Path(directory) / str(number)) for number in range(jobs)]
        return asyncio.run(_try_all(chosen, copies))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="part of a name", help="only the mutants with this in their names")
    parser.add_argument("--jobs", type=int, default=2, help="how many to try side by side (default: %(default)s)")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="1/3", help="only the first of every three")
    parser.add_argument("--list", action="store_true", help="list the mutants, and try none")
    return parser.parse_args()


def _share(text: str) -> tuple[int, int]:
    nth, of = map(int, text.split("/"))
    if not 1 <= nth <= of:
        raise ValueError(text)
    return nth, of


def _check_list() -> None:
    """Exit if a mutant does not fit the lines that it breaks, or is no Python."""
    names = [mutant.name for mutant in MUTANTS]
    trouble = [f"{name}: there are two of this name" for name in {*names} if names.count(name) > 1]
    for mutant in MUTANTS:
        text = (ROOT / mutant.path).read_text()
        found = len(mutant.places(text))
        if found != 1:
            trouble.append(f"{mutant.name}: OUT OF DATE, its lines are {found} times in {mutant.path} and not once")
            continue
        try:
            compile(mutant.applied_to(text), mutant.path, "exec")
        except SyntaxError as error:
            trouble.append(f"{mutant.name}: no Python, {error}")
    if trouble:
        sys.exit("\n".join(trouble))


class Copy:
    """A copy of the working tree, in which one mutant at a time is tried."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            # One that has been removed, and not committed yet, is listed too.
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, directory / name)
        self.check_what_is_imported()

    @property
    def environment(self) -> dict[str, str]:
        # Before what is installed, which may be the working tree; and for the processes that the tests start, too.
        return os.environ | {
            "PYTHONPATH": str(self.directory),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            REPORT_VARIABLE: str(self.report),
        }

    @property
    def report(self) -> Path:
        return self.directory.with_suffix(".json")

    def check_what_is_imported(self) -> None:
        """Exit if a process that is started elsewhere would not import the copy."""
        code = "import conn_hygiene, tests; print(conn_hygiene.__file__)"
        command = [sys.executable, "-c", code]
        found = subprocess.check_output(command, cwd=tempfile.gettempdir(), env=self.environment, text=True).strip()
        if not Path(found).is_relative_to(self.directory):
            sys.exit(f"Not the copy in {self.directory} is imported, but {found}.")

    @contextlib.contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        path = self.directory / mutant.path
        whole = path.read_text()
        self._write(path, mutant.applied_to(whole))
        try:
            yield
        finally:
            self._write(path, whole)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        # Python goes by the second of the change and by the size, and both may be the same.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    async def test(self, tests: Sequence[str], limit: float) -> Run:
        """Run pytest on *tests*, in a group of processes of which none is left afterwards."""
        self.report.unlink(missing_ok=True)
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *PYTEST,
            *tests,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        output, code = bytearray(), None
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                code = await asyncio.wait_for(_read_to_the_end(process, output), limit)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        seen = json.loads(self.report.read_text()) if self.report.exists() else {}
        if seen and not Path(seen["imported_from"]).is_relative_to(self.directory):
            sys.exit(f"The tests in {self.directory} have imported {seen['imported_from']}.")
        return Run(code, time.monotonic() - began, seen, output.decode(errors="replace"))


async def _read_to_the_end(process: asyncio.subprocess.Process, output: bytearray) -> int:
    assert process.stdout is not None
    while chunk := await process.stdout.read(65536):
        output += chunk
    return await process.wait()


async def _try_all(mutants: Sequence[Mutant], copies: Sequence[Copy]) -> int:
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    print(f"{len(tests)} tests of {len(mutants)} mutants, on unbroken copies", flush=True)
    shares = [(copy, tests[number :: len(copies)]) for number, copy in enumerate(copies)]
    failed = await _failed_twice(shares)
    if failed:
        for run in failed:
            print(_indented(run.output))
        print("The tests fail without any mutant, so they prove nothing.")
        return 1

    waiting = list(mutants)
    outcomes: dict[str, Run] = {}

    async def work(copy: Copy) -> None:
        while waiting:
            mutant = waiting.pop(0)
            with copy.broken(mutant):
                run = await copy.test(mutant.tests, LIMIT)
                for _ in range(TRIES - 1):
                    if run.verdict == "survived":
                        run = await copy.test(mutant.tests, LIMIT)
            outcomes[mutant.name] = run
            print(f"{len(outcomes):3} of {len(mutants)}: {mutant.name}: {run.verdict}", flush=True)
            if run.verdict in ("hung", "no mutant"):
                print(_indented(run.output), flush=True)

    await asyncio.gather(*map(work, copies))
    return _print_table(mutants, outcomes)


async def _failed_twice(shares: Sequence[tuple[Copy, Sequence[str]]]) -> list[Run]:
    """Run the tests of each copy, once more if they fail, and return the runs that failed again."""

    async def run(copy: Copy, share: Sequence[str]) -> Run:
        first = await copy.test(share, LIMIT_OF_ALL)
        return first if first.code == 0 else await copy.test(share, LIMIT_OF_ALL)

    runs = await asyncio.gather(*(run(copy, share) for copy, share in shares if share))
    return [run for run in runs if run.code != 0]


def _indented(output: str) -> str:
    return "\n".join(f"    {line}" for line in output.splitlines()[-40:])


def _print_table(mutants: Sequence[Mutant], outcomes: dict[str, Run]) -> int:
    width = max(len(mutant.name) for mutant in mutants)
    print()
    for mutant in mutants:
        run = outcomes[mutant.name]
        print(f"{mutant.name:{width}}  {run.verdict:9}  {run.seconds:4.1f} s  {run.where.removeprefix('tests/')}")
    found = sum(run.verdict == "found" for run in outcomes.values())
    print(f"\n{found} of {len(mutants)} found")
    return 0 if found == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
