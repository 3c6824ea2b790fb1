"""What a run has to tell: a table, the targets, and files for the documentation."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from example_project.benchmarks import pgbouncer
from example_project.benchmarks.report import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from example_project.chaos.contenders import Contender
    from example_project.chaos.faults import Fault
    from example_project.chaos.measuring import Outcome, Row
    from example_project.chaos.servers import Breakable
    from example_project.chaos.targets import Target

WIDTH = 128
QUICK = "A short run: some of the faults, to see that nothing is lost."

LEGEND = """\
Failed: requests with any other answer than a page, or with none. Until: seconds from the end of the fault to the last
failure after it. Told: commits that clients have been told of; found: those in the ledger; lost: told and not found;
ghosts: found, though told for sure that they were not made, or found twice. A commit whose answer was lost is neither.
Money: what is missing or too much, in all and by account. Not back: connections that the pools do not give at the end,
and sessions that stay in a transaction."""


@dataclass(frozen=True)
class Run:
    faults: Sequence[Fault]
    contenders: Sequence[Contender]
    results: Mapping[str, Outcome]
    targets: Sequence[Target]
    versions: Mapping[str, str]
    # Why faults are left out, by their titles.
    missing: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    seconds: float = 0

    @property
    def failed(self) -> bool:
        return any(target.must and not target.met for target in self.targets)


def describe(server: Breakable) -> dict[str, str]:
    """Return the versions of what has taken part."""
    packages = {
        "conn_hygiene": "django-conn-hygiene",
        "Django": "django",
        "psycopg": "psycopg",
        "psycopg_pool": "psycopg-pool",
        "gunicorn": "gunicorn",
    }
    found = {name: version(package) for name, package in packages.items()}
    if bouncer := pgbouncer.version():
        found["PgBouncer"] = bouncer
    with server.connect() as connection:
        number = connection.info.server_version
    return {**found, "PostgreSQL": f"{number // 10000}.{number % 10000}", "Python": platform.python_version()}


def rich_table(run: Run) -> Table:
    title = "The same faults for everybody, at the same time"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("Fault", "Contender"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Failed", "Until", "Told", "Found", "Lost", "Ghosts", "Money", "Not back"):
        table.add_column(heading, justify="right", no_wrap=True)
    for fault in run.faults:
        if not (outcome := run.results.get(fault.key)):
            continue
        for number, contender in enumerate(run.contenders):
            row = outcome.rows[contender.key]
            last = number == len(run.contenders) - 1
            table.add_row("" if number else fault.title, contender.name, *cells(row), end_section=last)
    return table


def cells(row: Row) -> list[str]:
    account = row.account
    return [
        f"{account.failed} of {account.requests}",
        "-" if account.recovered is None else f"{account.recovered:.2f} s",
        *map(str, (account.told, account.found, account.lost, account.ghosts, account.money)),
        str(row.never_back + row.in_transaction),
    ]


def targets_table(run: Run) -> Table:
    title = "Targets, of all that the toolkit has to reach: those missed"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("Fault", "Contender", "Target", "Measured", ""):
        table.add_column(heading)
    titles = {fault.key: fault.title for fault in run.faults}
    names = {contender.key: contender.name for contender in run.contenders}
    for target in run.targets:
        if not target.met:
            failed = "[red]failed[/red]" if target.must else "missed"
            table.add_row(titles[target.fault], names[target.contender], target.text, target.measured, failed)
    return table


def print_report(run: Run, console: Console) -> None:
    if run.quick:
        console.print(f"{QUICK}\n", markup=False)
    console.print(rich_table(run))
    console.print(LEGEND, markup=False, soft_wrap=True)
    console.print()
    met = sum(target.met for target in run.targets)
    if met < len(run.targets):
        console.print(targets_table(run))
    console.print(f"{met} of {len(run.targets)} targets are met.")
    for title, reason in run.missing.items():
        console.print(f"Left out: {title}. {reason}", markup=False, soft_wrap=True)
    console.print(caption(run), markup=False, soft_wrap=True)


def caption(run: Run) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return f"{versions}, on {machine()}; {run.seconds:.0f} seconds."


def text(run: Run) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=WIDTH, color_system=None, highlight=False)
        print_report(run, console)
        lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def as_json(run: Run) -> dict[str, Any]:
    titles = {fault.key: fault.title for fault in run.faults}
    return {
        "faults": {key: {"title": titles[key], **asdict(outcome)} for key, outcome in run.results.items()},
        "contenders": {contender.key: contender.name for contender in run.contenders},
        "targets": [asdict(target) for target in run.targets],
        "missing": dict(run.missing),
        "versions": dict(run.versions),
        "machine": machine(),
        "quick": run.quick,
        "seconds": round(run.seconds),
    }


def write(run: Run, directory: Path) -> None:
    """Write the results as text and as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.txt").write_text(text(run))
    (directory / "results.json").write_text(json.dumps(as_json(run), indent=1) + "\n")
