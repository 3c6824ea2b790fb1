"""ENGINE = "shop.rds_iam": Django's backend for PostgreSQL, with a token of RDS IAM in the place of a password."""

from __future__ import annotations

from functools import cache
from typing import Any

import boto3
from django.db.backends.postgresql import base


@cache
def rds() -> Any:
    return boto3.client("rds")


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params["password"] = rds().generate_db_auth_token(
            DBHostname=params["host"], Port=int(params["port"]), DBUsername=params["user"]
        )
        return params
