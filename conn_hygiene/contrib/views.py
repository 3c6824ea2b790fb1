"""What the toolkit's own views have in common."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpResponse


def without_transaction(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Return *view* so that ``ATOMIC_REQUESTS`` takes no connection for it, of no alias."""

    @functools.wraps(view)
    def plain(*args: Any, **kwargs: Any) -> HttpResponse:
        return view(*args, **kwargs)

    for alias in connections:
        transaction.non_atomic_requests(using=alias)(plain)
    return plain
