"""Draw the book's figures again from the committed records, without training anything.

A figure that shows numbers is a function of records. For each one this script takes, out of its chapter's
notebook, the statements that the figure's cell needs, and those that they need in turn, and runs only these:
on the records in ``results/`` instead of those of a live run. Figures that need a trained network (pictures
of what it says about one image, say) are left out, and counted.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import pathlib
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
from matplotlib.figure import Figure

from kdsec.chapters import CHAPTERS, Chapter
from kdsec.errors import KdsecError, choose
from kdsec.files import beside
from kdsec.report import plots
from kdsec.report.records import recorded

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORMATS = ("png", "svg", "pdf")
SKIPPED = {"colab"}  # a cell that is no Python
CERTAIN = ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
TRAINS = {"fit", "once", "score", "steal"}  # of a run
GROWS = {"add", "append", "extend", "insert", "setdefault", "update"}  # of a list, set or dictionary


@dataclass(frozen=True)
class Statement:
    """One statement at the top level of a notebook: what it needs, what it binds or changes."""

    node: ast.stmt
    cell: int
    needs: frozenset[str]
    binds: frozenset[str]
    changes: frozenset[str]
    trains: bool


class Show:
    """Stands in for ``run.records``: the rows of all recorded seeds."""

    def __init__(self, chapter: Chapter) -> None:
        self.rows = recorded(chapter.name, "quick")

    def frame(self) -> Any:
        return self.rows.copy()


def statements(notebook: Any) -> list[Statement]:
    """All of a notebook's code, first to last."""
    found = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and not SKIPPED & set(cell.metadata.get("tags", [])):
            found += [describe(node, index) for node in ast.parse(cell.source).body]
    return found


def describe(node: ast.stmt, cell: int) -> Statement:
    """Read off a statement what it has to do with the names at the top level."""
    table = symtable.symtable(ast.unparse(node), "cell", "exec")
    top = table.get_symbols()
    binds = {
        each.get_name() for each in top if each.is_assigned() or each.is_imported() or each.is_namespace()
    }
    needs = {each.get_name() for each in top if each.is_referenced()} | set(_from_inside(table))
    if not isinstance(node, ast.Assign | ast.AugAssign | ast.Expr):
        needs -= binds  # a loop's own variables
    changed, trains = set(), False
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            changed.add(_root(part))
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            owner = part.func.value
            if part.func.attr in GROWS and isinstance(owner, ast.Name):
                changed.add(owner.id)
            trains |= part.func.attr in TRAINS and isinstance(owner, ast.Name) and owner.id == "run"
    return Statement(node, cell, frozenset(needs), frozenset(binds), frozenset(changed), trains)


def _from_inside(table: symtable.SymbolTable) -> Iterator[str]:
    """Names of the top level that functions and comprehensions in it refer to."""
    for inner in table.get_children():
        yield from (each.get_name() for each in inner.get_symbols() if each.is_global())
        yield from _from_inside(inner)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def needed_for(cell: int, code: list[Statement]) -> list[Statement] | None:
    """What must run to draw the figure of ``cell``, in order; None if that would train."""
    chosen, names = [], set[str]()
    for statement in reversed([each for each in code if each.cell <= cell]):
        if statement.cell == cell or statement.binds & names or statement.changes & names:
            if statement.trains:
                return None
            if isinstance(statement.node, CERTAIN):  # a branch or a loop may leave a name as it was
                names -= statement.binds
            names |= statement.needs
            chosen.append(statement)
    return chosen[::-1]


def figure_cells(notebook: Any) -> list[int]:
    """Cells that show a figure: those with a caption."""
    return [
        index
        for index, cell in enumerate(notebook.cells)
        if "caption" in cell.metadata.get("mystnb", {}).get("figure", {})
    ]


def draw(chapter: Chapter, out: pathlib.Path, kind: str) -> tuple[list[pathlib.Path], int]:
    """Draw a chapter's figures into ``out``; returns their files, and how many others need networks.

    Raises:
        KdsecError: the chapter has no records.
    """
    notebook = nbformat.read(ROOT / "notebooks" / chapter.notebook, as_version=4)
    code, cells = statements(notebook), figure_cells(notebook)
    plans = {cell: needed_for(cell, code) for cell in cells}
    plans = {cell: plan for cell, plan in plans.items() if plan is not None}
    wanted = {id(each) for plan in plans.values() for each in plan}
    records = Show(chapter)
    if records.rows.empty:
        raise KdsecError(f"no records of {chapter.name} at the quick profile; `kdsec run` makes some")
    files: list[pathlib.Path] = []
    state: dict[str, Any] = {"__name__": "__figures__"}
    for statement in code:
        if id(statement) not in wanted:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            shown = run(statement.node, chapter.notebook, state)
        if "run" in statement.binds:
            state["run"].records = records
        if statement is plans.get(statement.cell, [None])[-1]:
            figure = getattr(shown, "figure", None) or plt.gcf()
            name = f"{chapter.number:02d}-{cells.index(statement.cell) + 1:02d}.{kind}"
            files.append(save(figure, out / name))
    return files, len(cells) - len(plans)


def run(node: ast.stmt, file: str, state: dict[str, Any]) -> Any:
    """Execute a statement; returns what an expression is worth."""
    if isinstance(node, ast.Expr):
        return eval(compile(ast.Expression(node.value), file, "eval"), state)
    exec(compile(ast.Module([node], []), file, "exec"), state)
    return None


def save(figure: Figure, target: pathlib.Path) -> pathlib.Path:
    with beside(target) as part:
        figure.savefig(part, bbox_inches="tight")  # as notebooks show it
    plt.close("all")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the figures from the committed records.")
    parser.add_argument("chapters", nargs="*", help="by name; all if none is given")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("_build/figures"))
    parser.add_argument("--format", choices=FORMATS, default="png")
    arguments = parser.parse_args()
    mpl.use("agg")
    plots.use_style()  # the notebooks' own call of it makes nothing that a figure asks for
    # Figures of a live run are shown as they stand in memory; nothing interactive, and nothing on a screen.
    plt.show = lambda: None
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in arguments.chapters or CHAPTERS:
            chapter = CHAPTERS[choose("chapter", name, CHAPTERS)]
            files, others = draw(chapter, arguments.out, arguments.format)
            print(f"{name}: {len(files)} figures; {others} show networks at work, which `make book` trains")
    except (KdsecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(arguments.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
