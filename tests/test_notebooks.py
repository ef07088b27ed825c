"""The stored notebooks, and whether comparing them with a new run (nbval) would notice what it should.

A check that cannot fail checks nothing: the slow tests here break a copy of the opening chapter in one way
each, and expect ``pytest --nbval`` to say no.
"""

from __future__ import annotations

import ast
import configparser
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

from kdsec.config import CHAPTERS, settings
from kdsec.notebook import PARAMETERS

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPENING = ROOT / "notebooks" / CHAPTERS["opening"].notebook

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: pathlib.Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: Any, tag: str) -> Any:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == len(CHAPTERS) > 0


@each_notebook
def test_every_code_cell_was_executed(path: pathlib.Path) -> None:
    """nbval compares nothing in a cell without a count: a stripped notebook would pass it unchecked."""
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_nothing_tells_where_or_when_it_ran(path: pathlib.Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    assert notebook.metadata.get("language_info", {"name": "python"}) == {"name": "python"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb"}
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr"
            assert all(kind.startswith("text/") for kind in output.get("data", {}))
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root/|/tmp/|/Users/|C:\\\\Users", text)


@each_notebook
def test_it_begins_with_colab_and_the_parameters(path: pathlib.Path) -> None:
    notebook = read(path)
    first, second, *_ = code_cells(notebook)
    assert "colab" in first.metadata.tags and "parameters" in second.metadata.tags
    assert first.outputs == [] and second.outputs == []
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    values: dict[str, Any] = {}
    exec(second.source, values)
    assert tuple(name for name in values if name != "__builtins__") == PARAMETERS
    assert (values["profile"], values["seed"], values["out"]) == ("quick", 0, None)


@each_notebook
def test_a_chapter_has_the_sections_of_all_chapters(path: pathlib.Path) -> None:
    """In the order of the table in ``CONTRIBUTING.md``, and nothing else as high as they."""
    skeleton = re.findall(
        r"^\| `## (.+?)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(skeleton) == 10
    headings = [
        heading
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for heading in titles(cell.source)
    ]
    assert [text for level, text in headings if level == 2] == skeleton
    assert [level for level, _ in headings].count(1) == 1 and headings[0][0] == 1
    assert {level for level, _ in headings} <= {1, 2, 3}


def titles(text: str) -> list[tuple[int, str]]:
    """Level and text of the headings; a comment in a block of code is none."""
    text = re.sub(r"^(`{3,})\w.*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, re.MULTILINE)]


@each_notebook
def test_every_exercise_has_its_solution(path: pathlib.Path) -> None:
    text = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    exercises = re.findall(r"^`{3,}\{exercise\}.*\n:label: (\S+)", text, re.MULTILINE)
    solutions = re.findall(r"^`{3,}\{solution(?:-start)?\} (\S+)", text, re.MULTILINE)
    assert exercises and sorted(exercises) == sorted(solutions)


@each_notebook
def test_every_solution_is_right(path: pathlib.Path) -> None:
    """Also where records decide, and new ones came."""
    for cell in code_cells(read(path)):
        if "solution" in cell.metadata.get("tags", []):
            assert "not yet: " not in str(cell.outputs), cell.source


@each_notebook
def test_every_figure_says_in_words_what_it_shows(path: pathlib.Path) -> None:
    figures = [cell for cell in code_cells(read(path)) if any("<Figure" in str(out) for out in cell.outputs)]
    assert figures
    texts = [cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "") for cell in figures]
    assert all(len(text.split()) >= 10 for text in texts)
    assert len(set(texts)) == len(texts)


@each_notebook
def test_every_figure_has_a_caption_that_says_what_to_look_for(path: pathlib.Path) -> None:
    """Alternative text is for who cannot see the figure, a caption for who does not know where to look."""
    drawn = [cell.metadata.get("mystnb", {}) for cell in code_cells(read(path))]
    drawn = [mystnb for mystnb in drawn if "image" in mystnb]
    captions = [mystnb.get("figure", {}).get("caption", "") for mystnb in drawn]
    assert all(8 <= len(text.split()) <= 45 and re.search(r"[^.]\.$", text) for text in captions), captions
    assert len(set(captions)) == len(captions)
    assert not set(captions) & {mystnb["image"]["alt"] for mystnb in drawn}


@each_notebook
def test_whatever_prints_or_draws_has_kept_its_output(path: pathlib.Path) -> None:
    """A count without the output, as a careless merge leaves it, would be compared with nothing."""
    for cell in code_cells(read(path)):
        if "colab" in cell.metadata.get("tags", []):
            continue
        calls = [ast.unparse(node) for node in ast.parse(cell.source).body if isinstance(node, ast.Expr)]
        if any(re.match(r"(print|display|plt\.show|check\.\w+)\(", call) for call in calls):
            assert cell.outputs, cell.source


@each_notebook
def test_some_outputs_are_compared(path: pathlib.Path) -> None:
    """Training's last digits differ between machines and are not; what a chapter concludes is."""
    compared = [
        cell
        for cell in code_cells(read(path))
        if "nbval-ignore-output" not in cell.metadata.get("tags", [])
        and any(output.output_type == "stream" for output in cell.outputs)
    ]
    assert len(compared) >= 5
    said = [output.get("text", "") for cell in compared for output in cell.outputs]
    assert any(re.search("checked: |: True", text) for text in said)


@each_notebook
def test_no_measured_number_is_compared_by_accident(path: pathlib.Path) -> None:
    """The value of a cell's last line is shown and compared: a score there holds on one machine only."""
    for cell in code_cells(read(path)):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            shown = [str(output.get("data", "")) for output in cell.outputs]
            assert not re.search(r"Score\(|\d\.\d{4}", " ".join(shown)), cell.source


@each_notebook
def test_an_unfavourable_result_stops_no_recording(path: pathlib.Path) -> None:
    """It would keep the seed out of the records. Results are asserted in the run that the book shows."""
    for cell in code_cells(read(path)):
        if "assert" in cell.source:
            assert not re.search(r"\bprofile\b(?!, seed)", cell.source), cell.source


def insert_before_imports(notebook: Any, source: str) -> None:
    """A cell that runs before the chapter imports anything, so that its names mean the broken functions."""
    index = notebook.cells.index(tagged(notebook, "parameters")) + 1
    notebook.cells.insert(index, nbformat.v4.new_code_cell(source, execution_count=1))


def nothing(notebook: Any) -> None:
    pass


def another_seed(notebook: Any) -> None:
    cell = tagged(notebook, "parameters")
    assert "seed = 0" in cell.source
    cell.source = cell.source.replace("seed = 0", "seed = 1")


def without_the_square_of_temperature(notebook: Any) -> None:
    insert_before_imports(
        notebook,
        "import kdsec.distill\n"
        "right = kdsec.distill.soft_cross_term\n"
        "def wrong(student, teacher, temperature):\n"
        "    return right(student, teacher, temperature) / temperature**2\n"
        "kdsec.distill.soft_cross_term = wrong",
    )


def with_the_weights_exchanged(notebook: Any) -> None:
    insert_before_imports(
        notebook,
        "import kdsec.distill\n"
        "right = kdsec.distill.kd_loss\n"
        "def wrong(student, teacher, labels, temperature, alpha):\n"
        "    return right(student, teacher, labels, temperature, 1 - alpha)\n"
        "kdsec.distill.kd_loss = wrong",
    )


def without_training(notebook: Any, where: str) -> None:
    """No formula is wrong, but students on certain images stay as they were built: only results show it."""
    insert_before_imports(
        notebook,
        "import kdsec.cache\n"
        "right = kdsec.cache.fit\n"
        "def wrong(model, data, *rest, **named):\n"
        f"    if not ({where}):\n"
        "        return right(model, data, *rest, **named)\n"
        "kdsec.cache.fit = wrong",
    )


def with_thieves_that_learn_nothing(notebook: Any) -> None:
    without_training(notebook, "(data.labels < 0).all()")


def with_nobody_learning_from_the_thiefs_images(notebook: Any) -> None:
    """Then the comparison with labelling by hand holds: both are at chance."""
    without_training(notebook, f"len(data) != {settings('opening', 'quick').owner}")


def with_a_false_conclusion_stored(notebook: Any) -> None:
    """What a cell printed is changed by hand: a run that prints something else must not pass."""
    cell = next(cell for cell in code_cells(notebook) if "better than guessing" in str(cell.outputs))
    cell.outputs[0].text = cell.outputs[0].text.replace("better than guessing", "no better than guessing")


def nbval(folder: pathlib.Path, change: Callable[[Any], None]) -> subprocess.CompletedProcess[str]:
    """Compare a changed copy of the opening with a new run of it, up to the first difference."""
    notebook = read(OPENING)
    change(notebook)
    copy = folder / OPENING.name
    nbformat.write(notebook, copy)
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-x", "-q"]
    command.append(f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval.cfg'}")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "PYTHONPATH": str(ROOT),
        "KDSEC_CACHE": str(folder / "cache"),
        "KDSEC_PROGRESS": "off",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", str(folder), str(copy)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_figures_are_compared_without_their_size() -> None:
    """A figure of recorded runs grows with every profile recorded: that is no mistake in a notebook."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / "tests" / "nbval.cfg")
    rule, said = rules["figures"], repr(plt.figure(figsize=(3, 2)).add_subplot().figure)
    assert re.sub(rule["regex"], rule["replace"], said) == rule["replace"]
    assert "tests/nbval.cfg" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_the_opening_gives_its_stored_outputs_again(tmp_path: pathlib.Path) -> None:
    done = nbval(tmp_path, nothing)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(code_cells(read(OPENING)))} passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "noticed_in", "message"),
    [
        (another_seed, "start(", "mismatch"),
        (without_the_square_of_temperature, "kd_loss(", "AssertionError"),
        (with_the_weights_exchanged, "kd_loss(", "AssertionError"),
        (with_thieves_that_learn_nothing, "thieves[", "AssertionError"),
        (with_nobody_learning_from_the_thiefs_images, "thieves[", "AssertionError"),
        (with_a_false_conclusion_stored, "no better than guessing", "mismatch"),
    ],
)
def test_a_broken_copy_is_noticed(
    change: Callable[[Any], None], noticed_in: str, message: str, tmp_path: pathlib.Path
) -> None:
    done = nbval(tmp_path, change)
    assert done.returncode == 1, done.stdout[-3000:]  # 1: tests failed; others: nothing was tested
    failure = done.stdout.partition("FAILURES")[2]
    assert noticed_in in failure and message in failure, done.stdout[-3000:]
