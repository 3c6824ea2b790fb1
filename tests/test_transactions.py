"""retry_transaction: on real deadlocks and serialization failures."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import gc
import logging
import math
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import tenacity
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.db import Error, IntegrityError, OperationalError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import TestCase
from django.views import View

import conn_hygiene
from conn_hygiene import closing_connections, conf, events, hold_connection, release_between_queries
from conn_hygiene.events import TransactionRetried
from conn_hygiene.transactions.retry import retry_transaction
from tests.testapp.models import Item
from tests.waiting import busy_reaper, holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALIASES = ["default", "unpooled"]
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "small"])

# Short enough for tests, in which nobody else competes.
fast: Any = {"delay": 0.001, "max_delay": 0.01}


@pytest.fixture(autouse=True)
def function_that_fails(admin: psycopg.Connection) -> Iterator[None]:
    admin.execute(
        """
        CREATE FUNCTION fail(sqlstate text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'as told' USING ERRCODE = sqlstate;
        END $$
        """
    )
    yield
    admin.execute("DROP FUNCTION fail")


@pytest.fixture
def items() -> tuple[int, int]:
    first, second = Item.objects.create(name="first"), Item.objects.create(name="second")
    connection.close()
    return first.pk, second.pk


def add(pk: int, alias: str = "default") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("UPDATE testapp_item SET value = value + 1 WHERE id = %s", [pk])


def values() -> list[int]:
    return list(Item.objects.order_by("pk").values_list("value", flat=True))


def sqlstate(exc: BaseException) -> Any:
    return exc.__cause__.sqlstate


def deadlock(alias: str, items: tuple[int, int], decorate: Callable[[Any], Any]) -> list[int]:
    """Have two threads lock the same two rows in opposite order; return how many attempts each made."""
    both_have_one = threading.Barrier(2, timeout=20)

    def thread(mine: int, other: int) -> int:
        attempts = []

        def transfer() -> None:
            attempts.append(mine)
            add(mine, alias)
            if len(attempts) == 1:
                both_have_one.wait()
            add(other, alias)

        closing_connections(decorate(transfer))()
        return len(attempts)

    with ThreadPoolExecutor(2) as executor:
        return sorted(executor.map(thread, items, reversed(items)))


@pytest.mark.parametrize("alias", ALIASES)
def test_a_deadlock_is_resolved(alias: str, items: tuple[int, int]) -> None:
    attempts = deadlock(alias, items, retry_transaction(using=alias, **fast))
    assert sum(attempts) > 2
    assert values() == [2, 2]


def test_without_it_one_of_the_two_fails(items: tuple[int, int]) -> None:
    with pytest.raises(OperationalError) as caught:
        deadlock("default", items, transaction.atomic)
    assert sqlstate(caught.value) == "40P01"


@pytest.fixture
def conflict(items: tuple[int, int], admin: psycopg.Connection) -> Callable[[], None]:
    """Return the body of a transaction in which each statement comes too late for the first two attempts."""
    attempts = []

    def body() -> None:
        attempts.append(1)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT * FROM testapp_item")
        if len(attempts) < 3:
            admin.execute("UPDATE testapp_item SET value = value + 10 WHERE id = %s", [items[0]])
        add(items[0])

    return body


def test_a_serialization_failure_is_repeated(conflict: Any) -> None:
    retry_transaction(**fast)(conflict)()
    assert values() == [21, 0]


def test_the_last_error_goes_through_unchanged(conflict: Any) -> None:
    with pytest.raises(OperationalError) as caught:
        retry_transaction(attempts=2, **fast)(conflict)()
    assert type(caught.value) is OperationalError
    assert sqlstate(caught.value) == "40001"
    assert values() == [20, 0]


def test_the_limit_in_seconds(conflict: Any) -> None:
    with pytest.raises(OperationalError):
        retry_transaction(attempts=None, seconds=1e-9)(conflict)()
    assert values() == [10, 0]


@pytest.fixture
def deferred(admin: psycopg.Connection) -> Iterator[None]:
    """Make the first two commits of inserted items fail with a serialization failure, by a deferred trigger."""
    admin.execute(
        """
        CREATE SEQUENCE commits;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('commits') < 3 THEN RAISE EXCEPTION 'not yet' USING ERRCODE = '40001'; END IF; RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON testapp_item DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse()
        """
    )
    yield
    admin.execute("DROP TRIGGER refuse ON testapp_item; DROP FUNCTION refuse; DROP SEQUENCE commits")


@pytest.mark.usefixtures("deferred")
def test_an_error_at_commit_is_repeated_and_hooks_run_once() -> None:
    begun: list[int] = []
    committed: list[int] = []

    @retry_transaction(**fast)
    def create() -> str:
        begun.append(len(begun))
        attempt = begun[-1]
        transaction.on_commit(lambda: committed.append(attempt))
        return Item.objects.create(name="late").name

    assert create() == "late"
    assert begun == [0, 1, 2]
    assert committed == [2]
    assert Item.objects.count() == 1


def fail(sqlstate: str, alias: str = "default") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT fail(%s)", [sqlstate])


def test_an_error_in_a_hook_does_not_repeat_what_is_committed() -> None:
    @retry_transaction(**fast)
    def create() -> None:
        Item.objects.create(name="once")
        transaction.on_commit(lambda: fail("40001"))

    with pytest.raises(OperationalError, match="as told"):
        create()
    assert Item.objects.count() == 1


OTHERS = [KeyError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, IntegrityError, tenacity.TryAgain]


@pytest.mark.parametrize("exc", OTHERS)
def test_other_errors_go_through_at_once(exc: type[BaseException]) -> None:
    attempts = []

    @retry_transaction
    def create() -> None:
        attempts.append(Item.objects.create(name="gone"))
        raise exc("as told")

    with pytest.raises(exc):
        create()
    assert len(attempts) == 1
    assert Item.objects.count() == 0


@pytest.mark.parametrize("asked", [False, True])
def test_a_lock_that_is_not_available_is_repeated_when_asked(asked: bool, items: Any, admin: Any) -> None:
    attempts = []

    @retry_transaction(lock_not_available=asked, **fast)
    def lock() -> Item:
        attempts.append(1)
        if len(attempts) == 2:
            admin.rollback()
        return Item.objects.select_for_update(nowait=True).get(pk=items[0])

    admin.autocommit = False
    admin.execute("SELECT * FROM testapp_item FOR UPDATE")
    try:
        if asked:
            assert lock().pk == items[0]
            assert len(attempts) == 2
        else:
            with pytest.raises(OperationalError) as caught:
                lock()
            assert sqlstate(caught.value) == "55P03"
    finally:
        admin.rollback()
        admin.autocommit = True


def fails(alias: str) -> None:
    fail("40P01", alias)


def fails_in_a_block_without_a_savepoint(alias: str) -> None:
    with transaction.atomic(using=alias, savepoint=False):
        fail("40P01", alias)


def fails_on_its_own_alias_in_such_a_block(alias: str) -> None:
    with transaction.atomic(using=alias, savepoint=False):
        fail("40P01")


TAKING_ALONG = [fails, fails_in_a_block_without_a_savepoint, fails_on_its_own_alias_in_such_a_block]


@pytest.mark.parametrize("alias", ["small", "unpooled"])
@pytest.mark.parametrize("failing", TAKING_ALONG)
def test_what_has_taken_an_outer_transaction_of_another_alias_along_is_raised(failing: Any, alias: str) -> None:
    attempts = []

    @retry_transaction(**fast)
    def work() -> None:
        attempts.append(1)
        failing(alias)

    with pytest.raises(OperationalError, match="as told") as caught, transaction.atomic(using=alias):
        work()
    assert sqlstate(caught.value) == "40P01"
    assert len(attempts) == 1


@pytest.mark.parametrize("alias", ["small", "unpooled"])
def test_nor_does_it_help_where_the_other_transaction_is_not_atomic_s(alias: str) -> None:
    transaction.set_autocommit(False, using=alias)
    try:
        with pytest.raises(OperationalError, match="as told"):
            retry_transaction(**fast)(lambda: fails(alias))()
    finally:
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)


@pytest.mark.parametrize("alias", ["small", "unpooled"])
def test_what_another_alias_survives_is_repeated(alias: str) -> None:
    attempts = []

    @retry_transaction(attempts=2, **fast)
    def work() -> None:
        attempts.append(1)
        with transaction.atomic(using=alias):
            fails(alias)

    with pytest.raises(OperationalError, match="as told"), transaction.atomic(using=alias):
        work()
    with pytest.raises(OperationalError, match="as told"):
        work()
    assert len(attempts) == 4


# ##### While it waits #####


class Waits(logging.Handler):
    """Calls a function each time that a wait begins: the record is made right before."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function
        self.records: list[Any] = []
        self.found: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.found.append(self.function())


@pytest.fixture
def waits() -> Iterator[Callable[..., Waits]]:
    logger = logging.getLogger("conn_hygiene.transactions")
    handlers = []

    def watch(function: Callable[[], Any]) -> Waits:
        handlers.append(Waits(function))
        logger.addHandler(handlers[-1])
        return handlers[-1]

    level = logger.level
    logger.setLevel(logging.INFO)
    yield watch
    logger.setLevel(level)
    for handler in handlers:
        logger.removeHandler(handler)


def failing_once() -> Callable[[], Any]:
    attempts: list[int] = []

    def body() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            fail("40001")
        return len(attempts)

    return body


def test_no_connection_of_a_pool_is_held_while_it_waits(waits: Any) -> None:
    seen = waits(lambda: holds("default"))
    assert retry_transaction(**fast)(failing_once())() == 2
    assert seen.found == [False]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Have no garbage collection in between, which would close what an error has kept open."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def reading(fail: Callable[[], Any]) -> Callable[[], Any]:
    """Return what calls *fail* while an iterator of its own has a cursor open."""

    def body() -> Any:
        rows = Item.objects.iterator(chunk_size=1)
        next(rows)
        result = fail()
        rows.close()
        return result

    return body


def in_a_chain(fail: Callable[[], Any]) -> Callable[[], Any]:
    """Return what raises an error of its own for that of *fail*, as a library might."""

    def body() -> Any:
        try:
            return fail()
        except OperationalError as exc:
            raise OperationalError("translated") from exc.__cause__

    return body


def in_a_group(fail: Callable[[], Any]) -> Callable[[], Any]:
    """Return what raises the error of *fail* in a group."""

    def body() -> Any:
        try:
            return fail()
        except OperationalError as exc:
            errors = [exc]
        raise builtins.ExceptionGroup("failed", errors)

    return body


WAYS = [
    lambda fail: fail,
    in_a_chain,
    pytest.param(
        in_a_group,
        marks=pytest.mark.skipif(not hasattr(builtins, "ExceptionGroup"), reason="Python has groups since 3.11"),
    ),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("uncollected", "items")
def test_what_the_failed_attempt_was_reading_holds_no_connection_while_it_waits(way: Any, waits: Any) -> None:
    seen = waits(lambda: holds("default"))
    assert retry_transaction(**fast)(way(reading(failing_once())))() == 2
    assert seen.found == [False]


@pytest.mark.usefixtures("uncollected", "items")
async def test_nor_does_what_an_asynchronous_one_was_reading(waits: Any) -> None:
    seen = waits(lambda: holds("default"))
    body = failing_once()

    @retry_transaction(**fast)
    async def work() -> Any:
        return await sync_to_async(reading(body))()

    assert await work() == 2
    assert seen.found == [False]


# psycopg says so of a server-side cursor.
unclosed = pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")


@unclosed
@pytest.mark.parametrize("kind", ["cursor", "chunked_cursor"])
@pytest.mark.parametrize("scope", [contextlib.nullcontext, closing_connections])
@pytest.mark.usefixtures("uncollected")
def test_nor_does_a_cursor_that_it_has_not_closed(kind: str, scope: Any, waits: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": True}
    seen = waits(lambda: holds("default"))
    fail = failing_once()

    @retry_transaction(**fast)
    def work() -> Any:
        cursor = getattr(connection, kind)()
        cursor.execute("SELECT generate_series(1, 10)")
        assert cursor.fetchone() == (1,)
        result = fail()
        cursor.close()
        return result

    before = conn_hygiene.stats().unclosed_cursors
    with scope():
        with busy_reaper():
            assert work() == 2
        assert seen.found == [False]
    let_the_reaper_look()
    assert conn_hygiene.stats().unclosed_cursors - before == 1


def places(exc: BaseException | None) -> list[str]:
    assert exc is not None
    return [place.name for place in traceback.extract_tb(exc.__traceback__)]


def test_the_last_error_keeps_its_frames_and_so_does_one_that_the_caller_is_handling() -> None:
    try:
        int("of the caller")
    except ValueError as exc:
        handled, before = exc, places(exc)
        with pytest.raises(OperationalError) as caught:
            retry_transaction(attempts=2, **fast)(lambda: fail("40001"))()
    assert caught.value.__context__.__context__ is handled
    assert places(handled) == before
    assert "fail" in places(caught.value)
    assert "execute" in places(caught.value.__cause__)


async def test_so_does_one_that_an_asynchronous_caller_is_handling() -> None:
    body = failing_once()

    @retry_transaction(**fast)
    async def work() -> Any:
        return await sync_to_async(body)()

    try:
        int("of the caller")
    except ValueError as exc:
        handled, before = exc, places(exc)
        assert await work() == 2
    # asgiref has raised it again in the thread, and is ahead of them.
    assert places(handled)[-len(before) :] == before


def begun() -> Iterator[Any]:
    """Return an iterator that has a cursor open."""
    rows = Item.objects.iterator(chunk_size=1)
    next(rows)
    return rows


def raising(error: type[BaseException]) -> Callable[[], None]:
    """Return what raises *error* while it has such an iterator in a variable."""

    def body() -> None:
        rows = begun()  # noqa: F841
        raise error

    return body


# Django's own error classes are none of them: Django keeps each in a variable of one of its own frames.
NO_REASON = [ValueError, KeyboardInterrupt]
REPEATED = psycopg.errors.SerializationFailure


@pytest.mark.parametrize("error", [*NO_REASON, REPEATED])
@pytest.mark.usefixtures("uncollected", "items")
def test_an_error_that_was_handled_keeps_no_connection(error: type[BaseException]) -> None:
    with release_between_queries():
        with contextlib.suppress(error):
            retry_transaction(attempts=2, **fast)(raising(error))()
        wait_until_released()


@pytest.mark.usefixtures("uncollected", "items")
def test_nor_does_a_refusal() -> None:
    def caller() -> None:
        rows = begun()  # noqa: F841
        with transaction.atomic():
            retry_transaction(lambda: None)()

    with release_between_queries():
        with contextlib.suppress(RuntimeError):
            caller()
        wait_until_released()


@pytest.mark.usefixtures("uncollected", "items")
def test_nor_does_one_during_whose_handling_it_was_called() -> None:
    with release_between_queries():
        try:
            raising(ValueError)()
        except ValueError:
            assert retry_transaction(**fast)(failing_once())() == 2
        wait_until_released()


def test_an_error_tells_during_whose_handling_it_was_raised() -> None:
    @retry_transaction
    def fail() -> None:
        try:
            raise KeyError
        except KeyError:
            raise ValueError  # noqa: B904

    try:
        raise LookupError
    except LookupError:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            fail()
    assert type(caught.value.__context__) is KeyError


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, REPEATED])
@pytest.mark.usefixtures("uncollected", "items")
async def test_nor_does_that_of_an_asynchronous_function(error: type[BaseException]) -> None:
    @retry_transaction(attempts=2, **fast)
    async def work() -> None:
        rows = await sync_to_async(begun)()  # noqa: F841
        raise error

    with release_between_queries():
        with contextlib.suppress(error):
            await work()
        await sync_to_async(wait_until_released)()


@pytest.mark.usefixtures("uncollected", "items")
async def test_nor_does_its_cancellation() -> None:
    reads = asyncio.Event()

    @retry_transaction
    async def work() -> None:
        rows = await sync_to_async(begun)()  # noqa: F841
        reads.set()
        await asyncio.Event().wait()

    with release_between_queries():
        task = asyncio.ensure_future(work())
        await reads.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        await sync_to_async(wait_until_released)()


def test_a_held_connection_is_kept_while_it_waits(waits: Any) -> None:
    seen = waits(lambda: holds("default"))
    with hold_connection():
        retry_transaction(**fast)(failing_once())()
    assert seen.found == [True]


def test_each_wait_is_logged(waits: Any) -> None:
    seen = waits(lambda: None)
    retry_transaction(**fast)(failing_once())()
    (record,) = seen.records
    assert (record.alias, record.attempt, record.sqlstate) == ("default", 1, "40001")
    assert record.function.endswith("failing_once.<locals>.body")
    assert 0 <= record.delay <= fast["delay"]
    assert "failed in attempt 1 with SQLSTATE 40001" in record.getMessage()


# ##### Where it cannot work #####


def test_it_refuses_an_outer_transaction() -> None:
    work = retry_transaction(lambda: None)
    with (
        transaction.atomic(),
        pytest.raises(RuntimeError, match=r"inside atomic.*@transaction\.non_atomic_requests\.$"),
    ):
        work()
    with pytest.raises(RuntimeError, match="inside atomic"):
        retry_transaction(work)()
    with transaction.atomic(using="unpooled"):
        work()
    transaction.set_autocommit(False)
    try:
        with pytest.raises(RuntimeError, match="autocommit is off"):
            work()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_it_says_how_to_exempt_a_view_from_atomic_requests_of_the_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections["small"].settings_dict, "ATOMIC_REQUESTS", True)

    @transaction.non_atomic_requests
    def only_the_default(request: HttpRequest) -> HttpResponse:
        retry_transaction(using="small")(lambda: None)()
        return HttpResponse()

    def respond(view: Any) -> Any:
        return BaseHandler().make_view_atomic(view)(HttpRequest())

    with pytest.raises(RuntimeError, match=r"add @transaction\.non_atomic_requests\(using='small'\)\.$"):
        respond(only_the_default)
    assert respond(transaction.non_atomic_requests(using="small")(only_the_default)).status_code == 200


