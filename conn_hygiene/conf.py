"""The ``CONN_HYGIENE`` setting: its keys, their defaults, and what makes a value wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, Literal, TypeGuard

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values in force in this process. Times are seconds; ``None`` means never where it is allowed."""

    RELEASE: str = "scoped"
    RELEASE_AFTER: float = 0.001
    UNPOOLED_RELEASE_AFTER: float | None = 1.0
    IDLE_IN_TRANSACTION_AFTER: float | None = 5.0
    IDLE_IN_TRANSACTION_ACTION: Literal["log", "terminate"] = "log"
    HELD_TOO_LONG_AFTER: float | None = 30.0
    RECLAIM_DEAD_THREADS: bool = True
    DISCARD_AFTER_FORK: bool = True
    CAPTURE_STACKS: bool = True
    FULL_STACKS: bool = False
    REPORT_UNCLOSED_CURSORS: bool | None = None
    SESSION_TIMEOUTS: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    TAG_SESSIONS: bool = False
    SERVER_TIMING: bool = False
    NOTICE_DIRECTORY: str | os.PathLike[str] | None = None
    DOCS_URL: str | None = None
    STATUS_DIRECTORY: str | os.PathLike[str] | None = "auto"
    ON_SET: Literal["follow", "pin"] = "follow"
    FOLLOWED_SETTINGS: Literal["auto"] | Sequence[str] = "auto"
    CLEAN_SESSIONS: Literal["auto", "seen", "always"] = "auto"
    AUDIT_SESSIONS: bool = False
    LOG_STATEMENTS: Literal["masked", "raw"] = "masked"
    REPLACE_BROKEN: bool = True


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the setting: which key, what is wrong, and what to write instead."""

    id: str
    message: str
    hint: str


def _choice(*values: str) -> Callable[[Any], str | None]:
    expected = "Use one of " + ", ".join(f'"{value}"' for value in values) + "."
    return lambda value: None if value in values else expected


#: The most seconds that a thread can wait. One less than Python says: what it is asked for is a difference of moments,
#: and these are rounded.
LONGEST = int(threading.TIMEOUT_MAX) - 1


def is_number(value: object) -> TypeGuard[float]:
    """Return whether *value* is an int or a float; a bool is an int to Python, but True seconds is a mistake."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(*, or_none: bool = False, positive: bool = False) -> Callable[[Any], str | None]:
    never = ", or None for never." if or_none else "."
    expected = "Use a number of seconds" + (" above 0" if positive else ", 0 or more") + never
    too_many = f"Use at most {LONGEST} seconds, which is as long as Python can wait{never}"

    def check(value: Any) -> str | None:
        if value is None:
            return None if or_none else expected
        if is_number(value) and value > LONGEST:
            return too_many
        # Compared, and not asked whether it is finite, for which an int may be too long.
        return None if is_number(value) and value >= 0 and (value or not positive) else expected

    return check


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "Use True or False."


def _boolean_or_none(value: Any) -> str | None:
    return None if value is None or isinstance(value, bool) else "Use True, False, or None for what DEBUG says."


def _directory(value: Any) -> str | None:
    return None if value is None or _is_path(value) else "Use the absolute path of a directory, or None for no notices."


def _is_path(value: Any) -> bool:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    # A relative one would be another for each process that runs somewhere else; of NUL, the system makes an error.
    return isinstance(path, str) and os.path.isabs(path) and "\0" not in path


def _url(value: Any) -> str | None:
    is_one = isinstance(value, str) and value.startswith(("https://", "http://", "file://"))
    return None if value is None or is_one else 'Use a URL, such as "https://docs.example.com/", or None for the files.'


def _status_directory(value: Any) -> str | None:
    if value == "auto" or _directory(value) is None:
        return None
    return 'Use "auto", the absolute path of a directory, or None for no answers.'


# A parameter's name, and a namespace in front of it for one of an extension or of the project's own.
_PARAMETER = re.compile(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)*", re.IGNORECASE)


