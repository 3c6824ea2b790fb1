"""SQL in odd spellings, executed: whatever a real session has afterwards, its text has told."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.db import connections
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from psycopg.pq import ExecStatus, TransactionStatus

from conn_hygiene.sessions import effects as session
from conn_hygiene.sessions.effects import Effect
from conn_hygiene.sessions.sql import effect_of
from tests import grammar

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.grammar import Statement

# What a session has, a row each: a setting by its name, everything else by the reason that it is.
_OTHER_STATE = f"""
    UNION ALL SELECT 'role' WHERE current_setting('role') <> 'none'
    UNION ALL SELECT 'session_authorization' FROM pg_stat_get_activity(pg_backend_pid()) a
        WHERE pg_get_userbyid(a.usesysid) <> session_user
    UNION ALL SELECT '{session.TEMPORARY}' WHERE EXISTS (
        SELECT FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = pg_my_temp_schema())
    UNION ALL SELECT '{session.ADVISORY_LOCK}' WHERE EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
    UNION ALL SELECT '{session.LISTEN}' WHERE EXISTS (SELECT FROM pg_listening_channels())
    UNION ALL SELECT '{session.PREPARED}' WHERE EXISTS (SELECT FROM pg_prepared_statements)
    UNION ALL SELECT '{session.HELD_CURSOR}' WHERE EXISTS (SELECT FROM pg_cursors WHERE is_holdable)
    UNION ALL SELECT '{session.SLOT}' FROM pg_replication_slots WHERE active_pid = pg_backend_pid()
"""
_CUSTOM = f"""
    SELECT name FROM (VALUES {", ".join(f"('{name}')" for name in grammar.CUSTOM_NAMES)}) names (name)
    WHERE current_setting(name, true) <> ''
"""
_LOOK_AT_ALL = f"""
    {_CUSTOM} UNION ALL SELECT name FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction%'
    {_OTHER_STATE}
""".encode()
# pg_settings takes as long to read as many statements to execute.
_SOME_SETTINGS = "SELECT format('(%%L, %%L)', name, setting) FROM pg_settings WHERE name = ANY (%s)"

_REASONS = {
    *(session.TEMPORARY, session.ADVISORY_LOCK, session.LISTEN, session.PREPARED, session.HELD_CURSOR, session.SLOT)
}

_SOME_OF_EACH = b"""
    LISTEN c; CREATE TEMP TABLE of_before (); PREPARE of_before AS SELECT 1; SELECT pg_advisory_lock(7);
    DECLARE of_before CURSOR WITH HOLD FOR SELECT 1
