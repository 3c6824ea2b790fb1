"""The scopes, around every kind of function and in every way of entering them."""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError, ProgrammingError, connection, connections, transaction
from django.db.utils import ConnectionDoesNotExist
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils.decorators import method_decorator
from django.views import View

import conn_hygiene
from conn_hygiene import (
    closing_connections,
    histograms,
    hold_connection,
    pool_stats,
    query_timeout,
    release_between_queries,
    release_connections,
    reset_connections,
    retry_transaction,
    session_settings,
    signals,
    stats,
)
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from pathlib import Path

    from django.db.backends.base.base import BaseDatabaseWrapper

POSTGRESQL = ["default", "small", "unpooled", "persistent"]
pytestmark = pytest.mark.django_db(transaction=True, databases=[*POSTGRESQL, "sqlite"])

Body = Callable[[], Any]


def query(alias: str = "default", sql: str = "SELECT 1") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None


def pid(alias: str = "default") -> int:
    return query(alias, "SELECT pg_backend_pid()")[0]


def assert_stays(alias: str = "default") -> None:
    let_the_reaper_look()
    assert holds(alias)


def query_and_wait() -> None:
    query()
    wait_until_released()


def query_and_stay() -> None:
    query()
    assert_stays()


# ##### Every kind of code that a scope can be around: each runs `body` in `scope` #####


def function(scope: Any, body: Body) -> None:
    scope(body)()


def method(scope: Any, body: Body) -> None:
    class Report:
        @scope
        def run(self, *, really: bool) -> bool:
            body()
            return really

    assert Report().run(really=True) is True


def class_method(scope: Any, body: Body) -> None:
    class Report:
        @classmethod
        @scope
        def run(cls) -> type:
            body()
            return cls

    assert Report.run() is Report


def static_method(scope: Any, body: Body) -> None:
    class Report:
        @staticmethod
        @scope
        def run() -> None:
            body()

    Report.run()


def partial(scope: Any, body: Body) -> None:
    scope(functools.partial(lambda _: body(), 1))()


def callable_object(scope: Any, body: Body) -> None:
    class Job:
        def __call__(self) -> None:
            body()

    scope(Job())()


def with_block(scope: Any, body: Body) -> None:
    with scope as entered:
        assert entered is scope
        body()


def generator_function(scope: Any, body: Body) -> None:
    @scope
    def rows() -> Iterator[int]:
        body()
        yield 1
        body()

    assert list(rows()) == [1]


def function_that_returns_a_generator(scope: Any, body: Body) -> None:
    def rows() -> Iterator[int]:
        body()
        yield 1

    @scope
    def start() -> Iterator[int]:
        return rows()

    assert list(start()) == [1]


