"""What the catalogue says of functions, policies, views: on a real server, by a role without rights, at what price."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import conn_hygiene
from conn_hygiene import conf
from conn_hygiene.sessions import catalogue, effects, expressions, known, login, sql
from conn_hygiene.sessions.catalogue import Findings
from conn_hygiene.sessions.login import Login

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])

Session = psycopg.Connection[Any]


@pytest.fixture
def shop(admin: Session) -> Iterator[Session]:
    """Return a connection to a database of its own, in which a test may make what it likes."""
    admin.execute("CREATE DATABASE catalogue_of_a_shop TEMPLATE template0")
    try:
        there = make_conninfo(admin.info.dsn, password=admin.info.password, dbname="catalogue_of_a_shop")
        with psycopg.connect(there, autocommit=True) as connection:
            connection.execute("CREATE TABLE shop_order (id int, tenant_id int)")
            yield connection
    finally:
        admin.execute("DROP DATABASE catalogue_of_a_shop WITH (FORCE)")


def found(connection: Session) -> Findings:
    findings = catalogue.read(connection)
    assert findings is not None
    return findings


def function(
    connection: Session, body: str, language: str = "plpgsql", head: str = "FUNCTION f() RETURNS void"
) -> None:
    connection.execute(f"CREATE {head} LANGUAGE {language} AS $body_of_f${body}$body_of_f$")


def test_an_empty_database_has_nothing(shop: Session) -> None:
    assert found(shop) == Findings()


class TestPolicies:
    def test_what_a_policy_reads_follows(self, shop: Session) -> None:
        shop.execute(
            "CREATE POLICY of_tenant ON shop_order USING (tenant_id = current_setting('App.Tenant_id', true)::int)"
            " WITH CHECK (current_setting('app.region') = 'here')"
        )
        assert found(shop) == Findings(
            frozenset({"app.tenant_id", "app.region"}),
            {
                "app.region": "policy of_tenant of table public.shop_order reads it",
                "app.tenant_id": "policy of_tenant of table public.shop_order reads it",
            },
            ("policy of_tenant of table public.shop_order",),
        )

    def test_so_does_what_the_functions_read_that_it_calls(self, shop: Session) -> None:
        shop.execute('CREATE SCHEMA "Odd; Shop"')
        function(shop, "SELECT current_setting('app.deep', true)", "sql", "FUNCTION deep() RETURNS text")
        function(
            shop,
            "BEGIN RETURN coalesce(deep(), current_setting('app.' || 'computed')); END",
            head='FUNCTION "Odd; Shop"."Its Tenant"() RETURNS text',
        )
        function(shop, "SELECT current_setting('app.elsewhere')", "sql", "FUNCTION other() RETURNS text")
        shop.execute("""CREATE POLICY p ON shop_order USING ("Odd; Shop"."Its Tenant"() = 'a')""")
        assert found(shop).reasons == {"app.deep": "function public.deep, which a policy calls, reads it"}

    def test_names_are_folded_as_the_server_does(self, shop: Session) -> None:
        """Which is the letters of ASCII only."""
        function(shop, "SELECT current_setting('App.ÜA', true)", "sql", "FUNCTION ÜBER() RETURNS text")
        function(shop, "SELECT ÜBER()", "sql", "FUNCTION deep() RETURNS text")
        shop.execute("CREATE POLICY p ON shop_order USING (deep() = current_setting('App.ÜB'))")
        assert found(shop).followed == {"app.Üa", "app.Üb"}

    def test_what_a_policy_itself_leaves_is_found(self, shop: Session) -> None:
        shop.execute(
            "CREATE POLICY p ON shop_order USING (set_config('App.Seen', '1', false) = '1')"
            " WITH CHECK (setseed(0.5)::text = '')"
        )
        findings = found(shop)
        assert findings.reasons == {"app.seen": "policy p of table public.shop_order sets it"}
        assert findings.leaves_state == ("policy p of table public.shop_order (SET app.seen, setseed())",)
        assert findings.indelible == {"setseed()"}

    def test_a_column_may_be_called_as_a_command(self, shop: Session) -> None:
        shop.execute("ALTER TABLE shop_order ADD load int, ADD listen bool")
        shop.execute("CREATE POLICY p ON shop_order USING (listen) WITH CHECK (load = 1)")
        assert found(shop) == Findings(leaves_state=("policy p of table public.shop_order",))

    def test_what_cannot_be_set_does_not(self, shop: Session) -> None:
        shop.execute(
            "CREATE POLICY p ON shop_order USING (current_setting('server_version') <> current_setting('search_path')"
            " AND current_setting('no_such_name', true) IS NULL AND current_setting('transaction_isolation') <> '')"
        )
        assert found(shop).followed == {"search_path"}


UNREADABLE = "statement that cannot be read"


class TestFunctions:
    @pytest.mark.parametrize(
        ("body", "language", "followed", "left"),
        [
            ("BEGIN PERFORM set_config('App.A', '1', false); END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN PERFORM set_config('App.ÜA', '1', false); END", "plpgsql", {"app.Üa"}, "SET app.Üa"),
            ("BEGIN EXECUTE format('SET App.ÜA = %L', 1); END", "plpgsql", {"app.Üa"}, "SET app.Üa, EXECUTE"),
            ("BEGIN PERFORM pg_catalog.\"set_config\"('app.a', ')', false); END", "plpgsql", {"app.a"}, "SET app.a"),
            ("DECLARE a text := set_config(('app.a'), '1', 1 = 2); BEGIN END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN PERFORM set_config('app.a', coalesce(NULL, '1'), true); END", "plpgsql", set(), None),
            ("BEGIN PERFORM set_config('app.a', '1', 't'::boolean); END", "plpgsql", set(), None),
            ("BEGIN PERFORM set_config('app.' || 'a', '1', false); END", "plpgsql", set(), "SET"),
            ("BEGIN SET app.a = '1'; END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN set\n/* c */search_path TO public; END", "plpgsql", {"search_path"}, "SET search_path"),
            ("BEGIN IF true THEN -- why\n  SET app.a = '1'; END IF; END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN IF true THEN ELSE /* why */ SET app.a = '1'; END IF; END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN <<l>> LOOP SET app.a = '1'; EXIT; END LOOP; END", "plpgsql", {"app.a"}, "SET app.a"),
            ("BEGIN BEGIN EXCEPTION WHEN OTHERS THEN SET app.a = '1'; END; END", "plpgsql", {"app.a"}, "SET app.a"),
            ("SET app.a = '1'", "sql", {"app.a"}, "SET app.a"),
            ("SELECT 1; -- ; \n SET app.a = '1'", "sql", {"app.a"}, "SET app.a"),
            (
                "BEGIN SET TIME ZONE 'UTC'; SET ROLE none; END",
                "plpgsql",
                {"timezone", "role"},
                "SET role, SET timezone",
            ),
            ("BEGIN UPDATE pg_settings SET setting = '' WHERE name = 'role'; END", "plpgsql", set(), "SET"),
            ("BEGIN RESET ALL; END", "plpgsql", set(), "SET"),
            ("BEGIN SET LOCAL app.a = '1'; SET CONSTRAINTS ALL DEFERRED; END", "plpgsql", set(), None),
            (
                "BEGIN UPDATE shop_order\n  SET id = 1; -- set\n UPDATE shop_order SET id = 2; END",
                "plpgsql",
                set(),
                None,
            ),
            (
                "BEGIN /* SET app.a = 1; /* */ ; SET app.a = 1; */ RAISE NOTICE '; SET app.a = 1;'; END",
                "plpgsql",
                set(),
                None,
            ),
            ("BEGIN PERFORM 'set_config(''app.a'', 1, false)', $$; SET app.a = 1$$; END", "plpgsql", set(), None),
            ("BEGIN PERFORM E'\\'; SET app.a = 1;'; END", "plpgsql", set(), None),
            ("BEGIN EXECUTE format('SET app.a = %L', 1); END", "plpgsql", {"app.a"}, "SET app.a, EXECUTE"),
            ("BEGIN EXECUTE 'SET app.' || 'a = 1'; END", "plpgsql", set(), "EXECUTE"),
            ("BEGIN EXECUTE $$ANALYZE$$; END", "plpgsql", set(), "EXECUTE"),
            ("BEGIN EXECUTE 'SELECT setseed(0.5)'; END", "plpgsql", set(), "EXECUTE, setseed()"),
            (
                "BEGIN EXECUTE format('SELECT dblink_connect(%L, %L)', 'a', current_user); END",
                "plpgsql",
                set(),
                "EXECUTE, dblink connection",
            ),
            ("BEGIN EXECUTE 'LOAD ' || quote_literal('auto_explain'); END", "plpgsql", set(), "EXECUTE, LOAD"),
            ("BEGIN EXECUTE 'SELECT 1'; RAISE 'Load failed: do it again'; END", "plpgsql", set(), "EXECUTE"),
            ("BEGIN RAISE 'SELECT setseed(0.5)'; END", "plpgsql", set(), None),
            ("BEGIN PERFORM pg_advisory_lock(1); END", "plpgsql", set(), "advisory lock"),
            ("BEGIN IF pg_try_advisory_lock(1) THEN END IF; END", "plpgsql", set(), "advisory lock"),
            ("BEGIN PERFORM pg_advisory_xact_lock(1); END", "plpgsql", set(), None),
            (
                "BEGIN PERFORM pg_advisory_lock(1); PERFORM pg_advisory_unlock_all(); END",
                "plpgsql",
                set(),
                "advisory lock",
            ),
            ("BEGIN CREATE TEMPORARY TABLE t (a int); END", "plpgsql", set(), "temporary table"),
            ("BEGIN CREATE TEMP TABLE t (a int) ON COMMIT DROP; END", "plpgsql", set(), None),
            ("BEGIN CREATE TABLE pg_temp.t (a int); END", "plpgsql", set(), "temporary table"),
            ("BEGIN PERFORM set_config('search_path', 'pg_temp', true); END", "plpgsql", set(), "temporary table"),
            ("BEGIN PERFORM set_config('search_path', 'public', true); END", "plpgsql", set(), None),
            ("BEGIN LISTEN news; END", "plpgsql", set(), "LISTEN"),
            ("LISTEN news", "sql", set(), "LISTEN"),
            ("BEGIN PREPARE p AS SELECT 1; END", "plpgsql", set(), "PREPARE"),
            ("BEGIN LOAD 'auto_explain'; END", "plpgsql", set(), "LOAD"),
            ("BEGIN PERFORM setseed(0.5); END", "plpgsql", set(), "setseed()"),
            ("BEGIN DO $$BEGIN SET app.a = 1; END$$; END", "plpgsql", set(), "DO block"),
            ("BEGIN INSERT INTO shop_order VALUES (1) ON CONFLICT DO NOTHING; END", "plpgsql", set(), None),
            ("SELECT query_to_xml(current_user, true, false, '')", "sql", set(), UNREADABLE),
            ("BEGIN PERFORM query_to_xml_and_xmlschema(a, true, false, '') FROM b; END", "plpgsql", set(), UNREADABLE),
            ("SELECT * FROM ts_stat('SELECT ' || current_user)", "sql", set(), UNREADABLE),
            ("SELECT ts_rewrite('a', current_user::text)", "sql", set(), UNREADABLE),
            ("SELECT * FROM crosstab3(current_user)", "sql", set(), UNREADABLE),
            ("SELECT query_to_xml('SELECT 1', true, false, '')", "sql", set(), None),
            ("SELECT pg_backup_start('a')", "sql", set(), "backup"),
            ("SELECT pg_start_backup('a')", "sql", set(), "backup"),
            ("CREATE TEMP TABLE t (a text DEFAULT 'on commit drop')", "sql", set(), "temporary table"),
        ],
    )
    def test_each(self, shop: Session, body: str, language: str, followed: set[str], left: str | None) -> None:
        # As pg_dump restores functions that name what is not there yet.
        shop.execute("SET check_function_bodies = off")
        function(shop, body, language)
        findings = found(shop)
        assert findings.followed == followed
        assert findings.leaves_state == (() if left is None else (f"function public.f ({left})",))

    def test_procedures_and_triggers_are_functions(self, shop: Session) -> None:
        function(shop, "BEGIN SET app.a = 1; COMMIT; END", head="PROCEDURE p()")
        function(
            shop,
            "BEGIN PERFORM set_config('app.last', NEW.id::text, false); RETURN NEW; END",
            head="FUNCTION t() RETURNS trigger",
        )
        shop.execute("CREATE TRIGGER last BEFORE INSERT ON shop_order FOR EACH ROW EXECUTE FUNCTION t()")
        assert found(shop).reasons == {"app.a": "procedure public.p sets it", "app.last": "function public.t sets it"}

    def test_a_setting_of_the_call_is_none_of_the_session(self, shop: Session) -> None:
        function(shop, "SELECT", "sql SET search_path = public")
        assert found(shop) == Findings()

    @pytest.mark.parametrize(
        ("path", "left"),
        [
            ("pg_temp", "temporary table"),
            ("PG_TEMP, public", "temporary table"),
            ('"$user", pg_temp', "temporary table"),
            ("public, pg_temp", None),
            ("pg_temperature", None),
            ("''", None),
        ],
    )
    def test_a_path_of_the_call_may_have_what_is_created_be_temporary(
        self, shop: Session, path: str, left: str | None
    ) -> None:
        head = f"FUNCTION f() RETURNS void SET lock_timeout = 9 SET search_path = {path}"
        function(shop, "BEGIN CREATE TABLE scratch (a int); END", head=head)
        assert found(shop).leaves_state == (() if left is None else (f"function public.f ({left})",))

    def test_compiled_bodies_are_read(self, shop: Session) -> None:
        if shop.info.server_version < 140000:
            pytest.skip("PostgreSQL 13 compiles none")
        head = "CREATE FUNCTION f_{}(t text) RETURNS text "
        shop.execute(head.format("set") + "BEGIN ATOMIC SELECT set_config('app.a', t, false); END")
        shop.execute(head.format("local") + "BEGIN ATOMIC SELECT set_config('app.b', t, true); END")
        shop.execute(head.format("returns") + "RETURN current_setting('app.c')")
        shop.execute(
            "CREATE FUNCTION f_lock() RETURNS bool BEGIN ATOMIC SELECT pg_catalog.pg_try_advisory_lock_shared(1); END"
        )
        shop.execute("CREATE POLICY p ON shop_order USING (f_returns('') = '')")
        findings = found(shop)
        assert findings.reasons == {
            "app.a": "function public.f_set sets it",
            "app.c": "function public.f_returns, which a policy calls, reads it",
        }
        assert set(findings.leaves_state) == {
            "function public.f_set (SET app.a)",
            "function public.f_lock (advisory lock)",
            "policy p of table public.shop_order",
        }

    def test_what_is_not_in_a_language_of_the_servers_own_cannot_be_read(self, shop: Session) -> None:
        shop.execute("CREATE TYPE span AS RANGE (subtype = int)")
        shop.execute("CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int)")
        function(shop, "set_config_by_name", "internal", "FUNCTION sets(text, text, bool) RETURNS text")
        shop.execute("CREATE TRUSTED LANGUAGE plodd HANDLER plpgsql_call_handler")
        function(shop, "whatever", "plodd")
        assert found(shop).leaves_state == (
            "function public.f (in language plodd, which is not read)",
            "function public.sets (set_config_by_name())",
        )

    def test_what_leaves_something_is_found_wherever_it_is_called(self, shop: Session) -> None:
        """In a statement, in a body as it is written, in one that is compiled, and in a view."""
        shop.execute("SET check_function_bodies = off")
        shop.execute("CREATE SCHEMA own; SET search_path = own, public")
        expected = set()
        for name in (*sql.LEAVING, "pgv_set_int", "pgv_insert", "hll_set_defaults"):
            call = f"SELECT own.{name}(current_user::text, b => current_user::text)"
            assert sql.effect_of(call) is not None
            shop.execute(f"CREATE FUNCTION own.{name}(a text, b text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
            function(shop, call, "sql", f"FUNCTION f_{name}() RETURNS text")
            shop.execute(f"CREATE VIEW v_{name} AS {call}")
            expected |= {f"function own.f_{name}", f"view own.v_{name}"}
            if shop.info.server_version >= 140000:
                shop.execute(f"CREATE FUNCTION g_{name}() RETURNS text BEGIN ATOMIC {call}; END")
                expected.add(f"function own.g_{name}")
        assert {each.partition(" (")[0] for each in found(shop).leaves_state} == expected

    def test_so_is_another_name_of_one_that_the_server_has(self, shop: Session) -> None:
        named = "proname = ANY (%s) AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'internal')"
        sources = shop.execute(f"SELECT DISTINCT prosrc FROM pg_proc WHERE {named}", [[*sql.LEAVING]]).fetchall()
        for (source,) in sources:
            function(shop, source, "internal", f"FUNCTION f_{source}() RETURNS text")
        assert {*found(shop).leaves_state} == {f"function public.f_{source} ({source}())" for (source,) in sources}

    def test_extensions_are_trusted(self, shop: Session) -> None:
        shop.execute("CREATE FUNCTION set_it() RETURNS text LANGUAGE sql AS $$SELECT set_config('a.b', '', false)$$")
        assert found(shop).followed == {"a.b"}
        shop.execute("ALTER EXTENSION plpgsql ADD FUNCTION set_it()")
        assert found(shop) == Findings()

    def test_what_no_cleaning_undoes_closes_sessions_that_have_executed_it(self, shop: Session) -> None:
        function(shop, "BEGIN EXECUTE 'SELECT setseed(0.5)'; EXECUTE 'DO $$ BEGIN END $$'; END")
        assert found(shop).indelible == {"setseed()"}

    def test_but_what_is_known_to_stay_is_not(self, shop: Session) -> None:
        shop.execute("SET check_function_bodies = off")
        function(shop, "SELECT set_limit(0.4)", "sql")
        assert found(shop).leaves_state == ("function public.f (SET pg_trgm.similarity_threshold)",)


# Names and locks, in each place where the server keeps an expression.
SETS = "set_config('App.A', 'b', false)"
IN_EACH = {
    "view": (f"CREATE VIEW v AS SELECT {SETS} AS a", "view public.v"),
    "nested": (f"CREATE VIEW v AS SELECT 1 AS b WHERE EXISTS (SELECT {SETS})", "view public.v"),
    "materialized": (f"CREATE MATERIALIZED VIEW v AS SELECT {SETS} AS a WITH NO DATA", "materialized view public.v"),
    "rule": (f"CREATE RULE r AS ON INSERT TO shop_order DO ALSO SELECT {SETS}", "rule r of public.shop_order"),
    "rule's condition": (
        f"CREATE RULE r AS ON DELETE TO shop_order WHERE {SETS} = old.id::text DO INSTEAD NOTHING",
        "rule r of public.shop_order",
    ),
    "default": (f'CREATE TABLE t ("a b" text DEFAULT {SETS})', 'default of column public.t."a b"'),
    "view's default": (
        f"CREATE VIEW v AS SELECT 1 AS a; ALTER VIEW v ALTER a SET DEFAULT length({SETS})",
        "default of column public.v.a",
    ),
    "check": (f"CREATE TABLE t (a text CONSTRAINT c CHECK ({SETS} <> a))", "constraint c of table public.t"),
    "trigger": (
        f"CREATE TRIGGER t BEFORE UPDATE ON shop_order FOR EACH ROW WHEN (old.id <> new.id AND {SETS} <> '')"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "condition of trigger t of table public.shop_order",
    ),
    "domain": (f"CREATE DOMAIN d AS text DEFAULT {SETS}", "default of domain public.d"),
    "domain's check": (
        f"CREATE DOMAIN d AS text CONSTRAINT c CHECK ({SETS} <> VALUE)",
        "constraint c of domain public.d",
    ),
    "parameter": (
        f"CREATE FUNCTION f(a int, b text DEFAULT {SETS}) RETURNS void LANGUAGE sql AS ''",
        "default of a parameter of function public.f",
    ),
}


class TestExpressions:
    @pytest.mark.parametrize(("made_by", "owner"), IN_EACH.values(), ids=IN_EACH)
    def test_each_is_read(self, shop: Session, made_by: str, owner: str) -> None:
        before = found(shop)
        shop.execute(made_by)
        assert catalogue.read(shop, before) == Findings(
            frozenset({"app.a"}), {"app.a": f"{owner} sets it"}, (f"{owner} (SET app.a)",)
        )

    @pytest.mark.parametrize(
        ("expression", "left"),
        [
            ("set_config('app.a', 'b', true)", None),
            ("set_config('app.' || current_user, 'b', false)", "SET"),
            ("pg_advisory_lock(1)::text", "advisory lock"),
            ("pg_try_advisory_lock_shared(1, 2)", "advisory lock"),
            ("pg_advisory_xact_lock(1)::text", None),
            ("setseed(0.5)::text", "setseed()"),
            ("query_to_xml('SELECT pg_advisory_lock(1)', true, true, '')", "advisory lock"),
            ("query_to_xml('SELECT 1', true, true, '')", None),
            ("query_to_xml(current_user, true, true, '')", "statement that cannot be read"),
            ("current_setting('app.a', true)", None),
            ("1 AS execute, 'set_config(''app.a'', ''b'', false)'", None),
        ],
    )
    def test_what_views_call(self, shop: Session, expression: str, left: str | None) -> None:
        shop.execute(f"CREATE VIEW v AS SELECT {expression}")
        assert found(shop).leaves_state == (() if left is None else (f"view public.v ({left})",))

    def test_what_no_cleaning_undoes_closes_sessions(self, shop: Session) -> None:
        shop.execute("CREATE VIEW v AS SELECT setseed(0.5)::text")
        assert found(shop).indelible == {"setseed()"}

    def test_nor_what_functions_of_well_known_extensions_leave(self, shop: Session) -> None:
        """DISCARD knows nothing of it."""
        shop.execute("CREATE FUNCTION pgv_set(int) RETURNS int LANGUAGE sql AS 'SELECT $1'")
        shop.execute("CREATE FUNCTION pgv_get(int) RETURNS int LANGUAGE sql AS 'SELECT $1'")
        shop.execute("CREATE VIEW reads AS SELECT pgv_get(1)")
        assert found(shop) == Findings()
        shop.execute("CREATE VIEW v AS SELECT pgv_set(1)")
        assert found(shop).leaves_state == ("view public.v (state of an extension)",)
        assert found(shop).indelible == {effects.EXTENSION}

    def test_a_rule_may_set_by_an_update(self, shop: Session) -> None:
        shop.execute(
            "CREATE RULE r AS ON INSERT TO shop_order DO ALSO UPDATE pg_settings SET setting = 'a' WHERE name = 'app.a'"
        )
        assert found(shop).leaves_state == ("rule r of public.shop_order (SET)",)

    def test_so_may_an_update_of_a_view(self, shop: Session) -> None:
        shop.execute("CREATE VIEW v AS SELECT name, setting FROM pg_settings WHERE name ~ '^app'")
        shop.execute("UPDATE v SET setting = 'b' WHERE name = 'app.a'")
        assert found(shop).leaves_state == ("view public.v (SET)",)

    @pytest.mark.parametrize(
        ("made_by", "kind", "said"),
        [
            (
                "CREATE OPERATOR @@@ (FUNCTION = pg_try_advisory_lock, RIGHTARG = int8)",
                "OPERATOR @@@ (NONE, int8)",
                "operator public.@@@(NONE,bigint) (advisory lock)",
            ),
            (
                "CREATE AGGREGATE keeps(text, bool) (sfunc = set_config, stype = text)",
                "AGGREGATE keeps(text, bool)",
                "aggregate public.keeps (SET)",
            ),
            (
                "CREATE AGGREGATE locks(int) (sfunc = int4pl, stype = int, finalfunc = of_lock)",
                "AGGREGATE locks(int)",
                None,
            ),
            (
                "CREATE AGGREGATE locks(int8) (sfunc = int8pl, stype = int8, finalfunc = pg_try_advisory_lock)",
                "AGGREGATE locks(int8)",
                "aggregate public.locks (advisory lock)",
            ),
            (
                "CREATE AGGREGATE locks(int8) (sfunc = int8pl, stype = int8, msfunc = int8pl, minvfunc = int8mi,"
                " mstype = int8, mfinalfunc = pg_try_advisory_lock, finalfunc = int8_is_lockable)",
                "AGGREGATE locks(int8)",
                "aggregate public.locks (advisory lock)",
            ),
            (
                "CREATE CAST (int8 AS bool) WITH FUNCTION pg_try_advisory_lock(int8)",
                "CAST (int8 AS bool)",
                "cast from bigint to boolean (advisory lock)",
            ),
        ],
    )
    def test_so_may_what_has_its_function_by_another_name(
        self, shop: Session, made_by: str, kind: str, said: str | None
    ) -> None:
        shop.execute("CREATE FUNCTION of_lock(int) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        shop.execute("CREATE FUNCTION int8_is_lockable(int8) RETURNS bool LANGUAGE sql AS 'SELECT true'")
        before = found(shop)
        assert before == Findings()
        shop.execute(made_by)
        after = catalogue.read(shop, before)
        assert after is not None
        assert after.leaves_state == (() if said is None else (said,))
        shop.execute(f"ALTER EXTENSION plpgsql ADD {kind}")
        assert catalogue.read(shop, after) == Findings()

    def test_a_schema_of_the_servers_own_may_have_what_is_not(self, shop: Session) -> None:
        """A superuser can make it."""
        shop.execute("SET allow_system_table_mods = on")
        for schema in ("pg_catalog", "information_schema"):
            body = f"SELECT set_config('app.of_{schema}', '1', false)"
            function(shop, body, "sql", f"FUNCTION {schema}.f() RETURNS text")
        shop.execute("CREATE VIEW information_schema.v AS SELECT set_config('app.v', '1', false) AS a")
        findings = found(shop)
        assert findings.followed == {"app.of_pg_catalog", "app.of_information_schema", "app.v"}
        function(shop, "SELECT current_setting('app.g')", "sql", "FUNCTION pg_catalog.g() RETURNS text")
        shop.execute("CREATE POLICY p ON shop_order USING (pg_catalog.g() = '')")
        again = catalogue.read(shop, findings)
        assert again is not None
        assert "app.g" in again.followed

    def test_what_is_changed_is_read_again(self, shop: Session) -> None:
        shop.execute("CREATE VIEW v AS SELECT 'b'::text AS a")
        findings = found(shop)
        assert catalogue.read(shop, findings) is findings
        shop.execute("CREATE OR REPLACE VIEW v AS SELECT set_config('app.a', 'b', false) AS a")
        changed = catalogue.read(shop, findings)
        assert changed is not None
        assert changed.followed == {"app.a"}
        # An extension's own views are its business.
        shop.execute("ALTER EXTENSION plpgsql ADD VIEW v")
        assert catalogue.read(shop, changed) == Findings()

    def test_other_sessions_have_temporary_ones(self, shop: Session) -> None:
        shop.execute("CREATE TEMP VIEW v AS SELECT set_config('app.a', 'b', false)")
        assert found(shop) == Findings()

    def test_there_are_none_where_all_has_to_be_immutable(self, shop: Session) -> None:
        for made_by in (
            "CREATE INDEX ON shop_order (set_config('app.a', 'b', false))",
            "CREATE INDEX ON shop_order (id) WHERE set_config('app.a', 'b', false) = ''",
            "CREATE TABLE t (a text GENERATED ALWAYS AS (set_config('app.a', 'b', false)) STORED)",
            "CREATE TABLE t (a int) PARTITION BY RANGE ((length(set_config('app.a', 'b', false))))",
        ):
            with pytest.raises(psycopg.errors.InvalidObjectDefinition):
                shop.execute(made_by)

    def test_what_projects_have_leaves_nothing(self, shop: Session) -> None:
        shop.execute("CREATE TABLE stock (id serial, at timestamptz DEFAULT now() CHECK (at > 'epoch'), a text)")
        shop.execute("CREATE VIEW s AS SELECT a.*, upper(b.a) FROM stock a JOIN stock b USING (id) FOR UPDATE")
        shop.execute("CREATE VIEW t AS SELECT DISTINCT name, setting FROM pg_settings")
        shop.execute("CREATE OPERATOR + (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int)")
        shop.execute("CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int)")
        # The server writes it with the function's name as that of the rows, and their columns.
        shop.execute("CREATE VIEW w AS SELECT word FROM ts_stat('SELECT to_tsvector(a) FROM stock')")
        assert found(shop) == Findings()

    def test_nor_do_the_tables_of_django(self) -> None:
        with psycopg.connect(**connections["default"].get_connection_params() | {"cursor_factory": None}) as session:
            session.autocommit = True
            assert catalogue._answers(session, expressions.question(9)) == [[]]

    def test_one_that_cannot_be_read_now_is_read_later(
        self, shop: Session, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A migration may have its table."""
        monkeypatch.setattr(catalogue, "LOCK_LIMIT", 1)
        shop.execute("CREATE TABLE stock (a text)")
        shop.execute("CREATE VIEW v AS SELECT set_config('app.a', a, false) FROM stock")
        shop.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT set_config('app.f', '', false)$$")
        with psycopg.connect(shop.info.dsn, password=shop.info.password) as other:
            other.execute("LOCK stock")
            meanwhile = catalogue.read(shop)
        assert meanwhile is not None
        assert [*meanwhile.followed] == ["app.f"]
        assert "views, defaults and the like, which could not be read" in meanwhile.leaves_state
        later = catalogue.read(shop, meanwhile)
        assert later is not None
        assert sorted(later.followed) == ["app.a", "app.f"]

    def test_more_than_can_be_searched_are_not_taken_for_harmless(
        self, shop: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.execute("CREATE VIEW v AS SELECT set_config('app.a', 'b', true)")
        monkeypatch.setattr(catalogue, "MOST_STORED", 100)
        assert found(shop).leaves_state == ("views, defaults and the like, which could not be read",)

    def test_nor_are_more_than_can_be_read(self, shop: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(catalogue, "MOST", 1)
        for name in ("v", "w"):
            shop.execute(f"CREATE VIEW {name} AS SELECT set_config('app.a', 'b', true)")
        assert found(shop).leaves_state == ("views, defaults and the like beyond the first 1, which were not read",)

    def test_what_leaves_nothing_costs_no_rows(self, shop: Session) -> None:
        shop.execute("CREATE TABLE t (a text DEFAULT upper('a') CHECK (lower(a) <> 'b'))")
        shop.execute("CREATE VIEW v AS SELECT upper(a) AS a FROM t WHERE current_setting('app.a', true) = a")
        shop.execute("CREATE VIEW w AS SELECT set_config('app.a', 'b', true)")
        (rows,) = catalogue._answers(shop, expressions.question(9))
        assert [owner for owner, _ in rows] == ["view public.w"]


def trigger(connection: Session, body: str) -> None:
    """Have a new function with a *body* run as a session begins."""
    if connection.info.server_version < login.SINCE:
        pytest.skip("PostgreSQL has triggers on login from 17 on")
    function(connection, f"BEGIN {body}; END", head="FUNCTION greets() RETURNS event_trigger")
    connection.execute("CREATE EVENT TRIGGER greets ON login EXECUTE FUNCTION greets()")


GREETS = "PERFORM set_config('App.Greeted', 'hello', false)"
GREETED = Login(frozenset({"app.greeted"}))


class TestLogin:
    def test_what_runs_at_login_only_is_none_of_the_functions(self, shop: Session) -> None:
        trigger(shop, GREETS)
        assert found(shop) == Findings(login=GREETED)

    def test_what_runs_at_other_events_as_well_is_one(self, shop: Session) -> None:
        trigger(shop, GREETS)
        shop.execute("CREATE EVENT TRIGGER other ON ddl_command_end EXECUTE FUNCTION greets()")
        findings = found(shop)
        assert findings.login == GREETED
        assert findings.leaves_state == ("function public.greets (SET app.greeted)",)
        shop.execute("DROP EVENT TRIGGER greets")
        findings = found(shop)
        assert findings.login == login.NOTHING
        assert findings.followed == {"app.greeted"}

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("NULL", login.NOTHING),
            ("PERFORM set_config('app.greeted', 'hello', true)", login.NOTHING),
            ("SET ROLE pg_monitor", Login(frozenset({"role"}))),
            ("EXECUTE 'SELECT ' || 1", Login(others=frozenset({"EXECUTE"}))),
            ("LISTEN a; SET a.b = 1", Login(frozenset({"a.b"}), frozenset({effects.LISTEN}))),
        ],
    )
    def test_each(self, shop: Session, body: str, expected: Login) -> None:
        trigger(shop, body)
        assert found(shop).login == expected

    def test_what_it_calls_is_read_as_well(self, shop: Session) -> None:
        function(shop, "BEGIN SET app.greeted = 'hello'; END", head="FUNCTION deep() RETURNS void")
        function(shop, "SELECT deep()", "sql", "FUNCTION called() RETURNS void")
        function(shop, "BEGIN SET app.other = 'hello'; END", head="FUNCTION other() RETURNS void")
        trigger(shop, "PERFORM called()")
        assert found(shop).login == GREETED

    def test_but_not_what_extensions_have(self, shop: Session) -> None:
        shop.execute("CREATE EXTENSION dblink")
        trigger(shop, "PERFORM dblink_get_connections()")
        assert found(shop).login == login.NOTHING

    @pytest.mark.parametrize(
        ("enabled", "role", "runs"),
        [
            ("ENABLE", "origin", True),
            ("ENABLE", "local", True),
            ("ENABLE", "replica", False),
            ("ENABLE REPLICA", "origin", False),
            ("ENABLE REPLICA", "replica", True),
            ("ENABLE ALWAYS", "replica", True),
            ("DISABLE", "origin", False),
        ],
    )
    def test_whether_it_runs(self, shop: Session, enabled: str, role: str, runs: bool) -> None:
        """Which is seen at once, also where it is the role that has changed, or the database."""
        trigger(shop, GREETS)
        known_before = found(shop)
        shop.execute(f"ALTER EVENT TRIGGER greets {enabled}")
        shop.execute(f"ALTER DATABASE catalogue_of_a_shop SET session_replication_role = {role}")
        with psycopg.connect(shop.info.dsn, password=shop.info.password, autocommit=True) as new:
            findings = catalogue.read(new, known_before)
            assert findings == Findings(login=GREETED if runs else login.NOTHING)
            assert (new.execute("SELECT current_setting('app.greeted', true)").fetchone() == ("hello",)) == runs

    def test_none_does_where_they_are_off(self, shop: Session) -> None:
        trigger(shop, GREETS)
        known_before = found(shop)
        shop.execute("ALTER DATABASE catalogue_of_a_shop SET event_triggers = off")
        with psycopg.connect(shop.info.dsn, password=shop.info.password, autocommit=True) as new:
            assert catalogue.read(new, known_before) == Findings()

    def test_it_is_told(self, shop: Session, settings: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
        settings()
        trigger(shop, GREETS + "; LISTEN a")
        with caplog.at_level(logging.INFO, "conn_hygiene.sessions"):
            known.ask("a", shop)
        assert caplog.messages == [
            "Connection 'a': no setting follows by itself; no function or policy leaves anything in a session; "
            "triggers on login leave in each: SET app.greeted, LISTEN."
        ]


class TestAsking:
    def test_a_role_needs_no_rights(self, shop: Session) -> None:
        shop.execute("CREATE SCHEMA hidden; REVOKE ALL ON SCHEMA public FROM public")
        shop.execute("CREATE TABLE hidden.t (a text)")
        shop.execute(
            "CREATE POLICY p ON hidden.t USING (a = current_setting('app.a') AND a IN (SELECT a FROM hidden.t))"
        )
        function(shop, "BEGIN PERFORM set_config('app.b', '', false); END", head="FUNCTION hidden.f() RETURNS void")
        # A superuser's setting, which the function may set, and the role may not again.
        function(shop, "BEGIN SET log_statement = 'all'; END", head="FUNCTION hidden.g() RETURNS void")
        for made_by in (
            "CREATE VIEW hidden.v AS SELECT set_config('app.v', a, false) FROM hidden.t",
            "CREATE RULE r AS ON INSERT TO hidden.t DO ALSO SELECT set_config('app.r', new.a, false)",
            "CREATE TABLE hidden.u (a text DEFAULT set_config('app.u', '', false))",
            "ALTER TABLE hidden.u ADD CHECK (set_config('app.c', a, false) = a)",
        ):
            shop.execute(made_by)
        shop.execute("CREATE ROLE catalogue_nobody")
        try:
            followed = {"app.a", "app.b", "app.v", "app.r", "app.u", "app.c"}
            assert found(shop).followed == {*followed, "log_statement"}
            shop.execute("SET SESSION AUTHORIZATION catalogue_nobody")
            assert found(shop).followed == followed
            assert "function hidden.g (SET log_statement)" in found(shop).leaves_state
        finally:
            shop.execute("RESET SESSION AUTHORIZATION; DROP ROLE catalogue_nobody")

    def test_nor_does_one_that_a_request_has_taken(self, shop: Session) -> None:
        """What is known is for all requests, and the session's own role sets it again."""
        function(shop, "BEGIN SET log_statement = 'all'; END")
        shop.execute("CREATE ROLE catalogue_nobody")
        try:
            shop.execute("SET ROLE catalogue_nobody")
            findings = found(shop)
            assert findings.followed == {"log_statement"}
            shop.execute("SET SESSION AUTHORIZATION catalogue_nobody")
            assert catalogue.read(shop, findings) == found(shop)
            assert found(shop).followed == frozenset()
        finally:
            shop.execute("RESET SESSION AUTHORIZATION; DROP ROLE catalogue_nobody")

    def test_so_it_is_on_servers_without_rights_for_parameters(self, shop: Session) -> None:
        shop.execute("CREATE ROLE catalogue_nobody")
        try:
            for become, may in (("SET ROLE", True), ("SET SESSION AUTHORIZATION", False)):
                shop.execute(f"{become} catalogue_nobody")
                [[(settable, _)]] = catalogue._answers(shop, catalogue._settable_query(140000))
                assert ("log_statement" in settable.split()) == may
        finally:
            shop.execute("RESET SESSION AUTHORIZATION; DROP ROLE catalogue_nobody")

    def test_the_session_is_left_as_it_was(self, shop: Session) -> None:
        function(shop, "BEGIN SET app.a = 1; END")
        # Nor does what it is like mislead.
        shop.execute(
            "CREATE TEMP TABLE pg_proc (a int); SET search_path = pg_temp, public; SET statement_timeout = 9999"
        )
        shop.execute("SET standard_conforming_strings = off; SET default_transaction_isolation = serializable")
        shop.row_factory = dict_row
        shop.cursor_factory = psycopg.ClientCursor
        shop.prepare_threshold = 0
        state = "SELECT name, setting FROM pg_settings ORDER BY name"
        look = psycopg.Cursor(shop)
        before = look.execute(state, prepare=False).fetchall()
        assert found(shop).followed == {"app.a"}
        assert shop.info.transaction_status == TransactionStatus.IDLE
        assert look.execute(state, prepare=False).fetchall() == before
        assert look.execute("SELECT name FROM pg_prepared_statements", prepare=False).fetchall() == []

    def test_whoever_may_not_look_does_not_know(self, shop: Session) -> None:
        shop.execute("REVOKE SELECT ON pg_catalog.pg_proc FROM public")
        shop.execute("CREATE ROLE catalogue_nobody")
        try:
            shop.execute("SET ROLE catalogue_nobody")
            assert catalogue.read(shop) is None
            assert shop.info.transaction_status == TransactionStatus.IDLE
        finally:
            shop.execute("RESET ROLE; DROP ROLE catalogue_nobody")

    # The server has no limit where it is 0.
    @pytest.mark.parametrize(("lock", "time"), [(10, 0), (0, 10)])
    def test_it_waits_for_no_migration(
        self, shop: Session, monkeypatch: pytest.MonkeyPatch, lock: int, time: int
    ) -> None:
        monkeypatch.setattr(catalogue, "LOCK_LIMIT", lock)
        monkeypatch.setattr(catalogue, "TIME_LIMIT", time)
        shop.execute("CREATE POLICY p ON shop_order USING (id IN (SELECT id FROM shop_order))")
        with psycopg.connect(shop.info.dsn, password=shop.info.password) as migration:
            migration.execute("LOCK TABLE shop_order")
            assert catalogue.read(shop) is None
        assert shop.info.transaction_status == TransactionStatus.IDLE

    @pytest.mark.parametrize("version", [130000, 140000, 150000])
    def test_older_servers_are_asked_for_what_they_have(self, shop: Session, version: int) -> None:
        function(shop, "BEGIN SET app.a = 1; END")
        functions = catalogue._functions_query(version, catalogue._candidates(version), catalogue._LOWERED)
        _, found = catalogue._answers(shop, catalogue._settable_query(version), functions)
        assert found == [("public.f", "f", "plpgsql", "BEGIN SET app.a = 1; END", "f")]
        for query, name, since in (
            (functions, "prosqlbody", 140000),
            (catalogue._settable_query(version), "has_parameter_privilege", 150000),
        ):
            assert (name in query) == (version >= since)

    def test_a_broken_connection_is_none_that_raises(self, shop: Session) -> None:
        shop.pgconn.finish()
        assert catalogue.read(shop) is None

    def test_ten_thousand_functions_cost_a_round_trip_and_no_rows(
        self, shop: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.execute("SET check_function_bodies = off")
        shop.execute(
            "DO $do$BEGIN FOR i IN 1..10000 LOOP EXECUTE format('CREATE FUNCTION f_%s() RETURNS trigger"
            " LANGUAGE plpgsql AS %L', i, 'BEGIN -- the total\n UPDATE shop_order\n SET id = ' || i || ';"
            " INSERT INTO shop_order VALUES (NEW.id) ON CONFLICT DO NOTHING; RETURN NEW; END'); END LOOP; END$do$"
        )
        function(shop, "BEGIN SET app.a = '1'; END")
        asked: list[int] = []
        answers = catalogue._answers

        def counted(*args: Any) -> list[list[tuple[str, ...]]]:
            answer = answers(*args)
            asked.append(sum(map(len, answer)))
            return answer

        monkeypatch.setattr(catalogue, "_answers", counted)
        findings = found(shop)
        # The fingerprint; which settings there are, and the one function; and no expressions.
        assert asked == [1, 2, 0]
        assert findings.followed == {"app.a"}
        asked.clear()
        assert catalogue.read(shop, findings) is findings
        assert asked == [1]
        shop.execute("DROP FUNCTION f()")
        assert catalogue.read(shop, findings) == Findings()

    def test_more_than_can_be_read_are_not_taken_for_harmless(
        self, shop: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalogue, "MOST", 1)
        for name in ("f", "g"):
            function(shop, "SELECT set_config('a.b', '', true)", "sql", f"FUNCTION {name}() RETURNS text")
        assert found(shop).leaves_state == ("functions beyond the first 1, which were not read",)


TENANT = Findings(frozenset({"app.a"}), {"app.a": "function f sets it"}, ("function f (SET app.a)",))


@pytest.fixture
def settings() -> Iterator[Callable[..., None]]:
    """Return what puts settings in force, and know nothing before and after."""
    before = conf.current
    known.reset()
    yield lambda **values: conf.apply(conf.strict(values))
    conf.apply(before)
    known.reset()


class TestKnown:
    def test_what_follows_and_whether_is_cleaned(self, settings: Callable[..., None]) -> None:
        settings()
        assert known.followed("a") == frozenset()
        assert known.cleans_always("a")
        known.note("a", TENANT, 0.0)
        assert known.followed("a") == {"app.a"}
        assert known.cleans_always("a")
        known.note("b", Findings(), 0.0)
        assert not known.cleans_always("b")
        settings(FOLLOWED_SETTINGS=["App.B"], CLEAN_SESSIONS="seen")
        assert known.followed("a") == {"app.b"}
        assert not known.cleans_always("a")
        settings(CLEAN_SESSIONS="always")
        assert known.cleans_always("b")

    def test_when_it_is_asked_again(self, settings: Callable[..., None]) -> None:
        settings()
        assert known.is_due("a", 0.0)
        known.note("a", Findings(), 0.0)
        assert not known.is_due("a", 299.0)
        assert known.is_due("a", 300.0)
        known.note("a", None, 300.0)
        assert known.cleans_always("a")
        assert not known.is_due("a", 329.0)
        assert known.is_due("a", 330.0)
        known.note("a", TENANT, 330.0)
        known.forget()
        assert known.is_due("a", 330.0)
        assert known.known_of("a") is None
        assert known.followed("a") == {"app.a"}
        settings(FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="seen")
        assert not known.is_due("a", 330.0)

    def test_when_a_session_needs_nothing_done(self, settings: Callable[..., None]) -> None:
        settings()
        assert not known.leaves_nothing("a")
        for findings, expected in ((Findings(), True), (TENANT, False), (Findings(), True), (None, False)):
            known.note("a", findings, 0.0)
            assert known.leaves_nothing("a") is expected
        settings(FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="seen")
        assert known.leaves_nothing("a")
        settings(FOLLOWED_SETTINGS=["app.b"], CLEAN_SESSIONS="seen")
        assert not known.leaves_nothing("a")

    def test_what_is_answered_while_settings_change_is_asked_again(
        self, settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings(FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="seen")
        plain = known.is_unknown

        def is_unknown(alias: str) -> bool:
            # As by another thread, at the last moment.
            settings(FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="always")
            return plain(alias)

        monkeypatch.setattr(known, "is_unknown", is_unknown)
        known.leaves_nothing("a")
        monkeypatch.undo()
        assert not known.leaves_nothing("a")

    def test_one_of_several_asks(self, settings: Callable[..., None]) -> None:
        settings()
        assert [known.begin_asking("a", now) for now in (0.0, 1.0, 30.0, 31.0)] == [True, False, True, False]

    def test_who_waits_for_what_follows_asks_as_well_if_nothing_is_known(self, settings: Callable[..., None]) -> None:
        settings()
        assert known.begin_asking("a", 0.0)
        assert [known.begin_asking("a", 1.0, is_needed=needed) for needed in (False, True)] == [False, True]
        known.note("a", Findings(), 1.0)
        assert [known.begin_asking("a", 302.0, is_needed=True) for _ in range(2)] == [True, False]
        known.forget("a")
        assert [known.begin_asking("a", 302.0, is_needed=needed) for needed in (False, True)] == [False, True]

    def test_asking(self, shop: Session, settings: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
        settings()
        with caplog.at_level(logging.INFO, "conn_hygiene.sessions"):
            assert known.begin_asking("a", 0.0)
            known.ask("a", shop)
            assert known.known_of("a") == Findings()
            assert caplog.messages == []
            function(shop, "BEGIN SET app.a = 1; END")
            known.forget("a")
            assert known.begin_asking("a", 0.0)
            known.ask("a", shop)
            known.ask("a", shop)
            shop.execute("DROP FUNCTION f()")
            known.ask("a", shop)
        assert caplog.messages == [
            "Connection 'a': settings that follow their request: app.a (function public.f sets it); sessions are to be "
            "cleaned at each return, for function public.f (SET app.a).",
            "Connection 'a': no setting follows by itself; no function or policy leaves anything in a session.",
        ]

    def test_and_what_the_settings_make_of_it(
        self, shop: Session, settings: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings(FOLLOWED_SETTINGS=[], CLEAN_SESSIONS="seen")
        function(shop, "BEGIN SET app.a = 1; END")
        known.reset()
        with caplog.at_level(logging.INFO, "conn_hygiene.sessions"):
            known.ask("a", shop)
        assert caplog.messages == [
            "Connection 'a': settings that would follow their request, were FOLLOWED_SETTINGS no list: app.a (function "
            "public.f sets it); sessions would be cleaned at each return, were CLEAN_SESSIONS not 'seen', for function "
            "public.f (SET app.a)."
        ]

    def test_migrations_have_it_asked_again(self, settings: Callable[..., None]) -> None:
        settings()
        conn_hygiene.install()
        known.note("default", Findings(), 0.0)
        known.note("other", Findings(), 0.0)
        call_command("migrate", verbosity=0)
        assert known.known_of("default") is None
        assert known.known_of("other") == Findings()
        connections["default"].close()
