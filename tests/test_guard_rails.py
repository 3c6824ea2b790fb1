"""SESSION_TIMEOUTS: what the server has been told when a connection is there, and what it does about it."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings

import conn_hygiene
from conn_hygiene import conf, release_connections
from tests.processes import in_fresh_process, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

ALIASES = ["default", "unpooled", "persistent"]
TIMEOUTS = {
    "statement_timeout": 31,
    "lock_timeout": 1.5,
    "idle_in_transaction_session_timeout": 61,
    "idle_session_timeout": 3601,
}
ON_THE_SERVER = ["31s", "1500ms", "61s", "3601s"]
NEVER = ["0", "0", "0", "0"]

pytestmark = pytest.mark.django_db(transaction=True, databases=[*ALIASES, "small"])


def forget_connections() -> None:
    """Close what is open, pools included: what comes next is opened anew."""
    connections.close_all()
    for alias in list(DatabaseWrapper._connection_pools):
        connections[alias].close_pool()


@contextmanager
def settings(**values: Any) -> Iterator[None]:
    """Put *values* of CONN_HYGIENE in force, and leave no connection behind that was opened with them."""
    forget_connections()
    try:
        with override_settings(CONN_HYGIENE=values):
            yield
    finally:
        forget_connections()


@pytest.fixture
def options() -> Iterator[Callable[..., None]]:
    """Return a function that writes entries into an alias's OPTIONS for the time of the test, as a project would."""
    written = {alias: connections.settings[alias]["OPTIONS"] for alias in ALIASES}

    def write(alias: str, **entries: Any) -> None:
        connections.settings[alias]["OPTIONS"] = {**written[alias], **entries}

    yield write
    for alias in ALIASES:
        connections.settings[alias]["OPTIONS"] = written[alias]


def show(parameter: str, alias: str = "default") -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SHOW {parameter}")
        value: str = cursor.fetchone()[0]
        return value


def timeouts(alias: str) -> list[str]:
    return [show(name, alias) for name in conf.TIMEOUTS]


@pytest.mark.parametrize("alias", ALIASES)
def test_timeouts_are_set_when_a_connection_is_opened_and_not_without_the_setting(alias: str) -> None:
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        assert timeouts(alias) == ON_THE_SERVER
    assert timeouts(alias) == NEVER


@pytest.mark.parametrize("alias", ALIASES)
def test_setting_them_runs_no_statement(alias: str) -> None:
    statements: list[str] = []

    def note(execute: Any, sql: str, *arguments: Any) -> Any:
        statements.append(sql)
        return execute(sql, *arguments)

    with settings(SESSION_TIMEOUTS=TIMEOUTS, TAG_SESSIONS=True), connections[alias].execute_wrapper(note):
        assert show("statement_timeout", alias) == "31s"
    assert statements == ["SHOW statement_timeout"]


def test_they_outlive_what_a_user_of_the_session_set_and_its_cleaning() -> None:
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        with connections["default"].cursor() as cursor:
            cursor.execute("SET statement_timeout = '7s'")
            cursor.execute("SET lock_timeout = 0")
            session = connections["default"].connection
        # Pinned by now: it is cleaned with DISCARD ALL on its way back.
        connections["default"].close()
        found = [session.execute(f"SHOW {name}").fetchone()[0] for name in conf.TIMEOUTS]
    assert found == ON_THE_SERVER


@pytest.mark.parametrize("alias", ALIASES)
def test_they_outlive_a_discard_all_by_hand_and_a_release(alias: str) -> None:
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        with connections[alias].cursor() as cursor:
            cursor.execute("DISCARD ALL")
        assert timeouts(alias) == ON_THE_SERVER
        release_connections()
        assert timeouts(alias) == ON_THE_SERVER


def test_a_session_with_timeouts_is_as_good_as_any_to_release() -> None:
    with settings(SESSION_TIMEOUTS=TIMEOUTS, TAG_SESSIONS=True):
        show("lock_timeout")
        assert release_connections() == 1


