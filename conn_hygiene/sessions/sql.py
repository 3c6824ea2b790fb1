"""What a SQL statement leaves behind in its session.

A session that carries state of its own must stay with its owner, and must be clean before anybody else gets it. The
list follows what Amazon's RDS Proxy documents under "pinning" for PostgreSQL; the statements themselves are described
in the PostgreSQL documentation under "SQL Commands". Only what a statement says is seen here: what a function does in
its body is found in the catalogue (see :mod:`conn_hygiene.sessions.catalogue`), or by the parameters that the server
reports (:mod:`conn_hygiene.sessions.state`).
"""

from __future__ import annotations

import itertools
import re
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from conn_hygiene.masking import IN_NAME, LETTER
from conn_hygiene.sessions.effects import (
    ADVISORY_LOCK,
    ALL,
    BACKUP,
    CODE,
    DISCARDED,
    EXTENSION,
    HELD_CURSOR,
    LIBRARY,
    LISTEN,
    ORIGIN,
    PATH,
    PREPARED,
    REMOTE,
    SEARCH_PATH,
    SEED,
    SETTING,
    SLOT,
    TEMPORARY,
    UNKNOWN,
    UNREADABLE,
    Effect,
    Placeholder,
    Setting,
    is_true,
    of_setting,
)
from conn_hygiene.sessions.lexer import SPACE, Text, folded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    "pgv_",
    "replication_slot",
    "backup",
    "query_to_xml",
    "ts_stat",
    "ts_rewrite",
    "crosstab",
    'u&"',
)


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
    effect = _Reader(Text(sql)).effect()
    # Whether a backslash escapes in a plain string is for standard_conforming_strings to say, the session's and not
    # ours. There is a difference only where one stands before a quote.
    if "\\'" in sql:
        other = _Reader(Text(sql, backslashes_escape=True)).effect()
        adds = effect.adds | other.adds
        effect = Effect(adds, (effect.removes & other.removes) - adds, effect.settings | other.settings)
    return effect if any(effect) else None


# What a SET sets that is not followed by a name.
_PHRASES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("time", "zone"), ("timezone",)),
    (("session", "authorization"), ("session_authorization",)),
    (
        ("session", "characteristics", "as"),
        ("default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"),
    ),
    (("xml", "option"), ("xmloption",)),
    (("names",), ("client_encoding",)),
    (("role",), ("role",)),
    (("schema",), (SEARCH_PATH,)),
    # These end with the transaction.
    (("transaction",), ()),
    (("constraints",), ()),
]
# What makes a name of the keyword before it.
_AFTER_A_NAME = frozenset({".", "=", "to", "from"})

#: Of a longer part of a name the server cuts off the rest, where it is written as a name; in bytes.
LONGEST_NAME = 63

# What keeps statements from being surely done when the string that they are in has been executed.
_TRANSACTION_CONTROL = frozenset({"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release"})

_TEMP = frozenset({"temp", "temporary"})
_OR_REPLACE = frozenset({"or", "replace"})

_UNDONE_BY_DISCARD_ALL = frozenset({SETTING, TEMPORARY, ADVISORY_LOCK, LISTEN, PREPARED, HELD_CURSOR})

# Statements that undo all of a kind, as the tokens that they consist of. With anything else in it, a query might not
# call the function, or lock after it.
_UNDOINGS: dict[tuple[str, ...], str] = {
    ("unlisten", "*"): LISTEN,
    ("deallocate", "all"): PREPARED,
    ("deallocate", "prepare", "all"): PREPARED,
    ("close", "all"): HELD_CURSOR,
    ("discard", "temp"): TEMPORARY,
    ("discard", "temporary"): TEMPORARY,
}
_UNDOINGS |= {
    (*words, *schema, "pg_advisory_unlock_all", "(", ")"): ADVISORY_LOCK
    for words in (("select",), ("select", "*", "from"))
    for schema in ((), ("pg_catalog", "."))
}
_LONGEST_UNDOING = max(map(len, _UNDOINGS))

