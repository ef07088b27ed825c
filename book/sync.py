"""Keep the committed notebooks in the one form that the tests, Colab and reviewers can rely on.

``python book/sync.py``          write the first cell, execute at the quick profile, store text outputs
``python book/sync.py --check``  change nothing; name every notebook that is not in that form
``python book/sync.py --fill``   execute nothing; after new records, put in place what the marks in the README
                               and in the notebooks' text ask for (``kdsec.report.quote`` lists the marks)

The stored form: the first code cell is ``first_cell``, every code cell has been executed in order, outputs
are text only (every run draws the figures again), and no metadata tells when or where it ran.
"""

from __future__ import annotations

import argparse
import copy
import os
import pathlib
import re
import sys
from typing import Any

import diagrams
import nbformat
from address import colab, pages, repository

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError, atomic_write

ROOT = pathlib.Path(__file__).resolve().parent.parent

PDF = "kdsec-book.pdf"  # the release workflow attaches it by this name
README = ROOT / "README.md"

INSTALL = """\
# On Colab: install kdsec and only what is missing, change nothing that is there. Elsewhere: nothing.
from importlib.util import find_spec

if find_spec("kdsec") is None:
    needed = ["torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "seaborn"]
    needed += ["pydantic", "safetensors", "filelock", "tqdm", "sklearn"]
    missing = [name.replace("sklearn", "scikit-learn") for name in needed if not find_spec(name)]
    %pip install -q --no-deps git+{url} {{" ".join(missing)}}"""

NO_ADDRESS = """\
# On Colab this cell will install kdsec, once the address of its repository is set in _config.yml.
from importlib.util import find_spec

if find_spec("kdsec") is None:
    print("kdsec is not installed, and its repository has no address yet: run pip install . in a clone")"""


def first_cell(url: str) -> str:
    """Source of a notebook's first code cell, for the repository at ``url`` (empty: not published yet)."""
    return INSTALL.format(url=url) if url else NO_ADDRESS


def with_first_cell(notebook: Any) -> Any:
    """A copy of ``notebook`` whose first code cell is the one for Colab, replaced or put in."""
    notebook = copy.deepcopy(notebook)
    cells = notebook.cells
    code = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
    if not (code and "colab" in cells[code[0]].metadata.get("tags", [])):
        index = code[0] if code else len(cells)
        cells.insert(index, nbformat.v4.new_code_cell(metadata={"tags": ["colab", "remove-cell"]}))
        code = [index]
    cells[code[0]].source = first_cell(repository())
    return notebook


def text_only(notebook: Any) -> Any:
    """A copy of an executed ``notebook`` without pictures, widgets, warnings or traces of the run.

    Prints that follow each other are one output: how a kernel cuts them up is chance.
    """
    notebook = copy.deepcopy(notebook)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for output in outputs:
                if "data" in output:
                    output.data = _texts(output.data)
            cell.outputs = _joined(outputs)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell, with neighbouring streams of one name as one."""
    joined: list[Any] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before["text"] += output.text
        else:
            joined.append(output)
    return joined


def _texts(data: Any) -> dict[str, Any]:
    """What of an output is text. HTML beside a picture is that picture made live, and goes with it."""
    pictured = any(kind.startswith("image/") for kind in data)
    wanted = "text/plain" if pictured else "text/"
    return {kind: text for kind, text in data.items() if kind.startswith(wanted)}


def execute(notebook: Any, folder: pathlib.Path) -> Any:
    """Run ``notebook`` from top to bottom as it stands, which is at the quick profile."""
    from nbclient import NotebookClient

    notebook = copy.deepcopy(notebook)
    os.environ["KDSEC_PROGRESS"] = "off"
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=1200, resources=resources).execute()
    return notebook


def faults(notebook: Any) -> list[str]:
    """What keeps ``notebook`` from being in the stored form; empty when nothing does."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if nbformat.writes(with_first_cell(notebook)) != nbformat.writes(notebook):
        found.append("its first code cell is not the one that book/sync.py writes")
    # nbval compares nothing in a cell without a count, so a stripped notebook would pass it unchecked.
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its code cells have not been executed in order from a fresh kernel")
    if nbformat.writes(text_only(notebook)) != nbformat.writes(notebook):
        found.append("it holds figures, warnings or metadata of a run")
    return found


