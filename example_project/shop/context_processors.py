from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from django.conf import settings

if TYPE_CHECKING:
    from django.http import HttpRequest


def toolkit(request: HttpRequest) -> dict[str, Any]:
    """Let every page say whether the toolkit is on, and how long it took so far."""
    started: float | None = getattr(request, "started", None)
    return {
        "toolkit": settings.TOOLKIT,
        "milliseconds": lambda: None if started is None else 1000 * (time.perf_counter() - started),
    }