# The parentheses that a query may stand in.
_FILLER = re.compile(rf"[{SPACE}(]*")
# EXPLAIN ANALYZE runs what it explains, which may be in parentheses as the options are.
_EXPLAIN = re.compile(
    rf"explain(?!{IN_NAME})(?:\s*\((?!\s*(?:select|with|values|table|\()(?!{IN_NAME}))[^()]*\)"
    rf"|\s*(?:analy[sz]e|verbose)(?!{IN_NAME}))*"
)
_WORD = re.compile(f"{LETTER}{IN_NAME}*")
_WITH_HOLD = re.compile(rf"(?<!{IN_NAME})with\s+hold(?!{IN_NAME})")
_ATOMIC = re.compile(rf"(?<!{IN_NAME})begin\s+atomic(?!{IN_NAME})")
# The schema of temporary things: by its alias or, for those who looked it up, by its name.
_PG_TEMP = re.compile(rf"(?<!{IN_NAME})pg_temp(?:_[0-9]+)?(?!{IN_NAME})")
# Up to PostgreSQL 14, a number may stand right before a keyword. That these begin with a letter, and look back only
# then, is what makes the search for them fast.
_INTO_TEMP = re.compile(
    rf"into(?:(?<!{IN_NAME}into)|(?<=[0-9]into))(?!{IN_NAME})\s*"
    rf"(?:(?:(?:local|global)\s+)?temp(?:orary)?(?!{IN_NAME})"
    rf'|(?:unlogged\s+)?(?:table(?!{IN_NAME})\s*)?"?pg_temp(?:_[0-9]+)?(?!{IN_NAME}))'
)
# A row goes into a table of that name; but a column may be called so, too, right before the INTO.
_ROW_INTO = re.compile(rf"(?P<inside>\([{SPACE}]*)?(?<!{IN_NAME})(?P<word>insert|merge)[{SPACE}]*\Z")
# What says which statement it is, behind a WITH or a PREPARE as well.
_VERB = re.compile(rf"[()]|(?<!{IN_NAME})(?:select|insert|update|delete|merge|values|table)(?!{IN_NAME})")
_UPDATE = re.compile(rf"update(?<!{IN_NAME}update)(?!{IN_NAME})")
_PG_SETTINGS = re.compile(rf"pg_settings(?<!{IN_NAME}pg_settings)(?!{IN_NAME})")

# What a call of these leaves behind.
_FUNCTIONS = {
    "pg_advisory_lock": ADVISORY_LOCK,
    "pg_advisory_lock_shared": ADVISORY_LOCK,
    "pg_try_advisory_lock": ADVISORY_LOCK,
    "pg_try_advisory_lock_shared": ADVISORY_LOCK,
    "setseed": SEED,
    "dblink_connect": REMOTE,
    "dblink_connect_u": REMOTE,
    "pg_replication_origin_session_setup": ORIGIN,
    # Under its older name up to PostgreSQL 14.
    "pg_backup_start": BACKUP,
    "pg_start_backup": BACKUP,
    # Those of set_user and temporal_tables.
    "set_user": EXTENSION,
    "reset_user": EXTENSION,
    "set_session_auth": EXTENSION,
    "set_system_time": EXTENSION,
}
#: How those begin of pg_variables and hll that leave something.
BEGINNINGS = ("pgv_set", "pgv_insert", "hll_set_")
# Those of extensions that set something, and what.
_SETTERS = {"set_limit": "pg_trgm.similarity_threshold"}
# Those that may make what lasts as long as the session, and the place of the argument that says so; None: it need not.
_SLOTS = {
    "pg_create_physical_replication_slot": 2,
    "pg_create_logical_replication_slot": 2,
    "pg_copy_physical_replication_slot": None,
    "pg_copy_logical_replication_slot": None,
}
# Those that execute arguments, and the places of these.
_EXECUTING = {
    "query_to_xml": (0,),
    "query_to_xmlschema": (0,),
    "query_to_xml_and_xmlschema": (0,),
    "ts_stat": (0,),
    "ts_rewrite": (1,),
    "crosstab": (0, 1),
    "crosstab2": (0,),
    "crosstab3": (0,),
    "crosstab4": (0,),
}
_SET_CONFIG = "set_config"
#: All of these but those that are known by their beginning: the functions that leave something behind, or may.
LEAVING = (*_FUNCTIONS, *_SETTERS, *_SLOTS, *_EXECUTING, _SET_CONFIG)
_CALLS = {
    name: re.compile(rf'{name}(?<!{IN_NAME}{name}){f"{IN_NAME}*" if name in BEGINNINGS else ""}"?\s*\(')
    for name in (*LEAVING, *BEGINNINGS)
}
# Tokens of a call that are read.
_LONGEST_CALL = 200


