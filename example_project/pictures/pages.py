"""What the pages show, drawn from what was seen of the runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from example_project.pictures.runs import CALL, QUERY, REQUESTS
from example_project.pictures.svg import THEMES, Sheet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from example_project.pictures.svg import Theme

Seen = list[dict[str, Any]]

WIDTH = 800


@dataclass
class Checkout:
    """A connection that somebody has, from then to then."""

    pid: int
    asked: float
    began: float
    ended: float = 0.0
    reason: str = ""


@dataclass
class Request:
    """What was seen of one request: spans of seconds."""

    span: tuple[float, float] = (0.0, 0.0)
    checkouts: list[Checkout] = field(default_factory=list)
    queries: list[tuple[float, float]] = field(default_factory=list)
    calls: list[tuple[float, float]] = field(default_factory=list)
    transactions: list[tuple[float, float]] = field(default_factory=list)


def requests_of(seen: Seen) -> dict[int, Request]:
    """Return the requests by number."""
    found: dict[int, Request] = {}
    for line in seen:
        if line.get("request") is None:
            continue
        request = found.setdefault(line["request"], Request())
        if line["kind"] == "out":
            request.checkouts.append(Checkout(line["pid"], line["at"] - line["waited"], line["at"]))
        elif line["kind"] == "in":
            request.checkouts[-1].ended, request.checkouts[-1].reason = line["at"], line["reason"]
        elif line["kind"] == "request":
            request.span = (line["began"], line["at"])
        elif line["kind"] in {"query", "call", "transaction"}:
            spans = {"query": request.queries, "call": request.calls, "transaction": request.transactions}
            spans[line["kind"]].append((line["began"], line["at"]))
    return dict(sorted(found.items()))


def letters(seen: Seen) -> dict[int, int]:
    """Return a number from 0 on for each session, in the order in which they were first had: A, B, ..."""
    return {pid: number for number, pid in enumerate(dict.fromkeys(line["pid"] for line in seen if "pid" in line))}


def letter(number: int) -> str:
    return "ABCDEFGH"[number]


@dataclass(frozen=True)
class Scale:
    """Where on the sheet a moment is."""

    left: float
    right: float
    seconds: float

    def __call__(self, at: float) -> float:
        return self.left + (self.right - self.left) * at / self.seconds


# ##### Eight requests over two connections #####


def crowd(runs: dict[str, Seen], theme: Theme) -> Sheet:
    plain, toolkit = (in_turn(requests_of(runs[f"crowd-{key}"])) for key in ("plain", "toolkit"))
    last = {key: max(each.span[1] for each in seen.values()) for key, seen in (("plain", plain), ("toolkit", toolkit))}
    sheet = Sheet(
        theme,
        WIDTH,
        468,
        "Eight requests over two connections, without the toolkit and with it",
        f"A timeline of two runs. Each request queries for {QUERY * 1000:.0f} ms, waits {CALL * 1000:.0f} ms for "
        "somebody else's API, and queries again. Plain Django holds a connection from a request's first query to its "
        "end: two requests run at a time, the others wait, and the last is answered after "
        f"{last['plain']:.2f} seconds. With the toolkit each connection goes back while its request waits for the API: "
        f"all eight wait at the same time, and the last is answered after {last['toolkit']:.2f} seconds.",
    )
    scale = Scale(96, WIDTH - 20, last["plain"] * 1.01)
    sheet.text(20, 28, "Eight requests over two connections", size=17, bold=True)
    sheet.text(
        20, 47, f"Each queries, waits {CALL * 1000:.0f} ms for somebody else's API, and queries again.", ink=theme.quiet
    )
    top = panel(sheet, scale, 78, "Plain Django holds", plain, letters(runs["crowd-plain"]))
    words = f"all answered after {last['plain']:.2f} s"
    sheet.text(scale.right, 78, words, anchor="end", ink=theme.ink, bold=True)
    upper = top + 30
    panel(sheet, scale, upper, "conn_hygiene gives back between queries", toolkit, letters(runs["crowd-toolkit"]))
    middle = scale(last["toolkit"])
    words = f"all answered after {last['toolkit']:.2f} s"
    sheet.text(middle + 14, upper + 75, words, ink=theme.good, size=16, bold=True)
    sheet.text(middle + 14, upper + 95, "Nobody has a connection while it waits for the API.", ink=theme.quiet)
    legend(sheet, 450)
    return sheet


def in_turn(requests: dict[int, Request]) -> dict[int, Request]:
    """Return the requests numbered anew, by when each has got its first connection: they all come at the same time."""
    return dict(enumerate(sorted(requests.values(), key=lambda request: request.checkouts[0].began), 1))


ROW, BAR = 16, 11


def panel(
    sheet: Sheet, scale: Scale, y: float, title: str, requests: dict[int, Request], pids: dict[int, int]
) -> float:
    """Draw a row for each request and return where the panel ends."""
    sheet.text(20, y, title, size=14, bold=True)
    top = y + 10
    axis(sheet, scale, top, top + ROW * REQUESTS)
    for number, request in requests.items():
        row = top + ROW * (number - 1) + 2
        sheet.text(scale.left - 8, row + 10, f"request {number}", size=11, anchor="end", ink=sheet.theme.quiet)
        draw_request(sheet, scale, row, request, pids)
    return top + ROW * REQUESTS + 18


def axis(sheet: Sheet, scale: Scale, top: float, bottom: float, step: float = 0.2) -> None:
    moment = 0.0
    while moment <= scale.seconds + 1e-9:
        sheet.line(scale(moment), top, scale(moment), bottom, ink=sheet.theme.line)
        label = f"{moment:.1f} s" if step >= 0.1 else f"{moment * 1000:.0f} ms"
        sheet.text(scale(moment), bottom + 13, label, size=10, anchor="middle", ink=sheet.theme.quiet)
        moment = round(moment + step, 6)


def draw_request(
    sheet: Sheet, scale: Scale, y: float, request: Request, pids: dict[int, int], bar: float = BAR
) -> None:
    """Draw what a request has: nothing, a wait, a connection, and what it does with it."""
    middle = y + bar / 2
    began, ended = request.span
    sheet.line(scale(began), middle, scale(ended), middle, ink=sheet.theme.quiet, width=1.4)
    for checkout in request.checkouts:
        if scale(checkout.began) - scale(checkout.asked) > 2:
            wait(sheet, scale(checkout.asked), scale(checkout.began), middle)
        number = pids[checkout.pid]
        x, width = scale(checkout.began), scale(checkout.ended) - scale(checkout.began)
        sheet.rectangle(x, y, width, bar, fill=sheet.theme.paper)
        sheet.held(x, y, width, bar, number)
    for first, second in request.queries:
        number = next(pids[each.pid] for each in request.checkouts if each.began - 0.001 <= first <= each.ended)
        sheet.used(scale(first), y, scale(second) - scale(first), bar, number)
    for checkout in request.checkouts:
        x, to_x = longest_rest(scale, checkout, request)
        if to_x - x > 24:
            label(sheet, (x + to_x) / 2, y + bar / 2 + 3.5, letter(pids[checkout.pid]))
    sheet.line(scale(ended), y - 1, scale(ended), y + bar + 1, ink=sheet.theme.ink, width=2)


def longest_rest(scale: Scale, checkout: Checkout, request: Request) -> tuple[float, float]:
    """Return from where to where a connection is held for the longest without a query."""
    own = [(began, ended) for began, ended in request.queries if checkout.began - 0.001 <= began <= checkout.ended]
    ends = [*(began for began, _ in own[1:]), checkout.ended]
    return max(
        ((scale(ended), scale(following)) for (_, ended), following in zip(own, ends, strict=True)),
        key=lambda rest: rest[1] - rest[0],
    )


def wait(sheet: Sheet, x: float, to_x: float, middle: float) -> None:
    # What is below it, the line of the request, must not be seen between the dots.
    sheet.line(x, middle, to_x, middle, ink=sheet.theme.paper, width=3)
    sheet.line(x, middle, to_x, middle, ink=sheet.theme.quiet, width=2, dashes="1.5 4")


def label(sheet: Sheet, x: float, y: float, text: str) -> None:
    """Write on a ground of the paper's colour."""
    width = sheet.width_of(text, 10) + 6
    sheet.rectangle(x - width / 2, y - 9, width, 11, fill=sheet.theme.paper)
    sheet.text(x, y, text, size=10, anchor="middle", bold=True)


