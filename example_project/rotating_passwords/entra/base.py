"""ENGINE = "shop.entra": Django's backend for PostgreSQL, with a token of Microsoft Entra ID (once Azure AD)."""

from __future__ import annotations

from functools import cache
from typing import Any

from azure.identity import DefaultAzureCredential
from django.db.backends.postgresql import base


@cache
def credential() -> Any:
    return DefaultAzureCredential()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params["password"] = credential().get_token("https://ossrdbms-aad.database.windows.net/.default").token
        return params
