"""What psycopg keeps on its side of a pooled connection is its owner's, and nobody else's."""

from __future__ import annotations

import io
import threading
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import pytest
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.db.backends.postgresql.base import Cursor
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path
from psycopg.adapt import Dumper, Loader
from psycopg.rows import dict_row, tuple_row
from psycopg.types import TypeInfo

import conn_hygiene
from conn_hygiene import hold_connection, internals, release_between_queries
from conn_hygiene.pools import configuring
from conn_hygiene.sessions import client
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "unpooled"]),
    pytest.mark.urls(__name__),
]

# Django's test classes refuse an alias that was not there when they began, so this one is made into another.
ALIAS = "unpooled"


@pytest.fixture
def releasing(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001, "UNPOOLED_RELEASE_AFTER": 0.001}


@pytest.fixture
def remake(transactional_db: None) -> Iterator[Callable[..., None]]:
    """Return a function that gives the alias a pool of one connection, with an ENGINE or OPTIONS of its own."""
    wrapper: Any = connections[ALIAS]
    settings = connections.settings[ALIAS]
    wrapper.close()

    def make(engine: str = settings["ENGINE"], size: int = 1, **options: Any) -> None:
        options = settings["OPTIONS"] | {"pool": {"min_size": size, "max_size": size, "timeout": 5}} | options
        connections.settings[ALIAS] = {**settings, "OPTIONS": options, "ENGINE": engine}
        del connections[ALIAS]

    yield make
    connections[ALIAS].close()
    connections[ALIAS].close_pool()
    connections.settings[ALIAS] = settings
    connections[ALIAS] = wrapper


@pytest.fixture
def pool(remake: Callable[..., None], releasing: None) -> None:
    """Give the alias a pool of one connection."""
    remake()


def query(sql: str = "SELECT 1", params: Any = None) -> Any:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0]


def use(statement: str = "SELECT 1") -> None:
    """Execute *statement*, and leave its rows alone, of which the test may have changed the kind."""
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(statement)


def handle() -> Any:
    connections[ALIAS].ensure_connection()
    return connections[ALIAS].connection


