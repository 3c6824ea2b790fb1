"""A thread in which this process answers for itself, to whoever of its user asks over a Unix domain socket.

It starts with the process's first checkout, which it learns of as an event and listens to no longer: later ones cost
nothing. It is not the reaper's, nor one of its workers': whatever hangs there, this one answers. It waits for no server
and for no request, and takes a lease's lock for as long as it describes that one.

The protocol is a line of JSON each way, over a connection of its own for each question, and both ends give up soon.

Who may touch what: ``_answering`` is replaced under ``_lock``, which is a leaf but for the start of a thread. In a
forked child both are new: what it inherits of its parent is a descriptor, which is closed there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.db import connections

from conn_hygiene import events, green, locks
from conn_hygiene.leases import description
from conn_hygiene.locks import Rank
from conn_hygiene.masking import printable
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import host, snapshot, status_directory
from conn_hygiene.work import daemon_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("conn_hygiene.status")

#: What stands in each question and answer, under the key ``"format"``; another one for another meaning of its keys.
FORMAT = "conn_hygiene status 1"

#: What is asked, on a line.
QUESTION = json.dumps({"format": FORMAT}).encode() + b"\n"

#: Bytes of an answer: some thousands of leases. What does not fit is left off, the newest first, and said.
LARGEST = 4 * 1024 * 1024

# Bytes of a question, and seconds that one conversation may take.
_LONGEST_QUESTION = 1024
_TIMEOUT = 1.0

# Seconds from one attempt to accept an asker to the next, where there are no descriptors left.
_ACCEPT_AGAIN_AFTER = 1.0

# Seconds after which it is looked whether the socket's file is still there: what is in /tmp may be swept out, and what
# is in XDG_RUNTIME_DIR goes when the user logs out.
_LOOK_AFTER = 60.0

# Characters of a command.
_COMMAND = 60


class _Answering:
    """One thread with its socket, from the first checkout to the end of the process, or of the toolkit in it."""

    def __init__(self, directory: Path) -> None:
        self.pid = os.getpid()
        self.directory = directory
        self.path = directory / status_directory.name_of(self.pid)
        self._kind = green.library()
        self._is_stopping = False
        self._socket: socket.socket | None = None
        self._bound: tuple[int, int] | None = None
        self.thread = daemon_thread("conn-hygiene-status", self._run)

    def begin(self) -> bool:
        """Start the thread; return False if there can be none."""
        if self.thread is None:
            return False
        try:
            self.thread.start()
        except RuntimeError:
            # The interpreter is shutting down.
            return False
        return True

    # ##### The thread #####

    def _run(self) -> None:
        try:
            while self._is_current():
                self._serve()
        except status_directory.Refused as error:
            _say(logging.WARNING, "This process does not answer `connections status`: %s", str(error))
        except OSError as error:
            _say(logging.INFO, "This process does not answer `connections status`: %s", str(error))
        finally:
            if os.getpid() == self.pid:
                self._take_away()
                if not self._is_stopping and green.library() != self._kind:
                    _begin_after(self)
            # A greenlet that has survived a fork is missing in threading's list there; this puts it into it.
            threading.current_thread()

    def _is_current(self) -> bool:
        """Whether this is to go on: a greenlet survives a fork, and threads may be green by now, which this is not."""
        return not self._is_stopping and os.getpid() == self.pid and green.library() == self._kind

    def _serve(self) -> None:
        """Answer until the socket's file is gone, or this is to end."""
        listening = self._bind()
        while self._is_current() and self._is_there():
            try:
                asker, _ = listening.accept()
            except TimeoutError:
                continue
            except OSError:
                # It was shut down; or there are no descriptors left, of which others will say more.
                if self._is_current():
                    time.sleep(_ACCEPT_AGAIN_AFTER)
                continue
            if self._is_current():
                with contextlib.suppress(OSError), asker:
                    _answer(asker)
            else:
                asker.close()

    def _bind(self) -> socket.socket:
        status_directory.make(self.directory)
        _sweep(self.directory)
        self._close()
        listening = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            # Of a process that had the number before; or swept out and put back.
            os.unlink(self.path)
        with status_directory.address(self.path) as address:
            listening.bind(address)
        # Where a system asks for the socket's own mode, and not only for the directory's.
        os.chmod(self.path, 0o600)
        listening.listen(16)
        listening.settimeout(_LOOK_AFTER)
        found = os.lstat(self.path)
        self._bound = (found.st_dev, found.st_ino)
        return listening

    def _is_there(self) -> bool:
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._bound

    # ##### Called by others #####

    def stop(self, timeout: float = 1.0) -> None:
        """Take the socket away, and end the thread, waiting *timeout* seconds at most."""
        self._is_stopping = True
        # Wakes who waits in accept(). Closing or shutting down what is waited for does not, on every system.
        if self._is_there():
            _knock(self.path)
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)
        self._take_away()

    def disinherit(self) -> None:
        """Close a forked child's copies, so that nobody is kept waiting by them when the parent is gone."""
        self._is_stopping = True
        self._close()

    def _take_away(self) -> None:
        if self._is_there():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._close()

    def _close(self) -> None:
        listening, self._socket = self._socket, None
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.close()


