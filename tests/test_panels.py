"""What figures and chapters say about recorded runs follows from the rows, and comes before a live seed."""

from __future__ import annotations

import pathlib
import re
from types import SimpleNamespace
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.text import Text

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError
from kdsec.report import claims, panels, plots
from kdsec.report.panels import crossing
from kdsec.report.records import COLUMNS, recordings

ROOT = pathlib.Path(__file__).resolve().parent.parent
ANSWER_FIRST = ("opening", "sparse-teacher", "reversed-maximization", "crossing")
SETTINGS = SimpleNamespace(dataset="digits", suspects=("normal", "nasty", "AST"))


@pytest.fixture(autouse=True)
def style_is_put_back():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def stolen(**best: float) -> dict[str, tuple[Any, pd.DataFrame]]:
    """Rows of one seed: what the papers' attack and the best one get from each teacher."""
    rows = [("label smoothing", "thief=labelled by hand", 0.7)]
    for arm, value in best.items():
        rows += [(arm, "thief=soft labels", 0.6), (arm, "thief=best", value)]
        rows += [(arm, "strength=2;thief=best", 0.1)]
    full = [
        ("crossing", "quick", 0, "digits", arm, "net", setting, "test accuracy", value, 100)
        for arm, setting, value in rows
    ]
    return {"quick": (SETTINGS, pd.DataFrame(full, columns=list(COLUMNS)))}


def test_the_switch_has_what_an_attacker_gets_without_and_with_knowing() -> None:
    recordings = stolen(normal=0.9, nasty=0.8)
    settings, rows = recordings["quick"]
    settings = SimpleNamespace(dataset="digits", teachers=("normal", "nasty", "AST"))
    live = crossing.knows({"quick": (settings, rows)})
    assert live.data["groups"][0]["rows"] == [
        {"name": "normal", "off": 0.6, "on": 0.9},
        {"name": "nasty", "off": 0.6, "on": 0.8},
    ]
    assert "digits, 1 seed" in live.data["note"]
    assert "Nothing" in crossing.knows({"quick": (settings, rows.iloc[:0])})


@pytest.mark.parametrize(
    ("best", "title"),
    [
        ({"normal": 0.9, "nasty": 0.8, "AST": 0.85}, "nasty takes most from the best attack: 10.0 points"),
        ({"normal": 0.9, "nasty": 0.85, "AST": 0.8}, "AST takes most from the best attack: 10.0 points"),
        ({"normal": 0.8, "nasty": 0.85, "AST": 0.8}, "No protection takes anything from the best attack"),
    ],
)
def test_the_title_turns_with_the_rows(best: dict[str, float], title: str) -> None:
    figure = panels.dumbbells(stolen(**best), lambda settings: settings.suspects)
    (ax,) = figure.axes if figure.axes else figure.subfigs[0].axes
    assert ax.get_title().startswith(title)
    ends = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2][:3]
    assert ends == [pytest.approx([60, 100 * value]) for value in best.values()]
    figure.canvas.draw()


def test_rows_of_other_networks_or_none_are_a_line_of_text_and_no_figure() -> None:
    ((settings, rows),) = stolen(normal=0.9, nasty=0.8).values()
    today = SimpleNamespace(**vars(settings), teacher="other", student="net")
    for given in ({"quick": (today, rows)}, {"quick": (today, rows[:0])}, {}):
        figure = panels.dumbbells(panels.main(given), lambda at: at.suspects)
        assert [text.get_text()[:16] for ax in figure.axes for text in ax.texts] == ["Not yet recorded"]


def test_the_title_names_the_price() -> None:
    ((settings, rows),) = stolen(normal=0.9, nasty=0.8).values()
    own = rows.iloc[:2].assign(arm=["normal", "nasty"], setting="", value=[0.95, 0.9])
    said = panels.most_taken(pd.concat([rows, own]), settings.suspects[:2])
    assert said == "nasty takes most from the best attack: 10.0 points;\nits owner pays 5.0"


def test_the_title_has_an_interval_where_there_are_seeds_enough() -> None:
    parts = []
    for seed, best in enumerate((0.8, 0.82, 0.78)):
        ((settings, rows),) = stolen(normal=0.9, nasty=best).values()
        parts.append(rows.assign(seed=seed))
    said = panels.most_taken(pd.concat(parts), settings.suspects[:2])
    assert said == "nasty takes most from the best attack: 10.0 points (5.0 to 15.0)"  # t(0.975; 2) = 4.303
    assert "(" not in panels.most_taken(pd.concat(parts[:2]), settings.suspects[:2])


