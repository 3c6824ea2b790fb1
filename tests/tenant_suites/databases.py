"""The databases of the suites."""

from __future__ import annotations

import os
from typing import Any

from example_project.embedded import database, database_url
from tests.django_suite import RUN_VARIABLE


def pooled(engine: str, name: str) -> dict[str, Any]:
    """Return ``DATABASES`` with *engine* on a native pool, for one run beside others."""
    # A short timeout: a connection that is never given back should fail its test, and not add half a minute each time.
    pool = {"min_size": 0, "max_size": 4, "timeout": 10}
    test = {"NAME": f"test_{name}{os.environ.get(RUN_VARIABLE, '')}"}
    return {"default": database(database_url(), pool=pool, ENGINE=engine, TEST=test)}
