"""The visitors: the same ones, with the same wishes at the same moments, for every contender."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from example_project.chaos import PATIENCE
from example_project.chaos.accounting import Answer, Request
from example_project.processes import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ACCOUNTS = 20
ORDERS = 500

# How many of a hundred wish for what.
WISHES = {"transfer": 40, "note": 15, "order": 20, "total": 15, "index": 10}


GAVE_UP = f"no answer after {PATIENCE} s"


@dataclass(frozen=True)
class Wish:
    """A request to be made."""

    path: str
    form: Mapping[str, Any] | None = None

    @property
    def token(self) -> str | None:
        return self.form["token"] if self.form else None


def wishes(seed: int) -> Iterator[Wish]:
    """Yield what visitors wish for, one after the other: the same for the same seed, but for their tokens."""
    dice = random.Random(seed)
    while True:
        kind = dice.choices([*WISHES], [*WISHES.values()])[0]
        if kind == "transfer":
            source, target = dice.sample(range(1, ACCOUNTS + 1), 2)
            yield transfer(source, target, amount=dice.randint(1, 50))
        elif kind == "note":
            yield Wish("/bank/note/", {"token": str(uuid.uuid4())})
        elif kind == "order":
            yield Wish(f"/orders/{dice.randint(1, ORDERS)}/")
        else:
            yield Wish({"total": "/bank/total/", "index": "/"}[kind])


def transfer(source: int, target: int, *, amount: int = 1, **more: float) -> Wish:
    form = {"token": str(uuid.uuid4()), "source": source, "target": target, "amount": amount, **more}
    return Wish("/bank/transfer/", form)


class Traffic:
    """Visitors of several sites, in a thread of their own, from `start` to `finish`.

    They come at a steady pace, whatever becomes of those before them: who is refused quickly makes no more requests
    than who has to wait.
    """

    def __init__(self, ports: Mapping[str, int], *, rate: float, seed: int = 36964) -> None:
        self.ports = ports
        self.rate = rate
        self.seed = seed
        self.requests: dict[str, list[Request]] = {key: [] for key in ports}
        self._ending = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="visitors")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> dict[str, list[Request]]:
        """Let nobody else come, wait until everybody is answered or has given up, and return all requests."""
        self._ending.set()
        self._thread.join()
        return self.requests

    def send(self, wish: Callable[[], Wish]) -> None:
        """Have one more visitor of each site, with a wish of its own."""
        for key in self.ports:
            self._loop.call_soon_threadsafe(self._visit, key, wish())

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._come())

    async def _come(self) -> None:
        streams = {key: wishes(self.seed) for key in self.ports}
        started, number = time.monotonic(), 0
        while not self._ending.is_set():
            for key, stream in streams.items():
                self._visit(key, next(stream))
            number += 1
            await asyncio.sleep(max(started + number / self.rate - time.monotonic(), 0))
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _visit(self, key: str, wish: Wish) -> None:
        task = self._loop.create_task(self._request(key, wish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, key: str, wish: Wish) -> None:
        began = time.monotonic()
        answer, error = await visit(self.ports[key], wish)
        endless = error == GAVE_UP
        self.requests[key].append(Request(began, time.monotonic(), answer, wish.token, error, endless))


async def visit(port: int, wish: Wish) -> tuple[Answer, str]:
    """Make a request; return what is known then, and what was wrong."""
    try:
        return await asyncio.wait_for(_visit(port, wish), PATIENCE)
    except asyncio.TimeoutError:
        return Answer.UNKNOWN, GAVE_UP
    except OSError as error:
        return Answer.UNKNOWN, type(error).__name__


async def _visit(port: int, wish: Wish) -> tuple[Answer, str]:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except ConnectionError as error:
        # Nobody has heard of the wish.
        return Answer.UNDONE, type(error).__name__
    try:
        writer.write(encoded(wish))
        return understood(await reader.read())
    finally:
        writer.close()


def encoded(wish: Wish) -> bytes:
    body = urlencode(wish.form or {})
    method = "GET" if wish.form is None else "POST"
    head = [
        f"{method} {wish.path} HTTP/1.1",
        f"Host: {HOST}",
        "Connection: close",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def understood(response: bytes) -> tuple[Answer, str]:
    """Return what an HTTP response says, and what was wrong."""
    head, whole, body = response.partition(b"\r\n\r\n")
    if not whole:
        return Answer.UNKNOWN, "cut off in the middle"
    status = head.split(b" ", 2)[1:2]
    if status == [b"200"]:
        return Answer.DONE, ""
    try:
        told = json.loads(body)
    except ValueError:
        return Answer.UNKNOWN, f"status {status[0].decode()}"
    return Answer.UNDONE if told.get("undone") else Answer.UNKNOWN, str(told.get("error", ""))
