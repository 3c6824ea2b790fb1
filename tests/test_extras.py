"""What is not asked for is not imported: the listeners of contrib, and what they are for."""

from __future__ import annotations

import sys
from typing import Any

import django

from tests.processes import in_fresh_process

EXTRAS = ("prometheus_client", "opentelemetry", "sentry_sdk", "rich", "tenacity")


def imported() -> Any:
    django.setup()
    import conn_hygiene

    # All of the public names, with what they are made of.
    assert [getattr(conn_hygiene, name) for name in conn_hygiene.__all__]
    contrib = [name for name in sys.modules if name.startswith("conn_hygiene.contrib.")]
    return [name for name in EXTRAS if name in sys.modules], contrib


def test_the_toolkit_imports_nothing_of_its_extras() -> None:
    assert in_fresh_process(imported) == [[], ["conn_hygiene.contrib.gunicorn", "conn_hygiene.contrib.uwsgi"]]
