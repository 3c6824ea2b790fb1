"""What breaks, between whom, and how."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.benchmarks import pgbouncer
from example_project.chaos import proxy, servers, traffic
from example_project.processes import Trouble, ask, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from example_project.chaos.servers import Breakable, Replica
    from example_project.chaos.traffic import Traffic

# Seconds.
OUTAGE = 1.5
SILENCE = 2.5
CUT_EVERY = 0.7
CUTS = 6


@dataclass
class Scene:
    """What there is to break."""

    primary: Breakable
    # What leads there, but for the name of the database.
    conninfo: str
    replica: Replica | None = None
    network: proxy.Network | None = None
    pgbouncer: PgBouncer | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    visitors: Traffic | None = None

    @property
    def server(self) -> Breakable:
        """The one that has the books in the end."""
        return self.replica or self.primary


if TYPE_CHECKING:
    # Makes a scene from a server and a directory.
    Setting = Callable[[Breakable, Path], contextlib.AbstractContextManager[Scene]]


@dataclass(frozen=True)
class Fault:
    key: str
    title: str
    strike: Callable[[Scene], None]
    setting: Setting
    # While it lasts nobody can be served, and everybody fails.
    outage: bool = True
    # Each broken connection costs plain Django a request.
    breaks_connections: bool = True
    workers: int = 1
    missing: Callable[[], str | None] = lambda: None
    quick: bool = False
    # Nothing of its setting can be used once more.
    wrecks: bool = False

    @property
    def scene_key(self) -> tuple[object, ...]:
        """What is the same for faults that may follow each other on one scene."""
        return (self.setting, self.workers, self.key if self.wrecks else "")


# ##### Settings #####


@contextlib.contextmanager
def alone(primary: Breakable, directory: Path) -> Iterator[Scene]:
    yield Scene(primary, primary.conninfo)


@contextlib.contextmanager
def networked(primary: Breakable, directory: Path) -> Iterator[Scene]:
    with proxy.in_front_of(primary.conninfo, directory=directory) as (network, through):
        yield Scene(primary, through, network=network)


@contextlib.contextmanager
def replicated(primary: Breakable, directory: Path) -> Iterator[Scene]:
    with servers.replicated(primary) as replica:
        both = [conninfo_to_dict(each.conninfo) for each in (primary, replica)]
        addresses = {name: ",".join(str(each[name]) for each in both) for name in ("host", "port")}
        through = make_conninfo(primary.conninfo, **addresses, target_session_attrs="read-write")
        yield Scene(primary, through, replica=replica)


@contextlib.contextmanager
def pooled(primary: Breakable, directory: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(servers.private_directory())
        bouncer = PgBouncer(primary.conninfo, own)
        stack.callback(bouncer.kill)
        bouncer.start()
        yield Scene(primary, bouncer.through, pgbouncer=bouncer)


class PgBouncer:
    """PgBouncer in transaction mode, which can be killed, and comes back under its address."""

    def __init__(self, conninfo: str, directory: Path) -> None:
        self.command, self.through = pgbouncer.configured(conninfo, directory=directory)
        self.directory = directory
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        child = self._stack.enter_context(running("PgBouncer", self.command, log=self.directory / "pgbouncer.log"))
        child.wait_for_output("process up")
        self.child = child

    def kill(self) -> None:
        self.child.process.kill()
        self._stack.close()


def no_pgbouncer() -> str | None:
    return None if pgbouncer.find() else "PgBouncer is not installed. Debian and Ubuntu: apt install pgbouncer."


# ##### Faults #####


def cut(scene: Scene) -> None:
    for number in range(CUTS):
        if number:
            time.sleep(CUT_EVERY)
        scene.primary.cut()


def kill_session(scene: Scene) -> None:
    # The server then ends all others, and recovers.
    os.kill(scene.primary.sessions()[0], signal.SIGKILL)
    time.sleep(0.1)
    scene.primary.wait_for_writes()


def kill(scene: Scene) -> None:
    scene.primary.kill()
    time.sleep(OUTAGE)
    scene.primary.start_again()


def restart(scene: Scene) -> None:
    scene.primary.stop_fast()
    scene.primary.start_again()


def hang(scene: Scene) -> None:
    scene.primary.freeze()
    time.sleep(SILENCE)
    scene.primary.thaw()


def lose_network(scene: Scene) -> None:
    assert scene.network
    scene.network.lose()
    time.sleep(SILENCE)
    scene.network.heal()


def fail_over(scene: Scene) -> None:
    assert scene.replica
    scene.primary.kill()
    time.sleep(OUTAGE)
    scene.replica.promote()


def demote(scene: Scene) -> None:
    assert scene.replica
    # Its sessions stay. What was committed before has reached the replica.
    scene.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    time.sleep(OUTAGE)
    scene.replica.promote()


def restart_pgbouncer(scene: Scene) -> None:
    assert scene.pgbouncer
    scene.pgbouncer.kill()
    time.sleep(OUTAGE)
    scene.pgbouncer.start()


def kill_workers(scene: Scene) -> None:
    assert scene.visitors
    workers = {port: found_workers(port, 2) for port in scene.ports.values()}
    for number in range(2):
        if number:
            time.sleep(2)
        # Each is in the middle of some that take their time.
        dice = iter(range(1, 1000))
        for _ in range(6):
            source = 2 * next(dice)
            scene.visitors.send(partial(traffic.transfer, source, source + 1, pause=1))
        time.sleep(0.4)
        for found in workers.values():
            os.kill(found[number], signal.SIGKILL)


def found_workers(port: int, count: int) -> list[int]:
    """Return the processes that answer at *port*, when there are so many."""
    found: set[int] = set()
    deadline = time.monotonic() + 10
    while len(found) < count:
        found.add(int(ask(port, "/bank/process/")["process"]))
        if time.monotonic() > deadline:
            raise Trouble(f"Of {count} workers only {len(found)} have answered.")
    return sorted(found)


def starve(scene: Scene) -> None:
    assert scene.visitors
    for number in range(2):
        if number:
            time.sleep(2)
        for _ in range(10):
            scene.visitors.send(partial(traffic.Wish, "/bank/slow/2/"))
    time.sleep(2)


FAULTS = (
    Fault("cut", f"All sessions ended, every {CUT_EVERY} s", cut, alone, outage=False, quick=True),
    Fault("session-killed", "A session killed, server recovers", kill_session, alone),
    Fault("killed", f"The server killed, for {OUTAGE} s", kill, alone, quick=True),
    Fault("restarted", "The server restarted", restart, alone),
    Fault("hung", f"The server hung, for {SILENCE} s", hang, alone, breaks_connections=False),
    Fault("starved", "The pool starved by slow views", starve, alone, outage=False, breaks_connections=False),
    Fault("network", f"The network lost, for {SILENCE} s", lose_network, networked),
    Fault("failover", "Primary killed, replica promoted", fail_over, replicated, wrecks=True),
    Fault("demoted", "Primary read-only, replica promoted", demote, replicated, wrecks=True),
    Fault("pgbouncer", f"PgBouncer killed, for {OUTAGE} s", restart_pgbouncer, pooled, missing=no_pgbouncer),
    Fault(
        "workers",
        "Workers killed in transactions",
        kill_workers,
        alone,
        outage=False,
        breaks_connections=False,
        workers=2,
        quick=True,
    ),
)
