"""Telling whoever looks at ``connection.connection`` from whoever uses it.

Much code asks whether there is a connection, and does no more with it: ``if connection.connection is not None``. A
reader shows what it is about in its next instruction. Where that tests the handle, and thereby drops it, the reader has
looked; everything else is a use, and so is all that is not recognised, be it of a Python that is not known here.
"""

from __future__ import annotations

import dis
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from conn_hygiene import internals
from conn_hygiene.interruptions import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, FrameType


class StandIn:
    """What a look finds while there is a connection, or was one until it was given back; open or not."""

    __slots__ = ("broken", "closed")

    def __init__(self, *, closed: bool, broken: bool) -> None:
        self.closed = closed
        self.broken = broken


# What plain code asks of a handle before it uses it, and what a stand-in can tell.
_TOLD = frozenset(StandIn.__slots__)

# As in `from django.db import connection`: what it returns is what its caller has read.
_ConnectionProxy: Any = internals.imported("django.utils.connection", "ConnectionProxy", None)
_PROXY: CodeType | None = getattr(getattr(_ConnectionProxy, "__getattr__", None), "__code__", None)

# They do nothing, or belong to the instruction that follows.
_FILLERS = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN"})


def is_look(frame: FrameType | None, wrapper: object) -> bool:
    """Return whether *frame*, which is reading ``connection`` of *wrapper*, only tests what it gets.

    The wrapper's own methods never do: they prepare for a use.
    """
    if frame is not None and frame.f_code is _PROXY:
        frame = frame.f_back
    return (
        frame is not None
        and _only_tests(frame.f_code, frame.f_lasti)
        and frame.f_locals.get("self") is not wrapper
        and frame.f_globals.get("bool", bool) is bool
    )


# Bounded, since code may be made as it goes; a project has a handful of such places.
@lru_cache(maxsize=256)
def _only_tests(code: CodeType, offset: int) -> bool:
    """Return whether the instruction of *code* at *offset* reads a ``connection`` that the next ones only test."""
    try:
        return _tests(code, offset)
    except Exception as error:
        # A tool may have put anything there, and no reader is to fail for that.
        if is_of_handler(error):
            raise
        return False


def _reads(instructions: Sequence[dis.Instruction]) -> bool:
    return any(each.opname == "LOAD_ATTR" and each.argval == "connection" for each in instructions)


def _is_inside(two: Sequence[dis.Instruction], offset: int) -> bool:
    """Return whether *offset* is behind the beginning of the first of *two* instructions, and before the second."""
    return two[0].offset < offset and all(offset < each.offset for each in two[1:])


def _tests(code: CodeType, offset: int) -> bool:
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _FILLERS]
    at = next((number for number, each in enumerate(instructions) if each.offset >= offset), len(instructions))
    # Python 3.12 calls a property of its own accord, and is at the end of the instruction's caches meanwhile.
    if at and not _reads(instructions[at : at + 1]) and _is_inside(instructions[at - 1 : at + 1], offset):
        at -= 1
    if len(instructions) < at + 3 or not _reads(instructions[at : at + 1]):
        return False
    _, following, then = instructions[at : at + 3]
    name = following.opname
    if name == "LOAD_CONST":
        return following.argval is None and then.opname in ("IS_OP", "COMPARE_OP")
    if name == "LOAD_ATTR":
        return following.argval in _TOLD
    if name in ("CALL_FUNCTION", "PRECALL", "CALL"):
        return following.arg == 1 and _callee(instructions, at) == "bool"
    # Not JUMP_IF_TRUE_OR_POP, nor COPY: `handle = connection.connection or ...` goes on with it.
    return name in ("TO_BOOL", "UNARY_NOT") or name.startswith("POP_JUMP_")


def _callee(instructions: Sequence[dis.Instruction], at: int) -> Any:
    """Return the name of the function whose only argument is what is on the stack after instruction *at*."""
    missing = 1
    while missing > 0 and at >= 0:
        each = instructions[at]
        if "JUMP" in each.opname:
            return None
        missing -= dis.stack_effect(each.opcode, each.arg)
        at -= 1
    while at >= 0 and instructions[at].opname == "PUSH_NULL":
        at -= 1
    if missing or at < 0 or instructions[at].opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
        return None
    return instructions[at].argval
