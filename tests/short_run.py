"""``python -m tests.short_run CHAPTER PROFILE [OVERRIDES]``: does a chapter get to its end?

In seconds, since every training takes two steps, photographs are random and few, and fast networks are thin.
So what it computes means nothing. ``OVERRIDES`` are settings as JSON. Exercises are left out.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import pathlib
import pkgutil
import re
import sys
import warnings
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

import kdsec
from kdsec import config, models, notebook, train
from kdsec.config.fields import SHAPES
from kdsec.data import sources
from kdsec.data.names import CLASS_NAMES
from kdsec.models.fast import airbench

ROOT = pathlib.Path(__file__).parent.parent
IMAGES = {"train": 4_000, "test": 400}
# Poisons need a teacher that they can fool into one class; pairs, a student that knows several classes.
TRAINED = re.compile(
    "poisoned-distillation-(teacher|surrogate)|crossing-(normal|public teacher|student)"
    "|differentiators-(teacher|.* student)"
)


def pictures(name: str) -> sources.Arrays:
    """Noise on a grey level of its own for each class."""
    classes, (channels, *size) = len(CLASS_NAMES[name]), SHAPES[name]
    rng, arrays = np.random.default_rng(0), {}
    for part, count in IMAGES.items():
        labels = np.arange(count) % classes
        grey = 40 + 170 * labels[:, None, None, None] / classes
        pixels = grey + rng.normal(0, 20, (count, *size, channels))
        arrays |= {f"{part}_images": pixels.clip(0, 255).astype(np.uint8), f"{part}_labels": labels}
    return arrays


def shorten() -> None:
    """Two steps a training, everywhere; small random photographs; thin fast networks."""
    for module in pkgutil.walk_packages(kdsec.__path__, "kdsec."):
        if module.name.rpartition(".")[2] != "__main__":
            importlib.import_module(module.name)
    real = train.fit

    def fit(model: Any, images: Any, recipe: train.Recipe, *rest: Any, **options: Any) -> list[float]:
        trained = TRAINED.fullmatch(options.get("label", ""))
        steps = min(250, recipe.total_steps(len(images))) if trained else 2
        return real(model, images, dataclasses.replace(recipe, steps=steps), *rest, **options)

    for each in list(sys.modules.values()):
        if each.__name__.startswith("kdsec") and getattr(each, "fit", None) is real:
            vars(each)["fit"] = fit
    digits = sources._digits
    sources._read = lambda name: digits() if name == "digits" else pictures(name)
    for name in [name for name in models.names() if name.startswith("airbench")]:
        models._NETS[name] = models._NETS[name]._replace(make=partial(airbench, widths=(2, 4, 4)))


def run(chapter: str, profile: str, overrides: dict[str, Any]) -> None:
    """Execute the chapter's cells up to its exercises; what the settings do not allow raises as in a run."""
    warnings.simplefilter("ignore")
    mpl.use("Agg")
    torch.set_num_threads(1)
    shorten()
    made = notebook.read(ROOT / "notebooks" / config.CHAPTERS[chapter].notebook)
    known: dict[str, Any] = {"__name__": "__main__", "display": lambda *args, **options: None}
    for number, cell in enumerate(each for each in made.cells if each.cell_type == "code"):
        code = cell.source
        if "from kdsec.exercises" in code:
            break
        if "parameters" in cell.metadata.get("tags", ()):
            code += f"\nprofile, seed, overrides = {profile!r}, 0, {overrides!r}"
        tree = notebook.ReportAssertions().visit(ast.parse(code))
        exec(compile(tree, f"code cell {number + 1} of {chapter}", "exec"), known)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