"""


class Session:
    """A session on the server that is looked at from inside."""

    def __init__(self, standard_conforming_strings: str) -> None:
        self.backslashes_escape = standard_conforming_strings == "off"
        self._options = f"-c standard_conforming_strings={standard_conforming_strings} -c client_min_messages=error"
        self._open()

    def _open(self) -> None:
        parameters = connections["default"].get_connection_params()
        parameters |= {"autocommit": True, "prepare_threshold": None, "cursor_factory": psycopg.ClientCursor}
        self.connection = psycopg.connect(**parameters, options=self._options)
        settings = self.connection.execute(_SOME_SETTINGS, [grammar.SETTINGS]).fetchall()
        self._look = f"""
            {_CUSTOM} UNION ALL SELECT name FROM (VALUES {", ".join(row[0] for row in settings)}) names (name, setting)
            WHERE current_setting(name) <> setting {_OTHER_STATE}
        """.encode()

    def execute(self, text: bytes) -> bool:
        """Execute *text* and end its transaction; return whether there was no error."""
        pgconn = self.connection.pgconn
        pgconn.send_query(text)
        well = True
        while result := pgconn.get_result():
            if result.status == ExecStatus.COPY_OUT:
                while pgconn.get_copy_data(0)[0] > 0:
                    pass
            well = well and result.status != ExecStatus.FATAL_ERROR
        if pgconn.transaction_status != TransactionStatus.IDLE:
            pgconn.exec_(b"ROLLBACK")
        return well

    def state(self, of_all: bool = False) -> set[str]:
        """Return the names of the settings that are set, and the reasons for which a session is kept.

        Of all settings, or of those that the grammar knows.
        """
        result = self.connection.pgconn.exec_(_LOOK_AT_ALL if of_all else self._look)
        assert result.status == ExecStatus.TUPLES_OK, result.error_message
        rows = [result.get_value(row, 0) for row in range(result.ntuples)]
        return {row.decode().lower() if row.decode() not in _REASONS else row.decode() for row in rows if row}

    def clean(self, state: set[str]) -> None:
        if session.SLOT in state:
            self.connection.close()
            self._open()
        elif state:
            assert self.connection.pgconn.exec_(b"DISCARD ALL").status == ExecStatus.COMMAND_OK

    def close(self) -> None:
        self.connection.close()


def told(statement: Statement) -> Effect:
    effect = effect_of(statement.text) or Effect(frozenset(), frozenset())
    return effect.with_parameters(statement.parameters)


def missed(state: set[str], effect: Effect) -> set[str]:
    """Return what of *state* was not told of."""
    if effect.adds & session.INDELIBLE:
        return set()
    found = {each for each in state if each in _REASONS} - effect.adds
    if session.SETTING not in effect.adds:
        found |= state - _REASONS - {str(setting.name) for setting in effect.settings}
    return found


@pytest.fixture
def a_session(transactional_db: None, request: pytest.FixtureRequest) -> Iterator[Session]:
    """Return a session with the given value of standard_conforming_strings."""
    opened = Session(request.param)
    opened.execute(b"CREATE TABLE fuzz_sink (a text)")
    yield opened
    opened.execute(b"ROLLBACK; DROP TABLE fuzz_sink")
    opened.close()


class Run:
    """Executes statements, and counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def batch(self, on: Session, statements: list[Statement]) -> None:
        """Execute *statements*; those that leave nothing, as it seems, are looked at together."""
        silent = [each for each in statements if not any(told(each))]
        self._silent(on, silent)
        for each in statements:
            if any(told(each)):
                self._talking(on, each)

    def _execute(self, on: Session, statement: Statement) -> bool:
        text = statement.text
        if statement.parameters is not None:
            text = psycopg.ClientCursor(on.connection).mogrify(text, statement.parameters)
        well = on.execute(text.encode())
        self.counts["executed"] += 1
        self.counts["without an error"] += well
        if not well:
            self.failures[statement.template] += 1
        return well

    def _silent(self, on: Session, statements: list[Statement]) -> None:
        for each in statements:
            self._execute(on, each)
        if state := on.state(of_all=True):
            on.clean(state)
            for each in statements:
                self._execute(on, each)
                assert on.state(of_all=True) == set(), each
            raise AssertionError(state)

    def _talking(self, on: Session, statement: Statement) -> None:
        effect = told(statement)
        if effect.removes:
            on.execute(_SOME_OF_EACH)
        well = self._execute(on, statement)
        state = on.state()
        if effect.removes:
            if well:
                assert not state & effect.removes - effect.adds, (statement, effect, state)
                self.counts["that undo something"] += 1
        else:
            assert missed(state, effect) == set(), (statement, effect, state)
        self.counts["that leave something"] += bool(state)
        # What was set to what it was before is set all the same.
        on.clean(state | effect.adds | {str(setting.name) for setting in effect.settings})


_BATCH, _BATCHES = 100, 50


# In four parts, 20,000 in all, which can run beside each other.
@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("a_session", ["on", "off"], indirect=True)
@pytest.mark.django_db(transaction=True)
def test_nothing_that_a_session_has_is_missed(a_session: Session, part: int) -> None:
    run = Run()

    @seed(part)
    @settings(
        max_examples=_BATCHES,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def execute(random: random.Random) -> None:
        escape = a_session.backslashes_escape
        run.batch(a_session, [grammar.statement(random, backslashes_escape=escape) for _ in range(_BATCH)])

    execute()
    print(dict(run.counts), run.failures.most_common(10))
    assert run.counts["executed"] >= _BATCH * _BATCHES
    # Of what the server refuses there is nothing to be learnt.
    assert run.counts["without an error"] > 0.6 * run.counts["executed"]