def in_thread(function: Callable[[], Any]) -> Any:
    """Call *function* in a thread with wrappers of its own, whose end gives its connections back."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def of_the_pool(look: Callable[[Any], Any]) -> Any:
    """Return what *look* finds in the one connection of the pool, as the pool gives it out."""
    wait_until_released(ALIAS)
    pool: Any = connections[ALIAS].pool
    pool.open()
    with pool.connection() as connection:
        return look(connection)


class Seven(Loader):
    def load(self, data: Any) -> int:
        return 7


class SevenDumper(Dumper):
    def dump(self, obj: Any) -> bytes:
        return b"7"


def get_a_notification(connection: Any) -> None:
    connection.execute("LISTEN hygiene")
    connection.execute("NOTIFY hygiene, 'of one request'")
    # That unpins it, since nothing more can come.
    connection.execute("UNLISTEN *")


def handler(told: Any) -> None:
    pass


POINT = TypeInfo("point_of_mine", 600, 1017)

# What an owner may change, what it is called in the log, and how to see it.
CHANGES: dict[str, tuple[Callable[[Any], Any], str, Callable[[Any], Any]]] = {
    "row_factory": (
        lambda c: setattr(c, "row_factory", dict_row),
        "row_factory",
        lambda c: c.execute("SELECT 1 AS n").fetchone(),
    ),
    "cursor_factory": (
        lambda c: setattr(c, "cursor_factory", psycopg.ClientCursor),
        "cursor_factory",
        lambda c: c.cursor_factory.__name__,
    ),
    "server_cursor_factory": (
        lambda c: setattr(c, "server_cursor_factory", type("Mine", (psycopg.ServerCursor,), {})),
        "server_cursor_factory",
        lambda c: c.server_cursor_factory.__name__,
    ),
    "loader": (
        lambda c: c.adapters.register_loader("int4", Seven),
        "adapters",
        lambda c: c.execute("SELECT 1::int4").fetchone(),
    ),
    "dumper": (
        lambda c: c.adapters.register_dumper(int, SevenDumper),
        "adapters",
        lambda c: psycopg.ClientCursor(c, row_factory=tuple_row).mogrify("%s", [1]),
    ),
    "type": (
        lambda c: c.adapters.types.add(POINT),
        "adapters",
        lambda c: c.adapters.types.get("point_of_mine") is not None,
    ),
    "prepare_threshold": (
        lambda c: setattr(c, "prepare_threshold", 1),
        "prepare_threshold",
        lambda c: c.prepare_threshold,
    ),
    "prepared_max": (lambda c: setattr(c, "prepared_max", None), "prepared_max", lambda c: c.prepared_max),
    "notice handler": (
        lambda c: c.add_notice_handler(handler),
        "notice handlers",
        lambda c: list(c._notice_handlers),
    ),
    "notify handler": (
        lambda c: c.add_notify_handler(handler),
        "notify handlers",
        lambda c: list(c._notify_handlers),
    ),
    "notifications": (get_a_notification, "notifications", lambda c: [n.payload for n in c.notifies(timeout=0)]),
    "isolation_level": (
        lambda c: setattr(c, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        "transaction characteristics",
        lambda c: c.isolation_level,
    ),
    "read_only": (
        lambda c: setattr(c, "read_only", True),
        "transaction characteristics",
        lambda c: c.read_only,
    ),
    "deferrable": (
        lambda c: setattr(c, "deferrable", True),
        "transaction characteristics",
        lambda c: c.deferrable,
    ),
}
changes = pytest.mark.parametrize(("change", "called", "look"), CHANGES.values(), ids=CHANGES)


# ##### It stays with its owner #####


@changes
@pytest.mark.usefixtures("pool")
def test_what_the_owner_has_changed_pins_and_is_still_there_after_a_pause(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    clean = of_the_pool(look)
    with caplog.at_level("INFO", "conn_hygiene.lease"):
        change(handle())
        use()
        let_the_reaper_look()
    assert holds(ALIAS)
    reason = f"a change of {called} of the psycopg connection"
    assert [record.getMessage().count(reason) for record in caplog.records if "a change of" in record.getMessage()] == [
        1
    ]
    assert look(handle()) != clean


@changes
@pytest.mark.usefixtures("pool")
def test_a_discard_all_of_the_servers_leaves_it_there(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any]
) -> None:
    clean = of_the_pool(look)
    change(handle())
    use("DISCARD ALL")
    use()
    let_the_reaper_look()
    assert holds(ALIAS)
    assert look(handle()) != clean


@changes
@pytest.mark.usefixtures("releasing")
def test_another_user_meanwhile_sees_what_the_pool_has(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any], remake: Callable[..., None]
) -> None:
    remake(size=2)
    clean = in_thread(lambda: look(handle()))
    change(handle())
    use()
    let_the_reaper_look()
    assert in_thread(lambda: look(handle())) == clean


@pytest.mark.usefixtures("releasing")
def test_it_stays_without_a_pool_as_well() -> None:
    change, _, look = CHANGES["loader"]
    change(handle())
    use()
    let_the_reaper_look()
    assert holds(ALIAS)
    assert look(handle()) == (7,)
    connections[ALIAS].close()
    assert look(handle()) == (1,)


# ##### It reaches nobody else #####


def close() -> None:
    connections[ALIAS].close()


@changes
@pytest.mark.usefixtures("pool")
def test_the_next_request_sees_what_the_pool_has(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any]
) -> None:
    clean = of_the_pool(look)
    change(handle())
    close()
    assert of_the_pool(look) == clean
    assert look(handle()) == clean


@changes
@pytest.mark.usefixtures("pool")
def test_so_it_is_when_the_owner_ends_without_a_close(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any]
) -> None:
    clean = of_the_pool(look)
    in_thread(lambda: change(handle()))
    assert of_the_pool(look) == clean


@changes
@pytest.mark.usefixtures("pool")
def test_so_it_is_when_it_is_given_back_in_the_middle_of_a_transaction(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any]
) -> None:
    clean = of_the_pool(look)
    change(handle())
    use("BEGIN")
    close()
    assert of_the_pool(look) == clean


@changes
def test_so_it_is_without_a_release(
    change: Callable[[Any], Any], called: str, look: Callable[[Any], Any], remake: Callable[..., None], settings: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "never"}
    remake()
    clean = of_the_pool(look)
    change(handle())
    close()
    assert of_the_pool(look) == clean


@pytest.mark.usefixtures("pool")
def test_a_map_of_adapters_that_somebody_has_kept_is_nobodys() -> None:
    for number in range(3):
        kept = handle().adapters
        kept.register_loader("int4", Seven)
        close()
        kept.register_loader("text", Seven)
        assert (number, *of_the_pool(lambda c: c.execute("SELECT 1::int4, 'a'::text").fetchone())) == (number, 1, "a")


@pytest.mark.usefixtures("pool")
def test_what_minds_being_compared_is_no_reason_to_fail() -> None:
    class Factory:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, cursor: Any) -> Any:
            return tuple_row(cursor)

        def __eq__(self, other: object) -> bool:
            raise ValueError("neither true nor false")

    query()
    handle().row_factory = Factory()
    connections[ALIAS].close()
    assert query() == 1
    assert not isinstance(handle().row_factory, Factory)


@pytest.mark.usefixtures("pool")
def test_autocommit_is_put_back_in_a_transaction_too() -> None:
    raw = handle()
    raw.autocommit = False
    raw.execute("SELECT 1")
    close()
    assert of_the_pool(lambda c: c.autocommit) is True


@pytest.mark.usefixtures("releasing")
def test_a_statement_of_the_cleaning_is_not_sent_by_a_cursor_of_the_owners(remake: Callable[..., None]) -> None:
    remake()
    # Opened by the first use.
    pool: Any = connections[ALIAS].pool
    pool._configure = lambda connection: connection.execute("SET app.of_the_pool = 'set'")
    sent: list[Any] = []

    class Spy(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            sent.append(query)
            return super().execute(query, *args, **kwargs)

    handle().cursor_factory = Spy
    query("SELECT set_config('app.tenant', 'acme', false)")
    use("CREATE TEMP TABLE t_hygiene AS SELECT 1")
    before = len(sent)
    close()
    assert sent[before:] == []
    assert query("SELECT current_setting('app.of_the_pool') || (to_regclass('t_hygiene') IS NULL)") == "settrue"


@pytest.mark.usefixtures("pool")
def test_a_generator_of_notifications_that_is_left_behind_ends_with_its_session() -> None:
    pid = query("SELECT pg_backend_pid()")
    raw = handle()
    raw.execute("LISTEN hygiene")
    raw.execute("NOTIFY hygiene")
    left = raw.notifies()
    next(left)
    close()
    assert query("SELECT pg_backend_pid()") != pid
    left.close()


# ##### What is set up at each checkout #####


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("by", ["one thread", "a thread each"])
def test_a_backend_that_wraps_what_it_finds_at_each_checkout_wraps_once(remake: Callable[..., None], by: str) -> None:
    from tests.wrapping_backend.base import counted

    remake("tests.wrapping_backend")
    before = conn_hygiene.stats()
    for _ in range(300 if by == "one thread" else 20):
        if by == "one thread":
            assert query() == 1
            wait_until_released(ALIAS)
            continue
        in_thread(query)
        wait_until_released(ALIAS)
    after = conn_hygiene.stats()
    assert after.pinned == before.pinned
    assert after.checkouts - before.checkouts == (300 if by == "one thread" else 20)
    with hold_connection():
        raw = handle()
        counted.clear()
        assert query() == 1
        raw.execute("DROP TABLE IF EXISTS t_that_is_not_there")
    assert counted == {"executed": 2, "loaded": 1, "noticed": 1}
    close()
    assert of_the_pool(lambda c: (c.cursor_factory.__qualname__, c._notice_handlers)) == ("Cursor", [])


@pytest.mark.usefixtures("releasing")
def test_django_prometheus_counts_a_query_once_after_300_checkouts(remake: Callable[..., None]) -> None:
    # Its newest release excludes Django 6.1, so not every environment has it.
    prometheus = pytest.importorskip("django_prometheus.db")
    remake("django_prometheus.db.backends.postgresql")
    executed = prometheus.execute_total.labels(ALIAS, "postgresql")._value
    # The pool sets the time zone of its connection, by a cursor that counts.
    query()
    counted = set()
    for _ in range(300):
        before = executed.get()
        query()
        counted.add(executed.get() - before)
        wait_until_released(ALIAS)
    assert counted == {1}


@pytest.fixture
def at_each_checkout() -> Iterator[Callable[[Callable[[Any], None]], None]]:
    """Return a function that has another one called with psycopg's connection at each checkout."""
    receivers: list[Any] = []

    def connect(function: Callable[[Any], None]) -> None:
        def receiver(connection: Any, **kwargs: Any) -> None:
            if connection.alias == ALIAS:
                function(connection.connection)

        receivers.append(receiver)
        connection_created.connect(receiver)

    yield connect
    for receiver in receivers:
        connection_created.disconnect(receiver)


