"""Exceptions that signal handlers raise, such as Celery's ``SoftTimeLimitExceeded`` or RQ's ``JobTimeoutException``.

They may be plain ``Exception`` subclasses and come between any two lines. An ``except Exception`` that took one for a
failure of the code it interrupted would swallow the task's time limit. So each ``except Exception`` of the toolkit that
runs in an owner's thread asks :func:`is_of_handler`, and raises again what a handler has raised.
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
