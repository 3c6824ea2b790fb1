"""`manage.py connections doctor`: what it finds, by its logic alone, on a real server, and behind a real PgBouncer."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import io
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections
from django.db.backends.signals import connection_created
from django.test import override_settings

from conn_hygiene.pools import written
from conn_hygiene.server import answers, doctor, pgbouncer, pooler
from conn_hygiene.server import sessions as server
from conn_hygiene.server.answers import NoAnswer
from conn_hygiene.server.doctor import Facts, Level, Project
from conn_hygiene.server.pgbouncer import PgBouncer
from conn_hygiene.server.pooler import Pooler
from conn_hygiene.sessions.catalogue import Findings
from conn_hygiene.sessions.connect_options import OF_OPTIONS
from example_project.processes import free_port
from tests.processes import ROOT
from tests.test_connections_command import configured, misconfigured
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent", "small"])

__all__ = ["configured", "misconfigured"]  # fixtures

TODAY = datetime.date(2026, 11, 21)
STARTED = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc)
IDENTITY = server.Identity("shop", "app", STARTED, "18.1")
LIMITS = server.Limits(180001, 100, 3, -1, -1, superuser=False, foreign_sessions=0)
ALIAS = {
    "OPTIONS": {"pool": {"min_size": 2, "max_size": 8}},
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": True,
    "ATOMIC_REQUESTS": False,
}
# Nothing is wrong with it.
PROJECT = Project(
    databases={"default": ALIAS},
    debug=False,
    asgi=False,
    middleware=True,
    release="scoped",
    unpooled_release_after=1.0,
    reclaims_dead_threads=True,
    idle_in_transaction_after=5.0,
    followed_settings="auto",
    clean_sessions="auto",
    minimum_version=(15,),
    processes=4,
    threads=8,
    name="shop",
)
FACTS = Facts(
    "default",
    identity=IDENTITY,
    limits=LIMITS,
    activity=server.Activity([], hidden=0, others=0),
    pooler=Pooler.NONE,
    timeouts={"statement_timeout": 30_000, "idle_in_transaction_session_timeout": 60_000},
)


def project(pool: Any = ALIAS["OPTIONS"], **changes: Any) -> Project:
    """Return the project with other values; those in capitals are of its database."""
    database = {**ALIAS, **{name: changes.pop(name) for name in list(changes) if name.isupper()}}
    return dataclasses.replace(PROJECT, databases={"default": database}, **changes)


def facts(**changes: Any) -> Facts:
    limits = {name: changes.pop(name) for name in list(changes) if name in LIMITS.__dataclass_fields__}
    return dataclasses.replace(FACTS, **{"limits": dataclasses.replace(LIMITS, **limits), **changes})


def bounced(of_facts: dict[str, Any] | None = None, **changes: Any) -> Facts:
    """Return the facts of the alias as they are through a PgBouncer, which itself has *changes*."""
    bouncer = dataclasses.replace(BOUNCER, **changes)
    return facts(**{"pooler": Pooler.TRANSACTION, "pgbouncer": bouncer, **(of_facts or {})})


def named(*names: str) -> server.Activity:
    """Return the activity of sessions that have these names."""
    sessions = [dataclasses.replace(IDLE, state="idle", application_name=name) for name in names]
    return server.Activity(sessions, hidden=0, others=0)


def diagnosed(project: Project = PROJECT, *found: Facts) -> dict[str, Level]:
    findings = doctor.diagnose(project, list(found) or [FACTS], TODAY)
    assert [finding.docs for finding in findings if not is_there(finding.docs)] == []
    return {finding.id: finding.level for finding in findings}


def is_there(page: str) -> bool:
    """Return whether the documentation has the page, and the place on it."""
    path, _, label = page.partition("#")
    assert path.startswith(f"{ROOT}/docs/")
    return f".. _{label}:" in Path(path).read_text() if label else Path(path).exists()


TENANT = Findings(
    frozenset({"app.tenant", "app.user"}),
    {"app.tenant": "policy p of table t reads it", "app.user": "function f sets it"},
    ("policy p of table t", "function f (SET app.user)"),
)
NO_POOL: dict[str, Any] = {}
TIMEOUTS = {"statement_timeout": 30.0, "idle_in_transaction_session_timeout": 60.0}
NO_TIMEOUTS = dict.fromkeys(TIMEOUTS, 0)
BOUNCER = PgBouncer(
    address="pooler:6432",
    database="shop",
    role="app",
    version=(1, 23, 1),
    mode="transaction",
    pool_size=20,
    reserve=5,
    max_db_connections=0,
    max_user_connections=0,
    max_client_conn=100,
    max_prepared_statements=0,
    ignored=frozenset(),
    reset_query="DISCARD ALL",
    resets_always=False,
    query_wait_timeout=120,
    query_timeout=0,
    idle_transaction_timeout=0,
    waiting=0,
    longest_wait=0,
    clients=(),
)
IDLE = server.Session(
    pid=7,
    database="shop",
    role="app",
    application_name="",
    client_address=None,
    state="idle in transaction",
    backend_start=STARTED,
    xact_start=STARTED,
    state_change=STARTED,
    age=90,
    in_state=60,
    in_transaction=61,
    wait_event=None,
    blocked_by=[],
    statement="SELECT ?",
    own=False,
)


class TestLogic:
    def test_nothing_is_wrong(self) -> None:
        assert diagnosed() == {}

    @pytest.mark.parametrize(
        "of_project",
        [
            {"middleware": True},
            {"CONN_MAX_AGE": 60, "asgi": True},
            {"OPTIONS": {"pool": True}},
            {"ENGINE": "dj_db_conn_pool.backends.postgresql"},
        ],
        ids=str,
    )
    def test_no_advice_is_an_assignment_that_would_replace_what_is_there(self, of_project: dict[str, Any]) -> None:
        asked = project(**{"ENGINE": "tests.wrapping_backend", "OPTIONS": NO_POOL, **of_project})
        of_facts = {"timeouts": NO_TIMEOUTS, "pooled": False, "left_alone": None}
        several = [facts(**of_facts), facts(**of_facts, options_refused="FATAL: no")]
        left_alone = facts(**{**of_facts, "left_alone": "it is"})
        findings = [doctor.diagnose(asked, [each], TODAY) for each in (*several, left_alone)]
        assert [found.remedy for each in findings for found in each if re.search(r"\b[A-Z_]+ = ", found.remedy)] == []

    @pytest.mark.parametrize(
        ("of_project", "of_facts", "expected"),
        [
            # 4 times 8, of 100 - 3.
            ({"processes": 12}, {}, {}),
            ({"processes": 13}, {}, {"too-many-connections": Level.ERROR}),
            # An eighth is opened where there are seven.
            (
                {"processes": 13, "OPTIONS": {"pool": {"max_size": 7.5}}},
                {},
                {"too-many-connections": Level.ERROR},
            ),
            ({"processes": 12}, {"foreign_sessions": 2}, {"too-many-connections": Level.WARNING}),
            ({"processes": 12, "threads": 9, "OPTIONS": NO_POOL}, {}, {"too-many-connections": Level.ERROR}),
            ({"processes": None}, {}, {"processes-unknown": Level.NOTE}),
            ({"threads": None}, {}, {}),
            ({"threads": None, "OPTIONS": NO_POOL}, {}, {"threads-unknown": Level.NOTE}),
            # It is psycopg_pool that takes these.
            *(
                ({"threads": None, "OPTIONS": {"pool": {"max_size": size}}}, {}, {"threads-unknown": Level.NOTE})
                for size in (math.inf, math.nan)
            ),
            ({"OPTIONS": {"pool": {"min_size": math.nan, "max_size": 4}}}, {}, {}),
            ({"processes": 13}, {"pooler": Pooler.SESSION}, {"pooler": Level.NOTE}),
            ({}, {"role_limit": 31}, {"connection-limit": Level.ERROR}),
            ({}, {"role_limit": 32}, {}),
            ({}, {"database_limit": 31}, {"connection-limit": Level.ERROR}),
            ({}, {"role_limit": 0, "superuser": True}, {}),
            # No pool.
            ({}, {"pooled": False}, {"no-pool": Level.NOTE}),
            ({"unpooled_release_after": None}, {"pooled": False}, {"no-pool": Level.NOTE}),
            ({"middleware": False, "release": "never"}, {"pooled": False}, {}),
            ({"ATOMIC_REQUESTS": True}, {"pooled": False}, {"atomic-requests": Level.NOTE}),
            ({"ENGINE": "shop.pool"}, {"pooled": False, "left_alone": "why"}, {"left-alone": Level.WARNING}),
            # Timeouts.
            ({}, {"timeouts": {"statement_timeout": 0}}, {"no-statement-timeout": Level.WARNING}),
            (
                {},
                {"timeouts": {"idle_in_transaction_session_timeout": 0}},
                {"no-idle-in-transaction-timeout": Level.WARNING},
            ),
            # Persistent connections.
            ({"CONN_MAX_AGE": 60}, {}, {"pool-and-conn-max-age": Level.ERROR}),
            ({"CONN_MAX_AGE": None, "OPTIONS": NO_POOL}, {}, {}),
            (
                {"CONN_MAX_AGE": None, "OPTIONS": NO_POOL, "asgi": True},
                {},
                {"conn-max-age-under-asgi": Level.WARNING},
            ),
            ({"asgi": True}, {}, {}),
            ({"CONN_MAX_AGE": 60, "OPTIONS": NO_POOL, "debug": True}, {}, {}),
            (
                {"CONN_MAX_AGE": 60, "OPTIONS": NO_POOL, "debug": True, "reclaims_dead_threads": False},
                {},
                {"runserver-threads": Level.WARNING},
            ),
            ({"CONN_HEALTH_CHECKS": False}, {}, {"no-health-checks": Level.NOTE}),
            ({"CONN_HEALTH_CHECKS": False, "OPTIONS": {"pool": {"max_size": 4, "check": print}}}, {}, {}),
            ({"CONN_HEALTH_CHECKS": False, "OPTIONS": NO_POOL}, {}, {}),
            ({"OPTIONS": {"pool": True}}, {}, {"pool-without-sizes": Level.NOTE}),
            ({"OPTIONS": {"pool": {"timeout": 5}}}, {}, {"pool-without-sizes": Level.NOTE}),
            # Transactions.
            ({"ATOMIC_REQUESTS": True}, {}, {"atomic-requests": Level.NOTE}),
            ({"ATOMIC_REQUESTS": True, "threads": 9}, {}, {"atomic-requests": Level.WARNING}),
            (
                {},
                {"activity": server.Activity([IDLE], hidden=0, others=0)},
                {"idle-in-transaction-now": Level.WARNING},
            ),
            (
                {"idle_in_transaction_after": 61.0},
                {"activity": server.Activity([IDLE], hidden=0, others=0)},
                {},
            ),
            ({}, {"activity": server.Activity([], hidden=1, others=0)}, {"hidden-sessions": Level.NOTE}),
            # Poolers.
            (
                {},
                {"pooler": Pooler.TRANSACTION},
                {
                    "pooler": Level.NOTE,
                    "server-side-cursors-behind-pooler": Level.ERROR,
                    "health-checks-behind-pooler": Level.NOTE,
                },
            ),
            (
                {"DISABLE_SERVER_SIDE_CURSORS": True, "OPTIONS": {"prepare_threshold": 5}},
                {"pooler": Pooler.TRANSACTION},
                {"pooler": Level.NOTE, "prepared-statements-behind-pooler": Level.WARNING},
            ),
            # Versions, on the 21st of November 2026.
            ({}, {"version": 90624}, {"server-too-old": Level.ERROR}),
            ({"minimum_version": ()}, {"version": 90624}, {"old-server": Level.WARNING}),
            ({}, {"version": 140020}, {"server-too-old": Level.ERROR}),
            ({"minimum_version": (14,)}, {"version": 140020}, {"old-server": Level.WARNING}),
            ({}, {"version": 150010}, {}),
            ({}, {"version": 190001}, {}),
            # What functions and policies do.
            ({}, {"catalogue": Findings()}, {}),
            ({}, {"catalogue": TENANT}, {"settings-follow": Level.NOTE, "sessions-cleaned": Level.NOTE}),
            (
                {"followed_settings": frozenset({"app.tenant"}), "clean_sessions": "always"},
                {"catalogue": TENANT},
                {"settings-not-followed": Level.WARNING},
            ),
            (
                {"followed_settings": TENANT.followed | {"search_path"}, "clean_sessions": "seen"},
                {"catalogue": TENANT},
                {"sessions-not-cleaned": Level.WARNING},
            ),
            # The toolkit itself.
            ({"middleware": False}, {}, {"toolkit-not-in-use": Level.NOTE}),
            ({"middleware": False, "release": "always"}, {}, {}),
            ({"setting_problems": (("It is 1.", "Write 2."),)}, {}, {"setting-ignored": Level.ERROR}),
        ],
    )
    def test_each_finding(
        self, of_project: dict[str, Any], of_facts: dict[str, Any], expected: dict[str, Level]
    ) -> None:
        assert diagnosed(project(**of_project), facts(**of_facts)) == expected

    def test_a_view_is_exempted_from_atomic_requests_of_the_alias(self) -> None:
        database = {**ALIAS, "ATOMIC_REQUESTS": True}
        several = dataclasses.replace(PROJECT, databases={"default": database, "other": database}, processes=1)
        found = doctor.diagnose(several, [FACTS, dataclasses.replace(FACTS, alias="other")], TODAY)
        assert [(finding.aliases, finding.remedy.rpartition(" with ")[2]) for finding in found] == [
            (("default",), "@transaction.non_atomic_requests."),
            (("other",), "@transaction.non_atomic_requests(using='other')."),
        ]
        assert all("each view of the site keeps a connection" in finding.why for finding in found)
        assert all("also if it never queries there" in finding.why for finding in found)

    def test_an_end_that_is_near_is_worth_a_note(self) -> None:
        end = doctor.END_OF_LIFE[15]
        for days, expected in ((181, {}), (179, {"old-server": Level.NOTE}), (-1, {"old-server": Level.WARNING})):
            today = end - datetime.timedelta(days)
            found = doctor.diagnose(PROJECT, [facts(version=150010)], today)
            assert {finding.id: finding.level for finding in found} == expected

    def test_the_aliases_of_a_server_are_added_up_and_those_of_two_servers_are_not(self) -> None:
        two = dataclasses.replace(PROJECT, databases={"default": ALIAS, "other": ALIAS}, processes=7)
        same = dataclasses.replace(FACTS, alias="other")
        elsewhere = dataclasses.replace(
            same, identity=IDENTITY._replace(server_started=STARTED + datetime.timedelta(1))
        )
        assert diagnosed(two, FACTS, same) == {"too-many-connections": Level.ERROR}
        assert diagnosed(two, FACTS, elsewhere) == {}
        [finding] = doctor.diagnose(two, [FACTS, same], TODAY)
        assert finding.aliases == ("default", "other")
        assert "7 processes times 8 of 'default' + 8 of 'other' make 112" in finding.why

    def test_the_worst_comes_first_and_what_is_alike_is_one(self) -> None:
        database = {**ALIAS, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": False}
        two = dataclasses.replace(PROJECT, databases={"default": database, "other": database})
        bare = {"statement_timeout": 0}
        found = doctor.diagnose(
            two, [facts(timeouts=bare), dataclasses.replace(facts(timeouts=bare), alias="other")], TODAY
        )
        assert [finding.id for finding in found] == [
            "pool-and-conn-max-age",
            "no-statement-timeout",
            "no-health-checks",
        ]
        assert {finding.aliases for finding in found} == {("default", "other")}

    def test_idle_transactions_are_told_once_for_a_database_and_ended_by_an_alias_of_it(self) -> None:
        names = ["default", "other", "my reports", "same"]
        asked = dataclasses.replace(PROJECT, databases=dict.fromkeys(names, ALIAS), processes=1)
        reports = IDENTITY._replace(database="reports")
        activity = server.Activity([IDLE], hidden=0, others=0)
        found = [
            dataclasses.replace(facts(activity=activity), alias=name, identity=identity)
            for name, identity in zip(names, [IDENTITY, IDENTITY, reports, reports], strict=True)
        ]
        told = {each.aliases: each.remedy for each in doctor.diagnose(asked, found, TODAY)}
        assert told == {
            ("default", "other"): "Look with: manage.py connections status. End them with: "
            "manage.py connections terminate --idle-in-transaction 5.",
            ("my reports", "same"): "Look with: manage.py connections status --database 'my reports'. End them with: "
            "manage.py connections terminate --database 'my reports' --idle-in-transaction 5.",
        }

    def test_what_a_failed_transaction_holds_is_not_said_to_be_its_locks(self) -> None:
        failed = dataclasses.replace(IDLE, pid=8, state=server.ABORTED)
        holding = f"They hold their locks and hold back vacuum: pid {IDLE.pid} ({IDLE.in_state:.0f} s)."
        of_failed = f"Failed, they hold what is from before a savepoint, if any: pid 8 ({IDLE.in_state:.0f} s)."
        limit = "The limit is 5 s, as IDLE_IN_TRANSACTION_AFTER has it."
        for sessions, why in (
            ([failed, IDLE], f"{holding} {of_failed} {limit}"),
            ([failed], f"{of_failed} {limit}"),
            ([IDLE], f"{holding} {limit}"),
        ):
            [found] = doctor.diagnose(PROJECT, [facts(activity=server.Activity(sessions, hidden=0, others=0))], TODAY)
            assert (found.id, found.why) == ("idle-in-transaction-now", why)

    def test_what_could_not_be_asked_is_said(self) -> None:
        assert diagnosed(PROJECT, Facts("default", failures=("no route",))) == {"not-asked": Level.ERROR}
        assert diagnosed(PROJECT, facts(timeouts=None, failures=("no",))) == {"not-asked": Level.NOTE}

    @pytest.mark.parametrize(
        "words",
        [
            "sorry, too many clients already",
            "remaining connection slots are reserved for non-replication superuser connections",
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            'too many connections for role "app"',
        ],
    )
    def test_of_a_full_server_it_says_what_fills_it_and_who_can_end_that(self, words: str) -> None:
        at_home, elsewhere = {**ALIAS, "HOST": "db", "PORT": ""}, {**ALIAS, "HOST": "other", "PORT": ""}
        asked = dataclasses.replace(PROJECT, databases={"default": at_home, "same": at_home, "other": elsewhere})
        full = [Facts(alias, failures=(f"FATAL: {words}",)) for alias in ("default", "same")]
        found = [*full, Facts("other", failures=("no route",))]
        first, other = [each for each in doctor.diagnose(asked, found, TODAY) if each.id == "not-asked"]
        assert (first.aliases, first.level) == (("default", "same"), Level.ERROR)
        assert first.what == "The server has no connection left, not even for this command."
        assert first.why == f"FATAL: {words}; 4 processes times 8 of 'default' + 8 of 'same' make 64 by the settings"
        assert "End sessions as a superuser" in first.remedy
        assert first.docs.endswith("doctor.rst#too-many-connections")
        assert (other.aliases, other.why) == (("other",), "no route")
        [alone] = doctor.diagnose(dataclasses.replace(asked, processes=None), full[:1], TODAY)
        assert alone.why.endswith(
            "; 1 process times 8 of 'default' make 8 by the settings, and --processes N says for how many processes"
        )

    @pytest.mark.parametrize(
        ("words", "what", "remedy"),
        [
            ('password authentication failed for user "app"', "the password", "Mend PASSWORD "),
            ("fe_sendauth: no password supplied", "the password", "Mend PASSWORD "),
            ('role "app" does not exist', "the role", "Mend USER "),
            ('role "app" is not permitted to log in', "the role", "Mend USER "),
        ],
    )
    def test_who_is_not_let_in_is_told_what_to_mend(self, words: str, what: str, remedy: str) -> None:
        [found] = doctor.diagnose(PROJECT, [Facts("default", failures=(f"FATAL: {words}",))], TODAY)
        assert found.what == f"The server refuses {what} in DATABASES."
        assert remedy in found.remedy


def followed(pool: Any, remedy: str) -> dict[str, int]:
    """Return *pool* as somebody writes it who does what *remedy* says."""
    found = re.search(r"[Ll]ower (max_size)(?: and (min_size)[^;,]*?)? to (\d+) at most", remedy)
    assert found, remedy
    return {**(pool if isinstance(pool, dict) else {}), **{name: int(found[3]) for name in found.groups()[:2] if name}}


# What is right in transaction mode, so that only what is looked at is found.
POOLED = {"DISABLE_SERVER_SIDE_CURSORS": True, "CONN_HEALTH_CHECKS": False}


class TestFleets:
    @pytest.mark.parametrize(
        ("options", "names", "expected"),
        [
            ({}, ["shop@a:1", "shop@a:2", "shop@b:1", "shop@b:1/other"], "3 processes times 8 of 'default' make 24"),
            (
                {"hosts": 3},
                ["shop@a:1", "shop@a:2", "shop@b:1"],
                "3 hosts times 2 processes times 8 of 'default' make 48",
            ),
            ({"hosts": 3}, [], "3 hosts times 1 process times 8 of 'default' make 24"),
            ({"hosts": 3, "processes": 5}, ["shop@a:1"], "3 hosts times 5 processes times 8 of 'default' make 120"),
            ({"processes": 5}, ["shop@a:1", "shop@a:2"], "5 processes times 8 of 'default' make 40"),
            # Neither the sessions of another project nor those without a name are of a process of this one.
            ({}, ["blog@a:1", "shop@a:1", "shop@a:2", "psql", ""], "2 processes times 8 of 'default' make 16"),
        ],
    )
    def test_the_processes_are_those_that_are_said_or_else_seen(
        self, options: dict[str, int], names: list[str], expected: str
    ) -> None:
        values: dict[str, Any] = {"processes": None, **options}
        asked = dataclasses.replace(PROJECT, **values)
        findings = doctor.diagnose(asked, [facts(activity=named(*names), role_limit=0)], TODAY)
        [found] = [each for each in findings if each.id == "connection-limit"]
        assert found.why.startswith(f"{expected}. ")

    @pytest.mark.parametrize(
        ("options", "names", "expected"),
        [
            ({}, ["shop@a:1"], {"processes-seen"}),
            ({"hosts": 2}, ["shop@a:1"], {"processes-seen"}),
            ({}, ["blog@a:1"], {"processes-unknown"}),
            ({"hosts": 2}, [], {"processes-unknown"}),
            ({"processes": 2}, ["shop@a:1"], set()),
        ],
    )
    def test_it_says_which_number_nobody_gave(
        self, options: dict[str, int], names: list[str], expected: set[str]
    ) -> None:
        values: dict[str, Any] = {"processes": None, **options}
        asked = dataclasses.replace(PROJECT, **values)
        assert set(diagnosed(asked, facts(activity=named(*names)))) == expected

    @pytest.mark.parametrize(
        ("of_project", "of_facts", "expected"),
        [
            (
                {"processes": 13},
                {},
                "Lower max_size to 7 at most, which giving back between queries allows, or run fewer processes; or "
                "raise max_connections to 107.",
            ),
            (
                {"processes": 12},
                {"foreign_sessions": 10},
                "Lower max_size to 7 at most, which giving back between queries allows, or run fewer processes; or "
                "raise max_connections to 109.",
            ),
            (
                {"processes": 12, "threads": 9, "OPTIONS": NO_POOL},
                {},
                "Have a pool of 8 at most in each process, or run fewer processes; or raise max_connections to 111.",
            ),
            (
                {"processes": 98},
                {},
                "Put PgBouncer in transaction mode in between, since that is not even one for each process, or run "
                "fewer processes; or raise max_connections to 787.",
            ),
            (
                {"processes": 4},
                {"role_limit": 20},
                "Lower max_size to 5 at most, which giving back between queries allows, or run fewer processes; or "
                "raise the role's CONNECTION LIMIT to 32.",
            ),
        ],
    )
    def test_it_says_what_to_set_and_that_is_enough(
        self, of_project: dict[str, Any], of_facts: dict[str, Any], expected: str
    ) -> None:
        [found] = doctor.diagnose(project(**of_project), [facts(**of_facts)], TODAY)
        assert found.remedy == expected

    @pytest.mark.parametrize("through", [{}, {"max_client_conn": 8}, {"mode": "session", "pool_size": 3}], ids=str)
    @pytest.mark.parametrize(
        "pool",
        [True, {"max_size": 8}, {"min_size": 3}, {"min_size": 4, "max_size": 8}, {"min_size": 0, "max_size": 8}],
        ids=str,
    )
    def test_a_pool_can_be_made_as_it_says(
        self, pool: Any, through: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And then it is enough."""
        found = bounced(**through) if through else facts(role_limit=8)
        asked = {**POOLED, "processes": 4, "OPTIONS": {"pool": pool}}
        sums = {"connection-limit", "too-many-clients", "session-pool-too-small"}
        [finding] = [each for each in doctor.diagnose(project(**asked), [found], TODAY) if each.id in sums]
        lowered = followed(pool, finding.remedy)
        assert lowered["max_size"] == 2
        monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "pool", lowered)
        assert list(written.refusals("default")) == []
        assert not sums & diagnosed(project(**{**asked, "OPTIONS": {"pool": lowered}}), found).keys()

    @pytest.mark.parametrize(
        ("aliases", "limit", "expected"),
        [
            (1, 16, "Have a pool of 4 at most in each process, or"),
            (1, 8, "Have a pool of 2 at most in each process, with a min_size of 2 at most, or"),
            (2, 8, "Have a pool of 1 at most for each alias in each process, with a min_size of 1 at most, or"),
        ],
    )
    def test_a_pool_that_is_not_there_yet_can_be_made_as_well(self, aliases: int, limit: int, expected: str) -> None:
        names = ["default", "other"][:aliases]
        databases = {name: {**ALIAS, "OPTIONS": NO_POOL} for name in names}
        asked = dataclasses.replace(PROJECT, databases=databases, processes=4)
        found = [dataclasses.replace(facts(role_limit=limit), alias=name) for name in names]
        [finding] = [each for each in doctor.diagnose(asked, found, TODAY) if each.id == "connection-limit"]
        assert finding.remedy.startswith(expected)

    def test_what_the_project_has_open_itself_is_nobody_else_s(self) -> None:
        """For each alias, the sessions of the other are among those of other roles and databases."""
        two = dataclasses.replace(PROJECT, databases={"default": ALIAS, "other": ALIAS}, processes=6)
        default = facts(activity=named(*["shop@a:1"] * 30), foreign_sessions=40)
        other = dataclasses.replace(
            facts(activity=named(*["shop@a:1"] * 39), foreign_sessions=31),
            alias="other",
            identity=IDENTITY._replace(database="other"),
        )
        # 96 of 97, beside one that is somebody else's.
        assert diagnosed(two, default, other) == {}
        one_more = dataclasses.replace(default, limits=dataclasses.replace(LIMITS, foreign_sessions=41))
        assert diagnosed(two, one_more, other) == {"too-many-connections": Level.WARNING}


