"""The middleware: the scopes of :mod:`conn_hygiene.scopes` around a request, streaming bodies included.

Each works under WSGI and ASGI without an adapter in between. What a view raises passes through untouched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, StreamingHttpResponse

from conn_hygiene import callsite, conf, installation, scopes, scoping
from conn_hygiene.leases import policy, usage

if TYPE_CHECKING:
    from django.http.response import HttpResponseBase

GetResponse = Callable[[HttpRequest], Any]


class _ScopeMiddleware:
    """Run the rest of the request, and then its streaming body, inside a scope.

    Only the scope's frame is pushed and popped here, which touches no connection: before the first query there is
    nothing to give back, and after the last ``request_finished`` follows.
    """

    sync_capable = True
    async_capable = True

    scope: scopes.RequestScope | None

    def __init__(self, get_response: GetResponse) -> None:
        if get_response is None:
            raise ValueError("get_response must be provided.")
        installation.install_for(f"{type(self).__module__}.{type(self).__qualname__}")
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._acall(request)
        if conf.current.SERVER_TIMING or self.scope is None:
            with _timed() as timed, self._step() as entry:
                return self._covered(timed(self.get_response(request)), entry)
        # The same for most sites, without the context managers: every request pays for them.
        entry = self.scope.enter()
        try:
            return self._covered(self.get_response(request), entry)
        finally:
            self.scope.leave(entry)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        with callsite.answering(request), _timed() as timed, self._step() as entry:
            return self._covered(timed(await self.get_response(request)), entry)

    def _step(self) -> AbstractContextManager[policy.Entry | None]:
        return nullcontext() if self.scope is None else self.scope.step()

    def _covered(self, response: Any, entry: policy.Entry | None) -> HttpResponseBase:
        if entry is not None and isinstance(response, StreamingHttpResponse):
            scoping.cover_streaming(response, scopes.SameRequest(entry))
        return cast("HttpResponseBase", response)


@contextmanager
def _timed() -> Iterator[Callable[[Any], Any]]:
    """Measure the request inside, if the settings ask for it; yield what adds the result to its response."""
    around = usage.current.get()
    if not conf.current.SERVER_TIMING or (around is not None and around.is_told):
        # Off, or another middleware of this module is around this one.
        yield lambda response: response
        return
    measured = usage.Timing(around)

    def add_header(response: Any) -> Any:
        response["Server-Timing"] = usage.server_timing(measured, response.get("Server-Timing"))
        return response

    token = usage.current.set(measured)
    try:
        yield add_header
    finally:
        usage.current.reset(token)


class ReleaseBetweenQueriesMiddleware(_ScopeMiddleware):
    """Give idle connections back between the queries of every request; see :func:`.release_between_queries`."""

    scope: scopes.RequestScope | None = scopes.RequestScope()


class IdleInTransactionMiddleware(_ScopeMiddleware):
    """Report transactions of requests that sit idle for ``IDLE_IN_TRANSACTION_AFTER``, or that a request leaves open.

    Installs the toolkit, whose reaper and receivers do the work, as they do for all else: forks, dead threads, broken
    connections, the cleaning of sessions. Gives nothing back between a request's queries. For sites that want the
    reports without that.
    """

    scope: scopes.RequestScope | None = None


class ConnectionHygieneMiddleware(ReleaseBetweenQueriesMiddleware, IdleInTransactionMiddleware):
    """Do all that the toolkit does for a request: the other two middleware of this module in one.

    Gives idle connections back between the queries of each request, as :func:`.release_between_queries` does, and has
    transactions reported that sit idle, or that a request leaves open. Covers the bodies of streaming responses, and
    works under WSGI and ASGI. With ``RELEASE = "never"`` nothing is given back, and the rest is done. With
    ``SERVER_TIMING`` each response gets a ``Server-Timing`` header. What a view raises passes through untouched.

    Put it first in ``MIDDLEWARE``: what a middleware in front of it queries is not covered. Where ``"conn_hygiene"`` is
    not in ``INSTALLED_APPS``, it installs the toolkit all the same, and logs a warning, once in each process.
    """

    scope: scopes.RequestScope | None = scopes.RequestScope()
