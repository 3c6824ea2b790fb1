"""What the visitors were told, against what is in the ledger afterwards."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Answer(enum.Enum):
    """What the visitor knows."""

    DONE = "done"
    # It was refused, or taken back, before its commit was sent.
    UNDONE = "undone"
    # An answer that says neither, or none at all: it may have been committed.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Request:
    """One visit, by the clock of the visitors."""

    began: float
    ended: float
    answer: Answer
    # Of a transfer or a note; a page that only reads has none.
    token: str | None = None
    error: str = ""
    # Its visitor has given up, and it may still be at work.
    endless: bool = False

    @property
    def failed(self) -> bool:
        return self.answer is not Answer.DONE


@dataclass(frozen=True)
class Books:
    """What a database has when all is quiet."""

    # How often each token is in the ledger.
    entries: Mapping[str, int]
    total: int
    # By what the ledger says of each account, against its balance.
    wrong_accounts: int = 0


@dataclass(frozen=True)
class Account:
    """The comparison, for one contender under one fault."""

    requests: int
    failed: int
    told: int
    found: int
    lost: int
    ghosts: int
    # More or less than there was, and accounts that are not what the ledger makes them.
    money: int
    # Seconds from the fault's end to the last answer that was a failure; None if there was none after it.
    recovered: float | None
    # The times of all failed answers, from the fault's end.
    failures: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.recovered or 0


def account(requests: Sequence[Request], books: Books, *, total: int, fault_ended: float) -> Account:
    """Compare what *requests* were told with the *books*; *total* is the money that there was.

    A commit whose answer was lost is neither lost nor a ghost, whether it is found or not: nobody claimed to know. A
    ghost is what was done though its client was told for sure that it was not, or more than once, or for nobody.
    """
    told = [request.token for request in requests if request.token and request.answer is Answer.DONE]
    failures = sorted(request.ended - fault_ended for request in requests if request.failed)
    late = failures[-1] if failures and failures[-1] > 0 else None
    return Account(
        requests=len(requests),
        failed=len(failures),
        told=len(told),
        found=sum(books.entries.values()),
        lost=sum(token not in books.entries for token in told),
        ghosts=ghosts(requests, books.entries),
        money=abs(books.total - total) + books.wrong_accounts,
        recovered=None if late is None else round(late, 2),
        failures=[round(moment, 2) for moment in failures],
        errors=dict(Counter(shortened(request.error) for request in requests if request.failed).most_common()),
    )


def ghosts(requests: Iterable[Request], entries: Mapping[str, int]) -> int:
    allowed = {request.token: int(request.answer is not Answer.UNDONE) for request in requests if request.token}
    return sum(max(times - allowed.get(token, 0), 0) for token, times in entries.items())


def shortened(error: str, length: int = 100) -> str:
    return error if len(error) <= length else f"{error[: length - 3]}..."
