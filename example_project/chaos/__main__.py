"""Break what is between a site and its data, without and with the toolkit: ``make chaos``, ``make chaos-quick``.

    python -m example_project.chaos [--quick] [--only cut hung] [--contenders plain toolkit] [--output DIR]

The servers are its own, on this machine, and stopped at the end, however the end comes about. The exit status is 1 if
with the toolkit a commit is lost, or made though its client was told that it was not; if money is missing; or if a
connection has not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from example_project.chaos import report, servers
from example_project.chaos.contenders import CONTENDERS, PLAIN, TOOLKIT
from example_project.chaos.faults import FAULTS
from example_project.chaos.measuring import FULL, QUICK, Stage, measure, prepare
from example_project.chaos.targets import targets
from example_project.processes import ROOT, Trouble, end_on_signals, partner

if TYPE_CHECKING:
    from example_project.chaos.contenders import Contender
    from example_project.chaos.faults import Fault

CARRIER_DELAY = 0.05  # seconds


def main() -> None:
    options = parser().parse_args()
    end_on_signals()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=report.WIDTH)
    try:
        found = run(options, console)
    except Trouble as trouble:
        console.print(f"[red]The chaos could not be made.[/red] {escape(str(trouble))}", soft_wrap=True)
        sys.exit(1)
    report.print_report(found, console)
    whole = not found.missing and not (options.quick or options.only or options.contenders)
    if output := options.output or (ROOT / "docs" / "chaos" if whole else None):
        # Only here: a run by itself needs nothing that draws.
        from example_project.chaos import pictures

        report.write(found, output)
        pictures.draw(found, output)
        console.print(f"Written to {output}.", soft_wrap=True)
    if found.failed:
        console.print("[red]With the toolkit something was lost, or did not come back: see the targets.[/red]")
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Break connections in every way, without and with the toolkit.")
    parser.add_argument("--quick", action="store_true", help="three faults, and only the two most important contenders")
    names = [fault.key for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="FAULT", help=", ".join(names))
    keys = [contender.key for contender in CONTENDERS]
    parser.add_argument("--contenders", nargs="+", choices=keys, metavar="NAME", help=", ".join(keys))
    parser.add_argument(
        "--output", type=Path, help="directory for the results (docs/chaos; none if something is left out)"
    )
    return parser


def chosen(options: argparse.Namespace) -> tuple[list[Fault], list[Contender]]:
    faults = [
        fault for fault in FAULTS if (fault.key in options.only if options.only else fault.quick or not options.quick)
    ]
    keys = options.contenders or [each.key for each in ((PLAIN, TOOLKIT) if options.quick else CONTENDERS)]
    return faults, [contender for contender in CONTENDERS if contender.key in keys]


def run(options: argparse.Namespace, console: Console) -> report.Run:
    started = time.monotonic()
    faults, contenders = chosen(options)
    missing = {fault.title: reason for fault in faults if (reason := fault.missing())}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-chaos-")))
        console.print("Starting PostgreSQL, filling a shop and a bank")
        primary = stack.enter_context(servers.serving())
        prepare(primary)
        env = stack.enter_context(partner(CARRIER_DELAY, directory=directory))
        stage = Stage(primary, directory, env, QUICK if options.quick else FULL, contenders)
        possible = [fault for fault in faults if fault.title not in missing]
        results = measure(stage, possible, lambda fault: console.print(fault.title))
        versions = report.describe(primary)
    reached = list(targets(faults, contenders, results))
    seconds = time.monotonic() - started
    return report.Run(faults, contenders, results, reached, versions, missing, options.quick, seconds)


if __name__ == "__main__":
    main()
