"""The system checks: when each speaks, and what it says."""

from __future__ import annotations

import io
import math
import os
import re
from contextlib import ExitStack
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.checks import INFO, CheckMessage, Error, Warning, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings
from psycopg import Connection
from psycopg_pool import ConnectionPool

from conn_hygiene import conf
from conn_hygiene.middleware import ConnectionHygieneMiddleware
from conn_hygiene.server import checks
from tests.processes import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OURS = "conn_hygiene.middleware.ConnectionHygieneMiddleware"
RELEASE_ONLY = "conn_hygiene.middleware.ReleaseBetweenQueriesMiddleware"
REPORT_ONLY = "conn_hygiene.middleware.IdleInTransactionMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"
WHITENOISE = "whitenoise.middleware.WhiteNoiseMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"


class Made(ConnectionHygieneMiddleware):
    """A site's own."""


class Unscoped(ConnectionHygieneMiddleware):
    """One that gives nothing back."""

    scope = None


MADE, UNSCOPED = f"{__name__}.Made", f"{__name__}.Unscoped"


def found() -> list[CheckMessage]:
    """Return what `manage.py check` finds wrong, as far as it is ours."""
    return [message for message in run_checks() if re.match(r"conn_hygiene\.[EW]", message.id or "")]


@pytest.fixture
def database() -> Iterator[Callable[..., None]]:
    """Return a function that changes entries of an alias's settings for the time of the test."""
    original = dict(connections.settings)

    def change(alias: str = "unpooled", **entries: Any) -> None:
        connections.settings[alias] = {**connections.settings[alias], **entries}

    yield change
    connections.settings.update(original)


def test_nothing_is_wrong_with_the_settings_of_the_tests() -> None:
    assert found() == []
    call_command("check", stdout=io.StringIO())


def test_checks_are_registered_once_however_often() -> None:
    checks.register()
    checks.register()
    with override_settings(CONN_HYGIENE=1):
        assert len(found()) == 1


# ##### The setting #####


def test_a_setting_that_is_no_dict() -> None:
    with override_settings(CONN_HYGIENE=["RELEASE"]):
        assert found() == [
            Error(
                "CONN_HYGIENE is list, not a dict.",
                hint='Write CONN_HYGIENE = {"RELEASE": "scoped"}, for example.',
                id="conn_hygiene.E001",
            )
        ]


def test_an_unknown_key() -> None:
    with override_settings(CONN_HYGIENE={"RELEASE_AFTR": 1}):
        assert found() == [
            Error(
                "CONN_HYGIENE has an unknown key 'RELEASE_AFTR'.",
                hint="Did you mean 'RELEASE_AFTER'?",
                id="conn_hygiene.E002",
            )
        ]


def test_a_wrong_value() -> None:
    with override_settings(CONN_HYGIENE={"HELD_TOO_LONG_AFTER": "30"}):
        assert found() == [
            Error(
                "CONN_HYGIENE['HELD_TOO_LONG_AFTER'] cannot be '30'.",
                hint="Use a number of seconds above 0, or None for never.",
                id="conn_hygiene.E003",
            )
        ]


def test_the_command_fails_and_shows_every_error_with_its_hint() -> None:
    with (
        override_settings(CONN_HYGIENE={"RELEASE": "on", "RELASE": "always"}),
        pytest.raises(SystemCheckError) as caught,
    ):
        call_command("check")
    text = str(caught.value)
    assert "(conn_hygiene.E003) CONN_HYGIENE['RELEASE'] cannot be 'on'." in text
    assert 'HINT: Use one of "scoped", "always", "never".' in text
    assert "(conn_hygiene.E002) CONN_HYGIENE has an unknown key 'RELASE'." in text
    assert "HINT: Did you mean 'RELEASE'?" in text


def test_a_silenced_check_is_silent() -> None:
    with override_settings(CONN_HYGIENE=1, SILENCED_SYSTEM_CHECKS=["conn_hygiene.E001"]):
        call_command("check", stdout=io.StringIO())


# ##### Databases #####


@pytest.mark.parametrize("age", [None, 1, 600])
def test_a_pool_with_persistent_connections(database: Callable[..., None], age: int | None) -> None:
    database("default", CONN_MAX_AGE=age)
    assert found() == [
        Error(
            f"DATABASES['default'] has a pool and CONN_MAX_AGE = {age!r}.",
            hint="Remove CONN_MAX_AGE: with a pool, connections live in the pool and Django allows 0 only.",
            id="conn_hygiene.E004",
        )
    ]


