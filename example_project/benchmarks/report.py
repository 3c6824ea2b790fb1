"""The results as tables, for people; and all numbers, for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import psycopg
from rich import box
from rich.console import Console
from rich.table import Table

from example_project.benchmarks import pgbouncer
from example_project.benchmarks.bars import Bar, values
from example_project.benchmarks.rounds import Summary, summarise
from example_project.benchmarks.tables import tables
from example_project.benchmarks.workloads import COUNTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from example_project.benchmarks.contenders import Contender
    from example_project.benchmarks.measuring import Results
    from example_project.benchmarks.tables import Column
    from example_project.benchmarks.workloads import Workload

WIDTH = 120
NOTHING = "-"
QUICK = "A quick run, too short to judge by."


@dataclass(frozen=True)
class Run:
    """All that a run has come to."""

    workloads: Sequence[Workload]
    results: Results
    bars: Sequence[Bar]
    # Program or package, and its version.
    versions: dict[str, str]
    machine: str
    # Who did not take part, and why.
    missing: Sequence[str]
    quick: bool


@dataclass(frozen=True)
class Grid:
    """A table, however it is shown. A cell is a value, and what is said of it in small."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str]]]
    of_words: bool = False


def grids(run: Run) -> Iterator[Grid]:
    """Return the tables that have something to tell, the one that matters first."""
    for title, columns in tables(run.workloads):
        with_results = [column for column in columns if column.workload in run.results]
        if with_results:
            yield grid(run, title, with_results)
    yield from counts_grids(run)
    yield from failures_grid(run)
    yield bars_grid(run.bars)
    yield workloads_grid(run.workloads)


def grid(run: Run, title: str, columns: Sequence[Column]) -> Grid:
    rows = []
    for name, contenders in contenders_of(run, {column.workload for column in columns}).items():
        rows.append([(name, ""), *(cell(run, column, contenders) for column in columns)])
    return Grid(title, ["", *(column.heading for column in columns)], rows)


def contenders_of(run: Run, keys: Iterable[str]) -> dict[str, list[Contender]]:
    """Return those that take part, by their names: who differs in the workload alone has the same."""
    found: dict[str, list[Contender]] = {}
    for workload in run.workloads:
        for contender in workload.contenders if workload.key in keys else ():
            same = found.setdefault(contender.name, [])
            same += [contender] if contender not in same else []
    return found


def cell(run: Run, column: Column, contenders: Sequence[Contender]) -> tuple[str, str]:
    """Return the median, and from where to where the rounds were."""
    found = measured(run, column.workload, contenders, "p99" if column.measure == "late" else column.measure)
    if column.measure == "late":
        [workload] = [each for each in run.workloads if each.key == column.workload]
        waited = workload.arguments["spread"] * 1000
        found = [value - waited for value in found]
    return summary_cell(summarise(value * column.factor for value in found), column.decimals)


def measured(run: Run, workload: str, contenders: Sequence[Contender], measure: str) -> list[float]:
    """Return the rounds of the one of *contenders* that has taken part in *workload*."""
    return [value for each in contenders for value in values(run.results, workload, each, measure)]


def counts_grids(run: Run) -> Iterator[Grid]:
    """Return how many bytecodes each contender takes, and in which of the toolkit's packages its own are."""
    counted = {name: f"count-{what}" for what, name in COUNTED.items() if f"count-{what}" in run.results}
    if not counted:
        return
    contenders = [each for same in contenders_of(run, set(counted.values())).values() for each in same]
    rows = [[(each.name, ""), *(count_cell(run, key, each) for key in counted.values())] for each in contenders]
    yield Grid("Counts (13): bytecodes of Python", ["", *counted], rows)
    for each in contenders:
        parts = {name: parts_of(run, key, each) for name, key in counted.items()}
        if headings := sorted({part for found in parts.values() for part in found}):
            rows = [
                [(name, ""), *((f"{found[part]:,.0f}" if part in found else NOTHING, "") for part in headings)]
                for name, found in parts.items()
            ]
            yield Grid(f"Counts (13): the toolkit's own, of {each.name}", ["", *headings], rows)


def count_cell(run: Run, key: str, contender: Contender) -> tuple[str, str]:
    """Return the bytecodes of the thread that asks; of them its package's own, and beside them other threads'."""
    for found in run.results[key].get(contender.key, []):
        own = [f"own {found[name]:,.0f}" for name in ("toolkit", "peer") if name in found]
        others = [f"others {found['others']:,.0f}"] if found["others"] else []
        return f"{found['all']:,.0f}", ", ".join(own + others)
    return NOTHING, ""


def parts_of(run: Run, key: str, contender: Contender) -> dict[str, float]:
    """Return the toolkit's own by package or module."""
    for found in run.results[key].get(contender.key, []):
        return {name.partition(".")[2]: value for name, value in found.items() if name.startswith("toolkit.")}
    return {}


def failures_grid(run: Run) -> Iterator[Grid]:
    """Return which requests had no answer, of all that were made."""
    loads = [workload for workload in run.workloads if workload.command in ("drive", "herd")]
    numbers = list(dict.fromkeys(workload.number for workload in loads))
    if not numbers:
        return
    rows = []
    for name, contenders in contenders_of(run, {workload.key for workload in loads}).items():
        cells = [failed(run, loads, number, contenders) for number in numbers]
        rows.append([(name, ""), *((cell, "") for cell in cells)])
    headings = ["", *(f"workload {number}" for number in numbers)]
    yield Grid("Requests that failed: pool timeouts + other errors, of all", headings, rows)


