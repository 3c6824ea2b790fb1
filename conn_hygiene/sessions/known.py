"""What is known of each alias's catalogue in this process, when to ask again, and what follows from it.

Nothing here is under a lock: each entry is replaced whole, and who reads one sees the old or the new. Forks inherit
what is known, which is as true for them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import conf
from conn_hygiene.masking import printable
from conn_hygiene.sessions import catalogue
from conn_hygiene.sessions.catalogue import Findings, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from conn_hygiene.sessions.login import Login

logger = logging.getLogger("conn_hygiene.sessions")

#: Seconds after which the catalogue is asked again: others migrate, too.
VALID_FOR = 300.0

#: Seconds after which it is asked again if it could not be read, or who was about to ask has not come back.
RETRY_AFTER = 30.0


@dataclasses.dataclass(frozen=True)
class _Known:
    #: What was found last; None if nothing ever was.
    findings: Findings | None
    #: When it is to be asked again, on the monotonic clock.
    due_at: float
    #: Whether *findings* still are what the catalogue says, as far as is known.
    is_current: bool


_known: dict[str, _Known] = {}

# When somebody has reserved the question. A mark is put with setdefault(), which one of several threads does.
_asking: dict[str, list[float]] = {}

# The aliases whose last connection was lost while it was asked.
_lost: set[str] = set()

# What was said last.
_said: dict[str, Findings] = {}

_NOTHING: frozenset[str] = frozenset()


# ##### Asking #####


def is_due(alias: str, now: float) -> bool:
    """Return whether the catalogue of *alias* should be asked at *now*, a time of the monotonic clock.

    Never, if the settings leave nothing to it.
    """
    if conf.current.FOLLOWED_SETTINGS != "auto" and conf.current.CLEAN_SESSIONS != "auto":
        return False
    known = _known.get(alias)
    return known is None or now >= known.due_at


def is_unknown(alias: str) -> bool:
    """Return whether something depends on the catalogue of *alias*, and nobody knows what that says now."""
    if conf.current.FOLLOWED_SETTINGS != "auto" and conf.current.CLEAN_SESSIONS != "auto":
        return False
    known = _known.get(alias)
    return known is None or not known.is_current


def begin_asking(alias: str, now: float, *, is_needed: bool = False) -> bool:
    """Reserve the question for the caller if it :func:`is_due`; return whether the caller is to :func:`ask` it.

    One caller at a time has it. The others go on with what was known, or clean. Who cannot if nothing is known, since
    the settings that follow are waited for, says that it *is_needed*, and asks besides. The reservation ends with
    :func:`ask`, or after :data:`RETRY_AFTER`.
    """
    if not is_due(alias, now):
        return False
    mark = [now]
    found = _asking.setdefault(alias, mark)
    if is_needed and is_unknown(alias):
        return True
    if found is not mark and now - found[0] >= RETRY_AFTER:
        # Whoever put it is no more.
        found[0] = now
        return True
    return found is mark


def ask(alias: str, connection: psycopg.Connection[Any], tell: Callable[..., None] | None = None) -> None:
    """Ask the server of *connection*, which is idle and of *alias*, and keep what it says.

    Takes one round trip, or a few where there are policies, and leaves the session as it was; see
    :func:`conn_hygiene.sessions.catalogue.read`. A connection that is lost meanwhile says nothing of the catalogue: the
    next one is asked, but if that is lost as well, it may be for the question. Raises only what a signal handler does.

    :param tell: is given the function that logs, and its arguments, where a handler must make nobody wait.
    """
    asked_at = time.monotonic()
    known = _known.get(alias)
    try:
        findings = catalogue.read(connection, known.findings if known else None)
        if findings is None and connection.closed and alias not in _lost:
            _lost.add(alias)
            return
        _lost.discard(alias)
        note(alias, findings, asked_at, tell)
    finally:
        _asking.pop(alias, None)


def note(alias: str, findings: Findings | None, now: float, tell: Callable[..., None] | None = None) -> None:
    """Keep *findings*, asked for at *now*; None if the catalogue could not be read. Logs them if they are new."""
    before = _known.get(alias)
    if findings is None:
        _known[alias] = _Known(before.findings if before else None, now + RETRY_AFTER, is_current=False)
        if before is None:
            (tell or _call)(_log_silence, alias)
        return
    _known[alias] = _Known(findings, now + VALID_FOR, is_current=True)
    if alias in _said:
        is_new = _said[alias] != findings
        _said[alias] = findings
    else:
        # Of several threads that have asked at once, one tells.
        is_new = _said.setdefault(alias, findings) is findings and findings != Findings()
    if is_new:
        (tell or _call)(_log, alias, findings)


def forget(alias: str | None = None) -> None:
    """Have the catalogue of *alias*, or of all, asked again: it has changed. Until then it is taken for unknown.

    What followed goes on following.
    """
    for name in [alias] if alias is not None else list(_known):
        known = _known.get(name)
        if known is not None:
            _known[name] = _Known(known.findings, float("-inf"), is_current=False)


def after_fork_in_child() -> None:
    """Take note that nobody is asking: who was does not exist in a forked child."""
    _asking.clear()


def reset() -> None:
    """Know nothing any more."""
    _known.clear()
    _asking.clear()
    _lost.clear()
    _said.clear()


def _call(report: Callable[..., None], *facts: Any) -> None:
    report(*facts)


def _log(alias: str, findings: Findings) -> None:
    follows = [printable(f"{name} ({reason})") for name, reason in findings.reasons.items()]
    named = (
        "settings that follow their request"
        if conf.current.FOLLOWED_SETTINGS == "auto"
        else "settings that would follow their request, were FOLLOWED_SETTINGS no list"
    )
    cleaned = (
        "would be cleaned at each return, were CLEAN_SESSIONS not 'seen'"
        if conf.current.CLEAN_SESSIONS == "seen"
        else "are to be cleaned at each return"
    )
    begun = f"; triggers on login leave in each: {printable(str(findings.login))}" if any(findings.login) else ""
    logger.info(
        "Connection %r: %s; %s%s.",
        alias,
        f"{named}: {shortened(follows)}" if follows else "no setting follows by itself",
        f"sessions {cleaned}, for {printable(shortened(findings.leaves_state))}"
        if findings.leaves_state
        else "no function or policy leaves anything in a session",
        begun,
        extra={
            "alias": alias,
            "followed": sorted(findings.followed),
            "leaves_state": list(findings.leaves_state),
        },
    )


def _log_silence(alias: str) -> None:
    followed = conf.current.FOLLOWED_SETTINGS == "auto"
    logger.warning(
        "Connection %r: the catalogue could not be read for what functions and policies do to sessions, which are "
        "cleaned at each return until it can be.%s",
        alias,
        " Until their requests end, connections that have executed anything are kept. A list of names as "
        "FOLLOWED_SETTINGS, be it empty, takes the catalogue's place."
        if followed
        else "",
        extra={"alias": alias},
    )


# ##### What follows from it #####


def known_of(alias: str) -> Findings | None:
    """Return what the catalogue of *alias* says; None if that is not known."""
    known = _known.get(alias)
    return known.findings if known is not None and known.is_current else None


def followed(alias: str) -> frozenset[str]:
    """Return the names of the settings that follow their owner on *alias*, whatever has set them; in lower case.

    Those of ``FOLLOWED_SETTINGS``, or those that the catalogue has; none while that was never read.
    """
    wanted = conf.current.FOLLOWED_SETTINGS
    if wanted == "auto":
        known = _known.get(alias)
        return _NOTHING if known is None or known.findings is None else known.findings.followed
    return _lowered(wanted)


# The list that was asked for last, and its names: read at each return, changed once.
_listed: tuple[Any, frozenset[str]] = (None, _NOTHING)


def _lowered(wanted: Any) -> frozenset[str]:
    global _listed  # noqa: PLW0603 - replaced whole
    listed = _listed
    if listed[0] is not wanted:
        listed = _listed = (wanted, frozenset(name.lower() for name in wanted))
    return listed[1]


def was_not_told(alias: str) -> bool:
    """Return whether the catalogue of *alias* was asked for the settings that follow, and has never answered.

    What functions have set would be cleaned away then, and its owner's next query run without.
    """
    if conf.current.FOLLOWED_SETTINGS != "auto":
        return False
    known = _known.get(alias)
    return known is not None and known.findings is None


def cleans_always(alias: str) -> bool:
    """Return whether sessions of *alias* are cleaned at each return, whatever was seen.

    That is what ``CLEAN_SESSIONS`` says. If it says ``"auto"``, they are, unless the catalogue is known to have nothing
    that leaves state behind.
    """
    wanted = conf.current.CLEAN_SESSIONS
    if wanted != "auto":
        return wanted == "always"
    known = _known.get(alias)
    return known is None or not known.is_current or known.findings is None or bool(known.findings.leaves_state)


# What leaves_nothing() has answered by alias, and from what: both are replaced whole.
_answered: dict[str, tuple[conf.Settings, _Known | None, bool]] = {}


def leaves_nothing(alias: str) -> bool:
    """Return whether a session of *alias* in which nobody was seen to leave anything needs nothing done to it.

    No setting follows whatever has set it, sessions are not cleaned at each return, and that is known.
    """
    # First of all: what is replaced meanwhile is looked up anew the next time.
    settings, known, answered = conf.current, _known.get(alias), _answered.get(alias)
    if answered is None or answered[0] is not settings or answered[1] is not known:
        kept = followed(alias) or cleans_always(alias) or was_not_told(alias) or is_unknown(alias)
        answered = _answered[alias] = (settings, known, not kept)
    return answered[2]


def indelible(alias: str) -> frozenset[str]:
    """Return what functions may leave in sessions of *alias* that no cleaning undoes, where all are cleaned."""
    findings = known_of(alias)
    return findings.indelible if findings is not None and cleans_always(alias) else _NOTHING


def of_login(alias: str) -> Login | None:
    """Return what triggers on ``login`` leave in each session of *alias*; None if that is not known."""
    findings = known_of(alias)
    return None if findings is None else findings.login


def state_matters(alias: str) -> bool:
    """Return whether what functions leave in sessions of *alias* is known, or said, to matter to their owners."""
    findings = known_of(alias)
    return (
        conf.current.CLEAN_SESSIONS == "always"
        or bool(followed(alias))
        or (conf.current.CLEAN_SESSIONS == "auto" and findings is not None and bool(findings.leaves_state))
    )
