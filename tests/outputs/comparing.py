"""What makes a difference between two runs of the same program, and what does not."""

from __future__ import annotations

import difflib
import re
import textwrap

_DURATION = r"\d+(?:\.\d+)? (?:ms|s|min|h|d)\b"

# Of tables and lists: these go by lines.
_LINES: tuple[tuple[str, str], ...] = (
    (r"(?m)^(idle in transaction|active|idle) +\d+\b", r"\1 N"),
    # What an idle session did last is what its pool has lent it out for.
    (r"(?m)^(idle N .*? (?:local|\d+(?:\.\d+){3})) .*$", r"\1"),
    (r"(?m)^ *\d+(?=:| waits for | +\|)", "N"),
)

# What else differs each time, or on each machine, and what stands for it. The order matters.
_VARYING: tuple[tuple[str, str], ...] = (
    # Lines and rules of tables are as long as the widest cell, which may be a pid.
    (r"[─━-]{3,}(?:\+-+)*", "---"),
    (r"\b(Django|PostgreSQL|PgBouncer|Python|psycopg_pool|psycopg|gunicorn|uvicorn) \d[\w.]*", r"\1 VERSION"),
    (rf"{_DURATION}(?: {_DURATION})*", "TIME"),
    (r"\bdur=[\d.]+", "dur=TIME"),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b(server pid|thread|session|sessions|client_port|Thread|ThreadPoolExecutor) ?[-_]?\d+", r"\1 N"),
    (r"\b(127\.0\.0\.1|localhost):\d+", r"\1:PORT"),
    # Who holds a session.
    (r"\bof process \d+", "of process N"),
    (r"--port=\d+", "--port=N"),
    # Host and process of a tag, and of this command.
    (r"@[\w.-]+:\d+", "@HOST:N"),
    (r"manage\.py connections [\w.-]+:\d+", "manage.py connections HOST:N"),
    (r"\bwaits for \d+", "waits for N"),
    # As many as a pool has opened by then.
    (r"\bDiscarded \d+ inherited", "Discarded N inherited"),
    # Of the tutorial's, which counts what a machine makes of it; that some fail is what it shows.
    (r"\{(?:200: \d+, 500: \d+|500: \d+, 200: \d+)\}", "{200: N, 500: N}"),
    (r'database "shop(_\w+)?"', 'database "shop"'),
    (r"0x[0-9a-f]+", "0xN"),
)


def normalised(text: str) -> str:
    """Return *text* without what differs each time. How it is wrapped and aligned makes no difference either."""
    for pattern, replacement in _LINES:
        text = re.sub(pattern, replacement, text)
    text = " ".join(text.split())
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return text


def difference(shown: str, made: str) -> str:
    """Return how an output that is *made* differs from the one *shown* on the page; empty if it does not.

    Compared is what :func:`normalised` leaves of each line; what is told are the lines as they are.
    """
    if normalised(shown) == normalised(made):
        return ""
    before, after = (textwrap.wrap(normalised(text), 110, break_on_hyphens=False) for text in (shown, made))
    return "\n".join(difflib.unified_diff(before, after, "on the page", "by the run", lineterm="", n=1))