class RetryInTestCase(TestCase):
    def test_it_works_and_adds_no_hook(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            assert retry_transaction(**fast)(failing_once())() == 2
        assert callbacks == []


def generator() -> Iterator[int]:
    yield 1


async def asynchronous_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (generator, "Return a list"),
        (asynchronous_generator, "Return a list"),
        (View, "Decorate a method"),
        (staticmethod(len), "below @staticmethod"),
        ("default", r"The alias is given as retry_transaction\(using=\.\.\.\)\.$"),
        (None, "decorates functions, not None"),
    ],
)
def test_what_cannot_be_repeated_is_refused_at_decoration(what: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        retry_transaction(what)


MOST = conf.LONGEST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attempts": None}, "needs a limit: attempts, seconds, or both."),
        *(({"attempts": value}, "takes 1 attempt or more, or None for no limit, not {}.") for value in (0, -1)),
        *(
            ({"seconds": value}, f"takes seconds above 0 and up to {MOST}, or None for no limit, not {{}}.")
            for value in (0, -1, math.nan, math.inf, 4e10, 10**400)
        ),
        *(
            ({name: value}, f"takes 0 to {MOST} seconds as {name}, not {{}}.")
            for name in ("delay", "max_delay")
            for value in (-1, math.nan, math.inf, 4e10, 10**400)
        ),
        ({"delay": 10}, "takes a delay of at most max_delay, which is 5.0, not {}."),
        ({"max_delay": 1, "delay": 2}, "takes a delay of at most max_delay, which is 1, not {}."),
    ],
    ids=lambda each: repr(each)[:30],
)
def test_limits_that_make_no_sense_are_refused_by_name_and_value(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^retry_transaction\(\) ") as caught:
        retry_transaction(**arguments)
    value = list(arguments.values())[-1]
    assert str(caught.value) == f"retry_transaction() {message.format(repr(value))}"


@pytest.mark.parametrize("value", ["no", None, 1], ids=repr)
def test_a_choice_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        retry_transaction(lock_not_available=value)
    assert str(caught.value) == f"retry_transaction() takes True or False as lock_not_available, not {value!r}."


@pytest.mark.parametrize("name", ["attempts", "seconds", "delay", "max_delay"])
@pytest.mark.parametrize("value", ["1", True, [], Decimal(1)], ids=repr)
def test_limits_that_are_no_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=r"retry_transaction\(\) takes a "):
        retry_transaction(**{name: value})


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_attempts_are_whole(value: Any) -> None:
    with pytest.raises(TypeError, match="a whole number of attempts"):
        retry_transaction(attempts=value)


