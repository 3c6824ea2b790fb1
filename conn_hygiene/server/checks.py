"""System checks: what is wrong with ``CONN_HYGIENE``, and what keeps the toolkit from helping.

Errors: E001 not a dict, E002 unknown key, E003 wrong value, E004 a pool with persistent connections, E005 a pool
without psycopg_pool, E006 a pool that cannot be made. Warnings: W001 releasing with ATOMIC_REQUESTS, W002 the
middleware is not outermost enough; of SESSION_TIMEOUTS, W003 the server is faster than the report, W004 a timeout that
is never reached, W005 waiting connections are ended, W006 a timeout that is given twice, W007 milliseconds, W008 an
alias that is none, W009 not set; W010 something is off, since Django, psycopg or another has not what it needs; W011 a
backend is left alone; W012 SESSION_TIMEOUTS behind what looks like a pooler; W013 STATUS_DIRECTORY or NOTICE_DIRECTORY
is of no use; W014 SERVER_TIMING without a middleware; W015 middleware that another one does the work of; W016 a key
of CONN_HYGIENE that another one keeps from its effect. For your information: I001 releasing without a pool closes
connections.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.db import connections

from conn_hygiene import conf, internals
from conn_hygiene.pools import backends, written
from conn_hygiene.reports import notice_files, status_directory
from conn_hygiene.server.own_middleware import WHOLE, is_releasing, origin
from conn_hygiene.sessions import connect_options
from conn_hygiene.using import exempting

# Middleware that do not query, and that have reasons of their own to be first.
_MAY_BE_OUTSIDE = ("django.middleware.security.SecurityMiddleware", "whitenoise.middleware.WhiteNoiseMiddleware")

# Where PgBouncer listens if nothing else is said (its listen_port).
_PGBOUNCERS_PORT = "6432"

AppConfigs = Sequence[AppConfig] | None


def register() -> None:
    """Register the checks with Django; registering twice is the same as once."""
    for check in (
        check_setting,
        check_status_directory,
        check_notice_directory,
        check_databases,
        check_session_timeouts,
        check_middleware,
        check_internals,
    ):
        # None asks a database, those about databases neither: they need no connection and no --database.
        checks.register(check, checks.Tags.compatibility)


def check_setting(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report unknown keys and wrong values in ``CONN_HYGIENE`` (E001 to E003), and what may not be meant.

    That is milliseconds (W007), and a key that another one keeps from its effect (W016).
    """
    values = getattr(settings, "CONN_HYGIENE", {})
    errors = [checks.Error(problem.message, hint=problem.hint, id=problem.id) for problem in conf.problems(values)]
    return [*errors, *_check_grace(), *_check_seconds(), *_check_effects()]


# Seconds from which on RELEASE_AFTER may have been meant as milliseconds. So long, hardly any request pauses.
_LONG_GRACE = 1


def _check_grace() -> Iterator[checks.CheckMessage]:
    seconds = conf.current.RELEASE_AFTER
    if seconds >= _LONG_GRACE and not conf.looks_like_milliseconds(seconds):
        yield checks.Warning(
            f"CONN_HYGIENE['RELEASE_AFTER'] is {seconds:g} seconds, in which an idle connection is nobody else's.",
            hint=f"All times in CONN_HYGIENE are seconds. If that was milliseconds, write {seconds / 1000:g}.",
            id="conn_hygiene.W007",
        )


def _check_effects() -> Iterator[checks.CheckMessage]:
    if conf.current.IDLE_IN_TRANSACTION_ACTION == "terminate" and conf.current.IDLE_IN_TRANSACTION_AFTER is None:
        yield checks.Warning(
            "CONN_HYGIENE['IDLE_IN_TRANSACTION_ACTION'] is 'terminate', and nothing is ended: "
            "IDLE_IN_TRANSACTION_AFTER is None.",
            hint="Say after how many seconds, or leave the action out.",
            id="conn_hygiene.W016",
        )
    if conf.current.FULL_STACKS and not conf.current.CAPTURE_STACKS:
        yield checks.Warning(
            "CONN_HYGIENE['FULL_STACKS'] is on, and no stack is kept of where anything began: CAPTURE_STACKS is False.",
            hint="Leave one of the two out.",
            id="conn_hygiene.W016",
        )


def _check_seconds() -> Iterator[checks.CheckMessage]:
    for key in conf.IN_SECONDS:
        seconds = getattr(conf.current, key)
        if seconds is not None and conf.looks_like_milliseconds(seconds):
            yield checks.Warning(
                f"CONN_HYGIENE[{key!r}] is {seconds:g} seconds, which is {seconds / 3600:.1f} hours.",
                hint=f"All times in CONN_HYGIENE are seconds. If that was milliseconds, write {seconds / 1000:g}.",
                id="conn_hygiene.W007",
            )


