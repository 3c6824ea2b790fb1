"""What the commands share that split a table over workers: chunks, a progress bar, and an end that tells the truth."""

from __future__ import annotations

import signal
from argparse import ArgumentTypeError
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor, Future

FAILED = 1
STOPPED = 128 + signal.SIGINT


class ParallelCommand(BaseCommand):
    workers: int
    chunk: int

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--workers", type=positive, default=self.workers, help="how many work at a time (default: %(default)s)"
        )
        parser.add_argument(
            "--chunk", type=positive, default=self.chunk, help="how many orders make a job (default: %(default)s)"
        )

    def work_off(
        self,
        executor: Executor,
        job: Callable[[Sequence[int]], list[str]],
        pks: Sequence[int],
        *,
        chunk: int,
        show: bool,
    ) -> None:
        """Have *executor* do *job* for all *pks*, a chunk of them at a time.

        The job returns a line for each order that it could not do. If it raises, its whole chunk is lost, and no other.
        Ctrl-C lets the jobs that have begun come to their end, and begins no more.
        """
        sizes: dict[Future[list[str]], int] = {}
        stopped = False
        with stopping_on_sigterm(), progress(show) as bar:
            task = bar.add_task("Orders", total=len(pks))
            try:
                with interrupts_deferred():
                    for start in range(0, len(pks), chunk):
                        part = pks[start : start + chunk]
                        sizes[executor.submit(job, part)] = len(part)
                for future in as_they_end(sizes):
                    bar.advance(task, sizes[future])
            except KeyboardInterrupt:
                stopped = True
                for future in sizes:
                    future.cancel()
                bar.console.print("Stopping, when the jobs that have begun are done ...")
                wait(sizes)
        self.report(sizes, len(pks), stopped=stopped, show=show)

    def report(self, sizes: dict[Future[list[str]], int], total: int, *, stopped: bool, show: bool) -> None:
        begun = {future: size for future, size in sizes.items() if not future.cancelled()}
        failed = 0
        for future, size in begun.items():
            if error := future.exception():
                problems, failed = [f"{size} orders: {error!r}"], failed + size
            else:
                problems = future.result()
                failed += len(problems)
            for problem in problems:
                self.stderr.write(problem)
        summary = f"{sum(begun.values()) - failed} of {total} orders are done, {failed} failed."
        if stopped:
            raise CommandError(f"Stopped. {summary}", returncode=STOPPED)
        if failed:
            raise CommandError(summary, returncode=FAILED)
        if show:
            self.stdout.write(summary)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number above 0.")
    return int(text)


def progress(show: bool) -> Progress:
    columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), disable=not show)


def as_they_end(futures: Iterable[Future[list[str]]]) -> Iterator[Future[list[str]]]:
    """Do what as_completed() does, and look up each second.

    A signal that comes in the instant before the main thread goes to sleep does not wake it.
    """
    running = set(futures)
    while running:
        done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        yield from done


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait until the block ends: no job may begin that is not counted.

    A terminal sends Ctrl-C to all processes. Those that start here never get it: they inherit that it is blocked, and
    their parent sees to it.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)

    with handled(signal.SIGINT, note), handled(signal.SIGTERM, note):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if noted:
        raise KeyboardInterrupt


def stopping_on_sigterm() -> Any:
    """Take SIGTERM for Ctrl-C, so that what has begun is finished, and the report says how far that is."""
    return handled(signal.SIGTERM, signal.default_int_handler)
