"""Keep the committed notebooks in the one form that the tests, Colab and reviewers can rely on.

``python book/sync.py``          write the first cell, execute at the quick profile, store text outputs
``python book/sync.py --check``  change nothing; name every notebook that is not in that form
``python book/sync.py README.md`` put the numbers that its marks ask for into a page that is not built

The stored form: the first code cell installs kdsec on Colab, every code cell has been executed in order,
outputs are text only (figures are drawn again by whoever runs the notebook, and are not worth a diff), and no
metadata tells when or where it ran.
"""

from __future__ import annotations

import argparse
import copy
import os
import pathlib
import sys
from typing import Any

import nbformat
import yaml

from kdsec.files import beside

ROOT = pathlib.Path(__file__).resolve().parent.parent

README = ROOT / "README.md"

FIRST_CELL = """\
# On Colab: install kdsec and only what is missing, change nothing that is there. Elsewhere: nothing.
from importlib.util import find_spec

if find_spec("kdsec") is None:
    needed = ["torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "seaborn"]
    needed += ["safetensors", "filelock", "tqdm", "sklearn"]
    missing = [name.replace("sklearn", "scikit-learn") for name in needed if not find_spec(name)]
    %pip install -q --no-deps git+{url} {{" ".join(missing)}}"""


def repository() -> str:
    """The address of the repository, from its one place."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"])


def with_first_cell(notebook: Any) -> Any:
    """A copy of ``notebook`` whose first code cell is the one for Colab, replaced or put in."""
    notebook = copy.deepcopy(notebook)
    cells = notebook.cells
    code = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
    if not (code and "colab" in cells[code[0]].metadata.get("tags", [])):
        index = code[0] if code else len(cells)
        cells.insert(index, nbformat.v4.new_code_cell(metadata={"tags": ["colab", "remove-cell"]}))
        code = [index]
    cells[code[0]].source = FIRST_CELL.format(url=repository())
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
    """``text`` with what its marks ask the records for (see ``kdsec.report.quote``), or given ``boards``."""
    from kdsec.report import quote, scoreboard

    results = ROOT / "results"
    boards = scoreboard.read(results) if boards is None else boards
    return quote.fill(text, quote.Source(boards, results, plain=True), keep=True)


def _page(path: pathlib.Path, check: bool) -> int:
    """Bring a page up to date, or only say that it is not."""
    text = path.read_text(encoding="utf-8")
    fresh = with_numbers(text)
    if check and fresh != text:
        print(
            f"{path}: its numbers are not those of results/; run python book/sync.py {path.name}",
            file=sys.stderr,
        )
        return 1
    if fresh != text:
        _write(path, fresh)
    return 0


def _write(path: pathlib.Path, text: str) -> None:
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks and store text outputs.")
    parser.add_argument("--check", action="store_true", help="change nothing, only report")
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help="default: all chapters")
    arguments = parser.parse_args()
    status = 0
    for path in arguments.notebooks or [README, *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        if path.suffix == ".md":
            status = max(status, _page(path, arguments.check))
            continue
        notebook = nbformat.read(path, as_version=4)
        if arguments.check:
            for fault in faults(notebook):
                print(f"{path}: {fault}; run make notebooks", file=sys.stderr)
                status = 1
            continue
        print(f"executing {path.name}", flush=True)
        executed = execute(with_first_cell(notebook), path.parent)
        _write(path, nbformat.writes(text_only(executed)) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
