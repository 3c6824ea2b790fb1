"""Whose line a statement is, and whose a transaction that begins around a function with no frame yet."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import pytest_django
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.asgi import get_asgi_application
from django.core.management import BaseCommand, call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from rest_framework import viewsets
from rest_framework.decorators import (
    api_view,
    authentication_classes,
    permission_classes,
    renderer_classes,
)
from rest_framework.generics import ListAPIView
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.serializers import ModelSerializer
from rest_framework.views import APIView

import conn_hygiene
from conn_hygiene import callsite, closing_connections, retry_transaction
from tests.testapp.models import Item
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


@pytest.fixture(autouse=True)
def without_pins() -> Iterator[None]:
    """Begin and end with a connection that carries nothing."""
    connections.close_all()
    yield
    connections.close_all()


def tag(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* tagged */ {sql}", params, many, context)


def tag_again(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* tagged again */ {sql}", params, many, context)


def set_before(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """Send a statement of its own on another cursor, and then the one that it was called for."""
    if "SELECT 1" not in sql:
        return execute(sql, params, many, context)
    with context["connection"].cursor() as cursor:
        cursor.execute("LISTEN by_wrapper")
    return execute(sql, params, many, context)


def pinned_at() -> str:
    [info] = conn_hygiene.snapshot()
    [place] = info.pinned_by.values()
    return place


def line_of(function: Callable[..., Any], text: str) -> str:
    """Return the place of the one line of *function* that has *text*."""
    lines, first = inspect.getsourcelines(function)
    [line] = [first + offset for offset, line in enumerate(lines) if text in line]
    return f"{__file__}:{line} in {function.__name__}"


def execute() -> None:
    with connection.cursor() as cursor:
        cursor.execute("LISTEN by_caller")


def executemany() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("LISTEN by_caller", [()])


@pytest.mark.parametrize("wrappers", [[], [tag], [tag, tag_again]])
@pytest.mark.parametrize("run", [execute, executemany])
@pytest.mark.parametrize("debug", [False, True])
def test_a_statement_is_its_callers_and_not_the_wrappers(
    run: Callable[[], None], wrappers: list[Any], debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Django's debug cursors call its plain ones.
    monkeypatch.setattr(connections["default"], "force_debug_cursor", debug)
    monkeypatch.setattr(connections["default"], "execute_wrappers", wrappers)
    run()
    assert pinned_at() == line_of(run, "LISTEN by_caller")


def test_what_a_wrapper_sends_of_its_own_accord_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "execute_wrappers", [tag, set_before, tag_again])
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert pinned_at() == line_of(set_before, "LISTEN by_wrapper")


def test_a_thread_that_waits_for_the_server_is_where_it_called(admin: psycopg.Connection) -> None:
    started = threading.Event()
    threads: list[int] = []

    @closing_connections
    def wait_for_the_server() -> None:
        with connection.execute_wrapper(tag), connection.cursor() as cursor:
            threads.append(threading.get_ident())
            started.set()
            cursor.execute("SELECT pg_sleep(60)")

    running = "SELECT pid FROM pg_stat_activity WHERE query LIKE '/* tagged */%%' AND state = 'active'"
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait_for_the_server)
        assert started.wait(10)
        wait_until(lambda: admin.execute(running).fetchone(), "the statement runs")
        place = callsite.of_thread(threads[0])
        admin.execute(f"SELECT pg_cancel_backend(pid) FROM ({running}) x")
        assert "canceling" in str(waiting.exception())
    assert str(place) == line_of(inspect.unwrap(wait_for_the_server), "pg_sleep")


def test_a_query_that_is_awaited_is_where_the_orm_was_asked(admin: psycopg.Connection) -> None:
    """No line of the application's is in its thread."""

    async def count() -> int:
        async with ThreadSensitiveContext():
            try:
                return await Item.objects.acount()
            finally:
                await sync_to_async(connections.close_all)()

    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'testapp_item'::regclass"
    with ThreadPoolExecutor(1) as executor:
        with admin.transaction():
            admin.execute("LOCK TABLE testapp_item")
            counting = executor.submit(asyncio.run, count())
            wait_until(lambda: admin.execute(waiting).fetchone() == (1,), "it waits")
            [info] = conn_hygiene.snapshot()
        assert counting.result() == 0
    assert re.fullmatch(r".+/django/db/models/query\.py:\d+ in count", info.where_now or "")


def test_nobody_looks_at_the_frames_of_threads_in_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exchanges them behind Python's back, and what is no more cannot be looked at."""
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        assert thread.ident is not None
        monkeypatch.setattr(callsite, "_is_at_rest", lambda frame: True)
        assert callsite.is_at_rest(thread.ident)
        monkeypatch.setitem(sys.modules, "uwsgi", ModuleType("uwsgi"))
        monkeypatch.delattr(sys, "_current_frames")
        assert not callsite.is_at_rest(thread.ident)
        assert callsite.of_thread(thread.ident) is None
    finally:
        go_on.set()
        thread.join()


