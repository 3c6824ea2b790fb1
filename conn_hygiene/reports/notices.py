"""Reports left where another terminal finds them: one small file for each server session that was reported.

``manage.py connections status`` sees sessions as the server does, which knows no views and no lines of code. The
process that reports an idle transaction knows both, and leaves a notice in ``NOTICE_DIRECTORY``; on the same host the
command joins the two by the server's pid. A notice that does not fit what the server says now is old, and is not shown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conn_hygiene import conf, events

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from conn_hygiene.server.sessions import Session

logger = logging.getLogger("conn_hygiene.notices")

#: The facts of a report that a notice has. The statement is not one: the server has it, too.
KEPT = ("alias", "server_pid", "request", "where_began", "where_now")


def listen() -> None:
    """Have a notice left of each report from now on whose session is still there, where the settings say so."""
    events.listen(events.IdleInTransaction, _leave)
    events.listen(events.HeldTooLong, _leave)


def _leave(event: events.IdleInTransaction | events.HeldTooLong) -> None:
    directory = conf.current.NOTICE_DIRECTORY
    if directory is not None and event.action == "log":
        post(directory, event.facts())


def post(directory: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Leave what is :data:`KEPT` of *facts* in *directory*; it is made for its owner alone if it is missing.

    Never raises: a report that cannot be left here is in the log all the same.
    """
    about = {"in_transaction": "open_for" in facts, "reported_at": time.time()}
    notice = {key: facts.get(key) for key in KEPT} | about
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(Path(directory, f"{os.getpid()}-{notice['server_pid']}.json"), json.dumps(notice))
    except OSError as error:
        logger.info("No notice could be left in %s: %s", directory, error)


def _replace(path: Path, text: str) -> None:
    # A reader sees the old file or the new one, and never half of it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the notices of processes that live, oldest first; those of others are taken away."""
    notices = []
    for path in Path(directory).glob("*-*.json"):
        # What is not a notice, or may not be read, is somebody else's business.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            if _is_alive(int(path.name.partition("-")[0])):
                notices.append(_checked(json.loads(path.read_text(encoding="utf-8"))))
            else:
                path.unlink()
    return sorted(notices, key=lambda notice: float(notice["reported_at"]))


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a notice in *found*. Each may be anything, since the directory need not be ours alone."""
    notice = {key: found[key] for key in (*KEPT, "in_transaction", "reported_at")}
    notice["reported_at"] = float(notice["reported_at"])
    texts = [notice[key] for key in KEPT if key != "server_pid"]
    if type(notice["server_pid"]) is not int or not all(isinstance(text, (str, type(None))) for text in texts):
        raise TypeError("a fact is not of its kind")
    return notice


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        # There, this is no question but a signal.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def known(
    directory: str | os.PathLike[str], aliases: Collection[str], sessions: Iterable[Session]
) -> dict[int, dict[str, Any]]:
    """Return what the notices in *directory* tell of *sessions* as they are now, by pid.

    :param aliases: those that lead to the database of the sessions; another server may have the same pids.
    """
    latest = {notice["server_pid"]: notice for notice in read(directory) if notice["alias"] in aliases}
    return {
        session.pid: _as_of_now(latest[session.pid], session)
        for session in sessions
        if session.pid in latest and _is_about(latest[session.pid], session)
    }


def _is_about(notice: dict[str, Any], session: Session) -> bool:
    """Return whether *session* still is in what was reported, and has not begun it since."""
    # Two clocks, the server's and a process's. What is reported has lasted for seconds, and so much they may differ.
    began = session.xact_start if notice["in_transaction"] else session.state_change
    in_it = session.is_idle_in_transaction if notice["in_transaction"] else session.state == "idle"
    return in_it and began is not None and began.timestamp() < notice["reported_at"]


def _as_of_now(notice: dict[str, Any], session: Session) -> dict[str, Any]:
    """Return *notice* without where its thread was, if that has gone on within the same transaction."""
    has_gone_on = session.state_change is None or session.state_change.timestamp() > notice["reported_at"]
    return notice | {"where_now": None} if has_gone_on else notice
