"""What is set when a connection is opened: the session's timeouts, and the name that it has on the server.

Both travel in the start-up message, as libpq's ``options`` and ``application_name``, so they cost no round trip. They
are the session's defaults from there on: ``RESET ALL`` and ``DISCARD ALL`` return to them (PostgreSQL documentation,
"libpq: Parameter Key Words" and "RESET").

Django takes them from ``OPTIONS`` in ``DATABASES`` whenever it connects, in whichever thread, and when it makes a pool.
That is where they are put; the dictionary that the project wrote stays as it is.
"""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections

from conn_hygiene import conf, internals

load_backend = internals.imported("django.db.utils", "load_backend")
Conninfo = internals.imported("psycopg.pq", "Conninfo")

# What PostgreSQL keeps of an application_name: NAMEDATALEN - 1 bytes.
NAME_LENGTH = 63


class _Extended(dict[str, Any]):
    """``OPTIONS`` with additions; knows what the project wrote. A copy of an alias's settings takes both along."""

    def __init__(self, written: Mapping[str, Any], additions: dict[str, Any]) -> None:
        super().__init__({**written, **additions})
        self.written = written


def renew() -> None:
    """Have connections that are opened from now on get what the settings say now.

    Connections that are open keep what they have, and a pool that exists opens the next one as its first.
    """
    if not internals.CONNECT_OPTIONS.available:
        return
    for alias, entry in connections.settings.items():
        written, timeouts = options_written(alias), timeouts_of(alias)
        tag = tag_of_process(alias) if conf.current.TAG_SESSIONS else None
        additions = {}
        # What is no dict stays as it is: nobody can connect with it, but the project may do without the alias.
        if (timeouts or tag) and isinstance(entry.get("OPTIONS", {}), Mapping) and is_postgresql(alias):
            additions = _timeouts(written, timeouts) | _name(written, tag)
        if additions or isinstance(entry.get("OPTIONS"), _Extended):
            entry["OPTIONS"] = _Extended(written, additions) if additions else written


def after_fork_in_child() -> None:
    """Name the sessions of a forked child after the child. Needed before it connects; takes no lock."""
    if conf.current.TAG_SESSIONS:
        renew()


def options_written(alias: str) -> Mapping[str, Any]:
    """Return the ``OPTIONS`` of *alias* as the project wrote them; none if that is no dict, which Django says best."""
    options = connections.settings[alias].get("OPTIONS")
    if isinstance(options, _Extended):
        return options.written
    return options if isinstance(options, Mapping) else {}


def is_postgresql(alias: str) -> bool:
    """Return whether *alias* is on a PostgreSQL backend; False if the backend is one that cannot be loaded."""
    # Others have options of the same names: Oracle a pool, SQLite ATOMIC_REQUESTS.
    try:
        return bool(load_backend(connections.settings[alias]["ENGINE"]).DatabaseWrapper.vendor == "postgresql")
    except ImproperlyConfigured:
        # There is no such backend here, which Django says best itself.
        return False


# ##### Timeouts #####


def timeouts_of(alias: str) -> dict[str, float]:
    """Return what ``SESSION_TIMEOUTS`` says for *alias*: PostgreSQL's parameters, in seconds."""
    common = {name: value for name, value in conf.current.SESSION_TIMEOUTS.items() if name in conf.TIMEOUTS}
    own = conf.current.SESSION_TIMEOUTS.get(alias)
    merged = {**common, **own} if isinstance(own, Mapping) else common
    return {name: value for name, value in merged.items() if value is not None}


def own_options(written: Mapping[str, Any]) -> str | None:
    """Return the ``options`` with which libpq would connect by itself, ``PGOPTIONS`` included; None if nobody can tell.

    A service in ``OPTIONS`` may have some: libpq alone reads its file, and only when it connects.
    """
    if "options" in written:
        return str(written["options"] or "")
    return None if "service" in written else _libpq_default(b"options")


def sets(options: str, name: str) -> bool:
    """Return whether libpq's *options* set the parameter *name*."""
    # As the server reads it: after -c or --, in any case, with - for _.
    return re.search(rf"(?:-c\s*|--){name.replace('_', '[-_]')}\s*=", options, re.IGNORECASE) is not None


#: Where :func:`place_of` says that a service keeps ``SESSION_TIMEOUTS`` from being set.
OF_SERVICE = 'OPTIONS["service"]'
#: Where a timeout is written for an alias in libpq's words.
OF_OPTIONS = 'OPTIONS["options"]'
OF_ENVIRONMENT = "PGOPTIONS"


def place_of(alias: str, name: str) -> str | None:
    """Return where the settings say what the timeout *name* is for *alias*: the place that wins; None if nowhere."""
    written = options_written(alias)
    options, timeouts = own_options(written), conf.current.SESSION_TIMEOUTS
    if options is None:
        return OF_SERVICE
    if sets(options, name):
        return OF_OPTIONS if "options" in written else OF_ENVIRONMENT
    own, common = timeouts.get(alias), 'CONN_HYGIENE["SESSION_TIMEOUTS"]'
    if isinstance(own, Mapping) and name in own:
        return f'{common}["{alias}"]'
    return common if name in timeouts else None


