"""Make the runs, and draw them: ``make pictures``.

    python -m example_project.pictures [--draw]

With ``--draw`` the numbers of the last runs are drawn again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from example_project.embedded import CONFIGURATION, _Server
from example_project.pictures import pages, terminal
from example_project.pictures.runs import RUNS
from example_project.processes import ROOT, Trouble, end_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = ROOT / "docs/pictures"
NUMBERS = DIRECTORY / "runs.json"

# One statement of the server's log, which may have several lines.
_STATEMENT = re.compile(r"(?m)^(\S+ \S+) UTC \[(\d+)\] LOG:  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw the numbers of the last runs again")
    options = parser.parse_args()
    end_on_signals()
    DIRECTORY.mkdir(exist_ok=True)
    try:
        for name in draw(again=options.draw):
            print(DIRECTORY / name)
    except Trouble as trouble:
        sys.exit(f"The pictures could not be made. {trouble}")


def draw(*, again: bool) -> Iterator[str]:
    """Draw all pictures, the timelines from the last runs if *again*, and yield the names of the files."""
    yield from pages.draw(json.loads(NUMBERS.read_text()) if again else make(), DIRECTORY)
    if not again:
        print("Asking what the shop's connections do ...", flush=True)
        yield from terminal.draw(DIRECTORY)


def make() -> dict[str, list[dict[str, Any]]]:
    """Make all runs, and write down what was seen, by name."""
    runs = {name: run(name) for name in RUNS}
    # A line for each thing that was seen.
    texts = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, seen)) + "\n]" for name, seen in runs.items()]
    NUMBERS.write_text("{" + ",\n".join(texts) + "}\n")
    return runs


def run(name: str) -> list[dict[str, Any]]:
    """Make one run, on a server of its own, which logs what its sessions are told."""
    print(f"Running {name} ...", flush=True)
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
        server = _Server(Path(directory), configuration=CONFIGURATION | {"log_timezone": "UTC"})
        try:
            url = server.start()
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET log_statement = 'all'")
                admin.execute("ALTER SYSTEM SET log_line_prefix = '%m [%p] '")
                admin.execute("SELECT pg_reload_conf()")
            variables = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "example_project.pictures.settings"}
            finished = subprocess.run(
                [sys.executable, "-c", "from example_project.pictures import runs; runs.main()", name],
                cwd=ROOT,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                text=True,
                timeout=120,
                check=False,
            )
            if finished.returncode:
                raise Trouble(f"The run {name} ended with {finished.returncode}.")
            return with_statements(json.loads(finished.stdout), server.log.read_text())
        finally:
            server.stop()


def with_statements(seen: list[dict[str, Any]], log: str) -> list[dict[str, Any]]:
    """Return *seen* with the statements that the server has logged since the run began, where it is said when."""
    began = next((line["clock"] - line["at"] for line in seen if line["kind"] == "began"), None)
    if began is None:
        return seen
    told = []
    for moment, pid, statement in _STATEMENT.findall(log):
        at = datetime.datetime.fromisoformat(f"{moment}+00:00").timestamp() - began
        if at > 0:
            told.append({"at": round(at, 4), "kind": "statement", "pid": int(pid), "sql": " ".join(statement.split())})
    return sorted(seen + told, key=lambda line: line["at"])


if __name__ == "__main__":
    main()
