"""Compare the toolkit with the other ways to have connections: ``make bench``, ``make bench-quick``.

    python -m example_project.benchmarks [--quick] [--only 1 4] [--contenders holding toolkit] [--output DIR]

Every contender is a process of its own, all are there at the same time, and one after the other has its turn in each
round. Everything runs on this machine, and is stopped at the end, however the end comes about.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from example_project.benchmarks import report
from example_project.benchmarks.bars import bars
from example_project.benchmarks.contenders import CONTENDERS
from example_project.benchmarks.measuring import Results, Stage, measure
from example_project.benchmarks.workloads import COUNTABLE, FULL, QUICK, SMOKE, Workload, workloads
from example_project.processes import ROOT, Trouble, end_on_signals, postgresql, shop_database

if TYPE_CHECKING:
    from collections.abc import Sequence

# What the keys of contenders begin with that are the same otherwise.
ELSEWHERE = ("tenants-", "network-", "pages-", "far-", "pair-")

SCALES = {"full": FULL, "quick": QUICK, "smoke": SMOKE}


def main() -> None:
    options = parser().parse_args()
    end_on_signals()
    # Where nobody watches, such as in a log, lines are not cut to 80 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=report.WIDTH)
    try:
        run(options, console)
    except Trouble as trouble:
        console.print(f"[red]The benchmarks could not be run.[/red] {escape(str(trouble))}", soft_wrap=True)
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare the toolkit with the other ways to have connections.")
    parser.add_argument(
        "--scale", choices=SCALES, default="full", help="how much is measured; smoke only shows that all runs"
    )
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick", help="the same as --scale=quick")
    parser.add_argument("--only", type=int, nargs="+", choices=range(1, 14), metavar="N", help="some of the workloads")
    keys = [contender.key for contender in CONTENDERS]
    parser.add_argument("--contenders", nargs="+", choices=keys, default=keys, metavar="NAME", help=", ".join(keys))
    parser.add_argument("--rounds", type=int, help="of each workload, in place of its own number")
    parser.add_argument(
        "--output", type=Path, help="directory for the results (docs/benchmarks; none if not everything is measured)"
    )
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    chosen, missing = selected(options)
    if not chosen:
        raise Trouble("Nothing is left to measure.")
    for reason in missing:
        console.print(f"[yellow]Missing:[/yellow] {escape(reason)}", soft_wrap=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-bench-")))
        url = postgresql()
        # A database without policies and functions, of whose sessions nothing has to be feared.
        env = stack.enter_context(shop_database(url, tenants=False))
        results = watched(Stage(env, directory, stack), chosen, console)
        versions = report.describe(url)
    ideals = {workload.key: workload.ideal for workload in chosen if workload.ideal}
    found = report.Run(
        chosen, results, bars(results, ideals), versions, report.machine(), missing, options.scale != "full"
    )
    complete = options.scale == "full" and not options.only and options.contenders == parser().get_default("contenders")
    if output := options.output or (ROOT / "docs" / "benchmarks" if complete else None):
        report.write(found, output)
    report.print_report(found, console)
    if output:
        console.print(f"Written to {output}.", soft_wrap=True)


def selected(options: argparse.Namespace) -> tuple[list[Workload], list[str]]:
    """Return what is to be measured, and what cannot be."""
    everybody = workloads(SCALES[options.scale])
    missing = {each.missing for workload in everybody for each in workload.contenders if takes_part(each.key, options)}
    if not COUNTABLE:
        missing.add("before version 3.12, Python has nothing to count its bytecodes by")
    chosen = []
    for workload in everybody:
        if options.only and workload.number not in options.only:
            continue
        contenders = tuple(each for each in workload.contenders if takes_part(each.key, options) and not each.missing)
        if contenders:
            chosen.append(replace(workload, contenders=contenders, rounds=options.rounds or workload.rounds))
    return chosen, sorted(reason for reason in missing if reason)


def takes_part(key: str, options: argparse.Namespace) -> bool:
    # Those that are in one workload only come along with it, but for the same ones somewhere else.
    for prefix in ELSEWHERE:
        key = key.removeprefix(prefix)
    return key in options.contenders or key not in {contender.key for contender in CONTENDERS}


def watched(stage: Stage, chosen: Sequence[Workload], console: Console) -> Results:
    """Measure, and show how far it has come."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {
            workload.key: progress.add_task(name(workload), total=workload.rounds, start=False) for workload in chosen
        }

        def tell(workload: Workload, done: int) -> None:
            if not done:
                progress.start_task(bars[workload.key])
                if progress.disable:
                    console.print(name(workload), soft_wrap=True)
            progress.update(bars[workload.key], completed=done)

        return measure(stage, chosen, tell)


def name(workload: Workload) -> str:
    return f"{workload.number}. {workload.server + ', ' if workload.server else ''}{workload.title}"


if __name__ == "__main__":
    main()
