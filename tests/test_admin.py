"""The admin's page of connections: who may see it, what it shows, and what it ends. In a browser: tests/browser."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.checks.registry import registry
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models.signals import post_migrate, pre_migrate
from django.test import Client, override_settings
from django.urls import clear_url_caches

import conn_hygiene
from conn_hygiene.contrib.admin import looking, tickets
from conn_hygiene.reports import answering
from conn_hygiene.reports import live as live_reports
from conn_hygiene.server import sessions as server
from tests.adminsite import settings as of_site
from tests.test_connections_command import configured
from tests.test_doctor import needs_pgbouncer, saturated, through
from tests.testapp.models import Item
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["configured", "saturated", "through"]  # fixtures

_DATABASES = ["default", "small", "unpooled", "persistent"]

pytestmark = pytest.mark.django_db(databases=_DATABASES)
# For what another session has to see, or what the page's own thread must not hold.
committing = pytest.mark.django_db(transaction=True, databases=_DATABASES)

PAGE, LIVE, FINDINGS = [f"/admin/conn_hygiene_admin/connections/{name}" for name in ("", "live/", "findings/")]
LOGIN = "/admin/login/"

# What the site has beyond the tests' own settings.
_SITE = {name: getattr(of_site, name) for name in dir(of_site) if name.isupper() and name != "DATABASES"}
_APPS = ("admin", "auth", "contenttypes", "sessions", "conn_hygiene_admin")


@contextmanager
def _without_traces() -> Iterator[None]:
    """Take back what applications register for good when they become ready: checks, and what is done at a migration."""
    checks = set(registry.registered_checks)
    receivers = {signal: signal.receivers[:] for signal in (pre_migrate, post_migrate)}
    yield
    registry.registered_checks = checks
    for signal, before in receivers.items():
        signal.receivers = before
        signal.sender_receivers_cache.clear()


@pytest.fixture(scope="module", autouse=True)
def _site(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The applications of the site, and their tables, for as long as this module's tests run."""
    with _without_traces(), override_settings(**_SITE):
        with django_db_blocker.unblock():
            call_command("migrate", verbosity=0)
            connections.close_all()
        yield
        with django_db_blocker.unblock(), connections["default"].cursor() as cursor:
            tables = [name for name in connections["default"].introspection.table_names() if name.startswith(_TABLES)]
            cursor.execute(f"DROP TABLE {', '.join(tables)} CASCADE")
            cursor.execute("DELETE FROM django_migrations WHERE app = ANY(%s)", [list(_APPS)])
            connections.close_all()
    clear_url_caches()


_TABLES = ("auth_", "django_admin_", "django_content_type", "django_session")


def user(*permissions: str, staff: bool = True) -> Any:
    from django.contrib.auth.models import Permission, User

    created = User.objects.create_user(f"user-{'-'.join(permissions)}-{staff}", password="password", is_staff=staff)
    created.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return created


def client_of(*permissions: str, **options: Any) -> Client:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user(*permissions, **options))
    return client


@pytest.fixture
def database_watcher(db: None) -> Iterator[psycopg.Connection]:
    with session() as found:
        yield found


@pytest.fixture
def viewer() -> Client:
    return client_of("view_connections")


@pytest.fixture
def operator() -> Client:
    return client_of("view_connections", "terminate_session")


@contextmanager
def session(**parameters: Any) -> Iterator[psycopg.Connection]:
    """A session of the project's own role and database, as another process of it might have."""
    found = psycopg.connect(**connections["default"].get_connection_params() | {"autocommit": True} | parameters)
    # Its own way out of a "with" commits, which one that was ended cannot.
    with closing(found):
        yield found


def address_of(connection: psycopg.Connection, alias: str = "default", *, later: int = 0) -> str:
    # By the server itself: what a server was started with may be no time zone of Python's.
    [(pid, micros)] = connection.execute(
        "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity "
        "WHERE pid = pg_backend_pid()"
    ).fetchall()
    return f"{PAGE}terminate/{pid}/{micros + later}/{alias}/"


def confirmed(client: Client, address: str, **changes: Any) -> Any:
    """Ask for the confirmation at *address*, and confirm it as its form does."""
    page = client.get(address)
    assert page.status_code == 200
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.content.decode()))
    return client.post(address, fields | changes)


def messages_of(client: Client) -> list[str]:
    page = client.get(PAGE)
    return [str(message) for message in page.context["messages"]]


# ##### Who may see it #####


