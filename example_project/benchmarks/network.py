"""A network between the application and its server, as far as that is a delay: each way takes so long.

    python -m example_project.benchmarks.network LISTEN_ON CONNECT_TO SECONDS

Both addresses are paths of sockets, or ``host:port``. Where everything is on one machine, a round trip costs next to
nothing, and so does whoever makes more of them than others.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.processes import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def in_front_of(conninfo: str, *, seconds: float, directory: Path) -> Iterator[str]:
    """Run a proxy; yield what leads through it. *directory* is for its socket."""
    found = conninfo_to_dict(conninfo)
    host, port = str(found.get("host") or "localhost"), found.get("port") or 5432
    target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"
    own = free_port()
    listening = directory / f".s.PGSQL.{own}"
    command = [sys.executable, "-m", "example_project.benchmarks.network", str(listening), target, str(seconds)]
    with running("The network", command, log=directory / f"network-{own}.log") as child:
        child.wait_for_output("ready")
        yield make_conninfo(conninfo, host=str(directory), port=own)


def connect(address: str) -> socket.socket:
    if address.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def pass_on(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Pass on what one side says, later. Whoever waits for an answer sends nothing meanwhile that would queue here."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            time.sleep(seconds)
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def main() -> None:
    listen_on, connect_to, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listen_on)
        server.listen(1024)
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            target = connect(connect_to)
            for way in (client, target), (target, client):
                threading.Thread(target=pass_on, args=(*way, seconds), daemon=True).start()


if __name__ == "__main__":
    main()
