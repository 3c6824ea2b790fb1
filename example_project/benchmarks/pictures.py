"""The results as pictures."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from example_project.benchmarks.bars import values
from example_project.benchmarks.contenders import CONTENDERS, HOLDING
from example_project.benchmarks.rounds import Summary, ratios, summarise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    from example_project.benchmarks.contenders import Contender
    from example_project.benchmarks.report import Run

# Okabe and Ito's colours, which everybody can tell apart; the toolkit's are blues.
COLOURS = dict(
    zip(
        (contender.key for contender in CONTENDERS),
        ("#999999", "#000000", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#004466"),
        strict=True,
    )
)
MARKERS = dict(zip(COLOURS, "osD^vP*", strict=True))
# The same run gives the same file.
STYLE: Any = {"svg.hashsalt": "conn_hygiene", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}


def draw(run: Run, directory: Path) -> list[str]:
    """Draw what the run has numbers for, and return the names of the files."""
    pictures: dict[str, tuple[Callable[[Run], Figure], str]] = {
        "requests-per-second.svg": (throughput, "mixed"),
        "over-http.svg": (over_http, "gunicorn-slow"),
        "one-thread.svg": (one_thread, "get"),
        "scale.svg": (scale, "scale-8"),
    }
    drawn = []
    with mpl.rc_context(STYLE):
        for name, (picture, workload) in pictures.items():
            if workload in run.results:
                picture(run).savefig(directory / name, metadata={"Date": None}, facecolor="white")
                drawn.append(name)
    return drawn


def throughput(run: Run) -> Figure:
    """Draw the requests per second of slow, mixed and database-bound views."""
    return side_by_side(run, {"slow": "Slow views", "mixed": "Mixed", "database": "Database-bound"})


def over_http(run: Run) -> Figure:
    """Draw the same for two servers."""
    titles = {
        f"{server}-{key}": f"{title}, {server}"
        for server in ("gunicorn", "uvicorn")
        for key, title in (("slow", "Slow views"), ("database", "Database-bound"))
    }
    return side_by_side(run, titles)


def side_by_side(run: Run, titles: dict[str, str]) -> Figure:
    """Draw the requests per second of some workloads; a dotted line is what could be if connections were no object."""
    measured = [workload for workload in run.workloads if workload.key in titles]
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, workload in zip(panels(figure, len(measured)), measured, strict=True):
        for contender in workload.contenders:
            if summary := summarise(values(run.results, workload.key, contender, "rate")):
                bar(axes, contender, summary, f"{summary.median:,.0f}")
        tidy(axes)
        axes.set_title(f"{titles[workload.key]}\n{textwrap.fill(workload.title, 36)}", fontsize=9)
        axes.set_xlabel("requests per second")
        if workload.ideal:
            # Behind the numbers, which have a ground of their own.
            axes.axvline(workload.ideal, color="black", linestyle=":", linewidth=1, zorder=0)
            # Beside the first bar, which ends far from it.
            place: Any = {"xytext": (-4, -4), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
            axes.annotate(
                f"ideal: {workload.ideal:,.0f}", (workload.ideal, 1), xycoords=("data", "axes fraction"), **place
            )
    return figure


def panels(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def bar(axes: Axes, contender: Contender, summary: Summary, label: str) -> None:
    """Draw one contender's bar, with a line from the smallest to the largest round."""
    spread: Any = [[summary.median - summary.minimum], [summary.maximum - summary.median]]
    axes.barh(contender.name, summary.median, xerr=spread, color=COLOURS[contender.key], ecolor="#666666", capsize=2)
    ground: Any = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    at = (summary.maximum, contender.name)
    axes.annotate(label, at, (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=ground)


def tidy(axes: Axes) -> None:
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def one_thread(run: Run) -> Figure:
    """Draw the time of a query, as a ratio to that of Django's pool."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    measured = [each for each in run.workloads if each.number == 1]
    for axes, workload in zip(panels(figure, len(measured)), measured, strict=True):
        reference = values(run.results, workload.key, HOLDING, "microseconds")
        for contender in workload.contenders:
            own = values(run.results, workload.key, contender, "microseconds")
            if reference and own and (summary := summarise(ratios(own, reference))):
                # One slow round of many would be all that is seen of the spread.
                middle = summary.median
                bar(axes, contender, Summary(middle, middle, middle), f"{middle:.2f}")
        axes.axvline(1, color="black", linestyle=":", linewidth=1)
        axes.set_title(workload.title, fontsize=9)
        axes.set_xlabel("time of a query; Django's pool = 1")
        tidy(axes)
    return figure


def scale(run: Run) -> Figure:
    """Draw what becomes of requests per second, of latency and of cost as the threads get more."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    points = [each for each in run.workloads if each.number == 6 and each.key in run.results]
    left, middle, right = figure.subplots(1, 3)
    for contender in points[0].contenders:
        for axes, measure in (left, "rate"), (middle, "p99"), (right, "cpu"):
            line(axes, run, contender, measure)
    for axes, title in (
        (left, "requests per second (ideal: 400)"),
        (middle, "99th percentile, less the wait itself, ms"),
        (right, "CPU per request, ms"),
    ):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("threads, on a pool of 4")
        axes.set_xscale("log", base=2)
        counts = [each.arguments["threads"] for each in points]
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    middle.set_yscale("log")
    middle.yaxis.set_major_formatter("{x:g}")
    middle.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def line(axes: Axes, run: Run, contender: Contender, measure: str) -> None:
    found = []
    for workload in run.workloads:
        numbers = values(run.results, workload.key, contender, measure) if workload.number == 6 else []
        waited = workload.arguments["spread"] * 1000 if measure == "p99" and numbers else 0
        if summary := summarise(number - waited for number in numbers):
            found.append((workload.arguments["threads"], summary.median))
    if found:
        style: Any = {"color": COLOURS[contender.key], "marker": MARKERS[contender.key], "markersize": 5}
        axes.plot(*zip(*found, strict=True), label=contender.name, **style)