class TestThroughPgBouncer:
    @pytest.mark.parametrize(
        ("of_project", "of_facts", "bouncer", "expected"),
        [
            ({}, {}, {}, {}),
            # Its clients: 4 times 8.
            ({}, {}, {"max_client_conn": 32}, {}),
            ({}, {}, {"max_client_conn": 31}, {"too-many-clients": Level.ERROR}),
            ({"hosts": 4}, {}, {"max_client_conn": 127}, {"too-many-clients": Level.ERROR}),
            ({"processes": 1000}, {}, {"max_client_conn": 0}, {}),
            # Its pool: 25 for the server, of 97.
            ({"processes": 12}, {"role_limit": 25}, {}, {}),
            ({}, {"role_limit": 24}, {}, {"connection-limit": Level.ERROR}),
            ({}, {"database_limit": 24}, {}, {"connection-limit": Level.ERROR}),
            ({}, {"role_limit": 24}, {"max_db_connections": 24}, {}),
            ({}, {"role_limit": 24}, {"max_user_connections": 24}, {}),
            ({}, {}, {"pool_size": 93}, {"too-many-connections": Level.ERROR}),
            ({}, {"foreign_sessions": 73}, {}, {"too-many-connections": Level.WARNING}),
            ({}, {"foreign_sessions": 72}, {}, {}),
            # Each connection keeps a session in session mode.
            ({"processes": 3}, {}, {"mode": "session"}, {}),
            ({}, {}, {"mode": "session"}, {"session-pool-too-small": Level.ERROR}),
            ({"processes": 3}, {}, {"mode": "session", "reset_query": ""}, {"no-reset-query": Level.WARNING}),
            # What PgBouncer says goes over what was tried.
            ({"processes": 3, "DISABLE_SERVER_SIDE_CURSORS": False}, {}, {"mode": "session"}, {}),
            ({}, {"pooler": Pooler.SESSION}, {"mode": "statement"}, {"statement-mode": Level.ERROR}),
            (
                {"DISABLE_SERVER_SIDE_CURSORS": False},
                {"pooler": Pooler.SESSION},
                {},
                {"server-side-cursors-behind-pooler": Level.ERROR},
            ),
            # Prepared statements.
            (
                {"OPTIONS": {"pool": {"max_size": 8}, "prepare_threshold": 5}},
                {},
                {},
                {"prepared-statements-behind-pooler": Level.WARNING},
            ),
            ({"OPTIONS": {"pool": {"max_size": 8}, "prepare_threshold": 5}}, {}, {"max_prepared_statements": 100}, {}),
            (
                {"OPTIONS": {"pool": {"max_size": 8}, "prepare_threshold": 5}},
                {},
                {"max_prepared_statements": 100, "version": (1, 21)},
                {"prepared-statements-behind-pooler": Level.WARNING},
            ),
            # It is a pool itself.
            ({"OPTIONS": NO_POOL}, {"pooled": False}, {}, {}),
            # Whom it has wait.
            ({}, {}, {"waiting": 3, "longest_wait": 7}, {"clients-wait": Level.WARNING}),
            ({}, {}, {"query_wait_timeout": 0}, {"no-query-wait-timeout": Level.WARNING}),
            # Checks that check another session.
            ({"CONN_HEALTH_CHECKS": True}, {}, {}, {"health-checks-behind-pooler": Level.NOTE}),
            ({"CONN_HEALTH_CHECKS": True, "OPTIONS": NO_POOL}, {}, {}, {}),
            ({"CONN_HEALTH_CHECKS": True, "processes": 3}, {}, {"mode": "session"}, {}),
            ({"processes": 3}, {}, {"mode": "session", "x": 0}, {"no-health-checks": Level.NOTE}),
            # Timeouts, its own and the server's.
            (
                {},
                {"timeouts": NO_TIMEOUTS},
                {},
                {"no-statement-timeout": Level.WARNING, "no-idle-in-transaction-timeout": Level.WARNING},
            ),
            ({}, {"timeouts": NO_TIMEOUTS}, {"query_timeout": 30, "idle_transaction_timeout": 60}, {}),
            ({"session_timeouts": {"default": TIMEOUTS}}, {}, {}, {}),
            (
                {"session_timeouts": {"default": TIMEOUTS}},
                {"timeouts": NO_TIMEOUTS},
                {},
                {"options-dropped": Level.WARNING},
            ),
            (
                {"session_timeouts": {"default": {"statement_timeout": 20}}},
                {},
                {},
                {"options-dropped": Level.WARNING},
            ),
            (
                {
                    "session_timeouts": {"default": {"statement_timeout": 20}},
                    "timeouts_written": {"default": {"statement_timeout": OF_OPTIONS}},
                },
                {},
                {},
                {},
            ),
            (
                {"session_timeouts": {"default": TIMEOUTS}},
                {"timeouts": NO_TIMEOUTS, "options_refused": "no"},
                {},
                {"options-refused": Level.ERROR},
            ),
            (
                {},
                {"timeouts": {"statement_timeout": 1, "idle_session_timeout": 1000}},
                {},
                {"idle-session-timeout-behind-pooler": Level.WARNING},
            ),
            # What functions and policies do.
            (
                {},
                {"catalogue": TENANT},
                {},
                {"settings-behind-pooler": Level.WARNING, "state-behind-pooler": Level.WARNING},
            ),
            (
                {"followed_settings": frozenset(), "clean_sessions": "always"},
                {"catalogue": TENANT},
                {"resets_always": True},
                {"settings-behind-pooler": Level.WARNING},
            ),
            (
                {"processes": 3},
                {"catalogue": TENANT},
                {"mode": "session"},
                {"settings-follow": Level.NOTE, "sessions-cleaned": Level.NOTE},
            ),
        ],
    )
    def test_each_finding(
        self,
        of_project: dict[str, Any],
        of_facts: dict[str, Any],
        bouncer: dict[str, Any],
        expected: dict[str, Level],
    ) -> None:
        checked = {"CONN_HEALTH_CHECKS": bouncer.get("mode") == "session" and "x" not in bouncer}
        bouncer.pop("x", None)
        asked = project(**{**POOLED, **checked, **of_project})
        found = diagnosed(asked, bounced(of_facts, **bouncer))
        assert found.pop("pooler") is Level.NOTE
        assert found == expected

    def test_its_pools_and_what_leads_to_the_server_directly_are_added_up(self) -> None:
        two = dataclasses.replace(PROJECT, databases={"default": {**ALIAS, **POOLED}, "other": ALIAS}, processes=9)
        direct = dataclasses.replace(FACTS, alias="other", identity=IDENTITY._replace(database="other"))
        assert "too-many-connections" not in diagnosed(two, bounced(), direct)
        [found, *_] = doctor.diagnose(two, [bounced(reserve=6), direct], TODAY)
        assert found.aliases == ("default", "other")
        assert found.why.startswith(
            "9 processes times 8 of 'other' make 72, and PgBouncer's pools have 26 for 'app' in 'shop'; max_connections"
        )
        assert found.remedy == (
            "Lower max_size to 7 at most, which giving back between queries allows, or run fewer processes, or lower "
            "PgBouncer's pool_size to 25 at most; or raise max_connections to 101."
        )

    def test_aliases_that_share_a_pool_have_it_once(self) -> None:
        both = {"default": {**ALIAS, **POOLED}, "other": {**ALIAS, **POOLED}}
        two = dataclasses.replace(PROJECT, databases=both, processes=6)
        other = dataclasses.replace(bounced({"role_limit": 25}), alias="other")
        assert diagnosed(two, bounced({"role_limit": 25}), other) == {"pooler": Level.NOTE}
        # But they have twice the clients: 96.
        assert "too-many-clients" in diagnosed(two, bounced(max_client_conn=95), other)

    def test_the_processes_are_those_of_its_clients(self) -> None:
        """On the server a session has the name of whoever had it last."""
        asked = dataclasses.replace(project(**POOLED), processes=None)
        fact = bounced({"activity": named("shop@a:1")}, clients=("shop@a:1", "shop@a:2", "psql"), max_client_conn=15)
        [found, *_] = doctor.diagnose(asked, [fact], TODAY)
        assert found.why.startswith("2 processes times 8 of 'default' make 16. ")

    @pytest.mark.parametrize("of_pooler", [{"pgbouncer": BOUNCER}, {}])
    @pytest.mark.parametrize("pooler", [Pooler.TRANSACTION, Pooler.SESSION])
    @pytest.mark.parametrize("refused", [None, "FATAL: unsupported startup parameter: options"])
    def test_nothing_is_recommended_that_a_pooler_refuses_or_gives_to_others(
        self, of_pooler: dict[str, Any], pooler: Pooler, refused: str | None
    ) -> None:
        if of_pooler:
            of_pooler = {"pgbouncer": dataclasses.replace(BOUNCER, mode=pooler.value)}
        everything = facts(
            pooler=pooler,
            **of_pooler,
            timeouts=NO_TIMEOUTS,
            catalogue=TENANT,
            options_refused=refused,
            activity=server.Activity([IDLE], hidden=1, others=0),
            role_limit=1,
        )
        asked = project(
            CONN_HEALTH_CHECKS=False,
            ATOMIC_REQUESTS=True,
            OPTIONS={"pool": True, "prepare_threshold": 5},
            followed_settings=frozenset(),
            clean_sessions="seen",
            processes=None,
        )
        findings = doctor.diagnose(asked, [everything], TODAY)
        advice = " ".join(found.remedy for found in findings)
        assert "ALTER ROLE app SET statement_timeout = '30s';" in advice
        assert "ALTER ROLE app SET idle_in_transaction_session_timeout = '60s';" in advice
        assert "SESSION_TIMEOUTS" not in advice
        if pooler is Pooler.TRANSACTION:
            for name in ("FOLLOWED_SETTINGS", "CLEAN_SESSIONS", "CONN_HEALTH_CHECKS"):
                assert name not in advice

    @pytest.mark.parametrize(
        ("timeouts", "expected"),
        [
            (
                {"statement_timeout": 0.25, "lock_timeout": 5},
                """ALTER ROLE app SET statement_timeout = '250ms'; ALTER ROLE app SET lock_timeout = '5s';""",
            ),
            (
                {"idle_session_timeout": 5},
                'add "idle_session_timeout": None to CONN_HYGIENE["SESSION_TIMEOUTS"]["default"], a dict.',
            ),
            ({}, "ALTER ROLE ... SET, or ALTER DATABASE ... SET."),
        ],
    )
    def test_what_to_do_instead_of_options(self, timeouts: dict[str, float], expected: str) -> None:
        asked = project(**POOLED, session_timeouts={"default": timeouts})
        [found, *_] = doctor.diagnose(asked, [bounced({"options_refused": "FATAL: no"})], TODAY)
        assert found.id == "options-refused"
        assert found.remedy.endswith(expected)

    def test_a_role_is_quoted_where_it_must_be(self) -> None:
        fact = bounced({"identity": IDENTITY._replace(role='My "app"'), "timeouts": {"statement_timeout": 0}})
        found = doctor.diagnose(project(**POOLED), [fact], TODAY)
        assert 'ALTER ROLE "My ""app""" SET statement_timeout' in found[0].remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FATAL:  unsupported startup parameter: options", True),
        ("FATAL:  unsupported startup parameter in options: statement_timeout", True),
        ("FATAL:  unsupported options startup parameter: only '-c config=val' is allowed", True),
        ("FATAL:  Feature not supported: RDS Proxy currently doesn\u2019t support command-line options.", True),
        ("FATAL:  unsupported startup parameter: replication", False),
        ('FATAL:  unrecognized configuration parameter "options"', False),
    ],
)
def test_who_refuses_options_is_known_by_its_words(text: str, expected: bool) -> None:
    assert pooler.refuses_options(psycopg.OperationalError(text)) is expected


