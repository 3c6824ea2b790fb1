"""Asking the servers and this process: for ``manage.py connections``, and for whoever else shows the same."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from django.conf import settings
from django.db import Error, connections

from conn_hygiene import conf, internals
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.management.rendering import Status, View, is_full
from conn_hygiene.masking import printable, without_passwords
from conn_hygiene.pools import backends, written
from conn_hygiene.reports import answering, live, notices, status_directory
from conn_hygiene.reports import snapshot as own
from conn_hygiene.reports.live import Database as Place
from conn_hygiene.server import doctor, pgbouncer, pooler
from conn_hygiene.server import sessions as server
from conn_hygiene.server.answers import NoAnswer
from conn_hygiene.server.own_middleware import is_releasing
from conn_hygiene.sessions import catalogue, connect_options

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from contextlib import ExitStack

    from conn_hygiene.reports.snapshot import LeaseInfo

# Applications of servers that speak ASGI, which runserver or the deployment then does.
_ASGI_APPS = ("daphne", "channels", "uvicorn", "hypercorn")


class Source:
    """Where is looked: one connection for each database and role, open until *stack* is closed.

    *others* are parameters of each connection, as :func:`conn_hygiene.server.sessions.connect` takes them.
    """

    def __init__(
        self, stack: ExitStack, aliases: list[str] | dict[str, list[str]], scope: server.Scope, **others: Any
    ) -> None:
        self._scope, self._others = scope, others
        # The alias by which each database is asked, and all that are known, or turned out, to lead to the same, with
        # that one first.
        self._names = aliases if isinstance(aliases, dict) else {alias: [alias] for alias in aliases}
        self._pooled: set[str] = set()
        self._connections: dict[str, psycopg.Connection[Any]] = {}
        stack.callback(self._close)

    def look(self) -> list[View]:
        """Return what the servers say now. A connection that has failed is replaced at the next look."""
        views: dict[object, View] = {}
        for alias, names in list(self._names.items()):
            try:
                view = self._look(alias)
            except psycopg.Error as error:
                self._drop(alias)
                views[alias] = View(names, error=words(error))
                continue
            first = views.get(view.identity)
            views[view.identity] = view if first is None else self._merged(first, view)
        return list(views.values())

    def _merged(self, first: View, other: View) -> View:
        """Return one view of both, which is asked by one alias from now on: past a pooler if either leads past it.

        Only the server itself tells which session is whose.
        """
        kept, dropped = (other, first) if first.pooled and not other.pooled else (first, other)
        place, alias = first.aliases[0], kept.aliases[0]
        self._drop(dropped.aliases[0])
        names = [*kept.aliases, *dropped.aliases]
        del self._names[other.aliases[0]]
        # In the place of the first, so that all looks have the same order.
        self._names = {alias if each == place else each: found for each, found in self._names.items()}
        self._names[alias] = names
        return dataclasses.replace(kept, aliases=names, pooled_aliases=self._pooled_of(names))

    def _pooled_of(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self._pooled]

    def _look(self, alias: str) -> View:
        if alias not in self._connections:
            self._connections[alias] = server.connect(alias, **self._others)
        connection = self._connections[alias]
        identity, activity = server.identity(connection), server.activity(connection, self._scope)
        # A pooler makes up the pid that it tells its client.
        pids = {session.pid for session in activity.sessions if session.own}
        names = self._names[alias]
        if connection.info.backend_pid not in pids:
            self._pooled.update(names)
        return View(names, identity, activity, pooled_aliases=self._pooled_of(names))

    def held(self, view: View, found: list[live.Process]) -> dict[int, dict[str, Any]]:
        """Return what the processes *found* know of the sessions in *view*, by pid."""
        connection = self._connections.get(view.aliases[0])
        if connection is None or view.activity is None:
            return {}
        holders = live.holders(found, connection)
        return {
            session.pid: vars(holder.lease) | {"holder": holder.process}
            for session in view.activity.sessions
            for holder in holders
            if holder.has(session)
        }

    def _drop(self, alias: str) -> None:
        if alias in self._connections:
            self._connections.pop(alias).close()

    def _close(self) -> None:
        for alias in list(self._connections):
            self._drop(alias)


def alike(aliases: list[str], *, but: Collection[str] = ()) -> dict[str, list[str]]:
    """Return *aliases* by the first of those that DATABASES leads to the same place, where one need be asked only.

    :param but: what need not be the same, such as ``"NAME"``.
    """
    groups: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for alias in aliases:
        settings_dict = _settings_of(alias)
        options = {name: value for name, value in settings_dict["OPTIONS"].items() if name != "pool"}
        named = {name: settings_dict[name] for name in _PLACE if name not in but}
        groups.setdefault(places.setdefault(repr((named, options)), alias), []).append(alias)
    return groups


_PLACE = ("HOST", "PORT", "NAME", "USER", "PASSWORD")


def _settings_of(alias: str) -> dict[str, Any]:
    """Return what DATABASES says of *alias*, completed; no options if it has no dict of them, which nobody can use."""
    settings_dict = connections[alias].settings_dict
    return settings_dict if isinstance(settings_dict["OPTIONS"], Mapping) else {**settings_dict, "OPTIONS": {}}


def collect(source: Source, limit: int) -> Status:
    """Return what the servers say now, and who holds it; tables are to have *limit* rows at most."""
    views = source.look()
    # After the servers: what is told of a request must be true when it is shown.
    found = live.processes()
    leases = own.snapshot()
    views = [view if view.activity else dataclasses.replace(view, held=_held_at(view.aliases, found)) for view in views]
    for view in views:
        if view.activity is None:
            continue
        if conf.current.NOTICE_DIRECTORY is not None:
            asked = {process.pid for process in found if process.answered}
            view.known.update(
                notices.known(conf.current.NOTICE_DIRECTORY, view.aliases, view.activity.sessions, but=asked)
            )
        # The pids that a pooler tells its clients are not the server's.
        if not view.pooled:
            view.known.update(source.held(view, found))
        # Of its own this process knows more, and better.
        direct = set(view.aliases) - set(view.pooled_aliases)
        view.known.update({lease.server_pid: vars(lease) for lease in leases if lease.alias in direct})
    shown = [alias for view in views for alias in view.aliases]
    full = [
        (process, pool)
        for process in found
        for pool in process.pools
        if (is_full(pool) or pool.waiting) and leads_to(shown, process, pool.alias)
    ]
    return Status(views, leases, limit, found, status_directory.refused(), full)


def _held_at(aliases: list[str], found: list[live.Process]) -> list[tuple[live.Process, LeaseInfo]]:
    """Return what the processes *found*, but for this one, hold of the database of *aliases*, as they name it."""
    others = [process for process in found if process.pid != os.getpid()]
    held = [(each, lease) for each in others for lease in each.leases if leads_to(aliases, each, lease.alias)]
    return sorted(held, key=lambda each: -each[1].held_for)


def leads_to(aliases: Iterable[str], process: live.Process, alias: str) -> bool:
    """Return whether *alias* leads *process* where one of *aliases* leads this one, as far as it says."""
    place = process.databases.get(alias)
    if place not in [Place(**answering.database_of(connections.settings[each])) for each in aliases]:
        return False
    # What is hidden looks the same whatever it is.
    return process.settings_module == answering.settings_module() or answering.HIDDEN not in dataclasses.astuple(place)


def facts(aliases: list[str]) -> list[doctor.Facts]:
    """Ask for each alias what the doctor wants to know; what cannot be asked is said, and stops nothing else."""
    asked: dict[server.Identity, server.Activity] = {}
    return [_facts_of(alias, asked) for alias in aliases]


def _facts_of(alias: str, asked: dict[server.Identity, server.Activity]) -> doctor.Facts:
    facts: dict[str, Any] = {}
    failures = []
    try:
        with server.connect(alias) as connection:
            client = pgbouncer.client_of(connection)
            try:
                identity = facts["identity"] = server.identity(connection)
                facts["limits"] = server.limits(connection)
                if identity not in asked:
                    asked[identity] = server.activity(connection)
                facts["activity"] = asked[identity]
                facts["catalogue"] = catalogue.read(connection)
                if facts["catalogue"] is None:
                    failures.append("What functions and policies do to sessions could not be read from the catalogue.")
                facts["pooler"] = pooler.between(connection, lambda: server.connect(alias))
            except NoAnswer:
                # A pooler all of whose sessions are taken says so itself.
                facts |= _console(alias, client)
                raise
            if facts["pooler"] is not pooler.Pooler.NONE:
                facts |= _console(alias, client)
        # What a backend with a pool of its own makes of a session of Django's is not known.
        if backends.why_left_alone(alias) is None:
            facts |= _timeouts(alias)
    except (psycopg.Error, Error) as error:
        failures.append(words(error))
        # Before there is a connection, the driver says that of an option that libpq does not know.
        of_driver = isinstance(error, psycopg.ProgrammingError) and "identity" not in facts
        facts["misconfigured"] = of_driver or isinstance(error, server.Misconfigured)
    except Exception as error:
        # Django connects here, with all that a project has put into that.
        if is_of_handler(error):
            raise
        facts["misconfigured"] = True
        failures.append(words(server.misconfigured(error)))
    # Now that Django has connected, if it can: some show only then what they are.
    return doctor.Facts(
        alias,
        pooled=backends.has_pool(alias),
        left_alone=backends.why_left_alone(alias),
        pool_refusals=tuple(written.refusals(alias)),
        failures=tuple(failures),
        **facts,
    )


def _console(alias: str, client: pgbouncer.Client) -> dict[str, Any]:
    """Return what PgBouncer says of itself; or why it does not, which is no failure: it need not be PgBouncer."""
    try:
        return {"pgbouncer": pgbouncer.ask(alias, client)}
    except psycopg.Error as error:
        return {"console_failure": words(error)}


def _timeouts(alias: str) -> dict[str, Any]:
    names = {*doctor.TIMEOUTS, *connect_options.timeouts_of(alias)}
    try:
        return {"timeouts": server.timeouts(alias, names)}
    except Error as error:
        if not pooler.refuses_options(error):
            raise
        return {"options_refused": words(error), "timeouts": server.timeouts(alias, names, bare=True)}


def project(
    aliases: list[str], *, processes: int | None = None, threads: int | None = None, hosts: int | None = None
) -> doctor.Project:
    """Return what the settings say of *aliases*, and how many use them, as far as anybody has said so."""
    followed = conf.current.FOLLOWED_SETTINGS
    return doctor.Project(
        databases={alias: _settings_of(alias) for alias in aliases},
        debug=settings.DEBUG,
        asgi=bool(getattr(settings, "ASGI_APPLICATION", None))
        or any(app in _ASGI_APPS for app in settings.INSTALLED_APPS),
        middleware=any(is_releasing(path) for path in settings.MIDDLEWARE or ()),
        release=conf.current.RELEASE,
        unpooled_release_after=conf.current.UNPOOLED_RELEASE_AFTER,
        reclaims_dead_threads=conf.current.RECLAIM_DEAD_THREADS,
        idle_in_transaction_after=conf.current.IDLE_IN_TRANSACTION_AFTER,
        followed_settings="auto" if followed == "auto" else frozenset(name.lower() for name in followed),
        clean_sessions=conf.current.CLEAN_SESSIONS,
        minimum_version=connections[aliases[0]].features.minimum_database_version or (),
        processes=processes,
        threads=threads,
        hosts=hosts,
        name=connect_options.project_name(),
        session_timeouts={alias: connect_options.timeouts_of(alias) for alias in aliases},
        timeouts_written={alias: _timeouts_written(alias) for alias in aliases},
        setting_problems=tuple(
            (problem.message, problem.hint) for problem in conf.problems(getattr(settings, "CONN_HYGIENE", {}))
        ),
    )


def _timeouts_written(alias: str) -> dict[str, str]:
    if not internals.CONNECT_OPTIONS.available:
        return {}
    return {name: place for name in conf.TIMEOUTS if (place := connect_options.place_of(alias, name)) is not None}


def words(error: Exception) -> str:
    """Return the words of the server, the driver or Django on one line, without the passwords that they may repeat."""
    return printable(without_passwords(str(error)))
