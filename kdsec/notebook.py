"""A chapter's notebook: read it, set its parameters, execute it, make the page of the book.

papermill could set the parameters itself, but it ignores unknown names and turns tuples into text.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from kdsec.errors import KdsecError, atomic_write

PARAMETERS = ("profile", "seed", "device", "out", "overrides")
INJECTED = "injected-parameters"  # papermill's tag, which other tools know too
EXERCISES = "## Exercises"
INSTALL = "needs papermill, nbformat and ipykernel; in the clone: pip install '.[run]'"
SOCKET_PATH_LIMIT = 90  # bytes; the system's limit is 104 or 108, and the kernel appends to the name
KERNEL_START_SECONDS = 300.0
START_UP = (
    f"from {__name__} import ReportAssertions\nget_ipython().ast_transformers.append(ReportAssertions())\n"
)


class ReportAssertions(ast.NodeTransformer):
    """Makes the assertions of a cell's code print a line where they fail, and go on.

    Chapters assert what holds at the settings of a profile. At other settings that is a finding, not a fault.
    """

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """``if not (TEST): print(...)`` in place of ``assert TEST``."""
        line = f"does not hold at these settings: {ast.unparse(node.test)}"
        report = ast.parse(f"if not 0:\n    print({line!r})").body[0]
        assert isinstance(report, ast.If) and isinstance(report.test, ast.UnaryOp)
        report.test.operand = node.test
        return ast.fix_missing_locations(ast.copy_location(report, node))


def report_assertions(ipython: pathlib.Path) -> None:
    """Let kernels whose ``IPYTHONDIR`` is this folder report failed assertions of cells and go on."""
    startup = ipython / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "report_assertions.py").write_text(START_UP)


def read(path: pathlib.Path) -> Any:
    """The notebook as nbformat knows it (version 4).

    Raises:
        KdsecError: it cannot be read, is not a notebook, or nbformat is not installed.
    """
    try:
        import nbformat
    except ImportError:
        raise KdsecError(f"to read a notebook kdsec {INSTALL}") from None
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


def write(notebook: Any, path: pathlib.Path) -> None:
    """Write a notebook, whole or not at all."""
    import nbformat

    with atomic_write(path) as part:
        nbformat.write(notebook, part)


def check_parameters(notebook: Any, path: pathlib.Path) -> None:
    """Make sure that the cell tagged ``parameters`` sets exactly ``PARAMETERS``.

    Raises:
        KdsecError: there is no such cell, it is not Python, or it sets other names.
    """
    index = _tagged(notebook, "parameters")
    names: set[str] = set()
    with contextlib.suppress(SyntaxError):
        for node in ast.walk(ast.parse("" if index is None else notebook.cells[index].source)):
            names |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
    if wrong := sorted(names ^ set(PARAMETERS)):
        raise KdsecError(
            f"{path} needs a cell tagged 'parameters' that sets exactly {', '.join(PARAMETERS)}; "
            f"it lacks or has in excess: {', '.join(wrong)}"
        )


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


def without_exercises(notebook: Any) -> Any:
    """A copy in which code cells of the section *Exercises* do nothing: they are for readers, at quick."""
    result = copy.deepcopy(notebook)
    inside = False
    for cell in result.cells:
        if cell.cell_type != "code":
            titles = [line.strip() for line in cell.source.splitlines() if line.startswith("## ")]
            inside = titles[-1] == EXERCISES if titles else inside
        elif inside:
            cell.source = "# Exercises run at the quick profile only."
    return result


def finished(source: Any, executed: Any, values: Mapping[str, Any], shown: str | None = None) -> Any:
    """The page of the book: text, code and tags of ``source``, outputs of ``executed``.

    Times and paths in the metadata are left out, so that a rerun with the same results gives the same file.
    ``out`` is set to None: running the page by hand writes no record. ``shown`` is stored in the metadata.

    Raises:
        KdsecError: the two do not have the same number of code cells.
    """
    result = with_parameters(source, {**values, "out": None})
    cells, ran = ([cell for cell in book.cells if cell.cell_type == "code"] for book in (result, executed))
    if len(cells) != len(ran):
        raise KdsecError("the executed notebook does not belong to this source; run it with --fresh")
    for cell, done in zip(cells, ran, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    if "language_info" in executed.metadata:
        result.metadata["language_info"] = executed.metadata["language_info"]
    if shown is not None:
        result.metadata["kdsec"] = {"shown": shown}
    return result


def describe(notebook: Any, index: int) -> tuple[int, int, str]:
    """Of the cell at ``index``: its number among the code cells, their count, the heading above it."""
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    text = [cell.source for cell in notebook.cells[:index] if cell.cell_type == "markdown"]
    titles = [line for source in text for line in source.splitlines() if line.startswith("#")]
    return number, total, titles[-1].lstrip("# ").strip() if titles else ""


def execute(
    prepared: pathlib.Path, executed: pathlib.Path, kernel: Any, report: Callable[[int, int, str], None]
) -> str:
    """Run ``prepared`` with papermill, write ``executed``; returns what went wrong, empty if nothing did.

    ``report`` is told of each code cell when it begins, with what ``describe`` says of it.
    """
    import papermill
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import DeadKernelError

    cells = read(prepared)
    current = 0

    def started(cell: Any, cell_index: int) -> None:
        nonlocal current
        if cell.cell_type == "code":
            current = cell_index
            report(*describe(cells, current))

    try:
        papermill.execute_notebook(
            str(prepared),
            str(executed),
            kernel_name=kernel.kernel_name,
            km=kernel,
            progress_bar=False,
            start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=60,  # the default of 4 s is too short for a busy machine
            record_timing=False,
            coalesce_streams=True,  # how prints are cut into pieces depends on the clock
            on_cell_start=started,
        )
    except papermill.PapermillExecutionError as error:
        # The index counts cells of the notebook as papermill saw it, which is the prepared one.
        return _failure(cells, error.cell_index, _one_line(error.ename, error.evalue))
    except DeadKernelError:
        return _failure(cells, current, "the kernel died, perhaps because memory ran out")
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)
    return ""


def this_python(connection: pathlib.Path) -> Any:
    """A kernel that is this very interpreter, whichever kernels are installed under whatever names.

    It is reached through socket files where the system has them: TCP ports of parallel kernels may clash.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    sockets = os.name == "posix" and len(os.fsencode(connection)) < SOCKET_PATH_LIMIT
    return AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=ThisPython(),
        connection_file=str(connection),
        transport="ipc" if sockets else "tcp",
    )


def _failure(cells: Any, index: int, reason: str) -> str:
    number, total, heading = describe(cells, index)
    under = f" under {heading!r}" if heading else ""
    lines = [line.strip() for line in cells.cells[index].source.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return f"code cell {number} of {total}{under}, `{first}`: {reason}"


def _one_line(name: str, value: str) -> str:
    """An error of kdsec's says everything itself; any other needs its class."""
    message = " ".join(value.split())
    message = message if len(message) <= 400 else message[:400] + " ..."
    if name == KdsecError.__name__:
        return message
    return f"{name}: {message}" if message else name


def _own_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]


def _tagged(notebook: Any, tag: str) -> int | None:
    tagged = (i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", []))
    return next(tagged, None)
