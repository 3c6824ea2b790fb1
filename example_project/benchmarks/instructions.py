"""Count the instructions of the processor that a query takes, which is slow to do, and nearly the same each time.

    python -m example_project.benchmarks.instructions

By callgrind, the simulator of valgrind, which has to be installed (Debian: ``apt-get install valgrind``). Unlike the
bytecodes of :mod:`.counts`, these are those of C as well: of Python itself, psycopg and libpq, but not of the kernel,
nor of PostgreSQL. Of the site's threads the one that asks is counted, in the middle of one long request.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import django
from rich import box
from rich.console import Console
from rich.table import Column, Table

from example_project.benchmarks import report
from example_project.benchmarks.contenders import AT_ONCE, HOLDING, NEVER, PEER, TOOLKIT
from example_project.processes import Trouble, end_on_signals, postgresql, temporary_database

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTENDERS = (HOLDING, PEER, AT_ONCE, TOOLKIT, NEVER)
PATHS = {"SELECT 1": "/selects/{}", ".get()": "/gets/{}"}

# What has the shop opened, in place of a request.
_SHOP = "shop"

# Queries of a short run and of a long one: what differs between the two is theirs.
_SHORT, _LONG = 300, 1300

# Seconds, for what takes one where nothing is simulated.
_TIME_LIMIT = 300

# What strings hash to decides where they are in dictionaries.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "DJANGO_SETTINGS_MODULE": "example_project.benchmarks.settings"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ask", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask)
        return
    end_on_signals()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed.")
    try:
        show()
    except Trouble as trouble:
        sys.exit(f"Nothing could be counted. {trouble}")


def ask(path: str) -> None:
    """Be the site, and answer one request."""
    django.setup()
    from example_project.benchmarks import counting, worker

    if path == _SHOP:
        worker.shop()
    else:
        with counting.timeless():
            worker.Site().loop(path)
    sys.stdout.flush()
    # The pool's threads need not say goodbye to anybody.
    os._exit(0)


def show() -> None:
    """Count, and print the table."""
    url = postgresql()
    with temporary_database(url) as database, tempfile.TemporaryDirectory() as directory:
        env = {**os.environ, **_ENVIRONMENT, "DATABASE_URL": database}
        subprocess.run(_command(_SHOP), env=env, check=True, timeout=_TIME_LIMIT)
        counted = {
            contender.name: [count(env | contender.environment(), path, Path(directory)) for path in PATHS.values()]
            for contender in CONTENDERS
        }
    print_table(counted, report.describe(url))


def print_table(counted: Mapping[str, Sequence[int]], versions: Mapping[str, str]) -> None:
    table = Table("", *[Column(path, justify="right") for path in PATHS], box=box.SIMPLE_HEAD)
    for name, numbers in counted.items():
        table.add_row(name, *[f"{number:,}" for number in numbers])
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=report.WIDTH)
    console.print(table)
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    console.print(f"{found}, on {report.machine()}.", markup=False)


def count(env: Mapping[str, str], path: str, directory: Path) -> int:
    """Return how many instructions one query of *path* takes."""
    with ThreadPoolExecutor(2) as pool:
        short, long = pool.map(lambda queries: simulated(env, path.format(queries), directory), (_SHORT, _LONG))
    return (long - short) // (_LONG - _SHORT)


def simulated(env: Mapping[str, str], path: str, directory: Path) -> int:
    """Return how many instructions the main thread of a site takes that answers a request for *path*."""
    output = directory / path.replace("/", "-")
    callgrind = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={output}"]
    subprocess.run([*callgrind, *_command(path)], env=env, check=True, capture_output=True, timeout=_TIME_LIMIT)
    return total(Path(f"{output}-01").read_text())


def total(profile: str) -> int:
    """Return the sum that a *profile* of callgrind ends with."""
    [found] = [line for line in profile.splitlines() if line.startswith("totals:")]
    return int(found.removeprefix("totals:"))


def _command(path: str) -> list[str]:
    return [sys.executable, "-m", "example_project.benchmarks.instructions", "--ask", path]


if __name__ == "__main__":
    main()