def test_nor_is_the_wrapper_of_a_library_where_a_library_calls() -> None:
    """No line of the application's is on the stack."""
    caller = _in_library(
        "def run(wrapper, connection, place):\n"
        " with connection.execute_wrapper(wrapper), connection.cursor() as cursor:\n"
        '  cursor.execute("LISTEN by_caller")\n'
        " place.append(str(pins()))\n"
        " connection.close()\n",
        pytest_django.__file__,
        pins=lambda: conn_hygiene.snapshot()[0].pinned_by["LISTEN"],
    )
    wrapper = _in_library("def run(execute, *args):\n return execute(*args)\n", pytest.__file__)
    places: list[str] = []
    thread = threading.Thread(target=caller, args=(wrapper, connection, places))
    thread.start()
    thread.join(10)
    assert [re.sub(r":\d+ ", ":3 ", place) for place in places] == [f"{pytest_django.__file__}:3 in run"]


def _in_library(source: str, path: str, **names: Any) -> Any:
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, path, "exec"), namespace)
    return namespace["run"]


# ##### Around a function that has no frame yet #####

# What snapshot() said inside.
seen: list[tuple[str | None, str | None]] = []


def look() -> None:
    """Note where the transaction began, and where its connection was checked out. Opens no cursor of its own."""
    [info] = conn_hygiene.snapshot()
    seen.append((info.where_began, info.where_checked_out))


def of_frameworks(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Call *function* as a server or a worker does, with no line of the application's on the stack.

    Returns where the transaction that it looked at began, which is where its connection was checked out.
    """
    seen.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(copy_context().run, function, *arguments).result(30)
        executor.submit(connections.close_all).result(30)
    [(began, checked_out)] = seen
    assert began == checked_out
    return began


def defined(function: Callable[..., Any]) -> str:
    """Return the place of the function behind *function*, with its decorators."""
    code = inspect.unwrap(function).__code__
    return f"{__file__}:{code.co_firstlineno} in {code.co_name}"


def careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate, as an application's own decorator does."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def unnamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as a library does that keeps no ``__wrapped__``."""
    source = "def run(function):\n def wrapper(*arguments):\n  return function(*arguments)\n return wrapper\n"
    decorated: Callable[..., Any] = _in_library(source, pytest.__file__)(function)
    return decorated


@transaction.atomic
def task() -> None:
    look()


@transaction.atomic
@careful
def careful_task() -> None:
    look()


@unnamed
@transaction.atomic
@unnamed
def decorated_task() -> None:
    look()


@retry_transaction
def repeated_task() -> None:
    look()


@retry_transaction
@careful
def careful_repeated_task() -> None:
    look()


@retry_transaction
async def repeated_async_task() -> None:
    await sync_to_async(look)()


class Job:
    @transaction.atomic
    def perform(self) -> None:
        look()


class Callable_:
    def __call__(self) -> None:
        look()


AROUND: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "a function": (task, task),
    "an own decorator": (careful_task, careful_task),
    "retry_transaction": (repeated_task, repeated_task),
    "both": (careful_repeated_task, careful_repeated_task),
    "a method": (Job().perform, Job.perform),
    "a partial": (functools.partial(Job().perform), Job.perform),
    "a bound method": (transaction.atomic(Job().perform), Job.perform),
    "a function with a partial": (transaction.atomic(functools.partial(task)), task),
    "an object that can be called": (transaction.atomic(Callable_()), Callable_.__call__),
}


@pytest.mark.parametrize("around", AROUND)
def test_a_transaction_around_a_function_began_at_the_function(around: str) -> None:
    called, where = AROUND[around]
    assert of_frameworks(called) == defined(where)


class Secretive(type):
    def __getattribute__(cls, name: str) -> Any:
        raise LookupError(name)


class Secret(metaclass=Secretive):
    def __call__(self) -> None:
        look()


def test_a_transaction_begins_around_what_tells_nothing_of_itself() -> None:
    secret = transaction.atomic(functools.partial(object.__new__(Secret)))
    # pytest would ask its class for a name.
    began = [of_frameworks(secret), of_frameworks(unnamed(secret))]
    assert began == [None, f"{pytest.__file__}:3 in wrapper"]


def test_past_decorators_that_name_nothing() -> None:
    lines = Path(__file__).read_text().splitlines()
    assert of_frameworks(decorated_task) == (
        f"{__file__}:{lines.index('def decorated_task() -> None:') - 2} in decorated_task"
    )


