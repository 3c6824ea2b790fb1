"""For uWSGI, which forks in C and does not run Python's hooks at a fork.

``"conn_hygiene"`` in INSTALLED_APPS does all that is needed. Here is what it calls.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from conn_hygiene.forks.hooks import after_fork_in_child


class _Module(ModuleType):
    """Calls the toolkit's hook before whatever is assigned to ``uwsgi.post_fork_hook``, the only fork hook uWSGI has.

    ``uwsgidecorators`` assigns to it on import and replaces what was there; so assignments are intercepted.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _discarding_before(value) if name == "post_fork_hook" else value)


def install() -> None:
    """Have the processes that uWSGI forks discard what they inherit: workers, mules and spoolers.

    ``uwsgi.post_fork_hook`` does it, ahead of what the project has there or sets there later, and of the functions
    that ``uwsgidecorators.postfork`` decorates. It goes by ``DISCARD_AFTER_FORK``.

    Does nothing outside of uWSGI, and nothing the second time.
    """
    # uWSGI has put it there before it loads any application.
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None or isinstance(uwsgi, _Module):
        return
    uwsgi.__class__ = _Module
    uwsgi.post_fork_hook = getattr(uwsgi, "post_fork_hook", None)


def _discarding_before(hook: Any) -> Any:
    def post_fork_hook() -> None:
        after_fork_in_child()
        if hook is not None:
            hook()

    return post_fork_hook
