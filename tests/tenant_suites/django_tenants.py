"""Settings for the suite of django-tenants: its own, on a native pool."""

from __future__ import annotations

from dts_test_project.settings import *  # type: ignore[import-not-found] # noqa: F403

from tests.tenant_suites.databases import pooled

DATABASES = pooled("django_tenants.postgresql_backend", "tenants")
TEST_RUNNER = "tests.django_suite.runner.Runner"