def test_copies_are_coloured_by_what_labels_would_have_given() -> None:
    ((_, rows),) = stolen(normal=0.9, nasty=0.5).values()
    grid = panels.copies(rows)
    assert panels.by_hand(grid) == pytest.approx(70) and grid.loc["best", "normal"] == pytest.approx(90)
    assert panels.copies(rows, "drawn").empty
    ax = plt.subplots()[1]
    panels.copies_map(ax, grid.loc[["best"], ["normal", "nasty"]], panels.by_hand(grid))
    assert ax.collections[0].get_array().ravel().tolist() == pytest.approx([20, -20])
    assert [text.get_text() for text in ax.texts] == ["90.0", "50.0"]
    assert ax.collections[0].get_clim() == (-panels.REACH, panels.REACH)


def test_rows_that_older_records_lack_come_from_this_run() -> None:
    old, new = stolen(normal=0.9), stolen(normal=0.8)
    assert panels.having(old, "thief=best", new) == old
    assert panels.having(old, "drawn=", new) == new


def test_a_copy_that_was_not_made_is_an_empty_cell() -> None:
    ((settings, rows),) = stolen(normal=0.9, nasty=0.8).values()
    run = SimpleNamespace(settings=settings, records=SimpleNamespace(frame=lambda: rows))
    lines = panels.own_run(run, "thief").splitlines()
    assert "| labelled by hand | 70.0 |  |  |" in lines and "| best |  | 90.0 | 80.0 |" in lines
    for path in (pathlib.Path(__file__).parents[1] / "notebooks").rglob("*.ipynb"):
        assert "| nan |" not in path.read_text(encoding="utf-8"), path.name


def test_rows_of_older_networks_are_in_no_figure() -> None:
    ((settings, rows),) = stolen(normal=0.9).values()
    old = {"small": (SimpleNamespace(**vars(settings), student="another"), rows)}
    assert panels.current(old) == {}
    assert list(panels.main(old | {"quick": (settings, rows)})) == ["quick"]
    assert list(panels.main(old)) == ["small"]
    every = {name: (settings, rows) for name in ("quick", "second", "small")}
    assert list(panels.main(every)) == ["small"]
    public = {name: (settings, rows.assign(chapter="differentiators")) for name in every}
    assert list(panels.main(public)) == ["second"]
    assert list(panels.main({"quick": (settings, rows.iloc[:0])})) == ["quick"]


def test_an_unknown_claim_is_named() -> None:
    with pytest.raises(KdsecError, match="claim of chapter opening 'kd-label'"):
        panels.judged("opening", {})("kd-label")


def _notebook(chapter: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / CHAPTERS[chapter].notebook, as_version=4)


@pytest.mark.parametrize("chapter", ANSWER_FIRST)
def test_the_answer_comes_first(chapter: str) -> None:
    notebook = _notebook(chapter)
    title, _, rest = notebook.cells[0].source.partition("\n")
    assert title == f"# {CHAPTERS[chapter].title}" and title.endswith("?")
    assert "**In one minute.**" in rest and f"<!-- finding {chapter} -->" in rest
    figures = [cell for cell in notebook.cells if "figure" in cell.metadata.get("mystnb", {})]
    assert "(recordings)" in figures[0].source, "a live figure comes before the recorded one"
    for cell in figures:
        caption = cell.metadata["mystnb"]["figure"]["caption"]
        assert caption.startswith("Recorded runs") == ("(recordings)" in cell.source), caption
        assert ("one seed" in caption) == ("(run.this_run()" in cell.source), caption


@pytest.mark.parametrize("chapter", ANSWER_FIRST)
def test_every_claim_is_shown_once(chapter: str) -> None:
    code = "\n".join(cell.source for cell in _notebook(chapter).cells if cell.cell_type == "code")
    shown = re.findall(r'"([\w-]+)"', " ".join(re.findall(r"^claims\(([^)]*)\)", code, re.MULTILINE)))
    assert sorted(shown) == sorted(claim.id for claim in claims.papers()[chapter].claims)


@pytest.mark.parametrize("chapter", ANSWER_FIRST)
def test_visible_code_fits_the_page_and_teaches(chapter: str) -> None:
    hidden = {"colab", "hide-input", "hide-cell", "remove-input", "remove-cell"}
    visible = [
        line
        for cell in _notebook(chapter).cells
        if cell.cell_type == "code" and not hidden & set(cell.metadata.get("tags", []))
        for line in cell.source.splitlines()
    ]
    assert [line for line in visible if len(line) > 88] == []
    assert not re.search(r"import start|run\.finish", "\n".join(visible))


def test_the_title_of_the_live_table_fits_its_picture() -> None:
    """The picture is saved as large as it is: the places of its cells are known to the page."""
    plots.use_style()
    still = crossing.thieves_hover(recordings("crossing")).figure
    still.canvas.draw()
    page = still.bbox
    for text in still.findobj(lambda each: isinstance(each, Text) and each.get_text() and each.get_visible()):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
