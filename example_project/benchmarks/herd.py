"""Many processes of one site, each with a pool of its own: what a request costs in them."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Drive = Callable[..., dict[str, float]]


def herd(drive: Drive, processes: int, **load: Any) -> dict[str, float]:
    """Have so many processes keep up a load each, at the same time, and return what it came to.

    They are forked, as a server's are that loads the site once. The calling process has no connection, nor any thread.
    """
    at_gate, gate = os.pipe()
    members = [_fork(drive, load, at_gate, gate) for _ in range(processes)]
    os.close(at_gate)
    with contextlib.ExitStack() as stack:
        for _, answer in members:
            stack.enter_context(answer)
        for _, answer in members:
            answer.readline()
        # What a member reads there ends now, and so it begins.
        os.close(gate)
        texts = [answer.read() for _, answer in members]
    for process, _ in members:
        os.waitpid(process, 0)
    if not all(texts):
        raise RuntimeError("A process of the herd had no answer.")
    return together([json.loads(text) for text in texts])


def _fork(drive: Drive, load: dict[str, Any], at_gate: int, gate: int) -> tuple[int, IO[str]]:
    """Return a process, and where it writes an empty line when it is ready, and what its load has come to."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        try:
            os.close(gate)
            found = drive(**load, ready=partial(_wait, writing, at_gate))
            os.write(writing, json.dumps(found).encode())
        finally:
            # The pool's threads need not say goodbye to anybody.
            os._exit(0)
    os.close(writing)
    return process, os.fdopen(reading)


def _wait(writing: int, at_gate: int) -> None:
    os.write(writing, b"\n")
    os.read(at_gate, 1)


def together(found: list[dict[str, float]]) -> dict[str, float]:
    """Return what the loads of several processes come to."""
    sums = {name: sum(each[name] for each in found) for name in ("rate", "requests", "timeouts", "errors")}
    cpu = sum(each["cpu"] * each["requests"] for each in found)
    reaper = sum(each["reaper"] * each["cpu"] * each["requests"] for each in found)
    return {**sums, "cpu": cpu / sums["requests"], "reaper": reaper / cpu}