def test_the_server_ends_a_statement_that_is_too_slow() -> None:
    with (
        settings(SESSION_TIMEOUTS={"statement_timeout": 0.2}),
        pytest.raises(OperationalError, match="statement timeout"),
        connections["unpooled"].cursor() as cursor,
    ):
        cursor.execute("SELECT pg_sleep(20)")


def test_the_server_ends_a_wait_for_a_lock(admin: psycopg.Connection) -> None:
    with settings(SESSION_TIMEOUTS={"lock_timeout": 0.05}), admin.transaction():
        admin.execute("LOCK TABLE testapp_item")
        with (
            pytest.raises(OperationalError, match="lock timeout"),
            transaction.atomic(),
            connections["default"].cursor() as cursor,
        ):
            cursor.execute("LOCK TABLE testapp_item")


def test_an_alias_has_timeouts_of_its_own_over_the_common_ones() -> None:
    own = {"statement_timeout": 600, "lock_timeout": 0, "idle_session_timeout": None}
    with settings(SESSION_TIMEOUTS={**TIMEOUTS, "unpooled": own}):
        assert timeouts("unpooled") == ["10min", "0", "61s", "0"]
        assert timeouts("default") == ON_THE_SERVER


def test_an_alias_has_timeouts_and_the_others_have_none() -> None:
    with settings(SESSION_TIMEOUTS={"unpooled": {"lock_timeout": 2}}):
        assert timeouts("unpooled") == ["0", "2s", "0", "0"]
        assert timeouts("default") == NEVER
        assert type(connections.settings["default"]["OPTIONS"]) is dict


def test_a_very_short_timeout_is_not_rounded_to_none() -> None:
    with settings(SESSION_TIMEOUTS={"lock_timeout": 0.0001}):
        assert show("lock_timeout") == "1ms"


# ##### Beside what the project says itself #####


@pytest.mark.parametrize("own", ["-c statement_timeout=9000 -c work_mem=5MB", "--statement-timeout=9s -cwork_mem=5MB"])
def test_options_of_the_project_are_kept_and_win(own: str, options: Callable[..., None]) -> None:
    options("unpooled", options=own)
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        assert timeouts("unpooled") == ["9s", *ON_THE_SERVER[1:]]
        assert show("work_mem", "unpooled") == "5MB"
    assert connections.settings["unpooled"]["OPTIONS"]["options"] == own


@pytest.mark.parametrize("own", ["", None])
def test_empty_options_of_the_project_are_none(own: str | None, options: Callable[..., None]) -> None:
    options("unpooled", options=own)
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        assert timeouts("unpooled") == ON_THE_SERVER


def test_options_of_the_environment_are_kept_and_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=9s -c work_mem=5MB")
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        assert timeouts("unpooled") == ["9s", *ON_THE_SERVER[1:]]
        assert show("work_mem", "unpooled") == "5MB"


@pytest.fixture
def service(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, options: Callable[..., None]) -> Callable[..., None]:
    """Return a function that puts the alias "unpooled" into a service, whose file has the given entries."""

    def write(alias: str = "unpooled", /, *, of_alias: dict[str, Any] | None = None, **entries: str) -> None:
        lines = [f"{key}={value}" for key, value in entries.items()]
        (tmp_path / "services").write_text("\n".join(["[shop]", *lines, ""]))
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        options(alias, service="shop", **(of_alias or {}))

    return write


def test_options_of_a_service_are_not_lost(service: Callable[..., None]) -> None:
    service(options="-c work_mem=5MB", application_name="shop")
    with settings(SESSION_TIMEOUTS=TIMEOUTS, TAG_SESSIONS=True):
        assert show("work_mem", "unpooled") == "5MB"
        assert show("application_name", "unpooled") == "shop"
        assert timeouts("unpooled") == NEVER