def test_an_unknown_alias_is_refused() -> None:
    with pytest.raises(Exception, match="'nowhere'"):
        retry_transaction(using="nowhere")


async def later() -> None:
    pass


@pytest.mark.parametrize("result", [generator, later])
def test_a_result_that_has_yet_to_run_is_refused(result: Any) -> None:
    @retry_transaction
    def work() -> Any:
        Item.objects.create(name="gone")
        return result()

    with pytest.raises(TypeError, match="would run after its transaction"):
        work()
    assert Item.objects.count() == 0


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "tenacity":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImproperlyConfigured, match=r'pip install "django-conn-hygiene\[retry\]"'):
        retry_transaction(lambda: None)


# ##### Asynchronous functions #####


@pytest.mark.parametrize("alias", ALIASES)
def test_an_asynchronous_function_survives_a_deadlock(alias: str, items: tuple[int, int]) -> None:
    def decorate(transfer: Callable[[], None]) -> Callable[[], None]:
        @retry_transaction(using=alias, **fast)
        async def asynchronous() -> None:
            await sync_to_async(transfer)()

        # A loop of its own in each thread, and with it a thread for the ORM.
        return async_to_sync(asynchronous)

    assert sum(deadlock(alias, items, decorate)) > 2
    assert values() == [2, 2]


