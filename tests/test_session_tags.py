"""TAG_SESSIONS: the name under which the server knows a session."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections
from django.test import override_settings

from conn_hygiene.sessions import connect_options
from tests.processes import in_fresh_process
from tests.test_guard_rails import ALIASES, forget_connections, options, service, settings, show

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True, databases=[*ALIASES, "small"])

__all__ = ["options", "service"]  # fixtures

HOST = socket.gethostname().partition(".")[0]
TAG = f"tests@{HOST}:{os.getpid()}"


def tag_of(alias: str) -> str:
    return TAG if alias == "default" else f"{TAG}/{alias}"


def seen_name(admin: psycopg.Connection, alias: str) -> str:
    """Return the name of this thread's session of an alias, as anybody on the server sees it."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        row = admin.execute(
            "SELECT application_name FROM pg_stat_activity WHERE pid = %s", cursor.fetchone()
        ).fetchone()
    assert row is not None
    name: str = row[0]
    return name


@pytest.mark.parametrize("alias", ALIASES)
def test_a_session_is_named_after_project_host_and_process(alias: str, admin: psycopg.Connection) -> None:
    with settings(TAG_SESSIONS=True):
        name = seen_name(admin, alias)
    assert name == tag_of(alias)
    assert connect_options.tag_in(name) == ("tests", HOST, os.getpid(), alias)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shop@web-1:42", ("shop", "web-1", 42, "default")),
        ("own name shop@web-1:42/reports", ("shop", "web-1", 42, "reports")),
        # As PgBouncer has it with application_name_add_host.
        ("shop@web-1:42/reports - 10.0.0.7:51958", ("shop", "web-1", 42, "reports")),
        ("shop@:42", ("shop", "", 42, "default")),
        ("", None),
        ("psql", None),
        ("shop@web-1", None),
        ("manage.py connections web-1:42", None),
        ("shop@web-1:42 and more", None),
    ],
)
def test_who_a_name_is_of_can_be_read(name: str, expected: tuple[Any, ...] | None) -> None:
    assert connect_options.tag_in(name) == expected


def test_an_alias_of_any_name_leaves_the_rest_readable() -> None:
    tag = connect_options.tag_in(connect_options.tag_of_process("größe of/all: " + "x" * 60))
    assert tag == ("tests", HOST, os.getpid(), "gr__e_of_all__xxxxxx")


def test_without_the_setting_the_name_is_the_projects_own_affair(admin: psycopg.Connection) -> None:
    with settings():
        assert seen_name(admin, "default") == ""


def test_the_name_comes_back_when_somebody_set_another() -> None:
    with settings(TAG_SESSIONS=True):
        with connections["default"].cursor() as cursor:
            cursor.execute("SET application_name = 'report'")
            session = connections["default"].connection
        connections["default"].close()
        assert session.execute("SHOW application_name").fetchone()[0] == TAG


def test_a_name_that_the_project_chose_is_kept_in_front(options: Callable[..., None]) -> None:
    options("unpooled", application_name="shop")
    with settings(TAG_SESSIONS=True):
        assert show("application_name", "unpooled") == f"shop {tag_of('unpooled')}"
        assert show("application_name", "default") == TAG
    assert show("application_name", "unpooled") == "shop"


def test_a_name_of_the_environment_is_kept_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGAPPNAME", "shop")
    with settings(TAG_SESSIONS=True):
        assert show("application_name", "unpooled") == f"shop {tag_of('unpooled')}"


def test_a_name_for_want_of_another_is_kept_in_front(options: Callable[..., None]) -> None:
    options("unpooled", fallback_application_name="shop")
    with settings(TAG_SESSIONS=True):
        assert show("application_name", "unpooled") == f"shop {tag_of('unpooled')}"


@pytest.mark.parametrize("own", ["x" * 80, "größe " * 20, "a b\n"], ids=["long", "beyond ASCII", "control"])
def test_the_server_keeps_the_name_whole_and_the_pid_readable(own: str, options: Callable[..., None]) -> None:
    options("unpooled", application_name=own)
    with settings(TAG_SESSIONS=True):
        name = show("application_name", "unpooled")
        assert name == connections["unpooled"].settings_dict["OPTIONS"]["application_name"]
    assert len(name.encode()) <= 63
    assert name.startswith(own[:2])
    assert name.endswith(f":{os.getpid()}/unpooled")


