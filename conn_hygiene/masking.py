"""SQL without the values that stand in it, and any text that is not ours, fit for a terminal or a log.

``pg_stat_activity`` shows a statement as the server received it. Django's cursors put the parameters into it on the
client's side (unless ``server_side_binding`` is on), so that text may hold anything that an application knows. The
tokens are those of the PostgreSQL documentation, "Lexical Structure".
"""

from __future__ import annotations

import re

#: What stands in the place of a value.
MASK = "?"

# To the server, all that is not ASCII is a letter. Each is written as what it is not: Python takes long to compile long
# ranges.
LETTER = r"[^\x00-@\[-^`{-\x7f]"
LETTER_OR_DIGIT = r"[^\x00-/:-@\[-^`{-\x7f]"
IN_NAME = r"[^\x00-\x23%-/:-@\[-^`{-\x7f]"  # and the dollar sign

# Any token may lack its end, since the server cuts long statements off (track_activity_query_size). Whether a backslash
# keeps a quote from ending a plain string is for standard_conforming_strings to say, the session's and not ours: where
# it matters, all to the end is taken for the string.
_TOKEN = re.compile(
    rf"""
      (?P<comment> --[^\n\r]* )
    | (?P<block> /\* )
    | (?P<value>
          [eE]'[^'\\]*(?: (?: \\. | '' )[^'\\]* )*(?: ' | \\?\Z )
        | (?: [bBxXnN] | [uU]& )?'[^'\\]*(?: (?: \\(?!') | '' )[^'\\]* )*(?: ' | .* )
        | \$(?P<tag> (?: {LETTER}{LETTER_OR_DIGIT}* )? )\$ .*? (?: \$(?P=tag)\$ | \Z )
        | \.?[0-9][\w.]*(?: (?<=[eE])[+-][0-9][\w.]* )*
      )
    | (?P<word> {LETTER}{IN_NAME}* )
    | (?P<kept> "[^"]*"? | \$[0-9]+ | . )
    """,
    # Case matters: $a$ does not end at $A$.
    re.DOTALL | re.VERBOSE,
)
# SET takes its value without quotes, too, on its own as at the end of an ALTER of what has settings. Names are matched
# first, since they may have a SET or a semicolon in them.
_NAME = r'"[^"]*(?:"|\Z)'
_ALTER = r"ALTER\s+(?:ROLE|USER|DATABASE|SYSTEM|FUNCTION|PROCEDURE|ROUTINE)"
_SET = re.compile(
    rf"""{_NAME} | (?P<set> (?:^|;)\s*(?:SET|{_ALTER})\b(?:{_NAME}|[^";=])*?(?:=|\bTO\b) )(?:{_NAME}|[^";])+""",
    re.IGNORECASE | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def mask(sql: str) -> str:
    """Return *sql* on one line, each string and each number replaced by ``?``, without comments.

    Names, keywords (``NULL``, ``TRUE`` and ``FALSE`` among them) and placeholders stay. What cannot be told from a
    string is masked with it, and so is all that ``SET`` sets.
    """
    parts: list[str] = []
    position = 0
    while token := _TOKEN.match(sql, position):
        position = token.end()
        if token["block"]:
            position = end_of_comment(sql, position)
        # In a word, a space would have the rest of it taken for something else.
        word = _replaced(token["word"] or "", "_")
        parts.append(MASK if token["value"] else word or token["kept"] or " ")
    return _SET.sub(_without_value, printable("".join(parts)))


def _without_value(match: re.Match[str]) -> str:
    return f"{match['set']} {MASK}" if match["set"] else match[0]


def end_of_comment(sql: str, position: int) -> int:
    """Return where the comment ends that begins before *position*; PostgreSQL's comments nest."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(sql)


def printable(text: str) -> str:
    """Return *text*, which a client of the server chose, on one line and without what would steer a terminal."""
    return " ".join(_replaced(text, " ").split())


# What libpq, the driver and Django repeat of a connection string that they cannot read. Of a URI, all in front of its
# last @: whoever writes a password as it is may have any character in it, and libpq then takes a part for the port.
_IN_URI = r"(?P<scheme>://).*@"
_BY_NAME = r"""(?P<name>password['"]?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'?|.+)"""
_OF_URI = (
    r'''(?P<said>percent-encoded\ (?:token|value):\ "|unexpected\ spaces\ found\ in\ "|integer\ value\ "(?=.*@)).*"'''
)
_PASSWORD = re.compile(f"{_IN_URI}|{_BY_NAME}|{_OF_URI}", re.IGNORECASE | re.DOTALL)


def without_passwords(text: str) -> str:
    """Return *text*, an error about how to connect, with ``?`` for each password of a connection string in it."""
    return _PASSWORD.sub(_without_password, text)


def _without_password(match: re.Match[str]) -> str:
    return f"{match['scheme']}{MASK}@" if match["scheme"] else f"{match['name'] or match['said']}{MASK}"


def harmless(text: str, *, lines: bool = False) -> str:
    """Return *text* without what would steer a terminal, its spaces as they are; *lines* and tabs, too, if wanted.

    That are the control characters of ASCII and of ISO 8859-1 (ESC and CSI among them), those of Unicode that turn the
    direction of writing or that cannot be seen, surrogates, and what is not assigned: whatever Python holds for not
    printable (``str.isprintable()``).
    """
    if not lines:
        return _replaced(text, " ")
    return "".join(part if part in "\n\t" else _replaced(part, " ") for part in _LINES.split(text))


_LINES = re.compile(r"([\n\t])")


def told(value: object) -> object:
    """Return *value*, which goes into a message of one line, as :func:`harmless` has it if it is a text."""
    return harmless(value) if isinstance(value, str) else value


def _replaced(text: str, substitute: str) -> str:
    """Return *text* with *substitute* for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else substitute for char in text)
