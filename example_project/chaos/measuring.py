"""The run: under each fault, every contender at the same time, with visitors who have the same wishes."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from example_project.chaos import POOL_SIZE, THREADS
from example_project.chaos.accounting import Account, Books, account
from example_project.chaos.traffic import ACCOUNTS, Traffic
from example_project.processes import HOST, Trouble, ask, free_port, manage, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from example_project.chaos.accounting import Request
    from example_project.chaos.contenders import Contender
    from example_project.chaos.faults import Fault, Scene
    from example_project.chaos.servers import Breakable

BALANCE = 1000
TEMPLATE = "bank"
SETTINGS = {"DJANGO_SETTINGS_MODULE": "example_project.chaos.settings"}


@dataclass(frozen=True)
class Pace:
    """How much of everything."""

    # Requests a second, for each contender.
    rate: float
    # Seconds before the fault, and after it.
    before: float
    after: float


FULL = Pace(rate=15, before=1, after=4)
QUICK = Pace(rate=15, before=1, after=2)
# Seconds that connections are given to come back when nobody wants anything, and workers to begin.
RETURNING = 6
STARTING = 30


@dataclass(frozen=True)
class Row:
    """What became of a contender under a fault."""

    account: Account
    # Connections that the pools should have at the end, and do not give, or not in a state to be used.
    never_back: int
    # Sessions that are in a transaction when nobody does anything.
    in_transaction: int


@dataclass(frozen=True)
class Outcome:
    """What became of everybody under a fault."""

    # Seconds from its end, and so below 0.
    began: float
    rows: dict[str, Row]


@dataclass(frozen=True)
class Stage:
    primary: Breakable
    directory: Path
    env: Mapping[str, str]
    pace: Pace
    contenders: Sequence[Contender]


def prepare(primary: Breakable) -> None:
    """Make the database that every other one is a copy of: a shop with its orders, and a bank with its accounts."""
    primary.execute(f"CREATE DATABASE {TEMPLATE}")
    env = {**SETTINGS, "DATABASE_URL": make_conninfo(primary.conninfo, dbname=TEMPLATE)}
    # Without the tenants: a database of whose sessions nothing has to be feared.
    for app in ("shop", "0001"), ("bank",):
        manage("migrate", "--verbosity=0", *app, env=env)
    manage("seed", "--verbosity=0", env=env)
    with primary.connect(TEMPLATE) as connection:
        connection.execute(
            "INSERT INTO bank_account (id, balance) SELECT number, %s FROM generate_series(1, %s) AS number",
            [BALANCE, ACCOUNTS],
        )


def measure(stage: Stage, faults: Iterable[Fault], tell: Callable[[Fault], None]) -> dict[str, Outcome]:
    """Break everybody's connections at once, in each of these ways, and return what became of each."""
    results = {}
    for _, together in itertools.groupby(faults, lambda fault: fault.scene_key):
        group = list(together)
        with contextlib.ExitStack() as stack:
            scene = stack.enter_context(group[0].setting(stage.primary, stage.directory))
            for contender in stage.contenders:
                copy_database(stage.primary, database_of(contender))
            sites = Sites(stage, scene, group[0].workers)
            stack.callback(sites.close)
            for fault in group:
                tell(fault)
                results[fault.key] = outcome_of(stage, scene, sites, fault)
    return results


def outcome_of(stage: Stage, scene: Scene, sites: Sites, fault: Fault) -> Outcome:
    """Break the connections of all sites, which are whole before it, in one way."""
    sites.open()
    scene.ports = sites.ports
    scene.visitors = Traffic(scene.ports, rate=stage.pace.rate)
    requests, began, ended = struck(stage, scene, fault)
    rows = {}
    for contender in stage.contenders:
        key, name = contender.key, database_of(contender)
        found = account(requests[key], books(scene.server, name), total=BALANCE * ACCOUNTS, fault_ended=ended)
        rows[key] = Row(found, missing(scene.ports[key], fault.workers), in_transaction(scene.server, name))
        # Of what nobody has waited for the end, something may come after it.
        if rows[key].never_back or rows[key].in_transaction or any(each.endless for each in requests[key]):
            sites.close(key)
        clear_books(scene.server, name)
    return Outcome(round(began - ended, 2), rows)