@pytest.mark.parametrize("pool", [False, None, {}])
def test_persistent_connections_without_a_pool_are_fine(database: Callable[..., None], pool: Any) -> None:
    database("unpooled", CONN_MAX_AGE=600, OPTIONS={"pool": pool})
    assert found() == []


def test_a_pool_of_another_vendor_is_none_of_ours(database: Callable[..., None]) -> None:
    database("sqlite", CONN_MAX_AGE=600, ATOMIC_REQUESTS=True, OPTIONS={"pool": {"min": 1}})
    with override_settings(MIDDLEWARE=[OURS]):
        assert found() == []


def test_an_engine_that_cannot_be_loaded_is_left_to_django_to_report(database: Callable[..., None]) -> None:
    wrapper = connections["persistent"]
    database("persistent", ENGINE="no.such.backend", ATOMIC_REQUESTS=True, OPTIONS={"pool": True})
    del connections["persistent"]
    try:
        with override_settings(MIDDLEWARE=[OURS]):
            assert [each.msg for each in checks.check_databases() if "'persistent'" in each.msg] == []
    finally:
        connections["persistent"] = wrapper


@pytest.mark.slow
def test_a_pool_without_psycopg_pool() -> None:
    script = """
import sys
sys.modules["psycopg_pool"] = None  # which is how Python is told that there is no such module
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "check"])
"""
    process = run("-c", script)
    assert process.returncode == 1, process.stdout
    for alias in ("default", "small"):
        assert (
            f"?: (conn_hygiene.E005) DATABASES['{alias}'] has a pool, but psycopg_pool is not installed.\n"
            '\tHINT: Install it with: pip install "psycopg[binary,pool]".\n'
        ) in process.stderr
    assert "DATABASES['unpooled']" not in process.stderr


def refused_pool(what: str, hint: str) -> Error:
    return Error(f"DATABASES['unpooled'] has a pool {what}.", hint=hint, id="conn_hygiene.E006")


# What Django gives to the pool itself.
GIVEN = ["kwargs", "open", "configure", *(["check"] if django.VERSION < (6, 1) else [])]
TAKEN = ", ".join(name for name in signature(ConnectionPool).parameters if name not in GIVEN)
SIZES = "Sizes are numbers: min_size, which is 4 if it is left out, and max_size, which is no less."


@pytest.mark.parametrize(
    ("pool", "what", "hint"),
    [
        *(
            (
                pool,
                f"that is {pool!r}, neither True nor a dict",
                'Use True, or a dict of what psycopg_pool.ConnectionPool takes, as in {"min_size": 2, "max_size": 8}.',
            )
            for pool in (5, 1, "yes", ["min_size"])
        ),
        *(
            (
                {key: 5},
                f"with {key!r}, which psycopg_pool.ConnectionPool does not take",
                f"Did you mean {meant!r}? It takes {TAKEN}." if meant else f"It takes {TAKEN}.",
            )
            for key, meant in {
                "max": "max_size",
                "min": "min_size",
                "MAX_SIZE": "max_size",
                "max_liftime": "max_lifetime",
                "pre_ping": None,
                8: None,
            }.items()
        ),
        *(
            (
                {name: value},
                f"with {name!r}, which Django gives to psycopg_pool itself",
                "Remove it; CONN_HEALTH_CHECKS has Django give one."
                if name == "check"
                else 'Remove it. What each connection is opened with goes into OPTIONS, beside "pool".',
            )
            for name, value in {"kwargs": {}, "open": True, "configure": print, "check": print}.items()
            if name in GIVEN
        ),
        *(
            (
                pool,
                "that psycopg_pool refuses: max_size must be greater or equal than min_size",
                SIZES,
            )
            for pool in ({"min_size": 5, "max_size": 2}, {"max_size": 2})
        ),
        ({"min_size": -1}, "that psycopg_pool refuses: min_size cannot be negative", SIZES),
        (
            {"max_size": "8"},
            "that psycopg_pool refuses: '<' not supported between instances of 'str' and 'int'",
            SIZES,
        ),
        (
            {"num_workers": 0},
            "that psycopg_pool refuses: num_workers must be at least 1",
            "Give it a value that it takes, or leave it out.",
        ),
    ],
    ids=str,
)
def test_a_pool_that_cannot_be_made(database: Callable[..., None], pool: Any, what: str, hint: str) -> None:
    database(OPTIONS={"pool": pool})
    assert found() == [refused_pool(what, hint)]
    # Nor is there one for whoever connects.
    wrapper = DatabaseWrapper({**connections["unpooled"].settings_dict, "OPTIONS": {"pool": pool}}, "refused")
    with pytest.raises((TypeError, ValueError)):
        _ = wrapper.pool


