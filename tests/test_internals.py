"""What the package uses of others without their promise: all of it is listed, is there, and can be missed."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import io
import logging
import re
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import NotSupportedError, OperationalError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path

import conn_hygiene
from conn_hygiene import internals, query_timeout, release_between_queries, retry_transaction
from conn_hygiene.leases.wrapper import lease_of
from tests.test_forks import in_child
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conn_hygiene.internals import Feature, Name

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled"]),
    pytest.mark.urls(__name__),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

PACKAGE = Path(conn_hygiene.__file__).parent
names = pytest.mark.parametrize("name", internals.NAMES, ids=lambda name: f"{name}-{name.feature.key}")


def query(sql: str = "SELECT 1", alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def pid(alias: str = "default") -> Any:
    return query("SELECT pg_backend_pid()", alias)


# ##### All of them are there #####


def loaded(owner: internals.Owner) -> None:
    """Import the module of *owner*; skip the test if it is not installed."""
    module = owner.path
    while find_spec(module.partition(".")[0]) is not None:
        try:
            importlib.import_module(module)
            return
        except ModuleNotFoundError:
            module = module.rpartition(".")[0]
    pytest.skip(f"{owner.path} is not installed")


@names
def test_it_is_there(name: Name) -> None:
    if name.owner.unseen:
        # What is in C, and only inside of the server; a client of it in Python is not.
        spec = find_spec("uwsgidecorators")
        if spec is None or spec.origin is None:
            pytest.skip("uWSGI is not installed")
        assert name.name in Path(spec.origin).read_text("utf-8")
    elif name.owner.only_when_connected:
        query()
        assert hasattr(connections["default"].connection, name.name)
    else:
        loaded(name.owner)
        assert internals._has(internals._find(name.owner), name.name)


def test_the_lists_of_the_pool_are_those_that_leases_look_at(pool_of: Callable[[str], Any]) -> None:
    query()
    pool, lease = pool_of("default"), lease_of(connections["default"])
    assert lease is not None
    assert lease.spare is pool._pool
    assert lease.queue is pool._waiting
    # And they are what they are taken for.
    rest = [pool.getconn() for _ in range(pool.max_size - 1)]
    assert len(lease.spare) == 0
    waits = threading.Thread(target=lambda: pool.putconn(pool.getconn()))
    waits.start()
    wait_until(lambda: len(lease.queue) == 1, "somebody waits")
    for connection in rest:
        pool.putconn(connection)
    waits.join()
    assert len(lease.queue) == 0


# ##### All of them are listed #####


def trees() -> Iterator[ast.AST]:
    for file in PACKAGE.rglob("*.py"):
        if file.name != "internals.py":
            yield ast.parse(file.read_text("utf-8"))


def own_names() -> set[str]:
    """Return what the package itself calls so: functions, classes, variables and attributes."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
    return found


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-z]\w+", name, re.IGNORECASE) is not None and not name.startswith("_conn_hygiene")