def test_around_a_coroutine_function_too() -> None:
    async def work() -> None:
        async with ThreadSensitiveContext():
            await repeated_async_task()
            await sync_to_async(connections.close_all)()

    seen.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, work()).result(30)
    assert seen[0][0] == defined(repeated_async_task)


def test_a_receiver_and_a_command_are_where_theirs_began() -> None:
    signal = Signal()

    @transaction.atomic
    def receiver(**kwargs: Any) -> None:
        look()

    signal.connect(receiver)
    assert of_frameworks(functools.partial(signal.send, sender=None)) == defined(receiver)

    class Command(BaseCommand):
        requires_system_checks = []  # noqa: RUF012 - as Django declares it

        @transaction.atomic
        def handle(self, *args: Any, **options: Any) -> None:
            look()

    assert of_frameworks(call_command, Command()) == defined(Command.handle)


def test_a_celery_task_is_where_its_transaction_began() -> None:
    celery = pytest.importorskip("celery")
    app = celery.Celery(set_as_current=False)
    app.conf.result_backend = "disabled://"

    @app.task(shared=False)
    @transaction.atomic
    def sync() -> None:
        look()

    @app.task(shared=False, autoretry_for=(OSError,))
    @retry_transaction
    @careful
    def sync_again() -> None:
        look()

    for run in (sync, sync_again):
        line = f"{__file__}:{inspect.unwrap(run.run).__code__.co_firstlineno} in {run.__name__}"
        assert of_frameworks(functools.partial(run.apply, throw=True)) == line


def test_the_caller_is_not_where_a_decorated_function_begins() -> None:
    """A project's middleware is on every stack, and begins nothing."""
    seen.clear()
    task()
    assert seen[0][0] == defined(task)


# ##### Views #####


@transaction.atomic
def plain(request: HttpRequest) -> HttpResponse:
    look()
    return HttpResponse()


@never_cache
@transaction.atomic
@require_safe
def decorated(request: HttpRequest) -> HttpResponse:
    look()
    return HttpResponse()


class OneMethod(View):
    @method_decorator(transaction.atomic)
    def get(self, request: HttpRequest) -> HttpResponse:
        look()
        return HttpResponse()


