"""Count bytecodes: a count is the same on a fast machine, on a slow one and on a busy one.

By the event that Python has for each instruction (``sys.monitoring``, Python 3.12 and newer). C is not seen, neither
libpq nor what psycopg has in C; nor is what another process does, such as PgBouncer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Of the numbers that tools may have, one that Python has not set aside for debuggers, coverage or profilers.
_TOOL = 4

# Whose code is told apart, by which name. What is left is Python's library, and the site.
_PACKAGES = {
    "conn_hygiene": "toolkit",
    "django_pg_real_pool": "peer",
    "django": "django",
    "psycopg": "psycopg",
    "psycopg_pool": "psycopg",
}
_ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Repeat:
    """What was counted once: of the thread that did it by package, and of all other threads."""

    own: Counter[str]
    others: int


def counted(work: Callable[[], object], until: Callable[[], object] = lambda: None) -> Repeat:
    """Count what the work takes in this thread, and what other threads do before *until* returns."""
    with counting() as tally:
        work()
        by_then = dict(tally)
        until()
    here = threading.get_ident()
    own: Counter[str] = Counter()
    for (thread, filename), number in by_then.items():
        if thread == here and filename != __file__:
            own[package(filename)] += number
    return Repeat(own, sum(number for (thread, _), number in tally.items() if thread != here))


@contextlib.contextmanager
def counting() -> Iterator[Mapping[tuple[int, str], int]]:
    """Yield the bytecodes of all threads, by thread and file, for as long as the block lasts."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tally: defaultdict[tuple[int, str], int] = defaultdict(int)
    thread = threading.get_ident

    def instruction(code: Any, offset: int) -> None:
        # Each thread has entries of its own, so that none is lost to another's.
        tally[thread(), code.co_filename] += 1

    monitoring.use_tool_id(_TOOL, "benchmarks")
    try:
        monitoring.register_callback(_TOOL, monitoring.events.INSTRUCTION, instruction)
        monitoring.set_events(_TOOL, monitoring.events.INSTRUCTION)
        yield tally
    finally:
        monitoring.set_events(_TOOL, 0)
        monitoring.free_tool_id(_TOOL)


def summary(repeats: Sequence[Repeat]) -> dict[str, float]:
    """Return the medians: ``all`` of the thread that did it, those of each package, and ``others`` of other threads."""
    # Of the repeat in the middle, so that the parts add up to the whole.
    parts = middle(repeats).own
    packages: Counter[str] = Counter()
    for name, number in parts.items():
        packages[name.partition(".")[0]] += number
    others = statistics.median_low(repeat.others for repeat in repeats)
    return {"all": parts.total(), **dict(sorted({**parts, **packages}.items())), "others": others}


def middle(repeats: Sequence[Repeat]) -> Repeat:
    """Return the one that has the median of all."""
    return sorted(repeats, key=lambda repeat: repeat.own.total())[(len(repeats) - 1) // 2]


@cache
def package(filename: str) -> str:
    """Return whose code is in a file; of the toolkit's, also in which of its packages or modules."""
    for name, short in _PACKAGES.items():
        root = _root(name)
        if root and Path(filename).is_relative_to(root):
            part = Path(filename).relative_to(root).parts[0].removesuffix(".py")
            return f"{short}.{part}" if name == "conn_hygiene" else short
    return _ELSEWHERE


@cache
def _root(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
