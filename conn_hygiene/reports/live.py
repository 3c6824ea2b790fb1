"""What all processes of this host hold right now, each answering for itself: :func:`processes`."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import selectors
import socket
import stat
import time
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

from conn_hygiene import conf
from conn_hygiene.leases.description import End, end_of_connection
from conn_hygiene.masking import printable
from conn_hygiene.reports import answering, host, status_directory
from conn_hygiene.reports.snapshot import LeaseInfo, PoolInfo, Stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import psycopg

    from conn_hygiene.server.sessions import Session


# Seconds. Some systems' selectors take no more than 24 days.
_LONGEST = 24 * 60 * 60


@dataclasses.dataclass(frozen=True)
class Database:
    """Where an entry of ``DATABASES`` leads, as it is written there; empty for what is not."""

    host: str
    port: str
    name: str
    user: str


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of this host in which the toolkit is installed, as it was when it answered.

    A process is found from its first checkout on.
    """

    pid: int
    #: What it runs, such as ``"manage.py runserver"``: shortened, and without what may be a secret.
    command: str
    #: When it started, as a Unix time; 0 if that is not known.
    started: float
    #: Which project's it is. ``None`` for settings that were made by ``settings.configure()``.
    settings_module: str | None
    #: What ``DATABASES`` says, by alias, without passwords: ``host``, ``port``, ``name`` and ``user`` of each as
    #: strings, empty for what it does not say.
    databases: Mapping[str, Database]
    #: The connections that it holds: what :func:`~conn_hygiene.snapshot` returns in that process.
    leases: list[LeaseInfo]
    #: The pools that it has opened: what :func:`~conn_hygiene.pool_stats` returns in that process.
    pools: list[PoolInfo]
    #: Its totals: what :func:`~conn_hygiene.stats` returns in that process. ``None`` if it has not answered.
    stats: Stats | None
    #: Whether it has answered in time, and in a format that is known here. If not, only *pid* is known, and *command*
    #: and *started* where the operating system tells them.
    answered: bool
    #: For each of *leases*, in their order, the two ends of its connection, or ``None`` where they are not known. Of
    #: the server's ``host``, ``address`` and ``port``, and ``database`` and ``user`` there; of this side's
    #: ``client_address`` and ``client_port``, as ``pg_stat_activity`` has them unless something in between translates.
    ends: list[End | None] = dataclasses.field(default_factory=list)
    #: How many leases it has besides *leases*, if there are too many for one answer.
    leases_left_off: int = 0


