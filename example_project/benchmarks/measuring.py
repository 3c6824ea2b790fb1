"""The run: every contender in a process of its own, one after the other in each round."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.benchmarks import network, pgbouncer, processors
from example_project.benchmarks.contenders import Contender
from example_project.benchmarks.protocol import Worker, working
from example_project.processes import (
    HOST,
    ROOT,
    Child,
    Trouble,
    environment,
    free_port,
    postgresql,
    running,
    shop_database,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from example_project.benchmarks.workloads import Workload

# The rounds of each contender in each workload: what the worker has answered.
Results = dict[str, dict[str, list[dict[str, float]]]]

# Seconds, each way.
NETWORK_DELAY = 0.001

if TYPE_CHECKING:
    # Has a contender do the work of a round, and returns its answer.
    Ask = Callable[[Contender, Workload], dict[str, float]]


@dataclass
class Stage:
    """Where the contenders connect to, and those that run."""

    env: Mapping[str, str]
    directory: Path
    stack: contextlib.ExitStack
    workers: dict[str, Worker] = field(default_factory=dict)
    _ends: dict[str, contextlib.ExitStack] = field(default_factory=dict)
    _pgbouncer: Child | None = None
    _through: str = ""
    _tenants: str = ""
    _pages: tuple[str, str] = ("", "")
    _networks: dict[str, network.Network] = field(default_factory=dict)

    def environment(self, contender: Contender, *, asgi: bool = False) -> dict[str, str]:
        env = {
            **self.env,
            "DJANGO_SETTINGS_MODULE": "example_project.benchmarks.settings",
            **contender.environment(asgi=asgi),
        }
        if contender.through_pgbouncer:
            if self._pgbouncer is None:
                running_pgbouncer = pgbouncer.in_front_of(self.env["DATABASE_URL"], directory=self.directory)
                self._pgbouncer, self._through = self.stack.enter_context(running_pgbouncer)
            env["DATABASE_URL"] = self._through
        if contender.tenants:
            env["DATABASE_URL"] = make_conninfo(env["DATABASE_URL"], dbname=self._database_with_tenants())
        if contender.pages:
            env["DATABASE_URL"], _ = self.pages()
        if contender.network:
            behind = self._behind_network(env["DATABASE_URL"])
            env |= {"DATABASE_URL": behind.conninfo, "BENCH_COUNTER": behind.counter}
        return env

    def _database_with_tenants(self) -> str:
        if not self._tenants:
            found = self.stack.enter_context(shop_database(postgresql()))
            self._tenants = str(conninfo_to_dict(found["DATABASE_URL"])["dbname"])
        return self._tenants

    def pages(self) -> tuple[str, str]:
        """Return the database of the pages that the processor limits, and the cookie of who may see them."""
        if not self._pages[0]:
            found = self.stack.enter_context(shop_database(postgresql(), tenants=False))
            self._pages = found["DATABASE_URL"], cookie_of_visitors(found["DATABASE_URL"])
        return self._pages

    def _behind_network(self, conninfo: str) -> network.Network:
        if conninfo not in self._networks:
            delayed = network.in_front_of(conninfo, seconds=NETWORK_DELAY, directory=self.directory)
            self._networks[conninfo] = self.stack.enter_context(delayed)
        return self._networks[conninfo]

    def processes(self) -> list[int]:
        """Return all that a query of any contender passes through."""
        workers = [worker.process.pid for worker in self.workers.values()]
        through = [self._pgbouncer.process.pid] if self._pgbouncer else []
        return [*workers, *through, *processors.sessions(self.env["DATABASE_URL"])]

    def worker(self, contender: Contender) -> Worker:
        """Return the contender's process, which is started once and stays."""
        return self._worker(contender.key, contender.name, "worker", self.environment(contender))

    @property
    def client(self) -> Worker:
        return self._worker("client", "The visitors", "client", {})

    def _worker(self, key: str, name: str, module: str, env: Mapping[str, str]) -> Worker:
        if key not in self.workers:
            log = self.directory / f"{key}.log"
            worker = working(name, f"example_project.benchmarks.{module}", log=log, env=env)
            end = self._ends[key] = self.stack.enter_context(contextlib.ExitStack())
            self.workers[key] = end.enter_context(worker)
        return self.workers[key]

    def dismiss(self, keys: Iterable[str]) -> None:
        """End the processes of contenders that have nothing left to do: the server takes only so many sessions."""
        for key in keys:
            if key in self.workers:
                del self.workers[key]
                self._ends.pop(key).close()


