"""The tutorial's numbers, by doing what it says: its files, its settings, its commands."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict

from example_project.processes import HOST, ROOT, free_port, get
from tests.outputs.making import makes
from tests.outputs.pages import blocks
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.outputs.making import Stage
    from tests.outputs.pages import Block

# As on the page.
_API, _SITE = "8001", "8000"
_apart = threading.Lock()


@makes("crowd-without", seconds=20)
def crowd_without(stage: Stage, block: Block) -> str:
    return crowd(stage, block, toolkit=False)


@makes("crowd-with", seconds=15)
def crowd_with(stage: Stage, block: Block) -> str:
    return crowd(stage, block, toolkit=True)


def crowd(stage: Stage, block: Block, *, toolkit: bool) -> str:
    """Return what ``crowd.py`` prints of the tutorial's site. The two are not busy at the same time."""
    with _apart:
        directory = stage.directory / f"tutorial-{toolkit}"
        directory.mkdir()
        ports = {_API: str(free_port()), _SITE: str(free_port())}
        write(directory, block.page, stage.database(), ports, toolkit=toolkit)
        manage = [sys.executable, "manage.py"]
        call(directory, *manage, "migrate", "--verbosity=0")
        with (
            started(directory, sys.executable, "slow_api.py"),
            started(directory, *manage, "runserver", "--noreload", ports[_SITE]),
        ):
            wait_until(lambda: answers(int(ports[_API])), "the API answers", 30)
            wait_until(lambda: answers(int(ports[_SITE])), "the site answers", 30)
            return call(directory, sys.executable, "crowd.py")


def write(directory: Path, page: Path, url: str, ports: dict[str, str], *, toolkit: bool) -> None:
    """Write the tutorial's project, with ports that are free and the database of *url*."""
    call(directory, sys.executable, "-m", "django", "startproject", "mysite", ".")
    python = [block.text for block in blocks(page) if block.language == "python"]
    files = {
        "mysite/views.py": "def parcel",
        "mysite/urls.py": "urlpatterns",
        "slow_api.py": "Every answer",
        "crowd.py": "Twenty customers",
    }
    for name, words in files.items():
        text = next(text for text in python if words in text)
        for port, free in ports.items():
            text = text.replace(f":{port}/", f":{free}/").replace(f'", {port})', f'", {free})')
        (directory / name).write_text(text)
    pool = next(text for text in python if text.startswith("DATABASES = "))
    parts = conninfo_to_dict(url)
    address = {"NAME": parts["dbname"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"]}
    settings = (directory / "mysite/settings.py").read_text() + f"\n{pool}\nDATABASES['default'] |= {address!r}\n"
    if toolkit:
        # The two lines that the page has in bold.
        for line in ('    "conn_hygiene",', '    "conn_hygiene.middleware.ConnectionHygieneMiddleware",'):
            assert any(line in text for text in python)
            name = "MIDDLEWARE" if "middleware" in line else "INSTALLED_APPS"
            settings = settings.replace(f"{name} = [\n", f"{name} = [\n{line}\n")
    (directory / "mysite/settings.py").write_text(settings)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DJANGO", "COVERAGE"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_PROXY": HOST}


def call(directory: Path, *command: str) -> str:
    finished = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@contextlib.contextmanager
def started(directory: Path, *command: str) -> Iterator[None]:
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment(), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/") == 200
    return False
