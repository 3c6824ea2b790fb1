"""Settings for the suite of django-pgschemas: its own, on a native pool."""

from __future__ import annotations

from sandbox.settings import *  # type: ignore[import-not-found] # noqa: F403

from tests.tenant_suites.databases import pooled

DATABASES = pooled("django_pgschemas.postgresql", "pgschemas")