@pytest.mark.parametrize("address", [PAGE, LIVE, FINDINGS, f"{PAGE}terminate/1/1/default/"])
def test_who_is_not_of_the_staff_is_sent_to_the_login_as_by_the_admin(address: str) -> None:
    may_all = client_of("view_connections", "terminate_session", staff=False)
    for client in (Client(), may_all):
        answer = client.get(address)
        assert (answer.status_code, answer.url.split("?")[0]) == (302, LOGIN)


@pytest.mark.parametrize("address", [PAGE, LIVE, FINDINGS, f"{PAGE}terminate/1/1/default/"])
@pytest.mark.parametrize("permissions", [[], ["terminate_session"], ["add_user"]])
def test_staff_need_the_permission_to_view(address: str, permissions: list[str]) -> None:
    assert client_of(*permissions).get(address).status_code == 403


def test_those_with_it_see_the_page_and_its_link_and_no_more(viewer: Client) -> None:
    index = viewer.get("/admin/").content.decode()
    assert f'<a href="{PAGE}"' in index
    assert "Connections" in index
    assert "/add/" not in index
    with session() as other:
        page = viewer.get(PAGE)
        assert page.status_code == 200
        assert str(other.info.backend_pid) in page.content.decode()
        assert "terminate" not in page.content.decode().lower()
        assert viewer.get(address_of(other)).status_code == 403
        assert viewer.post(address_of(other)).status_code == 403
        assert other.execute("SELECT 1").fetchone() == (1,)


def test_who_may_not_view_finds_no_link() -> None:
    assert PAGE not in client_of("terminate_session", "view_user").get("/admin/").content.decode()


def test_nothing_else_of_the_model_has_an_address(operator: Client) -> None:
    for address in ("add/", "1/change/", "1/delete/", "1/history/"):
        # The site answers so to addresses that it does not know.
        assert operator.get(f"{PAGE}{address}").status_code == 404


def test_an_own_site_can_register_it(operator: Client) -> None:
    page = operator.get("/operations/conn_hygiene_admin/connections/").content.decode()
    assert 'data-live="/operations/conn_hygiene_admin/connections/live/"' in page
    assert 'href="/admin/' not in page


# ##### What it leaves in the database #####


def test_there_is_no_table_and_nothing_that_asks_for_one() -> None:
    from conn_hygiene.contrib.admin.models import Connections

    assert Connections._meta.db_table not in connections["default"].introspection.table_names()
    out = io.StringIO()
    call_command("dumpdata", stdout=out)
    call_command("dumpdata", all=True, stdout=out)
    assert not Connections.objects.exists()


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "conn_hygiene_admin", check=True, dry_run=True, verbosity=0)


# ##### What it shows #####


def live(client: Client, page: Any = None) -> dict[str, Any]:
    answer = client.get(LIVE, headers={tickets.HEADER: ticket_on(page)} if page else {})
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def ticket_on(page: Any) -> str:
    [ticket] = re.findall(r'data-ticket="([^"]*)"', page.content.decode())
    return str(ticket)


@contextmanager
def in_thread(work: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """Run *work* in a thread of its own, up to where it sets the first event; it ends when the second is set."""
    ready, done = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def run() -> None:
        try:
            work(ready, done)
        except Exception as error:  # noqa: BLE001 - the test's own failure, told by its thread
            failures.append(error)
            ready.set()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name="holder")
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        done.set()
        thread.join()
    assert failures == []


def hold(ready: threading.Event, done: threading.Event) -> None:
    with transaction.atomic():
        list(Item.objects.filter(name="a secret"))
        ready.set()
        done.wait(10)


@committing
def test_a_lease_is_shown_by_its_thread_and_line_and_its_statement_masked(viewer: Client) -> None:
    with in_thread(hold):
        [lease] = [each for each in conn_hygiene.snapshot() if each.thread_name == "holder"]
        shown = live(viewer)["html"]
        assert "in hold" in shown
        # A pool tells no more of what is not in it.
        assert "In use or being opened" in shown
        assert "holder" in shown
        assert str(lease.server_pid) in shown
        assert "a secret" not in shown
        assert "FROM &quot;testapp_item&quot; WHERE" in shown
    wait_until_released()
    assert "holder" not in live(viewer)["html"]


