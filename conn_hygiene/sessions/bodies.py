"""Reading the body of a function in SQL or PL/pgSQL, or an expression, for what it does to its session.

Of the languages just enough is known to tell code from strings and comments (PostgreSQL documentation, "Lexical
Structure" and "PL/pgSQL"), and where a statement may begin.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.masking import end_of_comment
from conn_hygiene.sessions import sql
from conn_hygiene.sessions.effects import is_true
from conn_hygiene.sessions.lexer import folded

if TYPE_CHECKING:
    from collections.abc import Iterator


class _String(NamedTuple):
    #: As it is written, and what it means; None if that takes more than taking its quotes away.
    source: str
    value: str | None


class Body:
    """A body, in which each string is a number in quotes, and each comment a space."""

    def __init__(self, plain: str, strings: list[_String], quoted: set[str]) -> None:
        self._plain = plain
        self._strings = strings
        # The quoted identifiers as they are.
        self._quoted = quoted

    def called(self) -> set[str]:
        """Return the names of all functions that are called, and of much that no function is."""
        return self._quoted | {folded(match[1]) for match in _CALL.finditer(self._plain)}

    def settings_read(self) -> set[str]:
        """Return the names that ``current_setting()`` is called with, in lower case; none for what is computed."""
        names = (self._constant(_argument(given, 0)) for given in self._calls("current_setting"))
        return {folded(name) for name in names if name}

    def settings_set(self) -> set[str | None]:
        """Return the names that ``set_config()`` sets for the session, in lower case; None for one that is computed."""
        names = {
            self._constant(_argument(given, 0))
            for given in self._calls("set_config")
            if not self._is_true(_argument(given, 2))
        }
        return {name and folded(name) for name in names}

    def creates_temporary(self) -> bool:
        """Return whether ``set_config()`` may have what is created be temporary, be it for the transaction only."""
        return any(
            self._constant(_argument(given, 0)) in (None, "search_path") and self._has_temp(_argument(given, 1))
            for given in self._calls("set_config")
        )

    def executes(self) -> bool:
        """Return whether statements are made up and executed."""
        return _EXECUTE.search(self._plain) is not None

    def settings_in_strings(self) -> set[str]:
        """Return the names of settings that the strings would set, were they executed; alone or with more after."""
        return {name for string in self._strings if string.value for name in _set_by(string.value)}

    def adds_in_strings(self) -> set[str]:
        """Return what else the strings would leave in the session, were they executed, as reasons."""
        values = [string.value for string in self._strings if string.value]
        effects = [sql.effect_of(value) for value in values if not _LOAD_OF_PROSE.match(value)]
        return {reason for effect in effects if effect is not None for reason in effect.adds}

    def statements(self, *, is_sql: bool) -> Iterator[str]:
        """Return the statements one by one, cut where another may begin, with their strings as they were.

        Calls of ``set_config()`` have another name there, since :meth:`settings_set` reads these.
        """
        plain = _SET_CONFIG.sub("configure", self._plain)
        for statement in (_ATOMIC if is_sql else _BLOCK).sub(_begin, plain).split(";"):
            if not statement.isspace():
                yield _STRING.sub(lambda match: self._strings[int(match[1])].source, statement)

    def _calls(self, function: str) -> Iterator[list[str]]:
        """Return the arguments of each call of *function*."""
        for call in re.finditer(rf'\b{function}"?\s*\(', self._plain, re.IGNORECASE):
            yield _arguments(self._plain, call.end())

    def _constant(self, argument: str) -> str | None:
        match = _CONSTANT.fullmatch(argument)
        return self._strings[int(match[1])].value if match else None

    def _has_temp(self, argument: str) -> bool:
        return any("pg_temp" in self._strings[int(number)].source.lower() for number in _STRING.findall(argument))

    def _is_true(self, argument: str) -> bool:
        if _TRUE.fullmatch(argument):
            return True
        value = self._constant(argument)
        return value is not None and is_true(value)


# A string's number, and the types that it is cast to, as the server writes constants out again.
_STRING = re.compile(r"'(\d+)'")
_CONSTANT = re.compile(r"""\s*\(*\s*'(\d+)'\s*\)*(?:\s*::\s*[\w."]+)*\s*\)*\s*""")
_TRUE = re.compile(r"\s*\(*\s*true\s*\)*(?:\s*::\s*bool(?:ean)?)?\s*\)*\s*", re.IGNORECASE)

_SET_CONFIG = re.compile(r"\bset_config\b", re.IGNORECASE)
_EXECUTE = re.compile(r'(?<!["\w$.])execute\b(?!")', re.IGNORECASE)

# Where another statement may begin. In PL/pgSQL a SELECT whose result nobody wants is a PERFORM.
_ATOMIC = re.compile(r'(?<!["\w$.])begin\s+atomic\b', re.IGNORECASE)
_BLOCK = re.compile(r'(?<!["\w$.])(?:begin|then|else|loop|perform)\b(?!")|>>', re.IGNORECASE)


# What is loaded by the statement is a string.
_LOAD_OF_PROSE = re.compile(r"\s*load\s+(?!(?:e|u&)')[^\W\d]", re.IGNORECASE)

_CALL = re.compile(r"([^\W\d][\w$]*)\s*\(")


def _set_by(beginning: str) -> set[str]:
    """Return the names of the settings that a statement sets of which *beginning* is known, if nothing else."""
    effect = sql.effect_of(beginning)
    names = {setting.name for setting in effect.settings} if effect is not None else set()
    # Where it ends within a name, there may be more of that.
    return {name for name in names if isinstance(name, str) and not folded(beginning).endswith(name)}


def _begin(keyword: re.Match[str]) -> str:
    return ";select" if keyword[0].lower() == "perform" else ";"


def _argument(given: list[str], place: int) -> str:
    """Return the argument in *place*; empty if there is none. The functions that are read here know no names of any."""
    return given[place] if place < len(given) else ""


_PUNCTUATION = re.compile(r"[(),]")


def _arguments(plain: str, start: int) -> list[str]:
    """Return the arguments of a call whose parenthesis opens right before *start*."""
    depth = 0
    given: list[str] = []
    for mark in _PUNCTUATION.finditer(plain, start):
        if mark[0] == "(":
            depth += 1
        elif depth and mark[0] == ")":
            depth -= 1
        elif not depth:
            given.append(plain[start : mark.start()])
            start = mark.end()
            if mark[0] == ")":
                return given
    # It has no end, and so no last argument either.
    return given


def bodies(text: str) -> list[Body]:
    """Return *text* as it reads; in two ways where that depends on ``standard_conforming_strings``."""
    read = [_lex(text, _UP_TO_QUOTE)]
    if "\\'" in text:
        read.append(_lex(text, _UP_TO_UNESCAPED_QUOTE))
    return read


_OPENING = re.compile(r"""--|/\*|(?<![\w$])(?:[eE]|[uU]&)?'|'|"|(?<![\w$])\$(?:[^\W\d]\w*)?\$""")
_UP_TO_QUOTE = re.compile(r"[^']*(?:''[^']*)*(?:'|\Z)")
_UP_TO_UNESCAPED_QUOTE = re.compile(r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z)", re.DOTALL)
_LINE = re.compile(r"[^\n\r]*")


def _lex(text: str, up_to_quote: re.Pattern[str]) -> Body:
    plain: list[str] = []
    strings: list[_String] = []
    quoted: set[str] = set()
    position = 0
    while opening := _OPENING.search(text, position):
        plain.append(text[position : opening.start()])
        position = _end(text, opening, up_to_quote)
        source = text[opening.start() : position]
        if source.startswith(("--", "/*")):
            plain.append(" ")
        elif source.startswith('"'):
            # What is inside cannot be a keyword, and must not be taken for more than a name.
            name = source.strip('"')
            quoted.add(name)
            plain.append('"' + re.sub(r"[^\w$.]", "_", name) + '"')
        else:
            plain.append(f"'{len(strings)}'")
            strings.append(_String(source, _value(source, opening[0], up_to_quote)))
    plain.append(text[position:])
    return Body("".join(plain), strings, quoted)


def _end(text: str, opening: re.Match[str], up_to_quote: re.Pattern[str]) -> int:
    """Return where that ends which *opening* opens; the end of *text* if it does nowhere."""
    quote, start = opening[0], opening.end()
    if quote == "--":
        return _LINE.match(text, start).end()  # type: ignore[union-attr]
    if quote == "/*":
        return end_of_comment(text, start)
    if quote.endswith("'"):
        pattern = _UP_TO_UNESCAPED_QUOTE if quote in ("e'", "E'") else up_to_quote
        return pattern.match(text, start).end()  # type: ignore[union-attr]
    end = text.find(quote, start)
    return len(text) if end < 0 else end + len(quote)


def _value(source: str, quote: str, up_to_quote: re.Pattern[str]) -> str | None:
    if quote.endswith("$"):
        return source.removeprefix(quote).removesuffix(quote)
    escapes = quote != "'" or up_to_quote is _UP_TO_UNESCAPED_QUOTE
    if escapes and "\\" in source:
        return None
    return source[len(quote) : -1].replace("''", "'")
