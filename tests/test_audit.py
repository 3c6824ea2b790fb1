"""AUDIT_SESSIONS: what is in a session without a statement's having said so is named, and nothing else is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from psycopg.pq import TransactionStatus

from conn_hygiene import events, query_timeout, release_between_queries
from conn_hygiene.leases import audits
from conn_hygiene.sessions import known
from tests.testapp.models import Item
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled"])

FUNCTIONS = """
CREATE FUNCTION t_become(tenant text) RETURNS text LANGUAGE plpgsql AS
    $$BEGIN RETURN set_config('t_app.tenant', tenant, false); END$$;
CREATE FUNCTION t_anything(name text, value text) RETURNS text LANGUAGE plpgsql AS
    $$BEGIN RETURN set_config(name, value, false); END$$;
CREATE FUNCTION t_parsed(tenant text) RETURNS text LANGUAGE sql BEGIN ATOMIC
    SELECT set_config('t_app.parsed', tenant, false); END;
CREATE FUNCTION t_within(tenant text) RETURNS text LANGUAGE plpgsql AS
    $$BEGIN RETURN set_config('t_app.tenant', tenant, true); END$$;
CREATE FUNCTION t_timeout() RETURNS void LANGUAGE plpgsql AS $$BEGIN SET statement_timeout = '77s'; END$$;
CREATE FUNCTION t_zone() RETURNS void LANGUAGE plpgsql AS $$BEGIN SET TimeZone = 'Asia/Tokyo'; END$$;
CREATE FUNCTION t_temp() RETURNS void LANGUAGE plpgsql AS $$BEGIN CREATE TEMP TABLE t_left (n int); END$$;
CREATE FUNCTION t_lock(key bigint) RETURNS void LANGUAGE sql AS $$SELECT pg_advisory_lock(key)$$;
CREATE FUNCTION t_locks() RETURNS void LANGUAGE sql AS $$SELECT pg_advisory_lock_shared(1, 2)$$;
CREATE FUNCTION t_listen() RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'LIS' || 'TEN t_channel'; END$$;
CREATE FUNCTION t_prepare() RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'PREPARE t_plan AS SELECT 1'; END$$;
CREATE FUNCTION t_hold() RETURNS void LANGUAGE plpgsql AS
    $$BEGIN EXECUTE 'DECLARE t_held CURSOR WITH HOLD FOR SELECT 1'; END$$;
