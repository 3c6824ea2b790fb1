"""SQL without comments and strings: what PostgreSQL's lexer makes of a text.

The rules are those of PostgreSQL's ``src/backend/parser/scan.l`` and of its documentation, "Lexical Structure". They
are followed for all that the server accepts. Of the rest nothing is promised, and nothing needs to be: the server
parses all that it is sent together before it executes any of it.
"""

from __future__ import annotations

import re
import string
from functools import cached_property
from typing import TYPE_CHECKING

from conn_hygiene.masking import IN_NAME, LETTER, LETTER_OR_DIGIT, end_of_comment

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of all patterns here, none may try a long text anew from each of its characters, nor remember each of them on the way.

#: What the server takes for white space, but for comments.
SPACE = " \t\n\r\f\v"

# Where something begins in which a keyword is not a keyword. A dollar sign or a letter right after a number need not be
# told from one inside a name: no string may follow a number. Each begins with the same set of characters, which is what
# makes the search fast.
_BEGINNING = re.compile(
    rf"""
    [-/eEuUbBxX'"$%]
    (?: (?<=-)- (?P<comment> [^\n\r]* )
    | (?<=/)\* (?P<block> )
    | (?<=[eE])(?<!{IN_NAME}.)' (?P<escaped> )
    | (?<=[uU])(?<!{IN_NAME}.)& (?: ' (?P<unicode> ) | " (?P<unicode_name> ) )
    | (?<=[bBxX])(?<!{IN_NAME}.)' (?P<bits> )
    | (?<=') (?P<plain> )
    | (?<=") (?P<name> )
    | (?<=\$)(?<!{IN_NAME}.) (?P<dollar> (?: {LETTER}{LETTER_OR_DIGIT}* )?\$ )
    | (?<=%)\( (?P<parameter> [^)]{{0,100}}\) )
    )
    """,
    re.VERBOSE | re.DOTALL,
)
# From there to its end; without one, to the end of the text.
_TO_QUOTE = re.compile(r"[^']*(?:''[^']*)*(?:'|\Z)")
_TO_UNESCAPED_QUOTE = re.compile(r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z)", re.DOTALL)
_TO_DOUBLE_QUOTE = re.compile(r'[^"]*(?:""[^"]*)*(?:"|\Z)')
# A string goes on where another line begins with a quote, and by the rules that it has begun with.
_GOES_ON = re.compile(rf"[ \t\f\v]*(?:--[^\n\r]*)?[\n\r][{SPACE}]*(?:--[^\n\r]*[\n\r][{SPACE}]*)*'")

_UNICODE_ESCAPE = re.compile(r"\\(?:(\\)|([0-9a-fA-F]{4})|\+([0-9a-fA-F]{6}))?")
_OTHER_ESCAPE_CHARACTER = re.compile(rf"[\"'][{SPACE}]*uescape\b")

_NAMES = ("name", "unicode_name")

# A name that means the same without its quotes, keywords apart.
_SIMPLE_NAME = re.compile(r"[a-z_][a-z0-9_]*")

# psycopg's own pattern: a placeholder or an escaped percent sign, wherever it stands, strings and comments included.
_PERCENT = re.compile(r"%(?:\(([^)]+)\).|.)")
_PLACEHOLDER = rf"%(?:\([^)]{{1,100}}\))?[sbt](?!{IN_NAME})"
# What would be something else to the lexer, if it saw it.
_ODD = re.compile(r"['\"$;]|--|/\*")

_TOKEN = re.compile(
    rf"(?P<word>{LETTER}{IN_NAME}*)|(?P<string>'[0-9]+')|(?P<name>\"[^\"]*\")|(?P<placeholder>{_PLACEHOLDER})"
    rf"|(?P<other>[^{SPACE}])"
)

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def folded(name: str) -> str:
    """Return *name* in lower case as PostgreSQL understands it, which is the ASCII letters only."""
    return name.lower() if name.isascii() else name.translate(_LOWER)


