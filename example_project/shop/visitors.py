"""The first page's visitors: the same forty for a shop without the toolkit and for one with it.

They come from here, and not from the browser: that asks a host for six pages at a time, and has the rest wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import threading
from typing import TYPE_CHECKING, Any

import httpx
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.views.decorators.http import require_POST

from example_project.shop.watching import FREE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    Put = Callable[[str, dict[str, Any]], None]

VISITORS = 40
ARRIVE_IN = 1.0  # seconds
SOON = 2.0  # seconds: who is served within them is counted apart
LOOK_EVERY = 0.05  # seconds

RESULTS = (
    ("served", "Visitors served"),
    ("soon", f"Served within {SOON:.0f} seconds"),
    ("median", "Median of how long they were there"),
    ("worst", "Longest"),
    ("timeouts", "Told that there was no connection in time"),
    ("failed", "Other errors"),
)

# At most. The pool's own patience ends each visit much earlier, and nobody is left from the run before.
PATIENCE = 20  # seconds

# One run at a time: two would share the machine, and each would show what the other does to it.
_running = threading.Lock()


def shops() -> dict[str, str]:
    """Return the addresses of the shops to compare, by "without" and "with"; none, where only one shop runs."""
    return getattr(settings, "COMPARED", {})


@require_POST
def compare(request: HttpRequest, side: str) -> StreamingHttpResponse:
    """Send the visitors to one of the shops, and stream what happens as server-sent events.

    ``begin``, then ``visitor`` and ``pool`` many times, then ``done``; or ``problem``, in words.
    """
    if side not in shops():
        raise Http404
    events = as_text(run(shops()[side]))
    return StreamingHttpResponse(
        events if isinstance(request, ASGIRequest) else in_this_thread(events),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def as_text(events: AsyncGenerator[tuple[str, dict[str, Any]]]) -> AsyncGenerator[str]:
    async with contextlib.aclosing(events):
        async for name, data in events:
            yield f"event: {name}\ndata: {json.dumps(data)}\n\n"


def in_this_thread(events: AsyncGenerator[str]) -> Iterator[str]:
    """Do the same under WSGI: what is asynchronous goes on whenever the next event is asked for."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                event = loop.run_until_complete(anext(events))
            except StopAsyncIteration:
                return
            yield event
    finally:
        loop.run_until_complete(events.aclose())
        loop.close()


async def run(shop: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    if not _running.acquire(blocking=False):
        yield (
            "problem",
            {"message": "Visitors are under way for another window. Try again when they are done."},
        )
        return
    try:
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        driving = asyncio.create_task(drive(shop, lambda name, data: events.put_nowait((name, data))))
        driving.add_done_callback(lambda task: events.put_nowait(None))
        try:
            while event := await events.get():
                yield event
            if not driving.cancelled() and (error := driving.exception()):
                yield "problem", {"message": f"The shop does not answer: {error!r}."}
        finally:
            # The window may have been closed in the middle.
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)
    finally:
        _running.release()


async def drive(shop: str, put: Put) -> None:
    async with httpx.AsyncClient(
        base_url=shop, timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_connections=VISITORS + 1)
    ) as client:
        pool = await settled(client)
        put("begin", {"visitors": VISITORS, "soon": SOON, "pool": pool["size"], "patience": pool["patience"]})
        started = asyncio.get_running_loop().time()

        def now() -> float:
            return round(asyncio.get_running_loop().time() - started, 3)

        watching = asyncio.create_task(watch(client, now, put))
        try:
            visits = await asyncio.gather(*(visit(client, number, now, put) for number in range(1, VISITORS + 1)))
            at = now()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        # A server closes a request's connection when the answer has been sent.
        pool = await settled(client)
        put("pool", {"at": now(), **pool})
        put("done", {"at": at, **summary(visits)})


async def settled(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return the pool's state once all of its connections are there, and nobody has one."""
    for _ in range(int(PATIENCE / LOOK_EVERY)):
        pool = await look(client)
        if [each["state"] for each in pool["connections"]] == [FREE] * pool["size"]:
            return pool
        await asyncio.sleep(LOOK_EVERY)
    raise TimeoutError("its connections did not come back")


async def look(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/pool/")
    response.raise_for_status()
    return response.json()


async def watch(client: httpx.AsyncClient, now: Callable[[], float], put: Put) -> None:
    while True:
        at = now()
        put("pool", {"at": at, **await look(client)})
        await asyncio.sleep(LOOK_EVERY)


async def visit(client: httpx.AsyncClient, number: int, now: Callable[[], float], put: Put) -> dict[str, Any]:
    await asyncio.sleep(ARRIVE_IN * (number - 1) / VISITORS)
    arrived = now()
    put("visitor", {"at": arrived, "number": number, "state": "waiting", "seconds": 0})
    try:
        status = (await client.get(f"/orders/{number}/")).status_code
    except httpx.HTTPError:
        status = 0
    # The shop answers 503 when its pool had no connection in time, and for nothing else.
    state = {200: "served", 503: "timeout"}.get(status, "failed")
    left = now()
    result = {"at": left, "number": number, "state": state, "seconds": round(left - arrived, 3)}
    put("visitor", result)
    return result


def summary(visits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is compared in the end; the seconds are those of all, whatever they got."""
    states = [each["state"] for each in visits]
    seconds = [each["seconds"] for each in visits]
    return {
        "served": states.count("served"),
        "soon": sum(each["state"] == "served" and each["seconds"] <= SOON for each in visits),
        "timeouts": states.count("timeout"),
        "failed": states.count("failed"),
        "median": round(statistics.median(seconds), 3),
        "worst": max(seconds),
    }