def _followed(value: Any) -> str | None:
    if value == "auto":
        return None
    if isinstance(value, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) and _PARAMETER.fullmatch(name) for name in value
    ):
        return None
    return 'Use "auto", or a list of names of settings, as in ["app.tenant_id", "search_path"], or [] for none.'


# PostgreSQL's parameters that SESSION_TIMEOUTS may have, by their own names.
TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")

# They are milliseconds there, in 32 bits.
_LONGEST_TIMEOUT = (2**31 - 1) / 1000


def _session_timeouts(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return 'Use a dict, as in {"statement_timeout": 30}, or {} for none.'
    for name, timeout in value.items():
        # An alias, with a dict of its own that goes over the rest.
        of_alias = name not in TIMEOUTS and isinstance(timeout, Mapping)
        if not of_alias and _is_alias(name):
            example = 30 if timeout is None or _timeout(TIMEOUTS[0], timeout) else timeout
            return (
                f"Use a dict for {name!r}, which is an alias, as in {{{name!r}: {{'statement_timeout': {example}}}}}."
            )
        for parameter, seconds in timeout.items() if of_alias else [(name, timeout)]:
            if hint := _timeout(parameter, seconds):
                return hint
    return None


def _is_alias(name: Any) -> bool:
    return name not in TIMEOUTS and django_settings.configured and name in django_settings.DATABASES


def _timeout(parameter: Any, seconds: Any) -> str | None:
    if parameter not in TIMEOUTS:
        close = get_close_matches(parameter.lower(), TIMEOUTS, n=1, cutoff=0.8) if isinstance(parameter, str) else []
        meant = f"; did you mean {close[0]!r}?" if close else "."
        return f"Use {', '.join(TIMEOUTS)}, or an alias with a dict of them. {parameter!r} is not one of them{meant}"
    if seconds is None or (_seconds()(seconds) is None and seconds <= _LONGEST_TIMEOUT):
        return None
    return (
        f"Use seconds for {parameter}, up to {int(_LONGEST_TIMEOUT)}; 0 for no limit, None to leave it to the server."
    )


_VALIDATORS: Mapping[str, Callable[[Any], str | None]] = {
    "RELEASE": _choice("scoped", "always", "never"),
    "RELEASE_AFTER": _seconds(),
    "UNPOOLED_RELEASE_AFTER": _seconds(or_none=True),
    "IDLE_IN_TRANSACTION_AFTER": _seconds(or_none=True, positive=True),
    "IDLE_IN_TRANSACTION_ACTION": _choice("log", "terminate"),
    "HELD_TOO_LONG_AFTER": _seconds(or_none=True, positive=True),
    "RECLAIM_DEAD_THREADS": _boolean,
    "DISCARD_AFTER_FORK": _boolean,
    "CAPTURE_STACKS": _boolean,
    "FULL_STACKS": _boolean,
    "REPORT_UNCLOSED_CURSORS": _boolean_or_none,
    "SESSION_TIMEOUTS": _session_timeouts,
    "TAG_SESSIONS": _boolean,
    "SERVER_TIMING": _boolean,
    "NOTICE_DIRECTORY": _directory,
    "DOCS_URL": _url,
    "STATUS_DIRECTORY": _status_directory,
    "ON_SET": _choice("follow", "pin"),
    "FOLLOWED_SETTINGS": _followed,
    "CLEAN_SESSIONS": _choice("auto", "seen", "always"),
    "AUDIT_SESSIONS": _boolean,
    "LOG_STATEMENTS": _choice("masked", "raw"),
    "REPLACE_BROKEN": _boolean,
}


#: The keys that are a number of seconds.
IN_SECONDS = ("RELEASE_AFTER", "UNPOOLED_RELEASE_AFTER", "IDLE_IN_TRANSACTION_AFTER", "HELD_TOO_LONG_AFTER")


def looks_like_milliseconds(seconds: float) -> bool:
    """Return whether somebody may have meant milliseconds, of which PostgreSQL's configuration has thousands."""
    return seconds >= 1000 and seconds % 1000 == 0


def problems(values: Any) -> list[Problem]:
    """Return what is wrong with *values* as a ``CONN_HYGIENE`` setting; an empty list when nothing is."""
    if not isinstance(values, Mapping):
        message = f"CONN_HYGIENE is {type(values).__name__}, not a dict."
        return [Problem("conn_hygiene.E001", message, 'Write CONN_HYGIENE = {"RELEASE": "scoped"}, for example.')]
    found = []
    for key, value in values.items():
        validate = _VALIDATORS.get(key)
        if validate is None:
            found.append(Problem("conn_hygiene.E002", f"CONN_HYGIENE has an unknown key {key!r}.", _known_keys(key)))
        elif hint := validate(value):
            found.append(Problem("conn_hygiene.E003", f"CONN_HYGIENE[{key!r}] cannot be {value!r}.", hint))
    return found


def _known_keys(key: Any) -> str:
    # What is no string was not mistyped: it is something else.
    if isinstance(key, str) and (meant := _meant(key.upper())):
        return f"Did you mean {' or '.join(map(repr, meant))}?"
    return "The keys are " + ", ".join(_VALIDATORS) + "."


def _meant(key: str) -> list[str]:
    """Return the keys that somebody may have meant by *key*: one for a typing error, else up to three."""
    if mistyped := get_close_matches(key, _VALIDATORS, n=1, cutoff=0.9):
        return mistyped
    # Who remembers how a key begins has made up the rest, which may look most like that of another.
    shared = {known: _words_shared(key, known) for known in _VALIDATORS}
    most = max(shared.values())
    alike = [known for known, words in shared.items() if words == most > 0][:2]
    return list(dict.fromkeys([*alike, *get_close_matches(key, _VALIDATORS, n=1)]))


def _words_shared(one: str, other: str) -> int:
    """Return with how many words both begin."""
    pairs = zip(one.split("_"), other.split("_"), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def strict(values: Mapping[str, Any]) -> Settings:
    """Return *values* over the project's own settings; raise ImproperlyConfigured, naming what is wrong, if any."""
    if found := problems(values):
        raise ImproperlyConfigured(" ".join(f"{problem.message} {problem.hint}" for problem in found))
    return dataclasses.replace(lenient(), **values)


def lenient() -> Settings:
    """Return the project's ``CONN_HYGIENE``, with the default in place of each bad value.

    ``manage.py check`` reports the bad ones. Servers do not run the checks, and a site must not go down over a typing
    error in a setting of ours.
    """
    values = getattr(django_settings, "CONN_HYGIENE", {})
    if not isinstance(values, Mapping):
        return Settings()
    return Settings(**{key: value for key, value in values.items() if not problems({key: value})})


# Read on every query, replaced whole and never changed in place, so that a reader needs no lock.
current = Settings()

# What checkouts and transactions remember of where they began: a line, the whole stack, or nothing. In one look, since
# each of them asks.
captures: Literal["lines", "stacks"] | None = "lines"

# Whether cursors that nobody closes should be named with where they were opened. Kept beside the settings, since asking
# Django for DEBUG costs more than all else that is done when a cursor is opened.
names_cursors = False


def apply(settings: Settings) -> None:
    """Put *settings* in force for this process; to be repeated when DEBUG changes."""
    global current, captures, names_cursors  # noqa: PLW0603 - one process, one set of values
    current = settings
    captures = ("stacks" if settings.FULL_STACKS else "lines") if settings.CAPTURE_STACKS else None
    wanted = settings.REPORT_UNCLOSED_CURSORS
    by_default = _watched or (django_settings.configured and django_settings.DEBUG)
    names_cursors = by_default if wanted is None else wanted


# Whether somebody watches what tests leave behind.
_watched = False


def name_cursors(*, wanted: bool) -> None:
    """Have cursors that nobody closes told without DEBUG, too, unless the settings say that they are not."""
    global _watched  # noqa: PLW0603 - as above
    _watched = wanted
    apply(current)
