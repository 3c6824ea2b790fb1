# mypy: ignore-errors
"""What happens on the pages, one function for each: ``python -m shop.scenes NAME``. What it logs is the output."""

import code
import os
import sys
import threading
import time

import django

django.setup()

import psycopg
from django.conf import settings
from django.db import connection
from django.test import Client

import conn_hygiene
from conn_hygiene import query_timeout, stats
from shop.views import one


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def get(path, **headers):
    """Request a page as a server does: the connection is back when it has been answered."""
    response = Client().get(path, headers=headers)
    assert response.status_code == 200, response.status_code
    return response


def filled():
    """Query, and wait until the pool has all of its connections, this thread's included."""
    one()
    size = settings.POOL["max_size"]
    wait_until(lambda: [(each.size, each.available) for each in conn_hygiene.pool_stats()] == [(size, size - 1)])


def fork():
    filled()
    child = os.fork()
    if child == 0:
        one()
        os._exit(0)
    os.waitpid(child, 0)


def thread():
    started = threading.Thread(target=one)
    started.start()
    started.join()
    wait_until(lambda: stats().reclaimed)
    conn_hygiene.close_all_before_fork()


def broken():
    pid = connection_pid()
    with psycopg.connect(os.environ["ADMIN_URL"], autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: not admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone())
    # A connection that was used a moment ago is taken to work, and the server hangs up last of all.
    time.sleep(0.1)
    one()


def connection_pid():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def pinned():
    get("/report/")


def tenant():
    get("/invoices/")
    connection.close()


def timeout():
    try:
        with query_timeout(2), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(10)")
    except conn_hygiene.QueryTimeout as error:
        # As the last line of a traceback.
        print(f"{type(error).__module__}.{type(error).__qualname__}: {error}")


def server_timing():
    print(f"Server-Timing: {get('/orders/7/')['Server-Timing']}")


def session():
    """Type what stands in standard input at a prompt, while a page is in the middle of its work."""
    began, over = threading.Event(), threading.Event()

    def page():
        from shop import carrier

        carrier.track = lambda number: (began.set(), over.wait(30))
        get(os.environ["PAGE"])

    request = threading.Thread(target=page)
    if "PAGE" in os.environ:
        request.start()
        assert began.wait(30)
    else:
        filled()
    console = code.InteractiveConsole({"conn_hygiene": conn_hygiene})
    for line in sys.stdin.read().splitlines():
        print(line)
        console.push(line[4:])
    console.push("")
    over.set()
    if "PAGE" in os.environ:
        request.join()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
