"""Show what becomes of persistent connections under the development server.

    python -m example_project.runserver_persistent [--toolkit]

Django's documentation says that the server "creates a new thread for each
request it handles, negating the effect of persistent connections". This starts
``manage.py runserver`` with ``CONN_MAX_AGE = None`` and without a pool, sends
it requests in several ways, and asks PostgreSQL after each which sessions the
server has: ``pg_stat_activity`` has the last word.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import psycopg

from example_project.processes import HOST, ROOT, Trouble, end_on_signals, free_port, postgresql, running, shop_database

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

APPLICATION_NAME = "runserver"
PATIENCE = 10  # seconds for an answer, and for the server to reload
CLIENTS = 3
MANY = 200


@dataclass(frozen=True)
class Answer:
    """Which thread of the server answered, and on which session."""

    thread: str
    pid: int


class Client:
    """One client connection, kept alive until it is closed."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)

    def ask(self, *, keep_alive: bool = True) -> Answer:
        headers = {} if keep_alive else {"Connection": "close"}
        self.connection.request("GET", "/session/", headers=headers)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            raise Trouble(f"The shop answered with status {response.status}.")
        return Answer(**json.loads(body))

    def close(self) -> None:
        self.connection.close()

    def is_cut(self) -> bool:
        try:
            self.connection.request("GET", "/session/")
            self.connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return True
        return False


class Sessions:
    """The development server's sessions, as PostgreSQL sees them."""

    def __init__(self, admin: psycopg.Connection) -> None:
        self.admin = admin

    def now(self) -> list[int]:
        """Return their pids, oldest first."""
        rows = self.admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY backend_start",
            [APPLICATION_NAME],
        )
        return [pid for (pid,) in rows]

    def tell(self, when: str) -> list[int]:
        """Print and return them."""
        pids = self.now()
        say(f"  sessions {when}: {' '.join(map(str, pids)) or 'none'}")
        return pids

    def wait_for_end_of(self, pid: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while pid in self.now():
            if time.monotonic() > deadline:
                raise Trouble(f"Session {pid} did not end within {PATIENCE} seconds.")
            time.sleep(0.05)


def say(text: str) -> None:
    print(text, flush=True)


def heading(text: str) -> None:
    say(f"\n{text}\n{'-' * len(text)}")


def tell(answers: Iterable[Answer]) -> None:
    for number, answer in enumerate(answers, start=1):
        say(f"  request {number}: session {answer.pid}, {answer.thread}")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def conclude(answers: Sequence[Answer], sessions: Sessions) -> None:
    """Compare the sessions that were used with those that outlived their clients."""
    # A session that somebody closes is gone by then.
    time.sleep(1)
    left = sessions.tell("a second after the last client hung up")
    used = {answer.pid for answer in answers}
    say(
        f"  => {plural(len(answers), 'request')} used {plural(len(used), 'session')}; "
        f"of these {len(used.intersection(left))} stayed behind without a client"
    )


def sequential(port: int, sessions: Sessions) -> None:
    heading("One client connection, requests one after another")
    with contextlib.closing(Client(port)) as client:
        answers = [client.ask() for _ in range(3)]
        tell(answers)
        time.sleep(1)
        sessions.tell("a second later")
    conclude(answers, sessions)


def without_keep_alive(port: int, sessions: Sessions) -> None:
    heading("A client connection for each request, as curl does it")
    answers = []
    for _ in range(3):
        with contextlib.closing(Client(port)) as client:
            answers.append(client.ask(keep_alive=False))
    tell(answers)
    conclude(answers, sessions)


def concurrent(port: int, sessions: Sessions) -> None:
    heading(f"{CLIENTS} client connections at a time, two requests each, as a browser does it")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(Client(port))) for _ in range(CLIENTS)]
        together = Barrier(CLIENTS)

        def ask(client: Client) -> Answer:
            together.wait(PATIENCE)
            return client.ask()

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [*pool.map(ask, clients), *pool.map(ask, clients)]
        tell(answers)
        sessions.tell("now")
    conclude(answers, sessions)


def many_more(port: int, sessions: Sessions) -> None:
    heading(f"{MANY} more requests on one client connection")
    before = sessions.tell("before")
    with contextlib.closing(Client(port)) as client:
        for _ in range(MANY):
            client.ask()
        after = sessions.tell("after")
    # Nobody closes the connection of a thread that has ended. What ends its
    # session, sooner or later, is Python's collector of reference cycles.
    collected = len(set(before).difference(after))
    say(f"  => of {plural(len(before), 'session')} left behind, Python has meanwhile collected {collected}")


def autoreload(port: int, sessions: Sessions) -> None:
    heading("A source file changes while a client connection is open")
    with contextlib.closing(Client(port)) as client:
        answer = client.ask()
        tell([answer])
        before = sessions.tell("before")
        # What an editor does when it saves; the content stays as it is.
        (ROOT / "example_project" / "urls.py").touch()
        sessions.wait_for_end_of(answer.pid)
        after = sessions.tell("after the reload")
        ended = len(set(before).difference(after))
        fate = "cut as well" if client.is_cut() else "kept"
    say(f"  => {ended} of {plural(len(before), 'session')} ended, and the client connection was {fate}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what becomes of persistent connections under runserver.")
    parser.add_argument("--toolkit", action="store_true", help="the same with conn_hygiene installed")
    options = parser.parse_args()

    end_on_signals()
    port = free_port()
    environment = {
        "CONN_HYGIENE": "on" if options.toolkit else "off",
        "CONN_MAX_AGE": "None",
        "DATABASE_POOL": "0",
        "PGAPPNAME": APPLICATION_NAME,
    }
    command = [sys.executable, "example_project/manage.py", "runserver", f"{HOST}:{port}"]
    try:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-runserver-")))
            url = postgresql()
            environment |= stack.enter_context(shop_database(url))
            admin = stack.enter_context(psycopg.connect(url, autocommit=True))
            log = directory / "runserver.log"
            child = stack.enter_context(running("manage.py runserver", command, log=log, env=environment))
            # A page that queries nothing.
            child.wait_until_ready(port, "/connections/")
            say(
                f"manage.py runserver with CONN_MAX_AGE = None, no pool, conn_hygiene {environment['CONN_HYGIENE']}; "
                f"Django {version('django')}, Python {platform.python_version()}"
            )
            sessions = Sessions(admin)
            sessions.tell("before the first request")
            for step in (sequential, without_keep_alive, concurrent, many_more, autoreload):
                step(port, sessions)
    except Trouble as trouble:
        sys.exit(str(trouble))


if __name__ == "__main__":
    main()
