# mypy: ignore-errors
from django.db import connection


def monthly():
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE totals AS SELECT 1 AS n")
        cursor.execute("SELECT n FROM totals")
        return cursor.fetchall()
