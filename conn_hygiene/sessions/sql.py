"""What a SQL statement leaves behind in its session.

A session that carries state of its own must stay with its owner, and must be clean before anybody else gets it. The
list follows what Amazon's RDS Proxy documents under "pinning" for PostgreSQL; the statements themselves are described
in the PostgreSQL documentation under "SQL Commands". Only what a statement says is seen here: a function that changes
a setting in its body is found by the parameters that the server reports, if at all (see
:mod:`conn_hygiene.sessions.state`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from conn_hygiene.masking import IN_NAME, LETTER, LETTER_OR_DIGIT

if TYPE_CHECKING:
    import psycopg

# The reasons, as they stand in logs, in snapshot() and in the documentation.
SETTING = "SET"
TEMPORARY = "temporary table"
ADVISORY_LOCK = "advisory lock"
LISTEN = "LISTEN"
PREPARED = "PREPARE"
HELD_CURSOR = "cursor WITH HOLD"
LIBRARY = "LOAD"
REMOTE = "dblink connection"
SEED = "setseed()"
CODE = "DO block"
SHARED = "copy of the database wrapper"
PAST = "use before install()"
DISCARDED = "DISCARD ALL"
UNREADABLE = "statement that cannot be read"


# What DISCARD ALL does not undo, or may not: a session with one of these is closed, never handed on.
INDELIBLE = frozenset({LIBRARY, REMOTE, SEED, CODE, UNREADABLE})

# What needs mending before somebody else gets the session, but does not matter to its owner.
HARMLESS = frozenset({DISCARDED})


class Placeholder(NamedTuple):
    """One of a statement's parameters: its index from 0 on, or its name."""

    key: int | str


class Setting(NamedTuple):
    """A setting of the session that a statement sets or resets, and whose name can be read."""

    #: In lower case, which is how PostgreSQL compares names; such as ``"app.tenant"``, ``"timezone"`` or ``"role"``.
    name: str | Placeholder
    #: Whether it is ``SET LOCAL`` after all, for a ``set_config()`` that is told so by a parameter.
    is_local: bool | Placeholder = False


class Effect(NamedTuple):
    """The state that a statement adds to its session, and the state that it takes away."""

    #: Reasons. ``SETTING`` is among them if a name cannot be read, or if all settings are reset.
    adds: frozenset[str]
    removes: frozenset[str]
    #: What it sets or resets under names that can be read.
    settings: frozenset[Setting] = frozenset()

    def with_parameters(self, parameters: Any) -> Effect:
        """Return the same with the names of the settings read from the statement's *parameters*, where they are there.

        What is local to a transaction is left out; what cannot be read is a ``SETTING`` of unknown name.
        """
        names: set[Setting] = set()
        adds = self.adds
        for setting in self.settings:
            local = _given(setting.is_local, parameters)
            if local is True or (isinstance(local, str) and local.lower() in _TRUE):
                continue
            name = _given(setting.name, parameters)
            if isinstance(name, str):
                names.add(Setting(name.lower()))
            else:
                adds |= {SETTING}
        return Effect(adds, self.removes, frozenset(names))


# As PostgreSQL reads a boolean that comes as a string (documentation, "Boolean Type").
_TRUE = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})


def _given(value: Any, parameters: Any) -> Any:
    if not isinstance(value, Placeholder):
        return value
    try:
        return parameters[value.key]
    except (TypeError, LookupError):
        return None


# What a statement has to contain somewhere to be worth reading more closely. Plain searches for substrings, because
# nearly all statements of an application have none of these, and they should not pay for the rest.
_HINTS = (
    "set",
    "listen",
    "temp",
    "prepare",
    "deallocate",
    "declare",
    "close",
    "load",
    "discard",
    "advisory",
    "dblink",
    'u&"',
)

# Of all patterns here, none may try a long text anew from each of its characters, nor remember each of them on the way.

# PostgreSQL's comments nest. Deeper than this nobody goes, and what does cannot be read.
_COMMENT = r"/\*[^*/]*(?:(?:\*(?!/)|/(?!\*))[^*/]*)*\*/"
for _ in range(3):
    _COMMENT = rf"/\*[^*/]*(?:(?:\*(?!/)|/(?!\*)|{_COMMENT})[^*/]*)*\*/"

