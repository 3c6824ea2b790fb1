"""Who is compared, and what each has in its settings."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from typing import Any

POOL_SIZE = 4
# Long enough for a queue that moves, short enough that a run with one that does not comes to its end.
POOL_TIMEOUT = 5
# With two connections, the last of many pages is made long after the first.
PAGES_TIMEOUT = 30


@dataclass(frozen=True)
class Contender:
    """One way to have connections."""

    key: str
    name: str
    engine: str = "django.db.backends.postgresql"
    pool: int | None = POOL_SIZE
    # CONN_HYGIENE; None is the same site without the toolkit.
    toolkit: dict[str, Any] | None = None
    through_pgbouncer: bool = False
    closes_before_fork: bool = False
    # Seconds that an owner has a connection at a stretch if somebody waits, in place of the toolkit's own.
    turn: float | None = None
    # In a database with tenants, whose catalogue tells the toolkit to be careful.
    tenants: bool = False
    # With a network in between that takes its time.
    network: bool = False
    # With pages that the processor limits.
    pages: bool = False
    # So many entries of DATABASES, each with a pool of its own, all on the same server.
    aliases: int = 1

    def environment(self, *, asgi: bool = False) -> dict[str, str]:
        """Return what makes :mod:`.settings` this contender's."""
        entry: dict[str, Any] = {"ENGINE": self.engine}
        if self.pool is not None:
            timeout = PAGES_TIMEOUT if self.pages else POOL_TIMEOUT
            entry["pool"] = {"min_size": min(self.pool, POOL_SIZE), "max_size": self.pool, "timeout": timeout}
        if self.through_pgbouncer:
            # As Django's documentation has it for transaction pooling. Psycopg prepares no statements under Django
            # unless it is told to. Connections to PgBouncer are cheap to keep, and so are kept; but under ASGI a
            # thread lives for one request only, and the documentation says to turn persistent connections off.
            entry |= {"DISABLE_SERVER_SIDE_CURSORS": True, "conn_max_age": 0 if asgi else None}
        env = {"BENCH_DATABASE": json.dumps(entry)}
        if self.pages:
            env["DJANGO_SETTINGS_MODULE"] = "example_project.benchmarks.pages.settings"
        if self.toolkit is not None:
            env["BENCH_TOOLKIT"] = json.dumps(self.toolkit)
        if self.closes_before_fork:
            env["BENCH_CLOSE_BEFORE_FORK"] = "1"
        if self.turn is not None:
            env["BENCH_TURN"] = str(self.turn)
        if self.aliases > 1:
            env["BENCH_ALIASES"] = str(self.aliases)
        return env

    @property
    def missing(self) -> str | None:
        """Tell what is not installed and how to install it; nothing if all is there."""
        package = self.engine.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {package.replace('_', '-')}"
        if self.through_pgbouncer:
            from example_project.benchmarks.pgbouncer import find

            if find() is None:
                return "pgbouncer is not installed: on Debian and Ubuntu, sudo apt-get install pgbouncer"
        return None


HOLDING = Contender("holding", "Django's pool")
UNPOOLED = Contender("unpooled", "Django, no pool", pool=None)
PEER = Contender("peer", "django-pg-real-pool", engine="django_pg_real_pool")
PGBOUNCER = Contender("pgbouncer", "PgBouncer", pool=None, through_pgbouncer=True)
AT_ONCE = Contender("toolkit-0", "conn_hygiene, 0", toolkit={"RELEASE_AFTER": 0})
# The one that the bars are for.
TOOLKIT = Contender("toolkit", "conn_hygiene, 0.001", toolkit={"RELEASE_AFTER": 0.001})
PATIENT = Contender("toolkit-0.01", "conn_hygiene, 0.01", toolkit={"RELEASE_AFTER": 0.01})

CONTENDERS = [HOLDING, UNPOOLED, PEER, PGBOUNCER, AT_ONCE, TOOLKIT, PATIENT]

# The same, farther away from their server.
FAR = {each.key: replace(each, key=f"far-{each.key}", network=True) for each in CONTENDERS}