def _timeouts(written: Mapping[str, Any], timeouts: dict[str, float]) -> dict[str, str]:
    own = own_options(written)
    if own is None or not timeouts:
        return {}
    ours = " ".join(f"-c {name}={milliseconds(seconds)}" for name, seconds in timeouts.items())
    # Of two values for one parameter the server takes the later: the project's own.
    # The project's end as they are: a space may be escaped there.
    return {"options": f"{ours} {own}" if own else ours}


def milliseconds(seconds: float) -> int:
    """Return what a timeout of so many *seconds* is set to."""
    # 0 switches a timeout off, which is not what somebody wants who asks for a very short one.
    return max(1, round(seconds * 1000)) if seconds else 0


# ##### Names #####


# What is left of an alias's name in that of its sessions.
_ALIAS_LENGTH = 20

# What the number of a process may need: Linux has them up to 2^22. With room for that always, a host has the same name
# in the sessions of all of its processes.
_PID_LENGTH = 7

# What of a long name tells it from others that end alike, and what is left of a host's at least.
_DIGITS = 4
_HOST_LENGTH = _DIGITS + 9

# With what the project has in front, and what PgBouncer adds behind if its application_name_add_host says so.
_TAG = re.compile(
    r"(?:^| )(?P<project>[^ @]+)@(?P<host>[^ @:]*):(?P<pid>\d{1,10})(?:/(?P<alias>[^ /]+))?(?: - \S+:\d+)?$"
)


class Tag(NamedTuple):
    """What the name of a session says: whose it is."""

    project: str
    host: str
    pid: int
    alias: str


def project_name() -> str:
    """Return the package of the project's ``ROOT_URLCONF``, or without one of its settings, as tags have it."""
    module = getattr(settings, "ROOT_URLCONF", None) or os.environ.get("DJANGO_SETTINGS_MODULE") or "django"
    return _shortened(str(module).partition(".")[0], _room() - _HOST_LENGTH)


def tag_of_process(alias: str = DEFAULT_DB_ALIAS) -> str:
    """Return what names this process on the server: ``project@host:pid``, and ``/alias`` unless it is ``default``.

    It fits into the name of a session. Where the host's is too long, its end is kept, which has what tells replicas
    apart, behind what tells it from those with the same end.
    """
    project = project_name()
    host = _shortened(socket.gethostname().partition(".")[0], _room() - len(project))
    name = f"{project}@{host}:{os.getpid()}"
    return name if alias == DEFAULT_DB_ALIAS else f"{name}/{re.sub('[^!-~]|[/:]', '_', alias[:_ALIAS_LENGTH])}"


def _room() -> int:
    """Return how long project and host may be together.

    Neither by the alias nor by the process that is named: all sessions of a process, and all processes of a host, are
    to have the same name for it.
    """
    pid = max(_PID_LENGTH, len(str(os.getpid())))
    alias = max((len(alias) for alias in [*connections.settings] if alias != DEFAULT_DB_ALIAS), default=0)
    return NAME_LENGTH - len("@:") - pid - (alias and len("/") + min(alias, _ALIAS_LENGTH))


def _shortened(name: str, room: int) -> str:
    """Return *name*, or if it is longer than *room*, its end behind a few digits that tell it from others."""
    if len(name) <= room:
        return name
    digits = f"{zlib.crc32(name.encode(errors='backslashreplace')):08x}"[:_DIGITS]
    return f"{digits}~{name[len(name) - room + _DIGITS + 1 :]}"


def tag_in(application_name: str) -> Tag | None:
    """Return what ``TAG_SESSIONS`` has put into *application_name*; None if it is somebody else's choice."""
    found = _TAG.search(application_name)
    if found is None:
        return None
    return Tag(found["project"], found["host"], int(found["pid"]), found["alias"] or DEFAULT_DB_ALIAS)


def _name(written: Mapping[str, Any], tag: str | None) -> dict[str, str]:
    if tag is None:
        return {}
    if "service" in written and "application_name" not in written:
        # The service may name one, which libpq then prefers.
        return {"fallback_application_name": _joined(written.get("fallback_application_name"), tag)}
    own = written["application_name"] if "application_name" in written else _libpq_default(b"application_name")
    return {"application_name": _joined(own or written.get("fallback_application_name"), tag)}


def _joined(own: str | None, tag: str) -> str:
    """Return *own* and *tag* in one name that the server keeps whole: what is too long is cut off *own*, not *tag*."""
    own = (own or "")[: max(0, NAME_LENGTH - len(tag) - 1)]
    # The server replaces anything else, and by more than one character each from PostgreSQL 16 on.
    return "".join(character if " " <= character <= "~" else "?" for character in (f"{own} {tag}" if own else tag))


def _libpq_default(keyword: bytes) -> str:
    """Return what libpq uses for *keyword* where nothing is said: from the environment, or a service named there."""
    for option in Conninfo.get_defaults():
        if option.keyword == keyword and option.val is not None:
            value: bytes = option.val
            return value.decode()
    return ""