# ##### On a server #####

APP = "conn_hygiene_patient"

NO_TIMEOUT_FINDINGS = ("no-statement-timeout", "no-idle-in-transaction-timeout")


def run_doctor(*arguments: str) -> dict[str, dict[str, Any]]:
    """Return the findings of the alias "unpooled", by id."""
    out = io.StringIO()
    arguments = ("--database", "unpooled", "--fail-level", "error", "--format", "json", *arguments)
    with suppress(CommandError):
        call_command("connections", "doctor", *arguments, stdout=out)
    return {finding["id"]: finding for finding in json.loads(out.getvalue())["findings"]}


@pytest.fixture
def role(admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have the alias "unpooled" connect as a role that may do nothing."""
    admin.execute(f"CREATE ROLE {APP} LOGIN PASSWORD 'conn_hygiene' CONNECTION LIMIT 20")
    for name, value in (("USER", APP), ("PASSWORD", "conn_hygiene")):
        monkeypatch.setitem(connections["unpooled"].settings_dict, name, value)
    yield APP
    admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", [APP])
    admin.execute(f"DROP ROLE {APP}")


class TestOnAServer:
    def test_its_limits_are_compared(self, role: str) -> None:
        assert "connection-limit" not in run_doctor("--processes", "5", "--threads", "4")
        found = run_doctor("--processes", "7", "--threads", "3")["connection-limit"]
        assert found["level"] == "error"
        assert found["what"] == f"The project may open 21 connections, and the role '{role}' is limited to 20."
        assert run_doctor("--processes", "10000")["too-many-connections"]["level"] == "error"

    @pytest.mark.parametrize("pool", [5, {"max": 5}, {"min_size": "2"}, {"min_size": 5, "max_size": 2}], ids=str)
    def test_a_pool_that_cannot_be_made_is_an_error(self, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        options = connections["unpooled"].settings_dict["OPTIONS"]
        monkeypatch.setitem(connections["unpooled"].settings_dict, "OPTIONS", {**options, "pool": pool})
        found = run_doctor("--processes", "2", "--threads", "2")
        assert found["pool-refused"]["level"] == "error"
        [refusal] = written.refusals("unpooled")
        assert found["pool-refused"]["what"] == f"There is a pool {refusal.what}."
        assert "pool-without-sizes" not in found

    def test_timeouts_are_those_of_the_roles_own_sessions(self, role: str, admin: psycopg.Connection) -> None:
        before = run_doctor().keys()
        admin.execute(f"ALTER ROLE {role} SET statement_timeout = '30s'")
        assert before - run_doctor().keys() == {"no-statement-timeout"}

    def test_what_it_says_of_one_timeout_leaves_what_it_says_of_another_and_what_was_there(self, role: str) -> None:
        values: dict[str, Any] = {"SESSION_TIMEOUTS": {"lock_timeout": 5}, "RELEASE_AFTER": 0.01}
        advised = [run_doctor()[name]["remedy"] for name in NO_TIMEOUT_FINDINGS]
        assert advised == [
            'Set it for all sessions: add "statement_timeout": 30 to CONN_HYGIENE["SESSION_TIMEOUTS"], a dict.',
            'Set it for all sessions: add "idle_in_transaction_session_timeout": 60 to '
            'CONN_HYGIENE["SESSION_TIMEOUTS"], a dict.',
        ]
        for text in advised:
            [(entry, key)] = re.findall(r'add (".*) to CONN_HYGIENE\["(\w+)"\], a dict\.', text)
            values[key].update(ast.literal_eval(f"{{{entry}}}"))
        assert values == {"SESSION_TIMEOUTS": {"lock_timeout": 5, **TIMEOUTS}, "RELEASE_AFTER": 0.01}
        with override_settings(CONN_HYGIENE=values):
            connections["unpooled"].close()
            assert not {*NO_TIMEOUT_FINDINGS} & run_doctor().keys()

    def test_timeouts_of_the_settings_count(self, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
        options = connections["unpooled"].settings_dict["OPTIONS"]
        monkeypatch.setitem(
            connections["unpooled"].settings_dict,
            "OPTIONS",
            {**options, "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=60s"},
        )
        assert not {*NO_TIMEOUT_FINDINGS} & run_doctor().keys()

    @pytest.mark.parametrize(
        ("timeouts", "options", "level", "remedy"),
        [
            (
                {"statement_timeout": 30, "unpooled": {"statement_timeout": 0}},
                {},
                "note",
                'If that is not on purpose, have "statement_timeout" be 30 in '
                'CONN_HYGIENE["SESSION_TIMEOUTS"]["unpooled"], where it is switched off.',
            ),
            (
                {"statement_timeout": 30, "unpooled": {"statement_timeout": None}},
                {},
                "note",
                'If that is not on purpose, have "statement_timeout" be 30 in '
                'CONN_HYGIENE["SESSION_TIMEOUTS"]["unpooled"], where it is switched off.',
            ),
            (
                {"statement_timeout": 0},
                {},
                "note",
                'If that is not on purpose, have "statement_timeout" be 30 in CONN_HYGIENE["SESSION_TIMEOUTS"], where '
                "it is switched off.",
            ),
            (
                {"statement_timeout": 30},
                {"options": "--statement-timeout=0"},
                "note",
                'Write "-c statement_timeout=30s" into OPTIONS["options"] for what is there, which wins over '
                "SESSION_TIMEOUTS.",
            ),
        ],
    )
    def test_what_wins_over_a_timeout_is_named(
        self,
        timeouts: dict[str, Any],
        options: dict[str, Any],
        level: str,
        remedy: str,
        configured: Callable[..., None],
    ) -> None:
        configured(OPTIONS=options)
        with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": timeouts}):
            found = run_doctor()["no-statement-timeout"]
        assert (found["level"], found["remedy"]) == (level, remedy)

    def test_a_timeout_of_the_environment_is_named(
        self, configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=0")
        configured()
        with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"statement_timeout": 30}}):
            found = run_doctor()["no-statement-timeout"]
        assert found["level"] == "warning"
        assert "into PGOPTIONS for what is there" in found["remedy"]

    def test_a_timeout_that_a_receiver_takes_away_is_not_asked_for_again(self, configured: Callable[..., None]) -> None:
        def take_away(connection: Any, **kwargs: Any) -> None:
            if connection.alias == "unpooled":
                connection.cursor().execute("SET statement_timeout = 0")

        configured()
        connection_created.connect(take_away)
        try:
            with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"statement_timeout": 30}}):
                found = run_doctor()["no-statement-timeout"]
        finally:
            connection_created.disconnect(take_away)
        assert found["level"] == "warning"
        assert found["remedy"].startswith('It is in CONN_HYGIENE["SESSION_TIMEOUTS"]: leave it alone')

    @pytest.mark.parametrize(
        ("of_facts", "level"),
        [({}, Level.NOTE), ({"pooler": Pooler.TRANSACTION}, Level.WARNING), ({"options_refused": "no"}, Level.WARNING)],
        ids=["direct", "pooler", "refused"],
    )
    def test_what_somebody_has_written_is_a_note_unless_a_pooler_may_keep_it_off(
        self, of_facts: dict[str, Any], level: Level
    ) -> None:
        written = {"default": {"statement_timeout": 'OPTIONS["options"]'}}
        asked = dataclasses.replace(PROJECT, timeouts_written=written)
        found = doctor.diagnose(asked, [facts(timeouts={"statement_timeout": 0}, **of_facts)], TODAY)
        assert [each.level for each in found if each.id == "no-statement-timeout"] == [level]

    def test_a_service_that_keeps_timeouts_from_being_set_is_named(self) -> None:
        of_service = {"default": {"statement_timeout": 'OPTIONS["service"]'}}
        asked = dataclasses.replace(PROJECT, timeouts_written=of_service)
        [found] = doctor.diagnose(asked, [facts(timeouts={"statement_timeout": 0})], TODAY)
        assert found.level is Level.WARNING
        assert found.remedy == (
            'Write the options of the alias\'s service into OPTIONS["options"], or "" if it has none; then add '
            '"statement_timeout": 30 to CONN_HYGIENE["SESSION_TIMEOUTS"], a dict.'
        )

    def test_a_session_that_is_idle_in_transaction_is_named(self, role: str) -> None:
        with (
            override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_AFTER": 0.001}),
            server.connect("unpooled") as connection,
        ):
            connection.execute("SET application_name = 'shop'; BEGIN")
            found = run_doctor()["idle-in-transaction-now"]
            assert str(connection.info.backend_pid) in found["why"]
            # That command would end it.
            assert found["remedy"].endswith(
                "manage.py connections terminate --database unpooled --idle-in-transaction 0.001."
            )
            terminating = found["remedy"].rpartition("manage.py ")[2].removesuffix(".").split()
            out = io.StringIO()
            call_command(*terminating, "--dry-run", stdout=out)
            assert str(connection.info.backend_pid) in out.getvalue()

    def test_functions_are_read(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute(
            "CREATE FUNCTION become(t text) RETURNS text LANGUAGE sql AS $$SELECT set_config('app.t', t, false)$$"
        )
        try:
            found = run_doctor()
            assert found["settings-follow"]["why"] == "app.t: function public.become sets it."
            assert found["settings-follow"]["what"] == (
                "Settings that policies or functions use go with a request to its next session: app.t."
            )
            assert found["sessions-cleaned"]["why"].startswith(
                "Something may stay in a session that its statements do not show: function public.become (SET app.t). "
            )
            with override_settings(CONN_HYGIENE={"FOLLOWED_SETTINGS": ["App.T"], "CLEAN_SESSIONS": "always"}):
                assert not {"settings-not-followed", "settings-follow", "sessions-cleaned"} & run_doctor().keys()
            with override_settings(CONN_HYGIENE={"FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "seen"}):
                found = run_doctor()
            assert found["settings-not-followed"]["what"] == "FOLLOWED_SETTINGS lacks app.t."
            assert found["sessions-not-cleaned"]["level"] == "warning"
        finally:
            admin.execute("DROP FUNCTION become")

    def test_a_catalogue_that_cannot_be_read_is_said(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute("REVOKE SELECT ON pg_catalog.pg_policy FROM public")
        try:
            assert "functions and policies" in run_doctor()["not-asked"]["why"]
        finally:
            admin.execute("GRANT SELECT ON pg_catalog.pg_policy TO public")

    def test_a_server_that_cannot_be_asked_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "NAME", "conn_hygiene_no_such_database")
        found = run_doctor()
        assert found["not-asked"]["level"] == "error"
        assert "conn_hygiene_no_such_database" in found["not-asked"]["why"]
        assert found["not-asked"]["remedy"].endswith(" Run the command again where it can be asked.")

    def test_a_server_that_is_full_for_the_role_says_so(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
        found = run_doctor("--processes", "5", "--threads", "4")["not-asked"]
        assert found["what"] == "The server has no connection left, not even for this command."
        assert found["why"].endswith("; 5 processes times 4 of 'unpooled' make 20 by the settings")

    @pytest.mark.parametrize("savepoint", [False, True])
    def test_a_failed_transaction_holds_what_is_from_before_its_savepoint(
        self, savepoint: bool, role: str, admin: psycopg.Connection
    ) -> None:
        with server.connect("unpooled", application_name="shop") as failed:
            failed.execute("BEGIN")
            failed.execute("SELECT pg_advisory_xact_lock(4711)")
            if savepoint:
                failed.execute("SAVEPOINT s")
            with pytest.raises(psycopg.errors.DivisionByZero):
                failed.execute("SELECT 1 / 0")
            pid = failed.info.backend_pid
            locks = admin.execute("SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory'", [pid])
            assert locks.fetchone() == (int(savepoint),)
            with override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_AFTER": 0.001}):
                why = run_doctor()["idle-in-transaction-now"]["why"]
        assert why.startswith(f"Failed, they hold what is from before a savepoint, if any: pid {pid} (")

    def test_a_role_that_may_not_log_in_is_named(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute(f"ALTER ROLE {role} NOLOGIN")
        assert run_doctor()["not-asked"]["what"] == "The server refuses the role in DATABASES."

    def test_an_alias_that_nobody_can_connect_to_is_an_error(self, misconfigured: str) -> None:
        """And the others are looked at."""
        out = io.StringIO()
        with pytest.raises(CommandError, match="of level error"):
            call_command("connections", "doctor", "--format", "json", stdout=out)
        found = {finding["id"]: finding for finding in json.loads(out.getvalue())["findings"]}
        assert found["not-asked"]["aliases"] == ["unpooled"]
        assert misconfigured in found["not-asked"]["why"]
        # A port is libpq's to read, as it connects.
        again = (
            "Run the command again where it can be asked."
            if misconfigured == "abc"
            else "Mend the setting named above."
        )
        assert found["not-asked"]["remedy"].endswith(again)
        assert "default" in found["no-statement-timeout"]["aliases"]

    @pytest.mark.parametrize("options", [None, []], ids=str)
    def test_options_that_are_no_dict_are_an_error(self, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "OPTIONS", options)
        monkeypatch.setitem(connections["unpooled"].settings_dict, "ATOMIC_REQUESTS", True)
        assert run_doctor()["not-asked"]["aliases"] == ["unpooled"]

    def test_what_only_django_refuses_is_said(self, configured: Callable[..., None]) -> None:
        configured(OPTIONS={"isolation_level": 9})
        assert "Invalid transaction isolation level 9" in run_doctor()["not-asked"]["why"]

    @pytest.mark.parametrize("middleware", ["tests.test_checks.Made", "tests.test_checks.Unscoped"])
    def test_a_middleware_of_the_sites_own_is_seen_in_the_settings(self, middleware: str) -> None:
        with override_settings(MIDDLEWARE=None):
            assert "toolkit-not-in-use" in run_doctor()
        with override_settings(MIDDLEWARE=[middleware]):
            assert ("toolkit-not-in-use" in run_doctor()) is middleware.endswith("Unscoped")

    def test_what_is_wrong_with_the_setting_is_an_error(self) -> None:
        assert "setting-ignored" not in run_doctor()
        for value, message, hint in (
            ({"RELEASE_AFTR": 3}, "CONN_HYGIENE has an unknown key 'RELEASE_AFTR'.", "Did you mean 'RELEASE_AFTER'?"),
            ([], "CONN_HYGIENE is list, not a dict.", 'Write CONN_HYGIENE = {"RELEASE": "scoped"}, for example.'),
        ):
            with override_settings(CONN_HYGIENE=value):
                found = run_doctor()["setting-ignored"]
            assert (found["level"], found["what"], found["remedy"]) == ("error", message, hint)

    def test_asgi_is_seen_in_the_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "CONN_MAX_AGE", 60)
        assert "conn-max-age-under-asgi" not in run_doctor()
        with override_settings(ASGI_APPLICATION="site.asgi.application"):
            assert "conn-max-age-under-asgi" in run_doctor()

    def test_the_exit_code_follows_the_level(self) -> None:
        out = io.StringIO()
        arguments = ["connections", "doctor", "--processes", "1", "--threads", "1"]
        call_command(*arguments, stdout=out)
        assert "WARNING default, small, unpooled, persistent: No statement_timeout is in effect." in out.getvalue()
        assert f"Read: {ROOT}/docs/how-to/guard-rails.rst" in out.getvalue()
        with pytest.raises(CommandError, match="of level warning or above") as caught:
            call_command(*arguments, "--fail-level", "warning", stdout=out)
        assert caught.value.returncode == 1

    def test_its_help_says_of_what_a_number_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            call_command("connections", "doctor", "--help")
        said = " ".join(capsys.readouterr().out.split())
        assert "How many processes use the databases: in all; with --hosts, on each of them." in said

    def test_it_opens_no_pool(self) -> None:
        connections["default"].close_pool()
        call_command("connections", "doctor", stdout=io.StringIO())
        assert "default" not in connections["default"]._connection_pools


# ##### Behind PgBouncer #####

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@contextmanager
def running(
    directory: Path, mode: str, pool_size: int = 5, as_role: str | None = None, **settings: Any
) -> Iterator[int]:
    """Run PgBouncer in front of the tests' server, into which it logs in *as_role*; yield its port."""
    assert PGBOUNCER is not None
    target = {**connections["default"].get_connection_params()}
    if as_role is not None:
        target |= {"user": as_role, "password": "conn_hygiene"}
    names = {"host": "host", "port": "port", "user": "user", "password": "password"}
    where = " ".join(f"{name}={target[key]}" for name, key in names.items() if target.get(key))
    port = free_port()
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = {where}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = {pool_size}\n"
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    # It refuses to run as root, and pytest's directories are closed to others.
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with configuration.open() as readable, (directory / "log").open("w") as log:
        command = [PGBOUNCER, f"/dev/fd/{readable.fileno()}"]
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=[readable.fileno()], cwd="/", **account
        )
    try:
        wait_until(lambda: _answers(port, process), "PgBouncer answers")
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        with psycopg.connect(host="127.0.0.1", port=port, dbname="pgbouncer", user="pgbouncer"):
            return True
    except psycopg.OperationalError as error:
        return "refused" not in str(error)


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context manager that leads the alias "unpooled" through PgBouncer in the given mode."""

    @contextmanager
    def lead(mode: str, **options: Any) -> Iterator[None]:
        with running(tmp_path, mode, **options) as port, monkeypatch.context() as patch:
            for name, value in (("HOST", "127.0.0.1"), ("PORT", str(port))):
                patch.setitem(connections["unpooled"].settings_dict, name, value)
            yield

    return lead


@pytest.fixture
def saturated(through: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lead "unpooled" through a PgBouncer whose only session is in a transaction, for which one client waits."""
    monkeypatch.setattr(server, "ANSWER_TIMEOUT", 0.3)
    with (
        through("transaction", pool_size=1, query_wait_timeout=5),
        server.connect("unpooled") as in_transaction,
        closing(server.connect("unpooled")) as waiting,
    ):
        in_transaction.execute("BEGIN")
        waiting.pgconn.send_query(b"SELECT 1")
        yield