# What follows is measured only where the question is another one than who serves most.
NEVER = Contender("never", 'conn_hygiene, RELEASE = "never"', toolkit={"RELEASE": "never"})

# What they do is counted. A longer grace adds nothing to that.
COUNTED = (HOLDING, UNPOOLED, PEER, PGBOUNCER, AT_ONCE, TOOLKIT, NEVER)

# For single queries: what each return costs.
ALWAYS = Contender(
    "always", 'conn_hygiene, 0, CLEAN_SESSIONS = "always"', toolkit={"RELEASE_AFTER": 0, "CLEAN_SESSIONS": "always"}
)
# On a site with tenants the toolkit cleans all sessions by itself. This one follows, and trusts what it has seen.
SEEN = Contender(
    "seen",
    'conn_hygiene, 0.001, CLEAN_SESSIONS = "seen"',
    toolkit={"RELEASE_AFTER": 0.001, "CLEAN_SESSIONS": "seen"},
)


def of_tenants(contender: Contender, *, network: bool = False) -> Contender:
    """Return the same on a site with tenants, beside the network or behind it."""
    place, where = ("network", ", 1 ms away") if network else ("tenants", "")
    name = f"{contender.name}{where}"
    return replace(contender, key=f"{place}-{contender.key}", name=name, tenants=True, network=network)


TENANTS = tuple(of_tenants(each) for each in (HOLDING, PEER, PGBOUNCER, SEEN, TOOLKIT))
NETWORK = tuple(of_tenants(each, network=True) for each in (HOLDING, PEER, PGBOUNCER, SEEN, TOOLKIT))
TENANT_TOOLKIT, NETWORK_TOOLKIT = TENANTS[-1], NETWORK[-1]
FEW = replace(TENANT_TOOLKIT, key="few-toolkit", name="conn_hygiene, a pool of 2", pool=2)

# Of pages that the processor limits, a small pool lets few be made at a time.
PAGES = tuple(
    replace(each, key=f"pages-{each.key}", name=f"{each.name}, 2", pool=2, pages=True)
    for each in (HOLDING, PEER, TOOLKIT)
)
PAGES_HOLDING, _, PAGES_TOOLKIT = PAGES

# Where heavy views and light ones are after the same two connections. PgBouncer's are as many as ever.
PAIR = {
    each.key: replace(each, key=f"pair-{each.key}", name=f"{each.name}, a pool of 2", pool=2)
    for each in (HOLDING, PEER, AT_ONCE, TOOLKIT)
}

# For what grows: the pools of one process, and the processes of one server. There are as many connections in all.
CONNECTIONS = 40
ALIASES = {
    count: tuple(
        replace(each, key=f"aliases-{count}-{each.key}", pool=CONNECTIONS // count, aliases=count)
        for each in (HOLDING, TOOLKIT)
    )
    for count in (1, 20)
}
HERDS = {
    count: tuple(
        replace(each, key=f"herd-{count}-{each.key}", pool=max(2, CONNECTIONS // count)) for each in (HOLDING, TOOLKIT)
    )
    for count in (1, 50)
}

# For forks, which inherit up to 64 connections, and for the memory of so many.
LARGE_POOL = 65
LARGE_HOLDING = replace(HOLDING, key="large-holding", name=f"Django's pool of {LARGE_POOL}", pool=LARGE_POOL)
LARGE_TOOLKIT = replace(TOOLKIT, key="large-toolkit", name=f"conn_hygiene, a pool of {LARGE_POOL}", pool=LARGE_POOL)
# A child of Django's own pool hangs in its first query: the pool's threads are not in it. Plain Django is safe if the
# parent closes everything before each fork, which is not part of the time.
CLOSING = replace(UNPOOLED, key="closing", name="Django, no pool, closed by hand", closes_before_fork=True)
CLOSING_POOL = replace(LARGE_HOLDING, key="closing-pool", name="Django's pool, closed by hand", closes_before_fork=True)
