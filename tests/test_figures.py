"""book/figures.py: figures from committed records, with nothing trained on the way."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import figures
import matplotlib
import nbformat
import pytest
from PIL import Image

from kdsec.chapters import CHAPTERS
from kdsec.report import plots

ROOT = pathlib.Path(__file__).resolve().parent.parent


def sliced(*cells: str) -> list[str] | None:
    """What would run for the figure in the last cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    found = figures.needed_for(len(cells) - 1, figures.statements(notebook))
    return None if found is None else [figures.ast.unparse(each.node) for each in found]


def test_a_figure_takes_what_it_needs_and_what_that_needs():
    assert sliced(
        "import a\nimport b",
        "x = a.f()\nunused = 1",
        "def g(y):\n    z = x + y\n    return z",
        "z = 5",  # g's own z is another
        "g(1)",
    ) == ["import a", "x = a.f()", "def g(y):\n    z = x + y\n    return z", "g(1)"]


def test_the_last_binding_counts_and_a_branch_may_leave_the_one_before():
    assert sliced("x = 1", "x = 2", "x") == ["x = 2", "x"]
    assert len(sliced("x = 1", "if True:\n    x = 2", "x")) == 3


def test_what_changes_a_needed_list_comes_along():
    rows = sliced(
        "rows = []\nother = []", "for i in range(3):\n    rows.append(i)", "other.append(1)", "rows"
    )
    assert rows == ["rows = []", "for i in range(3):\n    rows.append(i)", "rows"]
    assert len(sliced("d = {}", "d['a'] = 1", "d")) == 3


def test_a_loop_does_not_ask_for_its_own_variable():
    assert sliced("for arm in (1, 2):\n    run.fit(arm)", "for arm in (3, 4):\n    print(arm)") is not None


@pytest.mark.parametrize("call", ["run.fit(1)", "run.once(f)", "run.score(1)", "run.steal(1)"])
def test_nothing_is_trained(call):
    assert sliced(f"model = {call}", "model") is None
    assert sliced(f"def make():\n    return {call}", "model = make()", "model") is None
    assert sliced(f"model = {call}", "1") == ["1"]


def of_records(notebook: nbformat.NotebookNode) -> list[int]:
    """The cells that draw figures of records."""
    sources = {index: notebook.cells[index].source for index in figures.figure_cells(notebook)}
    return [index for index, source in sources.items() if "recordings" in source or "run.records" in source]


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=str)
def test_every_figure_that_shows_records_can_be_drawn_from_them(chapter):
    notebook = nbformat.read(ROOT / "notebooks" / chapter.notebook, as_version=4)
    code = figures.statements(notebook)
    assert of_records(notebook)
    for index in of_records(notebook):
        assert figures.needed_for(index, code) is not None, notebook.cells[index].source


def draw(out: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "book" / "figures.py"), *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.slow
def test_the_figures_follow_the_records(tmp_path):
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "quick" / "crossing", results / "quick" / "crossing")
    first, again, less = (tmp_path / name for name in ("first", "again", "less"))
    for out in (first, again):
        done = draw(out, "crossing", KDSEC_RESULTS=str(results))
        assert done.returncode == 0, done.stderr
    for path in first.iterdir():
        with Image.open(path) as drawn:  # in the style of the book, not in matplotlib's
            assert round(drawn.info["dpi"][0]) == plots.DPI
    (results / "quick" / "crossing" / "seed0.json").unlink()  # no longer a whole record
    assert draw(less, "crossing", KDSEC_RESULTS=str(results)).returncode == 0
    notebook = nbformat.read(ROOT / "notebooks" / CHAPTERS["crossing"].notebook, as_version=4)
    cells = figures.figure_cells(notebook)
    follow = {f"07-{cells.index(index) + 1:02d}.png" for index in of_records(notebook)}
    names = {path.name for path in first.iterdir()}
    assert follow <= names and follow
    for name in names:
        drawn = [(folder / name).read_bytes() for folder in (first, again, less)]
        assert drawn[0] == drawn[1] and len(drawn[0]) > 5_000
        assert (drawn[0] != drawn[2]) == (name in follow), name


@pytest.mark.slow
def test_all_chapters_are_drawn(tmp_path):
    done = draw(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    chapters = {path.name[:2] for path in (tmp_path / "out").glob("*.png")}
    assert chapters == {f"{chapter.number:02d}" for chapter in CHAPTERS.values()}


@pytest.mark.parametrize(
    ("name", "message"), [("openings", "did you mean 'opening'"), ("opening", "no records of opening")]
)
def test_mistakes_end_in_one_line(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.pyplot.show", None)  # put back afterwards, as the style is
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["figures.py", name, "--out", str(tmp_path / "out")])
    with matplotlib.rc_context():
        assert figures.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
