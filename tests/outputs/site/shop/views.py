# mypy: ignore-errors
from django.db import connection
from django.http import HttpResponse

from shop import carrier, reports


def one():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


def index(request):
    return HttpResponse(str(one()))


def order(request, pk):
    """Query, wait for somebody else, query again."""
    return HttpResponse(f"{one()} {carrier.track(pk)} {one()}")


def report(request):
    """Work in a temporary table, and ask somebody else about what is in it."""
    reports.monthly()
    return HttpResponse(carrier.track("the report"))


def invoices(request):
    return HttpResponse(str(one()))