def test_a_service_whose_options_are_said_again_has_the_timeouts(service: Callable[..., None]) -> None:
    service(of_alias={"options": "-c work_mem=6MB"}, options="-c work_mem=5MB")
    with settings(SESSION_TIMEOUTS=TIMEOUTS, TAG_SESSIONS=True):
        assert show("work_mem", "unpooled") == "6MB"
        assert timeouts("unpooled") == ON_THE_SERVER
        assert show("application_name", "unpooled").startswith("tests@")


# ##### When #####


def test_they_are_for_connections_that_are_opened_later() -> None:
    forget_connections()
    for alias in ("default", "persistent"):
        show("lock_timeout", alias)
    with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": TIMEOUTS}):
        assert timeouts("default") == timeouts("persistent") == NEVER
        connections["persistent"].close()
        assert timeouts("persistent") == ON_THE_SERVER
        # A pool opens each connection as its first.
        assert timeouts("default") == NEVER
    forget_connections()


def test_uninstall_leaves_the_projects_own_dictionaries() -> None:
    before = {alias: (entry, entry["OPTIONS"]) for alias, entry in connections.settings.items()}
    contents = copy.deepcopy({alias: entry["OPTIONS"] for alias, entry in connections.settings.items()})
    try:
        conn_hygiene.install(SESSION_TIMEOUTS=TIMEOUTS, TAG_SESSIONS=True)
        extended = connections.settings["default"]["OPTIONS"]
        assert extended is not before["default"][1]
        conn_hygiene.install(SESSION_TIMEOUTS=TIMEOUTS)
        assert connections.settings["default"]["OPTIONS"]["options"] == extended["options"]
    finally:
        conn_hygiene.uninstall()
    for alias, (entry, options) in before.items():
        assert connections.settings[alias] is entry
        assert entry["OPTIONS"] is options
        assert options == contents[alias]
    conn_hygiene.install()


def test_other_vendors_are_left_alone() -> None:
    with settings(SESSION_TIMEOUTS={**TIMEOUTS, "sqlite": {"lock_timeout": 1}}, TAG_SESSIONS=True):
        assert connections.settings["sqlite"]["OPTIONS"] == {}


def test_a_copy_of_the_settings_is_extended_once(options: Callable[..., None]) -> None:
    options("unpooled", options="-c work_mem=5MB")
    with settings(SESSION_TIMEOUTS=TIMEOUTS):
        extended = connections.settings["unpooled"]["OPTIONS"]
        for clone in (copy.copy(extended), copy.deepcopy(extended), pickle.loads(pickle.dumps(extended))):
            assert clone == extended
            connections.settings["unpooled"]["OPTIONS"] = clone
            conn_hygiene.install()
            assert connections.settings["unpooled"]["OPTIONS"] == extended


def timeouts_in_a_thread_and_a_script() -> list[str]:
    import threading

    import django

    django.setup()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(show("statement_timeout")))
    thread.start()
    thread.join()
    for alias in ("default", "unpooled"):
        found.append(show("statement_timeout", alias))
        connections[alias].close()
    connections["default"].close_pool()
    return found


@pytest.mark.slow
def test_they_are_there_from_the_first_connection_of_a_process_and_in_every_thread() -> None:
    found = in_fresh_process(timeouts_in_a_thread_and_a_script, CONN_HYGIENE={"SESSION_TIMEOUTS": TIMEOUTS})
    assert found == ["31s", "31s", "31s"]


def test_a_wrong_timeout_is_told_and_none_is_set() -> None:
    script = """
from django.conf import settings
settings.CONN_HYGIENE = {"SESSION_TIMEOUTS": {"statement_timeout": "30s"}}
import django
django.setup()
from django.db import connections
print("options" in connections.settings["unpooled"]["OPTIONS"])
"""
    process = run("-c", script)
    assert process.stdout == "False\n"
    assert "CONN_HYGIENE['SESSION_TIMEOUTS'] cannot be" in process.stderr
