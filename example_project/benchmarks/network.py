"""A network between the application and its server, as far as that is a delay: each way takes so long.

    python -m example_project.benchmarks.network LISTEN_ON CONNECT_TO SECONDS

LISTEN_ON is the path of a socket, CONNECT_TO one as well, or ``host:port``. Where everything is on one machine, a round
trip costs next to nothing, and so does whoever makes more of them than others. So they are counted, too: whoever
connects to the path with ``.count`` behind it is told how many there were.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.processes import free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Network:
    """A proxy that runs: what leads through it, and where it tells how many round trips there were."""

    conninfo: str
    counter: str


@contextlib.contextmanager
def in_front_of(conninfo: str, *, seconds: float, directory: Path) -> Iterator[Network]:
    """Run a proxy, and yield it. *directory* is for its sockets."""
    found = conninfo_to_dict(conninfo)
    host, port = str(found.get("host") or "localhost"), found.get("port") or 5432
    target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"
    own = free_port()
    listening = directory / f".s.PGSQL.{own}"
    command = [sys.executable, "-m", "example_project.benchmarks.network", str(listening), target, str(seconds)]
    with running("The network", command, log=directory / f"network-{own}.log") as child:
        child.wait_for_output("ready")
        yield Network(make_conninfo(conninfo, host=str(directory), port=own), f"{listening}.count")


def round_trips(counter: str) -> int:
    """Return how often a client has sent something since the proxy was started: a statement, or a goodbye."""
    with connect(counter) as told, told.makefile() as text:
        return int(text.read())


def connect(address: str) -> socket.socket:
    if address.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Count:
    """Counts what several threads see, each in a number of its own: an addition may be interrupted."""

    def __init__(self) -> None:
        self._counts: list[list[int]] = []

    def begin(self) -> list[int]:
        """Return a list of one number, for the thread to count up."""
        count = [0]
        self._counts.append(count)
        return count

    def serve(self, listen_on: str) -> None:
        """Tell whoever connects what it has come to."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(listen_on)
            server.listen(8)
            while True:
                asking, _ = server.accept()
                with asking:
                    asking.sendall(str(sum(count for [count] in self._counts)).encode())


def pass_on(source: socket.socket, target: socket.socket, seconds: float, count: list[int]) -> None:
    """Pass on what one side says, later. Whoever waits for an answer sends nothing meanwhile that would queue here."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            count[0] += 1
            time.sleep(seconds)
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def start(call: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=call, args=arguments, daemon=True).start()


def main() -> None:
    listen_on, connect_to, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    count = Count()
    start(count.serve, f"{listen_on}.count")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listen_on)
        server.listen(1024)
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            target = connect(connect_to)
            start(pass_on, client, target, seconds, count.begin())
            # What the server says is counted with what it answers to.
            start(pass_on, target, client, seconds, [0])


if __name__ == "__main__":
    main()
