"""Where the catalogue has expressions that are evaluated with no statement showing it, and what asks for them.

They are those of views, rules, defaults, checks and conditions of triggers, which it has as trees. What a tree calls is
there by number: no text is searched for names, and only what calls one of a few functions is written out as SQL.

Operators, aggregates and casts are another name of functions, which a statement does not show either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.sessions import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

# What initdb has made has lower numbers (FirstNormalObjectId); in a small database that is nearly everything.
_FIRST = 16384

#: The condition that *object* is no part of the server's own catalogue, be it in a schema of that.
IS_OWN = f"{{object}}.oid >= {_FIRST}"

#: The condition that *schema* is not one of the temporary ones, which other sessions have.
IS_LASTING = "{schema}.nspname !~ '^pg_(toast_)?temp_'"

#: Asks for the numbers of the functions that leave something in the session, which is how trees have them.
LEAVING = f"SELECT oid FROM pg_proc WHERE proname IN {sql.LEAVING!r} OR proname ~ '^({'|'.join(sql.BEGINNINGS)})'"


class _Kind(NamedTuple):
    """One kind of expressions that the catalogue has, as trees. In the SQL of each, *x* is a row of its table."""

    #: That table.
    catalogue: str
    #: How it is called.
    owner: str
    #: The trees as text; searched for numbers of functions.
    tree: str
    #: The column whose size tells how much there is to be searched, without decompressing it.
    stored: str
    #: The expression as SQL. For the few that are to be read: it locks the tables in it.
    text: str
    #: What extensions have, or have not: the class of such objects, and the number of this one.
    belongs_to: tuple[str, str]
    #: The OID of the schema.
    schema: str
    more: str = ""


def _of_relation(catalogue: str, owner: str, tree: str, text: str, relation: str) -> _Kind:
    more = f"JOIN pg_class c ON c.oid = x.{relation}"
    return _Kind(
        catalogue, owner, f"{tree}::text", tree, text, ("'pg_class'::regclass", "c.oid"), "c.relnamespace", more
    )


def _of_functions(
    catalogue: str, owner: str, functions: Sequence[str], stored: str, schema: str, more: str = ""
) -> _Kind:
    """Return a kind that has no trees but the numbers of *functions*, as an expression that calls all of them."""
    tree = f"':funcid ' || concat_ws(' :funcid ', {', '.join(f'{function}::oid' for function in functions)})"
    text = f"'SELECT ' || concat_ws('(), ', {', '.join(f'{function}::regproc' for function in functions)}) || '()'"
    return _Kind(catalogue, owner, tree, stored, text, (f"'{catalogue}'::regclass", "x.oid"), schema, more)


# Those of indexes, partitions, statistics and generated columns have to be immutable, which nothing is that leaves
# something behind.
_KINDS = (
    _of_relation(
        "pg_rewrite",
        """CASE WHEN x.ev_type <> '1' THEN format('rule %I of %s', x.rulename, c.oid::regclass)
                WHEN c.relkind = 'm' THEN format('materialized view %s', c.oid::regclass)
                ELSE format('view %s', c.oid::regclass) END""",
        "x.ev_action",
        "pg_get_ruledef(x.oid)",
        "ev_class",
    )._replace(tree="x.ev_action::text || x.ev_qual::text"),
    _of_relation(
        "pg_attrdef",
        """format('default of column %s.%I', c.oid::regclass,
                  (SELECT attname FROM pg_attribute WHERE attrelid = x.adrelid AND attnum = x.adnum))""",
        "x.adbin",
        "'SELECT ' || pg_get_expr(x.adbin, x.adrelid)",
        "adrelid",
    ),
    _of_relation(
        "pg_trigger",
        "format('condition of trigger %I of table %s', x.tgname, c.oid::regclass)",
        "x.tgqual",
        "pg_get_triggerdef(x.oid)",
        "tgrelid",
    ),
    _Kind(
        "pg_constraint",
        """CASE WHEN x.conrelid = 0 THEN format('constraint %I of domain %s', x.conname, x.contypid::regtype)
                ELSE format('constraint %I of table %s', x.conname, x.conrelid::regclass) END""",
        "x.conbin::text",
        "x.conbin",
        "'SELECT ' || pg_get_expr(x.conbin, x.conrelid)",
        (
            "CASE WHEN x.conrelid = 0 THEN 'pg_type'::regclass ELSE 'pg_class'::regclass END",
            "CASE WHEN x.conrelid = 0 THEN x.contypid ELSE x.conrelid END",
        ),
        "x.connamespace",
    ),
    _Kind(
        "pg_type",
        "format('default of domain %s', x.oid::regtype)",
        "x.typdefaultbin::text",
        "x.typdefaultbin",
        "'SELECT ' || pg_get_expr(x.typdefaultbin, 0)",
        ("'pg_type'::regclass", "x.oid"),
        "x.typnamespace",
    ),
    _Kind(
        "pg_proc",
        "format('default of a parameter of function %I.%I', n.nspname, x.proname)",
        "x.proargdefaults::text",
        "x.proargdefaults",
        "'SELECT ' || pg_get_expr(x.proargdefaults, 0)",
        ("'pg_proc'::regclass", "x.oid"),
        "x.pronamespace",
    ),
    _of_functions(
        "pg_operator",
        "format('operator %s', x.oid::regoperator)",
        ["x.oprcode"],
        "x.oprcode",
        "x.oprnamespace",
    ),
    _of_functions(
        "pg_proc",
        "format('aggregate %I.%I', n.nspname, x.proname)",
        [f"a.agg{step}fn" for step in ("trans", "final", "combine", "mtrans", "minvtrans", "mfinal")],
        "CASE x.prokind WHEN 'a' THEN x.prokind END",
        "x.pronamespace",
        "JOIN pg_aggregate a ON a.aggfnoid = x.oid",
    ),
    _of_functions(
        "pg_cast",
        "format('cast from %s to %s', x.castsource::regtype, x.casttarget::regtype)",
        ["x.castfunc"],
        "x.castfunc",
        "f.pronamespace",
        "JOIN pg_proc f ON f.oid = x.castfunc",
    ),
)


def _own(kind: _Kind) -> str:
    """Return where the expressions of *kind* are that are the project's own."""
    of, number = kind.belongs_to
    return f"""
FROM {kind.catalogue} x {kind.more} JOIN pg_namespace n ON n.oid = {kind.schema}
WHERE {IS_OWN.format(object="x")} AND {kind.stored} IS NOT NULL AND {IS_LASTING.format(schema="n")}
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = {of} AND d.objid = {number}
                AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')"""


