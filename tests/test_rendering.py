"""Responses that Django renders when the decorated view has returned, as those of generic views."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import cache
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection
from django.db.models import F, Func, TextField, Value
from django.http import HttpRequest, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_page
from django.views.generic import ListView, TemplateView

from conn_hygiene import (
    QueryTimeout,
    closing_connections,
    hold_connection,
    query_timeout,
    release_between_queries,
    session_settings,
)
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]

TEMPLATES = {
    "asked.html": "{{ asked }} {{ asked }}",
    "items.html": "{% for item in object_list %}{{ item.name }} of {{ item.tenant }}{% endfor %}",
    "other.html": "other: {% for item in object_list %}{{ item.tenant }}{% endfor %}",
}


@pytest.fixture(autouse=True)
def _templates(settings: Any) -> None:
    loaders = [("django.template.loaders.locmem.Loader", TEMPLATES)]
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"loaders": loaders}}
    ]


def query(sql: str = "SELECT 'asked'") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def query_and_wait() -> Any:
    answer = query()
    wait_until_released()
    return answer


def query_and_stay() -> Any:
    answer = query()
    let_the_reaper_look()
    assert holds("default")
    return answer


def tenant_now() -> str:
    return query("SELECT current_setting('app.tenant', true)") or "nobody"


def tenant(number: int) -> Any:
    return session_settings({"app.tenant": number})


# ##### A small site #####


@method_decorator(release_between_queries, name="dispatch")
class Released(TemplateView):
    template_name = "asked.html"


@release_between_queries
async def async_released(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "asked.html", {"asked": query_and_wait})


@method_decorator(hold_connection, name="dispatch")
class Held(TemplateView):
    template_name = "asked.html"


@hold_connection
async def async_held(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "asked.html", {"asked": query_and_stay})


class Items(ListView):  # type: ignore[type-arg]
    template_name = "items.html"
    queryset = Item.objects.annotate(
        tenant=Func(Value("app.tenant"), Value(value=True), function="current_setting", output_field=TextField())
    ).filter(name=F("name"))


@method_decorator(tenant(7), name="dispatch")
class ItemsOfATenant(Items):
    pass


class ItemsOfATenantByMethod(Items):
    @method_decorator(tenant(7))
    def get(self, *args: Any, **kwargs: Any) -> Any:
        return super().get(*args, **kwargs)


@tenant(7)
async def async_items_of_a_tenant(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "items.html", {"object_list": Items.queryset})


class AsyncResponse(SimpleTemplateResponse):
    async def render(self) -> Any:  # type: ignore[override]
        return await sync_to_async(super().render)()


@tenant(7)
async def rendered_by_a_coroutine(request: HttpRequest) -> AsyncResponse:
    return AsyncResponse("asked.html", {"asked": tenant_now})


urlpatterns = [
    path("released/", Released.as_view(extra_context={"asked": query_and_wait})),
    path("async-released/", async_released),
    path("held/", Held.as_view(extra_context={"asked": query_and_stay})),
    path("async-held/", async_held),
    path("items/", ItemsOfATenant.as_view()),
    path("items-by-method/", ItemsOfATenantByMethod.as_view()),
    path("async-items/", async_items_of_a_tenant),
    path("coroutine/", rendered_by_a_coroutine),
    path("cached/", cache_page(60)(ItemsOfATenant.as_view())),
    path("cached-in-it/", tenant(7)(cache_page(60)(Items.as_view()))),
]


def get(url: str, client: type = Client) -> bytes:
    response = Client().get(url) if client is Client else async_to_sync(AsyncClient().get)(url)
    content: bytes = response.content
    return content


both_clients = pytest.mark.parametrize("client", [Client, AsyncClient], ids=["WSGI", "ASGI"])


# ##### Rendered by Django #####


@both_clients
@pytest.mark.parametrize("url", ["/released/", "/async-released/"])
def test_a_template_gives_back_between_its_queries(url: str, client: type) -> None:
    assert get(url, client) == b"asked asked"
    query_and_stay()


@both_clients
@pytest.mark.parametrize("url", ["/held/", "/async-held/"])
def test_a_template_holds_its_connection(url: str, client: type, settings: Any) -> None:
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
    assert get(url, client) == b"asked asked"
    query_and_stay()


@both_clients
@pytest.mark.parametrize("url", ["/items/", "/items-by-method/", "/async-items/"])
def test_the_queries_of_a_template_run_under_the_settings(url: str, client: type) -> None:
    Item.objects.create(name="lamp")
    assert get(url, client) == b"lamp of 7"
    assert tenant_now() == "nobody"


def test_a_response_whose_render_is_a_coroutine_function() -> None:
    assert get("/coroutine/", AsyncClient) == b"7 7"
    assert tenant_now() == "nobody"


class OtherTemplate:
    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_template_response(self, request: HttpRequest, response: TemplateResponse) -> TemplateResponse:
        response.template_name = "other.html"
        return response


@both_clients
def test_what_a_middleware_has_rendered_instead(client: type, settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.OtherTemplate"]
    Item.objects.create(name="lamp")
    assert get("/items/", client) == b"other: 7"


@both_clients
@pytest.mark.parametrize("url", ["/cached/", "/cached-in-it/"])
def test_a_rendered_response_can_be_cached(url: str, client: type) -> None:
    cache.clear()
    Item.objects.create(name="lamp")
    assert get(url, client) == b"lamp of 7"
    Item.objects.all().delete()
    assert get(url, client) == b"lamp of 7"
    cache.clear()


# ##### Rendered by hand #####


def response_of(scope: Any, asked: Callable[[], Any]) -> Any:
    return scope(lambda: SimpleTemplateResponse("asked.html", {"asked": asked}))()


def test_it_is_rendered_once() -> None:
    answers = iter([1, 2])
    response = response_of(release_between_queries, lambda: next(answers))
    assert not response.is_rendered
    assert response.render() is response
    assert response.render() is response
    assert response.content == b"1 2"


def test_what_the_view_has_rendered_itself_is_left_alone() -> None:
    response = tenant(7)(lambda: SimpleTemplateResponse("asked.html", {"asked": tenant_now}).render())()
    assert response.content == b"7 7"
    assert "render" not in vars(response)


def test_a_template_that_fails_is_covered_again_at_the_next_attempt() -> None:
    failure = LookupError("the template's own")

    def fail() -> None:
        raise failure

    response = tenant(8)(response_of)(tenant(7), fail)
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            response.render()
        assert caught.value is failure
        assert tenant_now() == "nobody"
    response.context_data["asked"] = tenant_now
    assert response.render().content == b"7 7"


def test_decorators_nest_as_around_the_view() -> None:
    assert tenant(1)(response_of)(tenant(2), tenant_now).render().content == b"2 2"
    response = tenant(1)(response_of)(session_settings({"work_mem": "5MB"}), tenant_now)
    response.context_data["asked"] = lambda: f"{tenant_now()} {query('SHOW work_mem')}"
    assert response.render().content == b"1 5MB 1 5MB"
    assert (tenant_now(), query("SHOW work_mem")) == ("nobody", "4MB")


def test_a_template_s_queries_have_their_limit() -> None:
    response = response_of(query_timeout(0.02), lambda: query("SELECT pg_sleep(10)"))
    with pytest.raises(QueryTimeout):
        response.render()


def test_what_a_template_has_opened_is_closed() -> None:
    response = response_of(closing_connections, query_and_stay)
    response.render()
    assert not holds("default")


def test_callbacks_run_inside_and_what_they_return_is_covered_too() -> None:
    response = response_of(tenant(7), tenant_now)
    response.add_post_render_callback(lambda response: StreamingHttpResponse([tenant_now()]))
    response.add_post_render_callback(lambda response: StreamingHttpResponse(tenant_now() for _ in range(2)))
    assert response.render().getvalue() == b"77"
    assert tenant_now() == "nobody"


async def test_a_template_is_rendered_on_an_event_loop_if_it_asks_nothing() -> None:
    response = response_of(release_between_queries, lambda: "no query")
    assert response.render().content == b"no query no query"
    assert (await asks_nothing()).render().content == b"no query no query"
    response = await rendered_on_the_loop()
    with pytest.raises(SynchronousOnlyOperation):
        response.render()
    assert (await sync_to_async(response.render)()).content == b"7 7"


@tenant(7)
async def asks_nothing() -> SimpleTemplateResponse:
    return SimpleTemplateResponse("asked.html", {"asked": "no query"})


@tenant(7)
async def rendered_on_the_loop() -> SimpleTemplateResponse:
    return SimpleTemplateResponse("asked.html", {"asked": tenant_now})


# ##### What becomes of the response #####


def test_nothing_is_left_on_a_rendered_response() -> None:
    pickled = []
    response = tenant(8)(response_of)(tenant(7), tenant_now)
    response.add_post_render_callback(lambda response: pickled.append(pickle.dumps(response)))
    response.render()
    plain = SimpleTemplateResponse("asked.html", {"asked": "7"}).render()
    assert vars(response).keys() == vars(plain).keys()
    loaded = pickle.loads(pickled[0])
    assert loaded.content == b"7 7"
    assert vars(loaded).keys() == vars(pickle.loads(pickle.dumps(plain))).keys()


@pytest.mark.parametrize("scope", [release_between_queries(), hold_connection(), tenant(7), query_timeout(1)])
def test_a_response_whose_content_was_set_instead_can_be_pickled(scope: Any) -> None:
    view = scope(scope(lambda: TemplateResponse(RequestFactory().get("/"), "asked.html", {"asked": query})))
    response = view()
    response.content = b"set"
    loaded = pickle.loads(pickle.dumps(response))
    assert loaded.content == b"set"
    assert loaded.render() is loaded
    assert loaded.content == b"set"


def test_a_rendered_response_goes_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        response = response_of(release_between_queries, lambda: "asked").render()
        gone = weakref.ref(response)
        del response
        assert gone() is None
    finally:
        gc.enable()
