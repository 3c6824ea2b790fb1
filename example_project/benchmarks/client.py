"""The visitors of a site over HTTP, in a process of their own."""

from __future__ import annotations

import contextlib
import http.client
from typing import TYPE_CHECKING, Any

from example_project.benchmarks import load
from example_project.benchmarks.protocol import serve
from example_project.processes import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def browser(port: int, cookie: str = "") -> Iterator[load.Ask]:
    """Yield what asks for a page over one connection, which is kept as browsers keep it."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)

    headers = {"Cookie": cookie} if cookie else {}

    def ask(path: str) -> int:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status

    with contextlib.closing(connection):
        yield ask


def drive(port: int, cookie: str = "", **load_arguments: Any) -> dict[str, float]:
    answer = load.drive(lambda: browser(port, cookie), **load_arguments)
    # Of the visitors, and of no interest.
    return {name: value for name, value in answer.items() if name not in ("cpu", "reaper")}


if __name__ == "__main__":
    serve({"drive": drive})
