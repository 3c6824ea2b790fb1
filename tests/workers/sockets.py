"""A WebSocket client, no larger than the tests need."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage

from example_project.processes import HOST

if TYPE_CHECKING:
    from typing_extensions import Self
    from wsproto.events import Event


class Socket:
    """A WebSocket to *path* on this machine: a context manager."""

    def __init__(self, port: int, path: str, *, seconds: float = 30) -> None:
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self._socket = socket.create_connection((HOST, port), timeout=seconds)
        self._send(Request(host=f"{HOST}:{port}", target=path))
        assert isinstance(event := self._next(), AcceptConnection), event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, text: str) -> None:
        self._send(TextMessage(data=text))

    def receive(self) -> str:
        event = self._next()
        assert isinstance(event, TextMessage), event
        assert event.message_finished
        return str(event.data)

    def close(self) -> None:
        """Say goodbye, and wait until the server has answered that."""
        self._send(CloseConnection(code=1000))
        assert isinstance(event := self._next(), CloseConnection), event

    def _send(self, event: Event) -> None:
        self._socket.sendall(self._protocol.send(event))

    def _next(self) -> Event:
        while not self._events:
            received = self._socket.recv(65536)
            self._protocol.receive_data(received or None)
            self._events += self._protocol.events()
        return self._events.pop(0)