def legend(sheet: Sheet, y: float, *, waits: bool = True, without: str = "no connection") -> None:
    x = 20.0
    parts: list[tuple[str, Callable[[float], None]]] = [
        ("a connection in use", lambda x: sheet.used(x, y - 10, 26, BAR, 0)),
        ("held, and idle", lambda x: sheet.held(x, y - 10, 26, BAR, 0)),
        (without, lambda x: sheet.line(x, y - 4.5, x + 26, y - 4.5, width=1.4)),
        ("waits for a connection", lambda x: wait(sheet, x, x + 26, y - 4.5)),
        ("answered", lambda x: sheet.line(x + 20, y - 11, x + 20, y + 2, ink=sheet.theme.ink, width=2)),
    ]
    for text, draw in parts:
        if text.startswith("waits") and not waits:
            continue
        draw(x)
        sheet.text(x + 32, y, text, size=11, ink=sheet.theme.quiet)
        x += 32 + sheet.width_of(text, 11) + 20


# ##### A lease #####


def lease(runs: dict[str, Seen], theme: Theme) -> Sheet:
    seen = runs["lease"]
    requests, pids = requests_of(seen), letters(seen)
    first = requests[1]
    begins, again = first.checkouts
    transaction = first.transactions[0]
    parked = next(ended for _, ended in reversed(first.queries) if ended <= begins.ended)
    names = letter(pids[begins.pid]), letter(pids[again.pid])
    points = [
        (begins.began, f"The first query checks connection {names[0]} out."),
        (parked, "Nothing runs: the lease is parked. A query would simply take the connection back."),
        (begins.ended, f"The grace is over: {names[0]} goes back, and request 3 gets it. Request 1 has none."),
        (again.began, f"The next query checks one out again, which is {names[1]}. The code cannot tell."),
        (transaction[0] + 0.003, "In a transaction the connection stays, idle or not."),
        (again.ended, "The request ends, and so does its lease."),
    ]
    sheet = Sheet(
        theme,
        WIDTH,
        400,
        "A lease, from the first query to the end of the request",
        "A timeline of a run. " + " ".join(f"{number}. {text}" for number, (_, text) in enumerate(points, 1)),
    )
    scale = Scale(120, WIDTH - 20, first.span[1] * 1.04)
    sheet.text(20, 28, "The life of a lease", size=17, bold=True)
    axis(sheet, scale, 48, 208, 0.05)
    name(sheet, scale, 73, "request 1 does")
    for began, ended in first.calls:
        bracket(sheet, scale(began), scale(ended), 69, "waits for an API")
    for began, ended in first.queries:
        sheet.rectangle(scale(began), 62, scale(ended) - scale(began), 14, fill=theme.ink)
        if scale(ended) - scale(began) > 30:
            sheet.text((scale(began) + scale(ended)) / 2, 73, "query", size=10, anchor="middle", ink=theme.paper)
    x, to_x = scale(transaction[0]), scale(transaction[1])
    sheet.line(x, 81, to_x, 81, width=1.4)
    sheet.text((x + to_x) / 2, 93, "transaction", size=10, anchor="middle", ink=theme.quiet)
    name(sheet, scale, 119, "has")
    draw_request(sheet, scale, 106, first, pids, 16)
    for number in (0, 1):
        name(sheet, scale, 168 + 24 * number, f"connection {letter(number)}")
        owners(sheet, scale, 156 + 24 * number, requests, pids, number)
    for number, (at, text) in enumerate(points, 1):
        sheet.line(scale(at), 122, scale(at), 132, ink=theme.ink)
        badge(sheet, scale(at), 138, number)
        told(sheet, 30, 246 + 20 * (number - 1), number, text)
    legend(sheet, 384, waits=False)
    return sheet