@pytest.mark.parametrize(
    ("pool", "what", "hint"),
    [
        *(
            ({name: value}, f"whose {name} is {value!r}, no whole number", "Write a whole number, such as 2.")
            for name, value in [("min_size", 2.0), ("num_workers", 1.5)]
        ),
        *(
            ({name: value}, f"whose {name} is {value!r}, no number", "Write a number of seconds, such as 30.")
            for name, value in [
                *(("timeout", "30"), ("timeout", None), ("max_lifetime", "3600")),
                *(("max_idle", None), ("reconnect_timeout", "300")),
            ]
        ),
        ({"max_waiting": "9"}, "whose max_waiting is '9', no number", "Write a number, such as 100; 0 is no limit."),
    ],
    ids=str,
)
def test_a_pool_that_is_made_and_does_not_work(database: Callable[..., None], pool: Any, what: str, hint: str) -> None:
    database(OPTIONS={"pool": pool})
    assert found() == [refused_pool(what, hint)]


@pytest.mark.parametrize("options", [None, [], 5], ids=str)
def test_options_that_are_no_dict_are_left_to_django(database: Callable[..., None], options: Any) -> None:
    database(OPTIONS=options)
    with override_settings(MIDDLEWARE=[], CONN_HYGIENE={"SESSION_TIMEOUTS": {"lock_timeout": 3}, "TAG_SESSIONS": True}):
        assert found() == []
        assert connections.settings["unpooled"]["OPTIONS"] == options


def test_each_key_that_a_pool_does_not_take_is_named(database: Callable[..., None]) -> None:
    database(OPTIONS={"pool": {"max": 5, "min": 1, "max_size": 1}})
    assert [re.findall("with '(.*)',", message.msg) for message in found()] == [["max"], ["min"]]


@pytest.mark.parametrize(
    "pool",
    [
        True,
        {"min_size": 0, "max_size": 1},
        {"min_size": 2, "max_size": None},
        {"max_size": math.inf, "max_waiting": None, "max_lifetime": math.inf},
        {"reset": print, "reconnect_failed": print, "name": "shop"},
        {"conninfo": "", "connection_class": Connection, "timeout": 0.5, "max_waiting": 10, "num_workers": 1},
        MappingProxyType({"min_size": 2}),
    ],
    ids=["True", "none at first", "no largest", "without a limit", "functions", "others", "no dict"],
)
def test_a_pool_that_can_be_made(database: Callable[..., None], pool: Any) -> None:
    database(OPTIONS={"pool": pool})
    assert found() == []
    assert DatabaseWrapper({**connections["unpooled"].settings_dict, "OPTIONS": {"pool": pool}}, "made").pool.closed
    DatabaseWrapper._connection_pools.pop("made")


