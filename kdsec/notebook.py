"""Read, parameterise and tidy a chapter's notebook; nothing here executes one.

papermill could set the parameters too, but it ignores unknown names in silence and turns tuples into text.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from kdsec.errors import KdsecError
from kdsec.files import beside

PARAMETERS = ("profile", "seed", "device", "out", "overrides")
INJECTED = "injected-parameters"  # papermill's tag, which other tools know too


class _Node(dict[str, Any]):
    """What nbformat makes of a JSON object, in a line."""

    __getattr__ = dict.__getitem__


def jupyter() -> bool:
    """Whether the packages of the extra ``run`` are here, which execute notebooks and keep their pages."""
    return all(importlib.util.find_spec(name) for name in ("ipykernel", "nbclient", "nbformat", "papermill"))


def read(path: pathlib.Path) -> Any:
    """The notebook as nbformat knows it (version 4), or without nbformat as much of it as can be executed.

    Raises:
        KdsecError: it cannot be read, or is no notebook.
    """
    if not jupyter():
        return _read_plainly(path)
    import nbformat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cell without an id, which nbformat then gives it
            result = nbformat.read(path, as_version=4)
    except OSError as error:
        raise KdsecError(f"cannot read the notebook {path}: {error.strerror}") from None
    except Exception:  # nbformat has no common base for what a damaged file can raise
        raise KdsecError(f"{path} is not a notebook; restore it from the repository") from None
    if result.nbformat_minor < 5:  # cells had no ids then; upgrading would draw random ones
        result.nbformat_minor = 5
        for number, cell in enumerate(result.cells):
            cell.id = f"cell-{number}"
    return result


def _read_plainly(path: pathlib.Path) -> Any:
    try:
        result = json.loads(path.read_text(encoding="utf-8"), object_hook=_Node)
        for cell in result.cells:
            cell["source"] = "".join(cell.source)
            cell.cell_type, cell.metadata  # noqa: B018
    except OSError as error:
        raise KdsecError(f"cannot read the notebook {path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise KdsecError(f"{path} is not a notebook; restore it from the repository") from None
    return result


def write(notebook: Any, path: pathlib.Path) -> None:
    """Write a notebook, whole or not at all."""
    import nbformat

    with beside(path) as part:
        nbformat.write(notebook, part)


def check_parameters(notebook: Any, path: pathlib.Path) -> None:
    """Make sure the cell tagged ``parameters`` sets exactly ``PARAMETERS``.

    Raises:
        KdsecError: there is no such cell, or it sets other names.
    """
    wanted = f"it must set exactly {', '.join(PARAMETERS)}"
    index = _tagged(notebook, "parameters")
    if index is None:
        raise KdsecError(f"{path} has no cell tagged 'parameters'; {wanted}")
    try:
        statements = ast.parse(notebook.cells[index].source).body
    except SyntaxError:
        raise KdsecError(f"the parameters cell of {path} is not plain Python; {wanted}") from None
    targets = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    found = {target.id for target in targets if isinstance(target, ast.Name)}
    if missing := [name for name in PARAMETERS if name not in found]:
        raise KdsecError(f"the parameters cell of {path} lacks {', '.join(missing)}; {wanted}")
    if unknown := sorted(found - set(PARAMETERS)):
        raise KdsecError(f"the parameters cell of {path} has unknown {', '.join(unknown)}; {wanted}")


def code(notebook: Any) -> list[str]:
    """Sources of the code cells: all of a notebook that decides its results."""
    return [cell.source for cell in _own_cells(notebook) if cell.cell_type == "code"]


def with_parameters(notebook: Any, values: Mapping[str, Any]) -> Any:
    """A copy with a cell that sets ``values`` after the one tagged ``parameters``, hidden on the page."""
    from nbformat.v4 import new_code_cell

    result = copy.deepcopy(notebook)
    result.cells = _own_cells(result)
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    # A fixed id: a random one would differ in every run.
    cell = new_code_cell(source, id=INJECTED, metadata={"tags": [INJECTED, "remove-cell"]})
    result.cells.insert((_tagged(result, "parameters") or 0) + 1, cell)
    return result


def finished(source: Any, executed: Any, values: Mapping[str, Any], shown: str | None = None) -> Any:
    """The page of the book: text, code and tags of ``source``, outputs of ``executed``.

    Times, durations and paths that the execution left in the metadata stay behind, so that a rerun with the
    same results gives the same file. ``out`` is set to None: running the page again by hand writes no record.
    ``shown`` says of which recorded runs the outputs speak, see ``shown_by``.

    Raises:
        KdsecError: the two do not have the same number of code cells.
    """
    result = with_parameters(source, {**values, "out": None})
    mine = [cell for cell in result.cells if cell.cell_type == "code"]
    theirs = [cell for cell in executed.cells if cell.cell_type == "code"]
    if len(mine) != len(theirs):
        raise KdsecError("the executed notebook does not belong to this source; run it with --fresh")
    for cell, ran in zip(mine, theirs, strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    if "language_info" in executed.metadata:
        result.metadata["language_info"] = executed.metadata["language_info"]
    if shown is not None:
        result.metadata["kdsec"] = {"shown": shown}
    return result


def shown_by(page: Any) -> str | None:
    """What ``finished`` was given as ``shown``."""
    shown: str | None = page.metadata.get("kdsec", {}).get("shown")
    return shown


def describe(notebook: Any, index: int) -> tuple[int, int, str]:
    """Of the cell at ``index``: its number among the code cells, their count, the heading above it."""
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    heading = ""
    for cell in notebook.cells[:index]:
        if cell.cell_type == "markdown":
            titles = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = titles[-1].lstrip("# ").strip() if titles else heading
    return number, total, heading


def first_line(source: str) -> str:
    """The first line of a cell that is code, to recognise the cell by."""
    lines = [line.strip() for line in source.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")


def _own_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]


def _tagged(notebook: Any, tag: str) -> int | None:
    found = (i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", []))
    return next(found, None)
