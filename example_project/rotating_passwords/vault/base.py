"""ENGINE = "shop.vault": Django's backend for PostgreSQL, as a static role of Vault, which changes its password."""

from __future__ import annotations

from functools import cache
from typing import Any

import hvac
from django.db.backends.postgresql import base


@cache
def vault() -> Any:
    return hvac.Client()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        role = vault().secrets.database.get_static_credentials(name=params["user"])["data"]
        return {**params, "user": role["username"], "password": role["password"]}