def measure(stage: Stage, workloads: Sequence[Workload], progress: Callable[[Workload, int], None]) -> Results:
    """Run all workloads, and tell of the progress: how many rounds of which are done."""
    results: Results = {}
    for server, group in itertools.groupby(workloads, lambda workload: workload.server):
        together = list(group)
        contenders = {each.key: each for workload in together for each in workload.contenders}
        with contestants(stage, server, list(contenders.values())) as ask:
            for workload in together:
                results[workload.key] = rounds(stage, workload, ask, progress)
                stage.dismiss(done_with(workload, workloads))
    return results


def done_with(workload: Workload, workloads: Sequence[Workload]) -> set[str]:
    """Return who has taken part in *workload*, and takes part in none after it."""
    after = workloads[workloads.index(workload) + 1 :]
    return {each.key for each in workload.contenders} - {each.key for later in after for each in later.contenders}


def rounds(
    stage: Stage, workload: Workload, ask: Ask, progress: Callable[[Workload, int], None]
) -> dict[str, list[dict[str, float]]]:
    """Give each contender its turns, and return what they came to."""
    progress(workload, 0)
    alone = workload.command == "loop"
    # Not measured: the first turn of each would pay for what is done once. Loads and counts warm up by themselves.
    if workload.command not in ("drive", "count"):
        for contender in workload.contenders:
            ask(contender, workload)
    found: dict[str, list[dict[str, float]]] = {contender.key: [] for contender in workload.contenders}
    with processors.sharing_one(stage.processes()) if alone else contextlib.nullcontext():
        for number in range(workload.rounds):
            for contender in order(workload.contenders, number):
                found[contender.key].append(ask(contender, workload))
            progress(workload, number + 1)
    return found


def order(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Return who runs when in a round: nobody is always the first, or always after the same one."""
    start = number // 2 % len(contenders)
    turned = [*contenders[start:], *contenders[:start]]
    return turned[::-1] if number % 2 else turned


@contextlib.contextmanager
def contestants(stage: Stage, server: str | None, contenders: Sequence[Contender]) -> Iterator[Ask]:
    """Have all that take part running, by themselves or in a server; yield what has one of them do its work."""
    if server is None:
        yield lambda contender, workload: stage.worker(contender).ask(workload.command, **workload.arguments)
        return
    client = stage.client
    with contextlib.ExitStack() as stack:
        ports = {contender.key: free_port() for contender in contenders}
        servers = [
            (port, stack.enter_context(serving(stage, contender, server, port)))
            for contender, port in zip(contenders, ports.values(), strict=True)
        ]
        for port, child in servers:
            child.wait_until_ready(port, "/page/1/0/0")

        def ask(contender: Contender, workload: Workload) -> dict[str, float]:
            cookie = stage.pages()[1] if contender.pages else ""
            found: dict[str, float] = client.ask(
                workload.command, port=ports[contender.key], cookie=cookie, **workload.arguments
            )
            return found

        yield ask


def serving(stage: Stage, contender: Contender, server: str, port: int) -> contextlib.AbstractContextManager[Child]:
    """Serve a contender's site: with gunicorn's threads, or as ASGI."""
    arguments: dict[str, list[Any]] = {
        "gunicorn": ["--config=example_project/gunicorn_conf.py", f"--bind={HOST}:{port}", "--log-level=warning"],
        "uvicorn": ["example_project.asgi:application", f"--port={port}", "--no-access-log", "--log-level=warning"],
    }
    log = stage.directory / f"{server}-{contender.key}.log"
    env = stage.environment(contender, asgi=server == "uvicorn")
    return running(server, [sys.executable, "-m", server, *arguments[server]], log=log, env=env)


def cookie_of_visitors(url: str) -> str:
    """Make the shop's database at *url* fit for the pages, and return the cookie of who may see all of them."""
    env = {
        **Contender("", "", pages=True).environment(),
        "DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "example_project.benchmarks.pages.prepare"]
    finished = subprocess.run(
        command, check=False, cwd=ROOT, env=environment(env), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if finished.returncode:
        raise Trouble(f"The pages could not be prepared:\n\n{finished.stderr.strip()}")
    return finished.stdout.strip()
