"""The CONN_HYGIENE setting: what is wrong with a value, and when a right one takes effect."""

from __future__ import annotations

import dataclasses
import decimal
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import override_settings

import conn_hygiene
from conn_hygiene import conf
from conn_hygiene.conf import Settings, problems
from tests.processes import ROOT, run
from tests.waiting import let_the_reaper_look

if TYPE_CHECKING:
    from collections.abc import Iterator

RIGHT: dict[str, list[Any]] = {
    "RELEASE": ["scoped", "always", "never"],
    "RELEASE_AFTER": [0, 0.0, 1, 0.001, conf.LONGEST],
    "UNPOOLED_RELEASE_AFTER": [0, 1.5, None, conf.LONGEST],
    "IDLE_IN_TRANSACTION_AFTER": [0.1, 5, None, conf.LONGEST],
    "IDLE_IN_TRANSACTION_ACTION": ["log", "terminate"],
    "HELD_TOO_LONG_AFTER": [0.1, 30, None, conf.LONGEST],
    "RECLAIM_DEAD_THREADS": [True, False],
    "DISCARD_AFTER_FORK": [True, False],
    "DOCS_URL": [None, "https://docs.example.com/conn_hygiene/", "file:///srv/docs"],
    "FULL_STACKS": [True, False],
    "CAPTURE_STACKS": [True, False],
    "REPORT_UNCLOSED_CURSORS": [True, False, None],
    "SESSION_TIMEOUTS": [
        {},
        {"statement_timeout": 30, "lock_timeout": 0.5, "idle_session_timeout": 0},
        {"idle_in_transaction_session_timeout": None, "small": {}},
        {"statement_timeout": 30, "small": {"statement_timeout": 2147483}, "unpooled": {"statement_timeout": None}},
    ],
    "TAG_SESSIONS": [True, False],
    "SERVER_TIMING": [True, False],
    "NOTICE_DIRECTORY": [None, "/run/shop/connections", Path("/run/shop/connections")],
    "STATUS_DIRECTORY": ["auto", None, "/run/shop/connections", Path("/run/shop/connections")],
    "AUDIT_SESSIONS": [True, False],
    "LOG_STATEMENTS": ["masked", "raw"],
    "ON_SET": ["follow", "pin"],
    "FOLLOWED_SETTINGS": [
        *("auto", [], (), ["app.tenant_id"], ("search_path", "Role"), {"app.a"}, frozenset({"_a.b$1.c"})),
        # Of any length: whether there are such settings, the server knows.
        ["work_mem"] * 100,
    ],
    "CLEAN_SESSIONS": ["auto", "seen", "always"],
    "REPLACE_BROKEN": [True, False],
}


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/run/shop"

    def __repr__(self) -> str:
        return "BytesPath()"


_NOT_SECONDS: list[Any] = [
    *(-1, -0.001, True, False, "1", math.nan, math.inf, -math.inf, [], decimal.Decimal(1)),
    # More than a thread can wait, more than a float can be.
    *(4e10, conf.LONGEST + 1, 10**400, -(10**400)),
]
WRONG: dict[str, list[Any]] = {
    "RELEASE": ["ALWAYS", "", None, True, 1, ["always"], {}],
    "RELEASE_AFTER": [*_NOT_SECONDS, None],
    "UNPOOLED_RELEASE_AFTER": _NOT_SECONDS,
    "IDLE_IN_TRANSACTION_AFTER": [*_NOT_SECONDS, 0, 0.0],
    "IDLE_IN_TRANSACTION_ACTION": ["Log", None, True, {"log"}],
    "HELD_TOO_LONG_AFTER": [*_NOT_SECONDS, 0],
    "RECLAIM_DEAD_THREADS": [1, 0, None, "yes"],
    "DISCARD_AFTER_FORK": [1, 0, None, "yes"],
    "DOCS_URL": ["", "docs/", 1, True, b"https://docs.example.com"],
    "FULL_STACKS": [1, 0, None, "yes"],
    "CAPTURE_STACKS": [1, 0, None, "yes"],
    "AUDIT_SESSIONS": [1, 0, None, "yes"],
    "LOG_STATEMENTS": ["Masked", "", None, True],
    "ON_SET": ["Follow", "PIN", "", None, True, False, ["pin"]],
    "FOLLOWED_SETTINGS": [
        *("app.tenant_id", "AUTO", "", None, True, 1, {}, {"app.tenant_id": "acme"}),
        *([""], [1], [None], [b"app.tenant_id"], [["app.tenant_id"]], ["app."], [".tenant"], ["app tenant"]),
        *(["app.tenant_id", "app..b"], ["1app.a"], ["app.tenant-id"], ['"app".tenant'], ["a; DROP TABLE b"]),
    ],
    "CLEAN_SESSIONS": ["Always", "never", "", None, True, False],
    "REPLACE_BROKEN": [1, 0, None, "yes"],
    "REPORT_UNCLOSED_CURSORS": [1, 0, "yes"],
    "SESSION_TIMEOUTS": [
        None,
        {"statement_timeout": 2147483.648},
        30,
        ["statement_timeout"],
        {"statment_timeout": 30},
        {"work_mem": 4},
        {1: 2},
        {"statement_timeout": {"default": 30}},
        {"default": {"small": {"statement_timeout": 30}}},
        {"default": {"statement_timeout": "30s"}},
        {"lock_timeout": 2147484},
        *({"statement_timeout": value} for value in _NOT_SECONDS),
    ],
    "TAG_SESSIONS": [1, 0, None, "yes"],
    "SERVER_TIMING": [1, 0, None, "yes"],
    "NOTICE_DIRECTORY": ["", "connections", Path("connections"), b"/run", BytesPath(), "/run/\0", Path("/\0"), True, 1],
    "STATUS_DIRECTORY": ["", "Auto", "connections", Path("auto"), b"auto", BytesPath(), "/run/\0", True, False, 1],
}


