"""Figures and tables of the chapters, one module each, drawn from recorded rows.

A function of ``recordings``, which maps a profile to its settings and rows, draws one part per profile. The
rows of the run in hand (``run.this_run()``) and those that come with the book (``run.recorded_results()``)
look the same. ``FIGURES`` of each module names the figures that ``make figures`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from kdsec.errors import check_choice
from kdsec.report import claims, plots, statistics, summary, tables, verdicts

Recordings = Mapping[str, tuple[Any, pd.DataFrame]]
Draw = Callable[[Axes, pd.DataFrame, Any], None]
REACH = 10  # points above and below labels by hand at which the colours of copies end


class Markdown(str):
    """Markdown that a notebook shows formatted."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def about(profile: str, settings: Any, rows: pd.DataFrame) -> str:
    """What a part of a figure shows: profile, data set (of transfer, both) and number of seeds."""
    count = rows["seed"].nunique()
    names = dict.fromkeys((settings.dataset, getattr(settings, "student_dataset", settings.dataset)))
    return f"{profile}: {tables.in_print(' to '.join(names))}, {count} seed{'s' if count > 1 else ''}"


def current(recordings: Recordings) -> Recordings:
    """The recordings made with the networks that the settings name today; older ones fit no figure."""
    found = {}
    for name, (settings, rows) in recordings.items():
        named = [getattr(settings, role, None) for role in ("teacher", "student", "classifier")]
        named += list(getattr(settings, "students", ()))[:1]
        if {net for net in named if isinstance(net, str)} <= set(rows["model"]):
            found[name] = settings, rows
    return found


def main(recordings: Recordings) -> Recordings:
    """The one profile that the text is about: the first of the chapter's preferred ones that is recorded."""
    recordings = current(recordings) or recordings
    chapters = {str(rows["chapter"].iloc[0]) for _, rows in recordings.values() if len(rows)}
    preferred = claims.papers()[chapters.pop()].preferred if len(chapters) == 1 else ()
    names = [name for name in preferred if name in recordings] or list(recordings)
    return {name: recordings[name] for name in names[:1]}


def having(recordings: Recordings, setting: str, otherwise: Recordings) -> Recordings:
    """The main profile among those with rows of ``setting`` (``"drawn="``), which older records may lack."""
    found = {name: part for name, part in recordings.items() if _has(part[1], setting)}
    return main(found or otherwise)


def _has(rows: pd.DataFrame, setting: str) -> bool:
    return bool(rows["setting"].str.contains(setting, regex=False).any())


def says(part: Figure | SubFigure, text: str) -> None:
    """A title from the left edge: what a part of a figure shows, computed from its rows."""
    part.suptitle(text, x=0.01, ha="left", fontsize=11)


def stack(recordings: Recordings, draw: Draw, width: float, height: Callable[[Any], float]) -> Figure:
    """One axes per profile, one above the other, with what was run below each.

    Args:
        recordings: settings and rows by profile.
        draw: ``draw(ax, rows, settings)``; its title should say what was found.
        width: of the figure, in inches.
        height: ``height(settings)``, of one part.
    """

    def one(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        draw(part.subplots(), rows, settings)

    return stack_parts(recordings, one, width, lambda rows, settings: height(settings))


def stack_parts(
    recordings: Recordings,
    draw: Callable[[SubFigure, pd.DataFrame, Any], None],
    width: float,
    height: Callable[[pd.DataFrame, Any], float],
) -> Figure:
    """Like ``stack``, with a part of several axes per profile: ``draw(part, rows, settings)``.

    A line of text where nothing was recorded with the networks of today's settings.
    """
    recordings = current(recordings)
    if not recordings:
        figure, ax = plt.subplots(figsize=(width, 0.5))
        ax.axis("off")
        ax.text(0, 0.5, "Not yet recorded with the networks of today's settings.", va="center")
        return figure
    heights = [height(rows, settings) for settings, rows in recordings.values()]
    figure = plt.figure(figsize=(width, sum(heights)))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (profile, (settings, rows)) in zip(parts, recordings.items(), strict=True):
        draw(part, rows, settings)
        part.supxlabel(about(profile, settings, rows), fontsize=9, color="#5A5A5A")
    return figure


def heat_map(ax: Axes, grid: pd.DataFrame, **options: Any) -> None:
    """A table of numbers as a heat map with the numbers in it; ``options`` go to ``seaborn.heatmap``."""
    looks = {"annot": True, "fmt": ".1f", "cmap": "cividis", "cbar": False, "linewidths": 0.4}
    sns.heatmap(grid, ax=ax, **(looks | options))
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)


