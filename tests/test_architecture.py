"""The package's layers: a module imports only from layers below its own."""

from __future__ import annotations

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent / "kdsec"

# From the bottom up. Modules of one layer may import each other, except attacks and defenses.
LAYERS = [
    ("errors",),
    ("fingerprint",),
    ("entry", "logits", "data", "models"),
    ("optim",),
    ("train",),
    ("oracle",),
    ("budgets",),
    ("distill", "layered", "pgd"),
    ("cache",),
    ("attacks", "defenses"),
    ("config",),
    ("report",),
    ("exercises", "run"),
    ("audit",),
    ("runner", "planning", "notebook"),
    ("cli",),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imports():
    """Each import between two parts of the package: file, the part that imports, the part imported."""
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).with_suffix("").parts[0]
        if part in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "kdsec":
                names = [f"kdsec.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                package, _, rest = name.partition(".")
                if package == "kdsec" and rest and rest != "__version__":
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", part, rest.split(".")[0]


def test_imports_point_down_the_list_of_layers():
    wrong = [
        f"{where}: {importer} imports {imported}"
        for where, importer, imported in imports()
        if importer != imported
        and (RANK.get(imported, 99) > RANK[importer] or {importer, imported} == {"attacks", "defenses"})
    ]
    assert not wrong, "\n".join(wrong)


def test_every_part_of_the_package_is_in_the_list():
    parts = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")}
    assert parts - {"__init__", "__main__"} <= set(RANK)