# A string in which a backslash escapes. It may go on in another line, and does so by the same rule. One without an end
# goes on to the end: the server refuses the whole.
_ESCAPED = r"'[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z)"
_ESCAPED = rf"{_ESCAPED}(?:\s*(?:--[^\n\r]*[\n\r]\s*)*{_ESCAPED})*"


def _quoted(string: str) -> re.Pattern[str]:
    """Return what finds everything in which a keyword is not a keyword; *string* is the pattern of a plain string."""
    # A doubled quote needs no rule where nothing escapes: it is the end of one string and the start of another. Dollar
    # quotes need the same tag at both ends, and are part of a name where they follow one.
    return re.compile(
        rf"""
          --[^\n\r]*
        | {_COMMENT}
        | (?<!{IN_NAME})[eE]{_ESCAPED}
        | {string}
        | "[^"]*"
        | (?<!{IN_NAME})(?P<tag>\$(?:{LETTER}{LETTER_OR_DIGIT}*)?\$)(?:.*?(?P=tag)|.*)
        """,
        re.DOTALL | re.VERBOSE,
    )


# Whether a backslash escapes in a plain string is for standard_conforming_strings to say, the session's and not ours.
_QUOTED = _quoted("'[^']*'")
_QUOTED_IF_BACKSLASHES_ESCAPE = _quoted(_ESCAPED)

# EXPLAIN ANALYZE runs what it explains, which may be in parentheses as the options are.
_EXPLAIN = re.compile(
    r"explain\b(?:\s*\((?!\s*(?:select\b|with\b|\())[^()]*\)|\s*(?:analy[sz]e|verbose)\b)*", re.IGNORECASE
)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    adds: frozenset[str]
    removes: frozenset[str]


# White space as PostgreSQL knows it, and the parentheses that a query may stand in.
_FILLER = " \t\r\n\f\v("


def _rule(pattern: str, *adds: str, removes: frozenset[str] = frozenset()) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE | re.DOTALL), frozenset(adds), removes)


# The schema of temporary things: by its alias or, for those who looked it up, by its name.
_PG_TEMP = r'\bpg_temp(?:_\d+)?"?\s*\.'

# Matched at the start of each statement. SET and PREPARE have keywords after them that are names as well.
_COMMANDS = [
    _rule(r"set\b(?!\s*(?:local|constraints|transaction)\b(?!\s*\.))", SETTING),
    _rule(r"reset\b", SETTING),
    _rule(r"listen\b", LISTEN),
    _rule(r"unlisten\s*\*", removes=frozenset({LISTEN})),
    _rule(r"create\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?temp(?:orary)?\b", TEMPORARY),
    _rule(rf"create\b[^(]*{_PG_TEMP}", TEMPORARY),
    # Up to PostgreSQL 14, a number may stand right before a keyword.
    _rule(
        rf"""(?:select|with)\b.*?(?:\b|(?<=\d))into\b\s*(?:table\b\s*|(?:local|global)\s+)?"""
        rf"""(?:temp(?:orary)?\b|"?{_PG_TEMP})""",
        TEMPORARY,
    ),
    _rule(r"prepare\b(?!\s*transaction\b\s*')", PREPARED),
    _rule(r"deallocate\s+(?:prepare\s+)?all\b", removes=frozenset({PREPARED})),
    _rule(r"declare\b.*?\bwith\s+hold\b", HELD_CURSOR),
    _rule(r"close\s+all\b", removes=frozenset({HELD_CURSOR})),
    _rule(r"load\b", LIBRARY),
    _rule(r"do\b", CODE),
    _rule(r"discard\s+temp(?:orary)?\b", removes=frozenset({TEMPORARY})),
]

# The server refuses it beside other statements. It takes away what the backend itself set up as well (time zone, role),
# hence leaves something to mend.
_DISCARD_ALL = _rule(
    r"[\s;]*discard\s+all[\s;]*\Z",
    DISCARDED,
    removes=frozenset({SETTING, TEMPORARY, ADVISORY_LOCK, LISTEN, PREPARED, HELD_CURSOR}),
)

