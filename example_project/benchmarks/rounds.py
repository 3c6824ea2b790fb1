"""What is made of the numbers of several rounds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Summary:
    """The median of some rounds, with the smallest and the largest."""

    median: float
    minimum: float
    maximum: float


def summarise(values: Iterable[float]) -> Summary | None:
    """Return what the rounds come to; nothing if there was none."""
    rounds = list(values)
    return Summary(statistics.median(rounds), min(rounds), max(rounds)) if rounds else None


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio of each round.

    The two were measured within seconds of each other there; the machine may have been slower in another round.
    """
    return [mine / other if other else (math.inf if mine else 1.0) for mine, other in zip(ours, others, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the sorted values that so many percent do not exceed; 0 of none."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0
