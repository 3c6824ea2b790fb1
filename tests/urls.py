"""URLs of the tests; a test that needs views of its own uses `settings.ROOT_URLCONF`."""

from __future__ import annotations

from typing import Any

urlpatterns: list[Any] = []
