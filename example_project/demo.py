"""Measure the shop without and with the toolkit: ``make demo``.

    python -m example_project.demo [--seconds 12] [--threads 32] [--json FILE]

Everything runs on this machine, on free ports of 127.0.0.1, and is stopped at
the end, however the end comes about.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import http.client
import json
import os
import platform
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from example_project.processes import (
    HOST,
    Trouble,
    end_on_signals,
    free_port,
    get,
    partner,
    postgresql,
    running,
    shop_database,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

POOL_SIZE = 4
CARRIER_DELAY = 0.3  # seconds
RAMP_UP = 2  # seconds until all customers are there; not measured

TENANTS_SECONDS = 6  # at most: what is counted there shows at once
STALLS = ("anvil", "bobbin", "candle", "dynamo")

RUSH = 60  # requests
POOL_TIMEOUT = 5  # seconds, as in the shop's settings


@dataclass(frozen=True)
class Options:
    seconds: int
    threads: int
    json: Path | None

    @property
    def users(self) -> int:
        # Somewhat more than threads, so that no thread is ever out of work.
        return self.threads * 5 // 4


class Narrator:
    """Say what is going on: as live bars in a terminal, elsewhere line by line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def step(self, text: str, *, seconds: float | None = None) -> Iterator[Callable[[], None]]:
        """Show one step of the work; calling what comes back moves its bar on."""
        if self.progress.disable:
            self.console.print(text, soft_wrap=True)
        started = time.monotonic()
        task = self.progress.add_task(text, total=seconds)

        def move() -> None:
            # Never quite full: starting and stopping take a moment, too.
            if seconds:
                self.progress.update(task, completed=min(time.monotonic() - started, 0.99 * seconds))

        yield move
        self.progress.update(task, total=seconds or 1, completed=seconds or 1)


@dataclass(frozen=True)
class Stage:
    """What every act finds ready when it begins."""

    url: str
    env: Mapping[str, str]
    directory: Path
    options: Options
    narrator: Narrator


@dataclass(frozen=True)
class Result:
    """What the customers and the server saw of one run."""

    requests_per_second: float  # of those that succeeded
    median_ms: float
    p99_ms: float
    pool_timeouts: int
    foreign: int  # answers with another tenant's data
    other_errors: int
    most_connections: int


class Sampler:
    """Watch from the outside how many sessions the shop has on the server."""

    QUERY = """
        SELECT count(*)
        FROM pg_stat_activity
        WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    """

    def __init__(self, url: str, database: str) -> None:
        self.url = url
        self.database = database
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not self._stop.wait(0.05):
                row = connection.execute(self.QUERY, [self.database]).fetchone()
                self.most = max(self.most, row[0] if row else 0)


@dataclass(frozen=True)
class Visit:
    """Who comes to the shop, and for what."""

    name: str  # by which locust reports their requests
    user: str  # their class in the locustfile
    seconds: int
    pages: Sequence[str]  # to be asked for once before anything is measured, each by several threads


def measure(stage: Stage, visit: Visit, *, toolkit: bool) -> Result:
    """Let customers crowd a page of the shop, and report what became of them."""
    options = stage.options
    title = f"{'With' if toolkit else 'Without'} conn_hygiene"
    port = free_port()
    gunicorn = [
        sys.executable,
        "-m",
        "gunicorn",
        "--config=example_project/gunicorn_conf.py",
        f"--bind={HOST}:{port}",
        f"--threads={options.threads}",
    ]
    env = {
        **stage.env,
        "CONN_HYGIENE": "on" if toolkit else "off",
        "DATABASE_POOL": str(POOL_SIZE),
    }
    log = stage.directory / f"gunicorn-{visit.name}-{env['CONN_HYGIENE']}.log"
    with running("gunicorn", gunicorn, log=log, env=env) as server:
        with stage.narrator.step(f"{title}: starting gunicorn and warming up"):
            server.wait_until_ready(port, visit.pages[0])
            # Once on each thread: what is done only once is not measured.
            with ThreadPoolExecutor(options.threads) as pool:
                list(pool.map(lambda path: get(port, path), islice(cycle(visit.pages), options.threads)))
        database = psycopg.conninfo.conninfo_to_dict(stage.env["DATABASE_URL"])["dbname"]
        with Sampler(stage.url, str(database)) as sampler:
            report = stage.directory / f"locust-{visit.name}-{env['CONN_HYGIENE']}"
            run_locust(stage, visit, port, report, f"{title}: {options.users} customers")
        server.check()
    return read_result(visit, report, sampler)


