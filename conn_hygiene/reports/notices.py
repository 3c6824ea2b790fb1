"""Reports left where another terminal finds them: one small file for each server session that was reported.

``manage.py connections status`` sees sessions as the server does, which knows no views and no lines of code. The
process that reports an idle transaction knows both, and leaves a notice in ``NOTICE_DIRECTORY``; on the same host the
command joins the two by the server's pid. The process takes it away when what it tells of is over, the checkout or the
request. A notice that does not fit what the server says now is old, and is not shown.

Who may touch what: ``_left`` are the files of this process that may be there. Its lock is a leaf.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import conf, events, locks
from conn_hygiene.locks import Rank
from conn_hygiene.masking import printable
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import notice_files

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from conn_hygiene.server.sessions import Session

logger = logging.getLogger("conn_hygiene.notices")

#: The facts of a report that a notice has. The statement is not one: the server has it, too.
KEPT = ("alias", "server_pid", "request", "where_began", "where_now")


_lock = locks.make(Rank.LEAF)

# By alias and the session's pid on the server.
_left: dict[tuple[str, int], Path] = {}


def listen() -> None:
    """Have a notice left of each report from now on whose session is still there, where the settings say so."""
    events.listen(events.IdleInTransaction, _leave)
    events.listen(events.HeldTooLong, _leave)
    events.listen(events.CameBack, _is_over)
    events.listen(events.RequestOver, _is_over)


def after_fork_in_child() -> None:
    """Forget in a forked child the notices of its parent. Another thread may have held the lock."""
    global _lock  # noqa: PLW0603 - nobody holds the new one yet
    _lock = locks.make(Rank.LEAF)
    _left.clear()


def _leave(event: events.IdleInTransaction | events.HeldTooLong) -> None:
    directory = conf.current.NOTICE_DIRECTORY
    if directory is None or event.action != "log":
        return
    post(directory, event.facts())
    # A report is made late where those before it take long. Whoever ends what it tells of, after this look, finds the
    # notice that is there by now.
    if not _is_true(event):
        _is_over(event)


def _is_true(event: events.IdleInTransaction | events.HeldTooLong) -> bool:
    running = reaper.running
    return running is not None and any(
        (lease.alias, lease.server_pid, lease.request) == (event.alias, event.server_pid, event.request)
        for lease in running.leases()
    )


def _is_over(event: events.IdleInTransaction | events.HeldTooLong | events.CameBack | events.RequestOver) -> None:
    take_away((event.alias, event.server_pid))


def take_away(*sessions: tuple[str, int]) -> None:
    """Take away the notices of these *sessions*, each an alias and a pid of the server; by default all of this process.

    Never raises.
    """
    with _lock:
        paths = [_left.pop(session, None) for session in sessions or list(_left)]
    for path in paths:
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()


def post(directory: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Leave what is :data:`KEPT` of *facts* in *directory*; it is made for its owner alone if it is missing.

    Never raises: a report that cannot be left here is in the log all the same.
    """
    about = {"in_transaction": "open_for" in facts, "reported_at": time.time()}
    notice: dict[str, Any] = {key: facts.get(key) for key in KEPT} | about
    try:
        path = notice_files.write(directory, notice["server_pid"], notice)
    except OSError as error:
        logger.info("No notice could be left in %s: %s", directory, printable(str(error)))
    else:
        with _lock:
            _left[notice["alias"], notice["server_pid"]] = path


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the notices of processes that live, oldest first; those of others are taken away."""
    notices = []
    for found in notice_files.read(directory):
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            notices.append(_checked(found))
    return sorted(notices, key=lambda notice: float(notice["reported_at"]))


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a notice in *found*. Each may be anything, since the directory need not be ours alone."""
    notice = {key: found[key] for key in (*KEPT, "in_transaction", "reported_at", "process")}
    notice["reported_at"] = float(notice["reported_at"])
    texts = [notice[key] for key in KEPT if key != "server_pid"]
    if type(notice["server_pid"]) is not int or not all(isinstance(text, (str, type(None))) for text in texts):
        raise TypeError("a fact is not of its kind")
    return notice


def known(
    directory: str | os.PathLike[str],
    aliases: Collection[str],
    sessions: Iterable[Session],
    *,
    but: Collection[int] = (),
) -> dict[int, dict[str, Any]]:
    """Return what the notices in *directory* tell of *sessions* as they are now, by pid.

    :param aliases: those that lead to the database of the sessions; another server may have the same pids.
    :param but: processes that have been asked, and know better.
    """
    latest = {
        notice["server_pid"]: notice
        for notice in read(directory)
        if notice["alias"] in aliases and notice["process"] not in but
    }
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
