"""The site that the other tests here serve."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from example_project.processes import HOST, free_port, running
from tests.waiting import wait_until
from tests.workers.conftest import ask

if TYPE_CHECKING:
    from pathlib import Path


def test_the_site_answers_and_leaves_nothing(server: Any, tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.workers.site.asgi:application",
        f"--host={HOST}",
        f"--port={port}",
    ]
    with running("uvicorn", command, log=tmp_path / "log", env=server.environment) as child:
        child.wait_until_ready(port, "/alive/")
        assert ask(port, "/async/")["session"] in server.sessions()
    wait_until(lambda: not server.sessions(), "the site's sessions are gone")
