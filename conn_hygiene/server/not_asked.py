"""What is said of a server that could not be asked: why, as far as its words tell, and what to do.

To a client that it does not let in, libpq tells the server's words and not their SQLSTATE. In another language than
English they are shown as they are, without the advice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.server import capacity
from conn_hygiene.server.findings import Facts, Finding, Level, Project, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

# SQLSTATE 53300: of the server as a whole, and of the limits of a role and of a database.
_FULL = re.compile(r"too many clients already|remaining connection slots are reserved|too many connections for ")
# 28P01, and what libpq says itself where it has none.
_PASSWORD = re.compile(r"password authentication failed|no password supplied")
# 28000.
_ROLE = re.compile(r'role ".*" (does not exist|is not permitted to log in)')


def check(project: Project, facts: list[Facts]) -> Iterator[Finding]:
    """Say what could not be asked, each with why."""
    for fact in facts:
        for failure in fact.failures:
            reached, advice = fact.identity is not None, _advice(project, facts, fact, failure)
            yield finding(
                Level.NOTE if reached else Level.ERROR,
                "not-asked",
                fact.alias,
                what="Not everything could be asked." if reached else advice.what,
                why=advice.why,
                remedy=f"What depends on it was not looked at. {advice.remedy}",
                page=advice.page,
            )


class _Advice(NamedTuple):
    why: str
    remedy: str
    what: str = "The server could not be asked anything."
    page: str = ""


def _advice(project: Project, facts: list[Facts], fact: Facts, failure: str) -> _Advice:
    if fact.misconfigured:
        return _Advice(failure, "Mend the setting named above.")
    if _FULL.search(failure):
        there = [each for each in facts if _server(project, each) == _server(project, fact)]
        return _Advice(
            f"{failure}; {capacity.opened(project, there)}",
            "End sessions as a superuser, for whom the server keeps some connections: with pg_terminate_backend(pid), "
            "and the pids of pg_stat_activity. Then lower max_size, or run fewer processes.",
            "The server has no connection left, not even for this command.",
            capacity.PAGE,
        )
    if _PASSWORD.search(failure):
        return _Advice(
            failure,
            "Mend PASSWORD in DATABASES, or have the backend ask for one that is good.",
            "The server refuses the password in DATABASES.",
            "how-to/rotating-passwords.rst",
        )
    if _ROLE.search(failure):
        return _Advice(
            failure,
            "Mend USER in DATABASES, or have the server make that role, with LOGIN.",
            "The server refuses the role in DATABASES.",
        )
    return _Advice(failure, "Run the command again where it can be asked.")


def _server(project: Project, fact: Facts) -> list[str]:
    """Return at which server an alias is, as far as the settings tell."""
    return [str(project.databases[fact.alias].get(name)) for name in ("HOST", "PORT")]