@changes
@pytest.mark.usefixtures("pool")
def test_what_a_receiver_sets_at_each_checkout_neither_pins_nor_stays(
    change: Callable[[Any], Any],
    called: str,
    look: Callable[[Any], Any],
    at_each_checkout: Callable[[Callable[[Any], None]], None],
) -> None:
    if called == "notifications":
        pytest.skip("that is no setting")
    clean = of_the_pool(look)
    at_each_checkout(change)
    pinned = conn_hygiene.stats().pinned
    seen = []
    for _ in range(3):
        seen.append(look(handle()))
        use()
        wait_until_released(ALIAS)
        assert of_the_pool(look) == clean
    assert conn_hygiene.stats().pinned == pinned
    assert seen[0] != clean
    assert seen == [seen[0]] * 3


@pytest.mark.usefixtures("pool")
def test_a_receiver_that_notes_on_the_connection_what_it_has_done_does_it_at_each_checkout(
    at_each_checkout: Callable[[Callable[[Any], None]], None],
) -> None:
    def once(connection: Any) -> None:
        if not hasattr(connection, "_has_sevens"):
            connection.adapters.register_loader("int4", Seven)
            connection._has_sevens = True

    at_each_checkout(once)
    for _ in range(3):
        assert query("SELECT 1::int4") == 7
        wait_until_released(ALIAS)
    assert of_the_pool(lambda c: hasattr(c, "_has_sevens")) is False


