from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from example_project.embedded import database_url
from example_project.processes import HOST, temporary_database

if TYPE_CHECKING:
    from collections.abc import Iterator


class Server:
    """The PostgreSQL server as somebody sees it who looks on, and the environment that leads a site there."""

    def __init__(self, url: str, watcher: psycopg.Connection[Any]) -> None:
        self.watcher = watcher
        self.environment = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.workers.site.settings"}
        self.database = psycopg.conninfo.conninfo_to_dict(url)["dbname"]

    def sessions(self) -> set[int]:
        """Return the process ids of the server's sessions in the site's database."""
        query = (
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in self.watcher.execute(query, [self.database])}

    def abandoned(self) -> int:
        """Return how many of the sessions there were ended without a goodbye from their client."""
        query = "SELECT sessions_abandoned FROM pg_stat_database WHERE datname = %s"
        row = self.watcher.execute(query, [self.database]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a database of the test's own, which ends with the test, sessions and all."""
    url = database_url()
    # The watcher looks on from another database, so that the site's own can be dropped.
    with temporary_database(url) as site, psycopg.connect(url, autocommit=True) as watcher:
        yield Server(site, watcher)


def ask(port: int, path: str = "/", *, seconds: float = 20) -> dict[str, Any]:
    """Return the JSON that the site answers to a GET; raise ``AssertionError`` for any status but 200."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=seconds)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200, f"{response.status}: {body.decode(errors='replace')}"
    answer: dict[str, Any] = json.loads(body)
    return answer
