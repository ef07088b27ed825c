"""Run a notebook's code in this process, where there is no Jupyter: on a compute node, for the record alone.

The cells see what a kernel would give them, but for its outputs: what they print goes to standard output,
figures are drawn and dropped. What they compute is the same, and so is the fingerprint of what they define.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from kdsec.imports import without_commands


class CellFailed(Exception):
    """The cell at ``index`` raised ``kind`` with ``message``."""

    def __init__(self, index: int, kind: str, message: str) -> None:
        super().__init__(f"cell {index}: {kind}: {message}")
        self.index, self.kind, self.message = index, kind, message


def execute(notebook: Any, parameters: Mapping[str, Any], started: Callable[[int], None]) -> None:
    """Run every code cell of ``notebook`` as the module ``__main__``.

    Args:
        notebook: as ``kdsec.notebook.read`` gives it, with a cell tagged ``parameters``.
        parameters: what that cell's names are set to after it.
        started: told the index of every code cell when it begins.

    Raises:
        CellFailed: a cell raised something.
    """
    os.environ["MPLBACKEND"] = "agg"
    if importlib.util.find_spec("IPython") is None:
        _stand_in_for_ipython()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # where dataclasses and their like look names up
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        started(index)
        try:
            _run(cell.source, f"<cell {index}>", module.__dict__)
        except (Exception, SystemExit) as error:
            raise CellFailed(index, type(error).__name__, str(error)) from error
        if "parameters" in cell.metadata.get("tags", []):
            module.__dict__.update(parameters)


def _run(source: str, name: str, scope: dict[str, Any]) -> None:
    code = without_commands(source)
    # Where ``inspect`` finds the source of what the cell defines, which goes into fingerprints.
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    exec(compile(code, name, "exec"), scope)
    if plots := sys.modules.get("matplotlib.pyplot"):
        plots.close("all")


def _stand_in_for_ipython() -> None:
    """What cells import from it: text that is shown goes where prints go.

    Not ``IPython`` itself: libraries take its presence for an interactive session.
    """
    display = types.ModuleType("IPython.display")
    display.__dict__.update(display=print, Markdown=str)
    sys.modules["IPython.display"] = display