async def test_an_asynchronous_function_is_one_transaction() -> None:
    @retry_transaction(**fast)
    async def create() -> bool:
        await Item.objects.acreate(name="gone")
        inside = await sync_to_async(lambda: connection.in_atomic_block)()
        assert inside
        raise LookupError

    with pytest.raises(LookupError):
        await create()
    assert await Item.objects.acount() == 0


async def test_an_asynchronous_function_is_not_repeated_for_whom_tenacity_would() -> None:
    attempts: list[int] = []

    @retry_transaction(**fast)
    async def work() -> None:
        attempts.append(1)
        raise tenacity.TryAgain

    with pytest.raises(tenacity.TryAgain):
        await work()
    assert len(attempts) == 1


async def test_queries_of_other_tasks_stay_out_of_it() -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    @retry_transaction
    async def fails() -> None:
        await Item.objects.acreate(name="gone")
        begun.set()
        # The other task is at its query by now, and does not get to run it.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), 0.05)
        raise LookupError

    async def other() -> None:
        await begun.wait()
        await Item.objects.acreate(name="stays")
        done.set()

    results = await asyncio.gather(fails(), other(), return_exceptions=True)
    assert isinstance(results[0], LookupError)
    assert [item.name async for item in Item.objects.all()] == ["stays"]


