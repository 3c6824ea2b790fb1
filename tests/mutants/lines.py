"""The lines that are broken, what becomes of them, and the tests that must fall.

The lines are whole ones, without the indentation that they have in common. When the core changes, they are to be
changed here as well: the tool says which.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple


class Mutant(NamedTuple):
    """A small mistake that somebody might make."""

    name: str
    file: str
    original: str
    replacement: str
    #: Few, so that all of it is fast.
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"conn_hygiene/{self.file}"

    def places(self, text: str) -> list[int]:
        """Return the numbers of the lines at which the original stands in *text*."""
        lines, original = text.splitlines(), self.original.splitlines()
        starts = range(len(lines) - len(original) + 1)
        return [start for start in starts if _dedented(lines[start : start + len(original)]) == original]

    def applied_to(self, text: str) -> str:
        """Return *text* with the replacement in the one place of the original, as deep as that was."""
        (start,) = self.places(text)
        lines, length = text.splitlines(), len(self.original.splitlines())
        depth = min(len(line) - len(line.lstrip()) for line in lines[start : start + length] if line)
        lines[start : start + length] = textwrap.indent(self.replacement, " " * depth).splitlines()
        return "\n".join(lines) + "\n"


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def _mutant(name: str, file: str, original: str, replacement: str, *tests: str) -> Mutant:
    return Mutant(name, file, _plain(original), _plain(replacement), tuple(f"tests/{test}" for test in tests))


def _plain(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


MUTANTS = [
    # ##### Locks #####
    _mutant(
        "a handle is read without the lock",
        "leases/lease.py",
        """
        with self._lock:
            connection = self._connection
            if (
                connection is not None
                and self.session_state.parameters is not None
        """,
        """
        if True:
            connection = self._connection
            if (
                connection is not None
                and self.session_state.parameters is not None
        """,
        "test_locks.py::test_a_lease_is_written_under_its_lock",
    ),
    _mutant(
        "a cursor is closed without the lock",
        "leases/lease.py",
        """
        with self._lock:
            # Closed already, or of an earlier checkout, whose list was another one?
        """,
        """
        if True:
            # Closed already, or of an earlier checkout, whose list was another one?
        """,
        "test_locks.py::test_a_lease_is_written_under_its_lock",
    ),
    _mutant(
        "a connection is assigned without the lock",
        "leases/lease.py",
        """
        with self._lock:
            if connection is self._connection:
        """,
        """
        if True:
            if connection is self._connection:
        """,
        "test_locks.py::test_a_lease_is_written_under_its_lock",
    ),
    _mutant(
        "the reaper ends a lease without the lock",
        "leases/timed_claim.py",
        """
        with self._lock:
            if self._connection is None:
                return None
            if self.state != PARKED or not self.server_pid:
        """,
        """
        if True:
            if self._connection is None:
                return None
            if self.state != PARKED or not self.server_pid:
        """,
        "test_locks.py::test_a_lease_is_written_under_its_lock",
    ),
    _mutant(
        "leases are listed without the registry's lock",
        "reaper/registry.py",
        """
        with self._registry_lock:
            return list(self._leases)
        """,
        """
        return list(self._leases)
        """,
        "test_locks.py::test_the_list_of_leases_is_touched_under_its_lock",
    ),
    _mutant(
        "the reaper forgets a lease without the registry's lock",
        "reaper/registry.py",
        """
        with self._registry_lock:
            self._leases.discard(lease)
        """,
        """
        self._leases.discard(lease)
        """,
        "test_locks.py::test_the_list_of_leases_is_touched_under_its_lock",
    ),
    _mutant(
        "numbers are added without the lock",
        "reports/counters.py",
        """
        with self._lock:
            if waited is None:
                self._unseen += 1
        """,
        """
        if True:
            if waited is None:
                self._unseen += 1
        """,
        "test_locks.py::test_numbers_are_touched_under_their_lock",
    ),
    _mutant(
        "seconds fall by how floats are rounded",
        "reports/counters.py",
        """
        most = self._seconds[using, name] = max(seconds, self._seconds.get((using, name), 0.0))
        """,
        """
        most = seconds
        """,
        "test_snapshot.py::test_seconds_do_not_fall_by_how_floats_are_rounded",
    ),
    _mutant(
        "a pool without a limit does not answer",
        "pools/base.py",
        """
        numbers[name] = _whole(numbers[name])
        """,
        """
        pass
        """,
        "test_pools.py::test_sizes_are_whole_numbers_whatever_psycopg_pool_takes",
    ),
    _mutant(
        "a request's times are added up without the lock",
        "leases/usage.py",
        """
        with self._lock:
            self._catch_up(now)
            self._holding += held
            self._using += used
        """,
        """
        self._catch_up(now)
        self._holding += held
        self._using += used
        """,
        "test_locks.py::test_a_requests_times_are_added_up_under_their_lock",
    ),
    _mutant(
        "wrappers are noted without the lock",
        "leases/attaching.py",
        """
        with _known_lock:
            _known.add(wrapper)
        """,
        """
        _known.add(wrapper)
        """,
        "test_locks.py::test_the_list_of_wrappers_is_touched_under_its_lock",
    ),
    _mutant(
        "an asynchronous wrapper that is left alone speaks for its alias",
        "leases/attaching.py",
        """
        if internals.LEASES.available and isinstance(wrapper, BaseDatabaseWrapper) and wrapper.vendor == "postgresql":
        """,
        """
        if internals.LEASES.available and wrapper.vendor == "postgresql":
        """,
        "test_engines.py::test_a_wrapper_for_async_code_does_not_speak_for_its_alias",
    ),
    _mutant(
        "an asynchronous wrapper must know its thread to connect",
        "installation.py",
        """
        own = internals.LEASES.available and getattr(connection, "_thread_ident", None) == threading.get_ident()
        """,
        """
        own = internals.LEASES.available and connection._thread_ident == threading.get_ident()
        """,
        "test_engines.py::test_a_wrapper_for_async_code_does_not_speak_for_its_alias",
    ),
    _mutant(
        "a cursor stays on a connection that a signal handler has let go of",
        "leases/wrapper.py",
        """
            if lease.state != HELD or lease.checkouts != number:
        """,
        """
            if False:
        """,
        "test_reentrancy.py::test_a_cursor_is_on_the_connection_of_who_opens_it",
    ),
    _mutant(
        "the owner asks the catalogue on a connection that the reaper may take meanwhile",
        "leases/lease.py",
        """
        self.looked_at(self._ask_what_functions_leave)
        """,
        """
        self._ask_what_functions_leave()
        """,
        "test_reentrancy.py::test_nobody_gets_a_connection_that_its_owner_asks_for_the_catalogue",
    ),
    _mutant(
        "a transaction begins on a connection that a handler's query has let go of",
        "leases/transacting_wrapper.py",
        """
        listed = lease.open_cursors
        listed[self] = None
        try:
            while lease.state in (PARKED, GIVEN_BACK):
        """,
        """
        listed = {}
        try:
            while lease.state in (PARKED, GIVEN_BACK):
        """,
        "test_reentrancy.py::test_a_transaction_is_on_the_connection_of_who_begins_it",
    ),
    _mutant(
        "a handler's query in the middle of a checkout runs without what is set",
        "leases/lease.py",
        """
        if connects is not None and connects.is_checking_out():
            self.set_again()
        """,
        """
        if connects is not None and connects.is_checking_out():
            pass
        """,
        "test_reentrancy.py::test_a_query_in_the_middle_of_a_checkout_finds_what_is_set",
    ),
    _mutant(
        "what is to be set again is forgotten by a backend that closes and tries again",
        "leases/claim.py",
        """
        if not self._is_connecting():
            self.state, self.carried = CLOSED, None
        """,
        """
        self.state, self.carried = CLOSED, None
        """,
        "test_following.py::test_it_follows_through_a_backend_that_tries_again",
    ),
    _mutant(
        "what a handler has let go of is given back once more",
        "leases/lease.py",
        """
        if not incoming.is_taken:
            incoming.is_taken = True
        """,
        """
        if connection is not self._connection:
            incoming.is_taken = True
        """,
        "test_reentrancy.py::test_what_a_handler_lets_go_of_before_it_raises_has_one_owner[Lease._assign]",
    ),
    _mutant(
        "a wrapper that was interrupted as it got its lease is neither plain nor leased",
        "leases/attaching.py",
        """
        if not incoming.is_taken:
            _class_of.__set__(wrapper, plain)
            wrapper.__dict__.pop(LEASE, None)
        """,
        """
        if not incoming.is_taken:
        """,
        "test_interruptions.py::test_a_wrapper_whose_first_connect_is_interrupted_connects_again",
    ),
    _mutant(
        "an exception of a signal handler before its pool is called loses a connection",
        "pools/base.py",
        """
    pool: Any = getattr(connection, "_pool", None)
    if (
        pool is None
        or not keeping.is_psycopgs(pool.__class__)
        """,
        """
    giving.is_put = True
    pool: Any = getattr(connection, "_pool", None)
    if (
        pool is None
        or not keeping.is_psycopgs(pool.__class__)
        """,
        "test_interruptions.py::test_after_an_exception_at_any_line_all_goes_on",
    ),
    _mutant(
        "what is too old is asked whether it works before it is closed",
        "leases/closing_wrapper.py",
        """
            elif self.close_at is not None and monotonic() >= self.close_at:
        """,
        """
            elif False:
        """,
        "test_looks.py::test_what_is_closed_in_any_case_is_not_asked_whether_it_works",
    ),
    _mutant(
        "a listener's query lets go of what is being checked out",
        "leases/pooled_wrapper.py",
        """
        if lease.carried is None and not CheckedOut.listeners:
        """,
        """
        if True:
        """,
        "test_reentrancy.py::test_a_listener_that_queries_neither_repeats_the_checkout_nor_loses_what_was_set",
    ),
    _mutant(
        "what is not closed after all stays in use",
        "leases/closing_wrapper.py",
        """
            if is_owner and lease.state == HELD:
        """,
        """
            if False:
        """,
        "test_looks.py::test_what_is_being_closed_is_in_use_until_then",
    ),
    _mutant(
        "what is being closed can be given back by the reaper",
        "leases/claim.py",
        """
            elif self.session_state.parameters is not None:
        """,
        """
            elif False:
        """,
        "test_looks.py::test_what_is_being_closed_is_in_use_until_then",
    ),
    _mutant(
        "a transaction in the middle of a checkout leaves its handle out",
        "leases/lease.py",
        """
                if handle_is_out is False:
                    self.handle = None
                return
        """,
        """
                return
        """,
        "test_reentrancy.py::test_a_transaction_in_the_middle_of_a_checkout_loses_no_connection",
    ),
    _mutant(
        "two threads, or a signal handler and its thread, may start a reaper each",
        "reaper/reaper.py",
        """
        elif self._thread is None and not self._stopping:
        """,
        """
        elif not self._stopping:
        """,
        "test_locks.py::test_who_comes_second_starts_no_other_reaper",
    ),
    _mutant(
        "the toolkit is installed without the lock",
        "installation.py",
        """
        with reaper.installing:
            conf.apply(conf.strict({**_overrides, **settings}))
        """,
        """
        if True:
            conf.apply(conf.strict({**_overrides, **settings}))
        """,
        "test_locks.py::test_installing_is_done_by_one_thread_at_a_time",
    ),
    _mutant(
        "who needs a connection waits for the owner of another one",
        "leases/timed_claim.py",
        """
        if not self._lock.acquire(blocking=False):
        """,
        """
        if not self._lock.acquire():
        """,
        "test_locks.py::test_who_needs_a_connection_waits_for_no_lease",
    ),
    _mutant(
        "a lease is ended in the middle of its own end",
        "leases/timed_claim.py",
        """
        if self.spare is not spare or self.state != PARKED or self._lock._is_owned():
        """,
        """
        if self.spare is not spare or self.state != PARKED:
        """,
        "test_locks.py::test_a_lease_that_its_thread_is_busy_with_is_not_ended_by_it",
    ),
    # ##### States #####
    _mutant(
        "an idle lease is not parked",
        "leases/lease.py",
        """
        self.state = PARKED
        if self.queue:
        """,
        """
        if self.queue:
        """,
        "test_leisure.py::test_what_is_taken_back_from_the_reaper_stays",
    ),
    _mutant(
        "a look is a use",
        "leases/lease.py",
        """
        if self.state != CLOSED and looks.is_look(reader, self.wrapper()):
        """,
        """
        if False:
        """,
        "test_looks.py::test_a_look_finds_what_was_given_back_without_a_checkout",
        "test_looks.py::test_a_look_leaves_what_is_parked",
    ),
    _mutant(
        "another thread finds a connection that it cannot have",
        "leases/lease.py",
        """
        if self.state == GIVEN_BACK and self.serves_thread():
        """,
        """
        if self.state == GIVEN_BACK:
        """,
        "test_looks.py::test_another_thread_looks_and_changes_nothing",
    ),
    _mutant(
        "a test of a connection leaves its lease held",
        "leases/lease.py",
        """
        if not was_out:
            self.settle(handle_is_out=False)
        """,
        """
        pass
        """,
        "test_looks.py::test_a_test_of_what_is_parked_asks_the_server_and_leaves_it_parked",
    ),
    _mutant(
        "a test of a connection takes a handle away that was read",
        "leases/lease.py",
        """
        if not was_out:
            self.settle(handle_is_out=False)
        """,
        """
        self.settle(handle_is_out=False)
        """,
        "test_looks.py::test_a_test_leaves_a_handle_out_that_was_read_before",
    ),
    _mutant(
        "a wrapper's own method only looks",
        "leases/looks.py",
        """
        and frame.f_locals.get("self") is not wrapper
        """,
        "",
        "test_looks.py::test_one_that_was_put_in_the_place_of_djangos_is_called_each_time",
    ),
    _mutant(
        "any function is bool()",
        "leases/looks.py",
        """
        return following.arg == 1 and _callee(instructions, at) == "bool"
        """,
        """
        return following.arg == 1
        """,
        "test_looks.py::test_nor_is_it_what_stands_before_the_function",
    ),
    _mutant(
        "a commit of nothing checks out",
        "leases/transacting_wrapper.py",
        """
        if lease.state == GIVEN_BACK:
            # Nothing is open, for which psycopg asks no server either.
        """,
        """
        if False:
            # Nothing is open, for which psycopg asks no server either.
        """,
        "test_looks.py::test_what_tells_the_server_nothing_needs_no_connection",
    ),
    _mutant(
        "somebody's own ensure_connection() is passed by",
        "leases/connecting_wrapper.py",
        """
        if self._conn_hygiene_class.ensure_connection is not ENSURE_CONNECTION and not _replacing.calls(self):
        """,
        """
        if False:
        """,
        "test_looks.py::test_one_that_was_put_in_the_place_of_djangos_is_called_each_time",
    ),
    _mutant(
        "a coroutine may connect",
        "leases/connecting_wrapper.py",
        """
        ensure_connection = async_unsafe(_ensure_connection)
        """,
        """
        ensure_connection = _ensure_connection
        """,
        "test_looks.py::test_a_coroutine_may_look_and_not_use[parked]",
    ),
    _mutant(
        "a coroutine that asks for a cursor past cursor() may connect",
        "leases/wrapper.py",
        """
        if sys._getframe(1).f_code is CODE_OF_CURSOR:
            self._ensure_connection()
        else:
            self.ensure_connection()
        """,
        """
        self._ensure_connection()
        """,
        "test_looks.py::test_a_coroutine_is_refused_a_cursor_by_any_way",
    ),
    _mutant(
        "somebody's own create_cursor() is passed by",
        "leases/wrapper.py",
        """
        or self._conn_hygiene_class.create_cursor is not CREATE_CURSOR
        or _CREATE_CURSOR in own
        or _ENSURE_CONNECTION in own
        """,
        "",
        "test_looks.py::test_what_somebody_has_put_on_the_way_to_a_cursor_is_called",
    ),
    _mutant(
        "who asks for a cursor is told of errors in psycopg's words",
        "leases/wrapper.py",
        """
        with self.wrap_database_errors:
            raise
        """,
        """
        raise
        """,
        "test_looks.py::test_an_error_on_the_way_to_a_cursor_is_djangos",
    ),
    _mutant(
        "a connection that was given back counts as closed",
        "leases/leaving_claim.py",
        """
        if not self._end(returning.connection, GIVEN_BACK, reason, carried=returning.carried, listed=False):
        """,
        """
        if not self._end(returning.connection, CLOSED, reason, carried=returning.carried, listed=False):
        """,
        "test_autocommit.py::test_a_connection_goes_back_after_every_commit[default]",
    ),
    _mutant(
        "a failed checkout is not tried again",
        "leases/lease.py",
        """
        if self._connection is None:
            self.state = GIVEN_BACK if again else CLOSED
        """,
        """
        if self._connection is None:
            self.state = CLOSED
        """,
        "test_autocommit.py::test_nor_does_one_that_the_server_refuses",
    ),
    _mutant(
        "the reason of an ended session outlives it",
        "leases/claim.py",
        """
        self.ended_because: str | None = None
        """,
        """
        self.ended_because = getattr(self, "ended_because", None)
        """,
        "test_watch.py::test_the_owner_of_an_ended_session_is_told_why_at_commit_too",
    ),
    _mutant(
        "hooks that have yet to run do not keep the connection",
        "leases/claim.py",
        """
        or wrapper.run_on_commit
        or self._connects
        # Another thread may be about to use the handle that it has just read.
        """,
        """
        or self._connects
        # Another thread may be about to use the handle that it has just read.
        """,
        "test_lease.py::test_commit_hooks_that_have_yet_to_run_hold",
    ),
    _mutant(
        "manual transaction management is forgotten",
        "leases/connecting_wrapper.py",
        """
        self._conn_hygiene_lease.manual_transactions(not autocommit)
        """,
        "",
        "test_autocommit.py::test_a_connection_goes_back_after_every_commit[default]",
    ),
    # ##### What keeps a connection #####
    _mutant(
        "an open cursor does not keep the connection",
        "leases/lease.py",
        """
        if self.open_cursors or wrapper is None or connection is None:
        """,
        """
        if wrapper is None or connection is None:
        """,
        "test_lease.py::test_an_open_cursor_holds",
    ),
    _mutant(
        "a transaction that only libpq sees is none",
        "leases/lease.py",
        """
        or pgconn.transaction_status != _IDLE
        or pgconn.pipeline_status
        """,
        """
        or pgconn.pipeline_status
        """,
        "test_snapshot.py::test_a_transaction_that_only_the_server_knows_of",
    ),
    _mutant(
        "the reaper does not ask libpq for a transaction",
        "leases/timed_claim.py",
        """
        if not pools.is_idle(connection):
            self.state = HELD
            self.pauses.used()
            return None, []
        """,
        "",
        "test_leisure.py::test_what_was_begun_on_a_handle_that_was_read_before_stays",
    ),
    _mutant(
        "the pin of a statement is dropped",
        "sessions/state.py",
        """
        self.pins.update((reason, str(callsite.here() or callsite.UNKNOWN)) for reason in added)
        """,
        "",
        "test_session_state.py::test_state_pins_and_is_still_there_for_its_owner",
    ),
    _mutant(
        "a statement's place is an execute wrapper that it has passed",
        "callsite.py",
        """
        found = _past_wrappers(found)
        """,
        """
        pass
        """,
        "test_callsite.py::test_a_statement_is_its_callers_and_not_the_wrappers",
        "test_callsite.py::test_a_thread_that_waits_for_the_server_is_where_it_called",
        "test_callsite.py::test_nor_is_the_wrapper_of_a_library_where_a_library_calls",
    ),
    _mutant(
        "a wrapper's own statements are its caller's",
        "callsite.py",
        """
        if found.f_code.co_name in _CALLED_BY_WRAPPERS:
        """,
        """
        if found.f_code.co_name == "execute":
        """,
        "test_callsite.py::test_what_a_wrapper_sends_of_its_own_accord_is_its_own",
    ),
    _mutant(
        "pins do not keep the connection",
        "leases/claim.py",
        """
        return bool(
            self.session_state.pins
            or wrapper.run_on_commit
        """,
        """
        return bool(
            wrapper.run_on_commit
        """,
        "test_session_state.py::test_state_pins_and_is_still_there_for_its_owner",
    ),
    _mutant(
        "threads that share a wrapper do not keep the connection",
        "leases/claim.py",
        """
        or self._connects
        # Another thread may be about to use the handle that it has just read.
        or wrapper._thread_sharing_count  # type: ignore[attr-defined]
        """,
        """
        or self._connects
        """,
        "test_lease.py::test_a_wrapper_that_threads_share_is_held",
    ),
    _mutant(
        "a wrapper's copy does not keep the connection",
        "leases/lease.py",
        """
        self._pin(effects.Effect(frozenset({effects.SHARED}), frozenset()))
        """,
        "",
        "test_engines.py::test_a_shallow_copy_shares_the_connection_and_keeps_it",
    ),
    _mutant(
        "a collected cursor lets go of a handle that was just read",
        "leases/lease.py",
        """
        elif self._handle_is_out():
            # The owner has read the handle a moment ago, and is about to use it.
            return
        """,
        "",
        "test_leisure.py::test_a_cursor_that_is_collected_leaves_a_handle_alone_that_was_just_read",
    ),
    # ##### Wake-ups and settling #####
    _mutant(
        "a parked lease is not put before the reaper",
        "leases/lease.py",
        """
        self.keeper.parked(self, deadline)
        """,
        "",
        "test_leisure.py::test_nobody_waits_and_it_goes_back_all_the_same",
    ),
    _mutant(
        "who waits waits for the end of the burst",
        "leases/timed_claim.py",
        """
        if self._has_had_its_turn():
            return now
        """,
        "",
        "test_turns.py::test_an_owner_whose_turn_is_over_lets_go_after_its_query",
    ),
    _mutant(
        "a turn is over with its first query",
        "leases/turns.py",
        """
        if had < TURN:
            return False
        """,
        "",
        "test_turns.py::test_in_its_turn_it_goes_on",
    ),
    _mutant(
        "a turn ends for nobody",
        "leases/timed_claim.py",
        """
        if self.queue and self._has_had_its_turn():
            return self.idle_since
        """,
        """
        if self._has_had_its_turn():
            return self.idle_since
        """,
        "test_turns.py::test_who_can_have_a_new_connection_cuts_nobody_short",
    ),
    _mutant(
        "a turn is short, whoever waits",
        "leases/turns.py",
        """
        return before + had >= LONG_TURN or queues.is_ahead(queue, place)
        """,
        """
        return True
        """,
        "test_turns.py::test_an_owner_has_a_long_turn_if_only_those_wait_who_go_on_behind_it",
    ),
    _mutant(
        "a long turn has no end",
        "leases/turns.py",
        """
        return before + had >= LONG_TURN or queues.is_ahead(queue, place)
        """,
        """
        return queues.is_ahead(queue, place)
        """,
        "test_turns.py::test_a_long_turn_is_over_as_well",
    ),
    _mutant(
        "who has let go is ahead of who comes anew",
        "leases/connecting_wrapper.py",
        """
        place = None if lease.spare else lease.place_of_next(asked_at)
        """,
        """
        place = None
        """,
        "test_turns.py::test_an_owner_that_has_let_go_comes_back_as_one_who_had_a_turn",
    ),
    _mutant(
        "whoever has been about something else goes on all the same",
        "leases/timed_claim.py",
        """
        if self.state != GIVEN_BACK or now >= self.idle_since + turns.BREAK:
        """,
        """
        if self.state != GIVEN_BACK:
        """,
        "test_turns.py::TestItComesAnew::test_when_it_was_about_something_else_meanwhile",
    ),
    _mutant(
        "whoever comes back has wanted little",
        "leases/turns.py",
        """
        others.came_back(self._kind)
        """,
        """
        pass
        """,
        "test_turns.py::test_and_from_how_long_they_do",
    ),
    _mutant(
        "a request's end waits for a stream that it has left in the middle",
        "transactions/left_open.py",
        "    if not _would_wait(wrapper):\n        connection = wrapper.connection",
        "    if True:\n        connection = wrapper.connection",
        "test_cursors.py::test_a_connection_is_closed_in_the_middle_of_what_holds_its_lock",
    ),
    _mutant(
        "the next request goes on with the last one's burst",
        "transactions/left_open.py",
        """
        lease.comes_anew()
        """,
        "",
        "test_turns.py::TestItComesAnew::test_with_the_next_request",
    ),
    _mutant(
        "who goes on waits for as long as somebody comes anew",
        "pools/queues.py",
        """
        at = anew if self._has_overtaken else 0
        """,
        """
        at = 0
        """,
        "test_turns.py::test_who_comes_anew_and_who_goes_on_are_served_by_turns",
    ),
    _mutant(
        "those who go on stand in the order in which they came back",
        "pools/queues.py",
        """
        while at and self._places.get(id(self[at - 1]), -math.inf) > place:
            at -= 1
        """,
        "",
        "test_turns.py::test_those_who_go_on_are_served_by_the_age_of_their_bursts",
    ),
    _mutant(
        "who comes anew is first where all want much",
        "pools/queues.py",
        """
        if place is None and not self.experience.wants_little(kind(serving.label, get_ident())):
            place = monotonic()
        """,
        "",
        "test_turns.py::test_where_all_want_much_there_is_one_line",
    ),
    _mutant(
        "a path with a number is a kind of its own",
        "pools/experience.py",
        """
        return _WHICH.sub("0", label)
        """,
        """
        return label
        """,
        "test_turns.py::test_whoever_is_known_to_want_much_stands_behind",
    ),
    _mutant(
        "who is of a kind goes by all",
        "pools/experience.py",
        """
        return self._short >= MIN_SHORT_OF_ALL if known is None else known >= MIN_SHORT_OF_KIND
        """,
        """
        return self._short >= MIN_SHORT_OF_ALL
        """,
        "test_turns.py::test_one_of_a_kind_goes_by_that",
    ),
    _mutant(
        "a pause that is expected is waited for",
        "leases/lease.py",
        """
        if grace and not (is_expected and self._may_pause(by_owner=by_owner)):
        """,
        """
        if grace:
        """,
        "test_pauses.py::test_where_a_pause_has_come_each_time_the_connection_goes_back_at_once",
    ),
    _mutant(
        "the end of a turn counts as a pause",
        "leases/timed_claim.py",
        """
        if now >= self.idle_since + conf.current.RELEASE_AFTER:
            self.pauses.came()
        """,
        """
        self.pauses.came()
        """,
        "test_pauses.py::test_the_end_of_a_turn_is_no_pause",
    ),
    _mutant(
        "a use past the wrapper is a pause",
        "leases/pauses.py",
        """
        if self.label is not None and self._used_at != self.at <= FARTHEST:
        """,
        """
        if self.label is not None and self.at <= FARTHEST:
        """,
        "test_pauses.py::test_nor_is_what_comes_after_a_use_past_the_wrapper",
    ),
    _mutant(
        "a pause that did not come is forgotten as one that was never expected",
        "leases/pauses.py",
        """
        learnt.update((at, -DOUBT) for at in self._missed)
        """,
        """
        learnt.update((at, 0) for at in self._missed)
        """,
        "test_pauses.py::test_where_one_was_expected_in_vain_the_next_ones_are_waited_for",
    ),
    _mutant(
        "what is used past the wrapper is a pause before that",
        "leases/timed_claim.py",
        """
        self.state = HELD
        self.pauses.used()
        return None, []
        """,
        """
        self.state = HELD
        self.pauses.came()
        return None, []
        """,
        "test_pauses.py::test_nor_what_comes_before_a_transaction_past_the_wrapper",
    ),
    _mutant(
        "the reaper gives back at once in a pause",
        "leases/timed_claim.py",
        """
        return by_owner and bool(is_set_up)
        """,
        """
        return bool(is_set_up)
        """,
        "test_pauses.py::test_it_is_its_owners_who_closes_the_last_cursor",
    ),
    _mutant(
        "an owner cleans its session in a pause",
        "leases/lease.py",
        """
        by_owner = not ended[0].asks_session
        """,
        """
        pass
        """,
        "test_pauses.py::test_nobody_waits_for_what_a_worker_can_do_in_a_pause",
    ),
    _mutant(
        "a query in the middle of a checkout gives back",
        "leases/timed_claim.py",
        """
        is_set_up = self.server_pid and self.carried is None and self.session_state.parameters is not None
        """,
        """
        is_set_up = self.carried is None and self.session_state.parameters is not None
        """,
        "test_pauses.py::test_a_query_in_the_middle_of_a_checkout_gives_nothing_back",
    ),
    _mutant(
        "a checkout that is not over is given back where there is no grace",
        "leases/lease.py",
        """
        elif grace is not None and pgconn.transaction_status == _IDLE and self.server_pid:
        """,
        """
        elif grace is not None and pgconn.transaction_status == _IDLE:
        """,
        "test_pauses.py::test_nor_does_it_without_a_grace",
    ),
    _mutant(
        "a checkout that is not over is given back since others wait",
        "leases/timed_claim.py",
        """
        if self._connection is None:
            return None
        if self.state != PARKED or not self.server_pid:
        """,
        """
        if self._connection is None:
            return None
        if self.state != PARKED:
        """,
        "test_pauses.py::test_nor_where_others_wait_whose_turn_it_is",
    ),
    _mutant(
        "a cursor of a handle that has executed nothing is not left behind",
        "leases/cursors.py",
        "        checkout.over = True\n",
        "",
        "test_cursors.py::test_a_cursor_of_a_handle_that_has_executed_nothing_yet_reaches_nobody_elses_transaction",
    ),
    _mutant(
        "a cursor is closed by whoever closes it",
        "leases/cursors.py",
        """
        finally:
            if threading.get_ident() == lease.thread_id:
        """,
        """
        finally:
            if True:
        """,
        "test_lease.py::test_a_cursor_that_another_thread_closes_ends_no_hold",
    ),
    _mutant(
        "what Django is not told of runs without what is set for a block",
        "leases/cursors.py",
        """
        and not getattr(lease.wrapper(), "execute_wrappers", None)
        """,
        """
        """,
        "test_session_settings.py::test_statements_that_django_is_not_told_of",
    ),
    _mutant(
        "a rollback that is composed, or among other statements, takes a block's settings along",
        "transactions/overrides.py",
        """
        if type(statement) is str and ";" not in statement and not _MAY_MATTER.match(statement):
        """,
        """
        if type(statement) is not str or not _MAY_MATTER.match(statement):
        """,
        "test_session_settings.py::test_a_rollback_however_it_is_written",
    ),
    _mutant(
        "no session is cleaned without a descriptor to spare",
        "leases/returns.py",
        """
        except (psycopg.OperationalError, OSError) as error:
        """,
        """
        except psycopg.OperationalError as error:
        """,
        "test_session_state.py::test_a_session_is_cleaned_without_a_descriptor_to_spare",
    ),
    _mutant(
        "cursors are retired of what may be another's by now",
        "leases/leaving_claim.py",
        """
        fresh = self.session_state.fresh
        """,
        """
        cursors.retire(connection)
        fresh = self.session_state.fresh
        """,
        "test_reentrancy.py::test_what_another_has_by_then",
    ),
    _mutant(
        "a lease that has lost its connection is held for a change",
        "leases/leaving_claim.py",
        """
        if self._connection is not connection:
            # A signal handler has been faster.
            return None, []
        """,
        "",
        "test_reentrancy.py::test_what_is_closed_is_not_held_for_what_has_changed",
    ),
    _mutant(
        "a signal handler waits for what its own thread is about to read",
        "leases/session_claim.py",
        """
        if not self.carried.done() and not self.keeper.hurry(self):
            raise self.carried.lost("a signal handler queried while its thread was giving the connection back")
        """,
        "",
        "test_reentrancy.py::test_what_another_has_by_then",
    ),
    _mutant(
        "a signal handler carries back what its thread is taking out",
        "reaper/reaper.py",
        """
        if lease.is_locked_here():
            return False
        """,
        "",
        "test_reentrancy.py::test_what_another_has_by_then",
    ),
    _mutant(
        "what a string leaves after it has undone it is taken for undone",
        "sessions/sql.py",
        """
        frozenset(self._removes - self._adds),
        """,
        """
        frozenset(self._removes),
        """,
        "test_session_state.py::test_what_is_left_after_an_undoing_in_the_same_string_is_kept",
    ),
    _mutant(
        "what was temporary by a path stays in the session",
        "sessions/cleaning.py",
        """
        statements.append("DISCARD TEMP")
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_a_table_that_is_temporary_by_its_path_does_not_reach_the_next",
    ),
    _mutant(
        "a path that is computed for a transaction is not minded",
        "sessions/sql.py",
        """
        self._adds.add(PATH)
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_a_table_that_is_temporary_by_its_path_does_not_reach_the_next",
    ),
    _mutant(
        "a block may have all that is created be temporary",
        "transactions/overrides.py",
        """
        lease.note_path(self._wanted.get("search_path"))
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_where_it_surely_is_it_is_kept_for_its_owner",
    ),
    _mutant(
        "what a block sets is sent as the application has it",
        "sessions/following.py",
        """
        cursor.adapters.register_dumper(str, _TextDumper)
        """,
        """
        pass
        """,
        "test_session_settings.py::test_what_an_application_has_made_of_text_is_not_met",
    ),
    _mutant(
        "what a block finds is read as the application has it",
        "transactions/overrides.py",
        """
        [row] = following.run(connection, query, [*(part for step in steps for part in step), *new])
        """,
        """
        row = psycopg.Cursor(connection).execute(query, [*(part for step in steps for part in step), *new]).fetchone()
        """,
        "test_session_settings.py::test_what_an_application_has_made_of_text_is_not_met",
    ),
    _mutant(
        "a block does not wait for what a pipeline has sent",
        "sessions/following.py",
        """
        cursor.scroll(0)
        """,
        """
        pass
        """,
        "test_session_settings.py::test_in_a_pipeline_it_is_set_as_well",
    ),
    _mutant(
        "the names that executemany() is given are not read",
        "sessions/effects.py",
        """
        return self._with_each(parameters.rows)
        """,
        """
        return self.with_parameters(None)
        """,
        "test_following.py::test_so_does_what_executemany_was_given_the_names_of",
    ),
    _mutant(
        "a generator is read before executemany() can",
        "sessions/effects.py",
        """
        if not isinstance(rows, Sequence):
            # To read them would take them from who executes it.
        """,
        """
        if False:
        """,
        "test_following.py::test_names_that_executemany_takes_from_a_generator_are_left_to_it_and_pin",
    ),
    _mutant(
        "a path that follows may have all that is created be temporary",
        "leases/session_claim.py",
        """
        self.note_path(values.get("search_path"))
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_where_it_surely_is_it_is_kept_for_its_owner",
    ),
    _mutant(
        "a path that only may be one of temporary things is not minded",
        "leases/session_claim.py",
        """
        elif path is not None and "pg_temp" in path.lower():
        """,
        """
        elif False:
        """,
        "test_unseen_state.py::test_a_table_that_is_temporary_by_its_path_does_not_reach_the_next",
    ),
    _mutant(
        "a held cursor of the handle is lost",
        "leases/cursors.py",
        """
        lease.note_held_cursor()
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_a_held_cursor_of_the_handle_is_kept_for_its_owner_and_for_nobody_else",
    ),
    _mutant(
        "what the server has ended is ended once more",
        "reaper/limits.py",
        """
        if ended.is_left(found.connection):
        """,
        """
        if False:
        """,
        "test_watch.py::test_what_the_server_has_ended_is_said_once_and_by_whom_to_its_owner",
    ),
    _mutant(
        "what another thread is taking out is carried back under its hands",
        "reaper/registry.py",
        """
        with lease._lock, self._registry_lock:
        """,
        """
        with self._registry_lock:
        """,
        "test_reentrancy.py::test_what_another_thread_is_about_to_take_out_is_left_to_it",
    ),
    _mutant(
        "views that cannot be read keep the rest from being read",
        "sessions/catalogue.py",
        """
        if connection.closed or is_of_handler(error):
            raise
        return None
        """,
        """
        raise
        """,
        "test_catalogue.py::TestExpressions::test_one_that_cannot_be_read_now_is_read_later",
    ),
    _mutant(
        "views that could not be read are never asked for again",
        "sessions/catalogue.py",
        """
        return dataclasses.replace(reading.findings(), fingerprint="" if is_little and found is None else fingerprint)
        """,
        """
        return dataclasses.replace(reading.findings(), fingerprint=fingerprint)
        """,
        "test_catalogue.py::TestExpressions::test_one_that_cannot_be_read_now_is_read_later",
    ),
    _mutant(
        "greenlets are not told that the server has gone",
        "green.py",
        """
        if monkey is not None and monkey.is_module_patched("select"):
        """,
        """
        if False:
        """,
        "test_green.py::test_the_end_of_a_session_is_seen",
    ),
    _mutant(
        "what the pool has already is closed",
        "pools/base.py",
        """
    return keeping.is_psycopgs(pool.__class__) and connection._pool is None and not connection.closed
        """,
        """
    return False
        """,
        "test_pauses.py::test_what_a_handler_raises_when_the_pool_has_the_connection_closes_nothing",
    ),
    _mutant(
        "greenlets compute for each other",
        "leases/pauses.py",
        """
        if paused < self._grace or (computed >= COMPUTED and computed >= paused * PART and green.library() is None):
        """,
        """
        if paused < self._grace or (computed >= COMPUTED and computed >= paused * PART):
        """,
        "test_pauses.py::test_green_threads_have_no_processor_time_of_their_own",
    ),
    _mutant(
        "to compute is to pause",
        "leases/pauses.py",
        """
        if paused < self._grace or (computed >= COMPUTED and computed >= paused * PART and green.library() is None):
        """,
        """
        if paused < self._grace:
        """,
        "test_pauses.py::test_nor_is_it_one_when_the_owner_computes",
    ),
    _mutant(
        "what did not come once is expected all the same",
        "leases/pauses.py",
        """
        learnt = {at: times for at, times in known.items() if at >= self.at or at in seen or times < 0}
        """,
        """
        learnt = dict(known)
        """,
        "test_pauses.py::test_what_did_not_come_once_has_to_come_as_often_again",
    ),
    _mutant(
        "who computes lets go, whoever waits",
        "leases/timed_claim.py",
        """
        if self.turn.computes(self.idle_since, now):
            return self._in_vain(now, now + turns.LOOK_AGAIN)
        """,
        "",
        "test_turns.py::test_an_owner_that_computes_keeps_what_others_wait_for",
    ),
    _mutant(
        "who asks twice takes from who computes",
        "leases/turns.py",
        """
        if now - self._looked_at < LOOK_AGAIN:
            return self._has_computed
        """,
        "",
        "test_turns.py::test_a_thread_is_seen_to_compute_for_as_long_as_it_does",
    ),
    _mutant(
        "a greenlet's number is taken for a thread's",
        "leases/turns.py",
        """
        if _clock_of is None or me != owner or not _is_gil_enabled() or green.library() is not None:
        """,
        """
        if _clock_of is None or me != owner or not _is_gil_enabled():
        """,
        "test_turns.py::test_no_thread_is_seen_to_compute_where_that_tells_nothing",
    ),
    _mutant(
        "a checkout that has failed leaves its place to the next",
        "leases/turns.py",
        """
        if queues.place_in(queue) is not None:
            return True
        self.end_with(checkout - 1)
        return False
        """,
        """
        return True
        """,
        "test_turns.py::TestItComesAnew::test_when_what_asked_in_between_had_nothing",
    ),
    _mutant(
        "who computes lets go for who is about to wait",
        "leases/timed_claim.py",
        """
        if self.turn.computes(self.idle_since, now):
            return self._experience.look_at(now + turns.LOOK_AGAIN), None, []
        """,
        "",
        "test_turns.py::test_an_owner_that_computes_keeps_what_others_wait_for",
    ),
    _mutant(
        "the reaper does not learn of a lease whose turn has not ended after all",
        "leases/lease.py",
        """
        if again is None:
            return
        deadline = again
        """,
        """
        return
        """,
        "test_turns.py::test_a_burst_goes_on_if_whoever_waited_has_got_another_one",
    ),
    _mutant(
        "the reaper is not woken for a parked lease",
        "reaper/reaper.py",
        """
        self._bell.put(None)
        self.ensure_running()
        """,
        """
        self.ensure_running()
        """,
        "test_leisure.py::test_a_reaper_that_sleeps_is_woken",
    ),
    _mutant(
        "the reaper goes to sleep without a last look at what came in",
        "reaper/reaper.py",
        """
        if self._inbox or self._new_limits:
            return
        """,
        """
        if self._new_limits:
            return
        """,
        "test_leisure.py::test_what_is_parked_as_the_reaper_goes_to_sleep_is_seen",
    ),
    _mutant(
        "the reaper goes to sleep without a last look at new limits",
        "reaper/reaper.py",
        """
        if self._inbox or self._new_limits:
            return
        """,
        """
        if self._inbox:
            return
        """,
        "test_leisure.py::test_a_limit_that_comes_as_the_reaper_goes_to_sleep_is_seen",
    ),
    _mutant(
        "nobody rings for a limit",
        "reaper/reaper.py",
        """
        self._new_limits.append((deadline, limit))
        self._wake_by(deadline)
        """,
        """
        self._new_limits.append((deadline, limit))
        """,
        "test_leisure.py::test_a_reaper_that_sleeps_past_a_limit_is_woken_for_it",
    ),
    _mutant(
        "whoever sets a limit rings for it",
        "reaper/reaper.py",
        """
        self._new_limits.append((deadline, limit))
        """,
        """
        self._new_limits.append((deadline, limit))
        self._bell.put(None)
        """,
        "test_leisure.py::test_one_that_wakes_up_before_is_not",
    ),
    _mutant(
        "a lease that was looked at seems to be listed still",
        "reaper/reaper.py",
        """
        lease.look_at = math.inf
        try:
            again = lease.end_if_parked(now)
        """,
        """
        try:
            again = lease.end_if_parked(now)
        """,
        "test_reaper.py::test_an_idle_connection_goes_back_after_its_grace[0.001-default]",
    ),
    _mutant(
        "the watch is not wound up by the first checkout",
        "reaper/reaper.py",
        """
        if self._add(lease):
            self._start_watching()
        """,
        """
        self._add(lease)
        """,
        "test_reaper.py::test_a_checkout_while_the_watch_goes_to_rest_is_watched",
    ),
    _mutant(
        "who finds the pool empty asks nobody",
        "leases/pooled_wrapper.py",
        """
        if not lease.spare:
            lease.keeper.wanted(lease.spare)
        self.errors_occurred = False
        """,
        """
        self.errors_occurred = False
        """,
        "test_leisure.py::test_who_finds_the_pool_empty_ends_what_is_due",
    ),
    _mutant(
        "the end of a transaction does not settle",
        "leases/transacting_wrapper.py",
        """
        if lease.session_state.undone:
            with self.wrap_database_errors:
                lease.confirm_undone()
        lease.settle(handle_is_out=False)
        """,
        """
        if lease.session_state.undone:
            with self.wrap_database_errors:
                lease.confirm_undone()
        """,
        "test_snapshot.py::test_each_query_is_a_checkout_and_a_release_without_a_grace[default]",
    ),
    _mutant(
        "a commit by hand does not settle",
        "leases/lease.py",
        """
        if wrapper is not None and (wrapper.autocommit or self._manual):
            self.settle(handle_is_out=False)
        """,
        "",
        "test_lease.py::test_manual_transactions_hold_until_commit_or_rollback",
    ),
    _mutant(
        "a scope does not settle what is idle when it begins",
        "leases/lease.py",
        """
        if policy.releases(self.alias):
            self.settle()
            return
        """,
        """
        if policy.releases(self.alias):
            return
        """,
        "test_scopes.py::test_a_connection_that_is_idle_when_a_scope_begins_goes_back",
    ),
    _mutant(
        "a template is rendered outside of the scope of its view",
        "scoping.py",
        """
        cover_rendering(result, self)
        """,
        """
        pass
        """,
        "test_rendering.py::test_the_queries_of_a_template_run_under_the_settings[/items/-WSGI]",
    ),
    _mutant(
        "commit hooks run with the connection held",
        "leases/transacting_wrapper.py",
        """
        hooks, self.run_on_commit = self.run_on_commit, []
        try:
            self._conn_hygiene_lease.settle(handle_is_out=False)
        """,
        """
        hooks, self.run_on_commit = self.run_on_commit, []
        try:
            pass
        """,
        "test_lease.py::test_a_commit_hook_that_is_slow_before_it_queries_holds_nothing",
    ),
    # ##### Sessions that are not cleaned #####
    _mutant(
        "a session with state of its own is not cleaned",
        "leases/session_claim.py",
        """
        if plan.left or plan.resets:
            with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                pools.scrub(connection, plan, fresh, known.of_login(self.alias))
        """,
        """
        if False:
            with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                pools.scrub(connection, plan, fresh, known.of_login(self.alias))
        """,
        "test_session_state.py::test_state_never_reaches_another_thread",
    ),
    _mutant(
        "a statement that pins nothing soils nothing",
        "sessions/state.py",
        """
        self._soiled = True
        self.undone -= adds
        """,
        """
        self.undone -= adds
        """,
        "test_session_state.py::test_other_state_at_connect_does_not_pin_and_does_not_leak",
    ),
    _mutant(
        "what the server reports is not compared",
        "sessions/state.py",
        """
        if soiled or self._soiled or self.held or not resets.issuperset(differs):
        """,
        """
        if soiled or self._soiled or self.held:
        """,
        "test_session_state.py::test_state_that_a_function_leaves_does_not_reach_the_next_owner_either",
    ),
    _mutant(
        "what psycopg keeps is not put back by an owner that closes",
        "leases/session_claim.py",
        """
        pools.restore(connection)
        """,
        "",
        "test_client_state.py::test_the_next_request_sees_what_the_pool_has",
    ),
    _mutant(
        "what psycopg keeps is not put back at a release",
        "pools/base.py",
        """
    try:
        restore(connection)
    except BaseException:
        """,
        """
    try:
        pass
    except BaseException:
        """,
        "test_client_state.py::test_so_it_is_when_the_owner_ends_without_a_close",
        "test_client_state.py::test_what_a_receiver_sets_at_each_checkout_neither_pins_nor_stays",
    ),
    _mutant(
        "psycopg believes in prepared statements that a cleaning has dropped",
        "sessions/cleaning.py",
        """
        client.forget_prepared(connection)
        """,
        """
        pass
        """,
        "test_following.py::test_a_cleaned_session_has_no_statement_that_only_one_side_knows",
    ),
    _mutant(
        "a cleaning sends its statement by a cursor of the owner's",
        "sessions/cleaning.py",
        """
        if not client.restore(connection):
            raise psycopg.OperationalError("what was set on the psycopg connection cannot be undone")
        """,
        "",
        "test_client_state.py::test_a_statement_of_the_cleaning_is_not_sent_by_a_cursor_of_the_owners",
    ),
    _mutant(
        "a change of what psycopg keeps pins nothing",
        "sessions/state.py",
        """
        return changed + client.changed(connection, self._client)
        """,
        """
        return changed
        """,
        "test_client_state.py::test_what_the_owner_has_changed_pins_and_is_still_there_after_a_pause",
    ),
    _mutant(
        "a DISCARD ALL has what psycopg keeps be forgotten",
        "sessions/state.py",
        """
        if self.parameters is not None:
            self.parameters = reported_parameters(connection)
        """,
        """
        self.parameters = None
        """,
        "test_client_state.py::test_a_discard_all_of_the_servers_leaves_it_there",
    ),
    _mutant(
        "the time zone that a DISCARD ALL leaves is no reason to pin where nothing follows",
        "sessions/state.py",
        """
        if DISCARDED in effect.adds and following.is_wanted():
        """,
        """
        if DISCARDED in effect.adds:
        """,
        "test_following.py::test_so_it_does_that_the_servers_time_zone_is_another",
    ),
    _mutant(
        "what receivers have set is no reason to pin what has been discarded",
        "leases/session_claim.py",
        """
        return self.session_state.is_set_at_connect() or bool(self._set_up_unseen(frozenset(following.IDENTITIES)))
        """,
        """
        return bool(self._set_up_unseen(frozenset(following.IDENTITIES)))
        """,
        "test_following.py::test_where_nothing_follows_it_pins_that_receivers_have_set_what_is_discarded",
    ),
    _mutant(
        "a role that was assumed is no reason to pin what has been discarded",
        "leases/session_claim.py",
        """
        return self.session_state.is_set_at_connect() or bool(self._set_up_unseen(frozenset(following.IDENTITIES)))
        """,
        """
        return self.session_state.is_set_at_connect()
        """,
        "test_following.py::test_so_it_does_that_a_role_was_assumed",
    ),
    _mutant(
        "a DISCARD ALL pins where nothing was set up",
        "leases/session_claim.py",
        """
        if effects.DISCARDED in effect.adds and not following.is_wanted() and self._is_set_up():
        """,
        """
        if effects.DISCARDED in effect.adds and not following.is_wanted():
        """,
        "test_following.py::test_where_nothing_was_set_up_nothing_pins_that_was_discarded",
    ),
    _mutant(
        "new connections are remembered when a backend has changed them already",
        "pools/configuring.py",
        """
        client.remember(connection)
        """,
        "",
        "test_client_state.py::test_a_backend_that_wraps_what_it_finds_at_each_checkout_wraps_once",
    ),
    _mutant(
        "a new session is taken for what a backend has set at the first checkout",
        "pools/configuring.py",
        """
        state.fresh_parameters(connection)
        """,
        "",
        "test_own_close.py::test_what_a_backend_sets_at_each_checkout_is_not_taken_for_the_pools",
    ),
    _mutant(
        "the server's version is asked with a cursor before there is a lease",
        "leases/first_connect.py",
        """
            wrapper.__dict__.setdefault("pg_version", driver.pgconn.server_version)
        """,
        """
            pass
        """,
        "test_own_close.py::test_what_the_first_connection_of_the_process_is_set_to_is_seen",
    ),
    _mutant(
        "adapters are written to in the map that was remembered",
        "sessions/client.py",
        """
            self.adapters = AdaptersMap(connection._adapters)
        """,
        """
            self.adapters = connection._adapters
        """,
        "test_client_state.py::test_the_next_request_sees_what_the_pool_has",
        "test_client_state.py::test_what_the_owner_has_changed_pins_and_is_still_there_after_a_pause",
    ),
    _mutant(
        "what somebody has noted on a connection outlives what it says",
        "sessions/client.py",
        """
            if name not in own:
                del connection.__dict__[name]
        """,
        """
            if name not in own:
                pass
        """,
        "test_client_state.py::test_a_receiver_that_notes_on_the_connection_what_it_has_done_does_it_at_each_checkout",
    ),
    _mutant(
        "what is called as an attribute of something else of psycopg's is the next one's",
        "sessions/client.py",
        """
        if owner is None or (owner == "self") == on_self
        """,
        """
        if True
        """,
        "test_client_state.py::test_nor_does_one_that_is_called_as_another_of_psycopg_s_or_its_pool_s",
    ),
    _mutant(
        "what is in the place of a method is the next one's",
        "sessions/client.py",
        """
        kept.discard(name)
        """,
        """
        pass
        """,
        "test_client_state.py::test_what_connections_of_ones_own_class_set_on_themselves_is_kept_but_for_methods",
    ),
    _mutant(
        "what wraps a method is gone for good if somebody has wrapped it once more",
        "sessions/client.py",
        """
        connection.__dict__.update(given.wrapped)
        """,
        """
        pass
        """,
        "test_client_state.py::test_what_wraps_methods_as_a_connection_opens_goes_on_to_do_so",
    ),
    _mutant(
        "a held cursor is taken for closed in a transaction that has failed",
        "leases/cursors.py",
        """
        if is_sent:
            lease.session_state.held.discard(cursor)
        """,
        """
        lease.session_state.held.discard(cursor)
        """,
        "test_unseen_state.py::test_a_held_cursor_that_is_not_closed_reaches_nobody_else",
    ),
    _mutant(
        "a session with a held cursor in it is taken for untouched",
        "sessions/state.py",
        """
        if self.held:
            return False
        """,
        "",
        "test_unseen_state.py::test_a_held_cursor_that_is_not_closed_reaches_nobody_else",
    ),
    _mutant(
        "a column is taken for the command that it is called as",
        "sessions/sql.py",
        """
        return row is not None and (row["inside"] is not None or row.start("word") == self._verb(start, end))
        """,
        """
        return row is not None
        """,
        "test_session_state.py::test_a_column_may_be_called_as_the_command_that_takes_a_row",
    ),
    _mutant(
        "what DISCARD ALL does not undo is handed on",
        "pools/base.py",
        """
        if pool is not None and not plan.left & effects.INDELIBLE and internals.CLEANING.available:
        """,
        """
        if pool is not None and internals.CLEANING.available:
        """,
        "test_session_state.py::test_state_never_reaches_another_thread",
    ),
    _mutant(
        "a session is cleaned though its set-up is not known",
        "pools/base.py",
        """
        if pool is not None and not plan.left & effects.INDELIBLE and internals.CLEANING.available:
        """,
        """
        if pool is not None and not plan.left & effects.INDELIBLE:
        """,
        "test_internals.py::test_without_configure_a_session_with_state_is_closed",
    ),
    _mutant(
        "a wrapper is leased whose names are missing",
        "pools/base.py",
        """
        if not internals.LEASES.available or backends.refusal(wrapper) is not None:
        """,
        """
        if backends.refusal(wrapper) is not None:
        """,
        "test_internals.py::test_without_leases_wrappers_are_left_as_django_made_them",
    ),
    _mutant(
        "a cleaned session is not set up anew",
        "sessions/cleaning.py",
        """
        configure(connection)
        """,
        """
        pass
        """,
        "test_following.py::test_a_cleaned_session_is_set_up_as_its_pool_does",
    ),
    _mutant(
        "a session that was reset with all else is not set up anew",
        "sessions/cleaning.py",
        """
        plan, rows = _asked_and_reset(connection, plan, asked, fresh, of_login)
        """,
        """
        _, rows = _asked_and_reset(connection, plan, asked, fresh, of_login)
        """,
        "test_following.py::test_a_role_that_is_assumed_is_that_of_the_next_as_well",
    ),
    _mutant(
        "a backend's own part of the set-up is taken for Django's",
        "pools/configuring.py",
        """
        return tuple(getattr(backend, name, None) for name in SETTING_UP) == _DJANGOS
        """,
        """
        return True
        """,
        "test_following.py::test_the_servers_default_goes_over_what_a_backend_of_ones_own_sets",
    ),
    _mutant(
        "a reset that fails in a transaction of its own has failed for good",
        "sessions/cleaning.py",
        """
        if plan.left or connection.closed:
            raise
        """,
        """
        if plan.left or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            raise
        """,
        "test_following.py::test_what_cannot_be_reset_one_by_one_is_reset_together",
    ),
    _mutant(
        "the cursors of a connection that goes back still tell the lease",
        "leases/session_claim.py",
        """
        cursors.retire(connection)
        if connection.closed:
        """,
        """
        if connection.closed:
        """,
        "test_lease.py::test_the_handle_is_what_it_was_when_it_is_back_in_its_pool",
    ),
    # ##### What follows its owner #####
    _mutant(
        "each request that ends asks the catalogue that is due",
        "leases/session_claim.py",
        """
        if pools.make_ready(connection) and known.begin_asking(self.alias, _now()):
        """,
        """
        if pools.make_ready(connection):
        """,
        "test_following.py::test_the_end_of_a_request_asks_nothing_that_somebody_else_is_asking",
    ),
    _mutant(
        "each worker asks the catalogue that is due",
        "leases/returns.py",
        """
        and known.begin_asking(self.alias, time.monotonic(), is_needed=self.carried is not None)
        """,
        """
        and True
        """,
        "test_following.py::test_a_worker_asks_nothing_that_somebody_else_is_asking",
    ),
    _mutant(
        "who waits for what follows goes on without",
        "sessions/known.py",
        """
        if is_needed and is_unknown(alias):
        """,
        """
        if False:
        """,
        "test_catalogue.py::TestKnown::test_who_waits_for_what_follows_asks_as_well_if_nothing_is_known",
    ),
    _mutant(
        "what was seen to ask for nothing asks the catalogue later",
        "leases/returns.py",
        """
        if self._is_due is None:
        """,
        """
        if True:
        """,
        "test_following.py::test_who_was_seen_to_ask_for_nothing_asks_for_nothing",
    ),
    _mutant(
        "what is set is not read where its connection goes back",
        "sessions/cleaning.py",
        """
        asked = sorted(plan.follow)
        plan, rows = _asked_and_reset(connection, plan, asked, fresh, of_login)
        """,
        """
        asked: list[str] = []
        plan, rows = _asked_and_reset(connection, plan, asked, fresh, of_login)
        """,
        "test_following.py::test_what_is_set_follows_its_owner",
    ),
    _mutant(
        "what is set is not read where its session ends",
        "pools/base.py",
        """
        values = cleaning.read(connection, plan, fresh) if plan.follow else {}
        """,
        """
        values = {}
        """,
        "test_following.py::test_what_is_set_follows_its_owner",
    ),
    _mutant(
        "what is set is not set again at a checkout of the pool",
        "leases/session_claim.py",
        """
        if self.carried is not None:
            self.set_again()
        with self._lock:
            self.session_state.begin(connection)
            # Last of all: after an exception of a signal handler, it is to be set again in another session. So it
            # is where a handler has queried at a call above, and let go of this one.
        """,
        """
        with self._lock:
            self.session_state.begin(connection)
            # Last of all: after an exception of a signal handler, it is to be set again in another session. So it
            # is where a handler has queried at a call above, and let go of this one.
        """,
        "test_following.py::test_what_is_set_follows_its_owner",
    ),
    _mutant(
        "what is set is set again after others have had the session",
        "installation.py",
        """
        elif lease.carried is not None:
            # The session is set up. Ahead of all other receivers, which find what its owner has set.
            lease.set_again()
        """,
        "",
        "test_following.py::test_what_follows_is_set_before_anything_else_runs_and_after_what_receivers_set",
    ),
    _mutant(
        "what receivers set goes over what the owner has set",
        "leases/session_claim.py",
        """
        if carried.set_in != self.checkouts or self.session_state.was_set_at_connect(carried.result(0).keys()):
            self.set_again()
        """,
        """
        if carried.set_in != self.checkouts:
            self.set_again()
        """,
        "test_following.py::test_what_follows_is_set_before_anything_else_runs_and_after_what_receivers_set",
    ),
    _mutant(
        "what is set is not set again where signals are muted",
        "leases/session_claim.py",
        """
        if carried.set_in != self.checkouts or self.session_state.was_set_at_connect(carried.result(0).keys()):
            self.set_again()
        """,
        """
        if self.session_state.was_set_at_connect(carried.result(0).keys()):
            self.set_again()
        """,
        "test_following.py::test_what_follows_is_set_where_nobody_is_told_of_a_new_session",
    ),
    _mutant(
        "what is set is carried past the end of its request",
        "leases/claim.py",
        """
        if not self._is_connecting():
            self.state, self.carried = CLOSED, None
        """,
        """
        if not self._is_connecting():
            self.state = CLOSED
        """,
        "test_following.py::test_no_query_runs_without_what_cannot_be_set_again",
        "test_following.py::test_what_is_set_is_seen_by_nobody_else",
    ),
    _mutant(
        "a query runs without what cannot be set again",
        "leases/session_claim.py",
        """
        if self.carried is not None:
            self.set_again()
        with self._lock:
            self.session_state.begin(connection)
            # Last of all: after an exception of a signal handler, it is to be set again in another session. So it
            # is where a handler has queried at a call above, and let go of this one.
        """,
        """
        if self.carried is not None:
            try:
                self.set_again()
            except psycopg.Error:
                pass
        with self._lock:
            self.session_state.begin(connection)
            # Last of all: after an exception of a signal handler, it is to be set again in another session. So it
            # is where a handler has queried at a call above, and let go of this one.
        """,
        "test_following.py::test_no_query_runs_without_what_cannot_be_set_again",
    ),
    _mutant(
        "a query runs without what could not be read",
        "sessions/following.py",
        """
        if self._error is not None:
            raise self.lost(str(self._error)) from self._error
        """,
        "",
        "test_following.py::test_no_query_runs_without_what_could_not_be_read",
    ),
    _mutant(
        "what was not set again is not carried to the next try",
        "leases/leaving_claim.py",
        """
        if returning is not None:
            self.carried = carried
        """,
        "",
        "test_following.py::test_no_query_runs_without_what_cannot_be_set_again",
    ),
    _mutant(
        "nobody waits for what is on its way back",
        "leases/pooled_wrapper.py",
        """
        if lease.carried is not None:
            # First of all: it may be on its way back with the only connection there is.
            lease.await_carried()
        """,
        "",
        "test_following.py::test_what_is_on_its_way_back_is_waited_for",
    ),
    _mutant(
        "what has followed once does not follow on",
        "sessions/state.py",
        """
        self.follows |= values.keys() - self._empty
        """,
        """
        pass
        """,
        "test_following.py::test_what_is_set_follows_its_owner",
    ),
    _mutant(
        "what is declared follows only if it was seen",
        "leases/session_claim.py",
        """
        declared = known.followed(self.alias) if self.last_statement is not None else frozenset()
        """,
        """
        declared = frozenset()
        """,
        "test_following.py::test_declared_settings_follow_whatever_has_set_them",
    ),
    _mutant(
        "a name that is left empty is unknown to the next session",
        "sessions/cleaning.py",
        """
        elif own == "" and "." in name:
        """,
        """
        elif False:
        """,
        "test_following.py::test_a_name_that_is_left_empty_is_known_to_the_next_session",
    ),
    _mutant(
        "a session is told at each checkout of a name that it knows",
        "sessions/following.py",
        """
        return {name: value for name, value in values.items() if value is not KNOWN or name not in known}
        """,
        """
        return {name: value for name, value in values.items() if value is not KNOWN or known is None}
        """,
        "test_following.py::test_a_session_that_knows_the_name_is_not_told_again",
    ),
    _mutant(
        "a session that was told of a name is told again",
        "sessions/following.py",
        """
        note_heard(connection, values)
        """,
        "",
        "test_following.py::test_a_name_is_heard_of_once_it_was_set_or_reset",
    ),
    _mutant(
        "a session that was reset is not taken to know the name",
        "sessions/cleaning.py",
        """
        following.note_heard(connection, frozenset() if plan.left else plan.resets)
        """,
        "",
        "test_following.py::test_a_name_is_heard_of_once_it_was_set_or_reset",
    ),
    _mutant(
        "a session is taken to know a name for a reset of everything",
        "sessions/cleaning.py",
        """
        following.note_heard(connection, frozenset() if plan.left else plan.resets)
        """,
        """
        following.note_heard(connection, plan.resets)
        """,
        "test_following.py::test_a_name_is_heard_of_once_it_was_set_or_reset",
    ),
    _mutant(
        "a name is forgotten where nothing is executed in between",
        "sessions/state.py",
        """
        if follows:
            declared |= getattr(self, "_empty", frozenset())
        """,
        "",
        "test_following.py::test_so_it_is_where_nothing_is_executed_in_between",
    ),
    _mutant(
        "a library's own setting is set where it need only be known",
        "sessions/following.py",
        """
        return f"CASE WHEN {unknown} THEN pg_catalog.set_config({setting}, NULL, false) END"
        """,
        """
        return f"pg_catalog.set_config({setting}, NULL, false)"
        """,
        "test_following.py::test_a_library_that_has_the_name_is_asked_for_nothing",
    ),
    _mutant(
        "what may be set again is asked of the role that a request has taken",
        "sessions/catalogue.py",
        """
        may_set = "has_parameter_privilege(session_user, name, 'SET') OR has_parameter_privilege(name, 'SET')"
        """,
        """
        may_set = "has_parameter_privilege(name, 'SET')"
        """,
        "test_catalogue.py::TestAsking::test_nor_does_one_that_a_request_has_taken",
    ),
    _mutant(
        "a setting that a function sets is folded beyond ASCII",
        "sessions/bodies.py",
        """
        return {name and folded(name) for name in names}
        """,
        """
        return {name and name.lower() for name in names}
        """,
        "test_catalogue.py::TestFunctions::test_each",
    ),
    _mutant(
        "a setting that a policy reads is folded beyond ASCII",
        "sessions/bodies.py",
        """
        return {folded(name) for name in names if name}
        """,
        """
        return {name.lower() for name in names if name}
        """,
        "test_catalogue.py::TestPolicies::test_names_are_folded_as_the_server_does",
    ),
    _mutant(
        "the server's default does not go over what receivers set",
        "sessions/state.py",
        """
        at_default = (names & self.follows if self._soiled else frozenset()) | self._set_at_connect
        """,
        """
        at_default = names & self.follows if self._soiled else frozenset()
        """,
        "test_following.py::test_the_servers_default_goes_over_what_a_receiver_sets",
    ),
    _mutant(
        "the server's default that a function has set does not go over what receivers set",
        "sessions/state.py",
        """
        at_default = (names & self.follows if self._soiled else frozenset()) | self._set_at_connect
        """,
        """
        seen = names & self.follows
        at_default = seen if self._soiled else seen & self._set_at_connect
        """,
        "test_following.py::test_so_does_that_of_a_function",
    ),
    _mutant(
        "a role that was given up is assumed again",
        "leases/session_claim.py",
        """
        return names.intersection(following.IDENTITIES if wrapper.settings_dict["OPTIONS"].get("assume_role") else ())
        """,
        """
        return frozenset()
        """,
        "test_following.py::test_an_assumed_role_that_was_given_up_is_not_assumed_again",
    ),
    _mutant(
        "the server's default does not go over what the backend sets",
        "leases/session_claim.py",
        """
        if not _is_set_up_by_django(wrapper.__class__):
            return names
        """,
        "",
        "test_following.py::test_the_servers_default_goes_over_what_a_backend_of_ones_own_sets",
    ),
    _mutant(
        "the server's default does not go over what the pool sets",
        "sessions/cleaning.py",
        """
        if configure is not None and configures_more:
            plan = plan._replace(at_default=plan.at_default | (plan.follow - plan.unseen))
        """,
        "",
        "test_following.py::test_the_default_follows_where_a_pool_may_set_another",
    ),
    _mutant(
        "Django's time zone is taken for the server's",
        "sessions/cleaning.py",
        """
        carried[name] = own if name in by_value else None
        """,
        """
        carried[name] = None
        """,
        "test_following.py::test_the_servers_default_goes_over_what_a_receiver_sets",
    ),
    _mutant(
        "a default that nobody may set fails what comes later",
        "sessions/following.py",
        """
        if len(settable) == len(values):
            raise
        """,
        """
        raise
        """,
        "test_following.py::test_what_nobody_can_set_is_not_set_to_its_default",
    ),
    # ##### What is cleaned, and when #####
    _mutant(
        "what is set is not reset",
        "sessions/cleaning.py",
        """
        statements += [_resetting(connection, name) for name in following.in_order_of_reset(plan.resets)]
        """,
        """
        pass
        """,
        "test_following.py::test_what_is_set_is_seen_by_nobody_else",
    ),
    _mutant(
        "a cleaned session is not compared with what it was",
        "sessions/cleaning.py",
        """
        elif reported != fresh:
        """,
        """
        elif False:
        """,
        "test_following.py::test_a_session_that_is_not_what_it_was_is_fit_for_nobody",
    ),
    _mutant(
        "a session that the server has turned read-only is closed",
        "sessions/cleaning.py",
        """
        if is_reset and state.changed_parameters(fresh, reported) == [state.READ_ONLY]:
        """,
        """
        if False:
        """,
        "test_broken.py::test_sessions_that_the_server_turns_read_only_and_back_stay_in_their_pool",
    ),
    _mutant(
        "a time limit that comes while a session is cleaned is taken for its failure",
        "interruptions.py",
        """
        if trace.tb_frame.f_code in codes:
        """,
        """
        if False:
        """,
        "test_interruptions.py::test_what_is_done_meanwhile_does_not_keep_it",
    ),
    _mutant(
        "a connection that is lost while it is asked is taken for an answer",
        "sessions/known.py",
        """
        if findings is None and connection.closed and alias not in _lost:
        """,
        """
        if False:
        """,
        "test_following.py::test_the_next_connection_is_asked_where_one_was_lost",
    ),
    _mutant(
        "connections are lost to asking for ever",
        "sessions/known.py",
        """
        if findings is None and connection.closed and alias not in _lost:
        """,
        """
        if findings is None and connection.closed:
        """,
        "test_following.py::test_no_third_connection_is_lost_to_asking",
    ),
    _mutant(
        "a database that nobody has looked at is taken for clean",
        "sessions/known.py",
        """
        return known is None or not known.is_current or known.findings is None or bool(known.findings.leaves_state)
        """,
        """
        return known is not None and known.findings is not None and bool(known.findings.leaves_state)
        """,
        "test_catalogue.py::TestKnown::test_what_follows_and_whether_is_cleaned",
    ),
    _mutant(
        "what the catalogue names follows from the second release on",
        "leases/returns.py",
        """
        plan = plan.following_also(known.followed(self.alias), pooled=self.pool is not None)
        """,
        """
        pass
        """,
        "test_following.py::test_what_the_catalogue_names_follows_from_the_first_release_on",
    ),
    _mutant(
        "what functions have set is cleaned away while nobody can tell",
        "leases/session_claim.py",
        """
        changed.append(effects.UNTOLD)
        """,
        """
        pass
        """,
        "test_following.py::test_what_functions_may_have_set_stays_with_its_owner_while_nobody_can_tell",
    ),
    _mutant(
        "what a view sets is not read",
        "sessions/catalogue.py",
        """
        is_little = int(stored) <= MOST_STORED
        """,
        """
        is_little = False
        """,
        "test_catalogue.py::TestExpressions::test_each_is_read",
    ),
    _mutant(
        "a change of a view is not noticed",
        "sessions/catalogue.py",
        """
        SELECT session_user || ' ' || current_user || ' ' || concat_ws(' ', e.changed,
        """,
        """
        SELECT session_user || ' ' || current_user || ' ' || concat_ws(' ',
        """,
        "test_catalogue.py::TestExpressions::test_what_is_changed_is_read_again",
    ),
    _mutant(
        "as many views as there are keep a server busy",
        "sessions/catalogue.py",
        """
        is_little = int(stored) <= MOST_STORED
        """,
        """
        is_little = True
        """,
        "test_catalogue.py::TestExpressions::test_more_than_can_be_searched_are_not_taken_for_harmless",
    ),
    _mutant(
        "views that were not read are taken for harmless",
        "sessions/catalogue.py",
        """
        if stored is None:
        """,
        """
        if False:
        """,
        "test_catalogue.py::TestExpressions::test_more_than_can_be_searched_are_not_taken_for_harmless",
    ),
    _mutant(
        "a rule sets by an update, and nobody sees it",
        "sessions/expressions.py",
        """
        f"{_SETS_SETTINGS if kind.catalogue == 'pg_rewrite' else ''})"
        """,
        """
        ")"
        """,
        "test_catalogue.py::TestExpressions::test_a_rule_may_set_by_an_update",
    ),
    _mutant(
        "a rule's condition is not searched",
        "sessions/expressions.py",
        """
        )._replace(tree="x.ev_action::text || x.ev_qual::text"),
        """,
        """
        ),
        """,
        "test_catalogue.py::TestExpressions::test_each_is_read",
    ),
    _mutant(
        "views of extensions are not trusted",
        "sessions/expressions.py",
        """
        AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')\"""
        """,
        """
        AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'x')\"""
        """,
        "test_catalogue.py::TestExpressions::test_what_is_changed_is_read_again",
    ),
    _mutant(
        "a view gained by an extension goes on counting",
        "sessions/expressions.py",
        """
        AND classid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass, 'pg_cast'::regclass)
        """,
        """
        AND classid IN ('pg_operator'::regclass, 'pg_cast'::regclass)
        """,
        "test_catalogue.py::TestExpressions::test_what_is_changed_is_read_again",
    ),
    _mutant(
        "a cast gained by an extension goes on counting",
        "sessions/expressions.py",
        """
        AND classid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass, 'pg_cast'::regclass)
        """,
        """
        AND classid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass)
        """,
        "test_catalogue.py::TestExpressions::test_so_may_what_has_its_function_by_another_name",
    ),
    _mutant(
        "an operator is not asked for its function",
        "sessions/expressions.py",
        """
        ["x.oprcode"],
        """,
        """
        ["0"],
        """,
        "test_catalogue.py::TestExpressions::test_so_may_what_has_its_function_by_another_name",
    ),
    _mutant(
        "of an aggregate the first function is asked for alone",
        "sessions/expressions.py",
        """
        [f"a.agg{step}fn" for step in ("trans", "final", "combine", "mtrans", "minvtrans", "mfinal")],
        """,
        """
        ["a.aggtransfn"],
        """,
        "test_catalogue.py::TestExpressions::test_so_may_what_has_its_function_by_another_name",
    ),
    _mutant(
        "a cast is not asked for its function",
        "sessions/expressions.py",
        """
        ["x.castfunc"],
        """,
        """
        ["0"],
        """,
        "test_catalogue.py::TestExpressions::test_so_may_what_has_its_function_by_another_name",
    ),
    _mutant(
        "a view by which settings are set is taken for one that reads them",
        "sessions/expressions.py",
        """
        kinds.append(f"\\nSELECT {of_views.owner}, 'UPDATE pg_settings'{_own(of_views)}\\nAND {_HANDS_SETTINGS_ON}")
        """,
        """
        """,
        "test_catalogue.py::TestExpressions::test_so_may_an_update_of_a_view",
    ),
    _mutant(
        "a view that reads settings is taken for one by which they are set",
        "sessions/expressions.py",
        """
        AND CASE WHEN {_HAS_SETTINGS} THEN pg_relation_is_updatable(c.oid, false) & 4 <> 0 ELSE false END\"""
        """,
        """
        AND {_HAS_SETTINGS}\"""
        """,
        "test_catalogue.py::TestExpressions::test_what_projects_have_leaves_nothing",
    ),
    _mutant(
        "what a superuser has put into the server's own schema is not read",
        "sessions/expressions.py",
        """
        IS_LASTING = "{schema}.nspname !~ '^pg_(toast_)?temp_'"
        """,
        """
        IS_LASTING = "{schema}.nspname !~ '^pg_'"
        """,
        "test_catalogue.py::TestExpressions::test_a_schema_of_the_servers_own_may_have_what_is_not",
    ),
    _mutant(
        "the name of a function's rows is taken for a call",
        "sessions/catalogue.py",
        """
        return _left_in(_ALIAS.sub("(", text), is_sql=True)
        """,
        """
        return _left_in(text, is_sql=True)
        """,
        "test_catalogue.py::TestExpressions::test_what_projects_have_leaves_nothing",
    ),
    _mutant(
        "what a policy itself sets is not seen",
        "sessions/catalogue.py",
        """
        self._left(policy, *_left_in_expression(f"SELECT {policy.expressions}"))
        """,
        """
        self._left(policy, set(), set())
        """,
        "test_catalogue.py::TestPolicies::test_what_a_policy_itself_leaves_is_found",
    ),
    _mutant(
        "a column of a policy is taken for a command",
        "sessions/catalogue.py",
        """
        self._left(policy, *_left_in_expression(f"SELECT {policy.expressions}"))
        """,
        """
        self._left(policy, *_left_in_expression(policy.expressions))
        """,
        "test_catalogue.py::TestPolicies::test_a_column_may_be_called_as_a_command",
    ),
    _mutant(
        "what is executed and cannot be undone is not seen",
        "sessions/catalogue.py",
        """
        others |= body.adds_in_strings() & _CLOSED_FOR
        """,
        """
        """,
        "test_catalogue.py::TestFunctions::test_what_no_cleaning_undoes_closes_sessions_that_have_executed_it",
    ),
    _mutant(
        "a sentence is taken for a LOAD",
        "sessions/bodies.py",
        """
        effects = [sql.effect_of(value) for value in values if not _LOAD_OF_PROSE.match(value)]
        """,
        """
        effects = [sql.effect_of(value) for value in values]
        """,
        "test_catalogue.py::TestFunctions::test_each",
    ),
    _mutant(
        "a function of the session's own is taken for harmless code",
        "sessions/sql.py",
        """
        if word == "create" and self._creates_own_function(start, end):
        """,
        """
        if False:
        """,
        "test_session_state.py::test_reading_statements",
    ),
    _mutant(
        "a function's own path is taken for its schema",
        "sessions/sql.py",
        """
        return tokens[:1] in (["function"], ["procedure"]) and _PG_TEMP.search(" ".join(tokens[1:2])) is not None
        """,
        """
        return tokens[:1] in (["function"], ["procedure"])
        """,
        "test_session_state.py::test_reading_statements",
    ),
    _mutant(
        "a function's own path that begins with pg_temp is not seen",
        "sessions/catalogue.py",
        """
        others: set[str] = {effects.TEMPORARY} if function.creates_temporary == "t" else set()
        """,
        """
        others: set[str] = set()
        """,
        "test_catalogue.py::TestFunctions::test_a_path_of_the_call_may_have_what_is_created_be_temporary",
    ),
    _mutant(
        "a function is not read for its own path alone",
        "sessions/catalogue.py",
        """
        telling.append(_CREATES_TEMPORARY)
        """,
        """
        pass
        """,
        "test_catalogue.py::TestFunctions::test_a_path_of_the_call_may_have_what_is_created_be_temporary",
    ),
    _mutant(
        "what a path that set_config() sets makes temporary is not seen",
        "sessions/catalogue.py",
        """
        others |= {effects.TEMPORARY} if body.creates_temporary() else set()
        """,
        """
        """,
        "test_catalogue.py::TestFunctions::test_each",
    ),
    _mutant(
        "a function that executes what it is given is not read",
        "sessions/catalogue.py",
        """
        *_STEMS,
        """,
        "",
        "test_catalogue.py::TestFunctions::test_what_leaves_something_is_found_wherever_it_is_called",
    ),
    _mutant(
        "what a string says of a temporary table is taken for its end",
        "sessions/catalogue.py",
        """
        if effects.TEMPORARY in adds and _GONE_AT_COMMIT.search(Text(statement).plain):
        """,
        """
        if effects.TEMPORARY in adds and _GONE_AT_COMMIT.search(statement):
        """,
        "test_catalogue.py::TestFunctions::test_each",
    ),
    # ##### What is undone #####
    _mutant(
        "an undoing is believed in a string whose path has all be temporary",
        "sessions/sql.py",
        """
        self._left_again.add(TEMPORARY)
        """,
        """
        pass
        """,
        "test_session_state.py::test_what_a_string_undoes_is_not_what_it_leaves",
    ),
    _mutant(
        "an undoing is believed of what a held cursor does as its transaction ends",
        "sessions/sql.py",
        """
        self._left_again |= self._adds
        """,
        """
        pass
        """,
        "test_session_state.py::test_what_a_string_undoes_is_not_what_it_leaves",
    ),
    _mutant(
        "an undoing is believed where a path has all be temporary",
        "sessions/state.py",
        """
        if reason == effects.TEMPORARY and self.is_path_temporary and _PATH in self.follows.union(self.overridden):
        """,
        """
        if False:
        """,
        "test_unseen_state.py::test_where_it_surely_is_it_is_kept_for_its_owner",
    ),
    _mutant(
        "an undoing is believed where a block's path has all be temporary",
        "leases/session_claim.py",
        """
        self.session_state.is_path_temporary = True
        """,
        """
        pass
        """,
        "test_unseen_state.py::test_where_it_surely_is_it_is_kept_for_its_owner",
    ),
    _mutant(
        "of the paths that a statement is executed with, none is minded",
        "sessions/effects.py",
        """
        is_any = setting.is_local is True and parameters is None
        """,
        """
        is_any = False
        """,
        "test_session_state.py::test_reading_settings_from_parameters",
    ),
    _mutant(
        "an undoing is believed before its commit",
        "sessions/state.py",
        """
        if in_transaction and reason not in _NOT_TRANSACTIONAL:
        """,
        """
        if False:
        """,
        "test_following.py::test_an_undoing_that_did_not_happen_is_not_believed",
    ),
    _mutant(
        "an undoing is believed of the client",
        "sessions/state.py",
        """
        for reason in self.undone - left:
        """,
        """
        for reason in self.undone:
        """,
        "test_following.py::test_an_undoing_that_did_not_happen_is_not_believed",
    ),
    _mutant(
        "an undoing is never confirmed",
        "leases/transacting_wrapper.py",
        """
        if lease.session_state.undone:
            with self.wrap_database_errors:
                lease.confirm_undone()
        """,
        "",
        "test_following.py::test_an_undoing_is_believed_when_it_is_committed",
    ),
    _mutant(
        "values in statements are told",
        "leases/description.py",
        """
        return masking.mask(text[:_LONGEST])
        """,
        """
        return text[:_LONGEST]
        """,
        "test_log_statements.py::test_an_idle_transaction",
        "test_log_statements.py::test_a_snapshot",
    ),
    # ##### Connections that are not given back #####
    _mutant(
        "what is released does not return to its pool",
        "leases/returns.py",
        """
            records = pools.put_back(self.connection, self)
        """,
        """
            self.is_put = True
        """,
        "test_lease.py::test_it_goes_back_to_its_pool",
    ),
    _mutant(
        "a session is taken for untouched whatever its parameters are",
        "sessions/state.py",
        """
        if reported != self.fresh or reported != self.parameters:
            return False
        """,
        "",
        "test_session_state.py::test_state_that_a_function_leaves_is_found_by_what_the_server_reports",
    ),
    _mutant(
        "a session is taken for untouched whatever was seen in statements",
        "sessions/state.py",
        """
        if self.pins or self.follows or self.overridden or self.undone or self._set_at_connect or self._soiled:
            return False
        """,
        "",
        "test_following.py::test_what_is_set_follows_its_owner",
    ),
    _mutant(
        "a session is taken for untouched whatever psycopg keeps of it",
        "sessions/state.py",
        """
        return look is not None and look is self._client and look.is_still_true(connection)
        """,
        """
        return look is not None and look is self._client
        """,
        "test_client_state.py::test_what_the_owner_has_changed_pins_and_is_still_there_after_a_pause",
    ),
    _mutant(
        "a session is taken for untouched whatever functions may have done",
        "leases/session_claim.py",
        """
        self.session_state.is_untouched(connection, reported)
        and known.leaves_nothing(self.alias)
        """,
        """
        self.session_state.is_untouched(connection, reported)
        """,
        "test_following.py::test_always_cleaned_is_clean_of_what_nobody_has_seen",
    ),
    _mutant(
        "what was learnt of the catalogue is not learnt again",
        "sessions/known.py",
        """
        if answered is None or answered[0] is not settings or answered[1] is not known:
        """,
        """
        if answered is None or answered[0] is not settings:
        """,
        "test_catalogue.py::TestKnown::test_when_a_session_needs_nothing_done",
    ),
    _mutant(
        "an attribute that somebody has put on a connection is the next one's",
        "pools/base.py",
        """
        or not client.has_nothing_new(connection)
        """,
        "",
        "test_client_state.py::test_an_attribute_of_somebodys_own_does_not_outlast_a_release",
    ),
    _mutant(
        "a class of connections with a property fails",
        "sessions/client.py",
        """
        except KeyError:
            # Of a class that has a property for one.
        """,
        """
        except ZeroDivisionError:
        """,
        "test_client_state.py::test_a_class_of_connections_may_have_a_property",
    ),
    _mutant(
        "a cursor that queries as it is made has nothing kept on it",
        "leases/cursors.py",
        """
        self._conn_hygiene_entry = None
        self._conn_hygiene_made_in = getattr(connection, _CHECKOUT, None)
        super().__init__(connection, *args, **kwargs)
        """,
        """
        super().__init__(connection, *args, **kwargs)
        self._conn_hygiene_entry = None
        self._conn_hygiene_made_in = getattr(connection, _CHECKOUT, None)
        """,
        "test_client_state.py::test_a_class_of_cursors_may_query_as_one_is_made",
    ),
    _mutant(
        "who is told of a connection that was replaced waits for another",
        "leases/pooled_wrapper.py",
        """
        connection = checkouts.working_one(self, pool.getconn, asked_at=asked_at, replaced=replaced)
        """,
        """
        connection = checkouts.working_one(self, pool.getconn, asked_at=asked_at, replaced=replaced)
        while replaced:
            publish(replaced.pop(0))
        """,
        "test_broken.py::test_who_is_told_of_one_that_was_replaced_finds_the_next[again]",
    ),
    _mutant(
        "an adapter that somebody has registered is not seen",
        "sessions/client.py",
        """
        if (adapters if adapters is None else _mappings(adapters)) != self._mappings:
            return False
        """,
        "",
        "test_client_state.py::test_what_the_owner_has_changed_pins_and_is_still_there_after_a_pause",
    ),
    _mutant(
        "the pool of the checkout before is taken for this one's",
        "leases/lease.py",
        """
        if (
            pool is None
            or self._pool() is not pool
            or getattr(pool, "_waiting", None) is not self.queue
            or not keeping.is_psycopgs(pool.__class__)
        ):
        """,
        """
        if not self.pooled:
        """,
        "test_pools.py::test_a_pool_of_somebodys_own_is_known_by_what_it_does",
    ),
    _mutant(
        "a connection that is broken goes back while its owner has yet to be told",
        "leases/lease.py",
        """
        elif grace is not None and pgconn.transaction_status == _IDLE and self.server_pid:
        """,
        """
        elif grace is not None and self.server_pid:
        """,
        "test_broken.py::test_what_has_broken_stays_its_owners_also_at_a_grace_of_0",
    ),
    _mutant(
        "what a dead thread held does not return to its pool",
        "reaper/reaper.py",
        """
        self.carry_back(returning, here=False)
        """,
        """
        pass
        """,
        "test_reaper.py::test_a_broken_transaction_of_a_dead_thread_is_rolled_back",
    ),
    _mutant(
        "a checkout that is interrupted loses its connection",
        "leases/lease.py",
        """
        if not incoming.is_taken:
            incoming.is_taken = True
            pools.give_back(connection)
        self.keeper.rescue(self)
        """,
        """
        if not incoming.is_taken:
            incoming.is_taken = True
        self.keeper.rescue(self)
        """,
        "test_interruptions.py::test_after_an_exception_at_any_line_all_goes_on[Lease._assign, at once]",
    ),
    _mutant(
        "who queries in a signal handler waits for itself",
        "locks.py",
        """
        return RankedLock(rank, on_release=on_release) if DEBUG else threading.RLock()
        """,
        """
        if rank < Rank.REGISTRY:
            return RankedLock(rank, on_release=on_release) if DEBUG else threading.RLock()
        return threading.Lock()
        """,
        "test_reentrancy.py::test_numbers",
        "test_reentrancy.py::test_what_is_listed",
    ),
    _mutant(
        "a connection that a signal handler has let go of is given back once more",
        "leases/claim.py",
        """
        if self._connection is not connection:
            return False
        """,
        """
        """,
        "test_reentrancy.py::test_what_is_listed",
    ),
    _mutant(
        "a signal handler's lane is replaced",
        "reaper/workers.py",
        """
        found = self._lanes.setdefault(lane, Lane(lane, self._on_error, threads=threads, length=length))
        """,
        """
        found = self._lanes[lane] = Lane(lane, self._on_error, threads=threads, length=length)
        """,
        "test_reentrancy.py::test_there_is_one_lane_of_a_name",
    ),
    _mutant(
        "a signal handler's thread comes on top of those that a lane may have",
        "reaper/workers.py",
        """
        if len(self._threads) > self._most_threads:
        """,
        """
        if False:
        """,
        "test_reentrancy.py::test_a_lane_has_no_thread_more_than_it_may",
    ),
    _mutant(
        "the call of a signal handler is dropped instead of the one that cannot be made",
        "reaper/workers.py",
        """
        self._calls.remove(call)
        """,
        """
        self._calls.pop()
        """,
        "test_reentrancy.py::test_a_call_that_cannot_be_made_is_the_one_that_is_not_kept",
    ),
    _mutant(
        "a transaction that goes on is taken for one that a request has left",
        "transactions/left_open.py",
        """
        if wrapper.alias in request.in_transaction or (wrapper.in_atomic_block and _goes_on(lease, told)):
        """,
        """
        if wrapper.alias in request.in_transaction:
        """,
        "test_whose_request.py::test_no_half_of_a_transaction_is_committed_where_a_view_closes_another_response",
        "test_whose_request.py::test_a_test_that_reads_a_body_in_a_transaction_keeps_it",
    ),
    _mutant(
        "the end of a response that a view closes is taken for the request's",
        "transactions/left_open.py",
        """
        if request is None or (policy.entered.get() is not request.scopes and _is_in_the_middle(request)):
        """,
        """
        if request is None:
        """,
        "test_whose_request.py::test_a_request_that_closes_another_response_keeps_what_it_has_set[persistent]",
    ),
    _mutant(
        "a request in the middle of another closes what is the other's",
        "transactions/left_open.py",
        """
        elif wrapper.alias in request.with_state:
        """,
        """
        elif False:
        """,
        "test_whose_request.py::test_a_request_in_the_middle_of_another_ends_nothing_of_it",
    ),
    _mutant(
        "what is set in a thread of an executor follows into the next request",
        "leases/session_claim.py",
        """
        if self._is_of_other_than(policy.request_of(policy.entered.get())):
        """,
        """
        if False:
        """,
        "test_whose_request.py::test_what_is_set_in_a_thread_of_an_executor_reaches_no_other_request",
    ),
    _mutant(
        "what a socket sets in a thread of an executor follows into the next socket",
        "contrib/channels.py",
        """
        self._socket = RequestScope()
        """,
        """
        self._socket = __import__("conn_hygiene").release_between_queries()
        """,
        "test_sockets.py::test_what_a_socket_sets_in_a_thread_that_outlives_it_no_other_has",
        "test_sockets.py::test_the_end_of_another_response_is_not_the_sockets",
    ),
    _mutant(
        "what a job sets in a thread of an executor follows into the next job",
        "contrib/jobs.py",
        """
        with RequestScope(), _thread_for_async(name, label, logger):
        """,
        """
        with __import__("conn_hygiene").release_between_queries(), _thread_for_async(name, label, logger):
        """,
        "test_queue_jobs.py::test_what_a_job_sets_in_a_thread_that_outlives_it_no_other_has",
        "test_queue_jobs.py::test_the_end_of_a_response_in_a_job_is_not_the_jobs",
    ),
    _mutant(
        "what another request has left in the session of an executor's thread stays there",
        "leases/lease.py",
        """
        if scopes and scopes is not self._scopes:
        """,
        """
        if False:
        """,
        "test_whose_request.py::test_what_keeps_the_connection_of_an_executors_thread_reaches_no_other_request",
    ),
    _mutant(
        "what was there before any request is the first one's",
        "leases/lease.py",
        """
        if request is not None and connection is not None and not self._carries(connection):
        """,
        """
        if request is not None:
        """,
        "test_whose_request.py::test_what_was_there_before_any_request_stays[60-default]",
    ),
    _mutant(
        "a transaction goes on if anything of the project's does",
        "leases/transacting_wrapper.py",
        """
        return frame and frame.f_code
        """,
        """
        while frame is not None and frame.f_globals["__name__"].startswith(("django.", "conn_hygiene.", "library.")):
            frame = frame.f_back
        return frame and frame.f_code
        """,
        "test_whose_request.py::test_what_a_librarys_view_leaves_open_does_not_go_on",
    ),
    _mutant(
        "a streaming body is another request's",
        "middleware.py",
        """
        scoping.cover_streaming(response, scopes.SameRequest(entry))
        """,
        """
        scoping.cover_streaming(response, self.scope)
        """,
        "test_whose_request.py::test_a_body_has_what_its_request_has_set",
    ),
    _mutant(
        "a session that could not be ended is said to be",
        "leases/ended.py",
        """
        lease.ended_because = None
        return False
        """,
        """
        return False
        """,
        "test_left_open.py::test_one_that_cannot_be_ended_is_not_said_to_be_and_keeps_nobody_from_the_rest",
    ),
    _mutant(
        "a timer that was stopped is waited for",
        "reaper/reaper.py",
        """
        self._look_at_none()
        self._workers.stop(timeout)
        """,
        """
        self._workers.stop(timeout)
        """,
        "test_reaper.py::test_a_timer_that_was_stopped_is_started_by_whoever_parks_next",
    ),
    _mutant(
        "what one lease meets ends the turn of all",
        "reaper/reaper.py",
        """
        again = now + _PAUSE_OF_ONE
        """,
        """
        raise
        """,
        "test_reaper.py::test_what_one_lease_meets_does_not_keep_the_others",
    ),
    _mutant(
        "the timer waits for longer than it can",
        "reaper/reaper.py",
        """
        rest = min(max(0.0, self._wake_at - _now()), conf.LONGEST)
        """,
        """
        rest = max(0.0, self._wake_at - _now())
        """,
        "test_reaper.py::test_an_age_that_is_longer_than_python_can_wait_is_waited_for",
    ),
    _mutant(
        "what a pool may keep for ever it keeps from who waits",
        "leases/lease.py",
        """
        elif grace is None and self.pooled:
        """,
        """
        elif False:
        """,
        "test_turns.py::test_a_pool_that_keeps_nothing_serves_who_comes[None]",
    ),
    # ##### Bodies whose clients go away #####
    _mutant(
        "a body is closed outside of the scopes that cover it",
        "scoping.py",
        """
        closers[:] = [functools.partial(_close_inside, scope, close) for close in closers]
        """,
        """
        pass
        """,
        "test_session_settings.py::test_a_body_whose_client_goes_away_cleans_up_under_them[1-generator]",
        "test_session_settings.py::test_it_does_so_under_those_of_all_scopes",
        "test_session_settings.py::test_so_does_an_asynchronous_one[1]",
    ),
    _mutant(
        "a body's generator is left to the garbage collector",
        "scoping.py",
        """
        if inspect.isgenerator(iterator):
            iterator.close()
        # A generator may be inside of it, which nobody closes: it ends with the last reference.
        del iterator
        """,
        """
        pass
        """,
        "test_session_settings.py::test_a_body_whose_client_goes_away_cleans_up_under_them[1-without_a_close]",
        "test_session_settings.py::test_a_body_whose_client_goes_away_cleans_up_under_them[1-mapped]",
    ),
    _mutant(
        "what is closed on an event loop is not",
        "scoping.py",
        """
        with nullcontext() if is_on_event_loop() else scope.around_generator(), scope.step():
            close()
        """,
        """
        with scope.around_generator(), scope.step():
            close()
        """,
        "test_session_settings.py::test_a_body_is_closed_on_an_event_loop_as_well",
    ),
    # ##### What cannot be decorated, or asked for #####
    _mutant(
        "a queue's task is decorated",
        "scoping.py",
        """
        if _is_task(func):
        """,
        """
        if False:
        """,
        "test_scopes.py::test_a_task_of_a_queue_is_refused[celery_proxy-]",
        "test_scopes.py::test_a_task_of_a_queue_is_refused[dramatiq_actor-]",
        "test_scopes.py::test_a_task_of_a_queue_is_refused[huey_task-]",
    ),
    _mutant(
        "one method is enough to be a queue's task",
        "scoping.py",
        """
        return any(hasattr(kind, one) and hasattr(kind, other) for one, other in _METHODS_OF_TASKS)
        """,
        """
        return any(hasattr(kind, one) or hasattr(kind, other) for one, other in _METHODS_OF_TASKS)
        """,
        "test_scopes.py::test_what_else_can_be_called_is_decorated[Courier]",
    ),
    _mutant(
        "whatever an object says it has counts",
        "scoping.py",
        """
        kind = func.__class__
        """,
        """
        kind = func
        """,
        "test_scopes.py::test_what_else_can_be_called_is_decorated[mocked]",
    ),
    _mutant(
        "a view class is to lose the arguments",
        "transactions/settings.py",
        """
        takes_arguments = True
        """,
        "",
        "test_scopes.py::test_who_decorates_a_view_class_is_told_what_to_write[-query_timeout(...)]",
    ),
    _mutant(
        "a view class is to lose the aliases",
        "scoping.py",
        """
        if self._using is not None:
            return self._with_using()
        """,
        "",
        "test_scopes.py::test_who_decorates_a_view_class_is_told_what_to_write[-closing_connections(using=...)]",
    ),
    _mutant(
        "any word will do for a choice",
        "transactions/retry.py",
        """
        _check_bool(lock_not_available)
        """,
        "",
        "test_transactions.py::test_a_choice_that_is_none_is_refused",
    ),
    _mutant(
        "None is what retry_transaction() decorates later",
        "transactions/retry.py",
        """
        return retry if func is NOTHING else retry(func)
        """,
        """
        return retry if func is NOTHING or func is None else retry(func)
        """,
        "test_transactions.py::test_what_cannot_be_repeated_is_refused_at_decoration",
    ),
    _mutant(
        "a delay is longer than the longest",
        "transactions/retry.py",
        """
        if delay > max_delay:
        """,
        """
        if False:
        """,
        "test_transactions.py::test_limits_that_make_no_sense_are_refused_by_name_and_value",
    ),
    _mutant(
        "tenacity repeats an error of its own",
        "transactions/retry.py",
        """
        is_last = hooks or not self._is_repeated(exc) or _another_has_failed(connection)
        """,
        """
        is_last = hooks or _another_has_failed(connection)
        """,
        "test_transactions.py::test_other_errors_go_through_at_once",
    ),
    _mutant(
        "a transaction is repeated inside of another alias's that has failed",
        "transactions/retry.py",
        """
        is_last = hooks or not self._is_repeated(exc) or _another_has_failed(connection)
        """,
        """
        is_last = hooks or not self._is_repeated(exc)
        """,
        "test_transactions.py::test_what_has_taken_an_outer_transaction_of_another_alias_along_is_raised",
    ),
    _mutant(
        "what a block on another alias has marked for rollback is not seen",
        "transactions/retry.py",
        """
        if wrapper.in_atomic_block and transaction.get_rollback(using=wrapper.alias):
        """,
        """
        if False:
        """,
        "test_transactions.py::test_what_has_taken_an_outer_transaction_of_another_alias_along_is_raised",
    ),
    _mutant(
        "what a failed attempt was reading keeps its connection",
        "transactions/retry.py",
        """
        _drop_frames(exc, sys.exc_info()[1])
        """,
        "",
        "test_transactions.py::test_what_the_failed_attempt_was_reading_holds_no_connection_while_it_waits",
        "test_transactions.py::test_nor_does_what_an_asynchronous_one_was_reading",
    ),
    _mutant(
        "an attempt keeps the error that was raised for it",
        "transactions/retry.py",
        """
        exception, self._exception = self._exception, None
        """,
        """
        exception = self._exception
        """,
        "test_transactions.py::test_an_error_that_was_handled_keeps_no_connection",
    ),
    _mutant(
        "tenacity gets to see an error that ends a program",
        "transactions/retry.py",
        """
        except BaseException as exc:  # noqa: BLE001 - _outcome() raises it
            is_last = hooks or not self._is_repeated(exc) or _another_has_failed(connection)
        """,
        """
        except Exception as exc:
            is_last = hooks or not self._is_repeated(exc) or _another_has_failed(connection)
        """,
        "test_transactions.py::test_an_error_that_was_handled_keeps_no_connection",
    ),
    _mutant(
        "asgiref keeps the error of an asynchronous attempt",
        "transactions/retry.py",
        """
        return _outcome(async_to_sync(_ended)(func, *args, **kwargs))
        """,
        """
        return async_to_sync(func)(*args, **kwargs)
        """,
        "test_transactions.py::test_nor_does_that_of_an_asynchronous_function",
    ),
    _mutant(
        "a cursor that was collected keeps its connection until the reaper comes to it",
        "leases/leaving_claim.py",
        """
        cursors.forget_collected(self.open_cursors)
        """,
        """
        pass
        """,
        "test_transactions.py::test_nor_does_a_cursor_that_it_has_not_closed",
        "test_cursors.py::test_one_that_was_collected_keeps_no_connection_that_its_owner_lets_go_of",
    ),
    _mutant(
        "a cursor that is open yet is forgotten with those that were collected",
        "leases/cursors.py",
        """
        if isinstance(reference, weakref.ref) and reference() is None:
        """,
        """
        if isinstance(reference, weakref.ref):
        """,
        "test_scopes.py::test_release_connections_leaves_alone_what_is_in_use_pinned_or_held",
    ),
    _mutant(
        "the errors in an error's chain keep their frames",
        "transactions/retry.py",
        """
        left += [each.__cause__, each.__context__, *(each.exceptions if isinstance(each, _GROUP) else ())]
        """,
        "",
        "test_transactions.py::test_what_the_failed_attempt_was_reading_holds_no_connection_while_it_waits",
    ),
    _mutant(
        "what the caller is handling loses its traceback",
        "transactions/retry.py",
        """
        if not any(each is other for other in kept):
        """,
        """
        if True:
        """,
        "test_transactions.py::test_the_last_error_keeps_its_frames_and_so_does_one_that_the_caller_is_handling",
        "test_transactions.py::test_so_does_one_that_an_asynchronous_caller_is_handling",
    ),
    _mutant(
        "a view is to be exempted on the wrong alias",
        "using.py",
        """
        argument = "" if alias == DEFAULT_DB_ALIAS else f"(using={alias!r})"
        """,
        """
        argument = ""
        """,
        "test_transactions.py::test_it_says_how_to_exempt_a_view_from_atomic_requests_of_the_alias",
        "test_checks.py::test_atomic_requests_while_releasing_everywhere",
        "test_doctor.py::TestLogic::test_a_view_is_exempted_from_atomic_requests_of_the_alias",
    ),
    _mutant(
        "a job's connections stay open at its end",
        "scopes.py",
        """
        if wrapper.alias not in entry.before and (is_open(wrapper) or _is_given_back(wrapper)):
        """,
        """
        if wrapper.alias in entry.before and (is_open(wrapper) or _is_given_back(wrapper)):
        """,
        "test_scopes.py::test_closing_of_one_alias",
    ),
    _mutant(
        "a job closes what another one in its thread is using",
        "scopes.py",
        """
        beside = entry.beside()
        """,
        """
        beside = []
        """,
        "test_async.py::test_of_two_jobs_in_one_thread_the_last_closes_what_both_use",
        "test_async.py::test_a_transaction_that_one_of_two_jobs_leaves_open_ends_with_the_last",
        "test_scopes.py::test_of_closing_generators_that_take_turns_the_last_closes",
    ),
    _mutant(
        "what a job leaves to others nobody closes",
        "scopes.py",
        """
        other.before.discard(alias)
        """,
        """
        pass
        """,
        "test_async.py::test_of_two_jobs_in_one_thread_the_last_closes_what_both_use",
        "test_async.py::test_of_three_in_a_row_the_last_closes",
    ),
    _mutant(
        "a job leaves to others what was given back around it as if it were its own",
        "scopes.py",
        """
        other.given_back.add(alias)
        """,
        """
        pass
        """,
        "test_async.py::test_what_was_set_before_two_jobs_is_there_after_them",
    ),
    _mutant(
        "a job inside of another one closes nothing",
        "scopes.py",
        """
        return [other for other in _closings.active() if other is not self and other not in self.around]
        """,
        """
        return [other for other in _closings.active() if other is not self]
        """,
        "test_async.py::test_a_block_inside_of_another_closes_at_its_own_end_whoever_is_beside",
    ),
    _mutant(
        "a job that covers other aliases keeps all of them open",
        "scopes.py",
        """
        others = [other for other in beside if other.covers(wrapper.alias)]
        """,
        """
        others = beside
        """,
        "test_async.py::test_who_covers_other_aliases_only_keeps_nothing_open",
    ),
    _mutant(
        "a block whose end nobody tells goes on for ever",
        "leases/blocks.py",
        """
        self.begun = (*map(weakref.ref, self.active()), weakref.ref(block))
        """,
        """
        self.begun = tuple(lambda kept=kept: kept for kept in (*self.active(), block))
        """,
        "test_scopes.py::test_a_hold_whose_end_is_not_told_does_not_hold_for_ever",
        "test_scopes.py::test_a_block_whose_end_is_not_told_keeps_nothing_open",
    ),
    _mutant(
        "a child waits for the parent's blocks",
        "leases/blocks.py",
        """
        if self._pid != os.getpid():
            return []
        """,
        "",
        "test_forks.py::test_a_child_waits_for_no_block_of_the_parents_to_close",
        "test_forks.py::test_no_hold_of_the_parents_holds_in_a_child",
    ),
    _mutant(
        "a hold ends in the middle of another task's",
        "leases/policy.py",
        """
        return is_inside_hold(alias) or _is_held_beside(alias)
        """,
        """
        return is_inside_hold(alias)
        """,
        "test_async.py::test_the_end_of_a_hold_leaves_the_session_to_another_one",
        "test_async.py::test_what_a_hold_has_left_goes_with_the_last_of_them",
        "test_async.py::test_a_hold_keeps_its_session_from_a_task_beside_it[releases-after a grace]",
        "test_broken.py::test_the_end_of_a_session_that_another_context_holds_is_told",
    ),
    _mutant(
        "a hold does not count for the tasks beside it",
        "leases/policy.py",
        """
        if answer is False or (holding.begun and _is_held_beside(alias)):
        """,
        """
        if answer is False:
        """,
        "test_async.py::test_a_hold_keeps_its_session_from_a_task_beside_it[queries_and_pauses-at once]",
        "test_async.py::test_so_it_does_where_the_other_has_begun_first",
    ),
    _mutant(
        "a hold counts for all aliases beside it",
        "leases/policy.py",
        """
        return any(entry.using is None or alias in entry.using for entry in holding.active())
        """,
        """
        return bool(holding.active())
        """,
        "test_async.py::test_a_hold_of_another_alias_keeps_nothing_from_going_back",
    ),
    _mutant(
        "what a task leaves goes with another one's hold",
        "leases/session_claim.py",
        """
        of_hold = policy.is_inside_hold(self.alias)
        """,
        """
        of_hold = policy.holds(self.alias)
        """,
        "test_async.py::test_what_was_left_beside_a_hold_stays",
    ),
    # ##### Is it still the same one? #####
    _mutant(
        "a late cursor counts for the next checkout",
        "leases/lease.py",
        """
        if self.open_cursors.pop(cursor, self) is self:
            return
        """,
        """
        self.open_cursors.pop(cursor, None)
        """,
        "test_leisure.py::test_nor_does_it_make_this_one_look_used",
    ),
    _mutant(
        "the late end of a cursor runs on the next owner's connection",
        "leases/cursors.py",
        '''
        """Close the cursor here; the next owner must not get the ``CLOSE`` of a server-side one."""
        self._conn_hygiene_entry = None
        self._close()
        ''',
        """
        super().close()
        """,
        "test_cursors.py::test_the_late_end_of_a_cursor_does_not_run_on_the_next_owners_connection",
    ),
    _mutant(
        "a statement on a cursor of an earlier checkout runs",
        "leases/cursors.py",
        """
        if cursor is not None and not isinstance(cursor, RetiredCursor):
        """,
        """
        if cursor is not None and not isinstance(cursor, LeasedCursor):
        """,
        "test_cursors.py::test_a_statement_on_a_cursor_of_an_earlier_checkout_is_refused",
    ),
    _mutant(
        "rows that a server-side cursor has yet to fetch are fetched from another's session",
        "leases/cursors.py",
        """
        if isinstance(self, ServerCursor) or not self.pgresult:
        """,
        """
        if not self.pgresult:
        """,
        "test_cursors.py::test_what_reaches_the_server_is_refused_once_the_connection_went_back",
    ),
    _mutant(
        "rows that a pipeline has yet to bring are waited for in another's pipeline",
        "leases/cursors.py",
        """
        if isinstance(self, ServerCursor) or not self.pgresult:
        """,
        """
        if isinstance(self, ServerCursor):
        """,
        "test_cursors.py::test_nothing_is_fetched_from_another_ones_pipeline",
    ),
    _mutant(
        "a cursor on a raw handle outlives its checkout",
        "leases/cursors.py",
        """
        self.setdefault(weakref.ref(cursor, self._forget))
        """,
        """
        pass
        """,
        "test_cursors.py::test_nothing_is_fetched_from_another_ones_pipeline",
    ),
    _mutant(
        "a session is cleaned in the middle of a COPY",
        "pools/base.py",
        """
        if connection.closed or is_locked(connection):
            raise psycopg.OperationalError("the connection is closed, or a COPY is under way")
        """,
        """
        if connection.closed:
            raise psycopg.OperationalError("the connection is closed, or a COPY is under way")
        """,
        "test_cursors.py::test_a_connection_is_closed_in_the_middle_of_what_holds_its_lock",
    ),
    _mutant(
        "the session of another connection is ended",
        "leases/ended.py",
        """
        if found.connection is not lease._connection or found.last_statement is not lease.last_statement:
        """,
        """
        if False:
        """,
        "test_leisure.py::test_the_transaction_of_another_owner_is_not_ended_for_one_that_sat_idle",
    ),
    _mutant(
        "what its owner has just taken back is ended",
        "leases/timed_claim.py",
        """
        if self.spare is not spare or self.state != PARKED or self._connection is None or due is None:
        """,
        """
        if self.spare is not spare or self._connection is None or due is None:
        """,
        "test_locks.py::test_what_its_owner_takes_back_at_the_last_moment_stays",
    ),
    _mutant(
        "a connect() inside of another one ends it",
        "leases/lease.py",
        """
        if connects is None or connects.attempt is None or connects.attempt() is not connect:
        """,
        """
        if connects is None or connects.attempt is None:
        """,
        "test_checkout.py::test_a_connect_inside_of_another_one_does_not_end_it",
    ),
    # ##### Ends that nobody notices #####
    _mutant(
        "a dead thread's session is somebody else's while its handle is in use",
        "leases/leaving_claim.py",
        """
        if self._handle_is_out():
            # Whoever has got the handle may go on with it, and must not share the session with its next owner.
        """,
        """
        if False:
            # Whoever has got the handle may go on with it, and must not share the session with its next owner.
        """,
        "test_reaper.py::test_the_session_of_a_dead_thread_is_nobody_elses_while_its_handle_is_in_somebodys_hands",
    ),
    _mutant(
        "the frames of other threads are looked at in uWSGI",
        "callsite.py",
        """
        return None if "uwsgi" in sys.modules else sys._current_frames().get(thread_id)
        """,
        """
        return sys._current_frames().get(thread_id)
        """,
        "test_callsite.py::test_nobody_looks_at_the_frames_of_threads_in_uwsgi",
    ),
    _mutant(
        "an error of another alias is raised in the place of a time limit",
        "scopes.py",
        """
        elif is_of_handler(error):
            _log_another(self._alias, self._kept)
        """,
        """
        elif False:
            _log_another(self._alias, self._kept)
        """,
        "test_interruptions.py::test_closing_several_is_what_a_time_limit_ends",
    ),
    _mutant(
        "commit hooks are lost to a time limit that comes ahead of them",
        "leases/transacting_wrapper.py",
        """
        finally:
            # The transaction is committed, whatever a signal handler raises here.
            self.run_on_commit = hooks
        """,
        """
        finally:
            self.run_on_commit = self.run_on_commit or hooks if sys.exc_info()[0] is None else []
        """,
        "test_lease.py::test_commit_hooks_are_kept_where_a_time_limit_comes_ahead_of_them",
    ),
    _mutant(
        "an unleased transaction ends in silence",
        "scopes.py",
        """
        told.append(end_unleased_transaction(wrapper, _JOB))
        """,
        """
        end_unleased_transaction(wrapper, _JOB)
        """,
        "test_scopes.py::test_so_is_a_transaction_of_theirs_which_is_reported",
    ),
    _mutant(
        "a thread's end is not noticed",
        "installation.py",
        """
        running.thread_ended(self.reference)
        """,
        """
        pass
        """,
        "test_reaper.py::test_the_connection_of_a_dead_thread_goes_back[default]",
    ),
    _mutant(
        "any thread's end is taken for the owner's",
        "reaper/reaper.py",
        """
        if lease.thread_end is thread_end:
        """,
        """
        if True:
        """,
        "test_reaper.py::test_a_thread_that_lives_keeps_its_connection",
    ),
    _mutant(
        "the transaction of a dead thread is not noticed",
        "leases/news.py",
        """
        in_transaction = pools.is_idle_in_transaction(connection) or (
        """,
        """
        in_transaction = False and (
        """,
        "test_reaper.py::test_the_transaction_of_a_dead_thread_is_rolled_back_and_reported[default]",
    ),
    _mutant(
        "a wrapper's end is not noticed",
        "leases/claim.py",
        """
        self.keeper.wrapper_lost(self)
        """,
        """
        pass
        """,
        "test_reaper.py::test_a_wrapper_that_is_collected_in_a_living_thread_gives_back",
    ),
    _mutant(
        "a collected cursor is not noticed",
        "leases/lease.py",
        """
        self.keeper.cursor_lost(self, cursor, is_of_checkout=cursor in self.open_cursors)
        """,
        """
        pass
        """,
        "test_leisure.py::test_a_cursor_that_was_collected_in_a_cycle_keeps_nothing",
    ),
    _mutant(
        "a collected cursor is looked up when its report is made",
        "reaper/reaper.py",
        """
        request=opened.request,
        """,
        """
        request=lease.request,
        """,
        "test_events.py::test_an_unclosed_cursor_is_that_of_the_request_that_opened_it",
    ),
    _mutant(
        "a collected cursor is not looked up before its checkout ends",
        "leases/lease.py",
        """
        self.keeper.cursor_lost(self, cursor, is_of_checkout=cursor in self.open_cursors)
        """,
        """
        self.keeper.cursor_lost(self, cursor, is_of_checkout=False)
        """,
        "test_events.py::test_an_unclosed_cursor_is_that_of_the_request_that_opened_it",
    ),
    _mutant(
        "a function that has no frame yet is not looked for",
        "callsite.py",
        """
        elif ahead and (place := _ahead(found, kind)):
        """,
        """
        elif False:
        """,
        "test_callsite.py::test_the_caller_is_not_where_a_decorated_function_begins",
    ),
    _mutant(
        "what an async view awaits has no place",
        "callsite.py",
        """
        if ahead and (answering := _answering.get()) and (place := _view(answering)):
        """,
        """
        if False:
        """,
        "test_callsite.py::test_what_an_async_view_awaits_is_where_the_view_is",
    ),
    _mutant(
        "a hold goes on in the tasks that were started inside",
        "scopes.py",
        """
        if entry is not None:
            entry.over = True
        """,
        "",
        "test_async.py::test_a_task_that_was_started_in_a_hold_is_released_when_the_hold_ends",
    ),
    _mutant(
        "a hold's session state outlives it",
        "scopes.py",
        """
        lease.hold_ended()
        """,
        "",
        "test_scopes.py::test_session_state_of_a_hold_ends_with_it",
    ),
    # ##### Broken connections #####
    _mutant(
        "the socket is not looked at",
        "leases/ended.py",
        """
        lease.trusted = not (is_outlived or pools.is_hung_up(connection))
        """,
        """
        lease.trusted = True
        """,
        "test_watch.py::test_a_connection_that_the_server_closed_is_replaced_at_its_next_use[default]",
    ),
    _mutant(
        "of the server's goodbye only the beginning is read",
        "pools/base.py",
        """
        _READS = 3
        """,
        """
        _READS = 1
        """,
        "test_watch.py::test_a_connection_that_the_server_closed_is_replaced_at_its_next_use[unpooled]",
    ),
    _mutant(
        "a broken connection is replaced by a broken one",
        "leases/connecting_wrapper.py",
        """
        while ended.close_if_broken(lease):
        """,
        """
        if False:
        """,
        "test_watch.py::test_a_connection_that_the_server_closed_is_replaced_at_its_next_use[default]",
    ),
    _mutant(
        "what a pool hands out is not looked at",
        "leases/checkouts.py",
        """
        if pools.is_hung_up(connection):
        """,
        """
        if False:
        """,
        "test_broken.py::test_every_way_to_a_connection_gets_one_that_works[atomically]",
    ),
    _mutant(
        "who asks a pool again waits for its whole timeout again",
        "pools/waiting.py",
        """
        return min(timeout, max(deadline - monotonic(), MIN_TIMEOUT)) if limited is pool else timeout
        """,
        """
        return timeout
        """,
        "test_pools.py::test_what_is_left_is_of_the_first_time_and_of_one_pool",
    ),
    _mutant(
        "a broken connection that is given back twice is replaced twice",
        "pools/base.py",
        """
        connection._pool = None
        """,
        """
        pass
        """,
        "test_pools.py::test_one_that_is_given_back_twice_is_replaced_once",
    ),
    _mutant(
        "a session that cannot write stays in the pool",
        "leases/checkouts.py",
        """
        if read_only.is_outlived(alias, connection):
        """,
        """
        if False:
        """,
        "test_broken.py::test_so_are_those_of_the_pool_that_nobody_has_used",
    ),
    _mutant(
        "sessions are replaced though nobody can write",
        "leases/read_only.py",
        """
        if not is_read_only:
        """,
        """
        if True:
        """,
        "test_broken.py::test_where_nobody_can_write_all_goes_on",
    ),
    _mutant(
        "a session that is half set up is used",
        "leases/connecting_wrapper.py",
        """
        if lease.checkouts != before:
        """,
        """
        if False:
        """,
        "test_broken.py::test_a_receiver_that_fails_is_called_again",
    ),
    _mutant(
        "a thread's first session that is half set up is used",
        "leases/first_connect.py",
        """
        _drop_unprepared(wrapper)
        raise
        """,
        """
        raise
        """,
        "test_broken.py::test_a_receiver_that_fails_is_called_again",
    ),
    _mutant(
        "an owner goes on without its tenant when it was told once",
        "leases/ended.py",
        """
        if _matters(lease) if was_told else _may_have_state(lease, connection):
        """,
        """
        if False if was_told else _may_have_state(lease, connection):
        """,
        "test_broken.py::test_nothing_runs_without_what_decides_whose_data_it_sees",
    ),
    _mutant(
        "state of an idle owner is lost for the sake of somebody else",
        "leases/ended.py",
        """
        if connection is None or not _is_at_rest(lease) or _may_have_state(lease, connection):
        """,
        """
        if connection is None or not _is_at_rest(lease):
        """,
        "test_broken.py::test_whoever_waits_gets_the_place_of_one_that_is_idle",
    ),
    _mutant(
        "a statement that ends its session keeps its place",
        "leases/session_claim.py",
        """
        records = pools.vacate(connection)
        """,
        """
        records = []
        """,
        "test_broken.py::test_a_statement_that_ends_its_session_gives_its_place_back",
    ),
    _mutant(
        "what functions may have left is lost with a broken connection, in silence",
        "leases/ended.py",
        """
        known.state_matters(lease.alias) or lease.session_state.note_changes(connection)
        """,
        """
        lease.session_state.note_changes(connection)
        """,
        "test_watch.py::test_nor_where_the_settings_say_that_state_matters",
    ),
    _mutant(
        "a new session is not asked whether what was lost mattered",
        "leases/connecting_wrapper.py",
        """
        if state_may_matter:
            with self.wrap_database_errors:
                lease.refuse_if_state_mattered()
        """,
        "",
        "test_watch.py::test_nor_where_the_catalogue_says_so",
    ),
    _mutant(
        "session state is lost with a broken connection, in silence",
        "leases/ended.py",
        """
        return lease.session_state.carries()
        """,
        """
        return False
        """,
        "test_watch.py::test_session_state_is_not_lost_in_silence",
    ),
    _mutant(
        "a broken connection is replaced in the middle of a transaction",
        "leases/ended.py",
        """
        return not wrapper.in_atomic_block and wrapper.autocommit and lease._transaction is None
        """,
        """
        return not wrapper.in_atomic_block and wrapper.autocommit
        """,
        "test_watch.py::test_nor_does_it_go_unnoticed_when_it_has_been_said_once",
    ),
    _mutant(
        "a session is ended that somebody has just used",
        "leases/ended.py",
        """
        lease.handle = None
        return False
        """,
        """
        lease.handle = None
        """,
        "test_leisure.py::test_a_transaction_is_ended_when_nobody_has_read_its_handle_for_a_while",
    ),
    _mutant(
        "a fetch that finds its session ended keeps the place",
        "leases/cursors.py",
        """
        with self._telling():
            return super().fetchmany(size)
        """,
        """
        return super().fetchmany(size)
        """,
        "test_broken.py::test_so_it_does_where_a_fetch_has_found_it",
    ),
    _mutant(
        "a row that finds its session ended is not told of",
        "leases/cursors.py",
        """
            return super().__next__()
        except Error as error:
            self._failed(error)
            raise
        """,
        """
            return super().__next__()
        except Error as error:
            raise
        """,
        "test_broken.py::test_the_next_query_after_a_fetch_has_found_it_runs",
    ),
    _mutant(
        "the end of a cursor that finds its session ended is not told of",
        "leases/cursors.py",
        """
        with self._telling() if lease.serves_thread() else contextlib.nullcontext():
            super(LeasedCursor, self).close()
        """,
        """
        super(LeasedCursor, self).close()
        """,
        "test_broken.py::test_the_next_query_after_a_fetch_has_found_it_runs",
    ),
    _mutant(
        "a close in the middle of atomic() is not told of",
        "leases/closing_wrapper.py",
        """
        tell = self._end_atomic(lease)
        """,
        """
        tell = None
        """,
        "test_left_open.py::test_a_close_in_the_middle_of_atomic_is_told_of_once",
    ),
    _mutant(
        "a close in the middle of atomic() is told of by the pool as well",
        "leases/closing_wrapper.py",
        """
        if not pools.is_locked(connection):
            connection.rollback()
        """,
        """
        pass
        """,
        "test_left_open.py::test_a_close_in_the_middle_of_atomic_is_told_of_once",
    ),
    _mutant(
        "a close of an atomic() in which nothing has run is told of",
        "leases/closing_wrapper.py",
        """
        if not pools.is_idle_in_transaction(connection):
        """,
        """
        if connection.closed:
        """,
        "test_left_open.py::test_a_close_is_not_told_of_where_nothing_is_lost",
    ),
    # ##### Outside of the lock #####
    _mutant(
        "a connection is given back under its lease's lock",
        "leases/leaving_claim.py",
        """
        with self._lock:
            returning = taken_out()
        if returning is None:
            return False
        self.keeper.carry_back(returning, here=here)
        """,
        """
        with self._lock:
            returning = taken_out()
            if returning is None:
                return False
            self.keeper.carry_back(returning, here=here)
        """,
        "test_outside_the_lock.py::test_what_is_not_ours_is_called_under_no_lock",
    ),
    _mutant(
        "a server has all the time in the world",
        "leases/returns.py",
        """
        self._keeper.ring_at(time.monotonic() + self._seconds, self)
        """,
        """
        pass
        """,
        "test_outside_the_lock.py::test_a_dead_threads_transaction_on_a_server_that_hangs_is_given_up_after_a_limit",
    ),
    _mutant(
        "the timer waits for servers",
        "reaper/reaper.py",
        """
        if here or not returning.may_block or not self._put_return(returning):
        """,
        """
        if True:
        """,
        "test_outside_the_lock.py::test_what_hangs_stops_nothing_of_another_alias",
    ),
    _mutant(
        "the timer waits for handlers",
        "reaper/reaper.py",
        """
        return self._workers.put(_REPORTS, partial(_as_a_worker, report, *facts), threads=1, length=_MOST_REPORTS)
        """,
        """
        return _as_a_worker(report, *facts) is None
        """,
        "test_outside_the_lock.py::test_what_hangs_stops_nothing_of_another_alias",
    ),
    _mutant(
        "handlers wait for a connection that they keep from its pool",
        "pools/base.py",
        """
        elif connection.closed or _pool_logger.isEnabledFor(logging.INFO):
        """,
        """
        elif not connection:
        """,
        "test_outside_the_lock.py::test_what_the_pool_logs_is_told_when_the_connection_is_there",
    ),
    _mutant(
        "who closes does not wait for what is on its way back",
        "leases/closing_wrapper.py",
        """
        finally:
            if is_owner and lease.state == HELD:
                # It was not closed after all.
                lease.settle(handle_is_out=False)
        lease.keeper.wait_for_returns(lease=lease)
        """,
        """
        finally:
            if is_owner and lease.state == HELD:
                # It was not closed after all.
                lease.settle(handle_is_out=False)
        """,
        "test_outside_the_lock.py::test_who_closes_waits_until_the_connection_is_where_it_belongs",
    ),
    _mutant(
        "the backend's own close() is passed by where there is no connection",
        "leases/closing_wrapper.py",
        """
        lease.closing()
        """,
        """
        if lease.forget():
            lease.keeper.wait_for_returns(lease=lease)
            return
        """,
        "test_own_close.py::test_what_was_given_back_is_closed_by_it",
    ),
    _mutant(
        "a child believes in what was set in its parent's session",
        "forks/hooks.py",
        """
        if mine:
            attaching.close_books(each)
        """,
        "",
        "test_own_close.py::test_a_child_sets_its_own_sessions_up",
    ),
    _mutant(
        "a child frees what a greenlet is in the middle of",
        "forks/discarding.py",
        """
        if of_another if pgconn is None else is_locked(connection):
        """,
        """
        if False:
        """,
        "test_green.py::test_what_a_greenlet_uses_as_its_process_forks_is_not_freed_in_the_child",
    ),
    _mutant(
        "a child that becomes another program discards",
        "forks/hooks.py",
        """
        if _is_about_to_exec():
            return
        """,
        "",
        "test_green.py::test_a_child_that_becomes_another_program_discards_nothing",
    ),
    _mutant(
        "the reaper is a greenlet, and waits as a thread",
        "reaper/reaper.py",
        """
        self._renew_bell()
        """,
        "",
        "test_green.py::test_patched_too_late_a_greenlet_is_refused_and_the_main_one_is_not",
    ),
    _mutant(
        "greenlets share a connection where patching came too late",
        "installation.py",
        """
        green.refuse_if_late()
        """,
        "",
        "test_green.py::test_patched_too_late_a_greenlet_is_refused_and_the_main_one_is_not",
    ),
    _mutant(
        "a child uses what was on its way back in its parent",
        "forks/hooks.py",
        """
        yield from _inherited_on_their_way
        """,
        "",
        "test_outside_the_lock.py::test_a_child_discards_what_is_on_its_way_back_in_its_parent",
    ),
    # ##### Reports #####
    _mutant(
        "one report silences those of another kind",
        "reaper/limits.py",
        """
        said = lease.reported.get(kind)
        return said is not None and said.about == about and now < said.again_at
        """,
        """
        return any(now < said.again_at for said in lease.reported.values())
        """,
        "test_left_open.py::test_what_was_said_of_a_connection_does_not_silence_what_is_to_be_said_of_its_transaction",
    ),
    _mutant(
        "a transaction that the server has not heard of is told to sit idle",
        "reaper/limits.py",
        """
        if found.in_transaction and not found.is_untouched:
        """,
        """
        if found.in_transaction:
        """,
        "test_left_open.py::test_a_transaction_in_which_nothing_has_run_is_held_and_not_idle_in[log-default]",
        "test_left_open.py::test_a_transaction_in_which_nothing_has_run_is_held_and_not_idle_in[terminate-default]",
    ),
    _mutant(
        "a transaction is never told to sit idle, as if no server had heard of it",
        "leases/description.py",
        """
        and pools.is_idle(connection)
        # One that is over is not forgotten before the cursors close that were open at its end.
        """,
        "",
        "test_left_open.py::test_as_soon_as_a_statement_has_run_in_it_it_is_idle_in",
    ),
    _mutant(
        "a transaction that is over is told to keep a connection for its cursor",
        "leases/description.py",
        """
        and (lease._in_transaction(wrapper) or (lease._transaction is not None and not wrapper.autocommit))
        """,
        """
        and (lease._in_transaction(wrapper) or lease._transaction is not None)
        """,
        "test_left_open.py::test_one_that_is_over_before_its_cursor_closes_keeps_nothing",
    ),
    _mutant(
        "what Django reads to turn autocommit off is told to keep a connection",
        "leases/description.py",
        """
        (lease._handle_is_out() and not is_untouched, "its handle was read"),
        """,
        """
        (lease._handle_is_out(), "its handle was read"),
        """,
        "test_left_open.py::test_a_transaction_in_which_nothing_has_run_is_held_and_not_idle_in[log-default]",
    ),
    _mutant(
        "autocommit turned off by hand is not told to keep a connection",
        "leases/description.py",
        """
        and (lease._in_transaction(wrapper) or (lease._transaction is not None and not wrapper.autocommit))
        """,
        """
        and lease._in_transaction(wrapper)
        """,
        "test_left_open.py::test_with_autocommit_turned_off_by_hand_nothing_is_idle_before_a_statement_has_run",
    ),
    _mutant(
        "where it began is not told of what keeps a connection",
        "reaper/watch.py",
        """
        where_began=callsite.text(begun.place) if begun else None,
        """,
        "",
        "test_left_open.py::test_as_soon_as_a_statement_has_run_in_it_it_is_idle_in",
    ),
    _mutant(
        "a hold is not told to keep a connection",
        "leases/description.py",
        """
        (lease._wish == policy.HOLD, "hold_connection is around"),
        """,
        "",
        "test_left_open.py::test_a_connection_that_is_held_without_use_is_reported_with_what_keeps_it[held]",
    ),
    _mutant(
        "what is about to go back is told to be kept",
        "leases/description.py",
        """
        if reasons or lease.session_state.pins or lease.state == PARKED:
        """,
        """
        if reasons or lease.session_state.pins:
        """,
        "test_left_open.py::test_what_is_about_to_go_back_is_kept_by_nothing",
    ),
    _mutant(
        "what idles behind an open cursor is not idle",
        "leases/description.py",
        """
        return since if last is lease.last_statement else now
        """,
        """
        return now
        """,
        "test_left_open.py::test_a_transaction_that_sits_idle_behind_an_open_cursor_is_reported",
    ),
    _mutant(
        "a fetch is no sign of life",
        "leases/session_claim.py",
        """
        if self.last_statement is not None:
            self.last_statement = (self.last_statement[0],)
        """,
        "",
        "test_left_open.py::test_who_fetches_from_a_server_side_cursor_is_not_idle",
    ),
    _mutant(
        "a session is ended a limit too late",
        "reaper/limits.py",
        """
        if ends and found.idle_for >= limit / 2 - interval() / 2:
            ended.call_in_handle(lease)
        """,
        "",
        "test_left_open.py::test_a_session_is_ended_at_the_limit_and_reported_and_counted_once",
    ),
    _mutant(
        "what is said of a transaction is rolled back with it",
        "transactions/left_open.py",
        """
        event = watch.left_open(lease, found, who) if found is not None and is_one else None
        """,
        """
        event = None
        watch.publish(watch.left_open(lease, found, who), found)
        """,
        "test_left_open.py::test_what_is_said_of_a_request_is_not_rolled_back_with_its_transaction",
    ),
    # ##### Forks #####
    _mutant(
        "a copy of the parent's socket stays open in the child",
        "reaper/reaper.py",
        """
        limit.after_fork_in_child()
        """,
        """
        limit.is_over
        """,
        "test_forks.py::test_the_copy_of_a_socket_whose_session_is_being_cleaned_stays_the_parents",
    ),
    _mutant(
        "the hook in the child does not run",
        "installation.py",
        """
        after_in_child=forks.after_fork_in_child,
        """,
        "",
        "test_forks.py::test_parent_and_child_have_sessions_of_their_own",
    ),
    _mutant(
        "the hook before the fork does not run",
        "installation.py",
        """
        before=forks.before_fork,
        """,
        "",
        "test_forks.py::test_nothing_runs_in_a_child_before_the_toolkit_has_begun_anew",
    ),
    _mutant(
        "what tells of a thread's end is kept for ever",
        "forks/hooks.py",
        """
        _thread_ends.pop(thread_end, None)
        """,
        "",
        "test_forks.py::test_what_tells_of_a_threads_end_is_forgotten_with_it",
    ),
    _mutant(
        "a child's goodbye reaches the parent's server",
        "forks/discarding.py",
        """
        os.dup2(null, descriptor, inheritable=False)
        """,
        """
        pass
        """,
        "test_forks.py::test_parent_and_child_have_sessions_of_their_own",
    ),
    _mutant(
        "a child goes on in the parent's transaction",
        "forks/hooks.py",
        """
        each.connection = None
        djangos.reset_transaction_state(each)
        """,
        """
        each.connection = None
        """,
        "test_forks.py::test_a_child_starts_outside_of_the_parents_transaction",
    ),
    _mutant(
        "a child leaves the blocks that it was forked in",
        "forks/hooks.py",
        """
        attaching.close_books(each)
        """,
        """
        attaching.close_books(each)
        each.execute_wrappers.clear()
        """,
        "test_forks.py::test_a_child_goes_on_in_the_blocks_that_it_was_forked_in",
    ),
    _mutant(
        "a forked worker stays in the scopes of whoever began with it",
        "futures.py",
        """
        close_all_after_fork()
        leave_inherited()
        """,
        """
        close_all_after_fork()
        """,
        "test_futures.py::test_forked_workers_begin_outside_of_what_is_around_the_first_job",
    ),
    _mutant(
        "a thread of an executor stays in the scopes that it inherits",
        "futures.py",
        """
        leave_inherited()
        if initializer is not None:
            _run(initializer, *initargs)
        """,
        """
        if initializer is not None:
            _run(initializer, *initargs)
        """,
        "test_futures.py::test_threads_that_inherit_a_context_begin_outside_of_its_scopes",
    ),
    _mutant(
        "a forked worker keeps the settings of whoever began with it",
        "scopes.py",
        """
        overrides.entered.set(())
        """,
        "",
        "test_futures.py::test_forked_workers_begin_outside_of_what_is_around_the_first_job",
    ),
    _mutant(
        "a forked worker asks for settings that nobody wants",
        "scopes.py",
        """
        overrides.Overrides.forget(wrapper)
        """,
        """
        pass
        """,
        "test_futures.py::test_forked_workers_begin_outside_of_what_is_around_the_first_job",
    ),
    _mutant(
        "a forked worker serves its parent's request",
        "scopes.py",
        """
        serving.label = serving.request = None
        """,
        "",
        "test_futures.py::test_forked_workers_begin_outside_of_what_is_around_the_first_job",
    ),
    _mutant(
        "a child keeps the parent's list of leases",
        "reaper/registry.py",
        """
        inherited, self._leases = self._leases, set()
        """,
        """
        inherited = self._leases
        """,
        "test_forks.py::test_what_the_parent_holds_is_in_no_list_of_the_child",
    ),
    # ##### Events #####
    _mutant(
        "an event is made that nobody listens to",
        "leases/lease.py",
        """
        if CheckedOut.listeners:
            self._news += (news.checked_out(self, waited),)
        """,
        """
        self._news += (news.checked_out(self, waited),)
        """,
        "test_events.py::test_what_nobody_listens_to_is_not_made",
    ),
    _mutant(
        "a release is not published",
        "leases/leaving_claim.py",
        """
        returning.news, self._news = self._news, ()
        """,
        """
        self._news = ()
        """,
        "test_events.py::test_a_query_is_a_checkout_and_a_release",
    ),
    _mutant(
        "a listener that fails stops the others, and the request",
        "events.py",
        """
        except Exception as error:
            # The listener's, whose failure must stay its own.
        """,
        """
        except ZeroDivisionError as error:
        """,
        "test_events.py::test_a_listener_that_fails_is_logged_and_stops_nobody",
    ),
    _mutant(
        "a child keeps the lock of those who listen",
        "forks/hooks.py",
        """
        for module in (events, reaper, attaching, connect_options, usage):
        """,
        """
        for module in (reaper, attaching, connect_options, usage):
        """,
        "test_events.py::test_a_child_listens_although_another_thread_was_about_to_at_the_fork",
    ),
    # ##### Timelines #####
    _mutant(
        "a timeline takes the place of the one around",
        "leases/usage.py",
        """
        if self.around is not None:
            self.around.change(lease, held=held, used=used, ending=ending, now=now)
        """,
        """
        """,
        "test_debug_toolbar.py::test_the_middleware_around_it_says_the_same",
    ),
    _mutant(
        "statements of other requests are told as well",
        "reports/timeline.py",
        """
        if not _is_inside(self._timeline):
            return execute(sql, params, many, context)
        """,
        """
        """,
        "test_debug_toolbar.py::test_requests_that_take_turns_do_not_mix",
    ),
    _mutant(
        "what listens to statements stays on the wrapper",
        "reports/timeline.py",
        """
        self.leave_if_over(context["connection"])
        """,
        """
        """,
        "test_debug_toolbar.py::test_an_async_view_has_the_line_that_awaits",
    ),
    _mutant(
        "what listens to statements is where an execute_wrapper() pops it",
        "reports/timeline.py",
        """
        wrapper.execute_wrappers.insert(0, statements)
        """,
        """
        wrapper.execute_wrappers.append(statements)
        """,
        "test_debug_toolbar.py::test_a_block_that_begins_before_the_connection_pops_its_own",
    ),
    _mutant(
        "what goes past the toolbar is never over",
        "contrib/debug_toolbar/panels.py",
        """
        except BaseException:
            self._finish()
            raise
        return self._finished(response) if inspect.isawaitable(response) else response
        """,
        """
        except BaseException:
            raise
        return self._finished(response) if inspect.isawaitable(response) else response
        """,
        "test_debug_toolbar.py::test_what_goes_past_the_toolbar_is_over_as_well",
    ),
    # ##### Numbers #####
    _mutant(
        "a wait for the pool is not measured",
        "leases/pooled_wrapper.py",
        """
        lease.asked_at = asked_at
        if lease.carried is not None:
            # First of all: it may be on its way back with the only connection there is.
        """,
        """
        if lease.carried is not None:
            # First of all: it may be on its way back with the only connection there is.
        """,
        "test_events.py::test_a_wait_for_the_pool_is_measured[False]",
    ),
    _mutant(
        "the wait for a thread's first connection is not measured",
        "installation.py",
        """
        if running is not None:
            attaching.measure_first_connect(made, running)
        """,
        """
        if False:
            attaching.measure_first_connect(made, running)
        """,
        "test_events.py::test_a_wait_for_the_pool_is_measured[True]",
    ),
    _mutant(
        "a child goes on with the numbers of its parent",
        "installation.py",
        """
        for _module in (answering, known, counters, notices):
        """,
        """
        for _module in (answering, known, notices):
        """,
        "test_events.py::test_inherited_connections_that_are_discarded_are_published_and_counted_in_the_child",
    ),
    _mutant(
        "a pool that has none in time is not counted",
        "leases/pooled_wrapper.py",
        """
        if connection is None and isinstance(error, psycopg.OperationalError):
            exhausted.tell_if_exhausted(self, lease.keeper, lease.asked_at, error)
            lease.asked_at = None
            raise
        """,
        """
        if connection is None and isinstance(error, psycopg.OperationalError):
            raise
        """,
        "test_events.py::test_a_pool_that_has_none_in_time_is_counted[False]",
    ),
    _mutant(
        "who holds the connections of another pool is named",
        "leases/exhausted.py",
        """
        held = [(lease, found) for lease, found in seen if pools.pool_of(found.connection) is pool]
        """,
        """
        held = seen
        """,
        "test_pool_exhausted.py::test_a_holder_of_another_pool_is_not_named",
    ),
    _mutant(
        "what was found of another pool is told",
        "leases/exhausted.py",
        """
        if last is None or last.pool() is not pool or now - last.at > FRESH:
        """,
        """
        if last is None or now - last.at > FRESH:
        """,
        "test_pool_exhausted.py::test_many_that_fail_at_once_look_once",
    ),
    _mutant(
        "what fails in looking for holders fails the request",
        "leases/exhausted.py",
        """
        except Exception as error:
            if is_of_handler(error):
                raise
            # A logging handler may fail as well.
        """,
        """
        except ImportError:
            # A logging handler may fail as well.
        """,
        "test_pool_exhausted.py::test_what_fails_in_looking_leaves_the_exception_as_it_was",
    ),
    _mutant(
        "a pool that is exhausted fills the log",
        "reports/log.py",
        """
        for there, number in exhausted_pools.count(here, time.monotonic()):
        """,
        """
        for there, number in [(here, 1)]:
        """,
        "test_pool_exhausted.py::test_the_log_tells_of_it_once_a_minute",
    ),
    _mutant(
        "a release is not counted",
        "leases/claim.py",
        """
        self.tally.checked_in(held, self._used, released=reason == "release")
        """,
        """
        self.tally.checked_in(held, self._used, released=False)
        """,
        "test_snapshot.py::test_releases_by_hand_count",
    ),
    _mutant(
        "the use that the end of a checkout cuts off is not counted",
        "leases/claim.py",
        """
        if self.in_use_since is not None:
            self._used += now - self.in_use_since
        if listed:
        """,
        """
        if listed:
        """,
        "test_snapshot.py::test_use_that_ends_with_the_connection_counts",
    ),
    _mutant(
        "a checkout that is pinned counts for each of its pins",
        "leases/news.py",
        """
        first = len(pins) == len(added)
        """,
        """
        first = True
        """,
        "test_snapshot.py::test_a_checkout_that_is_pinned_counts_once_however_many_the_reasons",
    ),
    _mutant(
        "what was used a moment ago is asked all the same",
        "pools/checking.py",
        """
        if now - last_used < ALIVE_FOR:
            return True
        """,
        "",
        "test_pools.py::test_what_was_used_a_moment_ago_is_not_asked",
    ),
    _mutant(
        "a pool's dead connection is found by asking only",
        "pools/checking.py",
        """
        if pools.is_hung_up(connection):
            connection.pgconn.finish()
            return False
        """,
        "",
        "test_pools.py::test_connections_that_the_server_has_ended_are_passed_over",
    ),
    _mutant(
        "each connection that a network has lost is asked",
        "pools/checking.py",
        """
        if last_used < self._lost_before:
            connection.pgconn.finish()
            return False
        """,
        "",
        "test_pools.py::test_of_connections_that_a_network_has_lost_one_is_asked",
    ),
    _mutant(
        "an interrupted checkout loses what it has",
        "pools/checking.py",
        """
        if not is_alive:
            pool._putconn(connection, from_getconn=True)
        """,
        "pass",
        "test_pools.py::test_a_checkout_that_is_interrupted_gives_back_what_it_has",
    ),
    _mutant(
        "a pool whose server is back goes by its own intervals",
        "pools/reconnecting.py",
        """
        self._first, delay = retry, min(delay, RETRY_AFTER)
        """,
        """
        self._first = retry
        """,
        "test_pools.py::test_a_pool_connects_anew_as_soon_as_its_server_is_back",
    ),
    _mutant(
        "one that has connected does not tell the others",
        "pools/configuring.py",
        """
        reconnecting.connected(getattr(connection, "_pool", None))
        """,
        "",
        "test_pools.py::test_a_pool_connects_anew_as_soon_as_its_server_is_back",
    ),
    _mutant(
        "a pool keeps its first password",
        "pools/native.py",
        """
        parameters.watch(pool, backend)
        """,
        "",
        "test_rotating_passwords.py::test_a_new_connection_of_a_pool_has_the_new_password",
    ),
    _mutant(
        "a pool that keeps nothing is taken for one that keeps",
        "leases/claim.py",
        """
        self.pool_keeps = keeping.keeps(pool)
        """,
        """
        self.pool_keeps = pool is not None
        """,
        "test_pools.py::test_a_pool_that_keeps_nothing_is_no_reason_to_give_back",
    ),
    _mutant(
        "who waits for a full pool that keeps nothing waits for as long as without a pool",
        "leases/timed_claim.py",
        """
        due = self._due(is_wanted=True)
        """,
        """
        due = self._due()
        """,
        "test_pools.py::test_who_waits_for_a_full_pool_gets_what_is_idle",
    ),
    # ##### On demand, and ages #####
    _mutant(
        "a thread's first connection is not told to be waited for",
        "leases/first_connect.py",
        """
        if pool is not None and not spare:
            self._keeper.wanted(spare)
        """,
        """
        pass
        """,
        "test_demand.py::test_a_thread_that_queries_for_the_first_time_gets_what_another_one_is_done_with",
    ),
    _mutant(
        "a request's connection is given back on demand",
        "leases/leaving_claim.py",
        "if not self.pooled or self.idle_since > idle_since or self.request is not None:",
        "if not self.pooled or self.idle_since > idle_since:",
        "test_demand.py::test_what_it_keeps_for_a_request_that_has_begun_meanwhile",
    ),
    _mutant(
        "a request's connection is looked at on demand",
        "reaper/demand.py",
        "return lease.pooled and lease.request is None and lease._wish == policy.KEEP",
        "return lease.pooled and lease._wish == policy.KEEP",
        "test_demand.py::test_no_request_is_looked_at",
    ),
    _mutant(
        "who has given up is waiting for ever",
        "pools/base.py",
        """
        return sum(getattr(each, "error", None) is None for each in tuple(queue))
        """,
        """
        return len(queue)
        """,
        "test_demand.py::test_who_has_given_up_does_not_wait",
    ),
    _mutant(
        "more is given back than is waited for",
        "reaper/demand.py",
        "if wanted > 0 and now - lease.idle_since >= demand.rest:",
        "if now - lease.idle_since >= demand.rest:",
        "test_demand.py::test_the_one_that_is_idle_for_longest_goes_and_no_more_than_are_wanted",
    ),
    _mutant(
        "a session is closed before it is past its age",
        "leases/leaving_claim.py",
        "if close_at is None or now < close_at or self.request is not None:",
        "if close_at is None or self.request is not None:",
        "test_ages.py::test_one_that_is_young_enough_is_not_closed",
    ),
    _mutant(
        "Django's own look at the end of a request keeps the connection",
        "leases/closing_wrapper.py",
        "if not was_out and lease.state != CLOSED:",
        "if False:",
        "test_ages.py::test_a_thread_that_has_served_a_request",
    ),
    # ##### Notices #####
    _mutant(
        "a link is followed",
        "reports/notice_files.py",
        """
        _READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        """,
        """
        _READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        """,
        "test_notices.py::test_what_others_have_left_there_stays",
    ),
    _mutant(
        "a late report is left",
        "reports/notices.py",
        """
        if not _is_true(event):
            _is_over(event)
        """,
        """
        pass
        """,
        "test_notices.py::test_what_is_reported_late_is_not_left",
    ),
    _mutant(
        "a pid is a process",
        "reports/host.py",
        "return found is None or not (found.is_over or (ticks and found.ticks != ticks))",
        "return True",
        "test_notices.py::test_a_process_is_gone_whose_pid_another_one_has",
    ),
    # ##### SQLAlchemy's pools #####
    _mutant(
        "a connection that was taken from its pool goes back by its proxy",
        "pools/sqlalchemy.py",
        """
        if not _is_pools(connection, proxy):
            connection.close()
        elif connection.closed:
        """,
        """
        if connection.closed:
        """,
        "test_sqlalchemy_pool.py::test_a_proxy_that_the_application_ends_takes_no_state_along",
    ),
    _mutant(
        "a broken connection goes back to SQLAlchemy's pool as if it were whole",
        "pools/sqlalchemy.py",
        """
        elif connection.closed:
            proxy.invalidate()
        """,
        """
        """,
        "test_sqlalchemy_pool.py::test_one_that_breaks_in_a_transaction_fails_it_and_goes_back_as_broken",
    ),
    _mutant(
        "a lease is not told that its connection went back past it",
        "pools/sqlalchemy.py",
        """
        checkout.taken_away()
        """,
        """
        pass
        """,
        "test_sqlalchemy_pool.py::test_a_proxy_that_the_application_ends_takes_no_state_along",
    ),
    _mutant(
        "a reset takes away what a listener has set up",
        "pools/sqlalchemy.py",
        """
        return bool(pool.dispatch.connect)
        """,
        """
        return False
        """,
        "test_sqlalchemy_pool.py::test_a_session_that_a_listener_has_set_up_is_closed_and_not_reset",
    ),
    _mutant(
        "a new session is remembered before Django has set it up",
        "pools/sqlalchemy.py",
        """
        wrapper._configure_timezone(connection)
        """,
        """
        pass
        """,
        "test_sqlalchemy_pool.py::test_only_what_was_set_is_reset",
    ),
    _mutant(
        "what a pool's connection carries outlives the request with it",
        "transactions/left_open.py",
        """
        return bool(wrapper.settings_dict["CONN_MAX_AGE"] != 0)
        """,
        """
        return False
        """,
        "test_sqlalchemy_pool.py::test_nothing_of_a_request_reaches_the_next_where_connections_outlive_both",
    ),
    _mutant(
        "a server-side cursor is the proxy's",
        "leases/proxied.py",
        """
        cursor._conn = connection
        """,
        """
        pass
        """,
        "test_sqlalchemy_pool.py::test_a_server_side_cursor_keeps_the_connection_until_it_is_exhausted",
    ),
    # ##### Tests #####
    _mutant(
        "what a request leaves is the test's",
        "reports/leftovers.py",
        """
        self._excused |= {thing.key for thing in _things() if thing.own and thing.key[2] in ("pin", "set")}
        """,
        """
        pass
        """,
        "test_testing.py::test_what_a_request_has_set_is_not_the_tests",
    ),
    _mutant(
        "a setting is believed to be set for ever",
        "reports/leftovers.py",
        """
        if kind != "set" or not thing.own or wrapper is None:
        """,
        """
        if True:
        """,
        "test_testing.py::test_a_test_passes_that_leaves_nothing",
    ),
    _mutant(
        "a TestCase's transaction counts",
        "testing.py",
        """
        return bool(blocks) and all(block._from_testcase for block in blocks)  # type: ignore[attr-defined]
        """,
        """
        return False
        """,
        "test_testing.py::InATestCase",
    ),
    _mutant(
        "nothing is held where the toolkit is not installed",
        "testing.py",
        """
        require_toolkit()
        held = held_now(self._using)
        """,
        """
        held = held_now(self._using)
        """,
        "test_testing.py::test_nothing_is_asserted_where_the_toolkit_is_not_installed",
    ),
    _mutant(
        "nothing is left where the toolkit is not installed",
        "testing.py",
        """
        require_toolkit()
        super().setUp()
        """,
        """
        super().setUp()
        """,
        "test_testing.py::test_the_mixin_passes_nothing_where_the_toolkit_is_not_installed",
    ),
    _mutant(
        "what async code holds in the thread of its queries passes",
        "testing.py",
        """
        threads = {own, *_threads_of(_executor_of_queries())}
        """,
        """
        threads = {own}
        """,
        "test_testing.py::test_what_an_async_view_holds_is_found[with_block-by_asgi]",
        "test_testing.py::test_what_an_async_view_holds_is_found[with_block-by_client]",
        "test_testing.py::test_what_an_async_view_holds_is_found[with_block-by_async_client_alone]",
    ),
    _mutant(
        "an async view is blamed for threads that serve nobody",
        "testing.py",
        """
        return lease.request == self.label and (self.label is not None or not self.serves)
        """,
        """
        return lease.request == self.label
        """,
        "test_testing.py::test_what_other_threads_hold_is_not_the_async_views[None-with_block-by_async_client]",
    ),
    _mutant(
        "what a request holds in threads of an executor passes",
        "testing.py",
        """
        return request is self.request
        """,
        """
        return False
        """,
        "test_testing.py::test_what_the_async_view_holds_in_another_thread_is_found_under_the_middleware",
    ),
    _mutant(
        "a thread serves a request of the test client for ever",
        "testing.py",
        """
        _serving.difference_update(_threads_of(_executor_of_queries() or SyncToAsync.single_thread_executor))
        """,
        """
        pass
        """,
        "test_testing.py::test_after_a_request_of_the_async_client_the_thread_serves_nobody",
    ),
    _mutant(
        "a decorated coroutine function is checked before it begins",
        "testing.py",
        """
        return self._around_coroutine(func)
        """,
        """
        return super().__call__(func)
        """,
        "test_testing.py::test_a_decorated_coroutine_function_is_checked_when_it_begins_and_when_it_ends",
    ),
    _mutant(
        "a slow function that nobody has called passes",
        "contrib/pytest.py",
        """
        _fail(item, [*_held(slow), *missed, *watch.found()])
        """,
        """
        _fail(item, [*_held(slow), *watch.found()])
        """,
        "test_testing.py::test_the_plugin_fails_a_test",
    ),
    _mutant(
        "a static method that is watched gets the instance",
        "contrib/pytest.py",
        """
        return staticmethod(self._watching(function))
        """,
        """
        return self._watching(function)
        """,
        "test_testing.py::test_the_plugin_lets_a_test_pass",
    ),
    _mutant(
        "a class method that is watched is that of the class it is named by",
        "contrib/pytest.py",
        """
        return classmethod(self._watching(method.__func__))
        """,
        """
        return staticmethod(self._watching(function))
        """,
        "test_testing.py::test_the_plugin_lets_a_test_pass",
    ),
    _mutant(
        "each test of a class must call what is slow",
        "contrib/pytest.py",
        """
        missed = [each.missed for each in slow if not each.is_called and each.name in _slow_itself(item)]
        """,
        """
        missed = [each.missed for each in slow if not each.is_called]
        """,
        "test_testing.py::test_the_plugin_lets_a_test_pass",
    ),
    _mutant(
        "the marker may be given a name in the place of a truth value",
        "contrib/pytest.py",
        """
        if not isinstance(enabled, bool) or not isinstance(slow, Collection):
        """,
        """
        if not isinstance(slow, Collection):
        """,
        "test_testing.py::test_the_plugin_says_once_what_its_marker_takes",
    ),
    _mutant(
        "a refused test fails at its end as well",
        "contrib/pytest.py",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(item: pytest.Item) -> None:
        """,
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
            begin(item)
            return (yield)


        def begin(item: pytest.Item) -> None:
        """,
        "test_testing.py::test_the_plugin_says_once_what_its_marker_takes",
    ),
    _mutant(
        "a wrong ini option is said for each test",
        "contrib/pytest.py",
        """
        config.getini("connection_hygiene")
        """,
        """
        pass
        """,
        "test_testing.py::test_the_plugin_says_once_that_its_ini_option_is_wrong",
    ),
    _mutant(
        "a mixin whose setUp() is left out lets everything pass",
        "testing.py",
        """
        if not self._is_watching:
        """,
        """
        if False:
        """,
        "test_testing.py::test_a_test_fails_whose_setup_leaves_out_the_mixins",
    ),
    _mutant(
        "flush() does not wait for the workers",
        "reaper/workers.py",
        """
        return not self._calls and self._idle == len(self._threads)
        """,
        """
        return True
        """,
        "test_testing.py::test_flush_gives_up_and_says_so",
    ),
    _mutant(
        "nobody hears of what a pool opens",
        "pools/native.py",
        """
        opening.watch(pool, backend)
        """,
        "",
        "test_events.py::test_a_connection_that_a_pool_opens_is_told_with_its_time",
    ),
    _mutant(
        "a pool goes on with the toolkit's class",
        "pools/native.py",
        """
        opening.unwatch(pool)
        """,
        "",
        "test_events.py::test_a_pool_has_its_own_class_back_after_uninstall",
    ),
    _mutant(
        "a scrape begins a transaction",
        "contrib/views.py",
        """
        transaction.non_atomic_requests(using=alias)(plain)
        """,
        "transaction.non_atomic_requests(plain)",
        "test_prometheus.py::test_a_scrape_needs_no_connection_while_the_pool_is_empty",
    ),
    _mutant(
        "a file that is still empty fails a scrape",
        "contrib/prometheus/__init__.py",
        "return file.stat().st_size > 0",
        "return True",
        "test_prometheus_files.py::test_what_is_written_follows_the_process",
    ),
    _mutant(
        "a forked child counts what its parent has added",
        "contrib/prometheus/multiprocess.py",
        """
        _added.clear()
        """,
        "",
        "test_prometheus_files.py::test_what_is_written_follows_the_process",
    ),
    _mutant(
        "a closed pool keeps its gauges",
        "contrib/prometheus/multiprocess.py",
        """
        found.set(gauges.get(found, 0))
        """,
        """
        found.set(gauges[found]) if found in gauges else None
        """,
        "test_prometheus_files.py::test_what_is_written_follows_the_process",
    ),
    _mutant(
        "a child that only discards has a thread",
        "contrib/prometheus/multiprocess.py",
        """
        if isinstance(event, events.ConnectionsDiscarded):
        """,
        """
        if event is None:
        """,
        "test_prometheus_files.py::test_what_is_written_follows_the_process",
    ),
    _mutant(
        "a child of multiprocessing takes what it has counted along",
        "contrib/prometheus/multiprocess.py",
        """
        Finalize(None, _at_exit, exitpriority=0)
        """,
        """
        pass
        """,
        "test_prometheus_files.py::test_what_is_written_follows_the_process",
    ),
    _mutant(
        "who is turned away is a time-out",
        "contrib/opentelemetry.py",
        """
        if event.error != "TooManyRequests":
        """,
        """
        if event.error:
        """,
        "test_opentelemetry.py::test_a_pool_without_a_connection_is_a_timeout",
    ),
    _mutant(
        "a report is in the name of whoever started the thread",
        "contrib/sentry.py",
        """
        if thread_id == threading.get_ident():
        """,
        """
        if thread_id:
        """,
        "test_sentry.py::test_each_report_is_an_issue_of_one_place_and_in_nobody_elses_name",
    ),
    _mutant(
        "a report is sent twice",
        "contrib/sentry.py",
        """
        return None if is_double else event
        """,
        """
        return event
        """,
        "test_sentry.py::test_each_report_is_an_issue_of_one_place_and_in_nobody_elses_name",
    ),
    _mutant(
        "others may read the status directory",
        "reports/status_directory.py",
        """
        if found.st_mode & _OTHERS:
        """,
        """
        if False:
        """,
        "test_live.py::test_a_directory_that_is_not_its_users_alone_is_refused",
    ),
    _mutant(
        "root is this user",
        "reports/status_directory.py",
        """
        return found is None or found[1] == os.geteuid()
        """,
        """
        return found is None or found[1] in (os.geteuid(), 0)
        """,
        "test_live.py::test_root_is_another_user",
    ),
    _mutant(
        "a link is a status directory",
        "reports/status_directory.py",
        """
        if why := why_refused(os.lstat(directory)):
        """,
        """
        if why := why_refused(os.stat(directory)):
        """,
        "test_live.py::test_a_directory_that_is_not_its_users_alone_is_refused",
    ),
    _mutant(
        "anybody is answered",
        "reports/answering.py",
        """
        if not status_directory.is_trusted(asker):
        """,
        """
        if False:
        """,
        "test_live.py::test_whoever_is_not_this_user_is_not_answered",
    ),
    _mutant(
        "a child keeps its parent's socket",
        "reports/answering.py",
        """
        inherited.disinherit()
        """,
        """
        pass
        """,
        "test_live.py::test_a_child_that_has_not_queried_keeps_nothing_of_its_parents_socket",
    ),
    _mutant(
        "each checkout is listened to",
        "reports/answering.py",
        """
        events.unlisten(events.CheckedOut, _checked_out)
        directory = status_directory.mine()
        """,
        """
        directory = status_directory.mine()
        """,
        "test_live.py::test_nothing_is_there_before_the_first_query_and_nothing_listens_after_it",
    ),
    _mutant(
        "the session that had the pid before is held",
        "reports/live.py",
        """
        if session.age is not None and self.lease.held_for > session.age + _LATE:
        """,
        """
        if False:
        """,
        "test_live.py::test_a_pid_alone_makes_no_holder",
    ),
    _mutant(
        "nobody answers before they are asked",
        "reports/live.py",
        """
        if not 0 < timeout <= _LONGEST:
        """,
        """
        if timeout != timeout:
        """,
        "test_live.py::test_a_timeout_that_nobody_can_wait_for_is_refused",
    ),
    _mutant(
        "a page has no place for a setting",
        "pages.py",
        """
        _PLACE = re.compile(r"^\\.\\. (?:_(?P<label>[^\\n:]+):|(?:setting|check):: (?P<name>\\S+))\\n+", re.MULTILINE)
        """,
        """
        _PLACE = re.compile(r"^\\.\\. (?:_(?P<label>[^\\n:]+):|(?:nothing):: (?P<name>\\S+))\\n+", re.MULTILINE)
        """,
        "test_pages.py::test_each_setting_and_each_check_is_a_place",
    ),
    _mutant(
        "a check goes by its whole name only",
        "pages.py",
        """
        return found if len(found) == 1 else []
        """,
        """
        return []
        """,
        "test_pages.py::test_each_setting_and_each_check_is_a_place",
    ),
    _mutant(
        "a page that is not there is clean",
        "management/commands/connections.py",
        """
        unanswered = {path: answer for path, answer in answers.items() if not answer.is_from_view}
        """,
        """
        unanswered: dict[str, auditing.Answer] = {}
        """,
        "test_audit_command.py::test_a_url_that_nothing_answers_is_said_if_it_was_named",
    ),
    _mutant(
        "any text is a path",
        "management/commands/connections.py",
        """
        if not re.match(r"/(?!/)", text):
        """,
        """
        if False:
        """,
        "test_audit_command.py::test_what_is_no_path_is_refused",
    ),
    _mutant(
        "an extra that is missing is a bare import error",
        "contrib/extras.py",
        """
        raise type(error)(text, name=error.name, path=error.path) from error
        """,
        """
        raise
        """,
        "test_extras.py::test_what_is_missing_is_said_with_its_extra",
    ),
    _mutant(
        "a pid of any database is the one",
        "reports/live.py",
        """
        if self.lease.server_pid != session.pid or (end.database, end.user) != (session.database, session.role):
        """,
        """
        if self.lease.server_pid != session.pid:
        """,
        "test_live.py::test_a_pid_alone_makes_no_holder",
    ),
    _mutant(
        "the admin's page ends whoever has the pid by now",
        "contrib/admin/looking.py",
        """
        return next((each for each in found if micros(each.backend_start) == started), None)
        """,
        """
        return next((each for each in found), None)
        """,
        "test_admin.py::test_a_pid_that_is_another_sessions_by_now_is_left_alone",
    ),
    _mutant(
        "the admin's page ends the session that it queries over",
        "contrib/admin/looking.py",
        """
        if pid in own_pids():
            return None
        """,
        """
        pass
        """,
        "test_admin.py::test_the_session_that_the_request_itself_queries_over_cannot_be_ended",
    ),
    _mutant(
        "the admin's page ends what has become another request's",
        "contrib/admin/admin.py",
        """
        return server.terminate(connection, shown, whatever_state="whatever" in request.POST)
        """,
        """
        return server.terminate(connection, shown, whatever_state=True)
        """,
        "test_admin.py::test_one_that_has_gone_on_with_its_work_is_left_alone_unless_that_is_wanted",
    ),
    _mutant(
        "a ticket is good for whoever has it",
        "contrib/admin/tickets.py",
        """
        if session is None or found["site"] != site or found["session"] != session:
        """,
        """
        if session is None or found["site"] != site:
        """,
        "test_admin.py::test_a_ticket_is_nobody_elses",
    ),
    _mutant(
        "who has a ticket is not looked up any more",
        "contrib/admin/admin.py",
        """
        if facts is None or not _nobody_can_be_looked_up(look):
        """,
        """
        if facts is None:
        """,
        "test_admin.py::test_a_ticket_is_good_only_where_nobody_can_be_looked_up",
    ),
    _mutant(
        "on an event loop nothing is released, in silence",
        "scopes.py",
        """
        _refuse_event_loop("release_connections")
        """,
        "",
        "test_scopes.py::test_on_an_event_loop_they_refuse_as_queries_do",
    ),
    # ##### What the settings say #####
    _mutant(
        "a misspelt timeout is left to its writer",
        "conf.py",
        """
        close = get_close_matches(parameter.lower(), TIMEOUTS, n=1, cutoff=0.8) if isinstance(parameter, str) else []
        """,
        """
        close = []
        """,
        "test_checks.py::test_a_misspelt_timeout",
    ),
    _mutant(
        "an alias without a dict of its timeouts is told that it is none",
        "conf.py",
        """
        if not of_alias and _is_alias(name):
        """,
        """
        if False:
        """,
        "test_checks.py::test_an_alias_without_a_dict_of_its_timeouts",
    ),
    _mutant(
        "an unknown key comes with one that begins like it, and not with the others",
        "conf.py",
        """
        alike = [known for known, words in shared.items() if words == most > 0][:2]
        """,
        """
        alike = [known for known, words in shared.items() if words == most > 0][:1]
        """,
        "test_conf.py::test_where_several_may_have_been_meant_each_of_them_is_named",
    ),
    _mutant(
        "a second alias with ATOMIC_REQUESTS seems to cost the views that query it only",
        "server/checks.py",
        """
        "end, also one that never queries it.",
        """,
        """
        "end, if it queries it.",
        """,
        "test_checks.py::test_atomic_requests_while_releasing_everywhere",
    ),
    _mutant(
        "milliseconds are looked for in timeouts only",
        "server/checks.py",
        """
        return [*errors, *_check_grace(), *_check_seconds(), *_check_effects()]
        """,
        """
        return [*errors]
        """,
        "test_checks.py::test_milliseconds_for_seconds_of_any_key",
    ),
    _mutant(
        "notices may be left anywhere",
        "reports/notice_files.py",
        """
        if not os.path.isdir(there):
        """,
        """
        if False:
        """,
        "test_checks.py::test_a_notice_directory_that_is_none",
    ),
    _mutant(
        "a site's own middleware is none of ours",
        "server/own_middleware.py",
        """
        return found if isinstance(found, type) else None
        """,
        """
        return None
        """,
        "test_checks.py::test_server_timing_that_somebody_adds",
    ),
    _mutant(
        "a middleware may be there twice",
        "server/checks.py",
        """
        if too_many:
        """,
        """
        if False:
        """,
        "test_checks.py::test_middleware_that_adds_nothing",
    ),
    _mutant(
        "a pool may have any option",
        "pools/written.py",
        """
        found = list(_of_names({**pool}, cls))
        """,
        """
        found = []
        """,
        "test_checks.py::test_a_pool_that_cannot_be_made",
    ),
    _mutant(
        "a pool may have any sizes",
        "pools/written.py",
        """
        yield from found or _of_values({**pool}, cls)
        """,
        """
        yield from found
        """,
        "test_checks.py::test_a_pool_that_cannot_be_made",
    ),
    _mutant(
        "a pool of another class is looked at",
        "pools/written.py",
        """
        return cls if cls.__module__.partition(".")[0] == "psycopg_pool" else None
        """,
        """
        return cls
        """,
        "test_checks.py::test_a_pool_of_another_class_may_take_anything",
    ),
    _mutant(
        "what the doctor says of one timeout takes away another",
        "server/doctor.py",
        """
        return f'{first}add "{name}": {seconds:g} to CONN_HYGIENE["SESSION_TIMEOUTS"], a dict.'
        """,
        """
        return f'{first}CONN_HYGIENE = {{"SESSION_TIMEOUTS": {{"{name}": {seconds:g}}}}}.'
        """,
        "test_doctor.py::TestOnAServer"
        "::test_what_it_says_of_one_timeout_leaves_what_it_says_of_another_and_what_was_there",
    ),
    _mutant(
        "nobody says that the application is missing",
        "installation.py",
        """
        if _has_complained or not apps.ready or apps.is_installed("conn_hygiene"):
            return
        """,
        """
        return
        """,
        "test_middleware.py::test_the_middleware_says_once_that_the_application_is_missing",
    ),
    _mutant(
        "each middleware says that the application is missing",
        "installation.py",
        """
        _has_complained = True
        """,
        "",
        "test_middleware.py::test_the_middleware_says_once_that_the_application_is_missing",
    ),
    # ##### Whose sessions they are #####
    _mutant(
        "a host's name is cut where replicas differ",
        "sessions/connect_options.py",
        """
        return f"{digits}~{name[len(name) - room + _DIGITS + 1 :]}"
        """,
        """
        return name[:room]
        """,
        "test_session_tags.py::test_hosts_that_differ_only_somewhere_are_told_apart",
    ),
    _mutant(
        "a project's own name takes the room of the tag",
        "sessions/connect_options.py",
        """
        own = (own or "")[: max(0, NAME_LENGTH - len(tag) - 1)]
        """,
        """
        own = own or ""
        """,
        "test_session_tags.py::test_hosts_that_differ_only_somewhere_are_told_apart",
    ),
    _mutant(
        "a host has another name in the sessions of each process",
        "sessions/connect_options.py",
        """
        pid = max(_PID_LENGTH, len(str(os.getpid())))
        """,
        """
        pid = len(str(os.getpid()))
        """,
        "test_session_tags.py::test_a_host_has_one_name_whichever_alias_and_process",
    ),
    _mutant(
        "an answer is waited for as long as a pooler likes",
        "server/sessions.py",
        """
        answers.limit(connection, ANSWER_TIMEOUT if answer_timeout is None else answer_timeout)
        """,
        "",
        "test_doctor.py::TestBehindPgBouncer::test_what_it_has_no_session_for_is_given_up_and_its_console_tells_why",
    ),
    _mutant(
        "an answer that comes bit by bit takes as long as it likes",
        "server/answers.py",
        """
        is_over = monotonic() >= deadline
        """,
        """
        is_over = not ready and monotonic() >= deadline
        """,
        "test_doctor.py::test_an_answer_that_comes_bit_by_bit_is_given_up_when_its_time_is_over",
    ),
    _mutant(
        "an answer that is there is given up for the time that it took",
        "server/answers.py",
        """
        is_over = monotonic() >= deadline
        """,
        """
        if monotonic() >= deadline:
            raise _TooLate
        """,
        "test_doctor.py::test_one_that_is_there_by_then_is_taken_whatever_the_time",
    ),
    _mutant(
        "what Django asks is waited for as long as a pooler likes",
        "server/sessions.py",
        """
        wrapper.get_new_connection = functools.partial(_limited, wrapper.get_new_connection)
        """,
        "",
        "test_doctor.py::TestBehindPgBouncer::test_so_is_what_django_asks_there",
    ),
    _mutant(
        "a session that takes long to end is no longer waited for than an answer",
        "server/sessions.py",
        """
        answers.limit(connection, TERMINATE_TIMEOUT + ANSWER_TIMEOUT)
        """,
        "",
        "test_connections_command.py::TestTerminate",
    ),
    _mutant(
        "a pooler that has no session is not asked why",
        "management/asking.py",
        """
        # A pooler all of whose sessions are taken says so itself.
        facts |= _console(alias, client)
        raise
        """,
        """
        raise
        """,
        "test_doctor.py::TestBehindPgBouncer::test_what_it_has_no_session_for_is_given_up_and_its_console_tells_why",
    ),
    _mutant(
        "the admin's page waits for answers as long as a command",
        "contrib/admin/looking.py",
        """
        "answer_timeout": TIMEOUT,
        """,
        "",
        "test_admin.py::test_it_says_that_a_server_does_not_answer",
    ),
    _mutant(
        "who has misspelt a setting is told to ask again",
        "management/asking.py",
        """
        facts["misconfigured"] = of_driver or isinstance(error, server.Misconfigured)
        """,
        "",
        "test_doctor.py::TestOnAServer::test_an_alias_that_nobody_can_connect_to_is_an_error",
    ),
    _mutant(
        "what tests print stands in the JSON",
        "management/commands/connections.py",
        """
        with redirect_stdout(sys.stderr), auditing.audited() as found:
        """,
        """
        with auditing.audited() as found:
        """,
        "test_audit_command.py::test_standard_output_has_json_alone_whatever_is_run",
    ),
    _mutant(
        "the only database is not meant if it is not the default one",
        "management/commands/connections.py",
        """
        if len(possible) == 1:
            return possible[0]
        """,
        "",
        "test_connections_command.py::TestTerminate::test_the_only_database_is_meant_whatever_its_alias",
    ),
    _mutant(
        "an alias that nobody can connect to takes the others along",
        "server/sessions.py",
        """
        raise misconfigured(error) from error
        """,
        """
        raise
        """,
        "test_connections_command.py::TestStatus::test_an_alias_that_nobody_can_connect_to_is_another_failure",
    ),
    _mutant(
        "what only Django refuses takes the doctor along",
        "management/asking.py",
        """
        failures.append(words(server.misconfigured(error)))
        """,
        """
        raise
        """,
        "test_doctor.py::TestOnAServer::test_what_only_django_refuses_is_said",
    ),
    _mutant(
        "a pooler is asked where the server can be",
        "management/asking.py",
        """
        kept, dropped = (other, first) if first.pooled and not other.pooled else (first, other)
        """,
        """
        kept, dropped = (first, other)
        """,
        "test_live.py::test_what_is_reached_past_a_pooler_as_well_is_asked_there",
    ),
    _mutant(
        "a password of a connection string is said",
        "management/asking.py",
        """
        return printable(without_passwords(str(error)))
        """,
        """
        return printable(str(error))
        """,
        "test_connections_command.py::TestStatus::test_no_password_is_said_of_one",
    ),
    _mutant(
        "what processes hold is not told where the server does not answer",
        "management/rendering.py",
        """
        return [Line(f"{names}: {view.error}", BAD), *_held_blocks(view.held, limit)]
        """,
        """
        return [Line(f"{names}: {view.error}", BAD)]
        """,
        "test_live.py::test_processes_tell_where_the_server_does_not",
    ),
    _mutant(
        "JSON has no lease of another process",
        "management/rendering.py",
        """
        "held": [_lease_json(lease) for lease in process.leases],
        """,
        """
        "held": [],
        """,
        "test_live.py::test_processes_tell_where_the_server_does_not",
    ),
    _mutant(
        "another project's leases are told of an alias of the same name",
        "management/asking.py",
        """
        if place not in [Place(**answering.database_of(connections.settings[each])) for each in aliases]:
        """,
        """
        if place is None or alias not in aliases:
        """,
        "test_live.py::test_what_others_call_by_the_same_name_is_not_told_of",
    ),
    _mutant(
        "nothing says that a pool is full",
        "management/rendering.py",
        """
        blocks += [Line(_fullness(process, pool), WARN) for process, pool in status.full]
        """,
        """
        pass
        """,
        "test_live.py::test_status_says_which_pools_have_nothing_left",
    ),
    _mutant(
        "each pool is said to be full",
        "management/asking.py",
        """
        if (is_full(pool) or pool.waiting) and leads_to(shown, process, pool.alias)
        """,
        """
        if leads_to(shown, process, pool.alias)
        """,
        "test_live.py::test_status_says_which_pools_have_nothing_left",
    ),
    _mutant(
        "where sessions were not looked for is not said",
        "management/commands/connections.py",
        """
        return [first for first, aliases in places.items() if alias not in aliases]
        """,
        """
        return []
        """,
        "test_connections_command.py::TestTerminate::test_where_it_has_not_looked_is_said",
    ),
    _mutant(
        "what all databases are looked at for is said not to be",
        "management/commands/connections.py",
        """
        wider = {"NAME": options["all_databases"], "USER": options["all_users"], "PASSWORD": options["all_users"]}
        """,
        """
        wider = {"NAME": False}
        """,
        "test_connections_command.py::TestTerminate::test_where_it_has_not_looked_is_said",
    ),
    _mutant(
        "a full server is to be asked again",
        "server/not_asked.py",
        """
        if _FULL.search(failure):
        """,
        """
        if False:
        """,
        "test_doctor.py::TestOnAServer::test_a_server_that_is_full_for_the_role_says_so",
    ),
    _mutant(
        "what fills a server is counted with what is elsewhere",
        "server/not_asked.py",
        """
        there = [each for each in facts if _server(project, each) == _server(project, fact)]
        """,
        """
        there = facts
        """,
        "test_doctor.py::TestLogic::test_of_a_full_server_it_says_what_fills_it_and_who_can_end_that",
    ),
    _mutant(
        "a role that may not log in is to be asked for again",
        "server/not_asked.py",
        """
        if _ROLE.search(failure):
        """,
        """
        if False:
        """,
        "test_doctor.py::TestOnAServer::test_a_role_that_may_not_log_in_is_named",
    ),
    _mutant(
        "a password that is refused is to be tried again",
        "server/not_asked.py",
        """
        if _PASSWORD.search(failure):
        """,
        """
        if False:
        """,
        "test_doctor.py::TestLogic::test_who_is_not_let_in_is_told_what_to_mend",
    ),
    _mutant(
        "who waits for a victim does not wait for its blocker",
        "contrib/admin/looking.py",
        """
        ahead += () if blocker in before else waits.get(blocker, ())
        """,
        """
        pass
        """,
        "test_admin.py::test_who_waits_for_itself_in_the_end_is_not_counted_by_itself",
    ),
    _mutant(
        "only who waits directly is counted",
        "contrib/admin/looking.py",
        """
        blocks = _waiting_for({session.pid: session.blocked_by for session in sessions})
        """,
        """
        blocks = Counter(pid for session in sessions for pid in set(session.blocked_by))
        """,
        "test_admin.py::test_who_blocks_most_is_at_the_root_of_it",
    ),
    _mutant(
        "who is in a deadlock is counted by itself",
        "contrib/admin/looking.py",
        """
        return Counter(blocker for pid, found in before.items() for blocker in found if blocker != pid)
        """,
        """
        return Counter(blocker for pid, found in before.items() for blocker in found)
        """,
        "test_admin.py::test_who_waits_for_itself_in_the_end_is_not_counted_by_itself",
    ),
    _mutant(
        "a connection is told of as replaced before another is had",
        "leases/checkouts.py",
        """
        replaced.append(_discard(wrapper.alias, connection, server_pid))
        """,
        """
        publish(_discard(wrapper.alias, connection, server_pid))
        """,
        "test_broken.py::test_a_broken_one_is_replaced_once_if_no_other_is_to_be_had",
    ),
    _mutant(
        "the server has closed what could not write",
        "leases/checkouts.py",
        """
        could_not_write = read_only.is_outlived(alias, connection)
        """,
        """
        could_not_write = False
        """,
        "test_broken.py::test_so_are_those_of_the_pool_that_nobody_has_used",
    ),
    _mutant(
        "the server has closed what an owner could not write with",
        "leases/ended.py",
        """
        lease.could_not_write = is_outlived
        """,
        """
        pass
        """,
        "test_broken.py::test_sessions_that_cannot_write_are_replaced_when_others_can[persistent]",
    ),
    _mutant(
        "what the server has closed could not write, if one before could not",
        "leases/ended.py",
        """
        lease.could_not_write = False
        """,
        """
        pass
        """,
        "test_broken.py::test_what_the_server_closes_after_that_is_said_to_be_closed",
    ),
    _mutant(
        "the log blames the server for what could not write",
        "reports/log.py",
        """
        words if event.could_not_write else "The server had closed connection %r (server pid %d); it is replaced.",
        """,
        """
        "The server had closed connection %r (server pid %d); it is replaced.",
        """,
        "test_broken.py::test_sessions_that_cannot_write_are_replaced_when_others_can[persistent]",
    ),
    _mutant(
        "a failed transaction is said to hold its locks",
        "server/doctor.py",
        """
        found = [session for session in late if (session.state == ABORTED) is bool(failed)]
        """,
        """
        found = [] if failed else late
        """,
        "test_doctor.py::TestLogic::test_what_a_failed_transaction_holds_is_not_said_to_be_its_locks",
    ),
    _mutant(
        "a query that is awaited is in the driver",
        "callsite.py",
        """
        if _ORM in found.f_code.co_filename:
        """,
        """
        if False:
        """,
        "test_callsite.py::test_a_query_that_is_awaited_is_where_the_orm_was_asked",
    ),
    _mutant(
        "what the toolkit has ended is back",
        "leases/news.py",
        """
        ended=lease.ended_because is not None or connection.closed,
        """,
        """
        ended=False,
        """,
        "test_left_open.py::test_what_was_reported_and_ended_is_not_said_to_be_back[default-the toolkit]",
        "test_left_open.py::test_what_was_reported_and_ended_is_not_said_to_be_back[default-the server]",
    ),
    _mutant(
        "what the server has ended is back",
        "leases/news.py",
        """
        ended=lease.ended_because is not None or connection.closed,
        """,
        """
        ended=lease.ended_because is not None,
        """,
        "test_left_open.py::test_what_was_reported_and_ended_is_not_said_to_be_back[default-the server]",
    ),
    _mutant(
        "who has waited for a server that hangs is not told so",
        "server/sessions.py",
        """
        raise psycopg.errors.ConnectionTimeout(f"{waited}: {error}") from error
        """,
        """
        raise
        """,
        "test_connections_command.py::test_a_server_that_hangs_is_said_to",
    ),
    # ##### The audit's own word #####
    _mutant(
        "a login in the place of a view is audited",
        "management/auditing.py",
        """
        return self.status not in _UNANSWERED and not self.to_login
        """,
        """
        return self.status not in _UNANSWERED
        """,
        "test_audit_command.py::test_a_page_for_somebody_who_is_logged_in_is_said_if_it_was_named",
    ),
    _mutant(
        "a project of which no view was run is audited",
        "management/commands/connections.py",
        """
        elif len(unanswered) == count:
        """,
        """
        elif len(unanswered) > count:
        """,
        "test_audit_command.py::test_a_project_that_lets_nobody_in_is_not_audited",
    ),
    _mutant(
        "a setting goes by its page only",
        "management/commands/connections.py",
        """
        found = [*pages.sections(name)]
        """,
        """
        pass
        """,
        "test_pages.py::test_a_section_that_only_one_page_has_goes_by_its_name_alone",
    ),
    _mutant(
        "a misspelt section is answered with all of them",
        "management/commands/connections.py",
        """
        which = _did_you_mean(pages.alike(anchor, there)) or f"It has: {', '.join(there)}."
        """,
        """
        which = f"It has: {', '.join(there)}."
        """,
        "test_pages.py::test_what_is_no_page_is_said_to_be_none",
    ),
    _mutant(
        "a path that is waited for is shown where nobody looks on",
        "management/commands/connections.py",
        """
        if self.stderr.isatty():
            # In the last column, some terminals go on to the next line.
        """,
        """
        if True:
        """,
        "test_audit_command.py::test_elsewhere_nothing_is_shown_meanwhile",
    ),
    _mutant(
        "a slow path is waited for in silence",
        "management/commands/connections.py",
        """
        self._show_meanwhile(f"{place} of {len(paths)}: {printable(path)}")
        """,
        "",
        "test_audit_command.py::test_a_terminal_shows_which_path_is_asked",
    ),
    _mutant(
        "a run of no tests is audited",
        "management/auditing.py",
        """
        return "Nothing was audited, since no test has run." if counts and not any(counts) else None
        """,
        """
        return None
        """,
        "test_audit_command.py::test_that_no_test_has_run_is_said",
    ),
    _mutant(
        "what was lost in an atomic() is forgotten with the connection that it closes",
        "leases/closing_wrapper.py",
        """
        lease.has_lost(Lost(lost))
        """,
        """
        pass
        """,
        "test_broken.py::test_nor_after_an_atomic_in_which_the_session_has_ended",
    ),
    _mutant(
        "what was set in an atomic() that broke is missed, though it is undone",
        "leases/ended.py",
        """
        return [name for name in lost_for_good(lease) if name in transaction.set_before]
        """,
        """
        return lost_for_good(lease)
        """,
        "test_broken.py::test_what_was_set_in_that_atomic_is_undone_and_not_lost",
    ),
    _mutant(
        "a statement that runs by itself is told of as a transaction",
        "leases/description.py",
        """
        in_transaction = keeps and not (wrapper and lease.runs_by_itself(wrapper))
        """,
        """
        in_transaction = keeps
        """,
        "test_snapshot.py::test_a_statement_that_runs_by_itself_is_in_no_transaction",
    ),
    _mutant(
        "one that runs in a transaction is told of as if it ran by itself",
        "leases/claim.py",
        """
            and self._transaction is None
            and pools.is_active(connection)
        """,
        """
            and pools.is_active(connection)
        """,
        "test_snapshot.py::test_one_of_a_transaction_is",
    ),
    _mutant(
        "the reaper lingers where owners come seldom, too",
        "reaper/reaper.py",
        """
            self._wake_at = now + MAX_DELAY if self._busy and self._lingers else math.inf
        """,
        """
            self._wake_at = now + MAX_DELAY if self._busy else math.inf
        """,
        "test_leisure.py::test_it_lingers_only_where_owners_come_often",
    ),
    _mutant(
        "the reaper never lingers",
        "reaper/reaper.py",
        """
            self._lingers = now - self._rested_at < MAX_DELAY
        """,
        """
            self._lingers = False
        """,
        "test_leisure.py::test_it_lingers_only_where_owners_come_often",
    ),
    _mutant(
        "what a dead thread has left running is told of as a transaction",
        "leases/news.py",
        """
            lease._transaction is not None and not pools.is_idle(connection)
        """,
        """
            not pools.is_idle(connection)
        """,
        "test_reaper.py::test_what_a_dead_thread_has_left_running_is_no_transaction",
    ),
    _mutant(
        "what was lost is missed by the next job as well",
        "leases/closing_wrapper.py",
        """
        or lease.is_lost(told=self.errors_occurred)
        """,
        """
        or False
        """,
        "test_broken.py::test_what_was_lost_in_an_atomic_is_nothing_to_the_next_job",
    ),
    _mutant(
        "what was lost is dropped before anybody was told",
        "leases/closing_wrapper.py",
        """
        or lease.is_lost(told=self.errors_occurred)
        """,
        """
        or lease.is_lost()
        """,
        "test_broken.py::test_what_was_lost_while_it_was_parked_is_told_and_nothing_to_the_next_job",
    ),
    _mutant(
        "what was lost is usable",
        "leases/closing_wrapper.py",
        """
        return not lease.is_lost() and lease.looked_at(super().is_usable)
        """,
        """
        return lease.looked_at(super().is_usable)
        """,
        "test_broken.py::test_what_was_lost_in_an_atomic_is_not_usable",
    ),
    _mutant(
        "a health check drops what was lost, and its query runs without",
        "leases/looks.py",
        """
        and frame.f_locals.get("self") is not wrapper
        """,
        """
        and True
        """,
        "test_broken.py::test_a_health_check_has_nothing_run_without_what_was_lost",
    ),
    _mutant(
        "what a session has not taken is missed by the next job as well",
        "leases/session_claim.py",
        """
        carried.was_refused = True
        """,
        """
        pass
        """,
        "test_following.py::test_what_cannot_be_set_again_is_nothing_to_the_next_job",
    ),
    _mutant(
        "what was reset before a session ended is lost",
        "leases/ended.py",
        """
        return sorted(filter(following.decides, lease.missing_elsewhere()))
        """,
        """
        return sorted(filter(following.decides, lease.session_state.follows))
        """,
        "test_broken.py::test_what_was_reset_is_not_lost",
    ),
    _mutant(
        "what is set after its reset is not lost",
        "sessions/state.py",
        """
        self.reset -= self.follows if adds else names
        """,
        """
        self.reset -= self.follows if adds else set()
        """,
        "test_broken.py::test_what_may_be_set_for_all_that_was_reset_is_lost",
    ),
    _mutant(
        "what a later statement may have set unseen is not lost",
        "sessions/state.py",
        """
        self.reset -= self.follows if adds else names
        """,
        """
        self.reset -= names
        """,
        "test_broken.py::test_what_may_be_set_for_all_that_was_reset_is_lost",
    ),
    _mutant(
        "what is reset in a transaction is not lost",
        "sessions/state.py",
        """
        if not in_transaction:
            self._note_reset(effect)
        """,
        """
        self._note_reset(effect)
        """,
        "test_broken.py::test_what_may_be_set_for_all_that_was_reset_is_lost",
    ),
    _mutant(
        "what was prepared sets nothing after a reset",
        "sessions/state.py",
        """
        if self.pins.keys() <= {effects.SETTING}:
        """,
        """
        if True:
        """,
        "test_broken.py::test_what_may_be_set_for_all_that_was_reset_is_lost",
    ),
    _mutant(
        "what is reset in a block that sets it is not lost",
        "sessions/state.py",
        """
        self.reset |= names - self._set_at_connect - self.overridden.keys()
        """,
        """
        self.reset |= names - self._set_at_connect
        """,
        "test_broken.py::test_what_was_reset_is_lost_in_a_block_that_sets_it",
    ),
    _mutant(
        "what is reset is not lost, though each new session has another",
        "sessions/state.py",
        """
        self.reset |= names - self._set_at_connect - self.overridden.keys()
        """,
        """
        self.reset |= names - self.overridden.keys()
        """,
        "test_broken.py::test_what_was_reset_is_lost_where_a_new_session_has_another",
    ),
    _mutant(
        "what is reset is not lost, though functions may set it",
        "leases/session_claim.py",
        """
        if not reset or not known.leaves_nothing(self.alias) or self._set_up_unseen(reset):
        """,
        """
        if not reset or self._set_up_unseen(reset):
        """,
        "test_broken.py::test_what_was_reset_is_lost_where_functions_may_have_set_it",
    ),
    _mutant(
        "what is reset is not lost, though the backend sets it",
        "leases/session_claim.py",
        """
        if not reset or not known.leaves_nothing(self.alias) or self._set_up_unseen(reset):
        """,
        """
        if not reset or not known.leaves_nothing(self.alias):
        """,
        "test_broken.py::test_what_was_reset_is_lost_where_a_backend_sets_another",
    ),
    _mutant(
        "what is reset is not lost, though the pool sets it",
        "leases/session_claim.py",
        """
        return follows - reset if configuring.sets_no_more(self._pool()) else follows
        """,
        """
        return follows - reset
        """,
        "test_broken.py::test_what_was_reset_is_lost_where_a_pool_sets_another",
    ),
    _mutant(
        "a string that resets and sets has reset",
        "sessions/sql.py",
        """
        frozenset(self._resets if is_alone else ()),
        """,
        """
        frozenset(self._resets),
        """,
        "test_broken.py::test_what_may_be_set_for_all_that_was_reset_is_lost",
    ),
    _mutant(
        "a long name is reset as the server cuts it off",
        "sessions/cleaning.py",
        """
    if any(len(part.encode("utf-8", "replace")) > sql.LONGEST_NAME for part in parts):
        """,
        """
    if False:
        """,
        "test_following.py::test_what_is_set_is_seen_by_nobody_else",
    ),
    _mutant(
        "what crosstab() executes second is not read",
        "sessions/sql.py",
        """
    "crosstab": (0, 1),
        """,
        """
    "crosstab": (0,),
        """,
        "test_session_state.py::test_reading_statements",
    ),
    _mutant(
        "how many categories crosstab() is told is taken for a statement",
        "sessions/sql.py",
        """
            if place < len(arguments) and not (place and _is_number(arguments[place])):
        """,
        """
            if place < len(arguments):
        """,
        "test_session_state.py::test_reading_statements",
    ),
    _mutant(
        "an error loses to its caller's what it was raised for",
        "transactions/retry.py",
        """
            error.__context__ = context
        """,
        """
            pass
        """,
        "test_transactions.py::test_an_error_tells_during_whose_handling_it_was_raised",
    ),
    _mutant(
        "a grace of milliseconds is taken for one of seconds without a word",
        "server/checks.py",
        """
    return [*errors, *_check_grace(), *_check_seconds(), *_check_effects()]
        """,
        """
    return [*errors, *_check_seconds(), *_check_effects()]
        """,
        "test_checks.py::test_milliseconds_for_a_grace_in_seconds",
    ),
    _mutant(
        "what has no effect is not told",
        "server/checks.py",
        """
    return [*errors, *_check_grace(), *_check_seconds(), *_check_effects()]
        """,
        """
    return [*errors, *_check_grace(), *_check_seconds()]
        """,
        "test_checks.py::test_a_termination_that_never_comes",
    ),
    _mutant(
        "the doctor advises what is written, and ignored",
        "server/doctor.py",
        """
    for message, hint in project.setting_problems:
        """,
        """
    for message, hint in ():
        """,
        "test_doctor.py::TestOnAServer::test_what_is_wrong_with_the_setting_is_an_error",
    ),
    _mutant(
        "a request's end waits for a server that does not answer",
        "transactions/left_open.py",
        """
            with returns.TimeLimit(connection, lease.keeper, returns.TIME_LIMIT):
        """,
        """
            if True:
        """,
        "test_outside_the_lock.py::test_what_was_left_open_on_a_server_that_hangs_is_given_up_after_a_limit",
    ),
    _mutant(
        "a setting that the server writes in capitals is left for ever",
        "reports/leftovers.py",
        """
    (SELECT setting IS DISTINCT FROM reset_val FROM pg_catalog.pg_settings WHERE lower(name) = lower(%(name)s)),
        """,
        """
    (SELECT setting IS DISTINCT FROM reset_val FROM pg_catalog.pg_settings WHERE name = lower(%(name)s)),
        """,
        "test_testing.py::test_a_test_passes_that_leaves_nothing",
    ),
    _mutant(
        "what an extension keeps under a name that only begins so is not seen",
        "sessions/sql.py",
        """
        elif name in BEGINNINGS:
            self._adds.add(EXTENSION)
        """,
        """
        elif name in BEGINNINGS:
            pass
        """,
        "test_session_state.py",
    ),
    _mutant(
        "what an extension keeps goes to the next owner",
        "sessions/effects.py",
        """
INDELIBLE = frozenset({LIBRARY, REMOTE, SEED, SLOT, ORIGIN, BACKUP, EXTENSION, CODE, UNREADABLE})
        """,
        """
INDELIBLE = frozenset({LIBRARY, REMOTE, SEED, SLOT, ORIGIN, BACKUP, CODE, UNREADABLE})
        """,
        "test_catalogue.py",
    ),
    _mutant(
        "a user's password is shown for one of basic authentication",
        "reports/answering.py",
        """
_SECRET = re.compile(r"://|@|pass|pwd|secret|token|key|credential|dsn|basic.?auth", re.IGNORECASE)
        """,
        """
_SECRET = re.compile(r"://|@|pass|pwd|secret|token|key|credential|dsn", re.IGNORECASE)
        """,
        "test_live.py::test_a_command_is_short_and_tells_no_secret",
    ),
    _mutant(
        "a backend that is left alone loses what it could not set up",
        "leases/first_connect.py",
        """
        if pools.understands(wrapper):
        """,
        """
        if True:
        """,
        "test_own_close.py::test_whose_first_connect_fails_is_told_why_and_keeps_what_it_has",
    ),
    _mutant(
        "who closes takes its proxy from who has the connection by then",
        "leases/proxied.py",
        """
        self._conn_hygiene_lease.assign(None)
        """,
        """
        self.connection = None
        """,
        "test_sqlalchemy_pool.py::test_who_closes_leaves_alone_who_has_got_the_connection_since",
    ),
    _mutant(
        "without a descriptor to spare nothing is discarded",
        "forks/discarding.py",
        """
    except OSError:
        # No descriptor is left, or there is no /dev/null. The others must not suffer for it.
        """,
        """
    except ZeroDivisionError:
        # No descriptor is left, or there is no /dev/null. The others must not suffer for it.
        """,
        "test_forks.py::test_without_a_descriptor_to_spare_the_rest_is_discarded_all_the_same",
    ),
    _mutant(
        "a child that forks lets go of what it has yet to discard",
        "forks/hooks.py",
        """
    if os.getpid() == _home_pid:
        _kept_at_fork.pop(threading.get_ident(), None)
        """,
        """
    if True:
        _kept_at_fork.pop(threading.get_ident(), None)
        """,
        "test_forks.py::test_a_child_that_forks_before_it_discards_keeps_what_other_threads_of_its_parent_had",
    ),
    _mutant(
        "a change of settings makes connections younger",
        "reaper/reaper.py",
        """
        self._heap = [(-math.inf, order, lease) for _, order, lease in self._heap]
        self._watch_at = _now()
        """,
        """
        self._heap = [(-math.inf, order, lease) for _, order, lease in self._heap]
        self._rewind_watch()
        """,
        "test_ages.py::test_a_change_of_settings_makes_nobody_older",
    ),
    _mutant(
        "a thread that has ended is remembered for the length of a grace",
        "reaper/reaper.py",
        """
        self._inbox.append((deadline, weakref.ref(lease)))
        """,
        """
        self._inbox.append((deadline, lambda: lease))
        """,
        "test_reaper.py::test_a_thread_that_has_ended_leaves_nothing_for_the_length_of_a_grace",
    ),
    _mutant(
        "a statement that a time limit interrupts begins a transaction",
        "leases/lease.py",
        """
                    if self._transaction is None and not self.runs_by_itself(wrapper):
        """,
        """
                    if self._transaction is None:
        """,
        "test_left_open.py::test_a_statement_that_a_time_limit_interrupts_is_no_transaction",
    ),
    _mutant(
        "a statement that a time limit interrupts is told of as a transaction",
        "transactions/left_open.py",
        """
    is_one = found is not None and (found.in_transaction or found.is_untouched)
        """,
        """
    is_one = True
        """,
        "test_left_open.py::test_a_statement_that_a_time_limit_interrupts_is_no_transaction",
    ),
    _mutant(
        "a child cancels what its parent is reading",
        "forks/discarding.py",
        """
        vars(connection).update(cancel=_cancel_nothing, cancel_safe=_cancel_nothing)
        """,
        """
        pass
        """,
        "test_forks.py::test_what_the_parent_is_reading_is_not_cancelled_by_a_child_that_leaves_it",
    ),
    _mutant(
        "who has asked a pool and had no turn since is forgotten",
        "reaper/demand.py",
        """
        if wanted <= 0 and now - demand.asked_at > demand.rest:
        """,
        """
        if wanted <= 0 and now - demand.asked_at > demand.rest / _LOOKS:
        """,
        "test_demand.py::test_who_has_asked_and_is_not_in_the_queue_yet_is_not_forgotten_at_once",
    ),
    _mutant(
        "what only triggers on login run counts as what a request may call",
        "sessions/catalogue.py",
        """
    return f"({' OR '.join(telling)}) AND {_OWN} AND NOT {_ONLY_AT_LOGIN} LIMIT {MOST + 1}"
        """,
        """
    return f"({' OR '.join(telling)}) AND {_OWN} LIMIT {MOST + 1}"
        """,
        "test_catalogue.py::TestLogin::test_what_runs_at_login_only_is_none_of_the_functions",
    ),
    _mutant(
        "what triggers on login run as well as others is left out",
        "sessions/catalogue.py",
        """
     AND p.oid NOT IN (SELECT evtfoid FROM pg_event_trigger WHERE evtevent <> 'login'))\"\"\"
        """,
        """
     )\"\"\"
        """,
        "test_catalogue.py::TestLogin::test_what_runs_at_other_events_as_well_is_one",
    ),
    _mutant(
        "a trigger on login that is another is not seen",
        "sessions/catalogue.py",
        """
     FROM pg_event_trigger),
        """,
        """
     FROM pg_event_trigger WHERE false),
        """,
        "test_catalogue.py::TestLogin::test_whether_it_runs",
    ),
    _mutant(
        "where triggers on login do not run, they do",
        "sessions/catalogue.py",
        """
        (SELECT CASE reset_val WHEN 'replica' THEN 'R' ELSE 'O' END FROM pg_settings
        """,
        """
        (SELECT CASE reset_val WHEN 'other' THEN 'R' ELSE 'O' END FROM pg_settings
        """,
        "test_catalogue.py::TestLogin::test_whether_it_runs",
    ),
    _mutant(
        "what a trigger on login calls is not read",
        "sessions/catalogue.py",
        """
        for function in [*functions, *_called_by([function.body for function in functions], named)]:
        """,
        """
        for function in functions:
        """,
        "test_catalogue.py::TestLogin::test_what_it_calls_is_read_as_well",
    ),
    _mutant(
        "what a trigger on login has set is not set again",
        "sessions/cleaning.py",
        """
    return {} if of_login is None else of_login.to_set_again(plan, connection)
        """,
        """
    return {}
        """,
        "test_unseen_state.py::TestLogin::test_what_it_sets_is_there_for_the_next",
    ),
    _mutant(
        "before it is known what triggers on login do, they do nothing",
        "sessions/cleaning.py",
        """
    return not _looks_for_triggers(connection) or rows[-1] == ["f"]
        """,
        """
    return True
        """,
        "test_unseen_state.py::TestLogin::test_before_it_is_known_such_a_session_is_closed",
    ),
    _mutant(
        "what a trigger on login has set is taken for the server's default",
        "sessions/cleaning.py",
        """
            carried[name] = own if name in by_value else None
        """,
        """
            carried[name] = own if name == _TIMEZONE else None
        """,
        "test_unseen_state.py::TestLogin::test_its_owner_goes_on_with_what_it_has_set_instead",
    ),
    _mutant(
        "a default does not follow where a trigger on login may set another",
        "sessions/cleaning.py",
        """
        may_begin_otherwise = plan.follow if of_login is None else of_login.may_set(plan.follow)
        """,
        """
        may_begin_otherwise = frozenset()
        """,
        "test_unseen_state.py::TestLogin::test_the_servers_default_follows_as_well",
    ),
    _mutant(
        "a session that has lost what a trigger on login leaves goes back",
        "sessions/login.py",
        """
        return not self.others and _values(connection).keys() >= self.settings
        """,
        """
        return _values(connection).keys() >= self.settings
        """,
        "test_unseen_state.py::TestLogin::test_a_session_that_would_lose_anything_else_is_closed",
    ),
    _mutant(
        "what was set when nobody remembered it is taken for set again",
        "sessions/login.py",
        """
        return not self.others and _values(connection).keys() >= self.settings
        """,
        """
        return not self.others
        """,
        "test_unseen_state.py::TestLogin::test_before_it_is_known_such_a_session_is_closed",
    ),
    _mutant(
        "a default is not missed where a trigger on login sets another",
        "leases/session_claim.py",
        """
        if of_login is not None and of_login.may_set(reset):
        """,
        """
        if False:
        """,
        "test_unseen_state.py::TestLogin::test_what_was_reset_is_lost_with_its_session",
    ),
    _mutant(
        "without a pool, a default does not follow where a trigger on login sets another",
        "pools/base.py",
        """
            plan = plan._replace(at_default=plan.at_default | of_login.may_set(plan.follow))
        """,
        """
            pass
        """,
        "test_unseen_state.py::TestLogin::test_so_it_does_without_a_pool",
    ),
    _mutant(
        "the pools of SQLAlchemy do not remember what a trigger on login has set",
        "pools/sqlalchemy.py",
        """
        login.remember(connection, known.of_login(wrapper.alias))
        """,
        """
        pass
        """,
        "test_sqlalchemy_pool.py::test_what_a_trigger_on_login_has_set_is_set_again",
    ),
    _mutant(
        "a pool does not remember what a trigger on login has set",
        "pools/configuring.py",
        """
            login.remember(connection, known.of_login(alias))
        """,
        """
            pass
        """,
        "test_unseen_state.py::TestLogin::test_what_it_sets_is_there_for_the_next",
    ),
]
