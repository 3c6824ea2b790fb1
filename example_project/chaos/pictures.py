"""The failures of a run as a picture, one for each kind of paper: light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from example_project.chaos.faults import Fault
    from example_project.chaos.report import Run

# The same run gives the same file.
STYLE: Any = {"svg.hashsalt": "conn_hygiene", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


@dataclass(frozen=True)
class Theme:
    name: str
    paper: str
    ink: str
    shade: str
    # Okabe and Ito's colours, which everybody can tell apart; the toolkit's are blues.
    colours: dict[str, str]


THEMES = (
    Theme(
        "light",
        "#ffffff",
        "#222222",
        "#dddddd",
        {"plain": "#D55E00", "toolkit": "#0072B2", "plain-checked": "#B07000", "toolkit-checked": "#2F9BD8"},
    ),
    Theme(
        "dark",
        "#131416",
        "#cfd0d0",
        "#3a3d42",
        {"plain": "#FF8C3B", "toolkit": "#56B4E9", "plain-checked": "#E6B800", "toolkit-checked": "#9AD7FF"},
    ),
)


def draw(run: Run, directory: Path) -> list[str]:
    """Draw the run, and return the names of the files."""
    drawn = []
    for theme in THEMES:
        inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
        colours: Any = dict.fromkeys(inked, theme.ink)
        with mpl.rc_context({**STYLE, **colours}):
            name = f"failures-{theme.name}.svg"
            picture(run, theme).savefig(directory / name, metadata={"Date": None}, facecolor=theme.paper)
        drawn.append(name)
    return drawn


def picture(run: Run, theme: Theme) -> Figure:
    """Draw a strip for each contender under each fault: when its requests failed, and how many in all."""
    faults = [fault for fault in run.faults if fault.key in run.results]
    height = 0.24 * len(run.contenders) + 0.25
    figure = Figure(figsize=(10, height * len(faults) + 0.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(faults), 1, sharex=True, squeeze=False)[:, 0])
    for axes, fault in zip(panels, faults, strict=True):
        strips(axes, run, fault, theme)
    earliest = min(outcome.began for outcome in run.results.values())
    accounts = [row.account for outcome in run.results.values() for row in outcome.rows.values()]
    latest = max((account.seconds for account in accounts), default=0)
    panels[-1].set_xlim(earliest - 0.5, max(latest, 4) + 0.5)
    panels[-1].set_xlabel(
        "seconds from the end of the fault; it lasts as long as the ground is grey; a mark is a failed request"
    )
    return figure


def strips(axes: Axes, run: Run, fault: Fault, theme: Theme) -> None:
    outcome = run.results[fault.key]
    axes.axvspan(outcome.began, 0, color=theme.shade, linewidth=0, zorder=0)
    for number, contender in enumerate(run.contenders):
        account = outcome.rows[contender.key].account
        colour = theme.colours[contender.key]
        axes.eventplot(account.failures, lineoffsets=number, linelengths=0.7, colors=colour, linewidths=1)
        beside: Any = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(str(account.failed), (1, number), va="center", color=colour, **beside)
    names = [contender.name for contender in run.contenders]
    axes.set_yticks(range(len(names)), names)
    for label, contender in zip(axes.get_yticklabels(), run.contenders, strict=True):
        label.set_color(theme.colours[contender.key])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(fault.title, fontsize=9, loc="left", pad=3)
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