# Split where a function is called, a tree costs a third of what a regular expression with so many numbers does. Setting
# what pg_settings has takes an UPDATE, which a rule may have, or a statement of a view that hands it on.
_CALLS_LEAVING = """EXISTS (SELECT FROM unnest(string_to_array({}, ':funcid ')) part
WHERE split_part(left(part, 11), ' ', 1) = ANY ((SELECT numbers FROM leaving)::text[]))"""
_HAS_SETTINGS = """EXISTS (SELECT FROM pg_depend s WHERE s.classid = 'pg_rewrite'::regclass AND s.objid = x.oid
     AND s.refclassid = 'pg_class'::regclass AND s.refobjid = 'pg_settings'::regclass)"""
_SETS_SETTINGS = f" OR (x.ev_type <> '1' AND {_HAS_SETTINGS})"
# To ask whether it can be updated takes locks, hence only where it matters.
_HANDS_SETTINGS_ON = f"""x.ev_type = '1'
     AND CASE WHEN {_HAS_SETTINGS} THEN pg_relation_is_updatable(c.oid, false) & 4 <> 0 ELSE false END"""

#: Asks what changes when one of the expressions does, or an extension gets or loses what has them; and how many bytes
#: there are of them, as they are compressed.
AMOUNT = (
    """SELECT concat_ws(' ', sum(changed), (SELECT sum(hashtext(objid || ' ' || classid)) FROM pg_depend
     WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
     AND classid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass, 'pg_cast'::regclass)
     )) AS changed, coalesce(sum(stored), 0) AS stored
     FROM ("""
    + " UNION ALL".join(
        "\nSELECT sum(hashtext(x.tableoid || ' ' || x.oid || ' ' || x.xmin)) AS changed,"
        f" sum(pg_column_size({kind.stored})) AS stored"
        f" FROM {kind.catalogue} x WHERE {IS_OWN.format(object='x')} AND {kind.stored} IS NOT NULL"
        for kind in _KINDS
    )
    + ") k"
)


def question(most: int) -> str:
    """Return what asks for the expressions, *most* of them, that may leave something: whose each is, and it as SQL."""
    kinds = [
        f"\nSELECT {kind.owner}, {kind.text}{_own(kind)}\nAND ({_CALLS_LEAVING.format(kind.tree)}"
        f"{_SETS_SETTINGS if kind.catalogue == 'pg_rewrite' else ''})"
        for kind in _KINDS
    ]
    [of_views] = [kind for kind in _KINDS if kind.catalogue == "pg_rewrite"]
    kinds.append(f"\nSELECT {of_views.owner}, 'UPDATE pg_settings'{_own(of_views)}\nAND {_HANDS_SETTINGS_ON}")
    numbers = f"WITH leaving AS MATERIALIZED (SELECT array_agg(oid::text) AS numbers FROM ({LEAVING}) o)"
    return f"{numbers}{' UNION ALL'.join(kinds)}\nLIMIT {most}"