@committing
def test_statements_of_sessions_are_masked_whatever_is_logged(viewer: Client, settings: Any) -> None:
    settings.CONN_HYGIENE = {"LOG_STATEMENTS": "raw"}
    with session() as other:
        other.execute("SELECT 'a secret', 4711 AS number")
        html = viewer.get(PAGE).content.decode()
    assert "SELECT ?, ? AS number" in html
    assert "a secret" not in html


@committing
def test_who_blocks_whom_is_said(viewer: Client) -> None:
    with session() as first, session() as second:
        first.execute("BEGIN")
        first.execute("SELECT pg_advisory_xact_lock(4711)")
        waiting = threading.Thread(target=lambda: second.execute("SELECT pg_advisory_xact_lock_shared(4711)"))
        waiting.start()
        try:
            pid = second.info.backend_pid
            wait_until(lambda: f"blocked by {first.info.backend_pid}" in live(viewer)["html"], f"{pid} waits")
            answer = live(viewer)
            assert "blocks 1" in answer["html"]
            assert "1 idle in transaction, 1 waiting for a lock" in answer["summary"]
        finally:
            first.execute("COMMIT")
            waiting.join()


@committing
def test_who_blocks_most_is_at_the_root_of_it(viewer: Client, database_watcher: psycopg.Connection) -> None:
    """Of those that want the same row, one waits for who has it, and the others for that one."""
    item = Item.objects.create(name="wanted")
    update = f"UPDATE testapp_item SET name = name WHERE id = {item.pk}"
    with ExitStack() as stack:
        root, *victims = [stack.enter_context(session()) for _ in range(4)]
        root.execute("BEGIN")
        root.execute(update)
        pid, *pids = [each.info.backend_pid for each in (root, *victims)]
        threads = [threading.Thread(target=victim.execute, args=[update]) for victim in victims]
        for thread in threads:
            thread.start()
        try:
            waiting = "SELECT count(*) FROM unnest(%s::int[]) AS pid WHERE pg_blocking_pids(pid) <> '{}'"
            wait_until(lambda: database_watcher.execute(waiting, [pids]).fetchone() == (3,), "all wait")
            blocks = {row.session.pid: row.blocks for database in looking.look().databases for row in database.rows}
        finally:
            root.execute("COMMIT")
            for thread in threads:
                thread.join()
    assert blocks[pid] == 3
    assert max(blocks[each] for each in pids) == 2


def test_who_waits_for_itself_in_the_end_is_not_counted_by_itself() -> None:
    """As in a deadlock that the server has not found yet."""
    waits = {1: [2], 2: [3], 3: [1], 4: [1, 1], 5: []}
    assert looking._waiting_for(waits) == {1: 3, 2: 3, 3: 3}


def test_its_own_sessions_are_not_among_them(viewer: Client) -> None:
    assert "conn_hygiene admin" not in viewer.get(PAGE).content.decode()


@committing
def test_it_holds_no_connection_while_it_looks(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    look = looking.look

    def watched() -> looking.Look:
        held.append(len(conn_hygiene.snapshot()))
        return look()

    monkeypatch.setattr(looking, "look", watched)
    viewer.get(PAGE)
    live(viewer)
    assert held == [0, 0]


def test_the_findings_are_those_of_the_doctor(viewer: Client) -> None:
    findings = json.loads(viewer.get(FINDINGS).content)["html"]
    assert "No statement_timeout is in effect." in findings
    assert findings.count("<h3>") == len(looking.findings())
    # Without JavaScript, on the page itself.
    assert "No statement_timeout is in effect." in viewer.get(f"{PAGE}?findings").content.decode()


def test_nothing_in_it_needs_a_laxer_policy_than_the_admin(operator: Client) -> None:
    with session() as other:
        for address in (PAGE, address_of(other)):
            page = operator.get(address).content.decode()
            assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=|javascript:", page)


@committing
def test_names_that_others_chose_are_escaped(viewer: Client) -> None:
    with session(application_name="<script>alert(1)</script>"):
        html = viewer.get(PAGE).content.decode()
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert" not in html


@committing
def test_names_of_threads_are_shown_whatever_is_in_them(viewer: Client) -> None:
    with in_thread(hold):
        [thread] = [each for each in threading.enumerate() if each.name == "holder"]
        # As of a file whose name is in no encoding; and one that turns the direction of what follows.
        thread.name = "<b>of \udcff \u202eholder"
        page = viewer.get(PAGE).content.decode()
        shown = live(viewer)["html"]
    assert "&lt;b&gt;of holder" in page
    assert "&lt;b&gt;of holder" in shown


def told_by_another(settings_module: str | None = None) -> live_reports.Process:
    """Return what this process says of itself, as another one might that has the same settings."""
    told = live_reports._process(json.loads(answering.encoded(answering.about_process())))
    return dataclasses.replace(told, pid=1, settings_module=settings_module or told.settings_module)


def test_processes_of_the_project_are_those_on_its_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"default": connections.settings["default"] | {"NAME": "keycloak", "USER": "token@tenant"}}
    monkeypatch.setattr(connections, "settings", alone)
    ours, others = told_by_another("its.own"), told_by_another("its.own")
    assert {(each.name, each.user) for each in ours.databases.values()} == {("keycloak", "token@tenant")}
    others = dataclasses.replace(others, pid=2, databases={"default": live_reports.Database("", "", "shop", "app")})
    assert [process.pid for process in looking._of_this_project([ours, others])] == [1, os.getpid()]


