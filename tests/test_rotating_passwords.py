"""Passwords that change while a pool is open: the backends of the how-to, with the sources of their tokens faked."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections
from psycopg import sql

import conn_hygiene
from conn_hygiene.pools import parameters
from tests.test_forks import remade
from tests.waiting import end_sessions, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])

KINDS = ["rds_iam", "entra", "vault"]
ROLE = "rotating"


class Source:
    """Where the password of the role comes from, in the place of AWS, Microsoft and Vault."""

    def __init__(self, admin: psycopg.Connection) -> None:
        self._admin = admin
        self.password = "first"
        self.asked: list[Any] = []

    def rotate(self, password: str) -> None:
        self._admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ROLE), password))
        self.password = password

    def _answer(self, *asked: Any) -> str:
        self.asked.append(asked)
        return self.password

    def modules(self) -> Iterator[tuple[str, dict[str, Any]]]:
        def generate_db_auth_token(DBHostname: str, Port: int, DBUsername: str) -> str:
            return self._answer(DBHostname, Port, DBUsername)

        def get_static_credentials(name: str) -> dict[str, Any]:
            return {"data": {"username": name, "password": self._answer(name)}}

        rds = SimpleNamespace(generate_db_auth_token=generate_db_auth_token)
        yield "boto3", {"client": {"rds": rds}.__getitem__}
        credential = SimpleNamespace(get_token=lambda scope: SimpleNamespace(token=self._answer(scope)))
        yield "azure", {}
        yield "azure.identity", {"DefaultAzureCredential": lambda: credential}
        database = SimpleNamespace(get_static_credentials=get_static_credentials)
        yield "hvac", {"Client": lambda: SimpleNamespace(secrets=SimpleNamespace(database=database))}


@pytest.fixture
def source(admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    source = Source(admin)
    for name, contents in source.modules():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'first'").format(sql.Identifier(ROLE)))
    yield source
    admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(ROLE)))
    for kind in KINDS:
        sys.modules.pop(f"example_project.rotating_passwords.{kind}.base", None)


@pytest.fixture
def use(source: Source) -> Iterator[Callable[..., ConnectionPool]]:
    """Return a function that has "unpooled" go by a backend of the how-to, with a pool, and returns that."""
    settings = connections["unpooled"].settings_dict
    # The socket of a server of the tests' own asks for no password.
    host = "127.0.0.1" if settings["HOST"].startswith("/") else settings["HOST"]
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host=host, port=settings["PORT"], user=ROLE, dbname=settings["NAME"], password="wrong")
    with ExitStack() as stack:

        def use(kind: str, **pool: Any) -> ConnectionPool:
            entry = {"ENGINE": f"example_project.rotating_passwords.{kind}", "HOST": host, "USER": ROLE, "PASSWORD": ""}
            options = {"pool": {"min_size": 1, "max_size": 1, "timeout": 5, **pool}}
            stack.enter_context(remade("unpooled", **entry, OPTIONS=options))
            wrapper: Any = connections["unpooled"]
            stack.callback(wrapper.close_pool)
            wrapper.ensure_connection()
            opened: ConnectionPool = wrapper.pool
            return opened

        yield use
        connections["unpooled"].close()


def pid() -> int:
    with connections["unpooled"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found: int = cursor.fetchone()[0]
        return found


ASKED: dict[str, Callable[[], Any]] = {
    "rds_iam": lambda: (
        connections["unpooled"].settings_dict["HOST"],
        int(connections["unpooled"].settings_dict["PORT"]),
        ROLE,
    ),
    "entra": lambda: ("https://ossrdbms-aad.database.windows.net/.default",),
    "vault": lambda: (ROLE,),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_connection_of_a_pool_has_the_new_password(
    kind: str,
    source: Source,
    use: Callable[..., ConnectionPool],
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parameters, "GOOD_FOR", 0.0)
    use(kind)
    first = pid()
    source.rotate("second")
    # A session that is open stays so.
    assert pid() == first
    connections["unpooled"].close()
    before = len(source.asked)
    end_sessions(admin, first)
    assert pid() != first
    assert source.asked[before:] == [ASKED[kind]()]


def test_without_an_answer_it_connects_as_before(
    source: Source,
    use: Callable[..., ConnectionPool],
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(parameters, "GOOD_FOR", 0.0)
    kwargs: Any = use("entra").kwargs
    first = pid()
    connections["unpooled"].close()
    with monkeypatch.context() as patch:
        # By the thread that asks: a backend may go by what only its request knows.
        patch.setattr(kwargs.backend, "get_connection_params", lambda: source.asked[-1]["nothing"], raising=False)
        end_sessions(admin, first)
        assert pid() != first
    assert {r.getMessage() for r in caplog.records if r.name == "conn_hygiene.pools"} == {
        "Connection parameters of 'unpooled' were not renewed."
    }


def test_a_pool_stays_one_of_its_database(source: Source, use: Callable[..., ConnectionPool]) -> None:
    kwargs: Any = use("entra").kwargs
    name = kwargs["dbname"]
    kwargs.backend.settings_dict = {**kwargs.backend.settings_dict, "NAME": "another"}
    kwargs._asked_at = 0.0
    assert {**kwargs}["dbname"] == name


def test_checkouts_do_not_ask(source: Source, use: Callable[..., ConnectionPool]) -> None:
    use("entra")
    pid()
    before = len(source.asked)
    for _ in range(3):
        connections["unpooled"].close()
        pid()
    assert len(source.asked) == before


def test_connections_that_are_opened_together_ask_once(source: Source, use: Callable[..., ConnectionPool]) -> None:
    pool = use("entra", min_size=4, max_size=4)
    wait_until(lambda: pool.get_stats()["pool_available"] == 3, "the pool is whole")
    # For the pool, and for the first connect(), which has no use for it.
    assert len(source.asked) == 2


def test_what_somebody_puts_there_wins(source: Source, use: Callable[..., ConnectionPool]) -> None:
    kwargs: Any = use("entra").kwargs
    kwargs["application_name"] = "mine"
    assert {**kwargs}["application_name"] == kwargs.copy()["application_name"] == "mine"
    del kwargs["application_name"]
    assert {**kwargs}.keys() == set(kwargs)
    assert len(kwargs) == len({**kwargs})


def test_a_pool_has_its_own_parameters_again(source: Source, use: Callable[..., ConnectionPool]) -> None:
    pool: Any = use("entra")
    assert type(pool.kwargs) is parameters.Parameters
    connections["unpooled"].close()
    conn_hygiene.uninstall()
    try:
        assert not isinstance(pool.kwargs, parameters.Parameters)
    finally:
        conn_hygiene.install()


def test_djangos_own_parameters_do_not_change() -> None:
    pool: Any = connections["default"].pool
    connections["default"].ensure_connection()
    assert type(pool.kwargs) is dict
