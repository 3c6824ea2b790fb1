"""Count bytecodes, without the rest of the benchmarks, and hold the toolkit's own to those that are committed.

    python -m example_project.benchmarks.counts [--check | --write]

Prints the counts of all contenders. With ``--check`` (``make counts``) only the toolkit takes part, and the exit status
is 1 if it takes over 5 % more bytecodes of its own for something than were committed for this version of Python.
``--write`` (``make counts WRITE=1``) writes those of now, with the tables that the documentation shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from example_project.benchmarks import report
from example_project.benchmarks.contenders import AT_ONCE, COUNTED, NEVER, TOOLKIT
from example_project.benchmarks.measuring import Stage, measure
from example_project.benchmarks.workloads import COUNTABLE, counts
from example_project.processes import ROOT, Trouble, end_on_signals, postgresql, temporary_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from example_project.benchmarks.contenders import Contender
    from example_project.benchmarks.measuring import Results

# By version of Python, contender and what is counted.
COMMITTED = ROOT / "docs" / "benchmarks" / "counts.json"
# Of the newest of these versions.
SHOWN = COMMITTED.with_suffix(".txt")

OURS = (AT_ONCE, TOOLKIT, NEVER)
# When a grace ends, and what the reaper has to be told, is a matter of time.
TIMED = {("count-cycle", TOOLKIT.key)}

# What was committed, times that, is too much.
LIMIT = 1.05

# How many bytecodes a line of code is differs between versions.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# The toolkit's own, by contender and what is counted.
Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Change:
    """What a count was when it was committed, and what it is."""

    contender: str
    what: str
    before: int
    now: int

    @property
    def is_growth(self) -> bool:
        return self.now > self.before * LIMIT

    @property
    def is_gain(self) -> bool:
        return self.now * LIMIT < self.before

    def __str__(self) -> str:
        percent = (self.now / self.before - 1) * 100
        return f"{self.contender}, {self.what}: {self.now:,} bytecodes, {self.before:,} committed ({percent:+.1f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the bytecodes of queries, cycles, transactions and requests.")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--check", action="store_true", help="compare the toolkit's own with those that are committed")
    does.add_argument("--write", action="store_true", help="write these anew, to be committed")
    options = parser.parse_args()
    end_on_signals()
    try:
        sys.exit(not (check() if options.check else show(keep=options.write)))
    except Trouble as trouble:
        print(f"Nothing could be counted. {trouble}")
        sys.exit(1)


def check() -> bool:
    """Compare with what is committed, and return whether nothing has grown."""
    if not (committed := read().get(PYTHON)):
        print(f"No counts of Python {PYTHON} are committed: nothing to compare with.")
        return True
    return verdict(committed, own(counted(OURS).results))


def verdict(committed: Counts, now: Counts) -> bool:
    """Print how each count has changed, and return whether none has grown."""
    before, after = flat(committed), flat(now)
    changes = [Change(*key, before[key], after[key]) for key in after if key in before]
    print(*changes, sep="\n")
    if before.keys() != after.keys():
        print('What is counted has changed: "make counts WRITE=1", and commit that.', file=sys.stderr)
        return False
    if any(change.is_gain for change in changes):
        print('Some take less by now. "make counts WRITE=1", and commit that, so that it stays so.')
    if grown := [change for change in changes if change.is_growth]:
        print(f"\nThese have grown by more than {(LIMIT - 1) * 100:.0f} %:", *grown, sep="\n  ", file=sys.stderr)
        print('If it has to cost that much: "make counts WRITE=1", and commit that.', file=sys.stderr)
    return not grown


def flat(counts: Counts) -> dict[tuple[str, str], int]:
    return {(contender, what): number for contender, numbers in counts.items() for what, number in numbers.items()}


def show(*, keep: bool) -> bool:
    """Print the counts of all contenders, and keep them if wanted; return whether there can be any."""
    if not COUNTABLE:
        print("Python 3.12 or newer is needed.")
        return False
    run = counted([each for each in COUNTED if not each.missing])
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=report.WIDTH)
    print_tables(run, console)
    if keep:
        known = {**read(), PYTHON: own(run.results)}
        write(known)
        # The text has all contenders or is left as it is.
        if not run.missing and max(known, key=version) == PYTHON:
            SHOWN.write_text(text(run))
    return True


def counted(contenders: Sequence[Contender]) -> report.Run:
    chosen = [replace(each, contenders=tuple(who for who in each.contenders if who in contenders)) for each in counts()]
    missing = sorted(each.missing for each in COUNTED if each.missing)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-counts-")))
        url = postgresql()
        env = {"DATABASE_URL": stack.enter_context(temporary_database(url)), "CONN_HYGIENE_DEBUG": "0"}
        stage = Stage(env, directory, stack)
        # They start side by side.
        first, *_ = [stage.worker(contender) for contender in contenders]
        first.ask("shop")
        results = measure(stage, chosen, lambda workload, done: None)
        return report.Run(chosen, results, [], report.describe(url), report.machine(), missing, quick=False)


def own(results: Results) -> Counts:
    """Return the toolkit's own."""
    found: Counts = {}
    for key, rounds in results.items():
        for contender in OURS:
            if (key, contender.key) not in TIMED:
                for counts in rounds.get(contender.key, []):
                    found.setdefault(contender.key, {})[key.removeprefix("count-")] = round(counts["toolkit"])
    return found


def read() -> dict[str, Counts]:
    """Return what is committed, by version of Python."""
    committed: dict[str, Counts] = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    return committed


def write(known: dict[str, Counts]) -> None:
    ordered = {python: known[python] for python in sorted(known, key=version)}
    COMMITTED.write_text(json.dumps(ordered, indent=1) + "\n")


def version(python: str) -> tuple[int, ...]:
    return tuple(map(int, python.split(".")))


def print_tables(run: report.Run, console: Console) -> None:
    for grid in report.counts_grids(run):
        console.print(report.rich_table(grid))
    console.print(report.caption(run), markup=False)
    for reason in run.missing:
        console.print(f"Missing: {reason}", markup=False)


def text(run: report.Run) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=report.WIDTH, color_system=None)
        print_tables(run, console)
        lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    main()