def run_locust(stage: Stage, visit: Visit, port: int, report: Path, text: str) -> None:
    options = stage.options
    locust = [
        sys.executable,
        "-m",
        "locust",
        "--locustfile=example_project/locustfile.py",
        "--headless",
        f"--host=http://{HOST}:{port}",
        f"--users={options.users}",
        # They come one by one, as customers do: in step with each other, they
        # would all want the processor at once, and then all wait at once.
        f"--spawn-rate={options.users / RAMP_UP}",
        "--reset-stats",
        f"--run-time={RAMP_UP + visit.seconds}s",
        f"--csv={report}",
        "--only-summary",
        # Failed requests are a result here, not a failure of the demo.
        "--exit-code-on-error=0",
        visit.user,
    ]
    deadline = time.monotonic() + RAMP_UP + visit.seconds + 30
    with (
        running("locust", locust, log=report.with_suffix(".log")) as child,
        stage.narrator.step(text, seconds=RAMP_UP + visit.seconds) as move,
    ):
        while child.process.poll() is None:
            if time.monotonic() > deadline:
                raise Trouble(f"locust did not come to an end. {child.tail()}")
            move()
            time.sleep(0.1)
        if child.process.returncode:
            child.check()


def read_result(visit: Visit, report: Path, sampler: Sampler) -> Result:
    """Read locust's report of one run."""
    with Path(f"{report}_stats.csv").open(newline="") as file:
        stats = next((row for row in csv.DictReader(file) if row["Name"] == visit.name), None)
    if stats is None:
        raise Trouble("The shop answered no request at all. Try more --seconds.")
    with Path(f"{report}_failures.csv").open(newline="") as file:
        errors = [(row["Error"], int(row["Occurrences"])) for row in csv.DictReader(file)]
    timeouts, foreign = (
        sum(times for error, times in errors if text in error) for text in ("pool timeout", "another tenant's data")
    )
    requests, failures = int(stats["Request Count"]), int(stats["Failure Count"])
    return Result(
        requests_per_second=float(stats["Requests/s"]) * (requests - failures) / requests,
        median_ms=float(stats["50%"]),
        p99_ms=float(stats["99%"]),
        pool_timeouts=timeouts,
        foreign=foreign,
        other_errors=failures - timeouts - foreign,
        most_connections=sampler.most,
    )


@dataclass(frozen=True)
class Outcome:
    """What an act has to tell: to programs, and to people."""

    report: dict[str, object]
    table: Table
    verdict: str