def test_a_pool_of_another_class_may_take_anything(
    database: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(ConnectionPool):
        def __init__(self, *, limit: int, **kwargs: Any) -> None:
            super().__init__(max_size=limit, **kwargs)

    database(OPTIONS={"pool": {"limit": 5}})
    monkeypatch.setattr("psycopg_pool.ConnectionPool", Own)
    assert found() == []


def test_a_pool_of_another_backend_is_none_of_djangos(database: Callable[..., None]) -> None:
    database(ENGINE="dj_db_conn_pool.backends.postgresql", OPTIONS={"pool": {"limit": 5}})
    assert [message.id for message in found() if message.id == "conn_hygiene.E006"] == []


ATOMIC_REQUESTS = Warning(
    "DATABASES['unpooled'] has ATOMIC_REQUESTS, so each view of the site holds a connection of 'unpooled' to its end, "
    "also one that never queries it.",
    hint="Django begins a transaction there around every view, and within one nothing can be released. Put atomic() "
    "around what has to be one, or exempt views that are slow, or do without 'unpooled', with "
    "@transaction.non_atomic_requests(using='unpooled').",
    id="conn_hygiene.W001",
)


@pytest.mark.parametrize("middleware", [OURS, RELEASE_ONLY, MADE])
def test_atomic_requests_while_releasing(database: Callable[..., None], middleware: str) -> None:
    database(ATOMIC_REQUESTS=True)
    with override_settings(MIDDLEWARE=[middleware]):
        assert found() == [ATOMIC_REQUESTS]


def test_atomic_requests_while_releasing_everywhere(database: Callable[..., None]) -> None:
    database(ATOMIC_REQUESTS=True)
    with override_settings(CONN_HYGIENE={"RELEASE": "always"}):
        assert found() == [ATOMIC_REQUESTS]


def test_atomic_requests_are_fine_where_nothing_is_released(database: Callable[..., None]) -> None:
    database(ATOMIC_REQUESTS=True)
    assert found() == []
    for middleware in (REPORT_ONLY, UNSCOPED):
        with override_settings(MIDDLEWARE=[middleware]):
            assert found() == []
    with override_settings(MIDDLEWARE=[OURS], CONN_HYGIENE={"RELEASE": "never"}):
        assert found() == []


NO_POOL = "DATABASES['unpooled'] has no pool, so "


def said_of_no_pool() -> list[str]:
    messages = [message for message in run_checks() if message.id == "conn_hygiene.I001"]
    assert {message.level for message in messages} <= {INFO}
    return [message.msg for message in messages if "'persistent'" not in message.msg]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            2.5,
            "a connection is released only when a request has not used it for 2.5 s (UNPOOLED_RELEASE_AFTER), by "
            "closing it.",
        ),
        (None, "none of its connections is released between queries (UNPOOLED_RELEASE_AFTER is None)."),
    ],
)
def test_without_a_pool_it_says_what_is_released(after: float | None, expected: str) -> None:
    with override_settings(MIDDLEWARE=[OURS], CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": after}):
        assert said_of_no_pool() == [NO_POOL + expected]


@pytest.mark.parametrize(
    "entry",
    [
        {"OPTIONS": {"pool": True}},
        {"ATOMIC_REQUESTS": True},
        # Left alone, of which W011 tells, or served: it has a pool in either case.
        {"ENGINE": "dj_db_conn_pool.backends.postgresql"},
        {"ENGINE": "django_db_geventpool.backends.postgresql_psycopg3"},
        {"ENGINE": "django.db.backends.sqlite3"},
    ],
)
def test_of_another_alias_it_does_not(database: Callable[..., None], entry: dict[str, Any]) -> None:
    database(**entry)
    with override_settings(MIDDLEWARE=[OURS]):
        assert said_of_no_pool() == []


def test_where_nothing_is_released_it_does_not() -> None:
    assert said_of_no_pool() == []


# ##### Session timeouts #####


@pytest.fixture
def timeouts(database: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Return a function that puts timeouts for the alias "unpooled" in force, and other keys of CONN_HYGIENE."""
    with ExitStack() as stack:

        def set_(values: dict[str, Any], **others: Any) -> None:
            stack.enter_context(override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"unpooled": values}, **others}))

        yield set_


def test_session_timeouts_as_recommended_are_fine() -> None:
    values = {"statement_timeout": 30, "lock_timeout": 5, "idle_in_transaction_session_timeout": 60}
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": values, "TAG_SESSIONS": True}):
        assert found() == []


@pytest.mark.parametrize(
    ("name", "value", "sign"),
    [("DISABLE_SERVER_SIDE_CURSORS", True, "DISABLE_SERVER_SIDE_CURSORS"), ("PORT", 6432, "port 6432")],
)
def test_session_timeouts_behind_what_looks_like_a_pooler(
    name: str, value: Any, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["unpooled"], name, value)
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"lock_timeout": 5}}):
        [message] = found()
    assert message.id == "conn_hygiene.W012"
    assert message.msg == (
        f"SESSION_TIMEOUTS are set on 'unpooled', which looks like an alias behind a pooler ({sign})."
    )
    assert "ALTER ROLE ... SET lock_timeout = ...," in str(message.hint)
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"lock_timeout": 5, "unpooled": {"lock_timeout": None}}}):
        assert found() == []


@pytest.mark.parametrize("idle", [5, 2.5])
def test_a_server_that_is_faster_than_the_report(timeouts: Callable[..., None], idle: float) -> None:
    timeouts({"idle_in_transaction_session_timeout": idle})
    assert found() == [
        Warning(
            f"The server ends an idle transaction of 'unpooled' after {idle} s, and IDLE_IN_TRANSACTION_AFTER is 5 s, "
            "so nothing will say which request it was.",
            hint="Let the server be the later one: it is there for processes that cannot report any more.",
            id="conn_hygiene.W003",
        )
    ]


@pytest.mark.parametrize(("idle", "report"), [(5.5, 5), (2, None), (0, 5)])
def test_a_report_that_comes_first_or_never(timeouts: Callable[..., None], idle: float, report: float | None) -> None:
    timeouts({"idle_in_transaction_session_timeout": idle}, IDLE_IN_TRANSACTION_AFTER=report)
    assert found() == []


@pytest.mark.parametrize("lock", [30, 31])
def test_a_lock_timeout_that_is_never_reached(timeouts: Callable[..., None], lock: float) -> None:
    timeouts({"statement_timeout": 30, "lock_timeout": lock})
    assert found() == [
        Warning(
            f"lock_timeout of 'unpooled' ({lock} s) is never reached: statement_timeout (30 s) ends the statement "
            "before.",
            hint="Make lock_timeout the shorter one, or leave it out.",
            id="conn_hygiene.W004",
        )
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"statement_timeout": 30, "lock_timeout": 29.9},
        {"statement_timeout": 0, "lock_timeout": 5},
        {"statement_timeout": 30, "lock_timeout": 0},
        {"lock_timeout": 5},
    ],
)
def test_a_lock_timeout_that_can_be_reached(timeouts: Callable[..., None], values: dict[str, float]) -> None:
    timeouts(values)
    assert found() == []


@pytest.mark.parametrize(
    ("entries", "waits"),
    [
        ({"CONN_MAX_AGE": 600}, "600 s"),
        ({"CONN_MAX_AGE": None}, "as long as it takes"),
        ({"OPTIONS": {"pool": True}}, "as long as it takes"),
        ({"OPTIONS": {"pool": {"min_size": 1, "max_idle": 10}}}, "as long as it takes"),
        ({"OPTIONS": {"pool": {"min_size": 0, "max_size": 4}}}, "600 s"),
    ],
)
def test_a_server_that_ends_waiting_connections(
    database: Callable[..., None], timeouts: Callable[..., None], entries: dict[str, Any], waits: str
) -> None:
    database(**entries)
    timeouts({"idle_session_timeout": 300})
    assert found() == [
        Warning(
            f"idle_session_timeout ends connections of 'unpooled' that are idle for 300 s, and they may wait for their "
            f"next use {waits}.",
            hint="One that was ended is replaced at its next use, which then has to connect. Keep idle_session_timeout "
            "for people at a prompt, or let the pool have min_size 0 and a shorter max_idle.",
            id="conn_hygiene.W005",
        )
    ]


@pytest.mark.parametrize(
    "entries",
    [
        {"CONN_MAX_AGE": 0},
        {"CONN_MAX_AGE": 300},
        {"OPTIONS": {"pool": {"min_size": 0, "max_size": 4, "max_idle": 60}}},
        # From the environment, as a text: Django cannot connect with it.
        {"CONN_MAX_AGE": "600"},
    ],
)
def test_connections_that_do_not_wait_too_long(
    database: Callable[..., None], timeouts: Callable[..., None], entries: dict[str, Any]
) -> None:
    database(**entries)
    timeouts({"idle_session_timeout": 300})
    assert found() == []


@pytest.mark.parametrize("idle", ["10m", None])
def test_a_pool_that_cannot_be_made_is_said_beside_the_timeouts(
    database: Callable[..., None], timeouts: Callable[..., None], idle: Any
) -> None:
    database(OPTIONS={"pool": {"min_size": 0, "max_size": 4, "max_idle": idle}})
    timeouts({"idle_session_timeout": 300})
    assert [(message.id, message.msg) for message in found()] == [
        ("conn_hygiene.E006", f"DATABASES['unpooled'] has a pool whose max_idle is {idle!r}, no number.")
    ]


@pytest.mark.parametrize(
    "options",
    ["-c statement_timeout=9s", "-c app.key=secret  -cSTATEMENT_TIMEOUT=9", "--statement-timeout=9000"],
)
def test_a_timeout_that_is_given_twice(
    database: Callable[..., None], timeouts: Callable[..., None], options: str
) -> None:
    database(OPTIONS={"options": options})
    timeouts({"statement_timeout": 30, "lock_timeout": 5})
    assert found() == [
        Warning(
            "statement_timeout of 'unpooled' is both in SESSION_TIMEOUTS and in OPTIONS[\"options\"], which wins.",
            hint="Say it in one place: in SESSION_TIMEOUTS, or in OPTIONS or PGOPTIONS.",
            id="conn_hygiene.W006",
        )
    ]


def test_a_timeout_that_the_environment_gives_as_well(
    timeouts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=9s")
    timeouts({"lock_timeout": 5})
    assert [(message.id, message.msg) for message in found()] == [
        ("conn_hygiene.W006", "lock_timeout of 'unpooled' is both in SESSION_TIMEOUTS and in PGOPTIONS, which wins.")
    ]


def test_other_options_are_not_a_timeout(database: Callable[..., None], timeouts: Callable[..., None]) -> None:
    database(OPTIONS={"options": "-c search_path=statement_timeout -c idle_session_timeout=5"})
    timeouts({"statement_timeout": 30})
    assert found() == []


def test_milliseconds_for_seconds(timeouts: Callable[..., None]) -> None:
    timeouts({"statement_timeout": 30_000, "lock_timeout": 3600})
    assert [message.id for message in found()] == ["conn_hygiene.W007"]
    assert found()[0] == Warning(
        "statement_timeout of 'unpooled' is 30000 seconds, which is 8.3 hours.",
        hint="SESSION_TIMEOUTS are seconds. If that was PostgreSQL's milliseconds, write 30.",
        id="conn_hygiene.W007",
    )


@pytest.mark.parametrize("key", conf.IN_SECONDS)
def test_milliseconds_for_seconds_of_any_key(key: str) -> None:
    with override_settings(CONN_HYGIENE={key: 30_000}):
        assert found() == [
            Warning(
                f"CONN_HYGIENE[{key!r}] is 30000 seconds, which is 8.3 hours.",
                hint="All times in CONN_HYGIENE are seconds. If that was milliseconds, write 30.",
                id="conn_hygiene.W007",
            )
        ]
    with override_settings(CONN_HYGIENE={key: 0.9 if key == "RELEASE_AFTER" else 3600}):
        assert found() == []


@pytest.mark.parametrize(("seconds", "meant"), [(1, "0.001"), (5, "0.005"), (500, "0.5"), (1500, "1.5")])
def test_milliseconds_for_a_grace_in_seconds(seconds: float, meant: str) -> None:
    with override_settings(CONN_HYGIENE={"RELEASE_AFTER": seconds}):
        assert found() == [
            Warning(
                f"CONN_HYGIENE['RELEASE_AFTER'] is {seconds} seconds, in which an idle connection is nobody else's.",
                hint=f"All times in CONN_HYGIENE are seconds. If that was milliseconds, write {meant}.",
                id="conn_hygiene.W007",
            )
        ]


def test_a_termination_that_never_comes() -> None:
    with override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_ACTION": "terminate", "IDLE_IN_TRANSACTION_AFTER": None}):
        assert found() == [
            Warning(
                "CONN_HYGIENE['IDLE_IN_TRANSACTION_ACTION'] is 'terminate', and nothing is ended: "
                "IDLE_IN_TRANSACTION_AFTER is None.",
                hint="Say after how many seconds, or leave the action out.",
                id="conn_hygiene.W016",
            )
        ]
    with override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_ACTION": "terminate"}):
        assert found() == []


def test_full_stacks_of_which_none_is_kept() -> None:
    with override_settings(CONN_HYGIENE={"CAPTURE_STACKS": False, "FULL_STACKS": True}):
        assert found() == [
            Warning(
                "CONN_HYGIENE['FULL_STACKS'] is on, and no stack is kept of where anything began: "
                "CAPTURE_STACKS is False.",
                hint="Leave one of the two out.",
                id="conn_hygiene.W016",
            )
        ]
    for one in ({"CAPTURE_STACKS": False}, {"FULL_STACKS": True}):
        with override_settings(CONN_HYGIENE=one):
            assert found() == []


def test_all_keys_in_seconds_are_looked_at() -> None:
    # As a bool is wrong for each of them, and 1 is right.
    taken = [key for key in vars(conf.Settings()) if not conf.problems({key: 1}) and conf.problems({key: True})]
    assert sorted(taken) == sorted(conf.IN_SECONDS)


def test_a_misspelt_timeout() -> None:
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"statment_timeout": 30}}):
        assert found() == [
            Error(
                "CONN_HYGIENE['SESSION_TIMEOUTS'] cannot be {'statment_timeout': 30}.",
                hint="Use statement_timeout, lock_timeout, idle_in_transaction_session_timeout, idle_session_timeout, "
                "or an alias with a dict of them. 'statment_timeout' is not one of them; did you mean "
                "'statement_timeout'?",
                id="conn_hygiene.E003",
            )
        ]
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"unpooled": {"work_mem": 4}}}):
        assert str(found()[0].hint).endswith(" or an alias with a dict of them. 'work_mem' is not one of them.")


@pytest.mark.parametrize(
    ("value", "example"), [(5, 5), (0.5, 0.5), ("5s", 30), (-1, 30), (None, 30), ([], 30)], ids=str
)
def test_an_alias_without_a_dict_of_its_timeouts(value: Any, example: float) -> None:
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"unpooled": value}}):
        assert found() == [
            Error(
                f"CONN_HYGIENE['SESSION_TIMEOUTS'] cannot be { ({'unpooled': value})!r}.",
                hint="Use a dict for 'unpooled', which is an alias, as in "
                f"{{'unpooled': {{'statement_timeout': {example}}}}}.",
                id="conn_hygiene.E003",
            )
        ]


def test_what_is_no_alias_of_databases_is_not_called_one() -> None:
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"nowhere": 5}}):
        assert str(found()[0].hint).endswith(" or an alias with a dict of them. 'nowhere' is not one of them.")


# ##### Directories #####


@pytest.mark.parametrize(
    ("name", "why"),
    [("file", "is no directory."), ("file/notices", "cannot be made: {}/file is no directory.")],
)
def test_a_notice_directory_that_is_none(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with override_settings(CONN_HYGIENE={"NOTICE_DIRECTORY": tmp_path / name}):
        assert found() == [
            Warning(
                f"No process leaves notices: {tmp_path / name} {why.format(tmp_path)}",
                hint="Have CONN_HYGIENE['NOTICE_DIRECTORY'] be a directory that the processes may write to, or one "
                "that is not there yet, which they make; None turns the notices off.",
                id="conn_hygiene.W013",
            )
        ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize(
    ("name", "why"), [("", "may not be written to by this user."), ("notices", "cannot be made by this user in {}.")]
)
def test_a_notice_directory_that_nobody_may_write_to(name: str, why: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with override_settings(CONN_HYGIENE={"NOTICE_DIRECTORY": tmp_path / name}):
        assert [message.msg for message in found()] == [
            f"No process leaves notices: {tmp_path / name} {why.format(tmp_path)}"
        ]
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["", "notices", "notices/of/shop"])
def test_a_notice_directory_that_is_there_or_can_be_made(name: str, tmp_path: Path) -> None:
    with override_settings(CONN_HYGIENE={"NOTICE_DIRECTORY": tmp_path / name}):
        assert found() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alias", ["replica", "sqlite"])
def test_timeouts_of_an_alias_that_is_none(alias: str) -> None:
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {alias: {"lock_timeout": 5}}}):
        assert found() == [
            Warning(
                f"SESSION_TIMEOUTS has timeouts for {alias!r}, which is no PostgreSQL alias of DATABASES.",
                hint="Name an alias as DATABASES does, or put the timeouts beside it, for all aliases.",
                id="conn_hygiene.W008",
            )
        ]


def test_timeouts_that_would_hide_the_options_of_a_service(
    database: Callable[..., None], timeouts: Callable[..., None]
) -> None:
    database(OPTIONS={"service": "shop"})
    timeouts({"lock_timeout": 5})
    assert found() == [
        Warning(
            "SESSION_TIMEOUTS are not set on 'unpooled': its service may have options of its own, which would be lost.",
            hint='Write them into OPTIONS["options"] of the alias as well; "" if the service has none.',
            id="conn_hygiene.W009",
        )
    ]
    database(OPTIONS={"service": "shop", "options": ""})
    assert found() == []


# ##### Middleware #####


@pytest.mark.parametrize("ours", [OURS, RELEASE_ONLY, MADE])
def test_middleware_that_is_not_covered(ours: str) -> None:
    with override_settings(MIDDLEWARE=[SECURITY, SESSIONS, COMMON, ours, "other.Middleware"]):
        assert found() == [
            Warning(
                f"{ours} comes after {SESSIONS}, {COMMON} in MIDDLEWARE, so it does not cover them.",
                hint="Put it first, or right behind SecurityMiddleware: a query outside of it holds a connection for "
                "the whole request.",
                id="conn_hygiene.W002",
            )
        ]


@pytest.mark.parametrize(
    "middleware",
    [
        [],
        [OURS],
        (OURS, SESSIONS),
        [SECURITY, WHITENOISE, OURS, SESSIONS],
        [REPORT_ONLY, RELEASE_ONLY, SESSIONS],
        [SECURITY, MADE, SESSIONS],
        # Release nothing, so they may be anywhere.
        [SESSIONS, REPORT_ONLY],
        [SESSIONS, UNSCOPED],
    ],
    ids=str,
)
def test_middleware_in_good_order(middleware: Any) -> None:
    with override_settings(MIDDLEWARE=middleware):
        assert found() == []


@pytest.mark.parametrize("middleware", [[], [SECURITY, "no.such.Middleware", "tests.no_such"]], ids=str)
def test_server_timing_that_nobody_adds(middleware: list[str]) -> None:
    with override_settings(CONN_HYGIENE={"SERVER_TIMING": True}, MIDDLEWARE=middleware):
        assert found() == [
            Warning(
                "SERVER_TIMING is on, and no middleware of conn_hygiene is in MIDDLEWARE, so no response has the "
                "header.",
                hint=f"Put {OURS} first in MIDDLEWARE, or turn SERVER_TIMING off.",
                id="conn_hygiene.W014",
            )
        ]


@pytest.mark.parametrize("middleware", [OURS, RELEASE_ONLY, REPORT_ONLY, MADE])
def test_server_timing_that_somebody_adds(middleware: str) -> None:
    with override_settings(CONN_HYGIENE={"SERVER_TIMING": True}, MIDDLEWARE=[SECURITY, middleware]):
        assert found() == []


@pytest.mark.parametrize(
    ("middleware", "named"),
    [
        ([OURS, OURS], OURS),
        ([OURS, SESSIONS, REPORT_ONLY], REPORT_ONLY),
        ([REPORT_ONLY, RELEASE_ONLY, OURS, RELEASE_ONLY], f"{REPORT_ONLY}, {RELEASE_ONLY}"),
        ([REPORT_ONLY, REPORT_ONLY], REPORT_ONLY),
        ([RELEASE_ONLY, MADE], RELEASE_ONLY),
        ([MADE, OURS], OURS),
    ],
    ids=str,
)
def test_middleware_that_adds_nothing(middleware: list[str], named: str) -> None:
    whole = MADE if MADE in middleware else OURS
    with override_settings(MIDDLEWARE=middleware):
        assert found() == [
            Warning(
                f"{named} in MIDDLEWARE does what another one there does already.",
                hint=f"Have {whole} once, which does the work of all of them; or the other two, once each.",
                id="conn_hygiene.W015",
            )
        ]


# ##### In a project #####


@pytest.mark.slow
def test_the_command_of_a_project_with_a_wrong_setting() -> None:
    script = """
from django.conf import settings
settings.CONN_HYGIENE = {"RELEASE": "on"}
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "check"])
"""
    process = run("-c", script)
    assert process.returncode == 1
    assert "(conn_hygiene.E003) CONN_HYGIENE['RELEASE'] cannot be 'on'." in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_checks_connect_to_nothing() -> None:
    """They run at each start of runserver, and where there is no database, as in a build of an image."""
    script = """
from django.conf import settings
for entry in settings.DATABASES.values():
    entry |= {"HOST": "", "PORT": "1", "OPTIONS": {**entry.get("OPTIONS", {}), "host": "/nonexistent"}}
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "check"])
"""
    process = run("-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "System check identified no issues (0 silenced).\n"
