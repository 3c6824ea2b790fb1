"""Talking to a process that works on request: a JSON line in on its standard input, a JSON line out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from example_project.processes import ROOT, Child, Trouble, environment, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Carry out one command after the other, until the input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(commands[name](**arguments)), file=answers, flush=True)


class Worker(Child):
    """A process that serves commands."""

    def ask(self, command: str, *, patience: float = 120, **arguments: Any) -> Any:
        """Have one command carried out, and return its answer."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], patience)
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line is None:
            raise Trouble(f"{self.name} has not answered {command!r} in {patience:.0f} seconds. {self.tail()}")
        if not line:
            raise Trouble(f"{self.name} ended in {command!r}. {self.tail()}")
        return json.loads(line)


@contextlib.contextmanager
def working(name: str, module: str, *, log: Path, env: Mapping[str, str]) -> Iterator[Worker]:
    """Run a module that calls :func:`serve` for as long as the block lasts."""
    worker = None
    try:
        with uninterrupted(), log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=environment(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                # Ctrl-C in the terminal is for the parent, which ends its children.
                start_new_session=True,
            )
            worker = Worker(name, process, log)
        yield worker
    finally:
        if worker is not None:
            worker.stop()
            for pipe in (worker.process.stdin, worker.process.stdout):
                # What could not be written to a dead process is of no use to anybody.
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