def test_an_answer_that_comes_bit_by_bit_is_given_up_when_its_time_is_over() -> None:
    # A hundredth of a second each, and more than fits into what the server collects before it sends.
    rows = "SELECT repeat('x', 10000), pg_sleep(0.01) FROM generate_series(1, 500)"
    with closing(server.connect("unpooled", answer_timeout=0.3)) as connection:
        with pytest.raises(NoAnswer, match=r"no answer within 0\.3 s"):
            connection.execute(rows)
        assert connection.closed


def test_one_that_is_there_by_then_is_taken_whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks may have stood still meanwhile."""
    with server.connect("unpooled", answer_timeout=10) as connection:
        passed = iter([0.0])
        monkeypatch.setattr(answers, "monotonic", lambda: next(passed, 100.0))
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_only_what_clients_have_is_counted(role: str, admin: psycopg.Connection) -> None:
    """Also for a role that may not see what is a client's: the launcher of logical replication has a role as well."""
    parameters: dict[str, Any] = {"user": role, "password": "conn_hygiene"}
    with server.connect("unpooled", **parameters) as connection:
        foreign = server.limits(connection).foreign_sessions
        [there] = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> %s", [role]
        ).fetchone() or [None]
    assert foreign == there


def between() -> Pooler:
    with server.connect("unpooled") as connection:
        return pooler.between(connection, lambda: server.connect("unpooled"))


