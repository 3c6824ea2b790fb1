"""A signed note of who was let onto the page a moment ago, for when users cannot be looked up.

The page is looked at when no connection is to be had, and whoever asks who somebody is needs one: Django's sessions and
users are in the database. So each answer to a user who was looked up carries a ticket, and for a few minutes the page
answers to that where the look-up would wait for a pool that has nothing to give, or has failed. It is good for looking
only, and only together with the session's cookie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import signing
from django.utils.crypto import salted_hmac

if TYPE_CHECKING:
    from django.http import HttpRequest

#: Seconds for which a ticket is good: no longer than that may somebody look on whose rights were taken away.
MAX_AGE = 300

#: The request's header that has it.
HEADER = "X-Conn-Hygiene-Ticket"

_SALT = "conn_hygiene.contrib.admin.tickets"


def issue(request: HttpRequest, site: str, **facts: Any) -> str:
    """Return a ticket for the user of *request*, who was looked up just now; empty if there is no session's cookie.

    :param site: the name of the admin site, for which alone it is good.
    :param facts: what :func:`accept` is to return.
    """
    session = _session(request)
    if session is None:
        return ""
    return signing.dumps({"site": site, "session": session, "facts": facts}, salt=_SALT)


def accept(request: HttpRequest, site: str) -> dict[str, Any] | None:
    """Return the facts of the ticket that *request* has; None if it has none that is good."""
    session = _session(request)
    try:
        found = signing.loads(request.headers.get(HEADER, ""), salt=_SALT, max_age=MAX_AGE)
    except signing.BadSignature:
        return None
    if session is None or found["site"] != site or found["session"] != session:
        return None
    facts: dict[str, Any] = found["facts"]
    return facts


def _session(request: HttpRequest) -> str | None:
    """Return what stands for the session's cookie, which is nobody else's to read and so is not put into a page."""
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    return salted_hmac(_SALT, cookie, algorithm="sha256").hexdigest() if cookie else None