def name(sheet: Sheet, scale: Scale, y: float, text: str) -> None:
    """Write whose row it is."""
    sheet.text(scale.left - 8, y, text, size=11, anchor="end", ink=sheet.theme.quiet)


def bracket(sheet: Sheet, x: float, to_x: float, y: float, text: str) -> None:
    sheet.line(x, y, to_x, y, width=1.4)
    if to_x - x > sheet.width_of(text, 10) + 12:
        label(sheet, (x + to_x) / 2, y + 3.5, text)


def badge(sheet: Sheet, x: float, y: float, number: int) -> None:
    """Draw a number that a line of text below explains."""
    sheet.parts.append(f'<circle cx="{x:.1f}" cy="{y:g}" r="7.5" fill="{sheet.theme.ink}"/>')
    sheet.text(x, y + 3.7, str(number), size=10, anchor="middle", ink=sheet.theme.paper, bold=True)


def told(sheet: Sheet, x: float, y: float, number: int, text: str) -> None:
    badge(sheet, x, y - 4, number)
    sheet.text(x + 16, y, text, size=12)


def owners(
    sheet: Sheet, scale: Scale, y: float, requests: dict[int, Request], pids: dict[int, int], number: int
) -> None:
    """Draw who has a connection, and the pool's line in between."""
    sheet.line(scale.left, y + 8, scale.right, y + 8, ink=sheet.theme.line, width=1.4)
    for owner, request in requests.items():
        for checkout in request.checkouts:
            if pids[checkout.pid] == number:
                x, width = scale(checkout.began), scale(checkout.ended) - scale(checkout.began)
                sheet.rectangle(x, y, width, 16, fill=sheet.theme.paper)
                sheet.rectangle(x, y, width, 16, fill=sheet.theme.connections[number], opacity=0.3)
                text = f"request {owner}" if width > 60 else str(owner)
                sheet.text(x + width / 2, y + 12, text, size=10, anchor="middle")


