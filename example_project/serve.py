"""Open the shop on this machine: ``make serve``.

    python -m example_project.serve [--port 8000] [--off] [--gunicorn]

The database is a throwaway one, so buy whatever you like.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from pathlib import Path

from example_project.processes import (
    HOST,
    Trouble,
    check_port,
    end_on_signals,
    partner,
    postgresql,
    running,
    shop_database,
)


def serve(options: argparse.Namespace) -> None:
    check_port(options.port)
    if options.gunicorn:
        command = ["gunicorn", "--config=example_project/gunicorn_conf.py", f"--bind={HOST}:{options.port}"]
    else:
        command = [
            "uvicorn",
            "--lifespan=off",
            f"--host={HOST}",
            f"--port={options.port}",
            "example_project.asgi:application",
        ]

    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-serve-")))
        print("Starting PostgreSQL and a slow carrier, and filling the shop ...", flush=True)
        env = stack.enter_context(shop_database(postgresql()))
        env |= stack.enter_context(partner(options.delay, directory=directory))
        env |= {"CONN_HYGIENE": "off" if options.off else "on"}
        server = stack.enter_context(running(command[0], [sys.executable, "-m", *command], env=env))
        server.wait_until_ready(options.port)
        print(
            f"\nThe shop is open at http://{HOST}:{options.port}/ "
            f"(conn_hygiene is {env['CONN_HYGIENE']}). Ctrl-C closes it.\n\n"
            f"To use its database from another terminal:\n\n    {export(env)}\n",
            flush=True,
        )
        while True:
            server.check()
            time.sleep(0.2)


def export(env: dict[str, str]) -> str:
    """Return the shell command after which the documentation's snippets find the shop's orders and its carrier."""
    found = {"DJANGO_SETTINGS_MODULE": "example_project.settings", **env}
    names = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "CARRIER_URL")
    return "export " + " ".join(f"{name}={shlex.quote(found[name])}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description="Open the example shop on this machine.")
    parser.add_argument("--port", type=int, default=8000)
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