@pytest.mark.parametrize(("settings_module", "expected"), [(None, [1]), ("of.another", [])])
@pytest.mark.parametrize("name", ["postgresql://app:secret@db/shop", "dbname=shop password=secret"])
def test_what_is_hidden_makes_no_two_projects_one(
    name: str, settings_module: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "settings", {"default": connections.settings["default"] | {"NAME": name}})
    process = told_by_another(settings_module)
    assert process.databases["default"].name == "…"
    assert [each.pid for each in looking._of_this_project([process])] == [*expected, os.getpid()]


# ##### When no connection is to be had #####


@contextmanager
def exhausted_pool() -> Iterator[None]:
    """All four connections of the pool are taken, and somebody waits."""
    pool = connections["default"].pool
    with in_thread(hold), in_thread(hold), in_thread(hold), in_thread(hold):
        assert pool.get_stats()["pool_available"] == 0
        yield


@committing
def test_it_answers_to_a_ticket_while_the_pool_has_nothing_to_give(viewer: Client) -> None:
    page = viewer.get(PAGE)
    wait_until_released()
    before = conn_hygiene.stats().pool_timeouts
    with exhausted_pool():
        answer = live(viewer, page)
    assert len(re.findall(r"now at <span[^>]*>[^<]* in hold</span>", answer["html"])) == 4
    assert "4 connections checked out" in answer["summary"]
    # Nobody was looked up, so this ticket is not renewed.
    assert answer["ticket"] == ""
    assert conn_hygiene.stats().pool_timeouts == before
    wait_until_released()
    assert live(viewer, page)["ticket"] != ""


@committing
def test_a_ticket_is_good_only_where_nobody_can_be_looked_up(viewer: Client) -> None:
    from django.contrib.auth.models import User

    page = viewer.get(PAGE)
    User.objects.update(is_staff=False)
    assert viewer.get(LIVE, headers={tickets.HEADER: ticket_on(page)}).status_code == 302


@committing
def test_a_pool_without_a_limit_is_never_used_up() -> None:
    """Though the one connection that it has is taken, and nobody waits."""
    from conn_hygiene.contrib.admin import admin

    pool = connections["default"].pool
    pool.resize(1, math.inf)
    taken = []
    while pool.get_stats()["pool_available"]:
        taken.append(pool.getconn())
    try:
        assert not admin._nobody_can_be_looked_up(None)
        pool.resize(1, 1)
        assert admin._nobody_can_be_looked_up(None)
    finally:
        pool.resize(1, 4)
        for each in taken:
            pool.putconn(each)


