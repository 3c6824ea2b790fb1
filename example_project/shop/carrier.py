"""The carrier's API: other people's, slow, and called while a page is made.

Nothing here knows of the database. That is the point: the code that waits is
rarely the code that holds the connection.
"""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import urlsplit

import httpx
from django.conf import settings

if TYPE_CHECKING:
    import ssl

TIMEOUT = 5  # seconds


class Parcel(TypedDict):
    number: str
    place: str
    progress: int


class CarrierError(Exception):
    """The carrier would not do what it was asked to."""


def track(number: str) -> Parcel:
    """Ask where a parcel is."""
    return call("GET", f"/parcels/{number}")


async def atrack(number: str) -> Parcel:
    """``track()`` for async views."""
    # A client belongs to one event loop, and a site cannot know how many of
    # them its server runs: so each call has a client of its own.
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=_tls()) as client:
        response = await client.get(f"{settings.CARRIER_URL}/parcels/{number}")
    response.raise_for_status()
    return response.json()


@cache
def _tls() -> ssl.SSLContext:
    # Reading the certificate authorities takes longer than all the rest of
    # such a client's life.
    return httpx.create_ssl_context()


def book(reference: str) -> str:
    """Hand a parcel over to the carrier; its tracking number comes back."""
    return call("POST", "/parcels", {"reference": reference})["number"]


def call(method: str, path: str, content: object = None) -> Any:
    # The plainest client there is: the demo measures what this page does to a
    # pool, on a machine that may have little to spare.
    connection = http.client.HTTPConnection(urlsplit(settings.CARRIER_URL).netloc, timeout=TIMEOUT)
    with closing(connection):
        connection.request(method, path, json.dumps(content) if content else None)
        response = connection.getresponse()
        answer = json.load(response)
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise CarrierError(f"{method} {path}: {answer['error']}")
    return answer