def failed(run: Run, loads: Sequence[Workload], number: int, contenders: Sequence[Contender]) -> str:
    keys = [workload.key for workload in loads if workload.number == number]
    timeouts, errors, requests = (
        sum(value for key in keys for value in measured(run, key, contenders, name))
        for name in ("timeouts", "errors", "requests")
    )
    return f"{timeouts:,.0f} + {errors:,.0f} of {requests:,.0f}" if requests else NOTHING


def summary_cell(summary: Summary | None, decimals: int) -> tuple[str, str]:
    if summary is None:
        return NOTHING, ""
    median, least, most = (f"{value:,.{decimals}f}" for value in (summary.median, summary.minimum, summary.maximum))
    return median, f"{least}-{most}"


def bars_grid(bars: Sequence[Bar]) -> Grid:
    """Return the bars, and whether they are met."""
    rows = []
    for bar in bars:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar.met]
        value, small = summary_cell(bar.measured, bar.decimals)
        sign = "at least" if bar.at_least else "at most"
        limit = f"{sign} {bar.limit:.5f}".rstrip("0").rstrip(".")
        cells = [(f"{bar.workload}", ""), (bar.text, ""), (limit, ""), (value, bar.remark or small), (verdict, "")]
        rows.append(cells)
    return Grid("The targets of conn_hygiene, 0.001", ["", "measured", "target", "median", "met?"], rows, of_words=True)


def workloads_grid(workloads: Sequence[Workload]) -> Grid:
    """Return what was measured, in words."""
    rows = [
        [(str(each.number), ""), (each.key, ""), (each.title, ""), (str(each.rounds), ""), (str(each.server or ""), "")]
        for each in workloads
    ]
    return Grid(
        "What was measured", ["", "name", "each request, or each round", "rounds", "server"], rows, of_words=True
    )


def describe(url: str) -> dict[str, str]:
    """Return the versions of what has taken part."""
    packages = {
        "conn_hygiene": "django-conn-hygiene",
        "Django": "django",
        "psycopg": "psycopg",
        "psycopg_pool": "psycopg-pool",
        "django-pg-real-pool": "django-pg-real-pool",
        "gunicorn": "gunicorn",
        "uvicorn": "uvicorn",
    }
    found = {name: installed(package) for name, package in packages.items()}
    found["PgBouncer"] = pgbouncer.version()
    with psycopg.connect(url) as connection:
        server = connection.info.server_version
    found["PostgreSQL"] = f"{server // 10000}.{server % 10000}"
    found["Python"] = platform.python_version()
    return {name: version for name, version in found.items() if version}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> str:
    return f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores"


def caption(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"{versions}, on {run.machine}."


def legend(run: Run) -> str:
    text = (
        "Medians of the rounds, with the smallest and the largest. The number of a conn_hygiene is its RELEASE_AFTER "
        "in seconds; 0.001 is the default. A target is compared with the median of the ratios within each round. "
        "Single queries (1, 8) are timed with all processes on one processor, where the system lets them be put there. "
        "Counts (13) are those of the thread that asks: own are those of the contender's own package, and beside them, "
        "others are those of all other threads until the connection is back."
    )
    return f"{QUICK} {text}" if run.quick else text


def rich_table(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(grid.headings):
        # Numbers below each other, but words at the beginning of their column.
        words = number == 0 or grid.of_words
        table.add_column(heading, justify="left" if words else "right")
    for row in grid.rows:
        table.add_row(*(f"{value}\n[dim]{small}[/dim]" if small else value for value, small in row))
    return table


def print_report(run: Run, console: Console) -> None:
    if run.quick:
        console.print(f"{QUICK}\n", markup=False, highlight=False)
    for each in grids(run):
        console.print(rich_table(each))
    console.print(legend(run), markup=False, highlight=False)
    console.print(caption(run), markup=False, highlight=False)
    for reason in run.missing:
        console.print(f"Missing: {reason}", markup=False, highlight=False)


def text(run: Run) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=WIDTH, color_system=None)
        print_report(run, console)
        lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(run: Run, pictures: Sequence[str]) -> str:
    parts = ["# Benchmarks", f"{legend(run)} `make bench` makes this page.", caption(run)]
    parts += [f"Missing: {reason}" for reason in run.missing]
    parts += [f"![{name.removesuffix('.svg').replace('-', ' ')}]({name})" for name in pictures]
    parts += [markdown_table(each) for each in grids(run)]
    return "\n\n".join(parts) + "\n"


def markdown_table(grid: Grid) -> str:
    aligned = ["---", *["---" if grid.of_words else "---:"] * (len(grid.headings) - 1)]
    rows = [[f"{value} ({small})" if small else value for value, small in row] for row in grid.rows]
    lines = [row_of([*grid.headings]), row_of(aligned), *map(row_of, rows)]
    return f"## {grid.title}\n\n" + "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_json(run: Run) -> str:
    report = {
        "versions": run.versions,
        "machine": run.machine,
        "quick": run.quick,
        "missing": list(run.missing),
        "workloads": {
            each.key: {"number": each.number, "title": each.title, "ideal": each.ideal, "arguments": each.arguments}
            for each in run.workloads
        },
        "bars": [{**asdict(bar), "met": bar.met} for bar in run.bars],
        "rounds": run.results,
    }
    return json.dumps(report, indent=1) + "\n"


def write(run: Run, directory: Path) -> None:
    """Write the results in every form."""
    directory.mkdir(parents=True, exist_ok=True)
    from example_project.benchmarks import pictures

    # First of all: it has taken long.
    (directory / "results.json").write_text(as_json(run))
    drawn = pictures.draw(run, directory)
    (directory / "results.txt").write_text(text(run))
    (directory / "results.md").write_text(markdown(run, drawn))
