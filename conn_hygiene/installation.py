"""Putting the toolkit into a process, and taking it out again without a trace."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core import signals as core_signals
from django.core.signals import setting_changed
from django.db import connections
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate

from conn_hygiene import conf, green, internals
from conn_hygiene.forks import hooks as forks
from conn_hygiene.leases import attaching, read_only, wrapper
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import native, sqlalchemy
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import answering, counters, log, notices, signalling
from conn_hygiene.sessions import connect_options, known
from conn_hygiene.transactions import left_open

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.dispatch import Signal

logger = logging.getLogger("conn_hygiene")

_UID = "conn_hygiene"

# Under `reaper.installing`.
_overrides: dict[str, Any] = {}

# Whether it was said that the application is missing.
_has_complained = False


class _ThreadEnd:
    """Sits in a thread's local storage, and is collected when the thread ends."""

    __slots__ = ("__weakref__", "reference")

    def __init__(self) -> None:
        self.reference = weakref.ref(self)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        forks.keep_no_longer(self.reference)
        # Nothing but the hand-over: threading.current_thread(), which logging calls, would make a new thread object
        # here that nobody takes away.
        running = reaper.running
        if running is not None:
            running.thread_ended(self.reference)


_local = threading.local()


def _end_of_running_thread() -> weakref.ref[Any]:
    end = getattr(_local, "end", None)
    if end is None:
        end = _local.end = _ThreadEnd()
        forks.keep_over_forks(end.reference)
    return end.reference


