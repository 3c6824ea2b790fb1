"""Django's own test classes, on top of the toolkit."""

from __future__ import annotations

import threading
import unittest
from contextlib import suppress
from typing import Any, ClassVar

import httpx
import pytest
from django.core.servers.basehttp import ThreadedWSGIServer
from django.db import DatabaseError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import (
    Client,
    LiveServerTestCase,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
)
from django.test.testcases import DatabaseOperationForbidden, LiveServerThread
from django.urls import path

import conn_hygiene
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until_released

ALIASES = {"default", "unpooled"}

AT_ONCE = override_settings(
    CONN_HYGIENE={"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0},
)
AFTER_A_GRACE = override_settings(
    CONN_HYGIENE={"RELEASE": "always", "RELEASE_AFTER": 0.001, "UNPOOLED_RELEASE_AFTER": 0.001},
)


def view(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Item.objects.create(name=request.GET["name"])
    names = Item.objects.order_by("pk").values_list("name", flat=True)
    return HttpResponse(",".join(names))


def failing_view(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Item.objects.create(name="lost")
        raise ZeroDivisionError


urlpatterns = [path("", view), path("fail/", failing_view)]


def pid(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


# ##### TestCase: one transaction around each test and each class #####


class InTestCase(TestCase):
    databases = ALIASES
    __test__ = False

    first: ClassVar[Item]
    pids: ClassVar[set[int]]

    @classmethod
    def setUpTestData(cls) -> None:
        cls.first = Item.objects.create(name="from setUpTestData")
        cls.pids = {pid()}

    def test_the_connection_stays_for_the_whole_class(self) -> None:
        pid()
        let_the_reaper_look()
        assert holds("default")
        assert connection.in_atomic_block
        assert self.pids == {pid()}

    def test_data_of_the_class_is_there_and_changes_are_undone(self) -> None:
        assert Item.objects.get() == self.first
        Item.objects.update(name="changed")
        let_the_reaper_look()
        assert Item.objects.get().name == "changed"

    def test_data_of_the_class_is_there_unchanged_by_another_test(self) -> None:
        assert Item.objects.get().name == self.first.name == "from setUpTestData"
        self.first.delete()

    def test_savepoints(self) -> None:
        with transaction.atomic():
            Item.objects.create(name="kept")
            with suppress(ZeroDivisionError), transaction.atomic():
                Item.objects.create(name="undone")
                raise ZeroDivisionError
            let_the_reaper_look()
        assert Item.objects.count() == 2

    def test_a_broken_savepoint(self) -> None:
        with pytest.raises(DatabaseError), transaction.atomic():
            Item.objects.create(pk=self.first.pk)
        assert Item.objects.count() == 1

    def test_captured_commit_hooks_run_in_order_and_may_query(self) -> None:
        ran: list[Any] = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(lambda: ran.append(Item.objects.count()))
            transaction.on_commit(lambda: ran.append("second"))
            assert ran == []
        assert ran == [1, "second"]
        assert len(callbacks) == 2

    def test_hooks_that_are_not_captured_do_not_run(self) -> None:
        transaction.on_commit(lambda: pytest.fail("ran"))
        pid()

    def test_number_of_queries(self) -> None:
        with self.assertNumQueries(2):
            pid()
            Item.objects.count()

    def test_server_side_cursors(self) -> None:
        Item.objects.bulk_create(Item(name="n") for _ in range(5))
        rows = Item.objects.iterator(chunk_size=2)
        next(rows)
        let_the_reaper_look()
        assert len(list(rows)) == 5

    def test_requests_of_the_client_are_in_the_same_transaction(self) -> None:
        assert self.client.get("/?name=a").content == b"from setUpTestData,a"
        assert self.client.get("/?name=b").content == b"from setUpTestData,a,b"
        assert Item.objects.count() == 3
        assert {pid()} == self.pids

    def test_a_request_that_fails_undoes_its_own_only(self) -> None:
        Client(raise_request_exception=False).get("/fail/")
        assert list(Item.objects.all()) == [self.first]
        assert {pid()} == self.pids

    def test_another_alias_has_a_transaction_of_its_own(self) -> None:
        Item.objects.using("unpooled").create(name="there")
        let_the_reaper_look()
        assert holds("unpooled")
        assert Item.objects.filter(name="there").count() == 0

    def test_release_connections_leaves_the_transaction_alone(self) -> None:
        Item.objects.create(name="kept")
        assert conn_hygiene.release_connections() == 0
        with conn_hygiene.release_between_queries():
            pid()
        let_the_reaper_look()
        assert Item.objects.filter(name="kept").exists()


@AT_ONCE
@override_settings(ROOT_URLCONF=__name__)
class TestInTestCaseAtOnce(InTestCase):
    __test__ = True


@AFTER_A_GRACE
@override_settings(ROOT_URLCONF=__name__)
class TestInTestCaseAfterAGrace(InTestCase):
    __test__ = True


# ##### TransactionTestCase: real transactions, and tables that are emptied #####


class InTransactionTestCase(TransactionTestCase):
    databases = ALIASES
    __test__ = False

    def test_connections_go_back(self) -> None:
        for alias in self.databases:
            Item.objects.using(alias).create(name="a")
            wait_until_released(alias)
        assert Item.objects.count() == 2

    def test_tables_were_emptied(self) -> None:
        assert not Item.objects.exists()

    def test_commit_hooks_run(self) -> None:
        ran: list[Any] = []
        with transaction.atomic():
            transaction.on_commit(lambda: ran.append(Item.objects.count()))
            Item.objects.create(name="a")
        assert ran == [1]
        wait_until_released()

    def test_requests_of_the_client(self) -> None:
        assert self.client.get("/?name=a").content == b"a"
        wait_until_released()
        assert self.client.get("/?name=b").content == b"a,b"

    def test_number_of_queries(self) -> None:
        with self.assertNumQueries(2):
            pid()
            Item.objects.count()
        assert not connection.in_atomic_block

    def test_other_threads_see_what_was_committed(self) -> None:
        Item.objects.create(name="a")
        seen: list[Any] = []

        def look() -> None:
            with conn_hygiene.closing_connections():
                seen.append(Item.objects.get().name)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == ["a"]

    def test_a_class_without_databases_is_refused_a_connection_that_was_given_back(self) -> None:
        class WithoutDatabases(SimpleTestCase):
            def test(self) -> None:
                for use in (pid, connection.connect, connection.ensure_connection, lambda: connection.connection):
                    with pytest.raises(DatabaseOperationForbidden):
                        use()
                Client().get("/nowhere/")

        pid()
        wait_until_released()
        result = unittest.TestResult()
        unittest.TestSuite([WithoutDatabases("test")]).run(result)
        assert (result.testsRun, result.errors, result.failures) == (1, [], [])
        assert not holds("default")
        assert pid()


@AT_ONCE
@override_settings(ROOT_URLCONF=__name__)
class TestInTransactionTestCaseAtOnce(InTransactionTestCase):
    __test__ = True


@AFTER_A_GRACE
@override_settings(ROOT_URLCONF=__name__)
class TestInTransactionTestCaseAfterAGrace(InTransactionTestCase):
    __test__ = True


@AFTER_A_GRACE
class TestSerializedRollback(TransactionTestCase):
    serialized_rollback = True

    def test_tables_are_filled_again_after_it(self) -> None:
        Item.objects.create(name="a")
        wait_until_released()


# ##### LiveServerTestCase: server threads, and a connection that is shared with them #####


class InLiveServerTestCase(LiveServerTestCase):
    databases = ALIASES
    __test__ = False

    def get(self, name: str) -> str:
        return httpx.get(f"{self.live_server_url}/?name={name}").raise_for_status().text

    def test_requests_see_the_tests_data_and_the_test_sees_theirs(self) -> None:
        Item.objects.create(name="mine")
        assert self.get("a") == "mine,a"
        assert self.get("b") == "mine,a,b"
        assert Item.objects.count() == 3
        wait_until_released()

    def test_many_requests_at_once(self) -> None:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(self.get(str(n)))) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 12
        assert Item.objects.count() == 12


@AT_ONCE
@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/", MEDIA_URL="/media/")
class TestInLiveServerTestCaseAtOnce(InLiveServerTestCase):
    __test__ = True


@AFTER_A_GRACE
@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/", MEDIA_URL="/media/")
class TestInLiveServerTestCaseAfterAGrace(InLiveServerTestCase):
    __test__ = True


class KeepingServer(ThreadedWSGIServer):
    """Leaves connections open at the end of a request."""

    def _close_connections(self) -> None:
        pass


class KeepingServerThread(LiveServerThread):
    server_class = KeepingServer


class InSharingLiveServerTestCase(LiveServerTestCase):
    """Shares the test's connection with the server's threads, which Django does for SQLite in memory.

    That stays open by itself. Others must be kept from being closed with each request.
    """

    __test__ = False
    server_thread_class = KeepingServerThread

    @classmethod
    def _make_connections_override(cls) -> dict[str, Any]:
        wrapper: Any = connections["default"]
        wrapper.close_if_unusable_or_obsolete = lambda: None
        cls.addClassCleanup(delattr, wrapper, "close_if_unusable_or_obsolete")
        return {"default": wrapper}

    def get(self, name: str) -> str:
        return httpx.get(f"{self.live_server_url}/?name={name}").raise_for_status().text

    def test_the_shared_connection_is_never_parked(self) -> None:
        before = pid()
        for name in "abc":
            self.get(name)
            let_the_reaper_look()
            assert holds("default")
        assert pid() == before
        assert Item.objects.count() == 3

    def test_requests_are_in_the_tests_own_transaction(self) -> None:
        with transaction.atomic():
            Item.objects.create(name="mine")
            assert self.get("a") == "mine,a"
            assert self.get("b") == "mine,a,b"
            let_the_reaper_look()
            assert Item.objects.count() == 3
            transaction.set_rollback(True)
        assert not Item.objects.exists()


@AT_ONCE
@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/", MEDIA_URL="/media/")
class TestInSharingLiveServerTestCaseAtOnce(InSharingLiveServerTestCase):
    __test__ = True


@AFTER_A_GRACE
@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/", MEDIA_URL="/media/")
class TestInSharingLiveServerTestCaseAfterAGrace(InSharingLiveServerTestCase):
    __test__ = True


# ##### SimpleTestCase: no database at all #####


class InSimpleTestCase(SimpleTestCase):
    __test__ = False

    def test_queries_are_refused(self) -> None:
        for _ in range(2):
            with pytest.raises(DatabaseOperationForbidden, match="not allowed"):
                connection.cursor()
            with pytest.raises(DatabaseOperationForbidden, match="not allowed"):
                connection.connect()
            with pytest.raises(DatabaseOperationForbidden, match="not allowed"):
                Item.objects.count()

    def test_queries_in_threads_are_refused(self) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                Item.objects.count()
            except BaseException as exc:  # noqa: BLE001 - which it is, is what is tested
                raised.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert isinstance(raised[0], DatabaseOperationForbidden)


@AT_ONCE
class TestInSimpleTestCaseAtOnce(InSimpleTestCase):
    __test__ = True


@AFTER_A_GRACE
class TestInSimpleTestCaseAfterAGrace(InSimpleTestCase):
    __test__ = True