def private_names_used(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield the names with an underscore that are asked of anything in *tree* and that are not *own*."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            # Of what is overridden, both have one.
            if node.attr not in own or is_super(node.value):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # For getattr(), attrgetter() and their like; not the names of one's own slots.
            yield from (part for part in node.value.split(".") if is_private(part) and part not in own)


LISTED = {name.name.partition("(")[0] for name in internals.NAMES}
DOCUMENTED = {name.rpartition(".")[2] for name in internals.DOCUMENTED}
# How the names of Prometheus' samples end.
SUFFIXES = {"_bucket", "_sum"}


def test_every_private_name_is_listed() -> None:
    own = own_names()
    used = {name for tree in trees() for name in private_names_used(tree, own)}
    assert used - LISTED - DOCUMENTED - SUFFIXES == set()
    assert {"_waiting", "_configure", "_connection_pools", "_thread_sharing_count", "_close", "_commit"} <= used


@pytest.mark.parametrize(
    "text",
    [
        "pool._sched",
        "getattr(pool, '_sched', None)",
        "attrgetter('pool._sched')",
        "super()._park()",
        "hasattr(p, '_sched')",
    ],
)
def test_one_that_is_not_would_be_found(text: str) -> None:
    found = set(private_names_used(ast.parse(text), own_names()))
    assert found - LISTED in ({"_sched"}, {"_park"})


# What is asked of a wrapper, a pool or libpq by its documented name, or of something else by the same name.
PROMISED = {
    *("alias", "cursor", "features", "vendor", "closed", "getconn", "putconn", "name", "open", "check"),
    *("copy", "on_commit", "info", "kwargs", "reset", "server_version", "flush", "get_stats", "timeout"),
    *("check_connection", "host", "hostaddr", "port", "user", "min_size", "max_size", "get_rollback"),
}


def test_every_name_of_a_wrapper_a_pool_or_libpq_is_listed_or_promised() -> None:
    surface = {*dir(internals._wrapper()), *dir(internals._pool()), *dir(psycopg.pq.PGconn)}
    used = {node.attr for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # Those with an underscore are for the test above.
    assert {name for name in used & surface if not name.startswith("_")} - LISTED == PROMISED


def test_nothing_is_listed_that_is_not_used() -> None:
    text = "\n".join(ast.unparse(tree) for tree in trees())
    # Known by the module that it is in, not by name.
    told = {"make_view_atomic"}
    assert {name for name in LISTED - told if not re.search(rf"\b{name}\b", text)} == set()


def test_a_feature_has_names_and_each_says_why() -> None:
    assert {name.feature for name in internals.NAMES} == set(internals.FEATURES)
    assert len({feature.key for feature in internals.FEATURES}) == len(internals.FEATURES)
    assert len(set(internals.NAMES)) == len(internals.NAMES)
    for name in internals.NAMES:
        assert name.why.endswith(".")
        assert name.without_it.endswith(".")


# ##### And can be missed #####


class Renamed:
    """Stands where a name was, and shows it to everybody but the package: to that, upstream has renamed it."""

    def __init__(self, name: str, original: Any) -> None:
        self.name = name
        self.original = original

    def _refuse_us(self) -> None:
        asked_by = sys._getframe(2).f_globals["__name__"]
        if asked_by.startswith("conn_hygiene"):
            raise AttributeError(f"upstream has renamed {self.name}", name=self.name)

    def __get__(self, instance: Any, owner: Any) -> Any:
        self._refuse_us()
        if instance is not None and self.name in getattr(instance, "__dict__", {}):
            return instance.__dict__[self.name]
        if self.original is None:
            raise AttributeError(self.name)
        return self.original.__get__(instance, owner) if hasattr(self.original, "__get__") else self.original

    def __set__(self, instance: Any, value: Any) -> None:
        self._refuse_us()
        if hasattr(self.original, "__set__"):
            self.original.__set__(instance, value)
        else:
            instance.__dict__[self.name] = value


def rename(patch: pytest.MonkeyPatch, name: Name) -> None:
    """Have upstream call *name* something else, from here on."""
    owner = name.owner
    attribute, _, argument = name.name.partition("(")
    thing = internals._find(owner)
    if argument:
        stand_in(patch, owner, type("Renamed", (), {"__getattr__": lambda self, name: lambda: None})())
        return
    if inspect.ismodule(thing):
        renamed = {attribute: Renamed(attribute, getattr(thing, attribute))}
        patch.setattr(thing, "__class__", type("Module", (type(thing),), renamed))
        return
    cls = thing if isinstance(thing, type) else type(thing)
    where = next((each for each in cls.__mro__ if attribute in vars(each)), cls)
    try:
        patch.setattr(where, attribute, Renamed(attribute, vars(where).get(attribute)), raising=False)
    except TypeError:
        # A class in C, which cannot be changed.
        rest = {each: None for each in dir(thing) if each != attribute and not each.startswith("__")}
        stand_in(patch, owner, type("Renamed", (), rest))


def stand_in(patch: pytest.MonkeyPatch, owner: internals.Owner, thing: Any) -> None:
    find = internals._find
    patch.setattr(internals, "_find", lambda asked: thing if asked is owner else find(asked))


@pytest.fixture
def without(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., None]]:
    """Return a function that installs the toolkit on an upstream without a name; it is as it was after the test."""
    with pytest.MonkeyPatch.context() as patch:

        def install(name: Name, **settings: Any) -> None:
            loaded(name.owner)
            connections.close_all()
            conn_hygiene.uninstall()
            rename(patch, name)
            conn_hygiene.install(**settings)

        yield install
        connections.close_all()
        conn_hygiene.uninstall()
    connections["default"].ensure_connection()
    internals.look_at(connections["default"].connection, pooled=True)
    connections.close_all()
    conn_hygiene.install()
    assert [feature for feature in internals.FEATURES if not feature.available] == []


def off() -> set[Feature]:
    return {feature for feature in internals.FEATURES if not feature.available}


def found_by_the_checks() -> list[str]:
    return [message.msg for message in run_checks() if message.id == "conn_hygiene.W010"]


def view(request: Any) -> HttpResponse:
    with transaction.atomic():
        query()
    transaction.set_autocommit(False)
    query()
    transaction.commit()
    transaction.set_autocommit(True)
    return HttpResponse(f"{query()} {query(alias='unpooled')}")


def streaming_view(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(str(query()) for _ in range(3))


urlpatterns = [path("", view), path("streaming", streaming_view)]


def is_of_a_closed_session(record: logging.LogRecord) -> bool:
    # So says a pool of each connection that it gets back closed.
    return record.name == "psycopg.pool" and record.getMessage().startswith("discarding closed connection: ")


@pytest.mark.slow
@names
def test_without_it_its_feature_is_off_which_is_said_once_and_requests_are_served(
    name: Name, without: Callable[..., None], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if name.owner.unseen:
        pytest.skip("nobody can look")
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
    with caplog.at_level(logging.WARNING, "conn_hygiene"):
        without(name)
        client = Client()
        for _ in range(2):
            assert client.get("/").content == b"1 1"
            assert client.get("/streaming").getvalue() == b"111"
        internals.look()
    features = {each.feature for each in internals.NAMES if str(each) == str(name)}
    assert off() == features
    said = [f"Not found: {name}. {feature.without}" for feature in internals.FEATURES if feature in features]
    records = [record for record in caplog.records if not is_of_a_closed_session(record)]
    if internals.CLEANING not in features:
        assert records == caplog.records
    assert [(record.name, record.levelname) for record in records] == [
        ("conn_hygiene.internals", "WARNING") for _ in said
    ]
    assert [record.getMessage() for record in records] == said
    assert found_by_the_checks() == said


# ##### What is done without it #####


def name_of(name: str, feature: Feature) -> Name:
    return next(each for each in internals.NAMES_OF[feature] if each.name == name)


@pytest.mark.parametrize("name", ["_thread_sharing_count", "run_on_commit", "_close", "_pool"])
def test_without_leases_wrappers_are_left_as_django_made_them(name: str, without: Callable[..., None]) -> None:
    without(name_of(name, internals.LEASES), RELEASE="always", RELEASE_AFTER=0)
    before = pid()
    assert lease_of(connections["default"]) is None
    assert type(connections["default"]) is DatabaseWrapper
    assert pid() == before
    assert connections["default"].connection is not None
    assert conn_hygiene.snapshot() == []


def test_what_only_a_connection_has_is_missed_at_the_first(
    without: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    without(name_of("_pool", internals.LEASES))
    # One that is in no pool has none in any case.
    assert query(alias="unpooled") == 1
    assert lease_of(connections["unpooled"]) is not None
    assert off() == set()
    assert query() == 1
    assert off() == {internals.LEASES}
    internals.look()
    assert off() == {internals.LEASES}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["health_check_done", "init_connection_state", "pool", "async_unsafe"])
def test_without_its_parts_a_checkout_is_a_whole_connect(name: str, without: Callable[..., None]) -> None:
    without(name_of(name, internals.CHECKOUTS))
    connected: list[Any] = []

    def connect(self: Any) -> None:
        connected.append(self.alias)
        plain(self)

    plain = DatabaseWrapper.connect
    with release_between_queries(), pytest.MonkeyPatch.context() as patch:
        query()
        wait_until_released()
        # What is taken for Django's own has been looked at.
        patch.setattr(DatabaseWrapper, "connect", connect)
        query()
        wait_until_released()
    assert connected == ["default"]


@pytest.mark.parametrize("name", ["_waiting", "_pool", "_is_owned"])
def test_without_sight_of_the_pool_idle_connections_go_back_all_the_same(
    name: str, without: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The same in Python, which can be changed.
    monkeypatch.setattr(threading, "RLock", threading._PyRLock)
    without(name_of(name, internals.TURNS), RELEASE="always")
    idle, again = threading.Barrier(5), threading.Event()
    answers: list[int] = []

    def work() -> None:
        # The pool has room for four: each gets its turn when somebody else's connection has gone back.
        answers.append(query())
        idle.wait(10)
        again.wait(10)
        answers.append(query())
        connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    again.set()
    for thread in threads:
        thread.join()
    assert answers == [1] * 10
    query()
    lease = lease_of(connections["default"])
    assert lease is not None
    assert (lease.queue, lease.spare) == ((), ())
    assert {record.name for record in caplog.records} == {"conn_hygiene.internals"}


class OwnPool:
    def putconn(self, connection: psycopg.Connection) -> None:
        connection.close()


def test_a_pool_of_somebodys_own_need_not_show_who_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get_new_connection(self: Any, params: dict[str, Any]) -> Any:
        connection = plain(self, params)
        connection._pool = OwnPool()
        return connection

    plain = DatabaseWrapper.get_new_connection
    monkeypatch.setattr(DatabaseWrapper, "get_new_connection", get_new_connection)
    connections["unpooled"].close()
    conn_hygiene.uninstall()
    conn_hygiene.install()
    try:
        with release_between_queries():
            for _ in range(2):
                assert query(alias="unpooled") == 1
                wait_until_released("unpooled")
        lease = lease_of(connections["unpooled"])
        assert lease is not None
        assert (lease.queue, lease.spare) == ((), ())
        assert internals.TURNS.missing == (f"{__name__}.OwnPool._waiting", f"{__name__}.OwnPool._pool")
        assert [record.name for record in caplog.records] == ["conn_hygiene.internals"]
    finally:
        connections["unpooled"].close()
        internals.TURNS.update(found=internals.TURNS.missing)


def test_without_configure_a_session_with_state_is_closed(
    without: Callable[..., None], alive: Callable[..., set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conn_hygiene")
    without(name_of("_configure", internals.CLEANING))
    clean = pid()
    connections.close_all()
    assert alive(clean) == {clean}
    soiled = pid()
    query("SELECT set_config('app.tenant', 'acme', false)")
    connections.close_all()
    wait_until(lambda: not alive(soiled), "the session is closed")
    # It was not tried, which takes a round trip.
    assert [record.name for record in caplog.records if record.name == "conn_hygiene.pools"] == []
    assert query("SELECT coalesce(current_setting('app.tenant', true), '')") == ""
    assert query("SHOW TimeZone") == "UTC"


def test_without_the_lock_what_is_set_stays_where_it_is(
    without: Callable[..., None], alive: Callable[..., set[int]]
) -> None:
    without(name_of("lock", internals.FOLLOWING), RELEASE="always", FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="seen")
    free = pid()
    wait_until_released()
    assert alive(free) == {free}
    mine = query("SELECT pg_backend_pid() FROM set_config('app.tenant', 'acme', false)")
    let_the_reaper_look()
    assert query("SELECT current_setting('app.tenant')") == "acme"
    assert pid() == mine
    connections.close_all()
    wait_until(lambda: not alive(mine), "the session is closed")


def test_without_the_lock_what_should_follow_keeps_its_connection(without: Callable[..., None]) -> None:
    without(name_of("lock", internals.FOLLOWING), RELEASE="always", FOLLOWED_SETTINGS=["app.tenant"])
    mine = pid()
    lease = lease_of(connections["default"])
    assert lease is not None
    wait_until(lambda: [*lease.pins] == ["a change of app.tenant"], "it is kept")
    assert pid() == mine


def test_without_the_lock_what_a_dead_thread_left_open_is_closed(
    without: Callable[..., None], alive: Callable[..., set[int]]
) -> None:
    without(name_of("lock", internals.ROLLBACKS))
    found: list[int] = []

    def work() -> None:
        transaction.atomic().__enter__()
        found.append(pid())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until(lambda: not holds("default"), "the connection is reclaimed")
    wait_until(lambda: not alive(*found), "the session is closed")
    assert query() == 1


def test_without_the_list_of_pools_a_child_never_shares_a_session(
    without: Callable[..., None], alive: Callable[..., set[int]]
) -> None:
    without(name_of("_connection_pools", internals.FORKED_POOLS))
    mine = pid()
    connections.close_all()

    def child() -> int | None:
        connections["default"].pool.timeout = 0.2
        try:
            return pid()
        except OperationalError:
            return None

    assert in_child(child) is None
    assert alive(mine) == {mine}
    assert query() == 1


def test_without_the_list_of_pools_they_can_be_closed_before_a_fork(without: Callable[..., None]) -> None:
    without(name_of("_connection_pools", internals.FORKED_POOLS))
    mine = pid()
    assert conn_hygiene.close_all_before_fork() > 1
    theirs = in_child(pid)
    assert theirs != mine
    assert pid() not in (mine, theirs)


def test_with_the_list_of_pools_djangos_way_to_close_one_is_not_needed(without: Callable[..., None]) -> None:
    without(name_of("close_pool", internals.CLOSED_POOLS))
    mine = pid()
    assert conn_hygiene.close_all_before_fork() > 1
    assert pid() != mine


def test_without_what_is_idle_in_a_pool_a_child_has_a_new_one(
    without: Callable[..., None], alive: Callable[..., set[int]]
) -> None:
    without(name_of("_pool", internals.IDLE_IN_POOLS), DISCARD_AFTER_FORK=False)
    mine = pid()
    connections.close_all()
    discarded, theirs = in_child(lambda: (conn_hygiene.close_all_after_fork(), pid()))
    assert discarded == 0
    assert theirs != mine
    assert alive(mine) == {mine}
    assert query() == 1


@pytest.mark.parametrize("name", ["settings", "load_backend", "Conninfo"])
def test_without_settings_of_connections_none_are_added(name: str, without: Callable[..., None]) -> None:
    without(name_of(name, internals.CONNECT_OPTIONS), SESSION_TIMEOUTS={"lock_timeout": 7}, TAG_SESSIONS=True)
    assert query("SHOW lock_timeout", "unpooled") == "0"
    assert query("SHOW application_name", "unpooled") == ""
    with release_between_queries(using="defautl"):
        assert query() == 1


def test_without_the_body_of_a_stream_it_holds_its_connection(without: Callable[..., None], settings: Any) -> None:
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
    without(name_of("_iterator", internals.STREAMING))
    response = Client().get("/streaming")
    assert next(response.streaming_content) == b"1"
    let_the_reaper_look()
    assert holds("default")
    response.close()


@pytest.mark.parametrize("name", ["atomic_blocks", "_from_testcase"])
def test_without_sight_of_transactions_none_is_repeated(name: str, without: Callable[..., None]) -> None:
    without(name_of(name, internals.RETRIES))
    attempts: list[bool] = []

    @retry_transaction
    def work(fail: bool) -> int:
        attempts.append(connections["default"].in_atomic_block)
        if fail:
            query("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
        return 1

    with pytest.raises(OperationalError, match="again"):
        work(True)
    assert work(False) == 1
    assert attempts == [True, True]


def test_without_execute_wrappers_there_is_no_limit(without: Callable[..., None]) -> None:
    without(name_of("execute_wrappers", internals.TIMEOUTS))
    with pytest.raises(NotSupportedError, match="execute_wrappers"), query_timeout(1):
        pytest.fail("it began")


def test_without_a_thread_of_its_own_a_task_does_with_the_process_s(without: Callable[..., None]) -> None:
    celery = pytest.importorskip("conn_hygiene.contrib.celery")
    without(name_of("context_to_thread_executor", internals.ASYNC_TASKS))

    async def work() -> str:
        return await sync_to_async(lambda: threading.current_thread().name)()

    with celery._task("task t"):
        assert not asyncio.run(work()).startswith("conn-hygiene-task")


def test_without_a_part_of_celerys_fixup_it_is_celerys(
    without: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    celery = pytest.importorskip("celery")
    ours = importlib.import_module("conn_hygiene.contrib.celery")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    without(name_of("_close_database", internals.CELERY))
    assert type(ours.fixup(celery.Celery(set_as_current=False, fixups=[]))) is ours.DjangoFixup


@pytest.mark.parametrize("name", ["get_connection_params", "create_connection", "finish"])
def test_without_a_way_to_ask_the_command_refuses(name: str, without: Callable[..., None]) -> None:
    without(name_of(name, internals.COMMAND))
    with pytest.raises(CommandError, match=f"This needs .*{name}, which is missing."):
        call_command("connections", "status")


def test_without_the_stream_below_tables_are_text(without: Callable[..., None]) -> None:
    without(name_of("_out", internals.TABLES))
    out = io.StringIO()
    call_command("connections", "status", "--force-color", stdout=out)
    assert "─" not in out.getvalue()
    assert out.getvalue() != ""