def _connection_created(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    lease = wrapper.lease_of(connection)
    # It has one from its first connection on.
    if lease is None:
        _attach(connection, connecting=True)
    elif lease.carried is not None:
        # The session is set up. Ahead of all other receivers, which find what its owner has set.
        lease.set_again()


def _attach(connection: BaseDatabaseWrapper, *, connecting: bool) -> None:
    running = reaper.running
    # A wrapper that another thread made is shared, or a test's: the end of this thread says nothing about it.
    # What is no wrapper of Django's, such as a backend's asynchronous one, need not know its thread.
    own = internals.LEASES.available and getattr(connection, "_thread_ident", None) == threading.get_ident()
    thread_end = _end_of_running_thread() if own else None
    if running is not None:
        attaching.attach(connection, running, thread_end, connecting=connecting)


def _create_connection(alias: str) -> BaseDatabaseWrapper:
    """Make a thread's wrapper of *alias* as Django does, and have the wait for its first connection measured.

    :raises django.core.exceptions.ImproperlyConfigured: it would be the wrapper of all greenlets.
    """
    green.refuse_if_late()
    made = type(connections).create_connection(connections, alias)
    running = reaper.running
    if running is not None:
        attaching.measure_first_connect(made, running)
    return made


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting == "CONN_HYGIENE":
        conf.apply(conf.strict(_overrides))
        connect_options.renew()
        _watch_anew()
        answering.settings_changed()
    elif setting == "DEBUG":
        conf.apply(conf.current)


def _migrated(*, using: str, **kwargs: Any) -> None:
    # Sent for each application: functions and policies may have come or gone with any of them.
    known.forget(using)


def _watch_anew() -> None:
    if reaper.running is not None:
        reaper.running.settings_changed()


def _connect_first(signal: Signal, receiver: Any) -> None:
    """Connect *receiver* in front of those that are there: it must see a connection before anybody has used it."""
    signal.connect(receiver, dispatch_uid=_UID)
    if not internals.LEASES.available:
        return
    with signal.lock:
        # Another thread may have connected one of its own in between.
        [place] = [place for place, entry in enumerate(signal.receivers) if entry[0][0] == _UID]
        signal.receivers.insert(0, signal.receivers.pop(place))
        signal.sender_receivers_cache.clear()


def install(**settings: Any) -> None:
    """Put the toolkit to work in this process.

    ``"conn_hygiene"`` in INSTALLED_APPS does this; call it from scripts that have no INSTALLED_APPS of their own.
    Calling it again changes the settings that are given and is otherwise without effect. Connections that are already
    open stay with their threads until they are closed, since nobody knows what state their sessions have.

    :param settings: keys of the ``CONN_HYGIENE`` setting, which take precedence over the project's settings.
    :raises django.core.exceptions.ImproperlyConfigured: a key is unknown, or a value is not one it can have. Nothing is
        changed then.
    """
    if reaper.running is None:
        # Under no lock: they may log.
        internals.look()
        green.complain_if_late()
    with reaper.installing:
        conf.apply(conf.strict({**_overrides, **settings}))
        _overrides.update(settings)
        connect_options.renew()
        _watch_anew()
        running = _start() if reaper.running is None else None
    # Under no lock, since it may wait for a thread.
    answering.settings_changed()
    if running is None:
        return
    # Not under `installing`: listeners to the events of this may take any lock, or wait.
    for connection in connections.all(initialized_only=True):
        if internals.LEASES.available and connection.connection is not None:
            _attach(connection, connecting=False)
        else:
            attaching.measure_first_connect(connection, running)


def _start() -> reaper.Reaper:
    """Have the toolkit told of what happens from here on. Under `reaper.installing`."""
    counters.reset()
    running = reaper.running = reaper.Reaper(counters.of)
    if internals.WAITS.available:
        connections.create_connection = _create_connection  # type: ignore[method-assign]
    _connect_first(connection_created, _connection_created)
    _connect_first(core_signals.request_started, left_open.request_started)
    _connect_first(core_signals.request_finished, left_open.request_finished)
    setting_changed.connect(_setting_changed, dispatch_uid=_UID)
    post_migrate.connect(_migrated, dispatch_uid=_UID)
    return running


def install_for(middleware: str) -> None:
    """Put the toolkit to work for *middleware*, also on a site that has no application of ours; say so, once, then.

    A request is served in any case, so what the application would have added is easily missed.
    """
    global _has_complained  # noqa: PLW0603 - one process, one INSTALLED_APPS
    install()
    if _has_complained or not apps.ready or apps.is_installed("conn_hygiene"):
        return
    _has_complained = True
    logger.warning(
        '%s is in use, and "conn_hygiene" is not in INSTALLED_APPS: manage.py has neither its checks nor its command '
        "connections, and what serves no requests, such as other commands and task queues, goes without the toolkit, "
        'its protection of forks included. Add "conn_hygiene" to INSTALLED_APPS.',
        middleware,
    )
    complain_of_setting()


def complain_of_setting() -> None:
    """Say what is wrong with ``CONN_HYGIENE``. Servers do not run the checks, and the defaults stand in for it."""
    for problem in conf.problems(getattr(django_settings, "CONN_HYGIENE", {})):
        logger.error("%s %s It is ignored.", problem.message, problem.hint)


def uninstall() -> None:
    """Take the toolkit out of this process: receivers, classes and instances are what they were before.

    Connections that are checked out stay with their threads, as in plain Django. Call it when no other thread is
    querying. Does nothing if the toolkit is not installed.
    """
    with reaper.installing:
        stopped, reaper.running = reaper.running, None
        if stopped is None:
            return
        post_migrate.disconnect(dispatch_uid=_UID)
        setting_changed.disconnect(dispatch_uid=_UID)
        core_signals.request_finished.disconnect(dispatch_uid=_UID)
        core_signals.request_started.disconnect(dispatch_uid=_UID)
        connection_created.disconnect(dispatch_uid=_UID)
        if connections.__dict__.get("create_connection") is _create_connection:
            # Else, somebody has put something on top, which goes on calling it.
            del connections.create_connection
        stopped.stop()
        known.reset()
        read_only.reset()
        attached = attaching.forget_known()
        pools.restore_logging()
        for pool in pools.native_pools().values():
            native.unwatch(pool)
        sqlalchemy.unwatch()
        _overrides.clear()
        conf.apply(conf.Settings())
        connect_options.renew()
    # Under no lock, since it waits for a thread.
    answering.stop()
    # Not under `installing`: listeners to the events of this may take any lock, or wait.
    for connection in attached:
        attaching.detach(connection)


def _at_exit() -> None:
    """Stop the reaper while its modules are still whole."""
    answering.stop()
    if reaper.running is not None:
        reaper.running.stop()
    notices.take_away()


# Listeners that work without install() as well: forks and retried transactions are reported in any case. counters comes
# first, so that stats() counts the event when a logging handler or a receiver of its signal reads it.
for _listeners in (counters, log, notices, signalling):
    _listeners.listen()
for _module in (answering, known, counters, notices):
    forks.register_after_fork(_module.after_fork_in_child)
for _forgetful in (log, read_only):
    forks.register_after_fork(_forgetful.reset)

forks.register_closing_before_fork(answering.rest)

atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=forks.before_fork,
        after_in_parent=forks.after_fork_in_parent,
        after_in_child=forks.after_fork_in_child,
    )
