"""A site with django-debug-toolbar and the panel, for a real browser."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from example_project.embedded import database_url
from example_project.processes import HOST, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Yield the address of the site, on a free port."""
    port = free_port()
    command = [sys.executable, "-u", "-m", "django", "runserver", f"{HOST}:{port}", "--noreload", "--skip-checks"]
    with tempfile.TemporaryDirectory() as directory:
        # Coverage is measured elsewhere.
        environment = {
            "DJANGO_SETTINGS_MODULE": f"{__name__}.settings",
            "DATABASE_URL": database_url(),
            "COVERAGE_PROCESS_CONFIG": "",
        }
        with running("the site with the toolbar", command, log=Path(directory, "log"), env=environment) as child:
            child.wait_for_output("Quit the server")
            yield f"http://{HOST}:{port}"