def test_nothing_is_between() -> None:
    assert between() is Pooler.NONE


@needs_pgbouncer
class TestBehindPgBouncer:
    def test_transaction_mode(self, through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with through("transaction"):
            found = run_doctor("--processes", "10000")
            assert found["server-side-cursors-behind-pooler"]["level"] == "error"
            assert "too-many-connections" not in found
            database = connections["unpooled"].settings_dict
            monkeypatch.setitem(database, "DISABLE_SERVER_SIDE_CURSORS", True)
            monkeypatch.setitem(database, "OPTIONS", {**database["OPTIONS"], "prepare_threshold": 5})
            found = run_doctor()
            assert "server-side-cursors-behind-pooler" not in found
            assert found["prepared-statements-behind-pooler"]["level"] == "warning"

    def test_statement_mode_is_as_bad(self, through: Any) -> None:
        with through("statement"):
            assert between() is Pooler.TRANSACTION
            assert run_doctor()["statement-mode"]["level"] == "error"

    def test_its_console_is_read(self, through: Any) -> None:
        settings = {
            "max_client_conn": 77,
            "reserve_pool_size": 3,
            "max_db_connections": 40,
            "query_wait_timeout": 9,
            "ignore_startup_parameters": "extra_float_digits, options",
            "server_reset_query_always": 1,
        }
        with (
            through("transaction", **settings),
            server.connect("unpooled") as connection,
            server.connect("unpooled", application_name="shop@a:1"),
        ):
            found = pgbouncer.ask("unpooled", pgbouncer.client_of(connection))
            port = connection.info.port
        target = connections["default"].get_connection_params()
        assert found.address == f"127.0.0.1:{port}"
        assert (found.database, found.role) == (connections["unpooled"].settings_dict["NAME"], target["user"])
        assert found.version >= (1, 12)
        assert found.mode == "transaction"
        assert (found.pool_size, found.reserve, found.sessions, found.max_db_connections) == (5, 3, 8, 40)
        assert (found.max_client_conn, found.query_wait_timeout) == (77, 9)
        assert found.ignored == {"extra_float_digits", "options"}
        assert (found.reset_query, found.resets_always) == ("DISCARD ALL", True)
        assert (found.waiting, found.query_timeout, found.idle_transaction_timeout) == (0, 0, 0)
        if found.version >= (1, 18):
            assert "shop@a:1" in found.clients

    def test_its_limits_are_compared(self, through: Any, role: str) -> None:
        with through("transaction", pool_size=21, max_client_conn=30, as_role=role):
            found = run_doctor("--processes", "31")
        assert found["connection-limit"]["what"].endswith(f"21 connections, and the role '{role}' is limited to 20.")
        assert found["too-many-clients"]["why"].startswith("31 processes times 1 of 'unpooled' make 31. ")
        assert found["pooler"]["what"].endswith("in transaction mode is between Django and PostgreSQL.")

    def test_who_is_not_let_in_is_told_what_to_ask_for(self, through: Any) -> None:
        with tempfile.NamedTemporaryFile("w") as users:
            # PgBouncer has another account, to which pytest's directories are closed.
            os.fchmod(users.fileno(), 0o644)
            users.write(f'"{connections["unpooled"].settings_dict["USER"]}" ""\n')
            users.flush()
            with through("session", auth_type="trust", auth_file=users.name):
                found = run_doctor()["pooler"]
        assert "not allowed" in found["why"]
        assert "stats_users" in found["remedy"]

    @pytest.mark.parametrize("mode", ["transaction", "session"])
    def test_timeouts_that_it_refuses_are_found_and_what_it_takes_instead(self, through: Any, mode: str) -> None:
        """As a site would be set up by what the doctor said without a pooler."""
        values = {"statement_timeout": 30, "idle_in_transaction_session_timeout": 60}
        with through(mode):
            found = run_doctor()
            user = connections["unpooled"].settings_dict["USER"]
            assert found["no-statement-timeout"]["remedy"] == (
                f"Have the server set it for the role: ALTER ROLE {user} SET statement_timeout = '30s';"
            )
            with override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": values}):
                connections["unpooled"].close()
                found = run_doctor()
                out = io.StringIO()
                call_command("connections", "status", "--database", "unpooled", stdout=out)
            assert found["options-refused"]["level"] == "error"
            assert "unsupported startup parameter" in found["options-refused"]["why"]
            assert f"ALTER ROLE {user} SET statement_timeout = '30s';" in found["options-refused"]["remedy"]
            # The rest was asked all the same.
            assert not {"not-asked", "no-statement-timeout"} & found.keys()
            assert "pooler" in found
            assert "PostgreSQL" in out.getvalue()

    def test_timeouts_that_it_drops_are_found(self, through: Any) -> None:
        with (
            through("transaction", ignore_startup_parameters="options"),
            override_settings(CONN_HYGIENE={"SESSION_TIMEOUTS": {"statement_timeout": 30}}),
        ):
            connections["unpooled"].close()
            found = run_doctor()
        assert found["options-dropped"]["what"] == "SESSION_TIMEOUTS has no effect on statement_timeout."
        assert "no-statement-timeout" not in found

    def test_what_is_recommended_there_works_there(self, through: Any, role: str, admin: psycopg.Connection) -> None:
        with through("transaction", as_role=role):
            for name in NO_TIMEOUT_FINDINGS:
                admin.execute(run_doctor()[name]["remedy"].partition(": ")[2].encode())
            admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", [role])
            assert not {*NO_TIMEOUT_FINDINGS} & run_doctor().keys()

    def test_session_mode(self, through: Any) -> None:
        with through("session"):
            assert between() is Pooler.SESSION

    def test_a_pool_that_is_exhausted_is_not_waited_for(self, through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pooler, "ANSWER_TIMEOUT", 0.1)
        with through("session", pool_size=1):
            assert between() is Pooler.SESSION

    def test_what_it_has_no_session_for_is_given_up_and_its_console_tells_why(self, saturated: None) -> None:
        found = run_doctor()
        assert found["not-asked"]["why"] == "no answer within 0.3 s"
        assert found["not-asked"]["level"] == "error"
        assert "for a session of PgBouncer's right now" in found["clients-wait"]["what"]
        assert found["clients-wait"]["why"].endswith(" The doctor may be among them: it was not answered either.")
        out = io.StringIO()
        with pytest.raises(CommandError, match=r"unpooled: no answer within 0\.3 s") as caught:
            call_command("connections", "status", "--database", "unpooled", stdout=out)
        assert caught.value.returncode == 3
        assert "no answer within 0.3 s" in out.getvalue()
        with pytest.raises(CommandError, match=r"unpooled: no answer within 0\.3 s"):
            call_command("connections", "terminate", "--database", "unpooled", "--idle", "0", stdout=out)

    def test_so_is_what_django_asks_there(self, saturated: None) -> None:
        with pytest.raises(OperationalError, match=r"no answer within 0\.3 s"):
            server.timeouts("unpooled", doctor.TIMEOUTS)

    def test_the_sessions_are_seen_through_it(self, through: Any) -> None:
        out = io.StringIO()
        with through("transaction"):
            call_command("connections", "status", "--database", "unpooled", "--format", "json", stdout=out)
        [database] = json.loads(out.getvalue())["databases"]
        assert any(session["own"] for session in database["sessions"])
        assert database["pooled"]

    def test_whose_they_are_is_said_to_be_the_pooler_s(self, through: Any) -> None:
        said = "They are a pooler's: each has the name of the client that had it last."
        out = io.StringIO()
        call_command("connections", "status", "--database", "unpooled", stdout=out)
        assert said not in out.getvalue()
        with through("session"):
            call_command("connections", "status", "--database", "unpooled", stdout=out)
        assert said in out.getvalue()