@pytest.mark.usefixtures("pool")
def test_no_attribute_of_psycopg_or_its_pool_is_taken_away() -> None:
    names = of_the_pool(lambda c: {*vars(c)})
    for change, _, _ in CHANGES.values():
        change(handle())
        close()
    handle().of_somebody = 1
    close()
    assert {name for name in names ^ of_the_pool(lambda c: {*vars(c)}) if "conn_hygiene" not in name} == set()
    # It is alive, and goes on in its pool.
    assert query() == 1


@pytest.mark.usefixtures("pool")
def test_an_attribute_of_somebodys_own_does_not_outlast_a_release(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
    # From the second release on, it is known how many there are.
    for _ in range(2):
        query()
    handle().of_somebody = 1
    query()
    assert of_the_pool(lambda c: hasattr(c, "of_somebody")) is False


# What the classes of psycopg and of its pool have under the same name, or set on something else.
ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "cursor": lambda c: partial(c.cursor, row_factory=dict_row),
    "execute": lambda c: partial(c.execute, prepare=False),
    "commit": lambda c: c.rollback,
    "connect": lambda c: None,
    "_check_connection_ok": lambda c: None,
    "name": lambda c: "acme",
    "timeout": lambda c: 7,
    "format": lambda c: 1,
    "notice_handler": lambda c: handler,
    "_check": lambda c: handler,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.usefixtures("pool")
def test_nor_does_one_that_is_called_as_another_of_psycopg_s_or_its_pool_s(name: str) -> None:
    for _ in range(2):
        raw = handle()
        assert name not in vars(raw)
        setattr(raw, name, ATTRIBUTES[name](raw))
        close()
    assert of_the_pool(lambda c: name in vars(c)) is False
    assert query() == 1


@pytest.mark.usefixtures("releasing")
def test_what_wraps_methods_as_a_connection_opens_goes_on_to_do_so(
    remake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As instrumentation does; who puts something else there does so for itself."""
    connect, seen = psycopg.Connection.connect, []

    def instrumented(cls: Any, *args: Any, **kwargs: Any) -> Any:
        connection: Any = connect(*args, **kwargs)
        plain = connection.cursor

        def cursor(*args: Any, **kwargs: Any) -> Any:
            seen.append("instrumented")
            return plain(*args, **kwargs)

        connection.cursor = cursor
        return connection

    def own_cursor(cursor: Any) -> Any:
        seen.append("own")
        return cursor()

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(instrumented))
    remake()
    for _ in range(3):
        assert query() == 1
        raw = handle()
        raw.cursor = partial(own_cursor, raw.cursor)
        seen.clear()
        assert query() == 1
        assert seen == ["own", "instrumented"]
        close()
    seen.clear()
    assert query() == 1
    assert seen == ["instrumented"]


class WithNotes(psycopg.Connection[Any]):
    """A class of somebody's own, whose connections know something of themselves."""

    @cached_property
    def opened(self) -> object:
        return object()

    def note(self, text: str) -> None:
        self.noted = text

    def mute(self) -> None:
        self.note = lambda text: None  # type: ignore[method-assign]


@pytest.mark.usefixtures("pool")
def test_what_connections_of_ones_own_class_set_on_themselves_is_kept_but_for_methods() -> None:
    raw = handle()
    raw.__class__ = WithNotes
    opened = raw.opened
    raw.note("kept")
    raw.mute()
    raw.of_somebody = 1
    close()
    assert handle() is raw
    assert {"note", "noted", "of_somebody", "opened"} & {*vars(raw)} == {"noted", "opened"}
    assert (raw.opened, raw.noted) == (opened, "kept")


# ##### Prepared statements #####


def view(request: Any) -> HttpResponse:
    if "set" in request.GET:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(request.GET["set"])
    return HttpResponse(str(Item.objects.using(ALIAS).filter(name="a").exists()))


urlpatterns = [path("", view)]


def get(app: Any, query_string: str) -> str:
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "QUERY_STRING": query_string,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
    }
    status: list[str] = []
    response = app(environ, lambda line, headers: status.append(line))
    list(response)
    response.close()
    return status[0]


@pytest.mark.parametrize(
    "statement",
    ["SET statement_timeout = '5s'", "CREATE TEMP TABLE t_hygiene (n int)", "DISCARD ALL", "DEALLOCATE ALL"],
)
@pytest.mark.usefixtures("releasing")
def test_no_request_fails_of_statements_that_a_cleaning_has_dropped(
    statement: str, remake: Callable[..., None]
) -> None:
    remake(server_side_binding=True, prepare_threshold=5)
    app = get_wsgi_application()
    found = {get(app, f"set={statement}" if number % 5 == 0 else "") for number in range(60)}
    assert found == {"200 OK"}
    assert_both_sides_agree()


def assert_both_sides_agree() -> None:
    raw = handle()
    rows = psycopg.Connection.execute(raw, "SELECT name FROM pg_prepared_statements").fetchall()
    assert {name for (name,) in rows} == {name.decode() for name in raw._prepared._names.values()}
    assert not raw._prepared._to_flush


@pytest.mark.usefixtures("releasing")
def test_statements_that_a_changed_threshold_has_prepared_are_known_to_both_sides(remake: Callable[..., None]) -> None:
    remake(server_side_binding=True)
    for _ in range(3):
        handle().prepare_threshold = 0
        assert query("SELECT %s::int", [1]) == 1
        close()
        assert_both_sides_agree()
        close()


# ##### It costs nothing where nothing changes #####


@pytest.mark.usefixtures("pool")
def test_nothing_is_sent_and_nothing_pinned_where_nothing_was_changed(admin: psycopg.Connection) -> None:
    def last_of(pid: int) -> Any:
        row = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        return row and row[0]

    pid = query("SELECT pg_backend_pid()")
    wait_until_released(ALIAS)
    before = conn_hygiene.stats()
    found = []
    for number in range(3):
        query(f"SELECT {number}")
        wait_until_released(ALIAS)
        found.append(last_of(pid))
        close()
        connections[ALIAS].ensure_connection()
        close()
        found.append(last_of(pid))
    assert found == [f"SELECT {number}" for number in range(3) for _ in range(2)]
    assert conn_hygiene.stats().pinned == before.pinned


@pytest.mark.usefixtures("pool")
def test_what_was_remembered_is_compared_and_not_made_anew() -> None:
    raw = handle()
    given = vars(raw)["_conn_hygiene_given"]
    assert client.look(raw) is given.look
    adapters = raw._adapters
    close()
    assert handle() is raw
    assert vars(raw)["_conn_hygiene_given"] is given
    assert raw._adapters is adapters


# ##### Classes of somebody's own #####


class Property(psycopg.Connection[Any]):
    """Has a property where psycopg has an attribute."""

    @property
    def row_factory(self) -> Any:
        return self.__dict__["_own_factory"]

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self.__dict__["_own_factory"] = value


@pytest.mark.usefixtures("releasing")
def test_a_class_of_connections_may_have_a_property(remake: Callable[..., None]) -> None:
    remake(pool={"min_size": 1, "max_size": 1, "timeout": 5, "connection_class": Property})
    for _ in range(3):
        assert query() == 1
        close()
    assert isinstance(handle(), Property)


class Greeting(Cursor):
    """Queries as it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("SET statement_timeout = 5000")


@pytest.mark.usefixtures("releasing")
def test_a_class_of_cursors_may_query_as_one_is_made(remake: Callable[..., None]) -> None:
    remake(cursor_factory=Greeting)
    for _ in range(2):
        assert query("SHOW statement_timeout") == "5s"
        close()


class Traced(psycopg.Cursor[Any]):
    """Is told of what is executed, and of the end."""

    told: ClassVar[list[str]] = []

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        self.told.append(query)
        return super().execute(query, params, **kwargs)

    def close(self) -> None:
        self.told.append("close")
        super().close()


@pytest.mark.usefixtures("pool")
def test_a_class_of_cursors_that_is_made_from_what_is_there_is_called() -> None:
    def receiver(connection: Any, **kwargs: Any) -> None:
        bases = (connection.connection.cursor_factory, Traced)
        connection.connection.cursor_factory = type("Both", bases, {})

    Traced.told.clear()
    connection_created.connect(receiver)
    try:
        assert query("SELECT 1") == 1
    finally:
        connection_created.disconnect(receiver)
    assert Traced.told == ["SELECT 1", "close"]


# ##### Where it cannot be had #####


@pytest.mark.parametrize("change", ["row_factory", "cursor_factory", "prepare_threshold", "read_only"])
@pytest.mark.usefixtures("pool")
def test_without_the_names_a_session_that_was_changed_is_closed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals.CLIENT, "missing", ("psycopg.adapt.AdaptersMap._loaders",))
    monkeypatch.setattr(internals.CLIENT, "available", False)
    pid = handle().info.backend_pid
    close()
    assert handle().info.backend_pid == pid
    CHANGES[change][0](handle())
    close()
    assert handle().info.backend_pid != pid


@pytest.mark.usefixtures("pool")
def test_what_refuses_to_be_put_back_is_closed() -> None:
    raw = handle()
    pid = raw.info.backend_pid

    class Stubborn(psycopg.Connection[Any]):
        @property
        def row_factory(self) -> Any:
            return dict_row

        @row_factory.setter
        def row_factory(self, value: Any) -> None:
            raise TypeError("never")

    raw.__class__ = Stubborn
    close()
    assert handle().info.backend_pid != pid


def test_uninstall_gives_the_pool_its_own_configure_back(remake: Callable[..., None]) -> None:
    remake()
    query()
    pool: Any = connections[ALIAS].pool
    configure = pool._configure
    assert type(configure) is configuring._Configure
    conn_hygiene.uninstall()
    try:
        assert pool._configure == configure.configure
        assert type(pool._configure) is not configuring._Configure
    finally:
        close()
        conn_hygiene.install()


@pytest.mark.usefixtures("pool")
def test_a_hold_puts_it_back_at_its_end() -> None:
    change, _, look = CHANGES["loader"]
    with release_between_queries(), hold_connection():
        change(handle())
        assert look(handle()) == (7,)
    close()
    wait_until_told()
    assert of_the_pool(look) == (1,)