def with_numbers(text: str, boards: Any = None) -> str:
    """The README's ``text`` with what its marks ask the records for, or given ``boards``."""
    from kdsec.report import quote

    source = _source(boards, quote.FRONT, "")
    parts = {"badges": badges(), "chapters": chapters(source)}
    for name, part in parts.items():
        first, mark, rest = text.partition(f"<!-- {name} -->")
        if mark:
            text = f"{first}{mark}\n{part}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return quote.fill(text, source, keep=True)


def badges() -> str:
    """The README's badges and links to what is published; nothing where that has no address."""
    url, site = repository(), pages()
    found = [
        f"[![tests]({url}/actions/workflows/test.yml/badge.svg)]({url}/actions/workflows/test.yml)"
        * bool(url),
        f"[Read the book]({site})" * bool(site),
        f"[PDF]({url}/releases/latest/download/{PDF})" * bool(url),
    ]
    return " ".join(filter(None, found))


def chapters(source: Any) -> str:
    """The README's table of chapters: question, what was found, and where to run it."""
    links = {each.name: colab(each.notebook) for each in CHAPTERS.values()}
    rows = [["", "question", "what was found", *["run"] * any(links.values())]]
    for chapter in CHAPTERS.values():
        path = f"notebooks/{chapter.notebook}"
        title = question(nbformat.read(ROOT / path, as_version=4)) or chapter.title
        row = [str(chapter.number), f"[{title}]({path})", source.answer(chapter.name, ())]
        rows.append([*row, *[f"[Colab]({links[chapter.name]})"] * any(links.values())])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def question(notebook: Any) -> str:
    """A chapter's title as its notebook has it, without number."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    found = re.match(r"# (?:\d+\. )?(.+)", first)
    return found[1].strip() if found else ""


def with_findings(notebook: Any, boards: Any = None) -> Any:
    """A copy of ``notebook`` with what the marks in its text ask the records for, or given ``boards``."""
    from kdsec.report import quote

    notebook = copy.deepcopy(notebook)
    text = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    if any(quote.asks(cell.source) for cell in text):
        source = _source(boards, 1.0, "../")
        for cell in text:
            cell.source = quote.fill(cell.source, source, keep=True)
    return notebook


def _source(boards: Any, most_q: float, up: str) -> Any:
    """The records. A claim's row is on the published pages; until they are, in the file of the claims."""
    from kdsec.report import quote, scoreboard

    results = ROOT / "results"
    boards = scoreboard.read(results) if boards is None else boards
    row = f"{pages()}{quote.ROW}" if pages() else f"{up}kdsec/report/papers/{{chapter}}.toml"
    return quote.Source(boards, results, plain=True, most_q=most_q, row=row)


def _fill(path: pathlib.Path, check: bool) -> int:
    """Bring the marks of a page or notebook up to date, or only say that they are not."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        fresh = with_numbers(text)
    else:
        notebook = nbformat.reads(text, as_version=4)
        filled = with_findings(notebook)
        fresh = text if filled == notebook else nbformat.writes(filled) + "\n"
    if check and fresh != text:
        print(f"{path}: its marks do not say what results/ says; run make fill", file=sys.stderr)
        return 1
    if fresh != text:
        _write(path, fresh)
    return 0


def _write(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _notebook(path: pathlib.Path, check: bool) -> int:
    """Execute and store a notebook, or only say what keeps it from the stored form."""
    notebook = nbformat.read(path, as_version=4)
    if check:
        wrong = faults(notebook)
        for fault in wrong:
            print(f"{path}: {fault}; run make notebooks", file=sys.stderr)
        return 1 if wrong else 0
    print(f"executing {path.name}", flush=True)
    executed = execute(with_first_cell(notebook), path.parent)
    _write(path, nbformat.writes(text_only(executed)) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks and store text outputs.")
    parser.add_argument("--check", action="store_true", help="change nothing, only report")
    parser.add_argument("--fill", action="store_true", help="only put in place what the records say")
    text = "default: README.md and all notebooks"
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help=text)
    arguments = parser.parse_args()
    paths = arguments.notebooks or [README, *sorted((ROOT / "notebooks").rglob("*.ipynb"))]
    try:
        if arguments.fill:
            diagrams.write(ROOT / "results")
        filled = max(_fill(path, arguments.check) for path in paths)
        left = [path for path in paths if path.suffix == ".ipynb" and not arguments.fill]
        return max([filled, *(_notebook(path, arguments.check) for path in left)])
    except KdsecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