@method_decorator(transaction.atomic, name="dispatch")
class Dispatched(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        look()
        return HttpResponse()


class Rest(APIView):  # type: ignore[misc]
    """Asks no user of Django's, which is not installed here."""

    authentication_classes = ()
    permission_classes = ()
    renderer_classes = (JSONRenderer,)


class OfRest(Rest):
    @transaction.atomic
    def get(self, request: HttpRequest) -> Any:
        look()
        return Response()


class OfRestPlain(Rest):
    def get(self, request: HttpRequest) -> Any:
        look()
        return Response()


class Shelf(viewsets.ViewSetMixin, Rest):  # type: ignore[misc]
    def list(self, request: HttpRequest) -> Any:
        look()
        return Response()


@api_view(["GET"])
@authentication_classes([])
@permission_classes([])
@renderer_classes([JSONRenderer])
def by_api_view(request: HttpRequest) -> Any:
    look()
    return Response()


undecorated_by_api_view = inspect.getclosurevars(by_api_view.cls.get).nonlocals["func"]


def undecorated(request: HttpRequest) -> HttpResponse:
    look()
    return HttpResponse()


class Telling(ModelSerializer):  # type: ignore[misc]
    class Meta:
        model = Item
        fields = ("name",)


class Generic(ListAPIView, Rest):  # type: ignore[misc]
    """Nothing here has a frame: all is in REST framework."""

    queryset = Item.objects.all()
    serializer_class = Telling

    @property
    def paginator(self) -> Any:
        return None

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        look()
        return super().finalize_response(*args, **kwargs)


async def awaiting(request: HttpRequest) -> HttpResponse:
    with_one = await Item.objects.acount()
    await sync_to_async(look_in_thread)()
    return HttpResponse(str(with_one))


# As a library would have it: with no line of the application's on the stack of the thread.
look_in_thread = _in_library("def run():\n look()\n", pytest.__file__, look=look)

urlpatterns = [
    path("plain/", plain),
    path("decorated/", decorated),
    path("undecorated/", undecorated),
    path("one-method/", OneMethod.as_view()),
    path("dispatched/", Dispatched.as_view()),
    path("of-rest/", OfRest.as_view()),
    path("of-rest-plain/", OfRestPlain.as_view()),
    path("shelf/", Shelf.as_view({"get": "list"})),
    path("by-api-view/", by_api_view),
    path("generic/", Generic.as_view()),
    path("awaiting/", awaiting),
]


@pytest.fixture
def site(settings: Any) -> None:
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
    settings.REST_FRAMEWORK = {"UNAUTHENTICATED_USER": None}
    settings.CONN_HYGIENE = {"RELEASE": "never"}


def began_at(url: str) -> str | None:
    """Have Django answer as a WSGI server does; return where the transaction of its view began."""
    status: list[str] = []
    environ = RequestFactory().get(url).environ
    place = of_frameworks(get_wsgi_application(), environ, lambda line, *others: status.append(line))
    assert status == ["200 OK"]
    return place


@pytest.mark.parametrize(
    ("url", "view"),
    [
        ("/plain/", plain),
        ("/decorated/", decorated),
        ("/one-method/", OneMethod.get),
        ("/dispatched/", Dispatched.get),
        ("/of-rest/", OfRest.get),
    ],
)
@pytest.mark.usefixtures("site")
def test_a_transaction_around_a_view_began_at_the_view(url: str, view: Callable[..., Any]) -> None:
    assert began_at(url) == defined(view)


@pytest.mark.parametrize(
    ("url", "view"),
    [
        ("/plain/", plain),
        ("/undecorated/", undecorated),
        ("/decorated/", decorated),
        ("/one-method/", OneMethod.get),
        ("/dispatched/", Dispatched.get),
        ("/of-rest/", OfRest.get),
        ("/of-rest-plain/", OfRestPlain.get),
        ("/shelf/", Shelf.list),
        ("/by-api-view/", undecorated_by_api_view),
    ],
)
@pytest.mark.usefixtures("site")
def test_so_does_that_of_atomic_requests(url: str, view: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert began_at(url) == defined(view)


@pytest.mark.usefixtures("site")
def test_a_view_of_a_librarys_is_the_class_that_the_application_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = began_at_without_transaction("/generic/")
    assert re.sub(r":\d+ ", " ", place) == f"{__file__} in Generic"
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert began_at("/generic/") == place


def began_at_without_transaction(url: str) -> str:
    """Return where the connection of a view was checked out that begins no transaction."""
    environ = RequestFactory().get(url).environ
    seen.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(get_wsgi_application(), environ, lambda *status: None).result(30)  # type: ignore[arg-type]
        executor.submit(connections.close_all).result(30)
    [(began, place)] = seen
    assert began is None
    assert place is not None
    return place


@pytest.mark.usefixtures("site")
def test_what_an_async_view_awaits_is_where_the_view_is() -> None:
    messages: list[Any] = []
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked.is_set():
            await asyncio.Event().wait()
        asked.set()
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": "/awaiting/", "query_string": b"", "headers": []}
    seen.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, get_asgi_application()(scope, receive, send)).result(30)  # type: ignore[arg-type]
    assert messages[0]["status"] == 200
    assert seen == [(None, defined(awaiting))]


# ##### The whole stack #####


def begin(done: Callable[[], Any]) -> None:
    with transaction.atomic():
        done()


def test_the_whole_stack_is_remembered_if_it_is_wanted(settings: Any) -> None:
    settings.CONN_HYGIENE = {"FULL_STACKS": True}
    found: list[Any] = []
    begin(lambda: found.extend(conn_hygiene.snapshot()))
    [info] = found
    assert info.where_began == line_of(begin, "with transaction.atomic()")
    for stack in (info.stack_began, info.stack_checked_out):
        assert f'{__file__}", line ' in stack
        assert "in test_the_whole_stack_is_remembered_if_it_is_wanted\n    begin(lambda" in stack
        assert "in begin\n    with transaction.atomic():\n" in stack
        # What has looked at the stack is no part of it.
        assert "/conn_hygiene/" not in stack[stack.rindex("  File") :]
    assert "in <lambda>" in info.stack_now


@pytest.mark.parametrize("values", [{}, {"FULL_STACKS": True, "CAPTURE_STACKS": False}])
def test_and_not_if_it_is_not(values: dict[str, Any], settings: Any) -> None:
    settings.CONN_HYGIENE = values
    found: list[Any] = []
    begin(lambda: found.extend(conn_hygiene.snapshot()))
    assert (found[0].stack_began, found[0].stack_checked_out) == (None, None)


def test_the_log_has_the_stack_below_the_message(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.CONN_HYGIENE = {"FULL_STACKS": True, "IDLE_IN_TRANSACTION_AFTER": 0.05}

    def idle() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        wait_until(lambda: caplog.records, "it is reported")

    begin(idle)
    record = caplog.records[0]
    assert record.name == "conn_hygiene.transactions"
    assert "\n" not in record.getMessage()
    assert record.stack_info is not None
    first, *_ = record.stack_info.splitlines()
    assert first == "Stack (most recent call last):"
    assert "in begin\n    with transaction.atomic():\n" in record.stack_info
    assert (record.stack_info in logging.Formatter().format(record), record.filename) == (True, "log.py")
    assert "in begin\n    done()\n" in str(record.stack_now)