async def test_a_task_in_a_context_from_before_the_call_queries_on_its_own() -> None:
    async def query() -> tuple[int, bool]:
        return await Item.objects.acount(), await sync_to_async(lambda: connection.in_atomic_block)()

    @retry_transaction
    async def work(outside: contextvars.Context) -> asyncio.Task[tuple[int, bool]]:
        await Item.objects.acreate(name="first")
        task = outside.run(asyncio.create_task, query())
        await Item.objects.acreate(name="second")
        return task

    assert await (await work(contextvars.copy_context())) == (2, False)


async def test_cancellation_rolls_back_and_is_not_repeated() -> None:
    attempts: list[int] = []
    begun = asyncio.Event()

    @retry_transaction
    async def waits() -> None:
        attempts.append(1)
        await Item.objects.acreate(name="gone")
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(waits())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await Item.objects.acount() == 0
    assert len(attempts) == 1


async def test_who_is_told_of_a_repetition_may_query() -> None:
    told: list[Any] = []
    body = failing_once()

    def listener(event: TransactionRetried) -> None:
        told.append((event.sqlstate, threading.get_ident(), Item.objects.count()))

    @retry_transaction(**fast)
    async def work() -> Any:
        return await sync_to_async(body)()

    events.listen(TransactionRetried, listener)
    try:
        await work()
    finally:
        events.unlisten(TransactionRetried, listener)
    assert told == [("40001", await sync_to_async(threading.get_ident)(), 0)]


