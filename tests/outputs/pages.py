"""The blocks of the pages that show outputs, and their marks."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from example_project.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What begins a block in each kind of page, and the mark in front of it.
_REST_BLOCK = re.compile(r"(?P<indent> *)\.\. code-block:: (?P<language>\S+)$")
_REST_MARK = re.compile(r" *\.\. (?P<kind>output|no output): (?P<text>.+)$")
_MARKDOWN_MARK = re.compile(r"<!-- (?P<kind>output|no output): (?P<text>.+) -->$")
# Directives' options, such as ":caption:", belong to no block's text.
_OPTION = re.compile(r" *:[\w-]+:")

_PROMPTS = ("$ ", "=> ")
# In Markdown, an indented block of commands has no prompts.
_COMMANDS = ("make ", "python -m ")


@dataclass(frozen=True)
class Block:
    """A block of text on a page."""

    page: Path
    #: Of the first line of its text, from 0 on.
    start: int
    #: Of the line after its last.
    end: int
    indent: str
    language: str
    text: str
    #: ``output``, ``no output``, or empty for a block without a mark.
    kind: str = ""
    #: The name of the output, or why there is none.
    mark: str = ""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.start + 1}"

    @property
    def command(self) -> str:
        """What was typed for it, with its prompt: the lines up to the first that is an output. Empty without any."""
        lines = self.text.splitlines()
        typed = 0
        while typed < len(lines) and (lines[typed].startswith(_PROMPTS) or (typed and lines[typed - 1].endswith("\\"))):
            typed += 1
        return "\n".join(lines[:typed])

    @property
    def is_output(self) -> bool:
        """Whether a program has printed some of it, as far as can be told."""
        if self.language in {"text", "psql"}:
            return not all(line.startswith(_COMMANDS) for line in self.text.splitlines())
        if ">>> " in self.text:
            return bool(_printed_by_python(self.text))
        return self.language == "console" and self.text != self.command and not _only_commands(self.text)


def _only_commands(text: str) -> bool:
    return all(line.startswith("$ ") for line in text.splitlines())


def _printed_by_python(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith((">>>", "..."))]


def pages() -> list[Path]:
    """Return the pages of the documentation, the README first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.rst"))]


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the blocks of *page* in their order; *text* if that is not what its file has."""
    lines = (page.read_text() if text is None else text).splitlines()
    return list(_markdown(page, lines) if page.suffix == ".md" else _rest(page, lines))


def _rest(page: Path, lines: list[str]) -> Iterator[Block]:
    for number, line in enumerate(lines):
        if not (found := _REST_BLOCK.match(line)):
            continue
        indent = found["indent"] + "   "
        start = number + 1
        while start < len(lines) and (not lines[start].strip() or _OPTION.match(lines[start])):
            start += 1
        yield _block(page, lines, start, indent, found["language"], _mark(lines, number, _REST_MARK))


def _markdown(page: Path, lines: list[str]) -> Iterator[Block]:
    number, fenced = 0, False
    while number < len(lines):
        line = lines[number]
        fenced ^= line.startswith("```")
        # A paragraph cannot be broken by an indented block, so there is an empty line in front of each.
        if not fenced and line.startswith("    ") and not lines[number - 1].strip():
            block = _block(page, lines, number, "    ", "text", _mark(lines, number, _MARKDOWN_MARK))
            yield block
            number = block.end
        else:
            number += 1


def _block(page: Path, lines: list[str], start: int, indent: str, language: str, mark: tuple[str, str]) -> Block:
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(indent)):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    text = textwrap.dedent("\n".join(lines[start:end]))
    return Block(page, start, end, indent, language, text, *mark)


def _mark(lines: list[str], number: int, mark: re.Pattern[str]) -> tuple[str, str]:
    above = number - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    found = mark.match(lines[above]) if above >= 0 else None
    return (found["kind"], found["text"]) if found else ("", "")


def write(page: Path, outputs: dict[str, str]) -> bool:
    """Put *outputs*, texts by name, into the blocks of *page*; return whether that has changed the page."""
    before = page.read_text()
    lines = before.splitlines()
    # From the last on, so that the numbers of those above stay.
    for block in reversed(blocks(page)):
        if block.kind == "output" and block.mark in outputs:
            lines[block.start : block.end] = textwrap.indent(outputs[block.mark], block.indent).splitlines()
    after = "\n".join(lines) + "\n"
    if after != before:
        page.write_text(after)
    return after != before
