"""A load of requests: so many threads, each asking again as soon as it has its answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from example_project.benchmarks.rounds import percentile

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    # Asks for one path, and returns the status.
    Ask = Callable[[str], int]

REAPER = "conn-hygiene-reaper"

# A site's threads outlive their requests, and so do these from one round to the next.
threads_of_site = ThreadPoolExecutor(1024, "request")


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


def drive(
    visitor: Callable[[], AbstractContextManager[Ask]],
    *,
    path: str,
    threads: int,
    seconds: float,
    spread: float = 0,
) -> dict[str, float]:
    """Keep up a load, and return what it came to.

    The threads begin within `spread` seconds, one by one, as visitors do: in step with each other, all would want the
    processor at once, and then none.
    """
    clock = Clock()
    gate = threading.Barrier(threads, action=clock.start)

    def visit(number: int) -> Visitor:
        seen = Visitor()
        with visitor() as ask:
            # What is done once only, such as connecting, is not measured.
            ask("/page/1/0/0")
            gate.wait(120)
            time.sleep(spread * number / threads)
            seen.started = seen.ended = time.perf_counter()
            while seen.ended - seen.started < seconds:
                before = seen.ended
                seen.statuses[ask(path)] += 1
                seen.ended = time.perf_counter()
                seen.latencies.append(seen.ended - before)
        return seen

    visits = list(threads_of_site.map(visit, range(threads)))
    return {**summary(visits), **clock.stop(sum(len(each.latencies) for each in visits))}


def summary(visits: list[Visitor]) -> dict[str, float]:
    statuses: Counter[int] = sum((each.statuses for each in visits), Counter())
    latencies = sorted(latency for each in visits for latency in each.latencies)
    rates = sorted(each.rate for each in visits)
    middle = percentile(rates, 50)
    return {
        "rate": sum(rates),
        "requests": statuses.total(),
        "timeouts": statuses[503],
        "errors": statuses.total() - statuses[200] - statuses[503],
        "p50": percentile(latencies, 50) * 1000,
        "p99": percentile(latencies, 99) * 1000,
        "slowest_share": rates[0] / middle if middle else 0,
    }


class Clock:
    """The processor time that this process uses, and the reaper's part of it."""

    def start(self) -> None:
        self._process, self._reaper = time.process_time(), reaper_time()

    def stop(self, requests: int) -> dict[str, float]:
        used = time.process_time() - self._process
        return {"cpu": used / requests * 1000, "reaper": (reaper_time() - self._reaper) / used}


def reaper_time() -> float:
    """Return the seconds that the toolkit's thread has run; 0 where there is none, or no such clock."""
    for thread in threading.enumerate():
        if thread.name == REAPER and hasattr(time, "pthread_getcpuclockid"):
            assert thread.ident is not None
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0