# ##### Forks #####


def forks(runs: dict[str, Seen], theme: Theme) -> Sheet:
    seen = runs["forks"]
    children = ["first child", "second child"]
    opened = next(line["pids"] for line in seen if line["kind"] == "opened")
    own = {line["process"]: line["pid"] for line in seen if line["kind"] == "query" and "process" in line}
    opened.sort(key=lambda pid: pid != own["parent"])
    pids = {pid: number for number, pid in enumerate([*opened, *(own[child] for child in children)])}
    at = {(line["kind"], line["process"]): line["at"] for line in seen if line["kind"] in {"fork", "discarded", "end"}}
    count = next(line["count"] for line in seen if line["kind"] == "discarded")
    checked_out = {line["pid"]: line["at"] for line in seen if line["kind"] == "out"}
    sheet = Sheet(
        theme,
        WIDTH,
        352,
        "A process with two connections forks twice",
        "A timeline of a run. The parent has connections A, in use, and B, idle in its pool. Each child inherits both "
        f"sockets, and discards the {count} before any other code runs in it, without a byte to the server. Its first "
        "query opens a connection of its own: C and D. The parent goes on with A.",
    )
    scale = Scale(150, WIDTH - 20, at["end", "parent"] * 1.03)
    sheet.text(20, 28, "Who has which session, after a fork", size=17, bold=True)
    axis(sheet, scale, 44, 286, 0.05)

    def session(y: float, pid: int, began: float, ended: float) -> None:
        x, to_x = scale(began), scale(ended)
        sheet.rectangle(x, y, to_x - x, 14, fill=theme.paper)
        sheet.held(x, y, to_x - x, 14, pids[pid])
        for line in seen:
            if line["kind"] == "query" and line.get("pid") == pid:
                sheet.used(scale(line["began"]), y, scale(line["at"]) - scale(line["began"]), 14, pids[pid])
        label(sheet, x + 22 if began else x + 60, y + 11, letter(pids[pid]))

    name(sheet, scale, 63, "parent, in use")
    session(52, opened[0], 0, at["end", "parent"])
    name(sheet, scale, 85, "parent, in its pool")
    session(74, opened[1], 0, at["end", "parent"])
    for number, child in enumerate(children):
        x = scale(at["fork", child])
        sheet.line(x, 52, x, 154 + 86 * number, ink=theme.ink, dashes="3 3")
    for number, child in enumerate(children):
        top = 118 + 86 * number
        x, to_x = scale(at["fork", child]), scale(at["discarded", child])
        on_paper(sheet, x + 5, top - 8, f"fork: the {child} inherits both sockets", bold=True)
        for row, pid in enumerate(opened):
            y = top + 18 * row
            name(sheet, scale, y + 11, f"{child}, inherited")
            colour = theme.connections[pids[pid]]
            sheet.parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{to_x - x:.1f}" height="14" fill="{theme.paper}" stroke="{colour}" '
                'stroke-dasharray="3 2"/>'
            )
            sheet.text(x + 5, y + 11, letter(pids[pid]), size=10, bold=True)
            sheet.cross(to_x + 7, y + 7, 4, theme.ink)
        on_paper(sheet, to_x + 16, top + 20, "discarded, without a byte to the server")
        y = top + 40
        name(sheet, scale, y + 11, f"{child}, its own")
        session(y, own[child], checked_out[own[child]], at["end", child])
        ends = scale(at["end", child])
        sheet.line(ends, y - 2, ends, y + 16, ink=theme.ink, width=2)
        sheet.text(ends + 6, y + 11, "ends", size=11, ink=theme.quiet)
    x = 20.0
    for text, draw_it in (
        ("a session in use", lambda x: sheet.used(x, 326, 26, 12, 0)),
        ("open, and idle", lambda x: sheet.held(x, 326, 26, 12, 0)),
    ):
        draw_it(x)
        sheet.text(x + 32, 336, text, size=11, ink=theme.quiet)
        x += 32 + sheet.width_of(text, 11) + 20
    sheet.text(x, 336, "No session is ever used by two processes.", size=12, bold=True)
    return sheet