def processes(*, timeout: float = 1.0) -> list[Process]:
    """Ask every process of this user on this host what it holds; the oldest process first.

    All are asked at the same time, so that a slow one does not delay the others. The calling process is among them if
    it answers to others as well. No database is asked, and no lock is waited for.

    Files that killed processes have left behind are removed.

    :param timeout: seconds after which a process that has not answered is listed without an answer.
    :raises TypeError: *timeout* is no number.
    :raises ValueError: it is not above 0, or longer than a day.
    """
    if not conf.is_number(timeout):
        raise TypeError(f"processes() takes a number of seconds as timeout, not {timeout!r}.")
    # Said this way round, NaN is out as well.
    if not 0 < timeout <= _LONGEST:
        raise ValueError(f"processes() takes a timeout above 0 and up to {_LONGEST} seconds, not {timeout!r}.")
    questions: list[_Question] = []
    for directory in status_directory.all_of_user():
        with contextlib.suppress(OSError, status_directory.Refused):
            status_directory.look(directory)
            questions += [_Question(*found) for found in status_directory.sockets(directory)]
    with contextlib.suppress(OSError):
        # There may be too few descriptors to ask anybody.
        _ask(questions, timeout)
    found = [question.process() for question in questions]
    return sorted((each for each in found if each is not None), key=lambda each: (each.started, each.pid))


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a session: a process, by one of its leases, over a connection with these ends."""

    process: Process
    lease: LeaseInfo
    end: End
    #: Whether its server is the one that :func:`holders` was asked about, as far as names and addresses tell.
    is_there: bool

    def has(self, session: Session) -> bool:
        """Return whether *session*, of the server that :func:`holders` was asked about, is what is held.

        A pid alone says little: it may be of another database, or have been another session's a moment ago.
        """
        end = self.end
        if self.lease.server_pid != session.pid or (end.database, end.user) != (session.database, session.role):
            return False
        if session.age is not None and self.lease.held_for > session.age + _LATE:
            return False
        if end.client_address is not None and end.client_address == session.client_address:
            # The server and the client have the same connection before them, by whatever names they call it.
            return end.client_port == session.client_port
        # Else, addresses are translated on the way, or there are none.
        return self.is_there


# Seconds that may lie between a look at the server and the answers of the processes.
_LATE = 5.0


def holders(found: Iterable[Process], connection: psycopg.Connection[Any]) -> list[Holder]:
    """Return what *found* hold, to be compared with the sessions that *connection* shows; see :meth:`Holder.has`.

    :param connection: to the server itself. What a pooler calls pids are none of the server's.
    """
    here = end_of_connection(connection)
    return [
        Holder(process, lease, end, is_there=here is not None and _are_of_one_server(end, here))
        for process in found
        for lease, end in zip(process.leases, process.ends, strict=True)
        if end is not None
    ]


def _are_of_one_server(one: End, other: End) -> bool:
    if one.port != other.port:
        return False
    if _is_local(one) and _is_local(other):
        # By a directory and by an address there may be two, which have no pid in common, being on one machine.
        directories = {os.path.realpath(end.host) for end in (one, other) if end.host and end.host.startswith("/")}
        return len(directories) < 2
    if one.address and other.address and (":" in one.address) == (":" in other.address):
        return one.address == other.address
    # A name may have an address of either family.
    return one.host is not None and one.host == other.host


def _is_local(end: End) -> bool:
    if end.host is not None and end.host.startswith(("/", "@")):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(end.address or "").is_loopback
    return False


class _Question:
    """One process that is asked, over a socket that never blocks."""

    def __init__(self, path: Path, pid: int, ticks: int) -> None:
        self.path = path
        self.pid = pid
        self.ticks = ticks
        self.socket: socket.socket | None = None
        self.is_gone = False
        self.is_strange = False
        self._text = bytearray()

    def begin(self) -> socket.socket | None:
        """Ask; return what the answer will come from, if any will."""
        asking = None
        try:
            asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            asking.setblocking(False)
            with status_directory.address(self.path) as address:
                asking.connect(address)
            found = status_directory.peer(asking)
            self.is_strange = not status_directory.is_trusted(asking)
            # Its children may have the descriptor still.
            self.is_gone = found is not None and found[0] != 0 and not host.is_alive(found[0], 0)
            if not (self.is_strange or self.is_gone):
                asking.send(answering.QUESTION)
                self.socket = asking
        except (ConnectionRefusedError, FileNotFoundError):
            self.is_gone = True
        except OSError:
            # Too many ask it already, and it answers none of them; or there are no descriptors left here.
            pass
        if self.socket is None and asking is not None:
            asking.close()
        if self.is_gone:
            self._clear_away()
        return self.socket

    def _clear_away(self) -> None:
        """Take the file away that a process has left, unless one is about to listen there."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            is_new = time.time() - found.st_mtime < _SETTLED
            if stat.S_ISSOCK(found.st_mode) and not (is_new and host.is_alive(self.pid, self.ticks)):
                os.unlink(self.path)

    def receive(self) -> bool:
        """Take in what has come of the answer; return whether there is more to come."""
        assert self.socket is not None
        try:
            more = self.socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self._text += more
        return bool(more) and not more.endswith(b"\n") and len(self._text) <= answering.LARGEST

    def end(self) -> None:
        """Let go of it, answered or not."""
        if self.socket is not None:
            self.socket.close()

    def process(self) -> Process | None:
        """Return what was answered, or that nothing was; None of a process that is no more."""
        if self.is_strange or self.is_gone:
            return None
        if self._text.endswith(b"\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
                return _process(json.loads(self._text))
        if not host.is_alive(self.pid, self.ticks):
            return None
        return Process(
            pid=self.pid,
            command=_command_of(self.pid),
            started=host.started(self.pid) or 0.0,
            settings_module=None,
            databases={},
            leases=[],
            pools=[],
            stats=None,
            answered=False,
        )


# Seconds after which a process that has made its socket listens.
_SETTLED = 5.0


def _ask(questions: Iterable[_Question], timeout: float) -> None:
    """Have all *questions* answered, or *timeout* pass."""
    give_up_at = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        try:
            for question in questions:
                asked = question.begin()
                if asked is not None:
                    selector.register(asked, selectors.EVENT_READ, question)
            while selector.get_map():
                remaining = give_up_at - time.monotonic()
                if remaining <= 0:
                    return
                for key, _ in selector.select(remaining):
                    if not key.data.receive():
                        selector.unregister(key.fileobj)
        finally:
            for question in questions:
                question.end()


# ##### What was answered #####


def _process(answer: dict[str, Any]) -> Process:
    """Return the process that *answer* tells of.

    :raises ValueError: it is of another format.
    :raises TypeError: something in it is not of its kind.
    """
    if answer.get("format") != answering.FORMAT or "pid" not in answer:
        raise ValueError("an answer of another format")
    leases = answer["leases"]
    return Process(
        pid=_of_kind(int, answer["pid"]),
        command=printable(_of_kind(str, answer["command"])),
        started=float(answer["started"]),
        settings_module=_of_kind(str | None, answer["settings_module"]),
        databases={str(alias): _built(Database, entry) for alias, entry in answer["databases"].items()},
        leases=[_built(LeaseInfo, each) for each in leases],
        pools=[_built(PoolInfo, each) for each in answer["pools"]],
        stats=_built(Stats, answer["stats"]),
        answered=True,
        ends=[None if each.get("end") is None else _built(End, each["end"]) for each in leases],
        leases_left_off=_of_kind(int, answer["leases_left_off"]),
    )


T = TypeVar("T")


def _built(kind: type[T], found: Mapping[str, Any]) -> T:
    """Return a *kind*, which is a dataclass or a named tuple, of what was *found*.

    The other process may run another version: what it has more is left out, and what it has not is nothing here.

    :raises TypeError: something is not of its kind.
    """
    hints = _hints[kind]
    return kind(**{name: _of_kind(hint, found[name]) if name in found else _nothing(hint) for name, hint in hints})


_hints: dict[type, list[tuple[str, Any]]] = {
    kind: list(get_type_hints(kind).items()) for kind in (Database, LeaseInfo, PoolInfo, Stats, End)
}


def _of_kind(hint: Any, value: Any) -> Any:
    """Return *value*, which JSON had, if it is what *hint* says.

    :raises TypeError: it is not.
    """
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is dict:
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            return value
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is no {hint}")


def _nothing(hint: Any) -> Any:
    return None if isinstance(hint, UnionType) else (get_origin(hint) or hint)()


def _command_of(pid: int) -> str:
    """Return what process *pid* runs as it would say itself, from its command line."""
    arguments = status_directory.arguments_of(pid)
    if arguments and Path(arguments[0]).name.startswith("python"):
        # The interpreter's own options are not known here; what follows them is a file, or a module after -m.
        del arguments[0]
        while arguments and arguments[0].startswith("-") and arguments[0] != "-c":
            if arguments.pop(0) == "-m":
                break
    return answering.command_of(arguments)
