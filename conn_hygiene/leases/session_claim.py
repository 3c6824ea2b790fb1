"""What the owner of a connection leaves in its session, and finds again in the next.

A layer of a lease, see :mod:`.lease`. Each statement is looked at before it runs: what cannot follow pins the lease,
what can is set again at the next checkout, and the rest of it is cleaned at the end.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg

from conn_hygiene import internals
from conn_hygiene.events import Followed, publish
from conn_hygiene.leases import ahead, audits, cursors, news, policy, read_only, returns
from conn_hygiene.leases.claim import Claim
from conn_hygiene.leases.states import HELD
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import configuring
from conn_hygiene.sessions import cleaning, client, effects, following, known, sql, state
from conn_hygiene.sessions.plan import Plan
from conn_hygiene.sessions.texts import text_of

_now = time.monotonic


class SessionClaim(Claim):
    """A claim on a connection, and with it on what its owner has set in the session."""

    __slots__ = ()

    def begin_session(self) -> None:
        """Turn autocommit on, which is all that is to be set up, and remember the session as it is. Owner only.

        :raises psycopg.Error: what the owner has set in another session cannot be set in this one.
        """
        connection = self._connection
        if connection is not None:
            if not connection.autocommit:
                connection.autocommit = True
            if self.carried is not None:
                self.set_again()
            with self._lock:
                self.session_state.begin(connection)
                # Last of all: after an exception of a signal handler, it is to be set again in another session. So it
                # is where a handler has queried at a call above, and let go of this one.
                if self.carried is not None and self._connection is connection:
                    self.carried = None

    def await_carried(self) -> None:
        """Wait until it is known what the owner is to find again in the next session. Owner only, and under no lock.

        :raises psycopg.OperationalError: it was lost with the session before.
        """
        if self.carried is None:
            return
        if self._is_of_other_than(policy.request_of(policy.entered.get())):
            with self._lock:
                self.carried = None
            return
        if not self.carried.done() and not self.keeper.hurry(self):
            raise self.carried.lost("a signal handler queried while its thread was giving the connection back")
        self.carried.result(returns.RETURN_TIMEOUT)

    def _is_of_other_than(self, request: policy.Entry | None) -> bool:
        """Return whether what the owner has set it has set for another request than *request*.

        A thread of an executor goes from one to the next, and nobody tells it when one ends. Past the middleware,
        where there is none, that is not known.
        """
        return self._served is not None and request is not None and request is not self._served

    def set_again(self) -> None:
        """Set in the session what the owner has set in the one before. Owner only.

        :raises psycopg.Error: that is not possible. Nothing may run in this session then. ``SessionGone`` if the server
            has ended it, so that another one will do.
        """
        carried, connection = self.carried, self._connection
        if carried is None or connection is None:
            return
        values = following.missing_in(connection, carried.result(0))
        try:
            # Where nothing was set, or is not there already, the server need not be asked.
            if values:
                with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                    following.set_again(connection, values)
        except psycopg.Error as error:
            if connection.closed and isinstance(error, psycopg.OperationalError):
                raise following.SessionGone(*error.args) from error
            carried.was_refused = True
            raise
        # Whether this very checkout was set up before, so that Followed is published only once for it.
        again = carried.set_in == self.checkouts
        carried.set_in = self.checkouts
        with self._lock:
            self.session_state.note_set_again(carried.result(0))
        self.note_path(values.get("search_path"))
        if Followed.listeners and values and not again:
            publish(news.followed(self, values))

    def note_set_up(self) -> None:
        """Take note that the session is set up: what followed is where it belongs, and what comes later is new.

        It is set once more where receivers of ``connection_created`` may have set the same names, to what they hold for
        right in a new session; and for the first time where nobody is told of that, as while a test mutes signals.
        """
        carried = self.carried
        if carried is not None:
            if carried.set_in != self.checkouts or self.session_state.was_set_at_connect(carried.result(0).keys()):
                self.set_again()
            with self._lock:
                self.carried = None

    def pin_for_its_past(self) -> None:
        """Keep a connection with its owner that was in use before there was a lease: its session may carry anything."""
        self._pin(effects.Effect(frozenset({effects.PAST}), frozenset()))

    def statement(self, query: Any, params: Any, connection: psycopg.Connection[Any]) -> effects.Effect | None:
        """Look at a statement that is about to run, and pin the lease if it leaves something in the session.

        Returns what to call :meth:`succeeded` with when it has run without an error; None if that need not be told.

        :raises psycopg.OperationalError: the toolkit has ended the session; it says why.
        """
        if self.ended_because is not None:
            self.check()
        wrapper = self.wrapper()
        if wrapper is not None and wrapper.execute_wrappers:
            ahead.ahead_of(query, wrapper, connection)
        self.last_statement = (query,)
        self.idle_since = _now()
        if self.in_use_since is None:
            with self._lock:
                self.pauses.used()
        text = query if type(query) is str else text_of(query, connection)
        if text is None:
            effect: effects.Effect | None = effects.UNKNOWN
        elif len(text) > sql.LONGEST_REMEMBERED:
            effect = sql.effect_of(text)
        else:
            effect = sql.remembered_effect_of(text)
        if effect is None:
            return None
        if effect.settings:
            effect = effect.with_parameters(params)
        self._pin(effect)
        return effect if effect.removes or effect.resets else None

    def succeeded(self, effect: effects.Effect, connection: psycopg.Connection[Any]) -> None:
        """Take note that what undoes something has been executed without an error. Owner only."""
        with self._lock:
            self.session_state.succeeded(effect, connection, in_transaction=not pools.is_idle(connection))
        if effects.DISCARDED in effect.adds and not following.is_wanted() and self._is_set_up():
            # In another session its owner would find that set up again.
            self._pin(effects.Effect(frozenset({effects.SETTING}), frozenset()))
        if effects.PREPARED in effect.removes and internals.CLEANING.available:
            # psycopg does not always notice.
            client.forget_prepared(connection)

    def failed(self, error: psycopg.Error, connection: psycopg.Connection[Any]) -> None:
        """Take note of the *error* of a statement: what it says of the session is of use for others. Owner only."""
        if connection is not self._connection:
            return
        if connection.closed:
            with self._lock:
                # It is to be looked at, be the next statement ever so near.
                self.trusted = False
            # Another one can have its place, whatever its owner believes to be in: it will come to nothing more.
            records = pools.vacate(connection)
            if records:
                self.keeper.tell(pools.tell, records)
        elif error.sqlstate == read_only.SQLSTATE:
            with self._lock:
                self.trusted = False
            read_only.refused(self, connection)

    def confirm_undone(self) -> None:
        """Ask the server what a transaction that has ended has undone. Owner only, outside of transactions."""
        connection = self._connection
        if connection is not None and self.session_state.undone and pools.is_idle(connection):
            left = cleaning.left_of(connection, self.session_state.undone)
            with self._lock:
                self.session_state.confirm_undone(left)

    def overriding(self, name: str, before: str | None) -> None:
        """Take note that a block has set *name*, which was *before*, None for not at all, for as long as it lasts.

        A release resets it, and what follows the owner is what was before. Of several calls the last counts.
        Owner only.
        """
        with self._lock:
            self.session_state.overridden[name] = before
            self.session_state.reset.discard(name)

    def note_path(self, path: str | None) -> None:
        """Take note that ``search_path`` is set to *path*, by no statement that was seen. Owner only.

        Tables that are created under it may be temporary, as no statement says. Nobody else is to have such a table, so
        the session is cleaned of them; and it is kept for its owner where they surely are.
        """
        if effects.makes_temporary(path):
            with self._lock:
                self.session_state.is_path_temporary = True
            # Also where a path that follows is set as the session is set up.
            self._pin(effects.Effect(frozenset({effects.TEMPORARY}), frozenset()), setting_up=False)
        elif path is not None and "pg_temp" in path.lower():
            with self._lock:
                self.session_state.soil()

    def note_held_cursor(self) -> None:
        """Take note that a cursor is declared ``WITH HOLD`` that lasts as long as the session. Owner only."""
        self._pin(effects.Effect(frozenset({effects.HELD_CURSOR}), frozenset()))

    def no_longer_overriding(self, name: str) -> None:
        """Take note that *name* is again what it was before. Owner only."""
        with self._lock:
            self.session_state.overridden.pop(name, None)

    def fetching(self) -> None:
        """Take note that a server-side cursor is about to fetch, which is no new statement, and is not idle either.

        :raises psycopg.OperationalError: the toolkit has ended the session; it says why.
        """
        self.check()
        if self.last_statement is not None:
            self.last_statement = (self.last_statement[0],)

    def _pin(self, effect: effects.Effect, *, setting_up: bool | None = None) -> None:
        with self._lock:
            wrapper = self.wrapper()
            if self._connection is None or wrapper is None:
                return
            if setting_up is None:
                setting_up = self._setting_up(wrapper)
            # With the hold of another task goes what was left in that, and nothing of this one's.
            of_hold = policy.is_inside_hold(self.alias)
            added = self.session_state.add(effect, setting_up=setting_up, of_hold=of_hold)
        news.publish_pins(self, added)

    @property
    def pins(self) -> dict[str, str]:
        """What pins the lease: reason to place in the code."""
        with self._lock:
            return dict(self.session_state.pins)

    def prepare_return(self) -> None:
        """Make the connection what it was at checkout, and its session clean. The owner does this in ``close()``."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            # Until it is closed it is in use, which keeps the reaper off.
            self.state, self.handle = HELD, connection
            # Before the cursors are what they were, since comparing them takes longer then.
            is_as_given = self._leaves_nothing(connection, state.reported_parameters(connection))
            cursors.retire(connection)
            if connection.closed:
                return
            is_due = self.last_statement is not None and known.is_due(self.alias, _now())
            if is_as_given and not is_due and client.has_nothing_new(connection) and not audits.is_audited(connection):
                return
        for event in returns.audit(connection, self.keeper):
            publish(event)
        if is_due:
            self._ask_catalogue(connection)
        with self._lock:
            plan, fresh = self._plan(connection, follows=False), self.session_state.fresh
        if plan.left or plan.resets:
            with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                pools.scrub(connection, plan, fresh, known.of_login(self.alias))
            with self._lock:
                self.session_state.cleaned()
        pools.restore(connection)

    def _ask_catalogue(self, connection: psycopg.Connection[Any]) -> None:
        """Ask what functions and policies do, if that is due. Rolls back what is open on *connection*."""
        with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
            if pools.make_ready(connection) and known.begin_asking(self.alias, _now()):
                known.ask(self.alias, connection, self.keeper.tell)

    def _plan(
        self,
        connection: psycopg.Connection[Any],
        reported: tuple[bytes | None, ...] | None = None,
        *,
        follows: bool,
    ) -> Plan:
        """Return what is to be done to the session before it is anybody else's.

        *reported* are its parameters, if they have just been looked at. *follows* tells that the owner goes on.
        """
        # A session in which nothing was executed has nothing of its owner's.
        declared = known.followed(self.alias) if self.last_statement is not None else frozenset()
        if connection.closed:
            # What cannot be read any more is missed by its owner, who is told.
            return Plan(follow=declared | self.session_state.follows if follows else frozenset())
        if reported is None:
            reported = state.reported_parameters(connection)
        # An open cursor on the server may be WITH HOLD; its late close() will find that the connection is gone.
        always = known.cleans_always(self.alias)
        soiled = always or bool(self.open_cursors)
        plan = self.session_state.plan(connection, reported, declared, soiled=soiled, follows=follows)
        if plan.follow:
            plan = plan._replace(at_default=plan.at_default | self._set_up_unseen(plan.follow - plan.unseen))
        if not self.pooled:
            # Giving back is closing.
            return plan._replace(left=frozenset(), resets=frozenset())
        if always and self.last_statement is not None:
            return plan._replace(left=plan.left | known.indelible(self.alias))
        return plan

    def _is_set_up(self) -> bool:
        """Return whether a new session is given anything that the server does not report, as far as that is known."""
        return self.session_state.is_set_at_connect() or bool(self._set_up_unseen(frozenset(following.IDENTITIES)))

    def _set_up_unseen(self, names: frozenset[str]) -> frozenset[str]:
        """Return which of *names* the backend may set in a new session by statements that nobody sees."""
        wrapper = self.wrapper()
        if wrapper is None:
            # Nobody goes on.
            return frozenset()
        if not _is_set_up_by_django(wrapper.__class__):
            return names
        return names.intersection(following.IDENTITIES if wrapper.settings_dict["OPTIONS"].get("assume_role") else ())

    def missing_elsewhere(self) -> set[str]:
        """Return the names of what its owner has set in the session, and another would not have. Under the lock.

        What was reset is none of it where a new session surely begins with the same, the server's default.
        """
        follows, reset = self.session_state.follows, frozenset(self.session_state.reset)
        if not reset or not known.leaves_nothing(self.alias) or self._set_up_unseen(reset):
            return follows
        of_login = known.of_login(self.alias)
        if of_login is not None and of_login.may_set(reset):
            # Another session begins with what a trigger sets.
            return follows
        return follows - reset if configuring.sets_no_more(self._pool()) else follows

    def _leaves_nothing(self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...]) -> bool:
        """Return whether nothing is to be done to the session, whose parameters are as *reported*, for anybody else."""
        return (
            self.session_state.is_untouched(connection, reported)
            and known.leaves_nothing(self.alias)
            and not self.open_cursors
        )

    def _note_changes(
        self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...] | None = None
    ) -> list[str]:
        """Note what follows of all that was not seen in a statement; return what of it may be the owner's, and cannot.

        See :meth:`.State.note_changes`.
        """
        changed = self.session_state.note_changes(connection, reported)
        if not internals.FOLLOWING.available and self.last_statement is not None:
            changed += sorted(known.followed(self.alias))
        if self.last_statement is not None and known.was_not_told(self.alias):
            changed.append(effects.UNTOLD)
        return changed

    def _carries(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the owner has left anything in the session, or may have; note what follows. Under the lock."""
        return bool(
            self.session_state.note_changes(connection)
            or self.session_state.carries()
            or (self.last_statement is not None and known.cleans_always(self.alias))
        )

    def may_have_unseen_state(self) -> bool:
        """Return whether nobody knows if what was executed has left something in the session."""
        return self.last_statement is not None and known.is_unknown(self.alias)

    def refuse_if_state_mattered(self) -> None:
        """Ask the server whether what functions leave in a session matters; called when one was replaced. Owner only.

        :raises psycopg.OperationalError: it does, and may have been lost with the session before.
        """
        connection = self._connection
        if connection is not None:
            self._ask_catalogue(connection)
        if known.state_matters(self.alias):
            raise psycopg.OperationalError(
                "The server had closed the connection. What functions had set in its session is lost, which matters "
                "here: row-level security or functions of this database depend on it."
            )


def _is_set_up_by_django(backend: type[Any]) -> bool:
    return all(getattr(getattr(backend, name, None), "__module__", _DJANGO).startswith(_DJANGO) for name in _SETTING_UP)


_SETTING_UP = ("get_new_connection", "init_connection_state", *configuring.SETTING_UP)
_DJANGO = "django."
