"""The files of notices: written whole, and read with the distrust that a directory deserves.

``NOTICE_DIRECTORY`` may be any directory, with the files of others in it, who may be anybody where all may write. So a
file is taken for a notice by all of its name, its kind, its owner, its size and what stands in it; and only such a one
is ever taken away, once its process is known to be gone from this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conn_hygiene.reports import host

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What stands in each file, under the key ``"format"``; another one for another meaning of its keys.
FORMAT = "conn_hygiene notice 1"

#: Bytes. A notice is a request's path and a few lines of code.
LARGEST = 65_536

# The process, when it started, in clock ticks since boot (0 where that is not known), and the session's pid on the
# server. No more digits than fit: numbers of the system's have 32 bits, and ticks 64.
_PREFIX = "conn-hygiene-notice."
_NAME = re.compile(r"conn-hygiene-notice\.([1-9]\d{0,8})\.(\d{1,19})\.(\d{1,10})\.json", re.ASCII)

# Not those of every system. A FIFO would have the reader wait, and a link lead it somewhere else.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def write(directory: str | os.PathLike[str], server_pid: int, facts: dict[str, Any]) -> Path:
    """Leave *facts* of the session *server_pid* in *directory*, which is made for its owner alone if it is missing.

    What this process has said of that session before is replaced. Returns the file.

    :raises OSError: that is not possible.
    """
    pid = os.getpid()
    text = json.dumps(facts | {"format": FORMAT, "machine": _machine()})
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    path = Path(directory, f"{_PREFIX}{pid}.{host.ticks_at_start(pid) or 0}.{server_pid}.json")
    # A reader sees the old file or the new one, and never half of it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=".new")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def why_not(directory: str | os.PathLike[str]) -> str | None:
    """Return why nothing can be left in *directory*, as the rest of a sentence; None if nothing speaks against it."""
    path = Path(directory)
    there = path
    while not os.path.lexists(there):
        there = there.parent
    # Not its own method: up to Python 3.13 that raises where a link leads to what may not be entered.
    if not os.path.isdir(there):
        return "is no directory." if there == path else f"cannot be made: {there} is no directory."
    if not os.access(there, os.W_OK | os.X_OK):
        return "may not be written to by this user." if there == path else f"cannot be made by this user in {there}."
    return None


def read(directory: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the facts of each notice of a process that lives, and which; take away those of processes that do not.

    Those of other machines, which cannot be asked for their processes, are passed over, as is whatever is no notice.
    """
    with contextlib.suppress(OSError):
        names = [match for match in map(_NAME.fullmatch, os.listdir(directory)) if match]
        owners = {_user(), os.stat(directory).st_uid}
        for name in names:
            facts = _facts(Path(directory, name[0]), owners)
            if facts is None or facts.get("server_pid") != int(name[3]):
                continue
            if host.is_alive(int(name[1]), int(name[2])):
                yield facts | {"process": int(name[1])}
            elif facts.pop(_IS_OWN):
                with contextlib.suppress(OSError):
                    os.unlink(Path(directory, name[0]))


def _facts(path: Path, owners: set[int]) -> dict[str, Any] | None:
    """Return what stands in *path*, if it is a notice of this machine that one of *owners* has written."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in owners or found.st_size > LARGEST:
            return None
        facts = json.loads(os.read(descriptor, LARGEST))
    # It may be anything at all.
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)
    if not isinstance(facts, dict) or (facts.get("format"), facts.get("machine")) != (FORMAT, _machine()):
        return None
    return facts | {_IS_OWN: found.st_uid == _user()}


# Whose the file is, among its facts. No key of a file's: those are names.
_IS_OWN = "is own?"


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _machine() -> str:
    """Return where the pids of this process's neighbours mean what they mean here."""
    try:
        # A container has numbers of its own, and may have the host's name.
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()
