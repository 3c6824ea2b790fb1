from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from django.http import HttpRequest


def toolkit(request: HttpRequest) -> dict[str, bool]:
    """Let every page say whether the toolkit is on."""
    return {"toolkit": settings.TOOLKIT}