@pytest.mark.parametrize("stolen", ["by another session", "for another site", "too late", "made up"])
def test_a_ticket_is_nobody_elses(viewer: Client, stolen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = viewer.get(PAGE).wsgi_request
    ticket = tickets.issue(request, "admin", may_terminate=False)
    request.META["HTTP_X_CONN_HYGIENE_TICKET"] = ticket
    request.__dict__.pop("headers", None)
    assert tickets.accept(request, "admin") == {"may_terminate": False}
    if stolen == "by another session":
        request.COOKIES["sessionid"] = "another"
    elif stolen == "too late":
        monkeypatch.setattr(tickets, "MAX_AGE", -1)
    elif stolen == "made up":
        request.META["HTTP_X_CONN_HYGIENE_TICKET"] = f"{ticket[:-1]}{'A' if ticket[-1] != 'A' else 'B'}"
        request.__dict__.pop("headers", None)
    assert tickets.accept(request, "operations" if stolen == "for another site" else "admin") is None


@committing
def test_it_says_that_a_server_is_not_there(viewer: Client, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = viewer.get(PAGE)
    connect = server.connect
    monkeypatch.setattr(server, "connect", lambda alias, **others: connect(alias, **others, host="/nowhere"))
    answer = live(viewer, page)
    assert "no connection to be had" in answer["summary"]
    assert "No such file or directory" in answer["html"]
    # Its users' server is not there: they are not looked up.
    assert answer["ticket"] == ""


@needs_pgbouncer
@committing
def test_it_says_that_a_server_does_not_answer(
    viewer: Client, saturated: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "TIMEOUT", 1)
    answer = live(viewer, viewer.get(PAGE))
    assert "no connection to be had to unpooled" in answer["summary"]
    assert "no answer within 1 s" in answer["html"]


# ##### Terminating #####


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "conn_hygiene.admin"]


@committing
def test_a_session_is_ended_after_a_confirmation_and_that_is_logged(
    operator: Client, alive: Callable[..., set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    from django.contrib.admin.models import DELETION, LogEntry

    with session() as other:
        pid, address = other.info.backend_pid, address_of(other)
        other.execute("BEGIN")
        other.execute("SELECT 'a secret'")
        assert address in operator.get(PAGE).content.decode()
        asked = operator.get(address).content.decode()
        assert "idle in transaction" in asked
        assert "SELECT ?" in asked
        assert alive(pid) == {pid}
        answer = confirmed(operator, address)
        assert (answer.status_code, answer.url) == (302, PAGE)
        assert alive(pid) == set()
    [entry] = LogEntry.objects.all()
    assert (entry.user.username, entry.action_flag) == ("user-view_connections-terminate_session-True", DELETION)
    assert f"session {pid} of" in entry.object_repr
    assert entry.change_message == "Terminated by alias default, ended. It was idle in transaction: SELECT ?"
    [line] = lines(caplog)
    assert line.startswith(f"{entry.user.username} has asked for session {pid} of 'default' to be terminated: ended.")
    assert "a secret" not in line
    [message] = messages_of(operator)
    assert message == f"Session {pid} was ended. Its transaction, if any, is rolled back."


@committing
def test_it_takes_a_token_against_forgery(operator: Client, alive: Callable[..., set[int]]) -> None:
    with session() as other:
        assert operator.post(address_of(other)).status_code == 403
        assert alive(other.info.backend_pid) == {other.info.backend_pid}


@committing
def test_a_pid_that_is_another_sessions_by_now_is_left_alone(
    operator: Client, alive: Callable[..., set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    with session() as other:
        pid, token = other.info.backend_pid, operator.get(address_of(other)).context["csrf_token"]
        answer = operator.post(
            # Of one that had its pid, and began a microsecond before.
            address_of(other, later=-1),
            {"csrfmiddlewaretoken": str(token), "whatever": "on"},
        )
        assert (answer.status_code, answer.url) == (302, PAGE)
        assert alive(pid) == {pid}
        assert messages_of(operator) == [
            f"Session {pid} was not ended: it has ended by itself, or is not one that may be ended here."
        ]
    assert lines(caplog) == []


@committing
def test_one_that_has_gone_on_with_its_work_is_left_alone_unless_that_is_wanted(
    operator: Client, alive: Callable[..., set[int]]
) -> None:
    with session() as other:
        pid, address = other.info.backend_pid, address_of(other)
        page = operator.get(address)
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.content.decode()))
        other.execute("SELECT 'of somebody else'")
        answer = operator.post(address, fields)
        assert (answer.status_code, answer.url) == (302, address)
        assert alive(pid) == {pid}
        again = operator.get(address).content.decode()
        assert f"Session {pid} was not ended: it has gone on with its work since you looked." in again
        # Without what was shown, nothing matches either.
        operator.post(address, {"csrfmiddlewaretoken": fields["csrfmiddlewaretoken"], "state_change": "never"})
        assert alive(pid) == {pid}
        operator.post(address, fields | {"whatever": "on"})
        assert alive(pid) == set()


@committing
@pytest.mark.parametrize("whose", ["another role's", "another database's", "its own"])
def test_only_sessions_of_the_project_and_never_its_own_can_be_ended(
    whose: str, operator: Client, alive: Callable[..., set[int]], admin: psycopg.Connection
) -> None:
    admin.execute("CREATE ROLE conn_hygiene_stranger LOGIN PASSWORD 'conn_hygiene'")
    parameters: dict[str, Any] = {
        "another role's": {"user": "conn_hygiene_stranger", "password": "conn_hygiene"},
        "another database's": {"dbname": "postgres"},
        "its own": {"application_name": looking.connection_parameters()["application_name"]},
    }[whose]
    try:
        with session(**parameters) as other:
            pid = other.info.backend_pid
            assert f'data-key="session-default-{pid}-' not in operator.get(PAGE).content.decode()
            token = str(operator.get("/admin/").context["csrf_token"])
            answer = operator.post(address_of(other), {"csrfmiddlewaretoken": token, "whatever": "on"})
            assert (answer.status_code, answer.url) == (302, PAGE)
            assert other.execute("SELECT 1").fetchone() == (1,)
    finally:
        admin.execute("DROP ROLE conn_hygiene_stranger")


def test_the_session_that_the_request_itself_queries_over_cannot_be_ended(
    operator: Client, database_watcher: psycopg.Connection
) -> None:
    # The test's own transaction is around the request.
    [lease] = [each for each in conn_hygiene.snapshot() if each.alias == "default"]
    html = operator.get(PAGE).content.decode()
    [row] = re.findall(rf'<tr[^>]*data-key="session-default-{lease.server_pid}-.*?</tr>', html, re.DOTALL)
    assert "this page" in row
    assert "Terminate session" not in row
    [(started,)] = database_watcher.execute(
        "SELECT backend_start FROM pg_stat_activity WHERE pid = %s", [lease.server_pid]
    )
    answer = operator.get(f"{PAGE}terminate/{lease.server_pid}/{looking.micros(started)}/default/")
    assert (answer.status_code, answer.url) == (302, PAGE)


@committing
def test_it_is_said_why_the_server_refuses(
    operator: Client, settings: Any, alive: Callable[..., set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.admin.models import LogEntry

    # As OPTIONS may have it: the sessions are the role's that signs in, and another one acts in them.
    connect = server.connect
    role: dict[str, Any] = {"options": "-c role=pg_read_all_stats"}
    monkeypatch.setattr(server, "connect", lambda alias, **others: connect(alias, **others, **role))
    with session() as other:
        pid, address = other.info.backend_pid, address_of(other)
        answer = confirmed(operator, address)
        assert (answer.status_code, answer.url) == (302, PAGE)
        assert alive(pid) == {pid}
        [message] = messages_of(operator)
        assert message.startswith(f"The server refused to end session {pid}: that takes membership in its role")
    assert not LogEntry.objects.exists()


@committing
def test_what_the_admins_log_cannot_take_is_ended_and_logged_elsewhere(
    operator: Client, alive: Callable[..., set[int]], admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    admin.execute("ALTER TABLE django_admin_log ADD CONSTRAINT full_up CHECK (object_repr = '')")
    try:
        with session() as other:
            pid = other.info.backend_pid
            confirmed(operator, address_of(other))
            assert alive(pid) == set()
    finally:
        admin.execute("ALTER TABLE django_admin_log DROP CONSTRAINT full_up")
    assert [line.split(" ")[0] for line in lines(caplog)] == [operator_name(), "The"]
    [failed, ended] = messages_of(operator)
    assert failed.startswith("That could not be written to the admin's log:")
    assert ended.startswith(f"Session {pid} was ended.")


def operator_name() -> str:
    return "user-view_connections-terminate_session-True"


@committing
def test_an_alias_that_nobody_can_connect_to_leaves_the_others(
    operator: Client, configured: Callable[..., None]
) -> None:
    configured(TIME_ZONE="Nope/X")
    html = operator.get(f"{PAGE}?findings").content.decode()
    assert "Nope/X" in html
    assert "default, " in html
    answer = operator.get(f"{PAGE}terminate/1/1/unpooled/")
    assert (answer.status_code, answer.url) == (302, PAGE)
    [message] = messages_of(operator)
    assert message.startswith("Session 1 was not ended: unpooled could not be asked.")


def test_there_is_no_such_alias(operator: Client) -> None:
    assert operator.get(f"{PAGE}terminate/1/1/sqlite/").status_code == 404
    assert operator.get(f"{PAGE}terminate/1/1/no/such/").status_code == 404


@committing
def test_atomic_requests_take_no_connection_for_it(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for alias in ("default", "small"):
        monkeypatch.setitem(connections[alias].settings_dict, "ATOMIC_REQUESTS", True)
    page = viewer.get(PAGE)
    with exhausted_pool():
        assert live(viewer, page)["ticket"] == ""
