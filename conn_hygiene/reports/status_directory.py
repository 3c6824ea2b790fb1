"""Where the processes of a host are found that answer for themselves: ``STATUS_DIRECTORY``, and the sockets in it.

The directory is its owner's alone, as ``XDG_RUNTIME_DIR`` is (XDG Base Directory Specification): what others may
write to could be anybody's, and what others may read would tell them of requests and statements.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from conn_hygiene import conf
from conn_hygiene.reports import host

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Whether there can be any. ``auto`` needs a user's number, and a socket a family that Python does not have on Windows.
IS_POSSIBLE = hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")

# Of the process, and when it started, in clock ticks since boot; 0 where that is not known. Short, as paths must be.
_NAME = re.compile(r"([1-9]\d{0,9})\.(\d{1,19})\.sock", re.ASCII)

_BASE = "conn_hygiene"

# What sockaddr_un has room for, without the NUL at its end: 108 bytes on Linux, 104 on the BSDs and macOS.
_LONGEST = 107 if sys.platform == "linux" else 103

# By which a directory that is open has a short name, on Linux.
_DESCRIPTORS = "/proc/self/fd"

# Bits of a mode that somebody else than the owner has something of.
_OTHERS = 0o077


class Refused(Exception):
    """The directory is not this user's alone, so nothing is put there and nobody believed. Its text says why."""


def mine() -> Path | None:
    """Return where this process is to be found, if the settings have it found at all."""
    chosen = conf.current.STATUS_DIRECTORY
    if chosen is None or not IS_POSSIBLE:
        return None
    return next(_candidates()) if chosen == "auto" else Path(chosen)


def all_of_user() -> list[Path]:
    """Return where the processes of this user may be found.

    For ``"auto"`` these are several: a service that was started at boot has no ``XDG_RUNTIME_DIR``, and who logs in to
    look at it has one.
    """
    chosen = conf.current.STATUS_DIRECTORY
    if chosen is None or not IS_POSSIBLE:
        return []
    return list(dict.fromkeys(_candidates())) if chosen == "auto" else [Path(chosen)]


def _candidates() -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime) and _is_of_this_user(runtime):
        yield Path(runtime, _BASE)
    name = f"{_BASE}-{os.geteuid()}"
    yield Path(tempfile.gettempdir(), name)
    yield Path(f"/run/user/{os.geteuid()}", _BASE)
    yield Path("/tmp", name)


def _is_of_this_user(directory: str) -> bool:
    # As the specification has it. su and sudo -E leave the variable as it was, to whom it was another's: what root made
    # there, that user could not use, but could replace.
    try:
        found = os.stat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def look(directory: Path) -> None:
    """See to it that *directory* is this user's alone.

    :raises Refused: it is not.
    :raises OSError: there is none, or it cannot be looked at.
    """
    if why := why_refused(os.lstat(directory)):
        raise Refused(f"{directory} {why}")


def why_refused(found: os.stat_result) -> str | None:
    """Return what is wrong with a directory that was *found* so, as the rest of a sentence; None if nothing is."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link."
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory."
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, and this process runs as {os.geteuid()}."
    if found.st_mode & _OTHERS:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}, which lets others in; it must have 0700."
    return None


def is_of_another(found: os.stat_result) -> bool:
    """Return whether a directory that was *found* so is refused for its owner alone, and fit for who runs as that."""
    return stat.S_ISDIR(found.st_mode) and found.st_uid != os.geteuid() and not found.st_mode & _OTHERS


def refused() -> list[str]:
    """Return why places are not looked at in which the processes of this user may be found, a sentence for each."""
    found = []
    for directory in all_of_user():
        try:
            look(directory)
        except Refused as error:
            found.append(str(error))
        except OSError:
            # There is none.
            continue
    return found


def make(directory: Path) -> None:
    """Make *directory* for its owner alone if it is missing, and see to it that it is.

    :raises Refused: it is there, and is not.
    :raises OSError: that is not possible.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    look(directory)


def name_of(pid: int) -> str:
    """Return the name that the socket of process *pid* has."""
    return f"{pid}.{host.ticks_at_start(pid) or 0}.sock"


def sockets(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the sockets in *directory*, each with its process and when that started, as in its name.

    :raises OSError: the directory cannot be read.
    """
    for name in sorted(os.listdir(directory)):
        match = _NAME.fullmatch(name)
        if match:
            yield directory / name, int(match[1]), int(match[2])


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield by what *path* is bound and connected to, which has to be short.

    :raises OSError: it is too long, and there is no shorter one on this system.
    """
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    # The same directory by a short name, for as long as it is open.
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"{_DESCRIPTORS}/{descriptor}"
        if not os.path.isdir(short):
            raise OSError(f"{path} is longer than the {_LONGEST} bytes that the path of a socket may have")
        yield f"{short}/{path.name}"
    finally:
        os.close(descriptor)


def peer(connected: socket.socket) -> tuple[int, int] | None:
    """Return the process and the user at the other end of *connected* (``unix(7)``, SO_PEERCRED); None if unknown.

    Of a process in another container the number is 0.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, user, _ = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII")))
    return pid, user


def is_trusted(connected: socket.socket) -> bool:
    """Return whether at the other end of *connected* is this user; true where the system does not tell."""
    found = peer(connected)
    return found is None or found[1] == os.geteuid()


def arguments_of(pid: int) -> list[str]:
    """Return the command line of process *pid* (``proc_pid_cmdline(5)``); empty if the system does not say."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(text).rstrip("\0").split("\0")
