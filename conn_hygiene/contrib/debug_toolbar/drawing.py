"""A timeline as it was stored, for the template to draw: all texts made, so that no locale turns a point to a comma."""

from __future__ import annotations

from typing import Any

# Of the pictures, in pixels of CSS; along the time everything is in parts of the width.
_BAR = 16
# What is shorter would not be seen, in percent.
_THINNEST = 0.2
_TICKS = 4

# By height as well as by colour, for those who do not tell colours apart: its part of the bar.
_HEIGHTS = {"waited": 1.0, "used": 1.0, "idle": 0.5}
# Each has a contrast of at least three to both backgrounds of the toolbar, white and #121212.
COLOURS = {"waited": "#cf4640", "used": "#2f7fd1", "idle": "#b8740f", "hidden": "#b04fc4"}

_LETTERS = {"pinned": "P", "followed": "F"}
# What is marked below the bar.
_MARKED = ("query", "failed", *_LETTERS)


def subtitle(stats: dict[str, Any]) -> str:
    """Return what stands below the panel's name in the toolbar."""
    if not stats["tracks"]:
        return "none used"
    hidden = f", {stats['hidden']} hidden" if stats["hidden"] else ""
    checkouts = _counted(stats["checkouts"], "checkout")
    return f"held {_whole(stats['held'])} of {_whole(stats['seconds'])}, {checkouts}{hidden}"


def drawn(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the template's context for *stats*, which are what ``Timeline.told()`` has returned."""
    if not stats.get("tracks"):
        return {"tracks": []}
    end = stats["seconds"] or 1e-9
    threads = len({track["alias"] for track in stats["tracks"]}) < len(stats["tracks"])
    return {
        **{key: _ms(stats[key]) for key in ("seconds", "waited", "held", "used")},
        "plain": _ms(stats["plain"]),
        "checkouts": _counted(stats["checkouts"], "checkout"),
        "queries": _counted(stats["queries"], "query", "queries"),
        "hidden": _counted(stats["hidden"], "query", "queries") if stats["hidden"] else "",
        "colours": COLOURS,
        "tracks": [_track(track, stats["entries"], end, threads=threads) for track in stats["tracks"]],
        "ticks": [_tick(part, end) for part in range(_TICKS + 1)],
        "entries": [_entry(entry) for entry in stats["entries"]],
        "left_out": stats["left_out"],
        "lines": [{**line, "seconds": _ms(line["seconds"])} for line in stats["lines"]],
        "coarse": any(track["coarse"] for track in stats["tracks"]),
    }


def _track(track: dict[str, Any], entries: list[dict[str, Any]], end: float, *, threads: bool) -> dict[str, Any]:
    first = track["first"]
    marks = [
        _mark(entry, end)
        for entry in entries
        if entry["what"] in _MARKED and entry["alias"] == track["alias"] and entry["thread"] in (None, track["thread"])
    ]
    return {
        # With or without the letters.
        "height": 50 if any(mark["letter"] for mark in marks) else 38,
        "label": f"{track['alias']}, {track['thread']}" if threads else track["alias"],
        "checkouts": _counted(track["checkouts"], "checkout"),
        "segments": [_segment(begin, stop, what, end) for begin, stop, what in track["segments"]],
        "plain": None if first is None else {"x": _percent(first, end), "width": _percent(end - first, end)},
        "marks": marks,
    }


def _mark(entry: dict[str, Any], end: float) -> dict[str, Any]:
    return {
        "x": _percent(entry["at"], end),
        "width": _wide(entry["seconds"] or 0.0, end),
        "letter": _LETTERS.get(entry["what"]),
        "hidden": entry["hidden"],
    }


def _segment(begin: float, stop: float, what: str, end: float) -> dict[str, Any]:
    height = _BAR * _HEIGHTS[what]
    return {
        "x": _percent(begin, end),
        "width": _wide(stop - begin, end),
        "height": f"{height:g}",
        # Below the label, in the middle of the bar.
        "y": f"{22 + (_BAR - height) / 2:g}",
        "fill": COLOURS[what],
    }


def _tick(part: int, end: float) -> dict[str, str]:
    anchor = "start" if part == 0 else "end" if part == _TICKS else "middle"
    return {"x": f"{part * 100 / _TICKS:g}%", "anchor": anchor, "text": _ms(end * part / _TICKS)}


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    alias = entry["alias"] if entry["thread"] is None else f"{entry['alias']}, {entry['thread']}"
    seconds = entry["seconds"]
    return {**entry, "alias": alias, "at": _ms(entry["at"]), "seconds": "" if seconds is None else _ms(seconds)}


def _percent(seconds: float, end: float) -> str:
    return f"{min(max(seconds / end, 0.0), 1.0) * 100:.3f}%"


def _wide(seconds: float, end: float) -> str:
    return f"{max(seconds / end * 100, _THINNEST):.3f}%"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}\N{NO-BREAK SPACE}ms"


def _whole(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
