"""Running code in a process of its own, for what would change the tests' own process for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent

_CALL = """
import importlib, json, sys
from django.conf import settings

module, name, overrides = json.loads(sys.argv[1])
for key, value in overrides.items():
    if isinstance(value, dict) and key == "DATABASES":
        for alias, entry in value.items():
            settings.DATABASES[alias] = settings.DATABASES.get(alias, {}) | entry
    else:
        setattr(settings, key, value)
result = getattr(importlib.import_module(module), name)()
print(json.dumps(result))
"""


def unmeasured() -> dict[str, str]:
    """Return an environment in which coverage does not look at a process."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with *arguments* in the project's directory, with the tests' settings and their server.

    Coverage does not look at it: that takes half as long again, and what runs there is measured elsewhere.
    """
    return subprocess.run(
        # Python keeps warnings about sockets and connections that nobody closed to itself, unless asked.
        [sys.executable, "-W", "error", *arguments],
        env=unmeasured() | {"DJANGO_SETTINGS_MODULE": "tests.settings"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def in_fresh_process(function: Callable[[], Any], **settings: Any) -> Any:
    """Return what *function* returns in a new process, in which *settings* replace those of tests.settings.

    The function must be at the top level of its module, and call `django.setup()` itself: some of what is tested
    comes before that. DATABASES is merged. The database is the server's own, not the tests'.
    """
    call = json.dumps([function.__module__, function.__name__, settings])
    process = run("-c", _CALL, call)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return json.loads(process.stdout.splitlines()[-1])