def check_status_directory(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report a ``STATUS_DIRECTORY`` that others have something of, so that nothing is put there (W013).

    One that the settings name may be the user's of the service, whoever it is that runs the checks.
    """
    directory = status_directory.mine()
    try:
        if directory is not None and not (
            conf.current.STATUS_DIRECTORY != "auto" and status_directory.is_of_another(os.lstat(directory))
        ):
            status_directory.look(directory)
    except status_directory.Refused as error:
        # Only what the toolkit has chosen is of no use to anybody else.
        first = "Remove it, or h" if conf.current.STATUS_DIRECTORY == "auto" else "H"
        return [
            checks.Warning(
                f"No process answers `connections status`: {error}",
                hint=f"{first}ave CONN_HYGIENE['STATUS_DIRECTORY'] be a directory of the user's own with mode 0700, or "
                "one that is not there yet, which is made; None turns the answers off.",
                id="conn_hygiene.W013",
            )
        ]
    except OSError:
        # It is made by the first that answers.
        pass
    return []


def check_notice_directory(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report a ``NOTICE_DIRECTORY`` in which nothing can be left (W013)."""
    directory = conf.current.NOTICE_DIRECTORY
    why = None if directory is None else notice_files.why_not(directory)
    if why is None:
        return []
    return [
        checks.Warning(
            f"No process leaves notices: {directory} {why}",
            hint="Have CONN_HYGIENE['NOTICE_DIRECTORY'] be a directory that the processes may write to, or one that is "
            "not there yet, which they make; None turns the notices off.",
            id="conn_hygiene.W013",
        )
    ]


def check_databases(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report pools that cannot work (E004 to E006), and aliases on which nothing can be released (W001, W011)."""
    messages: list[checks.CheckMessage] = []
    if not internals.CONNECT_OPTIONS.available:
        return messages
    for alias, options in connections.settings.items():
        if not connect_options.is_postgresql(alias):
            continue
        if connect_options.options_written(alias).get("pool"):
            messages += _check_pool(alias, options)
        reason = backends.why_left_alone(alias)
        if reason is not None:
            messages.append(_left_alone(alias, options["ENGINE"], reason))
        elif _releasing():
            if options.get("ATOMIC_REQUESTS"):
                messages.append(_atomic_requests(alias))
            elif not backends.has_pool(alias):
                messages.append(_no_pool(alias))
    return messages


def _check_pool(alias: str, options: dict[str, Any]) -> list[checks.CheckMessage]:
    messages: list[checks.CheckMessage] = []
    if options.get("CONN_MAX_AGE", 0) != 0:
        messages.append(
            checks.Error(
                f"DATABASES[{alias!r}] has a pool and CONN_MAX_AGE = {options['CONN_MAX_AGE']!r}.",
                hint="Remove CONN_MAX_AGE: with a pool, connections live in the pool and Django allows 0 only.",
                id="conn_hygiene.E004",
            )
        )
    if find_spec("psycopg_pool") is None:
        messages.append(
            checks.Error(
                f"DATABASES[{alias!r}] has a pool, but psycopg_pool is not installed.",
                hint='Install it with: pip install "psycopg[binary,pool]".',
                id="conn_hygiene.E005",
            )
        )
    for refusal in written.refusals(alias):
        messages.append(
            checks.Error(f"DATABASES[{alias!r}] has a pool {refusal.what}.", hint=refusal.hint, id="conn_hygiene.E006")
        )
    return messages


def _atomic_requests(alias: str) -> checks.CheckMessage:
    return checks.Warning(
        f"DATABASES[{alias!r}] has ATOMIC_REQUESTS, so each view of the site holds a connection of {alias!r} to its "
        "end, also one that never queries it.",
        hint="Django begins a transaction there around every view, and within one nothing can be released. Put "
        f"atomic() around what has to be one, or exempt views that are slow, or do without {alias!r}, with "
        f"{exempting(alias)}.",
        id="conn_hygiene.W001",
    )


def _left_alone(alias: str, engine: str, reason: str) -> checks.CheckMessage:
    return checks.Warning(
        f"DATABASES[{alias!r}] is left alone: {reason}.",
        hint="None of its connections is given back, cleaned, reported or reclaimed. In the place of "
        f"{engine}, use a backend that leaves closing to Django, with OPTIONS['pool']; or silence this.",
        id="conn_hygiene.W011",
    )


def _no_pool(alias: str) -> checks.CheckMessage:
    after = conf.current.UNPOOLED_RELEASE_AFTER
    return checks.Info(
        f"DATABASES[{alias!r}] has no pool, so {_without_a_pool(after)}.",
        hint='Turn on the pool, if requests wait between their queries: add "pool": {"min_size": 2, "max_size": 8} to '
        "OPTIONS. Forks, dead threads, idle transactions and broken connections are seen to without one.",
        id="conn_hygiene.I001",
    )


def _without_a_pool(after: float | None) -> str:
    """Return what releasing does without a pool where ``UNPOOLED_RELEASE_AFTER`` is *after*."""
    if after is None:
        return "none of its connections is released between queries (UNPOOLED_RELEASE_AFTER is None)"
    return (
        f"a connection is released only when a request has not used it for {after:g} s (UNPOOLED_RELEASE_AFTER), by "
        "closing it"
    )


def check_session_timeouts(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report timeouts of ``SESSION_TIMEOUTS`` that contradict each other, or something else (W003 to W009)."""
    messages: list[checks.CheckMessage] = []
    if not internals.CONNECT_OPTIONS.available:
        return messages
    for alias, own in conf.current.SESSION_TIMEOUTS.items():
        if isinstance(own, Mapping) and not (alias in connections.settings and connect_options.is_postgresql(alias)):
            messages.append(
                checks.Warning(
                    f"SESSION_TIMEOUTS has timeouts for {alias!r}, which is no PostgreSQL alias of DATABASES.",
                    hint="Name an alias as DATABASES does, or put the timeouts beside it, for all aliases.",
                    id="conn_hygiene.W008",
                )
            )
    for alias in connections.settings:
        timeouts = connect_options.timeouts_of(alias)
        if timeouts and connect_options.is_postgresql(alias):
            messages += _check_timeouts(alias, timeouts)
    return messages


def _check_timeouts(alias: str, timeouts: dict[str, float]) -> Iterator[checks.CheckMessage]:
    options = connect_options.own_options(connect_options.options_written(alias))
    if options is None:
        yield checks.Warning(
            f"SESSION_TIMEOUTS are not set on {alias!r}: its service may have options of its own, which would be lost.",
            hint='Write them into OPTIONS["options"] of the alias as well; "" if the service has none.',
            id="conn_hygiene.W009",
        )
        return
    yield from _check_pooler(alias, timeouts)
    for name in timeouts:
        if connect_options.sets(options, name):
            place = connect_options.place_of(alias, name)
            yield checks.Warning(
                f"{name} of {alias!r} is both in SESSION_TIMEOUTS and in {place}, which wins.",
                hint="Say it in one place: in SESSION_TIMEOUTS, or in OPTIONS or PGOPTIONS.",
                id="conn_hygiene.W006",
            )
    # 0 is no limit, which contradicts nothing.
    limits = {name: seconds for name, seconds in timeouts.items() if seconds}
    yield from _check_units(alias, limits)
    yield from _check_order(alias, limits)
    if "idle_session_timeout" in limits:
        yield from _check_waiting(alias, limits["idle_session_timeout"])


def _check_pooler(alias: str, timeouts: dict[str, float]) -> Iterator[checks.CheckMessage]:
    """Guess from the settings whether a pooler is in between, which would refuse libpq's options."""
    entry = connections.settings[alias]
    signs = {
        "DISABLE_SERVER_SIDE_CURSORS": entry.get("DISABLE_SERVER_SIDE_CURSORS"),
        f"port {_PGBOUNCERS_PORT}": str(entry.get("PORT", "")) == _PGBOUNCERS_PORT,
    }
    found = [sign for sign, is_there in signs.items() if is_there]
    if found:
        yield checks.Warning(
            f"SESSION_TIMEOUTS are set on {alias!r}, which looks like an alias behind a pooler ({', '.join(found)}).",
            hint="PgBouncer and RDS Proxy refuse them. Have the server set them for the role, ALTER ROLE ... SET "
            f'{next(iter(timeouts))} = ..., and set them to None for this alias. "manage.py connections doctor" asks '
            "whether there is a pooler; if there is none, silence this.",
            id="conn_hygiene.W012",
        )


def _check_units(alias: str, limits: dict[str, float]) -> Iterator[checks.CheckMessage]:
    for name, seconds in limits.items():
        if conf.looks_like_milliseconds(seconds):
            yield checks.Warning(
                f"{name} of {alias!r} is {seconds:g} seconds, which is {seconds / 3600:.1f} hours.",
                hint=f"SESSION_TIMEOUTS are seconds. If that was PostgreSQL's milliseconds, write {seconds / 1000:g}.",
                id="conn_hygiene.W007",
            )


def _check_order(alias: str, limits: dict[str, float]) -> Iterator[checks.CheckMessage]:
    report = conf.current.IDLE_IN_TRANSACTION_AFTER
    idle = limits.get("idle_in_transaction_session_timeout")
    if report is not None and idle is not None and idle <= report:
        yield checks.Warning(
            f"The server ends an idle transaction of {alias!r} after {idle:g} s, and IDLE_IN_TRANSACTION_AFTER is "
            f"{report:g} s, so nothing will say which request it was.",
            hint="Let the server be the later one: it is there for processes that cannot report any more.",
            id="conn_hygiene.W003",
        )
    lock, statement = limits.get("lock_timeout"), limits.get("statement_timeout")
    if lock is not None and statement is not None and lock >= statement:
        yield checks.Warning(
            f"lock_timeout of {alias!r} ({lock:g} s) is never reached: statement_timeout ({statement:g} s) ends the "
            "statement before.",
            hint="Make lock_timeout the shorter one, or leave it out.",
            id="conn_hygiene.W004",
        )


def _check_waiting(alias: str, timeout: float) -> Iterator[checks.CheckMessage]:
    longest = _waits(alias)
    if longest is None or longest > timeout:
        reason = "as long as it takes" if longest is None else f"{longest:g} s"
        yield checks.Warning(
            f"idle_session_timeout ends connections of {alias!r} that are idle for {timeout:g} s, and they may wait "
            f"for their next use {reason}.",
            hint="One that was ended is replaced at its next use, which then has to connect. Keep idle_session_timeout "
            "for people at a prompt, or let the pool have min_size 0 and a shorter max_idle.",
            id="conn_hygiene.W005",
        )


def _waits(alias: str) -> float | None:
    """Return for how many seconds a connection may wait for its next use: in a pool, by CONN_MAX_AGE; None for ever."""
    pool = connect_options.options_written(alias).get("pool")
    if pool:
        options = pool if isinstance(pool, Mapping) else {}
        # psycopg_pool closes what is idle for max_idle, down to min_size; these are its defaults.
        longest, for_ever = options.get("max_idle", 600), bool(options.get("min_size", 4))
    else:
        longest = connections.settings[alias].get("CONN_MAX_AGE", 0)
        for_ever = longest is None
    if for_ever:
        return None
    # With what is no number nobody connects.
    return longest if conf.is_number(longest) else 0.0


def check_middleware(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report middleware that queries outside of ours (W002), and of ours what is missing (W014) or too many (W015)."""
    messages: list[checks.CheckMessage] = []
    middleware = list(settings.MIDDLEWARE or ())
    messages += _no_middleware(middleware)
    messages += _too_many_middleware([path for path in middleware if origin(path) is not None])
    ours = next((path for path in middleware if is_releasing(path)), None)
    if ours is not None:
        before = middleware[: middleware.index(ours)]
        outside = [path for path in before if path not in _MAY_BE_OUTSIDE and origin(path) is None]
        if outside:
            messages.append(
                checks.Warning(
                    f"{ours} comes after {', '.join(outside)} in MIDDLEWARE, so it does not cover them.",
                    hint="Put it first, or right behind SecurityMiddleware: a query outside of it holds a connection "
                    "for the whole request.",
                    id="conn_hygiene.W002",
                )
            )
    return messages


def _no_middleware(middleware: list[str]) -> Iterator[checks.CheckMessage]:
    if conf.current.SERVER_TIMING and not any(origin(path) is not None for path in middleware):
        yield checks.Warning(
            "SERVER_TIMING is on, and no middleware of conn_hygiene is in MIDDLEWARE, so no response has the header.",
            hint=f"Put {WHOLE} first in MIDDLEWARE, or turn SERVER_TIMING off.",
            id="conn_hygiene.W014",
        )


def _too_many_middleware(ours: list[str]) -> Iterator[checks.CheckMessage]:
    origins = [origin(path) for path in ours]
    # The one that does everything leaves nothing to the others, nor any to itself.
    too_many = [
        path
        for place, path in enumerate(ours)
        if origins[place] in origins[:place] or (origins[place] != WHOLE and WHOLE in origins)
    ]
    if too_many:
        whole = ours[origins.index(WHOLE)] if WHOLE in origins else WHOLE
        yield checks.Warning(
            f"{', '.join(dict.fromkeys(too_many))} in MIDDLEWARE does what another one there does already.",
            hint=f"Have {whole} once, which does the work of all of them; or the other two, once each.",
            id="conn_hygiene.W015",
        )


def check_internals(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report what is turned off because upstream has renamed something that was never promised (W010)."""
    internals.look_once()
    return [
        checks.Warning(
            f"Not found: {', '.join(feature.missing)}. {feature.without}",
            hint="Use versions of Django, psycopg and psycopg_pool that this release of conn_hygiene was tested with, "
            "or a newer release of it.",
            id="conn_hygiene.W010",
        )
        for feature in internals.FEATURES
        if not feature.available
    ]


def _releasing() -> bool:
    if conf.current.RELEASE == "never":
        return False
    return conf.current.RELEASE == "always" or any(is_releasing(path) for path in settings.MIDDLEWARE or ())