def _knock(path: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.setblocking(False)
        with status_directory.address(path) as address:
            knocking.connect(address)


def _sweep(directory: Path) -> None:
    """Take away what processes have left that were killed; nobody may ever ask them."""
    with contextlib.suppress(OSError):
        for path, pid, ticks in status_directory.sockets(directory):
            # Of another container's processes nothing is known here.
            if not host.is_alive(pid, ticks) and not _is_listened_to(path):
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _is_listened_to(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, status_directory.address(path) as address:
        asking.setblocking(False)
        try:
            asking.connect(address)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        found = status_directory.peer(asking)
        # Who listens has ended if only its children have the descriptor still.
        return found is None or found[0] == 0 or host.is_alive(found[0], 0)


def _say(level: int, message: str, text: str) -> None:
    """Have it logged by a thread that no question waits for."""
    running = reaper.running
    if running is not None:
        running.tell(logger.log, level, message, printable(text))


# ##### An answer #####


def _answer(asker: socket.socket) -> None:
    """Answer one question, within :data:`_TIMEOUT`.

    :raises OSError: it came to nothing.
    """
    give_up_at = time.monotonic() + _TIMEOUT
    asker.settimeout(_TIMEOUT)
    if not status_directory.is_trusted(asker):
        return
    asked = b""
    while not asked.endswith(b"\n"):
        asker.settimeout(max(0.001, give_up_at - time.monotonic()))
        more = asker.recv(_LONGEST_QUESTION)
        asked += more
        if not more or len(asked) > _LONGEST_QUESTION:
            return
    if asked != QUESTION:
        # Of another version, which finds out by what comes back.
        text = json.dumps({"format": FORMAT}).encode()
    else:
        text = encoded(about_process())
    # In one call, for which the limit is one of all of it.
    asker.settimeout(_TIMEOUT)
    asker.sendall(text + b"\n")
    # Not only closed: a child that is being forked may have a copy.
    asker.shutdown(socket.SHUT_RDWR)


def encoded(facts: dict[str, Any]) -> bytes:
    """Return *facts* as JSON of at most :data:`LARGEST` bytes, with fewer leases if they are too many."""
    while True:
        text = json.dumps(facts).encode()
        if len(text) < LARGEST or not facts["leases"]:
            return text
        leases = facts["leases"]
        kept = leases[: len(leases) // 2]
        facts = {**facts, "leases": kept, "leases_left_off": facts["leases_left_off"] + len(leases) - len(kept)}


def about_process() -> dict[str, Any]:
    """Return all that this process says of itself, as what JSON has."""
    return {
        "format": FORMAT,
        "pid": os.getpid(),
        "command": command_of(getattr(sys, "argv", [])),
        "started": host.started(os.getpid()) or _began_at,
        "settings_module": settings_module(),
        "databases": {alias: database_of(entry) for alias, entry in connections.settings.items()},
        "leases": _leases(),
        "leases_left_off": 0,
        "pools": [dataclasses.asdict(pool) for pool in snapshot.pool_stats()],
        "stats": dataclasses.asdict(snapshot.stats()),
    }


def settings_module() -> str | None:
    """Return which settings this process has; None for those of ``settings.configure()``."""
    return settings.SETTINGS_MODULE or os.environ.get(ENVIRONMENT_VARIABLE)


def _leases() -> list[dict[str, Any]]:
    found = []
    for info, lease in snapshot.with_leases():
        end = description.end_of(lease)
        # It may have gone on to another connection in between.
        if end is not None and lease.server_pid != info.server_pid:
            end = None
        found.append(dataclasses.asdict(info) | {"end": end and dataclasses.asdict(end)})
    return found


def database_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what of an entry of DATABASES says where it is; :data:`HIDDEN` for a name with more in it than a name."""
    return {key.lower(): _without_secrets(str(entry.get(key) or "")) for key in ("HOST", "PORT", "NAME", "USER")}


def _without_secrets(text: str) -> str:
    return printable(HIDDEN if _CONNECTION_STRING.search(text) else text)


#: Stands for what may have a password in it.
HIDDEN = "…"

# What libpq takes the name of a database for when it has one of these in it ("Connection Strings"). Words are no sign:
# a database may be called keycloak.
_CONNECTION_STRING = re.compile("://|=")

# What may well have a password in it: a URI, a connection string, an option by its name.
_SECRET = re.compile(r"://|@|pass|pwd|secret|token|key|credential|dsn|basic.?auth", re.IGNORECASE)


# The short name of a password, or of a port; the value may stand right behind it, as mysql has it.
_SHORT_NAME = "-p"
_SHORT = re.compile(r"-p(?!\d{1,5}$).", re.DOTALL)


def command_of(arguments: Sequence[str]) -> str:
    """Return what *arguments* run, such as ``"manage.py runserver"``: without folders, secrets, and what is long."""
    program = Path(arguments[0] if arguments else "")
    # Of a package that is run as one.
    name = program.parent.name if program.name == "__main__.py" else program.name
    told: list[str] = []
    is_next = is_short = False
    for argument in arguments[1:]:
        # A number of so many digits is a port.
        is_secret = _SECRET.search(argument) is not None
        is_hidden = (
            is_secret
            or _SHORT.match(argument)
            or (is_next and not (is_short and argument.isdecimal() and len(argument) <= 5))
        )
        told.append(HIDDEN if is_hidden else argument)
        is_short = argument == _SHORT_NAME
        # What follows the name of one.
        is_next = is_short or (is_secret and argument.startswith("-") and "=" not in argument)
    text = printable(" ".join([name or "python", *told]))
    return text if len(text) <= _COMMAND else f"{text[: _COMMAND - 1]}…"


# ##### Beginning and end #####

_lock = locks.make(Rank.LEAF)
_answering: _Answering | None = None

# For systems that do not say when a process started.
_began_at = time.time()


def begin() -> None:
    """Have this process answer from its next checkout on, where the settings say now; elsewhere no longer."""
    stop()
    if status_directory.mine() is not None:
        events.listen(events.CheckedOut, _checked_out)


def _checked_out(event: events.CheckedOut) -> None:
    """Begin to answer."""
    global _answering  # noqa: PLW0603 - one process, one answer
    events.unlisten(events.CheckedOut, _checked_out)
    directory = status_directory.mine()
    if directory is None or reaper.running is None:
        return
    with _lock:
        if _answering is not None:
            return
        answering = _answering = _Answering(directory)
    if not answering.begin():
        with _lock:
            _answering = None


def _begin_after(ended: _Answering) -> None:
    """Have a thread of the other kind take the place of one that *ended* since threads have become green."""
    global _answering  # noqa: PLW0603 - one process, one answer
    with _lock:
        if _answering is not ended:
            return
        _answering = None
    events.listen(events.CheckedOut, _checked_out)


def settings_changed() -> None:
    """Go by what the settings say now. Under no lock."""
    answering = _answering
    if reaper.running is not None and status_directory.mine() != (answering and answering.directory):
        begin()


def stop() -> None:
    """Answer no longer, and leave nothing behind."""
    global _answering
    events.unlisten(events.CheckedOut, _checked_out)
    with _lock:
        answering, _answering = _answering, None
    if answering is not None and answering.pid == os.getpid():
        answering.stop()


def rest() -> None:
    """Answer no longer until the next checkout, ahead of a fork."""
    if _answering is not None:
        begin()


def after_fork_in_child() -> None:
    """Have a forked child answer for itself, from its first checkout on, and never on its parent's socket."""
    global _lock, _answering, _began_at
    _lock, _began_at = locks.make(Rank.LEAF), time.time()
    inherited, _answering = _answering, None
    if inherited is not None:
        inherited.disinherit()
        events.listen(events.CheckedOut, _checked_out)
