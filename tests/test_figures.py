"""book/figures.py: the panels of a chapter, drawn from committed records."""

from __future__ import annotations

import pathlib
import shutil
import sys
import types

import figures
import matplotlib
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from kdsec.config import CHAPTERS
from kdsec.report import plots, records

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def style_is_put_back():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["figures.py", *map(str, arguments)])
    return figures.main()


def test_figures_follow_the_records(tmp_path, monkeypatch, capsys):
    """A panel in place of the chapter's own: it shows one number of each seed."""

    def panel(recorded):
        figure, ax = plt.subplots()
        for settings, frame in recorded.values():
            ax.scatter(frame["seed"], frame["value"])
            ax.set_title(settings.dataset)
        return figure

    module = "kdsec.report.panels.opening"
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(FIGURES={"dots": panel}))
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: name == module or None)
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "quick" / "opening", results / "quick" / "opening")
    monkeypatch.setenv("KDSEC_RESULTS", str(results))
    drawn = []
    for seeds in (10, 10, 9):
        assert main(monkeypatch, "opening", "crossing", "--out", tmp_path / "out") == 0
        drawn.append((tmp_path / "out" / "01-dots.png").read_bytes())
        assert records.recorded("opening", "quick")["seed"].nunique() == seeds
        if len(drawn) == 2:
            for suffix in (".csv", ".json"):
                (results / "quick" / "opening" / f"seed0{suffix}").unlink()
    assert drawn[0] == drawn[1] != drawn[2]
    assert "opening: 1 figures\ncrossing: 0 figures" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "01-dots.png") as picture:  # in the style of the book
        assert round(picture.info["dpi"][0]) == plots.DPI


# Slow: the notebooks draw the same panels when nbval runs them.
@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=str)
def test_every_panel_draws_what_is_recorded(chapter, tmp_path):
    plots.use_style()
    for path in figures.draw(chapter, tmp_path, "png"):
        assert path.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["openings"], "did you mean 'opening'"),
        (["reversed-maximization"], "no records of reversed-maximization"),
        (["opening", "--out", "/dev/null/figures"], "cannot write to /dev/null/figures"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path))
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    assert main(monkeypatch, *arguments, *out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_title_says_what_the_rows_say():
    """With two arms exchanged the same figure names the other."""
    from kdsec import config
    from kdsec.report.panels import purification

    settings, rows = config.settings("purification", "quick"), records.recorded("purification", "quick")
    titles = []
    for names in ({}, {"PGD-AT": "TRADES", "TRADES": "PGD-AT"}):
        figure = purification.threats({"quick": (settings, rows.replace({"arm": names}))})
        titles.append(figure.subfigs[0].get_suptitle())
    assert len(set(titles)) == 2
    assert titles[1] == titles[0].replace("PGD-AT", "TRADES") or titles[0] == titles[1].replace(
        "PGD-AT", "TRADES"
    )
