"""What the log of the shop says of its pages that do it wrong, and what the command says of the shop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psycopg

from example_project.processes import HOST, ROOT, environment, free_port, get
from tests.outputs.making import makes, wrapped
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.outputs.making import Shop, Stage
    from tests.outputs.pages import Block


def asked(shop: Shop, path: str, seconds: float) -> threading.Thread:
    """Ask for a page that takes *seconds*, in a thread of its own."""
    thread = threading.Thread(target=get, args=[shop.port, path], kwargs={"timeout": seconds + 30})
    thread.start()
    return thread


@makes("held-too-long", seconds=40, shop="shop")
def held_too_long(stage: Stage, block: Block) -> str:
    get(stage.shop.port, "/trouble/held-too-long/?seconds=40")
    return stage.shop.record("WARNING conn_hygiene.held: ")


# The same transaction is in the log, and in what the command prints. It lasts until a slow machine has printed it.
_IDLE_FOR = 45
_scene = threading.Lock()
_of_trouble: dict[str, str] = {}


@makes("idle-in-transaction", seconds=30, shop="quiet_shop")
def idle_in_transaction(stage: Stage, block: Block) -> str:
    return of_trouble(stage)["record"]


@makes("status", seconds=30, shop="quiet_shop")
def status(stage: Stage, block: Block) -> str:
    assert block.command == "$ python manage.py connections status"
    return of_trouble(stage)["status"]


@makes("status-states", seconds=30, shop="quiet_shop")
def states(stage: Stage, block: Block) -> str:
    assert block.command == "$ python manage.py connections status --format json | jq '.databases[].states'"
    # What jq makes of it.
    [database] = json.loads(of_trouble(stage)["json"])["databases"]
    return json.dumps(database["states"], indent=2)


def of_trouble(stage: Stage) -> dict[str, str]:
    """Return what is told while one page waits in a transaction, and another one for its lock."""
    with _scene:
        if not _of_trouble:
            shop = stage.quiet_shop
            pages = [asked(shop, f"/trouble/idle-in-transaction/?seconds={_IDLE_FOR}", _IDLE_FOR)]
            _of_trouble["record"] = shop.record("WARNING conn_hygiene.transactions: The transaction of GET ")
            pages.append(asked(shop, "/trouble/asked-before/?seconds=0", _IDLE_FOR))
            with psycopg.connect(shop.env["DATABASE_URL"], autocommit=True, application_name="watcher") as watcher:
                waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'shop'"
                wait_until(lambda: watcher.execute(waiting).fetchone(), "another one waits for it", 30)
            _of_trouble["status"] = shop.manage("connections", "status")
            _of_trouble["json"] = shop.manage("connections", "status", "--format=json")
            for page in pages:
                page.join()
    return _of_trouble


@makes("unclosed-cursor", seconds=5, shop="shop")
def unclosed_cursor(stage: Stage, block: Block) -> str:
    get(stage.shop.port, "/trouble/unclosed-cursor/")
    return stage.shop.record("WARNING conn_hygiene.cursors: ")


_MANY = """
import time
import django
django.setup()
from django.test import Client
from conn_hygiene import events
from conn_hygiene.reports import log
from conn_hygiene.testing import flush
told = []
events.listen(events.UnclosedCursor, told.append)
for _ in range(25):
    Client().get("/trouble/unclosed-cursor/", headers={"host": "localhost"})
while len(told) < 25:
    time.sleep(0.01)
# The minute is not waited for.
log.unclosed_cursors._interval = 0
Client().get("/trouble/unclosed-cursor/", headers={"host": "localhost"})
while len(told) < 26:
    time.sleep(0.01)
# Who is told last is the log.
flush()
"""


@makes("unclosed-cursors", seconds=10, shop="shop")
def unclosed_cursors(stage: Stage, block: Block) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", _MANY],
        cwd=ROOT,
        env=environment(stage.shop.env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = [line for line in finished.stderr.splitlines() if "WARNING conn_hygiene" in line][-1]
    return wrapped(last[last.index("WARNING ") :])


@makes("discarded-by-a-worker", seconds=5, shop="shop")
def discarded_by_a_worker(stage: Stage, block: Block) -> str:
    log = stage.directory / "gunicorn.log"
    options = ["--preload", f"--bind={HOST}:{free_port()}", "example_project.preloaded"]
    record = "INFO conn_hygiene.forks: "
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options],
            cwd=ROOT,
            env=environment(stage.shop.env),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: record in log.read_text(), "the worker has discarded", 60)
    finally:
        process.terminate()
        process.wait(30)
    line = next(line for line in log.read_text().splitlines() if record in line)
    return wrapped(line[line.index(record) :])