CREATE FUNCTION t_role() RETURNS void LANGUAGE plpgsql AS $$BEGIN SET ROLE pg_monitor; END$$;
CREATE PROCEDURE t_proceed() LANGUAGE plpgsql AS $$BEGIN PERFORM set_config('t_app.tenant', '7', false); COMMIT; END$$;
CREATE FUNCTION t_fired() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM set_config('t_app.tenant', NEW.name, false); RETURN NEW; END$$;
"""
NAMES = [line.split("(")[0].split()[-1] for line in FUNCTIONS.splitlines() if line.startswith("CREATE")]


@pytest.fixture(autouse=True)
def functions(transactional_db: None) -> Iterator[None]:
    with psycopg.connect(
        **{**connection.get_connection_params(), "cursor_factory": psycopg.Cursor}, autocommit=True
    ) as c:
        c.execute(FUNCTIONS)
        known.reset()
        yield
        c.execute("".join(f"DROP ROUTINE {name} CASCADE;" for name in NAMES))


class Published(list[events.UnseenState]):
    """What is published, with all that is left of it by names."""

    @property
    def left(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(event.reason, event.names) for event in self]


@pytest.fixture
def published() -> Iterator[Published]:
    published = Published()
    events.listen(events.UnseenState, published.append)
    yield published
    events.unlisten(events.UnseenState, published.append)


@pytest.fixture(autouse=True)
def audited(functions: None, settings: Any) -> Iterator[None]:
    connections.close_all()
    settings.CONN_HYGIENE = {"AUDIT_SESSIONS": True, "FOLLOWED_SETTINGS": []}
    yield
    connections.close_all()
    # What was left in its sessions is there for whoever comes next.
    for alias in ("default", "small"):
        connections[alias].close_pool()


def execute(query: Any, params: Any = None, alias: str = "default") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(query, params)


UNSEEN = {
    "SELECT t_become('7')": ("SET", ("t_app.tenant",)),
    "SELECT t_anything('t_app.any', '7')": ("SET", ("t_app.any",)),
    "SELECT t_parsed('7')": ("SET", ("t_app.parsed",)),
    "SELECT t_timeout()": ("SET", ("statement_timeout",)),
    "CALL t_proceed()": ("SET", ("t_app.tenant",)),
    "SELECT t_temp()": ("temporary table", ("t_left",)),
    "SELECT t_lock(9876543210)": ("advisory lock", ("9876543210",)),
    "SELECT t_locks()": ("advisory lock", ("1, 2 (shared)",)),
    "SELECT t_listen()": ("LISTEN", ("t_channel",)),
    "SELECT t_prepare()": ("PREPARE", ("t_plan",)),
    "SELECT t_hold()": ("cursor WITH HOLD", ("t_held",)),
}

SEEN = [
    "SELECT 1",
    "SELECT t_within('7')",
    "SELECT t_zone()",
    # The server tells that somebody is a superuser no longer.
    "SELECT t_role()",
    "SET t_app.tenant = '7'",
    "SET statement_timeout = '77s'",
    "SELECT set_config('t_app.tenant', '7', false)",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "CREATE TEMP TABLE t_left (n int)",
    "SELECT pg_advisory_lock(9)",
    "LISTEN t_channel",
    "PREPARE t_plan AS SELECT 1",
    "DECLARE t_held CURSOR WITH HOLD FOR SELECT 1",
    "DO $$BEGIN PERFORM t_become('7'); PERFORM t_temp(); END$$",
    "DISCARD ALL",
    "RESET ALL",
]


@pytest.mark.parametrize("mode", ["always", "never"], ids=["released", "closed"])
def test_a_session_to_which_nothing_is_to_be_done_is_audited_too(
    published: Published, settings: Any, mode: str
) -> None:
    settings.CONN_HYGIENE |= {"CLEAN_SESSIONS": "seen", "RELEASE": mode, "RELEASE_AFTER": 0}
    execute("SELECT t_become('7')")
    if mode == "never":
        connection.close()
    wait_until_released()
    assert published.left == [("SET", ("t_app.tenant",))]


@pytest.mark.parametrize(("statement", "left"), UNSEEN.items(), ids=UNSEEN)
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_what_is_left_unseen_is_published_once(statement: str, left: Any, alias: str, published: Published) -> None:
    execute("SELECT 1", alias=alias)
    execute(statement, alias=alias)
    execute("SELECT 1", alias=alias)
    connections[alias].close()
    assert published.left == [left]


def test_a_replication_origin_is_published(published: Published) -> None:
    execute("SELECT pg_replication_origin_create('t_origin')")
    execute(
        "CREATE FUNCTION t_origin() RETURNS void LANGUAGE sql AS"
        " $$SELECT pg_replication_origin_session_setup('t_origin')$$"
    )
    execute("SELECT t_origin()")
    execute("SELECT pg_replication_origin_session_reset()")
    execute("SELECT pg_replication_origin_drop('t_origin')")
    execute("DROP FUNCTION t_origin()")
    assert published.left == [("replication origin", ("an origin",))]


@pytest.mark.parametrize("statement", SEEN)
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_what_is_seen_is_not_published(statement: str, alias: str, published: Published) -> None:
    execute("SELECT 1", alias=alias)
    execute(statement, alias=alias)
    execute("SELECT 1", alias=alias)
    connections[alias].close()
    assert published.left == []


# ##### What is said #####


def place(frame: Any, offset: int = 0) -> str:
    return f"{__file__}:{frame.f_lineno + offset} in {frame.f_code.co_name}"


def messages(caplog: Any) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "conn_hygiene.sessions"]


def pid(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def test_the_log_names_statement_place_and_remedy(caplog: Any) -> None:
    server_pid = pid()
    with connection.cursor() as cursor:
        where = place(inspect.currentframe(), 1)
        cursor.execute("SELECT t_become('secret'), %s", ["another"])
    assert messages(caplog) == [
        (
            "WARNING",
            f"A statement on 'default' (server pid {server_pid}) has left in its session what it does not say: SET "
            f"(t_app.tenant). It was executed at {where}: SELECT t_become(?), %s. "
            'Set CONN_HYGIENE["FOLLOWED_SETTINGS"] to ["t_app.tenant"].',
        )
    ]
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.sessions"]
    assert (record.names, record.reason, record.where, record.others) == (("t_app.tenant",), "SET", where, 0)


def test_the_remedy_for_a_setting_keeps_those_that_follow_already(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"AUDIT_SESSIONS": True, "FOLLOWED_SETTINGS": ["search_path"]}
    execute("SELECT t_become('7')")
    assert [event.advice for event in published] == [
        'Set CONN_HYGIENE["FOLLOWED_SETTINGS"] to ["search_path", "t_app.tenant"].'
    ]


def test_what_the_catalogue_has_follow_is_not_published(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"AUDIT_SESSIONS": True, "FOLLOWED_SETTINGS": "auto"}
    execute("SELECT t_become('7')")
    execute("SELECT t_anything('t_app.any', '7')")
    assert published.left == [("SET", ("t_app.any",))]
    # A list takes the place of what the catalogue says, so that it has to have these as well.
    names = ", ".join(f'"{name}"' for name in sorted({*known.followed("default"), "t_app.any"}))
    assert published[0].advice == f'Set CONN_HYGIENE["FOLLOWED_SETTINGS"] to [{names}].'
    assert '"t_app.tenant"' in names


@pytest.mark.parametrize(
    ("statement", "advice"),
    [
        ("SELECT t_temp()", "Create it by a statement of the request's own, which can be seen."),
        ("SELECT t_lock(9)", "Lock until the end of the transaction, with pg_advisory_xact_lock()."),
        ("SELECT t_listen()", "Listen by a statement of the request's own, which can be seen."),
        ("SELECT t_prepare()", "Prepare it by a statement of the request's own, which can be seen."),
        ("SELECT t_hold()", "Declare it without WITH HOLD, in a transaction."),
    ],
)
def test_every_kind_of_state_has_a_remedy(statement: str, advice: str, published: Published) -> None:
    execute(statement)
    assert [event.advice for event in published] == [
        f'{advice} Or set CONN_HYGIENE["CLEAN_SESSIONS"] to "always", and keep the connection with hold_connection() '
        "for as long as it is needed."
    ]


def test_what_is_declared_is_not_published(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"AUDIT_SESSIONS": True, "FOLLOWED_SETTINGS": ["T_App.Tenant"]}
    execute("SELECT t_become('7')")
    assert published == []


def test_the_likeliest_statement_of_a_transaction_is_named(published: Published, caplog: Any) -> None:
    with transaction.atomic():
        execute("SELECT 1")
        execute("SELECT t_become('7')")
        execute("INSERT INTO testapp_item (name, value) VALUES ('a', 1)")
        execute("SELECT count(*) FROM testapp_item")
        assert published == []
    execute("SELECT 1")
    assert [(event.statement, event.others, event.names) for event in published] == [
        ("SELECT t_become(?)", 3, ("t_app.tenant",))
    ]
    assert "It is the likeliest of 4 of one transaction." in messages(caplog)[0][1]


def test_a_trigger_is_found_by_what_fires_it(published: Published) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TRIGGER t_trigger BEFORE INSERT ON testapp_item FOR EACH ROW EXECUTE FUNCTION t_fired()")
    Item.objects.create(name="Ada")
    assert published.left == [("SET", ("t_app.tenant",))]
    assert published[0].statement.startswith('INSERT INTO "testapp_item"')


def test_what_is_rolled_back_is_not_published_and_a_lock_outlives_that(published: Published) -> None:
    with transaction.atomic():
        execute("SELECT t_become('7'), t_temp()")
        execute("SELECT t_lock(7)")
        transaction.set_rollback(True)
    execute("SELECT 1")
    assert published.left == [("advisory lock", ("7",))]


def test_a_statement_that_fails_is_named_all_the_same(published: Published) -> None:
    with pytest.raises(Exception, match="division by zero"):
        execute("SELECT t_lock(7), 1 / (SELECT count(*) FROM testapp_item WHERE false)")
    assert published.left == [("advisory lock", ("7",))]


def test_a_name_that_comes_as_a_parameter_is_looked_for(published: Published) -> None:
    execute("SELECT t_anything(%s, %s)", ["t_app.by_parameter", "7"])
    assert published.left == [("SET", ("t_app.by_parameter",))]


@pytest.mark.parametrize("end", ["close", "release"])
def test_what_a_transaction_has_left_is_found_where_the_connection_goes_back(
    end: str, published: Published, settings: Any
) -> None:
    with release_between_queries():
        execute("SELECT 1")
        with transaction.atomic():
            execute("SELECT t_become('7')")
        if end == "close":
            connection.close()
        else:
            wait_until_released("default")
    wait_until(lambda: published, "it is published")
    assert published.left == [("SET", ("t_app.tenant",))]


def test_what_one_checkout_has_left_is_not_published_of_the_next(published: Published) -> None:
    first = pid("small")
    execute("SELECT t_lock(7)", alias="small")
    following = []
    for _ in range(3):
        # Its pool has as many, and gives out the one that has been there the longest.
        connections["small"].close()
        following.append(pid("small"))
    assert first in following
    assert len(published) == 1


def test_everything_that_executes_is_audited(published: Published) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT t_anything(%s, %s)", [("t_app.many", "7")])
        list(cursor.cursor.stream("SELECT t_anything('t_app.stream', '7')"))
        with cursor.copy("COPY (SELECT t_anything('t_app.copy', '7')) TO STDOUT") as copy:
            list(copy)
    connection.connection.execute("SELECT t_anything('t_app.handle', '7')")
    list(Item.objects.raw("SELECT 1 AS id, t_anything('t_app.raw', '7') AS name"))
    assert [event.names for event in published] == [
        ("t_app.many",),
        ("t_app.stream",),
        ("t_app.copy",),
        ("t_app.handle",),
        ("t_app.raw",),
    ]


def test_a_server_side_cursor_is_audited_and_nothing_itself(published: Published) -> None:
    Item.objects.create(name="Ada")
    rows = Item.objects.raw("SELECT id, t_anything('t_app.chunked', name) AS name FROM testapp_item").iterator()
    assert [row.name for row in rows] == ["Ada"]
    execute("SELECT 1")
    assert published.left == [("SET", ("t_app.chunked",))]


def test_an_audit_begins_no_transaction_and_prepares_nothing() -> None:
    execute("SELECT 1")
    transaction.set_autocommit(False)
    try:
        status = connection.connection.pgconn.transaction_status
        execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        execute("SET TRANSACTION READ ONLY")
        execute("SHOW transaction_isolation")
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        assert (status, cursor.fetchone()) == (TransactionStatus.IDLE, (0,))


def test_off_nothing_is_asked_and_cursors_are_as_they_were(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"FOLLOWED_SETTINGS": []}
    execute("SELECT t_become('7')")
    assert published == []
    with connection.cursor() as cursor:
        assert not isinstance(cursor.cursor, audits.AuditedCursor)
        assert not audits.is_audited(connection.connection)


def test_a_session_that_goes_back_is_audited_no_longer(settings: Any) -> None:
    execute("SELECT 1")
    raw = connection.connection
    factory = raw.cursor_factory
    assert issubclass(factory, audits.AuditedCursor)
    connection.close()
    assert not audits.is_audited(raw)
    assert not issubclass(raw.cursor_factory, audits.AuditedCursor)


def test_what_follows_its_owner_is_not_taken_for_unseen(published: Published) -> None:
    with release_between_queries():
        execute("SET t_app.tenant = '7'")
        execute("SET ROLE pg_monitor")
        wait_until_released("default")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('t_app.tenant'), current_user")
            assert cursor.fetchone() == ("7", "pg_monitor")
        execute("SELECT t_become('8')")
    assert published == []


def test_what_a_block_sets_is_not_taken_for_unseen(published: Published) -> None:
    with query_timeout(7):
        execute("SELECT 1")
    execute("SELECT 1")
    assert published == []
