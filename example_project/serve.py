"""Open the shop on this machine: ``make serve``.

    python -m example_project.serve [--port 8000] [--off] [--gunicorn]

The database is a throwaway one, so buy whatever you like. Beside the shop run
two more of it, one without the toolkit and one with it, which the first page
sends forty visitors to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from example_project.processes import (
    HOST,
    Child,
    Trouble,
    check_port,
    end_on_signals,
    free_port,
    manage,
    partner,
    postgresql,
    running,
    shop_database,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Four connections, held for a second each, are four visitors a second: when the pool's patience of five seconds is
# over, some of the forty have had none, on the fastest machine as well.
COMPARED_POOL = 4
COMPARED_DELAY = 1.0  # seconds
# One for each visitor, and some for whoever looks on.
COMPARED_THREADS = 48

ADMINISTRATOR = "admin"


def serve(options: argparse.Namespace) -> None:
    check_port(options.port)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-serve-")))
        print("Starting PostgreSQL and a slow carrier, and filling the shop ...", flush=True)
        env = stack.enter_context(shop_database(postgresql(), settings={"TOOLS": "1"}))
        print("Opening the shop, and two more to compare ...", flush=True)
        # The processes start side by side; only then is any of them waited for.
        shops = {toolkit: stack.enter_context(compared_shop(env, directory, toolkit)) for toolkit in ("off", "on")}
        env |= stack.enter_context(partner(options.delay, directory=directory))
        env |= {
            "CONN_HYGIENE": "off" if options.off else "on",
            "TOOLS": "1",
            "COMPARED": json.dumps({"without": shops["off"].url, "with": shops["on"].url}),
            "REPORTS": json.dumps({"SERVER_TIMING": True, **json.loads(os.environ.get("REPORTS", "{}"))}),
        }
        server = stack.enter_context(running("The shop", command(options), env=env))
        password = secrets.token_urlsafe(9)
        make_administrator(password, env)
        server.wait_until_ready(options.port)
        for shop in shops.values():
            shop.child.wait_until_ready(shop.port)
        print(
            f"\nThe shop is open at http://{HOST}:{options.port}/ "
            f"(conn_hygiene is {env['CONN_HYGIENE']}). Ctrl-C closes it.\n"
            f"Its admin knows the user {ADMINISTRATOR} with the password {password}\n\n"
            f"To use its database from another terminal:\n\n    {export(env)}\n",
            flush=True,
        )
        while True:
            for child in (server, *(shop.child for shop in shops.values())):
                child.check()
            time.sleep(0.2)


def make_administrator(password: str, env: Mapping[str, str]) -> None:
    """Add who may see the admin; beside the servers, which take longer to start."""
    variables = {"DJANGO_SUPERUSER_PASSWORD": password}
    arguments = ("--noinput", f"--username={ADMINISTRATOR}", "--email=admin@example.com", "--verbosity=0")
    manage("createsuperuser", *arguments, env={**env, **variables})


def command(options: argparse.Namespace) -> list[str]:
    """Return the command that serves the shop on the port that was asked for."""
    if options.gunicorn:
        server = ["gunicorn", "--config=example_project/gunicorn_conf.py", f"--bind={HOST}:{options.port}"]
    else:
        server = [
            "uvicorn",
            "--lifespan=off",
            # Streams end when the window is closed, and not with the server.
            "--timeout-graceful-shutdown=1",
            f"--host={HOST}",
            f"--port={options.port}",
            "example_project.asgi:application",
        ]
    return [sys.executable, "-m", *server]


class Shop(NamedTuple):
    """One of the two that the first page compares."""

    child: Child
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@contextlib.contextmanager
def compared_shop(env: Mapping[str, str], directory: Path, toolkit: str) -> Iterator[Shop]:
    """Run the shop under gunicorn, with the toolkit "on" or "off", and without a word on the terminal."""
    port = free_port()
    gunicorn = [
        sys.executable,
        "-m",
        "gunicorn",
        "--config=example_project/gunicorn_conf.py",
        f"--bind={HOST}:{port}",
        f"--threads={COMPARED_THREADS}",
    ]
    place = directory / toolkit
    place.mkdir()
    with partner(COMPARED_DELAY, directory=place) as carrier:
        more = {"CONN_HYGIENE": toolkit, "DATABASE_POOL": str(COMPARED_POOL), "WATCHED": "1", "TOOLS": "", "DEBUG": ""}
        name = f"The shop with conn_hygiene {toolkit}"
        with running(name, gunicorn, log=place / "gunicorn.log", env={**env, **carrier, **more}) as child:
            yield Shop(child, port)


def export(env: dict[str, str]) -> str:
    """Return the shell command after which the documentation's snippets find the shop's orders and its carrier."""
    found = {"DJANGO_SETTINGS_MODULE": "example_project.settings", **env}
    names = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "CARRIER_URL")
    return "export " + " ".join(f"{name}={shlex.quote(found[name])}" for name in names)


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 1 to 65535")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Open the example shop on this machine.")
    parser.add_argument("--port", type=port_number, default=8000)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds that the carrier takes for an answer")
    parser.add_argument("--off", action="store_true", help="leave the toolkit out")
    parser.add_argument("--gunicorn", action="store_true", help="serve with gunicorn's threads, and not with uvicorn")
    options = parser.parse_args()

    end_on_signals()
    try:
        serve(options)
    except Trouble as trouble:
        sys.exit(f"The shop could not be opened. {trouble}")


if __name__ == "__main__":
    main()