def on_paper(sheet: Sheet, x: float, y: float, text: str, *, bold: bool = False) -> None:
    """Write over what is there."""
    sheet.rectangle(x, y - 10, sheet.width_of(text, 11) + 6, 14, fill=sheet.theme.paper)
    sheet.text(x + 2, y, text, size=11, bold=bold, ink="" if bold else sheet.theme.quiet)


# ##### What follows a request #####


def following(runs: dict[str, Seen], theme: Theme) -> Sheet:
    seen = runs["following"]
    requests, pids = requests_of(seen), letters(seen)
    answers = [line for line in seen if line["kind"] == "answer"]
    statements = [
        line for line in seen if line["kind"] == "statement" and "app.tenant_id" in line["sql"].replace('"', "")
    ]
    lines = [statement_told(line, requests, answers, pids) for line in statements]
    sheet = Sheet(
        theme,
        WIDTH,
        226 + 21 * len(lines),
        "What a request has set follows it to another session",
        "A timeline of a run, with the statements of the server's log. "
        + " ".join(f"{number}. {who}: {sql}" for number, (who, sql) in enumerate(lines, 1)),
    )
    scale = Scale(120, WIDTH - 20, max(request.span[1] for request in requests.values()) * 1.04)
    sheet.text(20, 28, "A setting follows its request, and nobody else sees it", size=17, bold=True)
    axis(sheet, scale, 48, 158, 0.05)
    name(sheet, scale, 68, "request 1 has")
    draw_request(sheet, scale, 56, requests[1], pids, 16)
    for number in (0, 1):
        name(sheet, scale, 108 + 34 * number, f"session {letter(number)}")
        owners(sheet, scale, 96 + 34 * number, requests, pids, number)
    placed: dict[int, float] = {}
    for number, line in enumerate(statements, 1):
        lane = pids[line["pid"]]
        x = max(scale(line["at"]), placed.get(lane, 0) + 17)
        placed[lane] = x
        badge(sheet, x, 91 + 34 * lane, number)
    for number, (who, sql) in enumerate(lines, 1):
        y = 206 + 21 * (number - 1)
        badge(sheet, 28, y - 4, number)
        sheet.text(44, y, who, size=12, bold="toolkit" in who)
        sheet.parts.append(
            f'<text x="206" y="{y}" fill="{theme.ink}" font-size="11" '
            f"font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\">{escape(sql, quote=False)}</text>"
        )
    legend(sheet, 212 + 21 * len(lines), waits=False)
    return sheet


def statement_told(
    line: dict[str, Any], requests: dict[int, Request], answers: list[dict[str, Any]], pids: dict[int, int]
) -> tuple[str, str]:
    """Return who has sent a statement, and what it says and brings."""
    where = f", on {letter(pids[line['pid']])}"
    sql = line["sql"].replace("pg_catalog.", "").replace('"', "")
    if "pg_catalog" in line["sql"] or sql.startswith("RESET"):
        # The same again, to see what is left.
        return f"the toolkit{where}", "; ".join(dict.fromkeys(sql.split("; ")))
    if "set_config" in sql:
        return f"request 1{where}", sql
    answer = next(each for each in answers if each["at"] >= line["at"] and has(requests, each["request"], line["pid"]))
    shown = "NULL" if answer["tenant"] is None else f"'{answer['tenant']}'"
    return f"request {answer['request']}{where}", f"{sql}  →  {shown}"


def has(requests: dict[int, Request], number: int, pid: int) -> bool:
    return any(checkout.pid == pid for checkout in requests[number].checkouts)


PICTURES: dict[str, Callable[[dict[str, Seen], Theme], Sheet]] = {
    "crowd": crowd,
    "lease": lease,
    "forks": forks,
    "following": following,
}


def draw(runs: dict[str, Seen], directory: Path) -> list[str]:
    """Draw all pictures, and return the names of the files."""
    names = []
    for name, picture in PICTURES.items():
        for theme in THEMES:
            names.append(f"{name}-{theme.name}.svg")
            (directory / names[-1]).write_text(picture(runs, theme).written())
    return names
