"""Settings of a project that has the toolkit's setting and not its application."""

from __future__ import annotations

SECRET_KEY = "tests"
CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
