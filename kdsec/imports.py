"""Which of the package's files a piece of code can run: followed through its import statements."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parent


def imported_files(code: str, within: str = "") -> set[pathlib.Path]:
    """The package's files that ``code`` imports, and those that they import, and so on.

    Imports inside functions count; names put together while running (``importlib``) are not seen.

    Args:
        code: Python source.
        within: follow only into this subpackage, ``"attacks"`` for instance.
    """
    found: set[pathlib.Path] = set()
    waiting = [code]
    while waiting:
        for name in _imports(waiting.pop()):
            for file in _files(name):
                if file not in found and file.is_relative_to(PACKAGE / within):
                    found.add(file)
                    waiting.append(file.read_text(encoding="utf-8"))
    return found


def without_commands(code: str) -> str:
    """A cell's code as plain Python: nothing is done in place of IPython's commands (``%`` and ``!``)."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)


@functools.lru_cache(maxsize=256)
def _imports(code: str) -> tuple[str, ...]:
    """Dotted names below kdsec; ``from kdsec.data import load`` names both kdsec.data and kdsec.data.load."""
    names: list[str] = []
    try:
        tree = ast.parse(without_commands(code))
    except SyntaxError:
        return ()  # it will not run either
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.partition(".")[0] == PACKAGE.name)


def _files(name: str) -> list[pathlib.Path]:
    """The file of a module and the ``__init__`` files above it; for a name in a module, what is above."""
    path, candidates = PACKAGE, []
    for part in name.split(".")[1:]:
        candidates.append(path / "__init__.py")
        path = path / part
    return [file for file in (*candidates, path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