def class_based_view(scope: Any, body: Body) -> None:
    @method_decorator(scope, name="dispatch")
    class Page(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            body()
            return HttpResponse("page")

    assert Page.as_view()(RequestFactory().get("/")).content == b"page"


def method_of_a_view(scope: Any, body: Body) -> None:
    class Page(View):
        @method_decorator(scope)
        def get(self, request: HttpRequest) -> HttpResponse:
            body()
            return HttpResponse("page")

    assert Page.as_view()(RequestFactory().get("/")).content == b"page"


def async_function(scope: Any, body: Body) -> None:
    @scope
    async def run() -> str:
        await sync_to_async(body)()
        return "done"

    assert iscoroutinefunction(run)
    assert async_to_sync(run)() == "done"


def marked_coroutine_function(scope: Any, body: Body) -> None:
    @scope
    @markcoroutinefunction
    def run() -> Any:
        return later()

    async def later() -> str:
        await sync_to_async(body)()
        return "done"

    assert iscoroutinefunction(run)
    assert async_to_sync(run)() == "done"


def function_that_returns_a_coroutine(scope: Any, body: Body) -> None:
    @scope
    def run() -> Any:
        return sync_to_async(body)()

    async def main() -> None:
        await run()

    async_to_sync(main)()


def async_with_block(scope: Any, body: Body) -> None:
    async def run() -> None:
        async with scope as entered:
            assert entered is scope
            await sync_to_async(body)()

    async_to_sync(run)()


def async_generator_function(scope: Any, body: Body) -> None:
    @scope
    async def rows() -> AsyncIterator[int]:
        await sync_to_async(body)()
        yield 1
        await sync_to_async(body)()

    async def main() -> list[int]:
        return [row async for row in rows()]

    assert async_to_sync(main)() == [1]


def async_class_based_view(scope: Any, body: Body) -> None:
    @method_decorator(scope, name="dispatch")
    class Page(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            await sync_to_async(body)()
            return HttpResponse("page")

    view = Page.as_view()
    assert iscoroutinefunction(view)
    assert async_to_sync(view)(RequestFactory().get("/")).content == b"page"


def method_of_an_async_view(scope: Any, body: Body) -> None:
    class Page(View):
        @method_decorator(scope)
        async def get(self, request: HttpRequest) -> HttpResponse:
            await sync_to_async(body)()
            return HttpResponse("page")

    view: Any = Page.as_view()
    assert async_to_sync(view)(RequestFactory().get("/")).content == b"page"


KINDS = [
    function,
    method,
    class_method,
    static_method,
    partial,
    callable_object,
    with_block,
    generator_function,
    function_that_returns_a_generator,
    class_based_view,
    method_of_a_view,
    async_function,
    marked_coroutine_function,
    function_that_returns_a_coroutine,
    async_with_block,
    async_generator_function,
    async_class_based_view,
    method_of_an_async_view,
]
every_kind = pytest.mark.parametrize("around", KINDS, ids=lambda kind: kind.__name__)


@every_kind
def test_release_gives_back_inside_and_no_longer_after_the_end(around: Callable[[Any, Body], None]) -> None:
    around(release_between_queries(), query_and_wait)
    query_and_stay()


@every_kind
def test_hold_keeps_inside_and_no_longer_after_the_end(around: Callable[[Any, Body], None]) -> None:
    with release_between_queries():
        around(hold_connection(), query_and_stay)
        wait_until_released()


@every_kind
def test_closing_closes_what_was_opened_inside(around: Callable[[Any, Body], None]) -> None:
    query("unpooled")
    around(closing_connections(), query_and_stay)
    assert not holds("default")
    assert_stays("unpooled")


@every_kind
def test_a_failure_inside_ends_the_scope_and_passes_through_untouched(around: Callable[[Any, Body], None]) -> None:
    failure = LookupError("the body's own")

    def body() -> None:
        query()
        raise failure

    for scope in (release_between_queries(), hold_connection(), closing_connections()):
        with pytest.raises(LookupError) as caught:
            around(scope, body)
        assert caught.value is failure
        if scope.name == "release_between_queries":
            wait_until_released()
        elif scope.name == "closing_connections":
            assert not holds("default")
        connections.close_all()
    query_and_stay()


@every_kind
def test_a_scope_object_serves_again_and_inside_itself(around: Callable[[Any, Body], None]) -> None:
    scope = release_between_queries()

    def twice() -> None:
        around(scope, query_and_wait)
        query_and_wait()

    around(scope, twice)
    query_and_stay()
    around(scope, query_and_wait)


# ##### Decorators #####


@pytest.mark.parametrize("decorator", [release_between_queries, hold_connection, closing_connections])
def test_decorators_go_without_parentheses_and_with(decorator: Any) -> None:
    def work(value: int, *, more: int = 0) -> int:
        """Do it."""
        return value + more

    work.csrf_exempt = True
    for decorated in (decorator(work), decorator()(work), decorator(using="default")(work)):
        assert decorated(1, more=2) == 3
        assert (decorated.__name__, decorated.__doc__, decorated.__wrapped__) == ("work", "Do it.", work)
        assert decorated.csrf_exempt is True
        assert inspect.signature(decorated) == inspect.signature(work)


@pytest.mark.parametrize("decorator", [release_between_queries, hold_connection, closing_connections])
def test_a_decorated_function_is_of_the_same_kind_as_before(decorator: Any) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> None: ...

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    assert inspect.isgeneratorfunction(decorator(generator))
    assert inspect.iscoroutinefunction(decorator(asynchronous))
    assert inspect.isasyncgenfunction(decorator(async_generator))


def mocked() -> Any:
    # It has whatever attribute it is asked for.
    return mock.Mock(return_value=7)


class Thing:
    @property
    def value(self) -> int:
        return 1


@pytest.mark.parametrize("decorator", [release_between_queries, hold_connection, closing_connections])
@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (Thing, r'use @method_decorator\(\w+, name="dispatch"\)'),
        (staticmethod(len), "below @staticmethod, next to the function"),
        (
            classmethod(query_and_wait),  # type: ignore[arg-type]
            "below @classmethod, next to the function",
        ),
        ("default", r"Aliases are given as \w+\(using=\.\.\.\)"),
        (["default"], r"Aliases are given as \w+\(using=\.\.\.\)"),
        (Thing.value, "decorates functions"),
        (None, "decorates functions, not None"),
        (7, "decorates functions, not 7"),
    ],
)
def test_what_cannot_be_decorated_is_refused_with_advice(decorator: Any, wrong: Any, advice: str) -> None:
    for decorate in (decorator, decorator()):
        with pytest.raises(TypeError, match=advice) as caught:
            decorate(wrong)
        assert decorator.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("decorate", "called"),
    [
        (release_between_queries, "release_between_queries"),
        (hold_connection(), "hold_connection"),
        (closing_connections(using="default"), "closing_connections(using=...)"),
        (session_settings({"app.x": 1}), "session_settings(...)"),
        (session_settings({"app.x": 1}, using="default"), "session_settings(..., using=...)"),
        (query_timeout(2), "query_timeout(...)"),
        (query_timeout(2, using=["default"]), "query_timeout(..., using=...)"),
        (retry_transaction, "retry_transaction"),
        (retry_transaction(attempts=2), "retry_transaction(...)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_who_decorates_a_view_class_is_told_what_to_write(decorate: Any, called: str) -> None:
    with pytest.raises(TypeError) as caught:
        decorate(Thing)
    name = called.partition("(")[0]
    assert str(caught.value) == (
        f"@{name} cannot decorate the class Thing. Decorate a method; for a view class, use "
        f'@method_decorator({called}, name="dispatch").'
    )


def test_aliases_of_a_decorator_that_takes_more_are_told_beside_the_rest() -> None:
    with pytest.raises(TypeError) as caught:
        query_timeout(2)("default")  # type: ignore[type-var]
    assert str(caught.value) == (
        "@query_timeout decorates functions, not 'default'. Aliases are given as query_timeout(..., using=...)."
    )


def job() -> int:
    return 7


def celery_proxy() -> Any:
    return pytest.importorskip("celery").Celery(set_as_current=False).task(job)


def celery_task() -> Any:
    return celery_proxy()._get_current_object()


def dramatiq_actor() -> Any:
    brokers = pytest.importorskip("dramatiq.brokers.stub")
    return pytest.importorskip("dramatiq").actor(job, broker=brokers.StubBroker())


def huey_task() -> Any:
    return pytest.importorskip("huey").MemoryHuey().task()(job)


def django_task() -> Any:
    return pytest.importorskip("django.tasks").task(job)


@pytest.mark.parametrize("decorate", [closing_connections, query_timeout(2), retry_transaction], ids=["", "2", "3"])
@pytest.mark.parametrize("make", [celery_proxy, celery_task, dramatiq_actor, huey_task, django_task])
def test_a_task_of_a_queue_is_refused(make: Any, decorate: Any) -> None:
    task = make()
    with pytest.raises(TypeError, match=r"^Put @\w+ below the queue's decorator, next to the function: .*\.$"):
        decorate(task)


class Courier:
    """What can be called and has a method that a queue's tasks have as well."""

    def __call__(self) -> int:
        return 7

    def send(self) -> None:
        """Send."""


def rq_job() -> Any:
    # As RQ's own decorator does with it: what a worker runs is found by the function's name.
    def with_delay() -> int:
        return job()

    decorated: Any = with_delay
    decorated.delay = decorated.apply_async = job
    return decorated


def partial_job() -> Any:
    return functools.partial(job)


@pytest.mark.parametrize("make", [Courier, partial_job, rq_job, mocked], ids=lambda make: make.__name__)
def test_what_else_can_be_called_is_decorated(make: Any) -> None:
    assert closing_connections(make())() == 7


TAKE_USING = [release_between_queries, hold_connection, closing_connections, release_connections, reset_connections]


@pytest.mark.parametrize("name", TAKE_USING, ids=lambda function: function.__name__)
def test_an_unknown_alias_is_refused_at_once_with_those_that_there_are(name: Any) -> None:
    for using in ("replica", ["default", "replica"], ("replica",), {"replica"}):
        with pytest.raises(ConnectionDoesNotExist, match=r"no connection 'replica'.*'default', 'small'") as caught:
            name(using=using)
        assert name.__name__ in str(caught.value)


@pytest.mark.parametrize("name", TAKE_USING, ids=lambda function: function.__name__)
def test_what_is_no_alias_is_refused_at_once(name: Any) -> None:
    for using in (7, b"default", len, [b"default"], [None], ["default", 7], connections["default"], object()):
        with pytest.raises(TypeError, match="takes an alias of DATABASES or several") as caught:
            name(using=using)
        assert name.__name__ in str(caught.value)


def _settings(using: Any) -> Any:
    return session_settings({"app.tenant_id": 1}, using=using)


def _timeout(using: Any) -> Any:
    return query_timeout(1, using=using)


TAKE_SEVERAL: dict[str, Any] = {
    **{function.__name__: function for function in [*TAKE_USING, stats, histograms, pool_stats]},
    "session_settings": _settings,
    "query_timeout": _timeout,
}


@pytest.mark.parametrize("name", [*TAKE_SEVERAL, "retry_transaction"])
def test_no_alias_at_all_is_refused_at_once(name: str) -> None:
    function = TAKE_SEVERAL.get(name, retry_transaction)
    empty: list[Any] = (
        [""] if name == "retry_transaction" else ["", [], (), set(), frozenset(), iter([]), ["default", ""]]
    )
    for using in empty:
        with pytest.raises(ValueError, match=rf"{name}\(using=.*names no alias. Leave it out") as caught:
            function(using=using)
        assert type(caught.value) is ValueError


@pytest.mark.parametrize("name", [*TAKE_SEVERAL, "retry_transaction"])
def test_a_mapping_is_no_list_of_aliases(name: str) -> None:
    function = TAKE_SEVERAL.get(name, retry_transaction)
    for using in ({}, {"default": 1}, connections.settings):
        with pytest.raises(TypeError, match=rf"{name}\(using=\.\.\.\) takes (an|one) alias"):
            function(using=using)


def test_a_transaction_is_of_one_alias() -> None:
    for using in (["default"], ("default", "small"), 7, b"default"):
        with pytest.raises(TypeError, match="takes one alias"):
            retry_transaction(using=using)  # type: ignore[call-overload]


# ##### Aliases #####


@pytest.mark.parametrize("using", ["default", ["default"], ("default",), {"default"}, iter(["default"])])
def test_using_names_the_aliases_that_are_released(using: Any) -> None:
    with release_between_queries(using=using):
        query("default")
        query("small")
        wait_until_released("default")
        assert_stays("small")


def test_hold_of_one_alias_inside_a_release_of_all() -> None:
    with release_between_queries(), hold_connection(using="small"):
        query("default")
        query("small")
        wait_until_released("default")
        assert_stays("small")


def test_closing_of_one_alias() -> None:
    with closing_connections(using=["small"]):
        query("default")
        query("small")
    assert not holds("small")
    assert holds("default")


# ##### Nesting #####


def test_a_hold_wins_over_a_release_around_it_and_inside_it() -> None:
    with release_between_queries():
        with hold_connection():
            with release_between_queries():
                query_and_stay()
            query_and_stay()
        wait_until_released()
    with hold_connection(), release_between_queries():
        query_and_stay()
    query_and_stay()


def test_a_connection_that_is_idle_when_a_scope_begins_goes_back() -> None:
    query_and_stay()
    with release_between_queries():
        wait_until_released()


def test_a_scope_that_is_left_with_its_connection_parked_lets_the_pool_have_it() -> None:
    with release_between_queries():
        query()
    wait_until_released()


def test_a_scope_that_is_left_leaves_an_unpooled_connection_with_its_owner(settings: Any) -> None:
    settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": 0.01}
    with release_between_queries():
        before = pid("persistent")
    let_the_reaper_look()
    assert pid("persistent") == before


def test_scopes_do_not_reach_other_threads() -> None:
    with release_between_queries():
        inside = threading.Thread(target=closing_connections(query_and_stay))
        inside.start()
        inside.join()
        query_and_wait()


def test_one_scope_object_serves_many_threads() -> None:
    work = release_between_queries(query_and_wait_for_own_thread)
    with ThreadPoolExecutor(4) as executor:
        for job in [executor.submit(work) for _ in range(20)]:
            job.result()


def query_and_wait_for_own_thread() -> None:
    query()
    me = threading.get_ident()
    wait_until(lambda: all(info.thread_id != me for info in conn_hygiene.snapshot()), "this thread's went back")


def test_a_recursive_function() -> None:
    @release_between_queries
    def count_down(number: int) -> None:
        query_and_wait()
        if number:
            count_down(number - 1)
        query_and_wait()

    count_down(3)
    query_and_stay()


def test_a_wrapper_that_a_django_test_class_has_patched_is_released_all_the_same(settings: Any) -> None:
    # For an alias that a test class does not name, Django's _remove_databases_failures() puts the wrapper's own
    # connect() on the instance, where it hides that of the leased class. What connect() sets up (here: the time zone)
    # then looks like the owner's SET, and pins for ever.
    settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": 0.001}
    before = connections["unpooled"]
    wrapper = connections["unpooled"] = connections.create_connection("unpooled")
    wrapper.settings_dict = {**before.settings_dict, "TIME_ZONE": "Pacific/Auckland"}
    wrapper.connect = wrapper.connect  # type: ignore[method-assign]
    try:
        with release_between_queries():
            query("unpooled")
            wait_until_released("unpooled")
            query("unpooled")
            wait_until_released("unpooled")
    finally:
        wrapper.close()
        connections["unpooled"] = before


# ##### hold_connection #####


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.parametrize(
    ("statement", "look", "clean"),
    [
        ("LISTEN held", "SELECT count(*) FROM pg_listening_channels()", 0),
        ("CREATE TEMP TABLE held ()", "SELECT to_regclass('held')", None),
    ],
)
def test_session_state_of_a_hold_ends_with_it(
    alias: str, statement: str, look: str, clean: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conn_hygiene")
    with release_between_queries():
        with hold_connection():
            query(alias, statement)
            assert_stays(alias)
            assert query(alias, look) != (clean,)
        assert not holds(alias)
        assert query(alias, look) == (clean,)
        wait_until(lambda: alias == "unpooled" or not holds(alias), "the clean one goes back")
    (line,) = [record for record in caplog.records if record.name == "conn_hygiene.lease"]
    assert "is pinned to its thread by" in line.getMessage()
    assert __file__ in line.where


def test_session_state_from_before_a_hold_outlives_it() -> None:
    with release_between_queries():
        query(sql="LISTEN before")
        with hold_connection():
            query(sql="CREATE TEMP TABLE held ()")
        assert_stays()
        assert query(sql="SELECT pg_listening_channels()") == ("before",)


def test_settings_of_a_hold_follow_to_the_end_of_the_request() -> None:
    with release_between_queries():
        with hold_connection():
            query(sql="SET application_name = 'held'")
        release_connections()
        assert query(sql="SHOW application_name") == ("held",)
        connection.close()
        assert query(sql="SHOW application_name") == ("",)


def test_session_state_of_an_inner_hold_ends_with_the_outer_one() -> None:
    with release_between_queries(), hold_connection():
        with hold_connection():
            query(sql="LISTEN inner_one")
        assert query(sql="SELECT pg_listening_channels()") == ("inner_one",)
    assert not holds("default")


def test_session_state_of_a_hold_without_a_release_around_stays() -> None:
    with hold_connection():
        query(sql="SET application_name = 'held'")
    assert query(sql="SHOW application_name") == ("held",)


def test_a_raw_handle_can_be_kept_in_a_hold() -> None:
    with release_between_queries(), hold_connection():
        connection.ensure_connection()
        handle: Any = connection.connection
        query_and_stay()
        assert connection.connection is handle
        handle.execute("SELECT 1")


# ##### Generators #####

GENERATOR_SCOPES = pytest.mark.parametrize("scope", [release_between_queries, hold_connection, closing_connections])


@GENERATOR_SCOPES
def test_a_generator_can_be_sent_to_thrown_into_and_returns(scope: Any) -> None:
    @scope
    def talk() -> Generator[Any, Any, str]:
        query()
        heard = yield "first"
        try:
            yield heard
        except KeyError as exc:
            yield exc
        return "the end"

    talking = talk()
    assert next(talking) == "first"
    assert talking.send("hello") == "hello"
    failure = KeyError()
    assert talking.throw(failure) is failure
    with pytest.raises(StopIteration) as stop:
        next(talking)
    assert stop.value.value == "the end"


@GENERATOR_SCOPES
def test_an_async_generator_can_be_sent_to_and_thrown_into(scope: Any) -> None:
    @scope
    async def talk() -> Any:
        await sync_to_async(query)()
        heard = yield "first"
        try:
            yield heard
        except KeyError as exc:
            yield exc

    async def main() -> None:
        talking = talk()
        assert await anext(talking) == "first"
        assert await talking.asend("hello") == "hello"
        failure = KeyError()
        assert await talking.athrow(failure) is failure
        with pytest.raises(StopAsyncIteration):
            await anext(talking)

    async_to_sync(main)()


@GENERATOR_SCOPES
@pytest.mark.parametrize("end", ["close", "abandon", "throw"])
def test_a_generator_that_is_not_finished_cleans_up_inside_its_scope(scope: Any, end: str) -> None:
    seen = []

    @scope
    def rows() -> Iterator[int]:
        query()
        try:
            yield 1
            yield 2
        finally:
            query()
            seen.append("cleaned up")

    generator: Any = rows()
    assert next(generator) == 1
    if end == "close":
        generator.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            generator.throw(KeyError())
    del generator
    assert seen == ["cleaned up"]
    if scope is release_between_queries:
        wait_until_released()
    elif scope is closing_connections:
        assert not holds("default")
    query_and_stay()


@GENERATOR_SCOPES
def test_an_async_generator_that_is_closed_early_cleans_up_inside_its_scope(scope: Any) -> None:
    seen = []

    @scope
    async def rows() -> Any:
        await sync_to_async(query)()
        try:
            yield 1
            yield 2
        finally:
            await sync_to_async(query)()
            seen.append("cleaned up")

    async def main() -> None:
        generator = rows()
        assert await anext(generator) == 1
        await generator.aclose()

    async_to_sync(main)()
    assert seen == ["cleaned up"]
    if scope is release_between_queries:
        wait_until_released()
    elif scope is closing_connections:
        assert not holds("default")
    query_and_stay()


@GENERATOR_SCOPES
def test_a_generator_that_was_never_started_does_nothing(scope: Any) -> None:
    @scope
    def rows() -> Iterator[int]:
        yield 1

    query()
    rows()
    rows().close()
    assert_stays()


def test_the_consumer_of_a_generator_is_not_in_its_release_scope() -> None:
    @release_between_queries
    def rows() -> Iterator[int]:
        query_and_wait()
        yield 1
        query_and_wait()
        yield 2

    for _ in rows():
        query_and_stay()


def test_a_generator_keeps_its_held_connection_while_its_consumer_queries() -> None:
    @hold_connection
    def rows() -> Iterator[int]:
        for _ in range(3):
            yield pid()

    def consume() -> Iterator[int]:
        for row in rows():
            yield row
            query_and_stay()

    with release_between_queries():
        assert len(set(consume())) == 1
        wait_until_released()


def test_an_async_generator_keeps_its_held_connection_while_its_consumer_queries() -> None:
    @hold_connection
    async def rows() -> AsyncIterator[int]:
        for _ in range(3):
            yield await sync_to_async(pid)()

    async def consume() -> None:
        pids = set()
        async with release_between_queries():
            async for row in rows():
                pids.add(row)
                await sync_to_async(query_and_stay)()
            await sync_to_async(wait_until_released)()
        assert len(pids) == 1

    async_to_sync(consume)()


def test_a_hold_in_a_generator_of_a_release_scope_outlasts_the_steps() -> None:
    @release_between_queries
    def rows() -> Iterator[int]:
        query_and_wait()
        with hold_connection():
            yield pid()
            query_and_stay()
            yield pid()
        query_and_wait()

    first, second = rows()
    assert first == second


def test_generators_inside_scopes_may_take_turns_and_end_in_any_order() -> None:
    def held() -> Iterator[None]:
        with hold_connection():
            yield

    def releasing() -> Iterator[None]:
        with release_between_queries():
            yield

    first, second = releasing(), held()
    next(first)
    next(second)
    # The scope that was entered first is left first, and takes nobody else's along.
    first.close()
    with release_between_queries():
        query_and_stay()
        second.close()
        wait_until_released()
    query_and_stay()


def test_two_runs_of_one_closing_generator_close_when_the_last_ends() -> None:
    @closing_connections
    def rows() -> Iterator[int]:
        yield pid()
        yield pid()

    first, second = rows(), rows()
    before = next(first), next(second)
    assert (*first, *second) == before
    assert not holds("default")


def test_of_closing_generators_that_take_turns_the_last_closes() -> None:
    @closing_connections
    def opens() -> Iterator[int]:
        yield pid()

    @closing_connections
    def goes_on() -> Iterator[Any]:
        query(sql="CREATE TEMPORARY TABLE mine (n int)")
        yield
        yield query(sql="SELECT count(*) FROM mine")

    first, second = opens(), goes_on()
    next(first)
    next(second)
    assert list(first) == []
    assert next(second) == (0,)
    assert list(second) == []
    assert not holds("default")


def test_an_async_generator_that_is_abandoned_in_a_hold_does_not_hold_for_ever() -> None:
    @hold_connection
    async def rows() -> AsyncIterator[int]:
        while True:
            await sync_to_async(query)()
            yield 1

    async def main() -> None:
        async with release_between_queries():
            async for _ in rows():
                break
            # The event loop ends it, in a task of its own.
            for _ in range(10):
                await sync_to_async(query)()
            await sync_to_async(wait_until_released)()

    async_to_sync(main)()


def test_a_hold_whose_end_is_not_told_does_not_hold_for_ever() -> None:
    contextvars.copy_context().run(hold_connection().__enter__)
    with release_between_queries():
        query_and_wait()


# ##### closing_connections #####


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
def test_a_thread_target_closes_what_it_opened(alias: str, alive: Callable[..., set[int]]) -> None:
    connections.close_all()
    pids: list[int] = []

    @closing_connections
    def work() -> None:
        query(alias)
        pids.extend(info.server_pid for info in conn_hygiene.snapshot() if info.thread_id == threading.get_ident())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    # Before the thread's own end could have had a part in it.
    assert not holds(alias)
    if alias != "default":
        wait_until(lambda: not alive(*pids), "the server has seen the end")
    assert len(pids) == 1


def test_an_executors_job_closes_what_it_opened_while_its_thread_lives_on() -> None:
    with ThreadPoolExecutor(1) as executor:
        for _ in range(3):
            executor.submit(closing_connections(query)).result()
            assert not holds("default")


def test_a_transaction_that_a_job_leaves_open_is_rolled_back_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    received = []

    def receiver(**kwargs: Any) -> None:
        received.append(kwargs)

    @closing_connections
    def job() -> None:
        transaction.set_autocommit(False)
        Item.objects.create(name="never")

    signals.idle_in_transaction_detected.connect(receiver)
    try:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
    finally:
        signals.idle_in_transaction_detected.disconnect(receiver)
    assert not Item.objects.exists()
    (line,) = caplog.records
    assert (line.name, line.levelname) == ("conn_hygiene.transactions", "WARNING")
    assert "left a transaction open on 'default'" in line.getMessage()
    assert [(event["action"], event["alias"]) for event in received] == [("rollback", "default")]


def test_a_transaction_around_a_job_is_none_of_its_business(caplog: pytest.LogCaptureFixture) -> None:
    with transaction.atomic():
        closing_connections(Item.objects.create)(name="kept")
        assert connection.in_atomic_block
    assert Item.objects.get().name == "kept"
    assert not caplog.records


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Iterator[BaseDatabaseWrapper]:
    """Have a file behind the alias "sqlite": Django never closes a database in memory."""
    in_memory = connections["sqlite"]
    wrapper = connections.create_connection("sqlite")
    wrapper.settings_dict = {**wrapper.settings_dict, "NAME": str(tmp_path / "db.sqlite3")}
    connections["sqlite"] = wrapper
    yield wrapper
    wrapper.close()
    connections["sqlite"] = in_memory


def _begin_by_hand() -> None:
    transaction.set_autocommit(False, using="sqlite")


def _begin_and_keep() -> None:
    transaction.atomic(using="sqlite").__enter__()


@pytest.mark.parametrize("begin", [_begin_by_hand, _begin_and_keep])
def test_so_is_a_transaction_of_theirs_which_is_reported(
    begin: Callable[[], None], sqlite_file: BaseDatabaseWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    query("sqlite", sql="CREATE TABLE written (n int)")

    @closing_connections
    def job() -> None:
        begin()
        query("sqlite", sql="INSERT INTO written VALUES (1)")

    sqlite_file.close()
    job()
    assert (sqlite_file.connection, sqlite_file.in_atomic_block) == (None, False)
    [record] = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "conn_hygiene.transactions",
        "WARNING",
        "The job that closing_connections covers left a transaction open on 'sqlite'; it is rolled back.",
    )
    sqlite_file.ensure_connection()
    assert sqlite_file.get_autocommit()
    assert query("sqlite", sql="SELECT count(*) FROM written") == (0,)


def test_the_alias_can_be_used_again_where_the_rollback_fails(
    sqlite_file: BaseDatabaseWrapper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise InterfaceError("lost")

    @closing_connections
    def job() -> None:
        _begin_and_keep()
        monkeypatch.setattr(sqlite_file, "_rollback", fail)

    job()
    monkeypatch.undo()
    assert query("sqlite") == (1,)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is InterfaceError


def test_connections_of_another_vendor_are_closed_too(sqlite_file: BaseDatabaseWrapper) -> None:
    with closing_connections():
        query("sqlite")
        assert sqlite_file.connection is not None
    assert sqlite_file.connection is None
    query("sqlite")
    closing_connections(query)("sqlite")
    assert sqlite_file.connection is not None
    assert reset_connections("sqlite") == 1
    assert sqlite_file.connection is None


def test_a_connection_that_is_given_back_is_not_reopened_to_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    before = conn_hygiene.stats().checkouts
    with closing_connections(), release_between_queries():
        query_and_wait()
    assert conn_hygiene.stats().checkouts == before + 1


def test_a_block_that_is_left_in_another_context_leaves_alone_what_it_cannot_know() -> None:
    scope = closing_connections()
    query()
    contextvars.copy_context().run(scope.__enter__)
    scope.__exit__(None, None, None)
    assert_stays()


def test_a_block_whose_end_is_not_told_keeps_nothing_open() -> None:
    contextvars.copy_context().run(closing_connections().__enter__)
    closing_connections(query)()
    assert not holds("default")


def test_a_connection_that_was_given_back_before_counts_as_opened_inside() -> None:
    with release_between_queries():
        query_and_wait()
    with closing_connections():
        query_and_stay()
    assert not holds("default")


# ##### release_connections and reset_connections #####


def test_release_connections_gives_back_what_is_idle_and_counts_it() -> None:
    assert release_connections() == 0
    query("default")
    query("small")
    query("unpooled")
    assert release_connections(using=["default", "unpooled"]) == 2
    assert not holds("default")
    assert not holds("unpooled")
    assert holds("small")
    assert release_connections() == 1
    assert release_connections() == 0
    assert query() == (1,)


def test_release_connections_leaves_alone_what_is_in_use_pinned_or_held() -> None:
    with transaction.atomic():
        query()
        assert release_connections() == 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert release_connections() == 0
        assert cursor.fetchone() == (1,)
    with hold_connection():
        assert release_connections() == 0
    query(sql="LISTEN mine")
    assert release_connections() == 0
    query(sql="UNLISTEN *")
    assert release_connections() == 1


def test_release_connections_is_the_callers_own_business_only() -> None:
    query()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(release_connections).result() == 0
    assert holds("default")


def test_release_connections_from_async_code() -> None:
    async def main() -> int:
        await sync_to_async(query)()
        return await sync_to_async(release_connections)()

    assert async_to_sync(main)() == 1


@pytest.mark.parametrize("function", [release_connections, reset_connections])
def test_on_an_event_loop_they_refuse_as_queries_do(
    function: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await sync_to_async(query)()
        with pytest.raises(SynchronousOnlyOperation) as caught:
            function()
        assert str(caught.value) == (
            f"{function.__name__}() cannot be called on an event loop: connections belong to "
            f"the thread that runs the queries. Use `await sync_to_async({function.__name__})()`."
        )
        assert await sync_to_async(function)("default") == 1
        # Whoever has taken Django's own guard away has taken this away.
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        assert function() == 0

    async_to_sync(main)()


def test_reset_connections_drops_whatever_state_they_are_in() -> None:
    query(sql="SET application_name = 'mine'")
    before = pid()
    transaction.set_autocommit(False, using="unpooled")
    Item.objects.using("unpooled").create(name="never")
    with connections["small"].cursor():
        assert reset_connections(POSTGRESQL) == 3
    assert not conn_hygiene.snapshot()
    assert pid() != before
    assert not Item.objects.using("unpooled").exists()
    assert transaction.get_autocommit(using="unpooled")


def test_reset_connections_counts_no_connection_that_was_given_back() -> None:
    with release_between_queries():
        query_and_wait()
        assert reset_connections(POSTGRESQL) == 0
        query_and_wait()


def test_reset_connections_of_one_alias() -> None:
    query("default")
    query("small")
    assert reset_connections("small") == 1
    assert holds("default")


@pytest.mark.parametrize(("alias", "error"), [("default", ProgrammingError), ("unpooled", OperationalError)])
def test_reset_connections_inside_atomic_loses_the_block_and_nothing_else(alias: str, error: type[Exception]) -> None:
    def block() -> None:
        with transaction.atomic(using=alias):
            Item.objects.using(alias).create(name="never")
            assert reset_connections(alias) == 1
            query(alias)

    with pytest.raises(error):
        block()
    assert not Item.objects.using(alias).exists()
    assert not connections[alias].in_atomic_block
