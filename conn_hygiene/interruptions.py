"""What a signal handler raises: it is about whoever it interrupts, and not about what was being done just then.

A soft time limit of Celery's or a job's of RQ is an ``Exception`` like any other. Whoever takes it for a failure of his
own, and goes on, leaves its task without a limit. Of the toolkit's own, each ``except Exception`` that the owner of a
connection can come by lets it pass, as it does what is no ``Exception``, like Ctrl-C.
"""

from __future__ import annotations

import functools
import signal
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType


def is_of_handler(error: BaseException) -> bool:
    """Return whether a signal handler that is in place has raised *error*, which has been caught.

    The frames of a handler stand on those that it interrupts (Python documentation, "signal"), and so in the traceback.
    """
    trace = error.__traceback__
    codes = _codes() if trace is not None else ()
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _codes() -> frozenset[CodeType]:
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return frozenset(code for each in handlers if (code := _code(each)) is not None)


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isinstance(handler, (FunctionType, MethodType)):
        # An object that is called, if it is not C code's.
        handler = getattr(handler, "__call__", None)  # noqa: B004 - it is asked for its code, not whether it is there
    code: CodeType | None = getattr(handler, "__code__", None)
    return code
