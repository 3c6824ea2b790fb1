"""Who makes which output, and what they share: servers, the shop, and places in the code as the pages have them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from example_project.embedded import CONFIGURATION, _Server
from example_project.processes import HOST, ROOT, environment, free_port, manage, partner, running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from example_project.processes import Child
    from tests.outputs.pages import Block

#: The project that most pages speak of lies here, and there in the pages.
SITE = Path(__file__).parent / "site"
_PLACES = {
    f"{SITE}/shop/": "/srv/shop/",
    f"{ROOT}/example_project/shop/": "/srv/shop/",
    # As it is once the package has been installed.
    f"{ROOT}/docs/": "/srv/shop/.venv/lib/python3.13/site-packages/conn_hygiene/docs/",
}

#: As long as a line of the pages, less a block's indentation.
WIDTH = 117


@dataclass(frozen=True)
class Maker:
    """What makes an output."""

    name: str
    make: Callable[[Stage, Block], str]
    #: Seconds that it takes, most of which it waits: who takes longest begins first.
    seconds: float
    #: What it asks of the stage that only the main thread can start: ``shop`` or ``quiet_shop``.
    shop: str | None


MAKERS: dict[str, Maker] = {}


def makes(
    name: str, *, seconds: float = 1, shop: str | None = None
) -> Callable[[Callable[[Stage, Block], str]], Callable[[Stage, Block], str]]:
    """Register a function that returns the output *name*, without the command that the block begins with, if any."""

    def register(make: Callable[[Stage, Block], str]) -> Callable[[Stage, Block], str]:
        assert name not in MAKERS, name
        MAKERS[name] = Maker(name, make, seconds, shop)
        return make

    return register


def made(maker: Maker, stage: Stage, block: Block) -> str:
    """Return the whole text of *block*, as the program prints it now."""
    output = maker.make(stage, block).rstrip()
    for real, shown in _PLACES.items():
        output = output.replace(real, shown)
    # Also in lines that are as wide as their longest cell.
    text = "\n".join(line.rstrip() for line in output.splitlines())
    return f"{block.command}\n{text}" if block.command else text


def wrapped(record: str) -> str:
    """Return a line of a log as the pages have it, at whose width it is broken."""
    for real, shown in _PLACES.items():
        record = record.replace(real, shown)
    return textwrap.fill(record, WIDTH, break_long_words=False, break_on_hyphens=False)


class Stage(contextlib.ExitStack):
    """What the makers need, each thing made when the first of them asks. Any thread may ask."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._databases = 0
        self.directory = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="outputs-")))

    def __getattribute__(self, name: str) -> Any:
        # cached_property has no lock of its own.
        if name.startswith("_") or not isinstance(getattr(type(self), name, None), cached_property):
            return super().__getattribute__(name)
        with self._lock:
            return super().__getattribute__(name)

    @cached_property
    def server(self) -> str:
        """The URL of a server that nobody else uses, as its superuser: roles and databases on it have any name."""
        return self.new_server()

    def new_server(self) -> str:
        """Return the URL of another one, for what counts the sessions of all."""
        # A socket's path must be short.
        directory = self.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True))
        server = _Server(Path(directory), configuration=CONFIGURATION | {"max_connections": "300"})
        self.callback(server.stop)
        url = server.start()
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE ROLE shop LOGIN")
            admin.execute("GRANT pg_read_all_data TO shop")
        return url

    def database(self, name: str | None = None, template: str = "template1", *, server: str | None = None) -> str:
        """Return the URL of a new database of the role ``shop``, to connect to as that."""
        with self._lock:
            self._databases += 1
            name = name or f"shop_{self._databases}"
            server = server or self.server
            with psycopg.connect(server, autocommit=True) as admin:
                admin.execute(f'CREATE DATABASE "{name}" OWNER shop TEMPLATE {template}')
        address = re.sub(r"//[^@]*@/\w+", f"//shop@/{name}", server)
        assert f"/{name}?" in address
        return address

    @cached_property
    def seeded(self) -> str:
        """The name of a database that has the shop's tables and orders, to be copied."""
        env = {"DATABASE_URL": self.database("seeded")}
        manage("migrate", "--verbosity=0", env=env)
        manage("seed", "--verbosity=0", env=env)
        return "seeded"

    @cached_property
    def shop(self) -> Shop:
        """The shop of the example project, served as by ``make serve``. Only the main thread can start it."""
        return Shop(self, "shop_of_all", pool=4)

    @cached_property
    def quiet_shop(self) -> Shop:
        """Another one, for what is to have all of its sessions. Only the main thread can start it."""
        return Shop(self, "shop", pool=3)

    def run(self, variables: Mapping[str, str], *command: str, status: int = 0) -> str:
        """Return what Python prints of *command* in the site's directory, where the project of most pages lies."""
        finished = subprocess.run(
            [sys.executable, *command],
            cwd=SITE,
            env=site_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        if finished.returncode != status:
            raise AssertionError(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}")
        return finished.stdout


def site_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of the site: as wide as no terminal, and with nothing of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "COVERAGE", "CONN_"))}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "PYTHONPATH": f"{SITE}:{ROOT}",
        "PYTHONUTF8": "1",
        **variables,
    }


class Shop:
    """The shop, with a database of its own, and what its process prints."""

    def __init__(self, stage: Stage, name: str, *, pool: int) -> None:
        directory = stage.directory / name
        notices = directory / "notices"
        notices.mkdir(mode=0o700, parents=True)
        self.env = {
            "DATABASE_URL": stage.database(name, stage.seeded),
            "DATABASE_POOL": str(pool),
            "REPORTS": json.dumps({"NOTICE_DIRECTORY": str(notices)}),
            **stage.enter_context(partner(0.2, directory=directory)),
        }
        self.port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--lifespan=off", f"--host={HOST}", f"--port={self.port}"]
        self.log = directory / "log"
        served = running("The shop", [*command, "example_project.asgi:application"], log=self.log, env=self.env)
        self.child: Child = stage.enter_context(served)
        self.child.wait_until_ready(self.port, "/session/")

    def record(self, beginning: str, *, seconds: float = 60) -> str:
        """Return the first record of the log that begins so, once it is there: ``WARNING conn_hygiene.held: ...``."""
        self.child.wait_for_output(beginning, seconds=seconds)
        line = next(line for line in self.log.read_text().splitlines() if beginning in line)
        return wrapped(line[line.index(beginning) :])

    def manage(self, *arguments: str) -> str:
        """Return what ``manage.py`` prints."""
        finished = subprocess.run(
            [sys.executable, "example_project/manage.py", *arguments],
            cwd=ROOT,
            env=environment(self.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return finished.stdout + finished.stderr