class Sites:
    """Those that serve the contenders; one that has come to harm is begun anew ahead of the next fault."""

    def __init__(self, stage: Stage, scene: Scene, workers: int) -> None:
        self.stage = stage
        self.scene = scene
        self.workers = workers
        self.ports: dict[str, int] = {}
        self._stacks: dict[str, contextlib.ExitStack] = {}

    def open(self) -> None:
        """Have all of them, with every pool full."""
        for contender in self.stage.contenders:
            if contender.key not in self._stacks:
                stack = self._stacks[contender.key] = contextlib.ExitStack()
                self.ports[contender.key] = stack.enter_context(self._running(contender))
        for contender in self.stage.contenders:
            if missing(self.ports[contender.key], self.workers):
                raise Trouble(f"The site of {contender.name} has not come up.")

    def close(self, *keys: str) -> None:
        for key in keys or [*self._stacks]:
            self._stacks.pop(key).close()

    @contextlib.contextmanager
    def _running(self, contender: Contender) -> Iterator[int]:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--config=example_project/gunicorn_conf.py",
            f"--bind={HOST}:{port}",
            f"--threads={THREADS}",
            f"--workers={self.workers}",
            "--log-level=warning",
        ]
        env = {
            **self.stage.env,
            **SETTINGS,
            **contender.environment,
            "DATABASE_URL": make_conninfo(self.scene.conninfo, dbname=database_of(contender)),
        }
        with running("gunicorn", command, log=self.stage.directory / f"{contender.key}-{port}.log", env=env):
            yield port


def struck(stage: Stage, scene: Scene, fault: Fault) -> tuple[dict[str, list[Request]], float, float]:
    """Let visitors come before, during and after the fault; return their requests, and when it began and was over."""
    assert scene.visitors
    scene.visitors.start()
    try:
        time.sleep(stage.pace.before)
        began = time.monotonic()
        fault.strike(scene)
        ended = time.monotonic()
        time.sleep(stage.pace.after)
    finally:
        requests = scene.visitors.finish()
    return requests, began, ended


def database_of(contender: Contender) -> str:
    return f"bank_{contender.key.replace('-', '_')}"


def copy_database(server: Breakable, name: str) -> None:
    server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")


def clear_books(server: Breakable, name: str) -> None:
    with server.connect(name) as connection:
        connection.execute("TRUNCATE bank_entry")
        connection.execute("UPDATE bank_account SET balance = %s", [BALANCE])


def missing(port: int, workers: int) -> int:
    """Return how many connections the pools of all workers do not give."""
    given: dict[int, int] = {}
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        try:
            answer = ask(port, "/bank/pool/", timeout=5)
            given[answer["process"]] = max(answer["given"], given.get(answer["process"], 0))
            # A worker that has to begin anew first is not what is looked for.
            if len(given) == workers:
                deadline = min(deadline, time.monotonic() + RETURNING)
        except (OSError, http.client.HTTPException):
            pass  # None of them is there, or none is free.
        if sum(given.values()) >= workers * POOL_SIZE:
            break
        time.sleep(0.1)
    return workers * POOL_SIZE - sum(given.values())


def books(server: Breakable, name: str) -> Books:
    with psycopg.connect(server.conninfo, dbname=name, autocommit=True) as connection:
        entries = connection.execute("SELECT token::text, count(*) FROM bank_entry GROUP BY token").fetchall()
        total = connection.execute("SELECT sum(balance) FROM bank_account").fetchone()
        wrong = connection.execute(WRONG_ACCOUNTS, [BALANCE]).fetchone()
    return Books(dict(entries), int(total[0]) if total else 0, int(wrong[0]) if wrong else 0)


WRONG_ACCOUNTS = """
    SELECT count(*) FROM bank_account AS account
    WHERE balance <> %s
        + COALESCE((SELECT sum(amount) FROM bank_entry WHERE target_id = account.id), 0)
        - COALESCE((SELECT sum(amount) FROM bank_entry WHERE source_id = account.id), 0)
"""


def in_transaction(server: Breakable, name: str) -> int:
    """Return how many sessions of the database stay in a transaction."""
    with server.connect() as connection:
        query = sql.SQL(
            "SELECT count(*)::int, '' FROM pg_stat_activity WHERE datname = {} AND state LIKE 'idle in transaction%'"
        ).format(sql.Literal(name))
        deadline = time.monotonic() + 2
        while True:
            row = connection.execute(query).fetchone()
            if not row or not row[0]:
                return 0
            if time.monotonic() > deadline:
                return row[0]
            time.sleep(0.1)