def in_groups(*names: str) -> BaseException:
    """Return a group of a group of errors, each of the class of that name."""
    group: Any = builtins.ExceptionGroup
    classes = {name: getattr(psycopg.errors, name, getattr(transaction, name, None)) for name in names}
    made: BaseException = group("2", [group("1", [(classes[name] or getattr(builtins, name))() for name in names])])
    return made


@pytest.mark.skipif(not hasattr(builtins, "ExceptionGroup"), reason="Python has exception groups since 3.11")
@pytest.mark.parametrize(
    ("names", "attempts"),
    [
        (("DeadlockDetected",), 2),
        (("SerializationFailure", "InFailedSqlTransaction", "TransactionManagementError"), 2),
        (("InFailedSqlTransaction", "DeadlockDetected"), 2),
        (("DeadlockDetected", "KeyError"), 1),
        (("DeadlockDetected", "UniqueViolation"), 1),
        (("InFailedSqlTransaction",), 1),
    ],
)
def test_a_group_of_errors_is_repeated_if_all_of_them_come_from_one_that_is(
    names: tuple[str, ...], attempts: int
) -> None:
    ran: list[int] = []

    @retry_transaction(attempts=2, **fast)
    def work() -> None:
        ran.append(1)
        raise in_groups(*names)

    with pytest.raises(Exception, match="2"):
        work()
    assert len(ran) == attempts


async def test_an_asynchronous_function_waits_without_the_thread(waits: Any) -> None:
    seen = waits(lambda: holds("default"))
    body = failing_once()

    @retry_transaction(**fast)
    async def work() -> int:
        return await sync_to_async(body)()

    assert await work() == 2
    assert seen.found == [False]


async def test_it_refuses_an_outer_transaction_of_the_thread() -> None:
    @retry_transaction
    async def inner() -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match="inside atomic"):
        await retry_transaction(inner)()


def test_errors_are_the_database_s_own() -> None:
    with pytest.raises(Error):
        retry_transaction(attempts=1)(lambda: fail("40P01"))()