def copies_map(ax: Axes, grid: pd.DataFrame, labels: float) -> None:
    """Accuracy of copies in per cent, coloured by how far above or below ``labels`` it is.

    Args:
        ax: where to draw.
        grid: a row per attack, a column per teacher.
        labels: accuracy of a student whose images were labelled by hand; one colour scale for all maps.
    """
    colours = {"cmap": "PuOr", "center": 0, "vmin": -REACH, "vmax": REACH}
    heat_map(ax, grid - labels, **colours | {"annot": grid})


def copies(rows: pd.DataFrame, setting: str = "thief") -> pd.DataFrame:
    """Mean accuracy of copies in per cent: a row per value of ``setting``, a column per teacher.

    Rows at one strength of several are left out.
    """
    wide = summary.expand(rows[rows["metric"] == "test accuracy"])
    if "strength" in wide:
        wide = wide[wide["strength"].isna()]
    if setting not in wide:
        return pd.DataFrame()
    return 100 * wide.pivot_table("value", setting, "arm", sort=False)


def by_hand(grid: pd.DataFrame) -> float:
    """What labels bought by hand, smoothed, give without a teacher: the yardstick, in per cent."""
    bought = grid.get("label smoothing", pd.Series(dtype=float))
    return float(bought.get("labelled by hand", math.nan))


def dumbbells(recordings: Recordings, suspects: Callable[[Any], Sequence[str]]) -> Figure:
    """From the papers' attack (ring) to the best one (dot), a line per teacher; dashed: labels by hand.

    Args:
        recordings: settings and rows by profile.
        suspects: the teachers of a profile's settings, the normal one first.
    """

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        grid = copies(rows)
        arms = [arm for arm in suspects(settings) if arm in grid.columns]
        for place, arm in enumerate(arms):
            first, best = grid.loc[["soft labels", "best"], arm]
            shade = plots.colour(arm)
            ax.plot([first, best], [place, place], color=shade, lw=2.5, zorder=2)
            ax.plot(first, place, "o", ms=8, mfc="white", mec=shade, mew=2, zorder=3)
            ax.plot(best, place, "o", ms=8, color=shade, zorder=4)
        # Not axvline: it gives the axis no margin, so that a line at the end is lost on the frame.
        ax.plot(2 * [by_hand(grid)], [-0.5, len(arms) - 0.5], color="#5A5A5A", ls="--", lw=1.2, zorder=1)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlabel("accuracy of the copy (%)")
        ax.grid(axis="x", color="#DDDDDD", lw=0.8)
        ax.set_title(most_taken(rows, arms))
        ring: dict[str, Any] = {"marker": "o", "ls": "", "color": "#333333"}
        handles = [Line2D([], [], mfc="white", mew=2, **ring), Line2D([], [], **ring)]
        handles.append(Line2D([], [], color="#5A5A5A", ls="--"))
        words = ["the papers' attack (soft labels)", "best attack", "labels bought by hand"]
        ax.figure.legend(handles, words, loc="outside upper center", ncols=3)

    return stack(recordings, draw, 7, lambda settings: 0.34 * len(suspects(settings)) + 1.9)


