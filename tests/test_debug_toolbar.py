"""The panel of django-debug-toolbar: what it stores of a request, and what it makes of that."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.core.checks.registry import registry
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.db.utils import OperationalError
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import clear_url_caches, include, path

from conn_hygiene import release_connections
from conn_hygiene.leases import usage
from conn_hygiene.reports import timeline
from conn_hygiene.reports.timeline import PARTS, Segment, coarsely
from tests.testapp.models import Item
from tests.waiting import end_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

pytest.importorskip("debug_toolbar", reason="django-debug-toolbar is in the dependency group test.")

PANEL = "conn_hygiene.contrib.debug_toolbar.panels.ConnectionsPanel"
PAUSE = 0.05
HERE = "tests/test_debug_toolbar.py"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"]),
    pytest.mark.urls(__name__),
]


def query(alias: str = "default", sql: str = "SELECT 1") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def page(text: str = "") -> HttpResponse:
    return HttpResponse(f"<html><body>{text}</body></html>")


def nothing(request: HttpRequest) -> HttpResponse:
    return page()


def two_queries(request: HttpRequest) -> HttpResponse:
    """Query twice, on connections of their own."""
    query()
    release_connections()
    time.sleep(PAUSE)
    query(sql="SELECT 'a secret'")
    release_connections()
    return page()


def kept(request: HttpRequest) -> HttpResponse:
    query()
    time.sleep(PAUSE)
    return page()


def two_aliases(request: HttpRequest) -> HttpResponse:
    query("default")
    query("unpooled")
    return page()


def failing(request: HttpRequest) -> HttpResponse:
    query()
    raise RuntimeError("of the view")


def leaving(request: HttpRequest) -> HttpResponse:
    query()
    raise SystemExit


def refused(request: HttpRequest) -> HttpResponse:
    try:
        query(sql="SELECT nothing")
    except Exception as error:  # noqa: BLE001 - any will do
        return page(type(error).__name__)
    return page()


def unserved(request: HttpRequest) -> HttpResponse:
    try:
        query()
    except OperationalError:
        return page("busy")
    return page()


def watched(request: HttpRequest) -> JsonResponse:
    """Have statements watched by somebody else, from before there is a connection."""
    seen: list[str] = []

    def watch(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(watch):
        query()
    query(sql="SELECT 2")
    return JsonResponse({"seen": seen})


def pinning(request: HttpRequest) -> HttpResponse:
    query(sql="CREATE TEMPORARY TABLE kept (a int)")
    return page()


def following(request: HttpRequest) -> HttpResponse:
    query(sql="SET app.tenant TO 'a secret'")
    release_connections()
    query()
    return page()


def many(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        for _ in range(timeline.MOST_ENTRIES + 10):
            cursor.execute("SELECT 1")
    return page()


def itself(request: HttpRequest) -> FileResponse:
    query()
    return FileResponse(Path(__file__).open("rb"))


# Where queries hide.


def rendered(source: str, **context: Any) -> str:
    return engines["django"].from_string(source).render(context)


def in_template(request: HttpRequest) -> HttpResponse:
    return HttpResponse(rendered("<body>\n{% for item in items %}{{ item }}{% endfor %}", items=Item.objects.all()))


def in_a_method_for_a_template(request: HttpRequest) -> HttpResponse:
    return HttpResponse(rendered("{{ asked }}", asked=query))


def after_the_view(request: HttpRequest) -> TemplateResponse:
    template = engines["django"].from_string("<body>{{ items.count }}</body>")
    return TemplateResponse(request, template, {"items": Item.objects.all()})


def asking_processor(request: HttpRequest) -> dict[str, Any]:
    if request.path == "/in_context_processor/":
        query()
    return {}


def in_context_processor(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string("{{ a }}").render({}, request))


def on_commit(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        query()
        transaction.on_commit(query)
    return page()


class Described:
    def __str__(self) -> str:
        query()
        return "described"


def in_str(request: HttpRequest) -> HttpResponse:
    return page(str(Described()))


def in_serializer(request: HttpRequest) -> JsonResponse:
    from rest_framework import serializers

    named = type("ItemSerializer", (serializers.Serializer,), {"name": serializers.CharField()})
    return JsonResponse({"items": named(Item.objects.all(), many=True).data})


def in_receiver(request: HttpRequest) -> HttpResponse:
    query("unpooled")
    return page()


def in_middleware(request: HttpRequest) -> HttpResponse:
    return page()


def in_body(request: HttpRequest) -> StreamingHttpResponse:
    query()
    release_connections()

    def body() -> Iterator[str]:
        query()
        yield "<body></body>"

    return StreamingHttpResponse(body())


async def async_body(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        yield str(await Item.objects.acount())

    return StreamingHttpResponse(body())


async def async_view(request: HttpRequest) -> HttpResponse:
    await Item.objects.acount()
    return page()


async def async_threads(request: HttpRequest) -> HttpResponse:
    # Else one thread might do both, one after the other.
    both = threading.Barrier(2)

    def job() -> None:
        both.wait(10)
        query()
        connection.close()

    await asyncio.gather(asyncio.to_thread(job), sync_to_async(job, thread_sensitive=False)())
    return page()


class Turns:
    """Two requests that take turns: the first queries, then the second, then the first again."""

    first = second = asyncio.Event()


async def first_of_two(request: HttpRequest) -> HttpResponse:
    await Item.objects.acount()
    Turns.first.set()
    await Turns.second.wait()
    await Item.objects.acount()
    return page()


async def second_of_two(request: HttpRequest) -> HttpResponse:
    await Turns.first.wait()
    await Item.objects.aexists()
    Turns.second.set()
    return page()


VIEWS: list[Any] = [
    nothing,
    two_queries,
    kept,
    two_aliases,
    failing,
    leaving,
    refused,
    unserved,
    watched,
    pinning,
    following,
    many,
    itself,
    in_template,
    in_a_method_for_a_template,
    after_the_view,
    in_context_processor,
    on_commit,
    in_str,
    in_serializer,
    in_receiver,
    in_middleware,
    in_body,
    async_body,
    async_view,
    async_threads,
    first_of_two,
    second_of_two,
]
# The toolbar's own are added when it is installed.
urlpatterns: list[Any] = [path(f"{view.__name__}/", view) for view in VIEWS]


class QueryingMiddleware:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        query()
        return self.get_response(request)


TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"
OURS = "conn_hygiene.middleware.ConnectionHygieneMiddleware"


@pytest.fixture(autouse=True)
def _toolbar() -> Iterator[None]:
    connections.close_all()
    checks = set(registry.registered_checks)
    # The applications come last: the toolbar's looks at the settings when it is installed.
    apps = ["django.contrib.staticfiles", "debug_toolbar", "conn_hygiene", "tests.testapp"]
    with (
        override_settings(
            DEBUG=True,
            ALLOWED_HOSTS=["testserver"],
            INTERNAL_IPS=["127.0.0.1"],
            STATIC_URL="/static/",
            MIDDLEWARE=[TOOLBAR],
            TEMPLATES=[
                {
                    "BACKEND": "django.template.backends.django.DjangoTemplates",
                    "APP_DIRS": True,
                    "OPTIONS": {"context_processors": [f"{__name__}.asking_processor"]},
                }
            ],
            DEBUG_TOOLBAR_CONFIG={"IS_RUNNING_TESTS": False},
            DEBUG_TOOLBAR_PANELS=["debug_toolbar.panels.history.HistoryPanel", PANEL],
            CONN_HYGIENE={"RELEASE": "never"},
        ),
        override_settings(INSTALLED_APPS=apps),
    ):
        from debug_toolbar.store import get_store
        from debug_toolbar.toolbar import DebugToolbar

        DebugToolbar._panel_classes = DebugToolbar._urlpatterns = None
        get_store().clear()
        if len(urlpatterns) == len(VIEWS):
            urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))
            clear_url_caches()
        yield
        DebugToolbar._panel_classes = DebugToolbar._urlpatterns = None
    # The toolbar's would look for its application for as long as the process lives.
    registry.registered_checks = checks
    assert usage.current.get() is None
    assert timeline._open == []
    for wrapper in connections.all(initialized_only=True):
        if wrapper.execute_wrappers:
            # Of a request that has ended in another thread.
            query(wrapper.alias)
        assert wrapper.execute_wrappers == []
    connections.close_all()


def ids() -> list[str]:
    from debug_toolbar.store import get_store

    return list(get_store().request_ids())


def stored(request_id: str | None = None) -> dict[str, Any]:
    """Return what the store has of a request, by default of the last; it has been through JSON."""
    from debug_toolbar.store import get_store

    found: dict[str, Any] = get_store().panel(request_id or ids()[-1], "ConnectionsPanel")
    assert json.loads(json.dumps(found)) == found
    return found


def get(view: Any, client: Client | None = None, **cookies: str) -> dict[str, Any]:
    """Return what is stored of a request, whose body has been read."""
    client = client or Client()
    client.cookies.load(cookies)
    response = client.get(f"/{view.__name__}/")
    if response.streaming:
        list(response)
        response.close()
    return stored()


def whats(stats: dict[str, Any]) -> list[str]:
    return [entry["what"] for entry in stats["entries"]]


def only(stats: dict[str, Any], what: str) -> Any:
    [entry] = [entry for entry in stats["entries"] if entry["what"] == what]
    return entry


def line_of(function: Any, offset: int = 1) -> str:
    """Return the place of a line of *function*, by its distance from the "def"."""
    return f"{HERE}:{function.__code__.co_firstlineno + offset} in {function.__name__}"


IN_QUERY = line_of(query, 2)


def panel_of(request_id: str | None = None) -> Any:
    """Return the panel as the toolbar makes it of what is stored."""
    from debug_toolbar.toolbar import DebugToolbar

    toolbar = DebugToolbar.fetch(request_id or ids()[-1])
    assert toolbar is not None
    return toolbar.get_panel_by_id("ConnectionsPanel")


# ##### What is stored #####


def test_a_request_has_its_checkouts_and_queries_in_the_order_of_time() -> None:
    stats = get(two_queries)
    assert whats(stats) == ["waited", "checked out", "query", "given back"] * 2
    assert [entry["statement"] for entry in stats["entries"] if entry["what"] == "query"] == ["SELECT ?"] * 2
    assert {entry["where"] for entry in stats["entries"] if entry["what"] != "given back"} == {IN_QUERY}
    assert [entry["at"] for entry in stats["entries"]] == sorted(entry["at"] for entry in stats["entries"])
    assert (stats["checkouts"], stats["queries"], stats["hidden"]) == (2, 2, 0)
    [track] = stats["tracks"]
    assert (track["alias"], track["checkouts"]) == ("default", 2)
    assert [what for *_, what in track["segments"]] == ["waited", "idle", "used", "idle"] * 2


def test_plain_django_would_have_held_from_the_first_query_to_the_end() -> None:
    stats = get(two_queries)
    [track] = stats["tracks"]
    assert stats["plain"] == stats["seconds"] - track["first"] >= PAUSE
    # In the pause, nothing was held.
    given_back, checked_out = stats["entries"][3], stats["entries"][5]
    assert checked_out["at"] - given_back["at"] >= PAUSE
    assert stats["held"] <= stats["plain"] - PAUSE


def test_what_is_kept_is_idle_to_the_end() -> None:
    stats = get(kept)
    [track] = stats["tracks"]
    begin, end, what = track["segments"][-1]
    assert (what, end) == ("idle", stats["seconds"])
    assert end - begin >= PAUSE
    assert whats(stats) == ["waited", "checked out", "query"]


def test_a_request_that_queries_nothing_has_nothing() -> None:
    stats = get(nothing)
    assert (stats["tracks"], stats["entries"], stats["lines"], stats["plain"]) == ([], [], [], 0)
    assert panel_of().nav_subtitle == "none used"
    assert "has used no connection" in panel_of().content


def test_each_alias_has_a_track() -> None:
    stats = get(two_aliases)
    assert [(track["alias"], track["checkouts"]) for track in stats["tracks"]] == [("default", 1), ("unpooled", 1)]


def test_an_error_of_the_view_has_its_queries() -> None:
    stats = get(failing, Client(raise_request_exception=False))
    assert whats(stats) == ["waited", "checked out", "query"]


def test_what_goes_past_the_toolbar_is_over_as_well() -> None:
    # The fixture looks whether anything is left.
    with pytest.raises(SystemExit):
        get(leaving)


def test_a_statement_that_fails_is_told() -> None:
    assert only(get(refused), "failed")["where"] == line_of(query, 2)


def test_a_wait_in_vain_is_told(pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of("default")
    monkeypatch.setattr(pool, "timeout", 0.02)
    taken = [pool.getconn(timeout=5) for _ in range(pool.max_size)]
    try:
        stats = get(unserved)
    finally:
        for each in taken:
            pool.putconn(each)
    assert whats(stats) == ["waited in vain"]
    assert only(stats, "waited in vain")["seconds"] == stats["waited"] >= 0.02
    assert only(stats, "waited in vain")["where"] == line_of(query, 1)
    assert stats["plain"] == 0


def test_a_pin_is_told_with_its_line() -> None:
    pin = only(get(pinning), "pinned")
    assert (pin["note"], pin["where"]) == ("temporary table", IN_QUERY)


def test_settings_that_follow_are_told_by_name() -> None:
    stats = get(following)
    assert only(stats, "followed")["note"] == "app.tenant"
    assert "secret" not in json.dumps(stats)


def test_a_connection_that_was_open_before_is_no_checkout() -> None:
    query()
    stats = get(kept)
    assert whats(stats) == ["found open", "query"]
    assert stats["checkouts"] == 0
    assert stats["plain"] == stats["seconds"] - stats["tracks"][0]["first"]


def test_a_replaced_connection_is_told(admin: psycopg.Connection) -> None:
    query()
    end_sessions(admin, connection.connection.info.backend_pid)
    connections["default"].__dict__["_conn_hygiene_lease"].idle_since -= 1
    stats = get(kept)
    assert re.fullmatch(r"the server had closed it, \d\.\d s idle", only(stats, "replaced")["note"])
    assert stats["checkouts"] == 1


def test_what_is_too_much_is_counted() -> None:
    stats = get(many)
    assert len(stats["entries"]) == timeline.MOST_ENTRIES
    assert stats["left_out"] == 12
    [line] = stats["lines"]
    assert (line["queries"], line["checkouts"]) == (timeline.MOST_ENTRIES + 10, 1)
    assert "12 more have happened" in panel_of().content


def test_lines_beyond_a_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_LINES", 1)
    stats = get(on_commit)
    assert {line["where"]: line["queries"] for line in stats["lines"]} == {IN_QUERY: 1, "other lines": 1}


@override_settings(CONN_HYGIENE={"RELEASE": "never", "LOG_STATEMENTS": "raw"})
def test_statements_are_told_as_the_setting_says() -> None:
    assert only(get(kept), "query")["statement"] == "SELECT 1"


def test_a_block_that_begins_before_the_connection_pops_its_own() -> None:
    assert Client().get("/watched/").json() == {"seen": ["SELECT 1"]}
    assert [entry["statement"] for entry in stored()["entries"] if entry["statement"]] == ["SELECT ?", "SELECT ?"]


def test_a_panel_that_is_switched_off_listens_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("It listens.")

    monkeypatch.setattr(timeline.Timeline, "__init__", refuse)
    assert get(kept, djdtConnectionsPanel="off") == {}


# ##### Where queries hide #####


@pytest.mark.parametrize(
    ("view", "hidden", "template", "where"),
    [
        (in_template, "template", "a template:2", line_of(rendered)),
        (in_a_method_for_a_template, "template", "a template:1", IN_QUERY),
        (after_the_view, "template, rendered after the view", "a template:1", None),
        (in_context_processor, "context processor", None, IN_QUERY),
        (in_str, "__str__", None, IN_QUERY),
        (in_serializer, "serializer", None, line_of(in_serializer, 4)),
    ],
)
def test_a_hidden_query_is_told(view: Any, hidden: str, template: str | None, where: str | None) -> None:
    stats = get(view)
    entry = only(stats, "query")
    assert (entry["hidden"], entry["template"], entry["where"]) == (hidden, template, where)
    assert stats["hidden"] == 1


def test_a_hook_of_a_commit_is_hidden() -> None:
    stats = get(on_commit)
    assert [entry["hidden"] for entry in stats["entries"] if entry["what"] == "query"] == [None, "on_commit hook"]
    assert stats["hidden"] == 1


def test_a_receiver_is_hidden() -> None:
    def receiver(**kwargs: Any) -> None:
        query("default")

    connections["default"].ensure_connection()
    connection_created.connect(receiver)
    try:
        stats = get(in_receiver)
    finally:
        connection_created.disconnect(receiver)
    by_alias = {entry["alias"]: entry["hidden"] for entry in stats["entries"] if entry["what"] == "query"}
    assert by_alias == {"default": "signal receiver", "unpooled": None}


@override_settings(MIDDLEWARE=[TOOLBAR, f"{__name__}.QueryingMiddleware"])
def test_a_middleware_is_hidden() -> None:
    entry = only(get(in_middleware), "query")
    assert (entry["hidden"], entry["where"]) == ("middleware", IN_QUERY)


@pytest.mark.parametrize("middleware", [[TOOLBAR], [TOOLBAR, OURS], [OURS, TOOLBAR]])
def test_a_streaming_body_is_hidden_and_told_when_it_has_ended(middleware: list[str]) -> None:
    with override_settings(MIDDLEWARE=middleware):
        response: Any = Client().get("/in_body/")
        before = stored()
        list(response)
        response.close()
    assert [entry["hidden"] for entry in before["entries"] if entry["what"] == "query"] == [None]
    after = stored()
    assert [entry["hidden"] for entry in after["entries"] if entry["what"] == "query"] == [None, "streaming body"]
    assert after["seconds"] > before["seconds"]


def test_a_body_that_nobody_wants_any_more_does_not_come_back() -> None:
    from debug_toolbar.store import get_store

    response: Any = Client().get("/in_body/")
    get_store().clear()
    list(response)
    response.close()
    assert ids() == []


def test_a_file_is_no_body_that_queries() -> None:
    assert whats(get(itself)) == ["waited", "checked out", "query"]


# ##### async #####


async def aget(view: Any) -> dict[str, Any]:
    response: Any = await AsyncClient().get(f"/{view.__name__}/")
    if response.streaming:
        assert [part async for part in response] == [b"0"]
        await sync_to_async(response.close)()
    return stored(response.headers["djdt-request-id"])


async def test_an_async_view_has_the_line_that_awaits() -> None:
    stats = await aget(async_view)
    assert whats(stats) == ["waited", "checked out", "query"]
    assert only(stats, "query")["where"] == line_of(async_view)


@pytest.mark.parametrize("middleware", [[TOOLBAR], [TOOLBAR, OURS]])
async def test_an_async_body_has_the_line_that_awaits(middleware: list[str]) -> None:
    with override_settings(MIDDLEWARE=middleware):
        entry = only(await aget(async_body), "query")
    assert entry["hidden"] == "streaming body"
    assert entry["where"] == f"{HERE}:{async_body.__code__.co_firstlineno + 2} in body"


async def test_threads_of_a_request_have_tracks_of_their_own() -> None:
    stats = await aget(async_threads)
    assert [track["alias"] for track in stats["tracks"]] == ["default"] * 2
    assert len({track["thread"] for track in stats["tracks"]}) == 2
    assert sorted(whats(stats)) == sorted(["waited", "checked out", "query", "closed"] * 2)
    assert {entry["thread"] for entry in stats["entries"]} == {track["thread"] for track in stats["tracks"]}


async def test_requests_that_take_turns_do_not_mix() -> None:
    Turns.first, Turns.second = asyncio.Event(), asyncio.Event()
    first, second = await asyncio.gather(aget(first_of_two), aget(second_of_two))
    assert {line["where"] for line in first["lines"]} == {line_of(first_of_two, 1), line_of(first_of_two, 4)}
    assert [line["where"] for line in second["lines"]] == [line_of(second_of_two, 2)]
    assert [first["queries"], second["queries"]] == [2, 1]


# ##### With the header #####


@override_settings(CONN_HYGIENE={"RELEASE": "always", "RELEASE_AFTER": 0, "SERVER_TIMING": True})
def test_the_middleware_around_it_says_the_same() -> None:
    with override_settings(MIDDLEWARE=[OURS, TOOLBAR]):
        response = Client().get("/two_queries/")
    told = {part.split(";")[0]: part.split(";")[1] for part in response["Server-Timing"].split(", ")}
    for ours, panels in (("wait", "waited"), ("held", "held"), ("used", "used")):
        assert told[f"db-{ours}"] == told[f"ConnectionsPanel_{panels}"] == f"dur={stored()[panels] * 1000:.1f}"


@override_settings(CONN_HYGIENE={"RELEASE": "always", "RELEASE_AFTER": 0, "SERVER_TIMING": True})
def test_the_middleware_inside_of_it_measures_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = usage.server_timing

    def noted(*args: Any) -> str:
        said.append(real(*args))
        return said[-1]

    monkeypatch.setattr(usage, "server_timing", noted)
    with override_settings(MIDDLEWARE=[TOOLBAR, OURS, OURS]):
        Client().get("/two_queries/")
    # Once, by the outer one of the two.
    [header] = said
    stats = stored()
    assert header.startswith(f"db-wait;dur={stats['waited'] * 1000:.1f};")
    assert f"db-held;dur={stats['held'] * 1000:.1f};" in header


# ##### What is shown #####


def test_the_panel_tells_it_at_a_glance() -> None:
    stats = get(two_queries)
    held, seconds = f"{stats['held'] * 1000:.0f}", f"{stats['seconds'] * 1000:.0f}"
    assert panel_of().nav_subtitle == f"held {held} ms of {seconds} ms, 2 checkouts"
    get(in_template)
    assert panel_of().nav_subtitle.endswith(", 1 checkout, 1 hidden")


def test_the_content_has_no_style_script_or_address() -> None:
    get(following)
    content = panel_of().content
    for word in ("style", "<script", "onclick", "href", "src="):
        assert word not in content
    assert content.replace("http://www.w3.org/2000/svg", "").count("http") == 0


def test_names_are_escaped() -> None:
    stats = get(pinning)
    panel = panel_of()
    stats["entries"][0] |= {"where": "<b>", "statement": "<i>", "alias": "<u>", "what": "<s>"}
    stats["tracks"][0] |= {"alias": '"><p>'}
    panel.toolbar.stats["ConnectionsPanel"] = stats
    content = panel.content
    for tag in ("<b>", "<i>", "<u>", "<s>", '"><p>'):
        assert tag not in content


def test_the_history_shows_an_earlier_request() -> None:
    client = Client()
    get(two_queries, client)
    earlier = ids()[-1]
    get(nothing, client)
    answer = client.get("/__debug__/render_panel/", {"request_id": earlier, "panel_id": "ConnectionsPanel"})
    assert answer.json()["content"].count("checked out") == 2
    sidebar = client.get("/__debug__/history_sidebar/", {"request_id": earlier, "exclude_history": "on"}).json()
    assert "2 checkouts" in sidebar["ConnectionsPanel"]["button"]


@override_settings(DEBUG_TOOLBAR_CONFIG={"IS_RUNNING_TESTS": False, "RENDER_PANELS": True})
def test_a_page_that_has_its_panels_in_it_has_this_one() -> None:
    assert b"Timeline" in Client().get("/two_queries/").content


def test_few_segments_of_many_are_drawn() -> None:
    step = 1 / PARTS
    # In turns within each part, three quarters of it in use; the last tenth is empty.
    segments = [
        Segment(part * step + begin * step, part * step + end * step, what)
        for part in range(PARTS * 9 // 10)
        for begin, end, what in ((0, 0.75, "used"), (0.75, 1, "idle"))
    ]
    [drawn] = coarsely(segments, 1.0)
    assert (drawn.begin, drawn.what) == (0, "used")
    assert drawn.end == pytest.approx(0.9)


def test_a_track_of_very_many_segments_is_drawn_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_MOST_SEGMENTS", 3)
    [track] = get(two_queries)["tracks"]
    assert track["coarse"]
    assert len(track["segments"]) <= PARTS
    assert "the finest that is drawn" in panel_of().content