class _Reader:
    """Collects what the statements of one text do."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._plain = text.plain
        self._adds: set[str] = set()
        self._removes: set[str] = set()
        self._settings: set[Setting] = set()
        self._resets: set[str] = set()
        # What a statement has others, or the end of the transaction, leave after all that undoes it.
        self._left_again: set[str] = set()

    def effect(self) -> Effect:
        if self._text.unreadable:
            self._adds.add(UNREADABLE)
        if tuple(itertools.islice(self._words(0, len(self._plain)), 3)) == ("discard", "all"):
            # The server refuses it beside other statements. It takes away what the backend itself set up as well (time
            # zone, role), hence leaves something to mend.
            return Effect(frozenset({DISCARDED}), _UNDONE_BY_DISCARD_ALL)
        for start, end in self._statements():
            self._statement(start, end)
        is_alone = self._resets and sum(1 for start, end in self._statements() if self._plain[start:end].strip()) == 1
        # What follows an undoing is left all the same; what preceded it is among the additions no more.
        return Effect(
            frozenset(self._adds),
            frozenset(self._removes - self._adds),
            frozenset(self._settings),
            frozenset(self._resets if is_alone else ()),
        )

    def _statements(self) -> Iterator[tuple[int, int]]:
        start = 0
        while (end := self._plain.find(";", start)) >= 0:
            yield start, end
            start = end + 1
        yield start, len(self._plain)

    def _words(self, start: int, end: int) -> Iterator[str]:
        return (token for token in self._text.tokens(start, end) if token != ";")

    def _statement(self, start: int, end: int) -> None:
        plain = self._plain
        known = len(self._adds) + len(self._settings)
        self._calls(start, end)
        if _PG_SETTINGS.search(plain, start, end) and _UPDATE.search(plain, start, end):
            self._adds.add(SETTING)
        if any(not self._takes_a_row(into.start(), start, end) for into in _INTO_TEMP.finditer(plain, start, end)):
            self._adds.add(TEMPORARY)
        undone = _UNDOINGS.get(tuple(itertools.islice(self._text.tokens(start, end), _LONGEST_UNDOING + 1)))
        if undone and self._certain and undone not in self._left_again:
            self._removes.add(undone)
            self._adds.discard(undone)
        position = self._beginning(start, end)
        if explain := _EXPLAIN.match(plain, position, end):
            position = self._beginning(explain.end(), end)
        if word := _WORD.match(plain, position, end):
            self._command(word[0], word.end(), end, calls=known < len(self._adds) + len(self._settings))

    def _takes_a_row(self, into: int, start: int, end: int) -> bool:
        """Return whether the INTO at *into*, in the statement from *start* to *end*, is one of INSERT or MERGE."""
        row = _ROW_INTO.search(self._plain, max(into - 40, start), into)
        return row is not None and (row["inside"] is not None or row.start("word") == self._verb(start, end))

    def _verb(self, start: int, end: int) -> int:
        """Return where the word is that says which statement it is, be it behind a WITH; -1 if there is none."""
        depth = 0
        for found in _VERB.finditer(self._plain, self._beginning(start, end), end):
            if found[0] == "(":
                depth += 1
            elif found[0] == ")":
                depth -= 1
            elif not depth:
                return found.start()
        return -1

    def _beginning(self, start: int, end: int) -> int:
        found = _FILLER.match(self._plain, start, end)
        return found.end() if found else start

    @cached_property
    def _certain(self) -> bool:
        """Whether each statement is executed if the whole is, and stays executed.

        A transaction may be rolled back. In the body of a function or of a rule, too, statements end in semicolons.
        """
        if self._text.unreadable or _ATOMIC.search(self._plain):
            return False
        for start, end in self._statements():
            word = _WORD.match(self._plain, self._beginning(start, end), end)
            if word and word[0] in _TRANSACTION_CONTROL:
                return False
            if self._plain.count("(", start, end) != self._plain.count(")", start, end):
                return False
        return True

    def _command(self, word: str, start: int, end: int, *, calls: bool) -> None:
        """Read the statement that begins with *word*. *calls*: whether it calls what leaves something behind."""
        if word in ("set", "reset"):
            tokens = list(self._text.tokens(start, end))
            if word == "set":
                self._set(tokens)
            else:
                self._reset(tokens)
        elif word in _COMMANDS:
            self._adds.add(_COMMANDS[word])
        elif word in ("create", "alter", "import"):
            if self._is_temporary(start, end):
                self._adds.add(TEMPORARY)
            if word == "create" and self._creates_own_function(start, end):
                self._adds.add(CODE)
        elif word == "prepare":
            two = list(itertools.islice(self._text.tokens(start, end), 2))
            if two[:1] != ["transaction"] or not two[-1].startswith("'"):
                self._keeps(PREPARED, calls=calls)
        elif word == "declare":
            self._keeps(HELD_CURSOR if _WITH_HOLD.search(self._plain, start, end) else None, calls=calls)

    def _keeps(self, reason: str | None, *, calls: bool) -> None:
        """Take note of a query that is executed later, and maybe more than once: when, is not for its text to say."""
        if reason:
            self._adds.add(reason)
        if calls:
            # After all that undoes what it has left so far, it may leave the same again; WITH HOLD, as the transaction
            # ends.
            self._adds.add(SETTING)
            self._left_again |= self._adds

    def _is_temporary(self, start: int, end: int) -> bool:
        for token in itertools.islice(self._text.tokens(start, end), 5):
            if token in _TEMP:
                return True
            if token not in ("or", "replace", "local", "global"):
                break
        return _PG_TEMP.search(self._plain, start, end) is not None

    def _creates_own_function(self, start: int, end: int) -> bool:
        """Return whether a function of the session's own is created: no catalogue that is asked has its code."""
        tokens = [token for token in itertools.islice(self._text.tokens(start, end), 5) if token not in _OR_REPLACE]
        return tokens[:1] in (["function"], ["procedure"]) and _PG_TEMP.search(" ".join(tokens[1:2])) is not None

    # ##### Settings #####

    def _set(self, tokens: list[str]) -> None:
        scope, rest = _scope(tokens)
        names, value = self._name_and_value(rest)
        self._take(names, scope == "local")
        if names is None or SEARCH_PATH in names:
            self._search_path(value)

    def _reset(self, tokens: list[str]) -> None:
        names, _ = self._name_and_value([*tokens, "="])
        is_all = tokens == [ALL]
        self._take(None if tokens[:1] == [ALL] else names, False)
        self._resets.update([ALL] if is_all else map(folded, names or ()))

    def _name_and_value(self, tokens: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
        """Return what a SET without its scope sets, None if that cannot be told; and the tokens of the value."""
        for phrase, names in _PHRASES:
            rest = tokens[len(phrase) :]
            if tuple(tokens[: len(phrase)]) == phrase and (len(phrase) > 1 or _AFTER_A_NAME.isdisjoint(rest[:1])):
                return names, rest
        parts = []
        for place, token in enumerate(tokens):
            if place % 2 == 0:
                part = self._text.value(token) if token[0] == '"' or _WORD.match(token) else None
                if part is None or len(part.encode("utf-8", "replace")) > LONGEST_NAME:
                    break
                parts.append(part)
            elif token != ".":
                return ((".".join(parts),) if token in ("=", "to", "from") else None), tokens[place:]
        return None, tokens

    def _search_path(self, value: list[str]) -> None:
        """Take note of a path that may have what is created in it be temporary."""
        for token in value:
            if token[0] == "%":
                self._settings.add(Setting(SEARCH_PATH, True))
            content = self._text.value(token)
            if content is None or "pg_temp" in content.lower():
                self._adds.add(TEMPORARY)
                self._left_again.add(TEMPORARY)

    def _take(self, names: Iterable[str | Placeholder] | None, local: bool | Placeholder) -> None:
        if names is None:
            if local is not True:
                self._adds.add(SETTING)
            return
        for name in names:
            if isinstance(name, Placeholder):
                self._settings.add(Setting(name, local))
            else:
                adds, settings = of_setting(folded(name), local)
                self._adds |= adds
                self._settings |= settings

    # ##### Functions #####

    @cached_property
    def _called(self) -> list[str]:
        return [name for name in _CALLS if name in self._plain]

    def _calls(self, start: int, end: int) -> None:
        for name in self._called:
            for found in _CALLS[name].finditer(self._plain, start, end):
                self._call(name, self._arguments(found.end(), end))

    def _call(self, name: str, arguments: list[list[str]] | None) -> None:
        if name in _FUNCTIONS:
            self._adds.add(_FUNCTIONS[name])
        elif name in BEGINNINGS:
            self._adds.add(EXTENSION)
        elif name in _SETTERS:
            self._settings.add(Setting(_SETTERS[name]))
        elif name in _SLOTS:
            if _may_be_true(arguments, _SLOTS[name]):
                self._adds.add(SLOT)
        elif name in _EXECUTING:
            self._execute(arguments, _EXECUTING[name])
        else:
            self._set_config(arguments)

    def _execute(self, arguments: list[list[str]] | None, places: tuple[int, ...]) -> None:
        """Read the statements that are the arguments at these *places*, as many of them as there are."""
        if arguments is None:
            self._adds |= UNKNOWN.adds
            return
        # Of ts_rewrite(), another form has three, none of which is executed.
        if places == (1,) and len(arguments) != 2:
            return
        for place in places:
            # The second one of crosstab() need not be there, and may be a number.
            if place < len(arguments) and not (place and _is_number(arguments[place])):
                self._execute_text(self._constant(arguments[place]))

    def _execute_text(self, text: str | Placeholder | None) -> None:
        if not isinstance(text, str) or 'u&"' in text.lower() or any(name in text.lower() for name in _EXECUTING):
            # In what they execute, somebody may go on like this for ever.
            effect: Effect | None = UNKNOWN
        else:
            effect = effect_of(text)
        if effect is not None:
            self._adds |= effect.adds
            self._settings |= effect.settings

    def _arguments(self, start: int, end: int) -> list[list[str]] | None:
        """Return the arguments of a call that begin at *start*, as tokens; None if they are too long to be read."""
        arguments: list[list[str]] = [[]]
        depth = 0
        for token in itertools.islice(self._text.tokens(start, end), _LONGEST_CALL):
            if token in ("(", "["):
                depth += 1
            elif token in (")", "]"):
                depth -= 1
                if depth < 0:
                    return arguments
            if token == "," and not depth:
                arguments.append([])
            else:
                arguments[-1].append(token)
        return None

    def _set_config(self, arguments: list[list[str]] | None) -> None:
        if arguments is None or len(arguments) != 3:
            self._adds.add(SETTING)
            return
        name = self._constant(arguments[0])
        local: Any = self._constant(arguments[2])
        if isinstance(local, str):
            local = is_true(local)
        # Whether it is local cannot be told otherwise: then it is not taken for local.
        self._take(None if name is None else [name], local or False)
        if name is None or isinstance(name, Placeholder) or folded(name) == SEARCH_PATH:
            self._search_path(arguments[1])
            if local and self._constant(arguments[1]) is None:
                # Tables that are created under it outlive the transaction.
                self._adds.add(PATH)

    def _constant(self, tokens: list[str]) -> str | Placeholder | None:
        """Return what an argument is, if it is a string or a placeholder, or a boolean."""
        token, *cast = tokens or [""]
        if cast and (len(cast) != 3 or cast[:2] != [":", ":"]):
            return None
        if token[:1] == "%" and len(token) > 1:
            return Placeholder(self._text.parameter(token))
        if token in ("true", "false"):
            return token
        # What has a percent sign may be a placeholder in quotes, which the server does not see.
        value = self._text.value(token) if token[:1] == "'" else None
        return None if value is None or "%" in value else value


# Commands that are what they leave behind.
_COMMANDS = {"listen": LISTEN, "load": LIBRARY, "do": CODE}


def _is_number(tokens: list[str]) -> bool:
    return len(tokens) == 1 and tokens[0].isdecimal()


def _may_be_true(arguments: list[list[str]] | None, place: int | None) -> bool:
    """Return whether the argument at *place* may be true, or one that is named."""
    if arguments is None or place is None or any(tokens[1:3] in ([":", "="], ["=", ">"]) for tokens in arguments):
        return True
    return len(arguments) > place and arguments[place] != ["false"]


def _scope(tokens: list[str]) -> tuple[str | None, list[str]]:
    """Return what of LOCAL and SESSION a SET has, if any, and the rest of its tokens."""
    scope, *rest = tokens or [""]
    is_phrase = scope == "session" and (rest[:1] == ["authorization"] or rest[:2] == ["characteristics", "as"])
    if scope not in ("local", "session") or is_phrase or not _AFTER_A_NAME.isdisjoint(rest[:1]):
        return None, tokens
    return scope, rest


# effect_of() that remembers its answers: for statements of up to LONGEST_REMEMBERED characters, for the memory's sake.
remembered_effect_of = lru_cache(maxsize=1024)(effect_of)
LONGEST_REMEMBERED = 10_000
