"""What the site's own log says: a scene of tests/outputs/site/shop/scenes.py for each."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from tests.outputs.making import SITE, makes, site_environment, wrapped

if TYPE_CHECKING:
    from tests.outputs.making import Stage
    from tests.outputs.pages import Block

# As it is in tenants.rst.
FUNCTION = """CREATE FUNCTION become_tenant(id int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('app.tenant_id', id::text, false);
END $$"""
POLICY = """CREATE TABLE invoice (tenant_id int NOT NULL);
ALTER TABLE invoice ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON invoice USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::int)"""


def site(stage: Stage, *sql: str, url: str | None = None, **settings: Any) -> dict[str, str]:
    """Return the variables of a site with the database of *url*, or a new one, in which *sql* was executed."""
    url = url or stage.database()
    with psycopg.connect(url, autocommit=True) as owner:
        for statement in sql:
            owner.execute(statement)
    return {"DATABASE_URL": url, "ADMIN_URL": stage.server, "SETTINGS": json.dumps(settings)}


def scene(stage: Stage, name: str, *sql: str, **settings: Any) -> str:
    """Return what a scene prints."""
    return stage.run(site(stage, *sql, **settings), "-m", "shop.scenes", name)


def one(output: str, beginning: str) -> str:
    """Return the only record of *output* that begins so, as the pages have it."""
    found = [line for line in output.splitlines() if line.startswith(beginning)]
    assert len(found) == 1, output
    return wrapped(found[0])


@makes("discarded")
def discarded(stage: Stage, block: Block) -> str:
    return one(scene(stage, "fork", POOL={"min_size": 2, "max_size": 2}), "INFO conn_hygiene.forks: ")


@makes("reclaimed")
def reclaimed(stage: Stage, block: Block) -> str:
    return one(scene(stage, "thread"), "INFO conn_hygiene.threads: ")


@makes("replaced")
def replaced(stage: Stage, block: Block) -> str:
    return one(scene(stage, "broken"), "INFO conn_hygiene.broken: ")


@makes("pinned")
def pinned(stage: Stage, block: Block) -> str:
    return one(scene(stage, "pinned"), "INFO conn_hygiene.lease: ")


@makes("catalogue-function")
def catalogue_function(stage: Stage, block: Block) -> str:
    return one(scene(stage, "tenant", FUNCTION, TENANTS=True), "INFO conn_hygiene.sessions: ")


@makes("catalogue-policy")
def catalogue_policy(stage: Stage, block: Block) -> str:
    return one(scene(stage, "tenant", POLICY, FUNCTION, TENANTS=True), "INFO conn_hygiene.sessions: ")


@makes("unseen-state")
def unseen_state(stage: Stage, block: Block) -> str:
    audited = {"FOLLOWED_SETTINGS": [], "AUDIT_SESSIONS": True}
    return one(scene(stage, "tenant", FUNCTION, TENANTS=True, CONN_HYGIENE=audited), "WARNING conn_hygiene.sessions: ")


@makes("query-timeout", seconds=3)
def query_timeout(stage: Stage, block: Block) -> str:
    return scene(stage, "timeout")


@makes("server-timing")
def server_timing(stage: Stage, block: Block) -> str:
    return scene(stage, "server_timing", CONN_HYGIENE={"SERVER_TIMING": True})


# ##### At Python's prompt #####


POOL = {"min_size": 4, "max_size": 4, "timeout": 10.0}


def session(stage: Stage, block: Block, page: str | None, **settings: Any) -> str:
    """Return the block as Python's prompt has it: what is typed there, and what it prints now."""
    typed = [line for line in block.text.splitlines() if line.startswith((">>>", "..."))]
    finished = subprocess.run(
        [sys.executable, "-m", "shop.scenes", "session"],
        cwd=SITE,
        env=site_environment(site(stage, POOL=POOL, **settings) | ({"PAGE": page} if page else {})),
        input="\n".join(typed),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr, finished.stderr
    return "\n".join(line for line in finished.stdout.splitlines() if not line.startswith(("INFO ", "WARNING ")))


@makes("snapshot")
def snapshot(stage: Stage, block: Block) -> str:
    return session(stage, block, "/report/")


@makes("pool-stats")
def pool_stats(stage: Stage, block: Block) -> str:
    return session(stage, block, None)


@makes("snapshot-of-a-wait")
def snapshot_of_a_wait(stage: Stage, block: Block) -> str:
    return session(stage, block, "/report/")


@makes("statement-timeout")
def statement_timeout(stage: Stage, block: Block) -> str:
    return session(stage, block, None, CONN_HYGIENE={"SESSION_TIMEOUTS": {"statement_timeout": 30}})
