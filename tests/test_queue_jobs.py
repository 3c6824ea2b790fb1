"""Jobs of task queues in this process: to the toolkit, each is what a request is."""

from __future__ import annotations

import contextvars
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.http import FileResponse

from conn_hygiene import internals
from conn_hygiene.work import serving
from tests.waiting import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"])

every_alias = pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])


def ask(sql: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def set_tenant(alias: str = "default") -> Any:
    return ask("SELECT set_config('app.tenant', '42', false)", alias)


def tenant(alias: str = "default") -> Any:
    return ask("SELECT coalesce(current_setting('app.tenant', true), '')", alias)


# ##### Each queue runs a job in this thread #####


def run_by_celery(job: Callable[[], None]) -> None:
    contrib = pytest.importorskip("conn_hygiene.contrib.celery", exc_type=ImportError)
    with contrib._task("task"):
        job()
    contrib.jobs.close_connections(contrib.logger)


def run_by_dramatiq(job: Callable[[], None]) -> None:
    with messages() as process:
        process(job)


@contextmanager
def messages() -> Iterator[Callable[..., None]]:
    """Yield what has a worker of Dramatiq's process jobs, all of a call at once, and raises what they raise."""
    dramatiq = pytest.importorskip("dramatiq")
    from dramatiq.brokers.stub import StubBroker

    from conn_hygiene.contrib.dramatiq import ConnectionHygieneMiddleware

    broker = StubBroker(middleware=[dramatiq.middleware.AsyncIO(), ConnectionHygieneMiddleware()])
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=4, worker_timeout=10)
    worker.start()

    def process(*jobs: Callable[[], Any]) -> None:
        actors = [dramatiq.actor(job, broker=broker, actor_name=f"job{number}") for number, job in enumerate(jobs)]
        for actor in actors:
            actor.send()
        broker.join("default", fail_fast=True, timeout=30_000)
        worker.join()
        broker.actors.clear()

    try:
        yield process
    finally:
        worker.stop()
        broker.close()


every_queue = pytest.mark.parametrize("run", [run_by_celery, run_by_dramatiq])


@every_queue
@every_alias
@pytest.mark.parametrize("grace", [0, 60])
def test_what_a_job_sets_in_a_thread_that_outlives_it_no_other_has(
    run: Callable[[Callable[[], None]], None], alias: str, grace: float, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    read = []
    with ThreadPoolExecutor(1) as executor:

        def in_thread(work: Callable[[str], Any]) -> Any:
            # As asyncio.to_thread() does it.
            return executor.submit(contextvars.copy_context().run, work, alias).result()

        def sets() -> None:
            in_thread(set_tenant)
            # Within the job, it follows.
            read.append(in_thread(tenant))

        def reads() -> None:
            read.append(in_thread(tenant))

        run(sets)
        run(reads)
        executor.submit(connections.close_all).result()
    assert read == ["42", ""]


@every_queue
def test_the_end_of_a_response_in_a_job_is_not_the_jobs(run: Callable[[Callable[[], None]], None]) -> None:
    seen = []

    def job() -> None:
        label = serving.label
        set_tenant("persistent")
        with tempfile.TemporaryFile() as file:
            FileResponse(file).close()
        seen.append((serving.label == label, tenant("persistent")))

    run(job)
    assert seen == [(True, "42")]


# ##### Asynchronous actors, which Dramatiq runs in one event loop #####


def test_an_async_actor_queries_in_a_thread_of_its_own() -> None:
    """And each goes on in its own session, whatever the others do meanwhile."""
    arrived = threading.Barrier(2, timeout=30)
    found = []

    def begin() -> None:
        ask("CREATE TEMPORARY TABLE mine (n int)")
        ask("INSERT INTO mine VALUES (1)")
        set_tenant()
        arrived.wait()

    def end() -> None:
        found.append((serving.label, threading.get_ident(), tenant(), ask("SELECT count(*) FROM mine")))

    async def job() -> None:
        await sync_to_async(begin)()
        await sync_to_async(end)()

    with messages() as process:
        process(job, job)
        assert {label for label, *_ in found} == {"actor job0", "actor job1"}
        assert len({thread for _, thread, *_ in found}) == 2
        assert [rest for _, _, *rest in found] == [["42", 1]] * 2
        assert not holds("default")
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("conn-hygiene-actor")] == []


def test_a_transaction_that_an_async_actor_leaves_open_is_rolled_back(caplog: pytest.LogCaptureFixture) -> None:
    def leave_open() -> None:
        transaction.set_autocommit(False)
        connection.ensure_connection()
        ask("SELECT 1")

    async def job() -> None:
        await sync_to_async(leave_open)()

    with messages() as process:
        process(job)
    (record,) = [record for record in caplog.records if record.name == "conn_hygiene.transactions"]
    assert record.getMessage().startswith("actor job0 left a transaction open")
    assert not holds("default")


def test_without_asgirefs_names_async_actors_share_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals.ASYNC_TASKS, "available", False)
    names = []

    async def job() -> None:
        names.append(await sync_to_async(lambda: threading.current_thread().name)())

    with messages() as process:
        process(job, job)
    assert len(set(names)) == 1
