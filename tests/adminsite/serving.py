"""The site, served by two processes over one database: one for who looks on, and one for the shop."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import httpx

from example_project.processes import HOST, environment, free_port, postgresql, running, temporary_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

USER = PASSWORD = "operator"


class Site(NamedTuple):
    """Where its processes answer, and the URL of their database."""

    admin: str
    shop: str
    database: str

    @property
    def page(self) -> str:
        return f"{self.admin}/admin/conn_hygiene_admin/connections/"

    def get(self, path: str) -> int:
        """Ask the shop; return the status of its answer."""
        return httpx.get(f"{self.shop}{path}", timeout=60, trust_env=False).status_code

    @contextlib.contextmanager
    def asking(self) -> Iterator[Callable[[str], Future[int]]]:
        """Yield what asks the shop for a path, in a thread; whoever waits for the bank is let go at the end."""
        self.get("/hold-again/")
        with ThreadPoolExecutor() as threads:
            try:
                yield lambda path: threads.submit(self.get, path)
            finally:
                self.get("/let-go/")


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Site]:
    """Yield the site; what its processes print goes to files in *directory*."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(temporary_database(postgresql()))
        env = {"DJANGO_SETTINGS_MODULE": "tests.adminsite.settings", "DATABASE_URL": database}
        subprocess.run([sys.executable, "-m", "tests.adminsite"], env=environment(env), check=True)
        ports = {}
        for name in ("admin", "shop"):
            ports[name] = free_port()
            command = [sys.executable, "-m", "django", "runserver", "--noreload", f"{HOST}:{ports[name]}"]
            child = stack.enter_context(running(name, command, env=env, log=directory / f"{name}.log"))
            child.wait_until_ready(ports[name], "/let-go/")
        yield Site(f"http://{HOST}:{ports['admin']}", f"http://{HOST}:{ports['shop']}", database)