def test_the_project_is_the_package_of_the_urls_or_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with override_settings(ROOT_URLCONF="shop.urls"):
        assert connect_options.tag_of_process().startswith("shop@")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "config.settings.production")
    with override_settings(ROOT_URLCONF=None):
        assert connect_options.tag_of_process().startswith("config@")


def test_a_host_is_named_without_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "web-1.example.org")
    assert connect_options.tag_of_process() == f"tests@web-1:{os.getpid()}"


PODS = [f"mysite-production-web-7d4b9c6f5d-{end}" for end in ("x2x9z", "qq8rt", "mmw4k")]


@pytest.fixture
def of_host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that says what the first process of a container has its sessions be named."""

    def name(host: str, alias: str = "default", pid: int = 7, project: str = "shop") -> str:
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        monkeypatch.setattr(os, "getpid", lambda: pid)
        with override_settings(ROOT_URLCONF=project), settings(TAG_SESSIONS=True):
            return str(connections.settings[alias]["OPTIONS"]["application_name"])

    return name


@pytest.mark.parametrize("own", ["", "mysite-production-web", "x" * 63])
@pytest.mark.parametrize("hosts", [PODS, [f"{pod}-of-the-cluster-in-the-east" for pod in PODS]], ids=["pods", "long"])
def test_hosts_that_differ_only_somewhere_are_told_apart(
    hosts: list[str], own: str, of_host: Callable[..., str], options: Callable[..., None]
) -> None:
    """In containers all processes have the same few pids, so that the host alone says which one it is."""
    options("unpooled", application_name=own)
    names = [of_host(host, "unpooled") for host in hosts]
    tags = [connect_options.tag_in(name) for name in names]
    assert None not in tags
    assert len({tag.host for tag in tags if tag}) == len(hosts)
    assert {(tag.project, tag.pid, tag.alias) for tag in tags if tag} == {("shop", 7, "unpooled")}
    assert all(tag.host.endswith(host[-8:]) for tag, host in zip(tags, hosts, strict=True) if tag)
    assert max(map(len, names)) <= connect_options.NAME_LENGTH


def test_a_host_that_fits_is_whole(of_host: Callable[..., str]) -> None:
    assert of_host(PODS[0]) == f"shop@{PODS[0]}:7"


def test_a_host_has_one_name_whichever_alias_and_process(of_host: Callable[..., str]) -> None:
    host = "h" * 63
    names = [of_host(host, alias, pid) for alias in ("default", "unpooled") for pid in (7, 4_194_304)]
    assert len({tag.host for name in names if (tag := connect_options.tag_in(name))}) == 1


def test_a_long_project_is_the_one_that_the_doctor_looks_for(of_host: Callable[..., str]) -> None:
    project = "a_project_whose_name_is_longer_than_what_the_server_keeps_of_it"
    tag = connect_options.tag_in(of_host("h" * 63, project=project))
    with override_settings(ROOT_URLCONF=project):
        assert tag
        assert tag.project == connect_options.project_name() != project


def names_of_parent_and_child() -> list[Any]:
    import json

    import django

    django.setup()
    aliases = ("default", "unpooled")
    for alias in aliases:
        show("lock_timeout", alias)
    read, write = os.pipe()
    # The reaper and the pool have threads; whoever forks beside them has been warned.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        found = [show("application_name", alias) for alias in aliases]
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.waitpid(child, 0)
    of_child = json.loads(os.read(read, 10_000))
    os.close(read)
    os.close(write)
    of_parent = [show("application_name", alias) for alias in aliases]
    for alias in aliases:
        connections[alias].close()
    connections["default"].close_pool()
    return [of_parent, of_child, os.getpid(), child]


@pytest.mark.slow
def test_a_forked_child_has_a_name_of_its_own() -> None:
    of_parent, of_child, parent, child = in_fresh_process(
        names_of_parent_and_child, CONN_HYGIENE={"TAG_SESSIONS": True}
    )
    assert of_parent == [f"tests@{HOST}:{parent}", f"tests@{HOST}:{parent}/unpooled"]
    assert of_child == [f"tests@{HOST}:{child}", f"tests@{HOST}:{child}/unpooled"]


def test_the_setting_can_change_while_the_process_runs() -> None:
    forget_connections()
    with override_settings(CONN_HYGIENE={"TAG_SESSIONS": True}):
        assert show("application_name", "unpooled") == tag_of("unpooled")
        connections["unpooled"].close()
    assert show("application_name", "unpooled") == ""
