"""For how long an owner should have a connection if somebody waits: what several answers come to.

    python -m example_project.benchmarks.turns

The shorter the turn, the sooner a short page is served beside long ones; the longer, the fewer are the switches of
threads. Measured like the rest, with the same workloads, and one contender for each answer.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from example_project.benchmarks import report
from example_project.benchmarks.contenders import AT_ONCE, HOLDING, PEER, TOOLKIT
from example_project.benchmarks.measuring import Stage, measure
from example_project.benchmarks.tables import Column
from example_project.benchmarks.workloads import FULL, workloads
from example_project.processes import end_on_signals, postgresql, shop_database

# Milliseconds.
TURNS = (1, 2, 3, 5, 8, 10, math.inf)

COLUMNS = [
    Column("long pages (9), requests/s", "beside", "rate", 1),
    Column("short (9), median ms", "beside", "beside_p50", 1),
    Column("short (9), p99 ms", "beside", "beside_p99", 1),
    Column("20 queries (4), requests/s", "database", "rate", 1),
]


def main() -> None:
    end_on_signals()
    turns = [replace(TOOLKIT, key=f"turn-{turn}", name=name(turn), turn=turn / 1000) for turn in TURNS]
    contenders = tuple(each for each in (HOLDING, *turns, AT_ONCE, PEER) if not each.missing)
    keys = {column.workload for column in COLUMNS}
    chosen = [replace(each, contenders=contenders) for each in workloads(FULL) if each.key in keys]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-bench-")))
        url = postgresql()
        env = stack.enter_context(shop_database(url, tenants=False))
        results = measure(Stage(env, directory, stack), chosen, lambda workload, done: None)
        found = report.Run(chosen, results, [], report.describe(url), report.machine(), [], quick=False)
    console = Console(highlight=False, width=report.WIDTH)
    console.print(report.rich_table(report.grid(found, "Turns", COLUMNS)))
    console.print(report.caption(found), markup=False)


def name(turn: float) -> str:
    return "no turns" if turn == math.inf else f"turns of {turn} ms"


if __name__ == "__main__":
    main()
