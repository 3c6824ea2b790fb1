"""A load of requests: so many threads, each asking again as soon as it has its answer, or a while later."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from example_project.benchmarks import network
from example_project.benchmarks.rounds import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    # Asks for one path, and returns the status.
    Ask = Callable[[str], int]

# Waits for all threads, and for all processes.
PATIENCE = 120

REAPER = "conn-hygiene-reaper"

# The status of an answer that was made from another tenant's session.
WRONG = 409

# A site's threads outlive their requests, and so do these from one round to the next.
threads_of_site = ThreadPoolExecutor(1024, "request")

# Seconds that pages have waited for a connection, of those that note it.
waits: list[float] = []


@dataclass
class Visitor:
    """What one thread has seen."""

    started: float = 0
    ended: float = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Return the answered requests per second of the thread's own time: no request is cut by an end of the run."""
        return self.statuses[200] / (self.ended - self.started)


@dataclass(frozen=True)
class Crowd:
    """So many threads that ask for the same page; times in seconds."""

    path: str
    threads: int
    # Within this time they begin, one by one, as visitors do: in step with each other, all would want the processor at
    # once, and then none.
    spread: float = 0
    # After each answer.
    pause: float = 0


def drive(
    visitor: Callable[[], AbstractContextManager[Ask]],
    *,
    path: str,
    threads: int,
    seconds: float,
    spread: float = 0,
    beside: Mapping[str, Any] | None = None,
    first: str = "/page/1/0/0",
    ready: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Keep up a load, and return what it came to.

    What is done once only, such as connecting, is not measured: each thread asks for the page `first` before. `ready`
    is called when all have, and may wait for others.

    `beside` is a second :class:`Crowd` that asks meanwhile, for another page. Of it are the numbers whose names begin
    with "beside"; its requests count among all.
    """
    crowd = Crowd(path, threads, spread)
    other = Crowd(**beside) if beside else Crowd(path, 0)
    clock = Clock()

    def begin() -> None:
        if ready is not None:
            ready()
        clock.start()

    gate = threading.Barrier(crowd.threads + other.threads, action=begin)

    def visit(crowd: Crowd, number: int) -> Visitor:
        seen = Visitor()
        with visitor() as ask:
            ask(first)
            gate.wait(PATIENCE)
            time.sleep(crowd.spread * number / crowd.threads)
            seen.started = seen.ended = time.perf_counter()
            while seen.ended - seen.started < seconds:
                before = seen.ended
                seen.statuses[ask(crowd.path)] += 1
                seen.ended = time.perf_counter()
                seen.latencies.append(seen.ended - before)
                if crowd.pause:
                    time.sleep(crowd.pause)
                    seen.ended = time.perf_counter()
        return seen

    # All at once, since they wait for each other.
    running = [
        [threads_of_site.submit(visit, each, number) for number in range(each.threads)] for each in (crowd, other)
    ]
    visits, others = ([future.result() for future in futures] for futures in running)
    found = summary(visits)
    if others:
        found |= aside(found, summary(others))
    return {**found, **clock.stop(round(found["requests"]))}


def aside(found: dict[str, float], beside: dict[str, float]) -> dict[str, float]:
    """Return what a second crowd adds to what the first has found."""
    together = {name: found[name] + beside[name] for name in ("requests", "timeouts", "errors")}
    return {**together, **{f"beside_{name}": beside[name] for name in ("p50", "p99")}}


def summary(visits: list[Visitor]) -> dict[str, float]:
    statuses: Counter[int] = sum((each.statuses for each in visits), Counter())
    latencies = sorted(latency for each in visits for latency in each.latencies)
    rates = sorted(each.rate for each in visits)
    middle = percentile(rates, 50)
    return {
        "rate": sum(rates),
        "requests": statuses.total(),
        "timeouts": statuses[503],
        "errors": statuses.total() - statuses[200] - statuses[503] - statuses[WRONG],
        "wrong": statuses[WRONG] / statuses.total() if statuses else 0,
        "p50": percentile(latencies, 50) * 1000,
        "p99": percentile(latencies, 99) * 1000,
        "slowest_share": rates[0] / middle if middle else 0,
    }


class Clock:
    """What this process alone knows of a load: its processor time, the reaper's part of it, and what pages note."""

    def start(self) -> None:
        self._process, self._reaper, self._round_trips = time.process_time(), reaper_time(), round_trips()
        waits.clear()

    def stop(self, requests: int) -> dict[str, float]:
        used = time.process_time() - self._process
        found = {"cpu": used / requests * 1000, "reaper": (reaper_time() - self._reaper) / used}
        if "BENCH_COUNTER" in os.environ:
            found["round_trips"] = (round_trips() - self._round_trips) / requests
        if waits:
            found["waited"] = percentile(sorted(waits), 50) * 1000
        return found


def round_trips() -> int:
    """Return how many the network has seen, in which one contender works at a time; 0 without one."""
    counter = os.environ.get("BENCH_COUNTER")
    return network.round_trips(counter) if counter else 0


def reaper_time() -> float:
    """Return the seconds that the toolkit's thread has run; 0 where there is none, or no such clock."""
    for thread in threading.enumerate():
        if thread.name == REAPER and hasattr(time, "pthread_getcpuclockid"):
            assert thread.ident is not None
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0