def most_taken(rows: pd.DataFrame, arms: Sequence[str]) -> str:
    """Which teacher takes most from the best attack on average, with the 95 % interval, and at what price.

    The first of ``arms`` is normal. With fewer than three seeds there is no interval.
    """
    stolen = rows[(rows["metric"] == "test accuracy") & (rows["setting"] == "thief=best")]
    best = 100 * stolen.pivot_table("value", "seed", "arm").reindex(columns=list(arms))
    gaps = best.iloc[:, 1:].rsub(best.iloc[:, 0], axis=0)
    taken = gaps.mean()
    if not taken.max() > 0:
        return "No protection takes anything from the best attack"
    most = str(taken.idxmax())
    tested = rows[(rows["metric"] == "test accuracy") & (rows["setting"] == "")]
    own = 100 * tested.groupby("arm")["value"].mean()
    cost = own.get(arms[0], math.nan) - own.get(most, math.nan)
    price = "" if math.isnan(cost) else f";\nits owner pays {cost:.1f}"
    gap = statistics.interval(gaps[most])
    ends = f" ({gap.low:.1f} to {gap.high:.1f})" if gap.seeds >= statistics.DECISIVE else ""
    return f"{most} takes most from the best attack: {taken.max():.1f} points{ends}{price}"


def own_run(run: Any, table: Callable[[Any, pd.DataFrame], str] | str) -> Markdown:
    """A folded table of the run in hand: ``table(settings, rows)``, or of copies by that setting."""
    settings, rows = run.settings, run.records.frame()
    if isinstance(table, str):
        grid = copies(rows, table).map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
        grid.index = [f"{name:g}" if isinstance(name, float) else name for name in grid.index]
        text = summary.markdown(grid.rename_axis(table).reset_index())
    else:
        text = table(settings, rows)
    heading = f"This run, one seed of {tables.in_print(settings.dataset)}"
    return Markdown(summary.folded(heading, text))


def realised(rows: pd.DataFrame) -> Markdown:
    """A row per manipulation check: what was measured (mean over seeds), what was required, and the result.

    A defence is realised where it was at every seed, as for claims. Older records have no checks.
    """
    wide = summary.expand(rows)
    checked = wide[wide["check"].notna()] if "check" in wide else wide.iloc[:0]
    if checked.empty:
        return Markdown("Manipulation checks: not yet recorded.")
    table = []
    for arm, own in checked.groupby("arm", sort=False):
        values = own.groupby("metric", sort=False)["value"]
        measure, measured = next((name, each.mean()) for name, each in values)
        required = values.get_group("required").mean()
        result = "realised" if values.get_group("realised").min() == 1 else "not realised"
        table.append(
            {
                "defence": arm,
                "measure": measure,
                "measured": f"{measured:.2f}",
                "required": f"{required:.2f}",
                "objective": result,
            }
        )
    return Markdown(summary.markdown(pd.DataFrame(table)))


def judged(chapter: str, recordings: Recordings) -> Callable[..., tables.Table]:
    """A function of ids of the chapter's claims: their table, a row for each claim and profile."""
    boards = [
        verdicts.judge_all(rows, chapter, profile, settings)
        for profile, (settings, rows) in recordings.items()
    ]
    rows = {row[0].claim.id: row for row in zip(*boards, strict=True)}

    def table(*names: str) -> tables.Table:
        chosen = [rows[check_choice(f"claim of chapter {chapter}", name, rows)] for name in names]
        return tables.of_claims(chosen, "claim")

    return table


def verdict(
    chapter: str,
    recordings: Recordings,
    folded: Mapping[str, Callable[[Any, pd.DataFrame], str]],
    networks: Sequence[str] = ("teacher", "student"),
    claims: bool = True,
) -> None:
    """Show a chapter's claims at every profile, and more tables that the reader can unfold.

    Args:
        chapter: its name.
        recordings: settings and rows by profile.
        folded: heading of a table to ``table(settings, rows)``, in Markdown.
        networks: settings that name the networks, for the heading of a profile.
        claims: whether to begin with all claims, for a chapter that shows them nowhere else.
    """
    from IPython.display import display

    if claims:
        display(tables.verdicts(chapter, recordings))
    for profile, (settings, rows) in current(recordings).items():
        values = [getattr(settings, name) for name in networks]
        names = " to ".join(value if isinstance(value, str) else ", ".join(value) for value in values)
        parts = [summary.folded(heading, table(settings, rows)) for heading, table in folded.items()]
        display(Markdown(summary.folded(f"{about(profile, settings, rows)} ({names})", "\n\n".join(parts))))