# Matched anywhere in a statement. A function's name may be quoted.
_FUNCTIONS = [
    _rule(r'\bpg_(?:try_)?advisory_lock(?:_shared)?"?\s*\(', ADVISORY_LOCK),
    # Nothing else may be in the statement: it could keep the function from being called, or lock after it.
    _rule(
        r"\A\s*select\s+(?:\*\s*from\s+)?(?:pg_catalog\s*\.\s*)?pg_advisory_unlock_all\s*\(\s*\)\s*\Z",
        removes=frozenset({ADVISORY_LOCK}),
    ),
    # set_config(name, value, true) is SET LOCAL; whatever cannot be read as a plain `true` is taken for a SET.
    _rule(r'\bset_config"?\s*\((?![^()]*,\s*true\s*\))', SETTING),
    _rule(r'\bsetseed"?\s*\(', SEED),
    _rule(r'\bdblink_connect(?:_u)?"?\s*\(', REMOTE),
    # A name in Unicode escapes may be any of the above.
    _rule(r'\bu&"', UNREADABLE),
]


def effect_of(sql: str) -> Effect | None:
    """Return what *sql*, one statement or several, does to its session's state; None for nothing.

    Errs on the side of pinning: a statement that is taken for a ``SET`` and is none costs a release, the opposite costs
    a secret.
    """
    lowered = sql.lower()
    # A DO block has its code in a string, so a statement without one of its quotes is none.
    code = "do" in lowered and ("$" in lowered or "'" in lowered)
    if not code and not any(hint in lowered for hint in _HINTS):
        return None
    effect = _read(_QUOTED.sub(_blank, sql))
    if "\\'" in sql:
        other = _read(_QUOTED_IF_BACKSLASHES_ESCAPE.sub(_blank, sql))
        effect = Effect(effect.adds | other.adds, effect.removes & other.removes)
    return effect if any(effect) else None


def _read(plain: str) -> Effect:
    """Return the effect of statements without comments, and with nothing in their strings."""
    if "/*" in plain:
        return Effect(frozenset({UNREADABLE}), frozenset())
    if _DISCARD_ALL.pattern.match(plain):
        return Effect(_DISCARD_ALL.adds, _DISCARD_ALL.removes)
    adds: set[str] = set()
    removes: set[str] = set()
    for statement in plain.split(";"):
        text = statement.lstrip(_FILLER)
        if explain := _EXPLAIN.match(text):
            text = text[explain.end() :].lstrip(_FILLER)
        rules = [rule for rule in _COMMANDS if rule.pattern.match(text)]
        rules += [rule for rule in _FUNCTIONS if rule.pattern.search(statement)]
        for rule in rules:
            removes |= rule.removes
            adds = (adds - rule.removes) | rule.adds
    settings = frozenset(Setting(match[1].lower()) for match in _SET_NAME.finditer(plain))
    if settings:
        adds.discard(SETTING)
    return Effect(frozenset(adds), frozenset(removes), settings)


_SET_NAME = re.compile(r"(?:^|;)\s*(?:set|reset)\s+(?:session\s+)?([\w.]+)\s*(?:=|to\b|;|$)", re.IGNORECASE)


# The same, remembered; for statements of up to LONGEST_REMEMBERED characters, for the memory's sake.
remembered_effect_of = lru_cache(maxsize=1024)(effect_of)
LONGEST_REMEMBERED = 10_000


def _blank(match: re.Match[str]) -> str:
    """Replace a comment by a space, a string by an empty one, and a quoted identifier by one without punctuation.

    The identifier keeps its quotes, without which ``"all"`` would be a keyword.
    """
    if match[0].startswith('"'):
        return '"' + re.sub(r"\W", "_", match[0][1:-1]) + '"'
    return " " if match[0].startswith(("--", "/*")) else "''"


def text_of(query: Any, connection: psycopg.Connection[Any] | None) -> str | None:
    """Return the text of anything that psycopg executes (str, bytes, Composable, Template), or None if it has none.

    *connection* is the running thread's own; without one, what it would decide is taken as psycopg's defaults have it.
    """
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    try:
        if hasattr(query, "as_string"):
            return str(query.as_string(connection))
        # A template string (Python 3.14). An interpolation is a value, or a piece of SQL that knows its own text.
        return "".join(
            part if isinstance(part, str) else (text_of(part.value, connection) or "")
            for part in query
            if isinstance(part, str) or part.format_spec in ("q", "i") or hasattr(part.value, "as_string")
        )
    except Exception:  # noqa: BLE001 - whatever is wrong with the query, psycopg will say it better
        return None
