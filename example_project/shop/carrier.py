"""The carrier's API: other people's, slow, and called while a page is made.

Nothing here knows of the database. That is the point: the code that waits is
rarely the code that holds the connection.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypedDict

import httpx
from django.conf import settings

if TYPE_CHECKING:
    import ssl


class Parcel(TypedDict):
    number: str
    place: str
    progress: int


@cache
def _client() -> httpx.Client:
    # One client for the process (it is safe for threads), made on first use:
    # a server that forks its workers after loading the site must not share
    # this client's sockets among them.
    return httpx.Client(base_url=settings.CARRIER_URL, timeout=5, trust_env=False)


@cache
def _tls() -> ssl.SSLContext:
    # Reading the certificate authorities takes longer than all the rest of a
    # client's life, so that the short-lived clients below share them.
    return httpx.create_ssl_context()


def track(number: str) -> Parcel:
    """Ask where a parcel is."""
    response = _client().get(f"/parcels/{number}")
    response.raise_for_status()
    return response.json()


async def atrack(number: str) -> Parcel:
    """``track()`` for async views."""
    # A client belongs to one event loop. A site cannot know how many loops its
    # server runs, so that each call has a client of its own.
    async with httpx.AsyncClient(base_url=settings.CARRIER_URL, timeout=5, trust_env=False, verify=_tls()) as client:
        response = await client.get(f"/parcels/{number}")
    response.raise_for_status()
    return response.json()


def book(reference: str) -> str:
    """Hand a parcel over to the carrier; its tracking number comes back."""
    response = _client().post("/parcels", json={"reference": reference})
    response.raise_for_status()
    return response.json()["number"]
