"""Sessions by whose they are: by host, process and alias, as ``TAG_SESSIONS`` names them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

from conn_hygiene.server import sessions as server

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conn_hygiene.server.sessions import Session


@dataclasses.dataclass(frozen=True)
class Group:
    """The sessions of one process to one alias, or of one host to one alias."""

    #: The client's address, or ``"local"``, where no session says more; ``""`` if the role may not see that.
    host: str
    #: ``None`` for all of the host's, or for sessions that do not say.
    process: int | None
    alias: str | None
    #: How many processes there are among them.
    processes: int
    sessions: int
    active: int
    idle: int
    #: Failed transactions included.
    idle_in_transaction: int
    #: Seconds since the first of the sessions was opened; ``None`` if the role may not see that.
    oldest: float | None


def by_process(sessions: Iterable[Session]) -> list[Group]:
    """Return *sessions* by host, process and alias, host for host, those first that have most idle in transaction."""
    groups: dict[tuple[str, int | None, str | None], list[Session]] = defaultdict(list)
    for session in sessions:
        groups[_owner(session)].append(session)
    found = [_group(*owner, processes=int(owner[1] is not None), of=group) for owner, group in groups.items()]
    hosts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for group in found:
        idle, count = hosts[group.host]
        hosts[group.host] = idle - group.idle_in_transaction, count - group.sessions
    return sorted(found, key=lambda group: (hosts[group.host], group.host, -group.idle_in_transaction, *_name(group)))


def by_host(sessions: Iterable[Session]) -> list[Group]:
    """Return *sessions* by host and alias, in the same order."""
    groups: dict[tuple[str, str | None], list[Session]] = defaultdict(list)
    for session in sessions:
        host, _, alias = _owner(session)
        groups[host, alias].append(session)
    found = [
        _group(host, None, alias, processes=len({_owner(session) for session in group if session.tag}), of=group)
        for (host, alias), group in groups.items()
    ]
    return sorted(found, key=_rank)


def processes(sessions: Iterable[Session]) -> set[tuple[str, int]]:
    """Return the processes that have *sessions* named after them, each as its host and pid."""
    return {(tag.host, tag.pid) for session in sessions if (tag := session.tag) is not None}


def _owner(session: Session) -> tuple[str, int | None, str | None]:
    if (tag := session.tag) is not None:
        return tag.host, tag.pid, tag.alias
    return session.client_address or ("" if session.state is None else "local"), None, None


def _group(host: str, process: int | None, alias: str | None, *, processes: int, of: Sequence[Session]) -> Group:
    ages = [session.age for session in of if session.age is not None]
    return Group(
        host,
        process,
        alias,
        processes,
        sessions=len(of),
        active=sum(session.state == server.ACTIVE for session in of),
        idle=sum(session.state == server.IDLE for session in of),
        idle_in_transaction=sum(session.is_idle_in_transaction for session in of),
        oldest=max(ages, default=None),
    )


def _rank(group: Group) -> tuple[int, int, str, int, str]:
    return -group.idle_in_transaction, -group.sessions, group.host, *_name(group)


def _name(group: Group) -> tuple[int, str]:
    return group.process or 0, group.alias or ""