def table_of(title: str, caption: str, first: str, *numbers: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        min_width=60,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, vertical="bottom", no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    return table


def slow_partner(stage: Stage) -> Outcome:
    """Act 1: a page that waits for somebody else between its queries."""
    options = stage.options
    orders = [f"/orders/{pk}/" for pk in range(1, options.threads + 1)]
    visit = Visit("order", "Customer", options.seconds, orders)
    without, with_toolkit = (measure(stage, visit, toolkit=toolkit) for toolkit in (False, True))
    table = table_of(
        f"A page that queries, waits {CARRIER_DELAY * 1000:.0f} ms for a partner's API, and queries again",
        f"{options.threads} threads of gunicorn, {options.users} customers, a pool of {POOL_SIZE} connections",
        "Middleware",
        "Requests\nper second",
        "Median",
        "99th\npercentile",
        "Pool\ntimeouts",
        "Other\nerrors",
        "Most server\nconnections",
    )
    for name, result in ("without", without), ("with", with_toolkit):
        table.add_row(
            name,
            f"{result.requests_per_second:.1f}",
            f"{result.median_ms:.0f} ms",
            f"{result.p99_ms:.0f} ms",
            str(result.pool_timeouts),
            str(result.other_errors),
            str(result.most_connections),
        )
    if not without.requests_per_second:
        raise Trouble("Without conn_hygiene no request succeeded, so there is nothing to compare. Try more --seconds.")
    ratio = with_toolkit.requests_per_second / without.requests_per_second
    verdict = (
        f"[bold]With conn_hygiene the page serves {ratio:.1f} times the requests, "
        f"over the same {POOL_SIZE} connections.[/bold]"
    )
    report = {"without": asdict(without), "with": asdict(with_toolkit), "ratio": ratio}
    return Outcome(report, table, verdict)


def tenants(stage: Stage) -> Outcome:
    """Act 2: the same page for tenants, each of whom must see its own data and nobody else's."""
    options = stage.options
    pages = [f"/{way}/{stall}/" for stall in STALLS for way in ("schemas", "stalls")]
    visit = Visit("offers", "StallKeeper", min(options.seconds, TENANTS_SECONDS), pages)
    without, with_toolkit = (measure(stage, visit, toolkit=toolkit) for toolkit in (False, True))
    table = table_of(
        f"A page like it for {len(STALLS)} tenants, by search_path and by a policy, and for none",
        f"{options.threads} threads of gunicorn, {options.users} customers, a pool of {POOL_SIZE} connections",
        "Toolkit",
        "Requests\nper second",
        "Median",
        "Another\ntenant's data",
        "Pool\ntimeouts",
        "Other\nerrors",
        "Most server\nconnections",
    )
    for name, result in ("without", without), ("with", with_toolkit):
        table.add_row(
            name,
            f"{result.requests_per_second:.1f}",
            f"{result.median_ms:.0f} ms",
            str(result.foreign),
            str(result.pool_timeouts),
            str(result.other_errors),
            str(result.most_connections),
        )
    ratio = with_toolkit.requests_per_second / without.requests_per_second if without.requests_per_second else None
    verdict = (
        f"[bold]With conn_hygiene {with_toolkit.foreign} answers have another tenant's data, without it "
        f"{without.foreign}: on pages that set no tenant, what the last one has left in the session.[/bold]"
    )
    return Outcome({"without": asdict(without), "with": asdict(with_toolkit), "ratio": ratio}, table, verdict)


@dataclass(frozen=True)
class Rush:
    """What became of the requests that came in at once."""

    answered: int
    pool_timeouts: int
    other_errors: int
    seconds: float  # until the last of them knew


def rush_preloaded_shop(stage: Stage, *, toolkit: bool) -> Rush:
    """Serve the shop from workers that were forked from a master which has queried, and ask for its pages at once."""
    title = f"{'With' if toolkit else 'Without'} conn_hygiene"
    port = free_port()
    gunicorn = [
        sys.executable,
        "-m",
        "gunicorn",
        "--config=example_project/gunicorn_conf.py",
        "--preload",
        "--workers=4",
        f"--bind={HOST}:{port}",
        "example_project.preloaded",
    ]
    env = {
        **stage.env,
        "CONN_HYGIENE": "on" if toolkit else "off",
        # The master holds it. If it had others, idle, the workers would take those, and be several in one session: some
        # requests fail then, and others read an answer that was not for them.
        "DATABASE_POOL": "1",
    }
    log = stage.directory / f"gunicorn-preload-{env['CONN_HYGIENE']}.log"
    # The clients' threads last, which wait no longer once the server has ended.
    with ThreadPoolExecutor(RUSH) as clients, running("gunicorn", gunicorn, log=log, env=env) as server:
        # Its address is bound before the application is loaded; the workers are there when they have said so.
        with stage.narrator.step(f"{title}: starting gunicorn with --preload"):
            server.wait_for_output("Booting worker", times=4)
        with stage.narrator.step(f"{title}: {RUSH} requests", seconds=POOL_TIMEOUT) as move:
            return rush(port, clients, move)


def rush(port: int, clients: ThreadPoolExecutor, move: Callable[[], None]) -> Rush:
    def visit() -> int | None:
        try:
            return get(port, "/", timeout=4 * POOL_TIMEOUT)
        except (OSError, http.client.HTTPException):
            return None

    started = time.monotonic()
    visits = [clients.submit(visit) for _ in range(RUSH)]
    while not all(each.done() for each in visits):
        move()
        time.sleep(0.05)
    seconds = time.monotonic() - started
    statuses = [each.result() for each in visits]
    answered, timeouts = statuses.count(200), statuses.count(503)
    return Rush(answered, timeouts, RUSH - answered - timeouts, seconds)


def preloaded_master(stage: Stage) -> Outcome:
    """Act 3: workers that inherit the connections of their master."""
    without = rush_preloaded_shop(stage, toolkit=False)
    with_toolkit = rush_preloaded_shop(stage, toolkit=True)
    table = table_of(
        f"{RUSH} requests to gunicorn --preload, whose master has queried",
        "4 workers of 32 threads, each with a pool of 1 connection",
        "Toolkit",
        "Requests\nanswered",
        "Pool\ntimeouts",
        "Other\nerrors",
        "Seconds\nuntil the last",
    )
    for name, result in ("without", without), ("with", with_toolkit):
        table.add_row(
            name,
            str(result.answered),
            str(result.pool_timeouts),
            str(result.other_errors),
            f"{result.seconds:.1f}",
        )
    verdict = (
        f"[bold]With conn_hygiene {with_toolkit.answered} of {RUSH} requests are answered, "
        f"without it {without.answered}.[/bold]"
    )
    return Outcome({"without": asdict(without), "with": asdict(with_toolkit)}, table, verdict)


ACTS: dict[str, Callable[[Stage], Outcome]] = {
    "slow_partner": slow_partner,
    "tenants": tenants,
    "preloaded_master": preloaded_master,
}


def describe_machine(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        server = connection.info.server_version
    return {
        "conn_hygiene": version("django-conn-hygiene"),
        "Django": version("django"),
        "psycopg": version("psycopg"),
        "psycopg_pool": version("psycopg-pool"),
        "gunicorn": version("gunicorn"),
        "PostgreSQL": f"{server // 10000}.{server % 10000}",
        "Python": platform.python_version(),
        "on": f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores",
    }


def run(options: Options, console: Console) -> None:
    narrator = Narrator(console)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conn-hygiene-demo-")))
        with narrator.progress:
            with narrator.step("Starting PostgreSQL"):
                url = postgresql()
            with narrator.step("Filling the shop, starting a slow carrier"):
                env = stack.enter_context(shop_database(url))
                env |= stack.enter_context(partner(CARRIER_DELAY, directory=directory))
            stage = Stage(url, env, directory, options, narrator)
            outcomes = {name: act(stage) for name, act in ACTS.items()}
        machine = describe_machine(url)

    for outcome in outcomes.values():
        console.print("", outcome.table, sep="\n")
        console.print("", outcome.verdict, sep="\n", soft_wrap=True)
    console.print(f"[dim]{', '.join(f'{name} {value}' for name, value in machine.items())}[/dim]")
    if options.json:
        settings = {"seconds": options.seconds, "threads": options.threads, "users": options.users}
        acts = {name: outcome.report for name, outcome in outcomes.items()}
        report = {"acts": acts, "settings": settings, "versions": machine}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print("\nTo try the shop yourself: [bold]make serve[/bold], then open http://127.0.0.1:8000/.")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the example shop without and with conn_hygiene.")
    parser.add_argument("--seconds", type=positive, default=12, help="how long each run is measured")
    parser.add_argument("--threads", type=positive, default=32, help="of the gunicorn worker")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file, too")
    options = Options(**vars(parser.parse_args()))

    end_on_signals()
    console = Console(highlight=False)
    try:
        run(options, console)
    except Trouble as trouble:
        console.print(f"[red]The demo could not be run.[/red] {escape(str(trouble))}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
