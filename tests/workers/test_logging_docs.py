"""The LOGGING that the page on logs has, as it stands there: what it prints, and that nobody prints it twice."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from example_project.embedded import database_url
from example_project.processes import HOST, ROOT, free_port, running, temporary_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")

PAGE = (ROOT / "docs/how-to/logging-and-metrics.rst").read_text()
_SNIPPET = re.compile(r"   :name: logging-settings\n\n((?:   .*\n|\n)+?)\n(?=\S)")
_PRINTED = re.compile(r"\.\. output: pinned\n\n\.\. code-block:: text\n\n((?:   .*\n)+)")

SETTINGS = """
from example_project.embedded import database, database_url

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "site_with_logs"
INSTALLED_APPS = ["conn_hygiene"]
MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
DATABASES = {"default": database(database_url(), pool={"min_size": 1, "max_size": 2})}
"""

SITE = """
import django

django.setup()

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpResponse
from django.urls import path


def monthly(request=None):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE totals AS SELECT 1 AS n")
    return HttpResponse()


urlpatterns = [path("", monthly)]
asgi = ASGIHandler()
"""

# A worker that sends itself a task, by a broker of its own.
CELERY = """
from celery import Celery
from celery.signals import worker_ready

import site_with_logs

app = Celery("site", broker="memory://", fixups=["conn_hygiene.contrib.celery:fixup"])


@app.task(name="monthly")
def monthly():
    site_with_logs.monthly()


@worker_ready.connect
def begin(**kwargs):
    monthly.delay()
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables of a site that has the page's settings."""
    directory: Path = tmp_path_factory.mktemp("logs")
    [snippet] = _SNIPPET.findall(PAGE)
    (directory / "settings_with_logs.py").write_text(SETTINGS + textwrap.dedent(snippet))
    (directory / "site_with_logs.py").write_text(SITE)
    (directory / "tasks_with_logs.py").write_text(CELERY)
    with temporary_database(database_url()) as url:
        yield {
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "settings_with_logs",
            "PYTHONPATH": f"{directory}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
        }


COMMANDS = {
    "django": ["-c", "import site_with_logs; site_with_logs.monthly(); site_with_logs.connection.close()"],
    "celery": ["-m", "celery", "-A", "tasks_with_logs", "worker", "--pool=solo", "--loglevel=INFO"],
    "daphne": ["-m", "daphne", "-b", HOST, "-p", "PORT", "-v", "1", "site_with_logs:asgi"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_is_printed_once_as_the_page_shows_it(env: dict[str, str], tmp_path: Path, name: str) -> None:
    port = free_port()
    command = [sys.executable, *(part.replace("PORT", str(port)) for part in COMMANDS[name])]
    with running(name, command, log=tmp_path / "log", env=env) as child:
        assert child.log is not None
        if name == "daphne":
            child.wait_until_ready(port, seconds=60)
        elif name == "celery":
            child.wait_for_output("is pinned", seconds=60)
        # A second handler has printed it by the time that the process has ended.
        if name != "django":
            child.process.terminate()
        child.process.wait(60)
        lines = [line for line in child.log.read_text().splitlines() if "is pinned" in line]
    assert len(lines) == 1, lines
    [shown] = _PRINTED.findall(PAGE)
    assert as_on_the_page(lines[0]) == as_on_the_page(" ".join(shown.split()))


def as_on_the_page(line: str) -> str:
    """Return *line* without its pid, and without where the code is."""
    line = re.sub(r"server pid \d+", "server pid N", line)
    return re.sub(r" at \S+:\d+ in", " at PLACE in", line)
