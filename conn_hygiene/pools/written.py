"""What a project has written for ``OPTIONS["pool"]``, and why Django cannot make a pool of it.

Django hands it on to psycopg_pool when somebody connects first, and what that raises names neither alias nor setting.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, NamedTuple

import django

from conn_hygiene.pools import backends
from conn_hygiene.sessions import connect_options

if TYPE_CHECKING:
    from collections.abc import Iterator

# What Django gives to the pool itself, and Python takes once: DatabaseWrapper.pool.
_DJANGOS = frozenset({"kwargs", "open", "configure"} | ({"check"} if django.VERSION < (6, 1) else set()))

_SIZES = ("min_size", "max_size")

# What psycopg_pool takes unseen, and fails at when it opens the pool, waits, or opens a connection.
_COUNTS = ("min_size", "num_workers")
_SECONDS = ("timeout", "max_lifetime", "max_idle", "reconnect_timeout")

# How much like a name a wrong one must be. "max" is none of the longer words that difflib goes for by itself.
_ALIKE = 0.5


class Refusal(NamedTuple):
    """Why no pool can be made of what is written, and what to write instead; the first is the rest of a sentence."""

    what: str
    hint: str


def refusals(alias: str) -> Iterator[Refusal]:
    """Yield why Django cannot make the pool of *alias*; nothing if it can, or if that is not Django's to make.

    Opens no pool, and starts no thread.
    """
    pool = connect_options.options_written(alias).get("pool")
    if not pool or pool is True or not backends.makes_djangos_pool(alias):
        return
    if not hasattr(pool, "keys"):
        yield Refusal(
            f"that is {pool!r}, neither True nor a dict",
            'Use True, or a dict of what psycopg_pool.ConnectionPool takes, as in {"min_size": 2, "max_size": 8}.',
        )
        return
    cls = _pool_class()
    if cls is None:
        return
    found = list(_of_names({**pool}, cls))
    yield from found or _of_values({**pool}, cls)


def _pool_class() -> Any:
    """Return the class that Django makes pools of, if it is psycopg_pool's; somebody else's may take anything."""
    if find_spec("psycopg_pool") is None:
        return None
    cls = import_module("psycopg_pool").ConnectionPool
    return cls if cls.__module__.partition(".")[0] == "psycopg_pool" else None


def _of_names(pool: dict[Any, Any], cls: Any) -> Iterator[Refusal]:
    parameters = signature(cls).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters if parameter.name not in _DJANGOS]
    for name in pool:
        if name in _DJANGOS:
            yield Refusal(
                f"with {name!r}, which Django gives to psycopg_pool itself",
                "Remove it; CONN_HEALTH_CHECKS has Django give one."
                if name == "check"
                else 'Remove it. What each connection is opened with goes into OPTIONS, beside "pool".',
            )
        elif name not in names:
            close = get_close_matches(name.lower(), names, n=1, cutoff=_ALIKE) if isinstance(name, str) else []
            meant = f"Did you mean {close[0]!r}? " if close else ""
            yield Refusal(
                f"with {name!r}, which psycopg_pool.ConnectionPool does not take",
                f"{meant}It takes {', '.join(names)}.",
            )


def _of_values(pool: dict[str, Any], cls: Any) -> Iterator[Refusal]:
    why = _refused(pool, cls)
    if why is None:
        yield from _of_numbers(pool)
        return
    of_sizes = _refused({name: value for name, value in pool.items() if name not in _SIZES}, cls) is None
    least = signature(cls).parameters["min_size"].default
    yield Refusal(
        f"that psycopg_pool refuses: {why}",
        f"Sizes are numbers: min_size, which is {least} if it is left out, and max_size, which is no less."
        if of_sizes
        else "Give it a value that it takes, or leave it out.",
    )


def _of_numbers(pool: dict[str, Any]) -> Iterator[Refusal]:
    for name, value in pool.items():
        if name in _COUNTS and not isinstance(value, int):
            yield Refusal(f"whose {name} is {value!r}, no whole number", "Write a whole number, such as 2.")
        elif name in _SECONDS and not isinstance(value, (int, float)):
            yield Refusal(f"whose {name} is {value!r}, no number", "Write a number of seconds, such as 30.")
        elif name == "max_waiting" and value and not isinstance(value, (int, float)):
            yield Refusal(f"whose max_waiting is {value!r}, no number", "Write a number, such as 100; 0 is no limit.")


def _refused(pool: dict[str, Any], cls: Any) -> str | None:
    """Return with which words *cls* refuses *pool*; None if it does not."""
    try:
        # With a name, for it counts those that it has to name itself.
        cls(**{"name": __name__, **pool}, open=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