def pairs(values: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(key, value, id=f"{key}={repr(value)[:80]}:{type(value).__name__}")
        for key in values
        for value in values[key]
    ]


@pytest.fixture
def installed_with() -> Iterator[Any]:
    """Return `install`, and take away what it was given when the test is over."""
    yield conn_hygiene.install
    conn_hygiene.uninstall()
    conn_hygiene.install()


def test_every_key_is_tried() -> None:
    assert set(RIGHT) == set(WRONG) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("key", "value"), pairs(RIGHT))
def test_right_values_are_taken(key: str, value: Any) -> None:
    assert problems({key: value}) == []
    with override_settings(CONN_HYGIENE={key: value}):
        assert getattr(conf.current, key) == value
    assert conf.current == Settings()


@pytest.mark.parametrize(("key", "value"), pairs(WRONG))
def test_wrong_values_are_named_with_a_hint_and_the_default_stands_in(key: str, value: Any) -> None:
    [problem] = problems({key: value})
    assert problem.id == "conn_hygiene.E003"
    assert problem.message == f"CONN_HYGIENE[{key!r}] cannot be {value!r}."
    assert problem.hint.startswith("Use ")
    with override_settings(CONN_HYGIENE={key: value}):
        assert conf.current == Settings()


SECONDS = ["RELEASE_AFTER", "UNPOOLED_RELEASE_AFTER", "IDLE_IN_TRANSACTION_AFTER", "HELD_TOO_LONG_AFTER"]


@pytest.mark.parametrize("value", [conf.LONGEST + 1, 4e10, 10**400, math.inf], ids=["more", "float", "int", "inf"])
@pytest.mark.parametrize("key", SECONDS)
def test_what_is_too_long_is_told_the_longest(key: str, value: Any) -> None:
    [problem] = problems({key: value})
    never = "" if key == "RELEASE_AFTER" else ", or None for never"
    assert problem.hint == f"Use at most {conf.LONGEST} seconds, which is as long as Python can wait{never}."


@pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.parametrize("key", SECONDS)
def test_the_longest_can_be_waited_for(key: str, alias: str, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With nothing else to wait for, so that the reaper does."""
    no_limits = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    settings.CONN_HYGIENE = {"RELEASE": "always", **no_limits, key: conf.LONGEST}
    connections.close_all()
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        let_the_reaper_look()
        with transaction.atomic(using=alias):
            let_the_reaper_look()
    finally:
        connections.close_all()
    assert [record for record in caplog.records if record.name == "conn_hygiene.reaper"] == []


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("RELASE", "RELEASE"),
        ("release_after", "RELEASE_AFTER"),
        ("UNPOOLED_RELEASE", "UNPOOLED_RELEASE_AFTER"),
        ("DISCARD_AFTER_FORKS", "DISCARD_AFTER_FORK"),
        ("none", "ON_SET"),
        ("FOLLOW_SETTINGS", "FOLLOWED_SETTINGS"),
    ],
)
def test_an_unknown_key_comes_with_the_one_that_was_meant(key: str, suggested: str) -> None:
    [problem] = problems({key: 1})
    assert problem.id == "conn_hygiene.E002"
    assert problem.message == f"CONN_HYGIENE has an unknown key {key!r}."
    assert problem.hint == f"Did you mean {suggested!r}?"


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("IDLE_IN_TRANSACTION", "'IDLE_IN_TRANSACTION_AFTER' or 'IDLE_IN_TRANSACTION_ACTION'"),
        ("idle_in_transaction_timeout", "'IDLE_IN_TRANSACTION_AFTER' or 'IDLE_IN_TRANSACTION_ACTION'"),
        ("RELEASE_BETWEEN_QUERIES", "'RELEASE' or 'RELEASE_AFTER'"),
        # What begins in the same way, and what looks most like it.
        ("ON_RELEASE", "'ON_SET' or 'RELEASE'"),
        ("HELD", "'HELD_TOO_LONG_AFTER'"),
    ],
)
def test_where_several_may_have_been_meant_each_of_them_is_named(key: str, suggested: str) -> None:
    [problem] = problems({key: 1})
    assert problem.hint == f"Did you mean {suggested}?"


@pytest.mark.parametrize("key", ["XYZ", 7, None, ("X", "Y"), ""])
def test_a_key_that_resembles_none_comes_with_all_of_them(key: Any) -> None:
    [problem] = problems({key: 1})
    assert problem.id == "conn_hygiene.E002"
    assert all(known in problem.hint for known in RIGHT)


@pytest.mark.parametrize("value", [None, "always", ["RELEASE"], {"RELEASE"}, 1, Settings()])
def test_a_setting_that_is_no_dict_is_one_problem_and_the_defaults_stand_in(value: Any) -> None:
    [problem] = problems(value)
    assert problem.id == "conn_hygiene.E001"
    assert problem.message == f"CONN_HYGIENE is {type(value).__name__}, not a dict."
    with override_settings(CONN_HYGIENE=value):
        assert conf.current == Settings()


def test_every_problem_is_told() -> None:
    found = problems({"RELEASE": "on", "RELEASE_AFTER": "1", "HELD": 1})
    assert [problem.id for problem in found] == ["conn_hygiene.E003", "conn_hygiene.E003", "conn_hygiene.E002"]


def test_one_wrong_value_leaves_the_others_in_force() -> None:
    with override_settings(CONN_HYGIENE={"RELEASE": "on", "RELEASE_AFTER": 2, "HELD": 1}):
        assert conf.current == Settings(RELEASE_AFTER=2)


def test_override_settings_takes_effect_nests_and_is_undone() -> None:
    with override_settings(CONN_HYGIENE={"RELEASE": "always"}):
        with override_settings(CONN_HYGIENE={"RELEASE_AFTER": 1}):
            assert conf.current == Settings(RELEASE_AFTER=1)
        assert conf.current == Settings(RELEASE="always")
    assert conf.current == Settings()


def test_another_setting_that_is_overridden_changes_nothing() -> None:
    before = conf.current
    with override_settings(DEBUG=True):
        assert conf.current is before


def test_install_takes_settings_over_those_of_the_project(installed_with: Any) -> None:
    with override_settings(CONN_HYGIENE={"RELEASE": "always", "RELEASE_AFTER": 1}):
        installed_with(RELEASE_AFTER=2)
        assert conf.current == Settings(RELEASE="always", RELEASE_AFTER=2)
        installed_with(HELD_TOO_LONG_AFTER=None)
        assert conf.current == Settings(RELEASE="always", RELEASE_AFTER=2, HELD_TOO_LONG_AFTER=None)
    assert conf.current == Settings(RELEASE_AFTER=2, HELD_TOO_LONG_AFTER=None)


@pytest.mark.parametrize("wrong", [{"RELEASE": "on"}, {"RELASE": "always"}, {"RELEASE_AFTER": None}])
def test_install_with_a_wrong_setting_raises_and_changes_nothing(wrong: dict[str, Any], installed_with: Any) -> None:
    installed_with(RELEASE_AFTER=2)
    before = conf.current
    [problem] = problems(wrong)
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"{problem.message} {problem.hint}")):
        installed_with(HELD_TOO_LONG_AFTER=1, **wrong)
    assert conf.current is before
    # Nothing of it is remembered either.
    installed_with()
    assert conf.current == before


def test_install_with_a_wrong_setting_installs_nothing() -> None:
    conn_hygiene.uninstall()
    try:
        with pytest.raises(ImproperlyConfigured, match="RELEASE"):
            conn_hygiene.install(RELEASE="on")
        from conn_hygiene.reaper import reaper

        assert reaper.running is None
    finally:
        conn_hygiene.install()


def test_install_goes_over_a_wrong_setting_of_the_project(installed_with: Any) -> None:
    with override_settings(CONN_HYGIENE={"RELEASE": "on"}):
        installed_with(RELEASE_AFTER=2)
        assert conf.current == Settings(RELEASE_AFTER=2)


def test_values_in_force_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        conf.current.RELEASE = "always"  # type: ignore[misc]


def test_defaults_are_the_documented_ones() -> None:
    reference = (ROOT / "docs" / "reference" / "settings.rst").read_text()
    documented = dict(re.findall(r"\.\. setting:: (\w+)\n.*?:Default: ``([^`]+)``", reference, re.DOTALL))
    literal = {key: value.strip('"') for key, value in documented.items()}
    assert literal == {key: str(value) for key, value in dataclasses.asdict(Settings()).items()}


@pytest.mark.slow
def test_a_server_starts_with_a_wrong_setting_and_says_so() -> None:
    script = """
from django.conf import settings
settings.CONN_HYGIENE = {"RELEASE": "on", "RELEASE_AFTER": 2, "HELD": 1}
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
from conn_hygiene import conf
print(conf.current.RELEASE, conf.current.RELEASE_AFTER)
"""
    process = run("-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "scoped 2\n"
    assert process.stderr.splitlines() == [
        'CONN_HYGIENE[\'RELEASE\'] cannot be \'on\'. Use one of "scoped", "always", "never". It is ignored.',
        "CONN_HYGIENE has an unknown key 'HELD'. " + problems({"HELD": 1})[0].hint + " It is ignored.",
    ]
