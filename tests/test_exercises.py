"""The exercises that check themselves, collected from the notebooks so that a new one cannot be forgotten.

Of each the solution must pass, the empty answer be called empty, and typical mistakes be told what is off.
"""

from __future__ import annotations

import ast
import importlib
import math
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nbformat
import pytest
import torch
import torch.nn.functional as F

from kdsec.config import CHAPTERS, settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^`{3,}\{exercise\}.*\n:label: (\S+)", re.MULTILINE)
# Exercises that ask for an experiment, whose outcome on one seed is no answer to check.
EXPERIMENTS = {"poison-augment", "rml-statistics", "purification-plug"}


@dataclass
class Exercise:
    """What a notebook holds of one exercise: the code its reader completes, and that of its solution."""

    label: str
    chapter: str
    imports: str
    reader: list[str] = field(default_factory=list)
    solution: list[str] = field(default_factory=list)

    def names(self) -> dict[str, Any]:
        """What a cell may use: the chapter's imports and settings, so that no solution needs a training."""
        names: dict[str, Any] = {"s": settings(self.chapter, "quick")}
        exec(self.imports, names)
        return names

    @property
    def check(self) -> str:
        """The function of ``kdsec.exercises`` that the reader's cell ends in."""
        (cell,) = self.reader
        return re.findall(r"^check\.(\w+)\(", cell, re.MULTILINE)[-1]


def imports_of(cells: list[Any]) -> str:
    trees = [ast.parse(cell.source) for cell in cells if "colab" not in cell.metadata.get("tags", [])]
    nodes = (node for tree in trees for node in tree.body)
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def collect() -> list[Exercise]:
    found = []
    for chapter in CHAPTERS.values():
        notebook = nbformat.read(ROOT / "notebooks" / chapter.notebook, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        imports = imports_of(code)
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "markdown":
                found += [Exercise(label, chapter.name, imports) for label in DIRECTIVE.findall(cell.source)]
            elif "exercise" in tags:
                found[-1].reader.append(cell.source)
            elif "solution" in tags:
                found[-1].solution.append(cell.source)
    return found


EXERCISES = collect()
CHECKED = [each for each in EXERCISES if each.label not in EXPERIMENTS]
each_checked = pytest.mark.parametrize("exercise", CHECKED, ids=lambda each: each.label)


def module_of(chapter: str) -> Any:
    return importlib.import_module(f"kdsec.exercises.{chapter.replace('-', '_')}")


def constant(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def kd_gradient(power: float = 1.0, mean: bool = True, hard_T: bool = False, swap: bool = False) -> Any:
    def gradient(z_s: Any, z_t: Any, y: Any, T: float, alpha: float) -> Any:
        soft = T**power * ((z_s / T).softmax(1) - (z_t / T).softmax(1))
        hard = (z_s / (T if hard_T else 1)).softmax(1) - F.one_hot(y, 10)
        alpha = 1 - alpha if swap else alpha
        return (alpha * soft + (1 - alpha) * hard) / (len(y) if mean else 1)

    return gradient


def step(sign: float = 1, free: bool = True, ball: bool = True, box: bool = True) -> Any:
    def next_image(z: Any, stamped: Any, gradient: Any, mask: Any, eps: float, size: float) -> Any:
        moved = z + sign * size * gradient.sign() * (1 - mask if free else 1)
        around = stamped if ball else z
        moved = around + (moved - around).clamp(-eps, eps)
        return moved.clamp(0, 1) if box else moved

    return next_image


def masked(fill: float, T_power: float = 1, renormalise: bool = True) -> Any:
    def answers(z: Any, keep: int, T: float) -> Any:
        least = z.topk(keep, dim=1).values[:, -1:]
        if renormalise:
            return (z.masked_fill(z < least, fill) / T**T_power).softmax(1)
        return (z / T).softmax(1) * (z >= least)

    return answers


def noisy(copy: bool = True, wide: float = 1, places: int = 6, scale: float = 1, flat: bool = False) -> Any:
    def squares(images: Any, side: int, generator: Any) -> Any:
        images = images.clone() if copy else images
        for image in images:
            row, column = torch.randint(places, (2,), generator=generator)
            noise = scale * torch.rand(side, side, generator=generator)[:, : int(wide * side)]
            noise = noise[:1, :1].expand_as(noise) if flat else noise
            image[:, row : row + side, column : column + noise.shape[1]] = noise
        return images

    return squares


def bought(scale: float = 100, thief: str = "best", swap: bool = False) -> Any:
    def points(frame: Any, arm: str) -> Any:
        rows = frame[frame["metric"] == "test accuracy"]
        owners = rows[rows["setting"] == ""].groupby("arm")["value"].mean()
        best = rows[rows["setting"] == f"thief={thief}"].groupby("arm")["value"].mean()
        pair = [scale * (mean["normal"] - mean[arm]) for mean in (owners, best)]
        return pair[::-1] if swap else pair

    return points


REPORTED = {
    "soft labels, honest teacher": 95,
    "soft labels, protected teacher": 40,
    "hard labels, protected teacher": 93,
    "labels of one's own": 91,
    "the same, smoothed": 92,
}
COINS = {"a": 0.9**0.2, "q": 0.1**0.2, "coins": 1 / 32}
# Typical mistakes, and what their hint must speak of.
WRONG: dict[str, list[tuple[Any, str]]] = {
    "opening-yardstick": [(55, "one thief"), (4, "smooth"), (3, "near"), (95, "zero"), (-2, "positive")],
    "opening-gradient": [
        (kd_gradient(mean=False), "mean over the batch"),
        (kd_gradient(power=2), "once too often"),
        (kd_gradient(power=0), "a factor is missing"),
    ],
    "opening-rounding": [
        (torch.log, "log 0"),
        (lambda p: p, "probabilities still"),
        (lambda p: (p + 0.1).log(), "too large"),
    ],
    "opening-temperature": [
        (0, "not drawn at random"),
        (0.56, "largest of two"),
        (1.69, "gap"),
    ],
    "sparse-teacher-lowest": [(0, "p = q"), (0.197, "second class"), (1.69, "second sum"), (1, "one class")],
    "sparse-teacher-stingy": [
        (masked(0.0), "exp"),
        (masked(-math.inf, renormalise=False), "add up to one"),
        (masked(-math.inf, T_power=0), "temperature is missing"),
    ],
    "sparse-teacher-robust": [
        ("harder to fool", "right class"),
        ("neither, beyond doubt", "recorded seeds"),
        ("no", "choose"),
    ],
    "poison-wrong-test": [
        (lambda d, y, t: (d == t).float().mean(), "own images are counted"),
        (lambda d, y, t: (d != y)[y != t].float().mean(), "wrong in any way"),
        (lambda d, y, t: ((d == t) & (y != t)).float().mean(), "denominator"),
    ],
    "poison-step": [
        (step(sign=-1), "wrong way"),
        (step(free=False), "trigger's own pixels"),
        (step(ball=False), "budget is around"),
    ],
    "poison-two-teachers": [
        (lambda p, d: p.gather(1, d[:, None])[:, 0], "where they do not"),
        (lambda p, d: (p.argmax(1) != d).float(), "yes or no"),
        (lambda p, d: 1 - p.amax(1), "doubt of its own"),
    ],
    "rml-two-classes": [(0.5, "two even"), (0, "add up to one"), (0.3, "one negative")],
    "rml-flat": [
        ([2, 0, 0, 0], "dip"),
        ([1, 0, -1], "symmetry"),
        ([1, -1], "two negatives"),
    ],
    "rml-undo": [
        (lambda z, T: -z, "decision is turned"),
        (lambda z, T: z, "nothing is undone"),
        (lambda z, T: torch.where(F.one_hot(z.argmax(1), 10) > 0, z, -z), "together weigh"),
    ],
    "purification-early": [("lower", "nearer"), ("the same", "boundary"), ("50 %", "choose one of")],
    "purification-average": [
        ({"averaged"}, "'both attacked'"),
        ({"averaged", "both attacked", "each its own"}, "another S"),
        ({"both"}, "choose one of"),
    ],
    "purification-straight": [
        (lambda net, x: net(x), "stands still"),
        (lambda net, x: x, "real purifier"),
        (lambda net, x: net(x).detach(), "no gradient"),
    ],
    "differentiators-coins": [
        (COINS | {"a": 0.9}, "a: all five"),
        (COINS | {"q": 0.1}, "q: all five"),
        (COINS | {"q": 0.9**0.2}, "q: a tenth"),
    ],
    "differentiators-kappa": [
        (lambda kappa, c: 1 / (1 + math.exp(-kappa)), "more than two"),
        (lambda kappa, c: 1 / (1 + c * math.exp(-kappa)), "one fewer"),
        (lambda kappa, c: 1 / (1 + (c - 1) * math.exp(kappa)), "sign"),
    ],
    "differentiators-ignorant": [
        (lambda c, m: m / (c * (c - 1) / 2), "know the target"),
        (lambda c, m: m / c, "one fewer"),
        (lambda c, m: 1 - m / (c - 1), "missing"),
    ],
    "crossing-knows": [
        (lambda w, a: (w & a).float().mean(1).max(), "best single"),
        (lambda w, a: (w & a).float().mean(), "at random"),
        (lambda w, a: w.any(0).float().mean(), "rejected does no harm"),
    ],
    "crossing-price": [
        (bought(scale=1), "in points"),
        (bought(scale=-100), "counts positive"),
        (bought(thief="soft labels"), "thief=best"),
    ],
    "crossing-trigger": [
        (noisy(copy=False), "originals have changed"),
        (noisy(places=1), "too few places"),
        (noisy(places=5), "never begin"),
    ],
}


def facts(exercise: Exercise) -> tuple[Any, ...]:
    """What a check is told beside the answer."""
    return (REPORTED,) if exercise.label == "opening-yardstick" else ()


def said(exercise: Exercise, answer: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the check prints."""
    getattr(module_of(exercise.chapter), exercise.check)(answer, *facts(exercise))
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_every_exercise_is_checked_or_an_experiment() -> None:
    assert [each.label for each in EXERCISES if not each.reader] == [
        each.label for each in EXERCISES if each.label in EXPERIMENTS
    ]
    assert set(WRONG) == {each.label for each in CHECKED}


@each_checked
def test_an_empty_answer_is_called_empty(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,) = exercise.reader
    exec(cell, exercise.names())
    assert capsys.readouterr().out == "not answered yet\n"
    for empty in (None, ..., "", {"a": None}):
        assert said(exercise, empty, capsys) == "not answered yet"


@each_checked
def test_the_solution_is_right(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    names = exercise.names()
    (reader,), (solution,) = exercise.reader, exercise.solution
    exec(reader, names)
    exec(solution, names)
    assert re.search(r"^right: \w", capsys.readouterr().out.splitlines()[-1])


@each_checked
def test_a_typical_mistake_is_told_what_is_off(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = WRONG[exercise.label]
    assert len(mistakes) >= 3
    hints = [said(exercise, answer, capsys) for answer, _ in mistakes]
    for hint, (_, about) in zip(hints, mistakes, strict=True):
        assert re.search(f"^not yet: .*({about})", hint), hint
        assert len(hint) < 200


def _stops(*_: Any) -> Any:
    raise ZeroDivisionError("division by zero")


def _not_begun(*_: Any) -> Any:
    raise NotImplementedError


@each_checked
def test_nothing_that_is_filled_in_stops_the_notebook(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    for junk in ("no idea", object(), [], [1, "2"], {"x": 1}, torch.zeros(3, 3), math.nan, _stops, -1e9):
        assert said(exercise, junk, capsys).startswith("not yet: ")
    for result in ("no idea", object(), torch.zeros(2), [], math.nan):
        assert said(exercise, constant(result), capsys).startswith("not yet: ")


@each_checked
def test_a_function_that_is_not_begun_is_no_answer(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    if "def " in exercise.reader[0]:
        assert said(exercise, _not_begun, capsys) == "not answered yet"
        assert "ZeroDivisionError: division by zero" in said(exercise, _stops, capsys)
    else:
        assert said(exercise, _not_begun, capsys).startswith("not yet: ")