class Text:
    """One or several statements, as the server's lexer sees them."""

    def __init__(self, sql: str, *, backslashes_escape: bool = False) -> None:
        """Read *sql*.

        *backslashes_escape*: what ``standard_conforming_strings = off`` makes of plain strings.
        """
        # libpq sends no more than this.
        self._sql = sql.partition("\0")[0]
        self._to_end_of_plain = _TO_UNESCAPED_QUOTE if backslashes_escape else _TO_QUOTE
        self._values: list[str | None] = []
        # Where strings, names in quotes and comments were.
        self._spans: list[tuple[int, int]] = []
        #: Whether the meaning of something in it cannot be told.
        self.unreadable = False
        #: The text folded to lower case, a space for each comment, and for each string a number in quotes, which
        #: :meth:`value` knows. So it is for names in quotes, unless they could do without.
        self.plain = self._read()
        if "&" in self._sql and _OTHER_ESCAPE_CHARACTER.search(self.plain):
            self.unreadable = True

    def value(self, token: str) -> str | None:
        """Return what *token* stands for, a word, a string or a name; None if that cannot be told."""
        if token[0] not in "'\"":
            return token
        content = token[1:-1]
        return self._values[int(content)] if content[:1].isdigit() else content

    def parameter(self, token: str) -> int | str:
        """Return which of the statement's parameters the placeholder *token* is: its index, or its name."""
        return self._parameters[self._places[int(token[1:])]]

    def tokens(self, start: int, end: int) -> Iterator[str]:
        """Return the tokens of a part of :attr:`plain`.

        Of operators, each character is one, and a placeholder is a percent sign and where it stands.
        """
        for found in _TOKEN.finditer(self.plain, start, end):
            yield f"%{found.start()}" if found["placeholder"] else found[0]

    def _read(self) -> str:
        parts: list[str] = []
        position = 0
        while found := _BEGINNING.search(self._sql, position):
            parts.append(folded(self._sql[position : found.start()]))
            kind = found.lastgroup
            position = self._end(kind, found)
            parts.append(self._replacement(kind, found, position))
        parts.append(folded(self._sql[position:]))
        return "".join(parts)

    def _end(self, kind: str | None, found: re.Match[str]) -> int:
        """Return where that ends which *found* is the beginning of."""
        position = found.end()
        if kind in ("comment", "parameter"):
            return position
        if kind == "block":
            return end_of_comment(self._sql, position)
        if kind == "dollar":
            end = self._sql.find(found[0], position)
            return len(self._sql) if end < 0 else end + len(found[0])
        if kind in _NAMES:
            return self._match(_TO_DOUBLE_QUOTE, position)
        rest = {"escaped": _TO_UNESCAPED_QUOTE, "plain": self._to_end_of_plain}.get(str(kind), _TO_QUOTE)
        position = self._match(rest, position)
        while more := _GOES_ON.match(self._sql, position):
            position = self._match(rest, more.end())
        return position

    def _match(self, pattern: re.Pattern[str], position: int) -> int:
        found = pattern.match(self._sql, position)
        assert found is not None
        return found.end()

    def _replacement(self, kind: str | None, found: re.Match[str], end: int) -> str:
        if kind == "parameter":
            if _ODD.search(found[0]):
                self.unreadable = True
            return folded(found[0])
        self._spans.append((found.start(), end))
        if kind in ("comment", "block"):
            return " "
        content = self._sql[found.end() : end]
        if kind in _NAMES:
            name = content[:-1].replace('""', '"')
            if kind == "unicode_name" and "\\" in name:
                name = _UNICODE_ESCAPE.sub(self._unescaped, name)
            return f'"{name}"' if _SIMPLE_NAME.fullmatch(name) else f'"{self._numbered(name)}"'
        if kind == "dollar":
            return f"'{self._numbered(content[: -len(found[0])])}'"
        content = content[:-1]
        # Without a backslash they all mean the same; one that goes on in another line has a quote in between.
        readable = kind != "bits" and "\\" not in content and "'" not in content.replace("''", "")
        value = content.replace("''", "'") if readable else None
        return f"'{self._numbered(value)}'"

    def _numbered(self, value: str | None) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _unescaped(self, escape: re.Match[str]) -> str:
        backslash, short, long = escape.groups()
        if backslash:
            return "\\"
        number = int(short or long or "d800", 16)
        # What is no character of its own is half of one; or the server refuses it.
        if 0xD800 <= number < 0xE000 or number > 0x10FFFF:
            self.unreadable = True
            return ""
        return chr(number)

    @cached_property
    def _parameters(self) -> list[int | str]:
        """The parameters of those placeholders that are neither in strings nor in comments, from first to last."""
        keys: list[int | str] = []
        spans = iter([*self._spans, (len(self._sql), len(self._sql))])
        start, end = next(spans)
        index = 0
        for found in _PERCENT.finditer(self._sql):
            if found[0] == "%%":
                continue
            while end <= found.start():
                start, end = next(spans)
            if found.start() < start:
                keys.append(found[1] or index)
            index += 1
        return keys

    @cached_property
    def _places(self) -> dict[int, int]:
        """Which of these stands where in :attr:`plain`."""
        found = [found.start() for found in _PERCENT.finditer(self.plain) if found[0] != "%%"]
        return {start: place for place, start in enumerate(found)}
