"""What the toolkit has to reach under a fault, beside plain Django in the same run, and whether it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from example_project.chaos.contenders import Contender
    from example_project.chaos.faults import Fault
    from example_project.chaos.measuring import Outcome, Row

# Seconds.
RECOVERED_WITHIN = 1


@dataclass(frozen=True)
class Target:
    fault: str
    contender: str
    text: str
    measured: str
    met: bool
    # Whatever the machine is busy with: a run that misses it has failed.
    must: bool


def targets(
    faults: Sequence[Fault], contenders: Sequence[Contender], results: Mapping[str, Outcome]
) -> Iterator[Target]:
    for fault in faults:
        for contender in contenders:
            if contender.toolkit and (outcome := results.get(fault.key)):
                rival = outcome.rows.get(contender.rival or "")
                yield from of_row(fault, contender, outcome.rows[contender.key], rival)


def of_row(fault: Fault, contender: Contender, row: Row, rival: Row | None) -> Iterator[Target]:
    def target(text: str, measured: object, *, met: bool, must: bool = False) -> Target:
        return Target(fault.key, contender.key, text, str(measured), met, must)

    account = row.account
    for text, number in (
        ("nothing lost", account.lost),
        ("no ghosts", account.ghosts),
        ("all money there", account.money),
        ("every connection back", row.never_back),
        ("no session left in a transaction", row.in_transaction),
    ):
        yield target(text, number, met=not number, must=True)
    recovered = account.seconds <= RECOVERED_WITHIN
    yield target(f"recovered within {RECOVERED_WITHIN} s", f"{account.seconds:.2f} s", met=recovered)
    if rival is None:
        return
    own, other = account.failed, rival.account.failed
    yield target("fails no more than Django", f"{own} to {other}", met=own <= other + noise(other))
    if fault.breaks_connections:
        own, other = (counted(fault, each) for each in (row, rival))
        if other:
            yield target("fails half as often, or less", f"{own} to {other}", met=2 * own <= other + noise(other))


def counted(fault: Fault, row: Row) -> int:
    """Return the failures that broken connections have made: not those while nobody could be served."""
    failures = row.account.failures
    return sum(moment > 0 for moment in failures) if fault.outage else len(failures)


def noise(number: int) -> float:
    """Return how much larger a count like *number* may be by chance: two standard deviations, and one."""
    return 2 * math.sqrt(number) + 1
