"""What ``manage.py connections status`` shows on a terminal, as a picture, while the shop has trouble."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene.management.rendering import Line
from example_project.embedded import _Server
from example_project.processes import (
    HOST,
    ROOT,
    Trouble,
    environment,
    free_port,
    get,
    manage,
    partner,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conn_hygiene.management.rendering import Block

#: As many columns as the pages have room for.
WIDTH = 150

TITLE = "What manage.py connections status shows"
DESCRIPTION = (
    "A table of the sessions of a shop: one is idle in transaction and one waits for it. Below, the request that the "
    "first belongs to, the line where its transaction began, and the line where its thread is."
)

#: Seconds that the shop's transaction is idle, of which it is reported after five.
IDLE = 45


def draw(directory: Path) -> list[str]:
    """Have two requests wait for each other, ask the command, and return the names of the pictures of its answer."""
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-pictures-")))
        env = {"DATABASE_URL": stack.enter_context(_database()), "DATABASE_POOL": "3"}
        env["REPORTS"] = json.dumps({"NOTICE_DIRECTORY": str(logs)})
        manage("migrate", "--verbosity=0", env=env)
        manage("seed", "--verbosity=0", env=env)
        env |= stack.enter_context(partner(0.2, directory=logs))
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--lifespan=off", f"--host={HOST}", f"--port={port}"]
        log = logs / "shop.log"
        shop = stack.enter_context(
            running("The shop", [*command, "example_project.asgi:application"], log=log, env=env)
        )
        shop.wait_until_ready(port, "/session/")
        pages = [_ask(port, f"/trouble/idle-in-transaction/?seconds={IDLE}")]
        shop.wait_for_output("has been idle for", seconds=60)
        pages.append(_ask(port, "/trouble/asked-before/?seconds=0"))
        _wait_for_the_lock(env["DATABASE_URL"])
        asked = [sys.executable, "-m", "example_project.pictures.terminal", str(directory)]
        finished = subprocess.run(
            asked, cwd=ROOT, env=environment(env), capture_output=True, text=True, timeout=120, check=False
        )
        for page in pages:
            page.join()
    if finished.returncode:
        raise Trouble(finished.stderr)
    return finished.stdout.split()


@contextlib.contextmanager
def _database() -> Iterator[str]:
    """Yield the URL of a database and a role that are named as a project would, on a server of their own."""
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
        server = _Server(Path(directory))
        try:
            url = server.start()
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute("CREATE ROLE shop LOGIN IN ROLE pg_read_all_data")
                admin.execute("CREATE DATABASE shop OWNER shop")
            yield re.sub(r"//[^@]*@/\w+", "//shop@/shop", url)
        finally:
            server.stop()


def _ask(port: int, path: str) -> threading.Thread:
    thread = threading.Thread(target=get, args=[port, path], kwargs={"timeout": 2 * IDLE})
    thread.start()
    return thread


def _wait_for_the_lock(url: str) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(IDLE * 10):
            if watcher.execute(waiting).fetchone():
                return
            watcher.execute("SELECT pg_sleep(0.1)")
    raise Trouble("Nobody waits for the lock.")


def _short(block: Block) -> Block:
    """Return *block* with the places in the code as the pages have them."""
    shown = (f"{ROOT}/example_project/", "/srv/")
    if isinstance(block, Line):
        return dataclasses.replace(block, text=block.text.replace(*shown))
    return dataclasses.replace(block, rows=[[cell.replace(*shown) for cell in row] for row in block.rows])


def main() -> None:
    """Ask the command, as if a terminal of so many columns had asked, and write the pictures into a directory."""
    import django
    from django.core.management import call_command
    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme

    from conn_hygiene.contrib import rich as drawing

    django.setup()
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="standard", file=io.StringIO())

    def ours(*arguments: Any, **options: Any) -> Console:
        return console

    def shown(to: Console, blocks: Iterable[Block]) -> None:
        show(to, [_short(block) for block in blocks])

    show = drawing.show
    drawing.console, drawing.show = ours, shown
    call_command("connections", "status", force_color=True)
    light = TerminalTheme(
        (255, 255, 255),
        (31, 35, 40),
        [
            (31, 35, 40),
            (207, 34, 46),
            (26, 127, 55),
            (154, 103, 0),
            (9, 105, 218),
            (130, 80, 223),
            (27, 124, 131),
            (110, 119, 129),
        ],
    )
    themes = {"light": light, "dark": DIMMED_MONOKAI}
    for name, theme in themes.items():
        text = console.export_svg(
            title="python manage.py connections status", theme=theme, clear=False, unique_id="status"
        )
        # No font from elsewhere: any of fixed width will do.
        text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL).replace("Fira Code", "ui-monospace")
        text = text.replace(">", f' role="img"><title>{TITLE}</title><desc>{DESCRIPTION}</desc>', 1)
        path = Path(sys.argv[1], f"status-{name}.svg")
        path.write_text(re.sub(r"[ \t]+\n", "\n", text))
        print(path.name)


if __name__ == "__main__":
    main()
