"""What is not asked for is not imported: the listeners of contrib, and what they are for."""

from __future__ import annotations

import sys
from typing import Any

import django
import pytest

from tests.processes import in_fresh_process, run

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


IMPORT = """
import sys
import django
sys.modules[sys.argv[2]] = None
django.setup()
try:
    __import__(sys.argv[1])
except ImportError as error:
    print(type(error).__name__, type(error.__cause__).__name__, error.name, error)
"""


@pytest.mark.parametrize(
    ("module", "missing", "needs", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus-client", "prometheus"),
        ("prometheus.urls", "prometheus_client", "prometheus-client", "prometheus"),
        ("opentelemetry", "opentelemetry.metrics", "opentelemetry-api", "opentelemetry"),
        ("sentry", "sentry_sdk", "sentry-sdk", "sentry"),
        ("debug_toolbar.panels", "debug_toolbar.panels", "django-debug-toolbar", "debug-toolbar"),
    ],
)
def test_what_is_missing_is_said_with_its_extra(module: str, missing: str, needs: str, extra: str) -> None:
    process = run("-c", IMPORT, f"conn_hygiene.contrib.{module}", missing)
    name = f"conn_hygiene.contrib.{extra.replace('-', '_')}"
    assert process.stdout == (
        f"ModuleNotFoundError ModuleNotFoundError {missing} {name} needs {needs}: "
        f'pip install "django-conn-hygiene[{extra}]" (import of {missing} halted; None in sys.modules)\n'
    ), process.stderr
