"""What one request does with its connections, in the order of time; for the panel of django-debug-toolbar.

A timeline is the :class:`~conn_hygiene.leases.usage.Timing` of its request: the leases tell it what they tell that, so
its sums are those of the ``Server-Timing`` header. Statements come from an execute wrapper (Django documentation,
"Database instrumentation"), which is put onto the wrappers that the request uses. Where there is no timeline, none of
this runs.

Who may touch what: everything under ``_mine``, a leaf.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conn_hygiene import events, locks
from conn_hygiene.leases import description, usage
from conn_hygiene.locks import Rank
from conn_hygiene.reports import hidden
from conn_hygiene.reports.hidden import Origin
from conn_hygiene.work import thread_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.events import Ending
    from conn_hygiene.leases.claim import Claim

_now = time.monotonic

#: How many entries are kept; what comes later is counted, and goes into the sums by line.
MOST_ENTRIES = 400
#: How many lines of code are kept.
MOST_LINES = 200
#: How finely a track is drawn at least, in parts of the whole.
PARTS = 1000

# How many segments a track may have before it is drawn by parts.
_MOST_SEGMENTS = 2 * PARTS
_NOWHERE = Origin(None, None, None)


@dataclass(slots=True)
class Entry:
    """Something that has happened. Times are seconds since the timeline began."""

    at: float
    what: str
    track: Track
    seconds: float | None = None
    origin: Origin = _NOWHERE
    #: As it was executed; or a text, for what is no statement.
    statement: Any = None
    note: str | None = None


@dataclass(slots=True)
class Segment:
    """A piece of a track: *end* is None while it lasts."""

    begin: float
    end: float | None
    what: str


@dataclass(slots=True)
class Track:
    """The connections of one alias in one thread, one after the other."""

    alias: str
    thread_id: int
    thread: str
    segments: list[Segment] = field(default_factory=list)
    held: int = 0
    used: int = 0
    checkouts: int = 0
    #: When the first was there; None before.
    first: float | None = None
    #: Of which checkout of its lease the last entry tells, and since when it is held.
    number: int = 0
    since: float = 0.0
    #: Whose line of code is that of the next statement.
    pending: list[Entry] = field(default_factory=list)
    coarse: bool = False

    def goes_on(self, now: float) -> None:
        """Begin another segment, if what is done with the connection has changed."""
        what = "used" if self.used > 0 else "idle" if self.held > 0 else None
        last = self.segments[-1] if self.segments else None
        if last is not None and last.end is None:
            if last.what == what:
                return
            last.end = now
        if what is not None:
            self.segments.append(Segment(now, None, what))
        if len(self.segments) > _MOST_SEGMENTS:
            self.segments = coarsely(self.segments, now)
            self.coarse = True


class Timeline(usage.Timing):
    """What one request does with its connections, from now until :meth:`finish`; to be put into ``usage.current``."""

    __slots__ = (
        "_began",
        "_end",
        "_entries",
        "_left_out",
        "_lines",
        "_mine",
        "_task",
        "_tracks",
        "_wrappers",
        "body",
    )

    def __init__(self, around: usage.Timing | None = None) -> None:
        super().__init__(around)
        self._mine = locks.make(Rank.LEAF)
        self._began = _now()
        self._end: float | None = None
        self._tracks: dict[tuple[str, int], Track] = {}
        self._entries: list[Entry] = []
        self._left_out = 0
        self._lines: dict[Origin, list[Any]] = {}
        self._wrappers: list[tuple[int, Claim, _Statements]] = []
        self._task = _current_task()
        #: The body that the response has yet to send, once there is one.
        self.body: Any = None
        _open.append(self)
        for kind in (events.Pinned, events.Replaced, events.Followed):
            events.listen(kind, _heard)

    @property
    def is_told(self) -> bool:
        """Whether somebody around tells the browser of the request; it is told of nothing by this."""
        return self.around is not None and self.around.is_told

    @property
    def is_over(self) -> bool:
        """Whether :meth:`finish` was called."""
        return self._end is not None

    def finish(self) -> None:
        """Take note of nothing more: the request is over."""
        with contextlib.suppress(ValueError):
            _open.remove(self)
        with self._mine:
            if self._end is not None:
                return
            self._end = _now() - self._began
            for track in self._tracks.values():
                if track.segments and track.segments[-1].end is None:
                    track.segments[-1].end = self._end
            wrappers, self._wrappers = self._wrappers, []
        for thread_id, lease, statements in wrappers:
            wrapper = lease.wrapper()
            # In another thread its owner may be looking at the list; it takes it off at its next statement.
            if wrapper is not None and thread_id == threading.get_ident():
                statements.leave(wrapper)

    # ##### What the leases tell #####

    def change(
        self, lease: Claim, *, held: int = 0, used: int = 0, ending: Ending | None = None, now: float | None = None
    ) -> None:
        """Take note of it, and have the statements told as well."""
        if now is None:
            now = _now()
        super().change(lease, held=held, used=used, ending=ending, now=now)
        if self._end is not None:
            return
        with self._mine:
            now -= self._began
            track = self._track(lease.alias, lease.thread_id)
            track.held += held
            track.used += used
            if held > 0 and track.number != lease.checkouts:
                self._checked_out(track, lease, now)
            elif held < 0 and ending is not None:
                self._checked_in(track, lease, now, ending)
            track.goes_on(now)
        if held > 0 and lease.thread_id == threading.get_ident():
            self._watch(lease)

    def _checked_out(self, track: Track, lease: Claim, now: float) -> None:
        track.number, track.since = lease.checkouts, now
        if track.first is None:
            track.first = now
        # The lease's clock is ours.
        was_open = lease.checked_out_at < self._began
        track.checkouts += not was_open
        place = lease.checked_out_by
        origin = _NOWHERE if place is None or was_open else Origin(hidden.short(str(place)), None, None)
        self._put_off(Entry(now, "found open" if was_open else "checked out", track, None, origin))

    def _checked_in(self, track: Track, lease: Claim, now: float, ending: Ending) -> None:
        what = {"release": "given back", "close": "closed", "reclaim": "reclaimed", "uninstall": "left alone"}[ending]
        self._add(Entry(now, what, track, now - track.since, note="held for that long"))

    def waited(self, seconds: float, alias: str, *, in_vain: bool = False) -> None:
        """Take note of it."""
        super().waited(seconds, alias, in_vain=in_vain)
        if self._end is not None:
            return
        # Where it was not in vain, this runs under the lock of a lease, where nothing foreign may be asked.
        origin = self._origin() if in_vain else _NOWHERE
        with self._mine:
            now = self._time()
            track = self._track(alias, threading.get_ident())
            begin = max(now - seconds, 0.0)
            track.segments.append(Segment(begin, now, "waited"))
            if in_vain:
                self._add(Entry(begin, "waited in vain", track, seconds, origin))
            else:
                self._put_off(Entry(begin, "waited", track, seconds))

    # ##### What else is told #####

    def executed(self, alias: str, statement: Any, began: float, *, failed: bool) -> None:
        """Take note of a statement that has run in this thread since *began*, on the monotonic clock."""
        if self._end is not None:
            return
        origin = self._origin()
        with self._mine:
            now = self._time()
            track = self._track(alias, threading.get_ident())
            at, seconds = began - self._began, now - (began - self._began)
            line = self._line(origin)
            line[0] += 1
            line[1] += seconds
            for each in track.pending:
                each.origin = origin
                line[2] += each.what == "checked out"
            track.pending.clear()
            self._add(Entry(at, "failed" if failed else "query", track, seconds, origin, statement))

    def heard(self, event: events.Pinned | events.Replaced | events.Followed) -> None:
        """Take note of *event*, which is of a connection of this request."""
        if self._end is not None:
            return
        with self._mine:
            track = self._track(event.alias, event.thread_id)
            entry = Entry(self._time(), type(event).__name__.lower(), track)
            if isinstance(event, events.Pinned):
                entry.note, entry.origin = event.pinned_by, Origin(hidden.short(event.where), None, None)
            elif isinstance(event, events.Followed):
                entry.note = ", ".join(event.settings)
            else:
                why = "it could not write any more" if event.could_not_write else "the server had closed it"
                entry.note = f"{why}, {event.idle_for:.1f} s idle"
            self._add(entry)

    def holds(self, alias: str, thread_id: int) -> bool:
        """Return whether the request holds a connection of *alias* in that thread."""
        with self._mine:
            track = self._tracks.get((alias, thread_id))
            return track is not None and track.held > 0

    # ##### Parts #####

    def _time(self) -> float:
        return _now() - self._began

    def _origin(self) -> Origin:
        found = _NOWHERE
        # Nodes and templates may be anybody's, and the request must not fail because of them.
        with contextlib.suppress(Exception):
            found = hidden.origin(self._task if self.body is None else self.body)
            if self.body is not None and found.hidden is None:
                found = found._replace(hidden="streaming body")
        return found

    def _track(self, alias: str, thread_id: int) -> Track:
        track = self._tracks.get((alias, thread_id))
        if track is None:
            name = thread_names().get(thread_id, str(thread_id))
            track = self._tracks[alias, thread_id] = Track(alias, thread_id, name)
        return track

    def _line(self, origin: Origin) -> list[Any]:
        if origin not in self._lines and len(self._lines) >= MOST_LINES:
            origin = Origin("other lines", None, None)
        return self._lines.setdefault(origin, [0, 0.0, 0])

    def _add(self, entry: Entry) -> None:
        if len(self._entries) < MOST_ENTRIES:
            self._entries.append(entry)
        else:
            self._left_out += 1

    def _put_off(self, entry: Entry) -> None:
        """Add *entry*, whose line of code the next statement of its track will know."""
        entry.track.pending.append(entry)
        self._add(entry)

    def _watch(self, lease: Claim) -> None:
        """Have the statements of the wrapper of *lease* told to this timeline. Owner only."""
        wrapper = lease.wrapper()
        if wrapper is None:
            return
        found = [each for each in wrapper.execute_wrappers if isinstance(each, _Statements)]
        for each in found:
            each.leave_if_over(wrapper)
        if not any(each.is_of(self) for each in found):
            statements = _Statements(self)
            # At the front: whoever leaves an execute_wrapper() pops the last one.
            wrapper.execute_wrappers.insert(0, statements)
            with self._mine:
                self._wrappers.append((lease.thread_id, lease, statements))

    # ##### What is shown #####

    def told(self) -> dict[str, Any]:
        """Return what has happened until now, or until the end, as numbers, texts, lists and dictionaries of those.

        Seconds are those since the beginning. Statements are told as ``LOG_STATEMENTS`` says.
        """
        waited, held, used = self.read()
        with self._mine:
            end = self._time() if self._end is None else self._end
            tracks = list(self._tracks.values())
            entries = list(self._entries)
            lines = [(origin, *numbers) for origin, numbers in self._lines.items()]
            shown = [self._told_track(track, end) for track in tracks]
            left_out = self._left_out
        threads = Counter(track.alias for track in tracks)
        return {
            "seconds": end,
            "waited": waited,
            "held": held,
            "used": used,
            # From the first query of each thread to the end, as Django's own wrappers have it.
            "plain": sum(end - track.first for track in tracks if track.first is not None),
            "checkouts": sum(track.checkouts for track in tracks),
            "queries": sum(line[1] for line in lines),
            "hidden": sum(line[1] for line in lines if line[0].hidden),
            "tracks": shown,
            "entries": [
                _told_entry(entry, several=threads[entry.track.alias] > 1)
                for entry in sorted(entries, key=lambda each: each.at)
            ],
            "left_out": left_out,
            "lines": [
                {**origin.told(), "queries": queries, "seconds": seconds, "checkouts": checkouts}
                for origin, queries, seconds, checkouts in sorted(lines, key=lambda line: (-line[2], -line[1]))
            ],
        }

    def _told_track(self, track: Track, end: float) -> dict[str, Any]:
        segments = [Segment(each.begin, end if each.end is None else each.end, each.what) for each in track.segments]
        coarse = track.coarse or len(segments) > PARTS
        return {
            "alias": track.alias,
            "thread": track.thread,
            "first": track.first,
            "checkouts": track.checkouts,
            "coarse": coarse,
            "segments": [
                [each.begin, each.end, each.what] for each in (coarsely(segments, end) if coarse else segments)
            ],
        }


def coarsely(segments: list[Segment], end: float) -> list[Segment]:
    """Return *segments*, those of a track until *end*, as at most ``PARTS`` ones: each part has what it mostly was."""
    step = end / PARTS or 1.0
    sums: list[Counter[str]] = [Counter() for _ in range(PARTS)]
    for each in segments:
        _spread(each, each.end if each.end is not None else end, sums, step)
    drawn: list[Segment] = []
    for part, found in enumerate(sums):
        what = max(found, key=lambda each: found[each]) if found else None
        # Of a part that is mostly empty, the rest is as much as it is.
        if what is None or sum(found.values()) < step / 2:
            continue
        begin = part * step
        end_of_part = (part + 1) * step
        if drawn and drawn[-1].what == what and drawn[-1].end == begin:
            drawn[-1].end = end_of_part
        else:
            drawn.append(Segment(begin, end_of_part, what))
    return drawn


def _spread(segment: Segment, end: float, sums: list[Counter[str]], step: float) -> None:
    part = min(int(segment.begin / step), PARTS - 1)
    while part < PARTS and part * step < end:
        overlap = min(end, (part + 1) * step) - max(segment.begin, part * step)
        if overlap > 0:
            sums[part][segment.what] += overlap  # type: ignore[assignment]
        part += 1


def _told_entry(entry: Entry, *, several: bool) -> dict[str, Any]:
    statement = None if entry.statement is None else description.reportable(entry.statement)
    return {
        "at": entry.at,
        "what": entry.what,
        "alias": entry.track.alias,
        "thread": entry.track.thread if several else None,
        "seconds": entry.seconds,
        **entry.origin.told(),
        "statement": statement,
        "note": entry.note,
    }


class _Statements:
    """One of a wrapper's ``execute_wrappers``: tells the timeline of what is executed in its request."""

    __slots__ = ("_timeline",)

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Have the statement executed, and its time told."""
        # The list has been read for this statement, so it may change.
        self.leave_if_over(context["connection"])
        if not _is_inside(self._timeline):
            return execute(sql, params, many, context)
        began, failed = _now(), True
        try:
            result = execute(sql, params, many, context)
            failed = False
            return result
        finally:
            self._timeline.executed(context["connection"].alias, sql, began, failed=failed)

    def is_of(self, timeline: Timeline) -> bool:
        """Return whether it is *timeline* that is told."""
        return self._timeline is timeline

    def leave_if_over(self, wrapper: BaseDatabaseWrapper) -> None:
        """Be on *wrapper* no longer if nobody listens any more. Owner only."""
        if self._timeline.is_over:
            self.leave(wrapper)

    def leave(self, wrapper: BaseDatabaseWrapper) -> None:
        """Be on *wrapper* no longer. Owner only."""
        if self in wrapper.execute_wrappers:
            wrapper.execute_wrappers.remove(self)


def _is_inside(timeline: Timeline) -> bool:
    """Return whether the running code belongs to the request of *timeline*."""
    found = usage.current.get()
    while found is not None and found is not timeline:
        found = found.around
    return found is timeline


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        # No event loop in this thread.
        return None


# The timelines of requests that are being served. Each call to the list is one step to Python.
_open: list[Timeline] = []


def _heard(event: Any) -> None:
    """Pass *event* on to the timeline of the request whose connection it is."""
    if event.thread_id == threading.get_ident():
        found = usage.current.get()
        while found is not None:
            if isinstance(found, Timeline):
                found.heard(event)
            found = found.around
        return
    # One of the toolkit's threads has found it.
    for timeline in list(_open):
        if timeline.holds(event.alias, event.thread_id):
            timeline.heard(event)
