# mypy: ignore-errors
from django.conf import settings
from django.db import connection


def tenant(get_response):
    """Have the database know whose request it is."""

    def middleware(request):
        if settings.TENANTS:
            with connection.cursor() as cursor:
                cursor.execute("SELECT become_tenant(%s)", [7])
        return get_response(request)

    return middleware
