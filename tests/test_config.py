"""Settings: every field of every chapter refuses what it cannot take, in one line, before anything runs."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pathlib
import re
import subprocess
import sys
import types
import typing

import nbformat
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsec import config
from kdsec.config import fields
from kdsec.config.fields import build
from kdsec.errors import KdsecError
from kdsec.run import Run

QUICK = {chapter: config.settings(chapter, "quick") for chapter in config.CHAPTERS}
FIELDS = [(chapter, field.name) for chapter, at in QUICK.items() for field in dataclasses.fields(at)]


def refused(chapter, overrides, name, profile="quick"):
    with pytest.raises(KdsecError) as caught:
        config.settings(chapter, profile, overrides)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def bounds(hint):
    """The limits that a type states, of a tuple those of its entries."""
    found = []
    for each in getattr(hint, "__metadata__", ()):
        found += getattr(each, "metadata", [])
    for inner in typing.get_args(hint):
        found += bounds(inner)
    return found


def outside(hint):
    """Numbers that the type of a field does not allow."""
    whole = int in (hint, *typing.get_args(hint), *map(typing.get_origin, typing.get_args(hint)))
    numbers = st.integers if whole or "int" in str(hint) else st.floats
    for limit in bounds(hint):
        match limit:
            case Gt(gt=least) | Ge(ge=least):
                below = st.just(least) if isinstance(limit, Gt) else st.nothing()
                yield numbers(max_value=least - 1) | below
            case Lt(lt=most) | Le(le=most):
                above = st.just(most) if isinstance(limit, Lt) else st.nothing()
                yield numbers(min_value=most + 1) | above
    if numbers is st.floats:
        yield st.just(float("nan"))


@pytest.mark.parametrize(("chapter", "name"), FIELDS)
def test_every_field_refuses_values_of_another_kind(chapter, name):
    value = getattr(QUICK[chapter], name)
    wrong = [None, b"", object(), "no such name", [], [[]]]
    if isinstance(value, tuple):
        wrong = ["name", 3, [None], [*value, *value] if value else [1, 1]]
    elif isinstance(value, bool | int | float):
        wrong += [1 if isinstance(value, bool) else True, "many", [value]]
        wrong += [value + 0.5] if isinstance(value, int) else []
    if name in ("fast", "drawing", "game", "schedule"):  # None is the default, or it has names of its own
        wrong = wrong[1:]
    if isinstance(value, str) and name == "trigger":
        wrong = [3, "no such trigger"]
    for each in wrong:
        refused(chapter, {name: each}, "")


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_numbers_out_of_bounds_are_refused_and_named(data):
    chapter, name = data.draw(st.sampled_from(FIELDS))
    hint = typing.get_type_hints(type(QUICK[chapter]), include_extras=True)[name]
    if choices := list(outside(hint)):
        number = data.draw(st.one_of(choices))
        value = [number] if isinstance(getattr(QUICK[chapter], name), tuple) else number
        refused(chapter, {name: value}, name)
        with pytest.raises(KdsecError):
            dataclasses.replace(QUICK[chapter], **{name: tuple(value) if isinstance(value, list) else value})


IMPOSSIBLE = [
    ("opening", {"queries": [50, 50]}, "50 twice"),
    ("opening", {"queries": [450, 50]}, "smallest"),
    ("opening", {"owner": 10}, "64 or more"),
    ("opening", {"validation": 1e-5}, "classes"),
    ("opening", {"owner": 1000}, "1078"),
    ("opening", {"queries": [50, 5000]}, "deals out 5600"),
    ("opening", {"teacher": "vgg16"}, "8x8"),
    ("opening", {"ower": 600}, "did you mean 'owner'"),
    ("opening", {"recipe": {"ler": 1}}, "did you mean 'lr'"),
    ("opening", {"recipe": {"lr": -1.0}}, "lr"),
    ("opening", {"recipe": {"augment": {"crop": 1.5}}}, "crop"),
    ("sparse-teacher", {"stingy_keep": 11}, "stingy_keep"),
    ("poisoned-distillation", {"trigger": "square 9"}, "larger than the 8x8"),
    ("poisoned-distillation", {"clean": 5}, "clean"),
    ("purification", {"bits": 9}, "bits"),
    ("crossing", {"target": 10}, "target"),
    ("crossing", {"mimicry": {"eps": "wide"}}, "eps"),
    ("crossing", {"strengths": {"sparse_keep": 20}}, "sparse_keep"),
    ("poisoned-distillation", {"rate": 1.0}, "rate"),
    ("poisoned-distillation", {"rates": [0.1, 0.6]}, "rate"),
    ("crossing", {"rate": 0.51}, "rate"),
    ("poisoned-distillation", {"cure": {"weight_decay": 100.0}}, "cure"),
    ("crossing", {"making": {"recipe": {"weight_decay": 1e4}}}, "making.recipe"),
    ("crossing", {"private_recipe": {"optimizer": "muon"}}, "private_recipe"),
    ("differentiators", {"student_recipe": {"optimizer": "muon"}}, "student_recipe"),
]


@pytest.mark.parametrize(("chapter", "overrides", "name"), IMPOSSIBLE, ids=str)
def test_settings_that_can_only_fail_are_refused(chapter, overrides, name):
    refused(chapter, overrides, name)


@pytest.mark.parametrize("chapter", config.CHAPTERS)
def test_every_table_of_a_chapter_is_complete_and_possible(chapter):
    for profile in config.profiles(chapter):
        assert config.settings(chapter, profile)
    for dataset in config.companions(chapter):
        assert config.settings(chapter, "paper", {"dataset": dataset}).dataset == dataset


def test_single_fields_of_a_table_and_fractions_can_be_given():
    at = config.settings("opening", "quick", {"recipe": {"lr": 0.3, "augment": {"flip": True}}})
    expected = dataclasses.replace(QUICK["opening"].recipe, lr=0.3)
    assert at.recipe == dataclasses.replace(expected, augment=at.recipe.augment)
    assert (at.recipe.augment.crop, at.recipe.augment.flip) == (1, True)
    assert config.settings("crossing", "quick", {"eps": "8/255"}).eps == 8 / 255
    assert config.settings("opening", "quick", {"recipe": expected}).recipe == expected


def test_a_profile_inherits_what_it_does_not_change():
    small, second = (config.settings("purification", profile) for profile in ("small", "second"))
    changed = {
        field.name
        for field in dataclasses.fields(small)
        if getattr(small, field.name) != getattr(second, field.name)
    }
    assert "dataset" in changed and changed <= set(config._tables("purification")["second"])
    ours, theirs = second.purifier_recipe, small.purifier_recipe
    assert ours != theirs and ours.optimizer == theirs.optimizer and ours.lr == theirs.lr


def test_settings_are_said_to_belong_to_their_class():
    for chapter, at in QUICK.items():
        module = importlib.import_module(type(at).__module__)
        values = {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
        assert build(getattr(module, type(at).__name__), values) == at, chapter


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_a_list_of_chapters_does_not_wait_for_heavy_imports(arguments):
    code = (
        "import sys, kdsec.cli\n"
        "try: kdsec.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pydantic', 'numpy', 'pandas'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


class Training:
    """Stands in for a data set's training images beside those for validation."""

    def __init__(self, settings):
        total = fields._TRAINING_IMAGES[settings.dataset]
        self.name, self.count = settings.dataset, total - round(total * settings.validation)

    def __len__(self):
        return self.count

    def subset(self, part):
        return part


# Chapter 6 splits its images itself, without ``run.deal``.
@pytest.mark.parametrize("chapter", [name for name in config.CHAPTERS if name != "differentiators"])
def test_notebooks_deal_out_the_images_that_planning_counts(chapter):
    """At every profile: a run must not fail at what its plan has accepted."""
    name = pathlib.Path(__file__).parent.parent / "notebooks" / config.CHAPTERS[chapter].notebook
    cells = [cell.source for cell in nbformat.read(name, as_version=4).cells if "run.deal(" in cell.source]
    lines = [node for cell in cells for node in ast.parse(cell).body]
    wanted = [node for node in lines if re.search(r"run\.deal\(|^sizes = ", ast.unparse(node))]
    for profile in config.profiles(chapter):
        at = config.settings(chapter, profile)
        if at.dataset not in fields._TRAINING_IMAGES:
            continue
        data = types.SimpleNamespace(train=Training(at))
        run = types.SimpleNamespace(data=data, seed=0, device="cpu")
        parts = []

        def deal(*counts, run=run, parts=parts, **options):
            parts += Run.deal(run, *counts, **options)
            return parts

        run.deal = deal
        exec(compile(ast.Module(wanted, []), str(name), "exec"), {"run": run, "s": at})
        assert parts and len(torch.cat(parts).unique()) == at.training_images


@pytest.mark.parametrize(
    ("chapter", "name"), [("sparse-teacher", "theft"), ("poisoned-distillation", "distill")]
)
def test_a_thief_with_the_owners_images_has_no_more_than_the_owner(chapter, name):
    at = config.settings(chapter, "small")
    config.settings(chapter, "small", {name: at.owner})
    refused(chapter, {name: at.owner + 1}, name, "small")


def test_the_teachers_of_one_seed_are_the_same_in_chapters_2_3_4_and_7():
    """Equal data, split, share of the owner, network and recipe: trained once, then read from the cache."""
    names = ("sparse-teacher", "poisoned-distillation", "reversed-maximization", "crossing")
    chapters = [config.settings(name, "small") for name in names]
    for field in ("dataset", "validation", "owner", "teacher", "student", "recipe"):
        values = {getattr(each, field) for each in chapters if hasattr(each, field)}
        assert len(values) == 1, field
    purified = config.settings("purification", "small")
    one = chapters[0]
    assert (purified.dataset, purified.validation, purified.owner) == (one.dataset, one.validation, one.owner)
    assert purified.recipe == one.recipe
    sparse, reversed_, crossing = (config.settings(name, "small") for name in (names[0], *names[2:]))
    strengths = vars(crossing.strengths)
    reversal = {"reversal_weight", "reversal_temperature"}
    for other, own in (
        (sparse.strengths, {"robust_steps", *reversal}),
        (reversed_.protections(strengths["reversal_weight"]), {"robust_steps"}),
    ):
        assert {name for name, value in vars(other).items() if strengths[name] != value} <= own
    assert strengths["reversal_weight"] in reversed_.strengths
    assert (purified.eps, purified.inner_steps) == (crossing.eps, crossing.strengths.robust_steps)
    assert sparse.search == reversed_.search == crossing.search


@pytest.mark.parametrize(("chapter", "name"), FIELDS)
def test_a_table_is_refused_where_none_belongs(chapter, name):
    value = getattr(QUICK[chapter], name)
    tables = (field for field in ("fast", "drawing", "game") if field == name)
    if dataclasses.is_dataclass(value) or next(tables, None):
        assert config.settings(chapter, "quick", {name: {}})  # changes nothing, or takes the defaults
        refused(chapter, {name: 5}, "table")
    else:
        refused(chapter, {name: {}}, name)


# In tables whose dataclasses check nothing, or refused by the functions that take the value, after training.
INSIDE = [
    ("opening", {"smoothing": 1}, "smoothing"),
    ("opening", {"search": {"temperatures": [1, 1.0]}}, "1.0 twice"),
    ("opening", {"search": {"rates": [2, 2]}}, "2.0 twice"),
    ("opening", {"student_steps": 10**24}, "student_steps"),
    ("opening", {"recipe": {"augment": {"crop": 10**10}}}, "crop"),
    ("crossing", {"mimicry": {"precision": "nan"}}, "precision"),
    ("differentiators", {"mimicry": {"levels": 0}}, "levels"),
    ("differentiators", {"mimicry": {"stabilizer": -1}}, "stabilizer"),
    *(
        ("crossing", {"strengths": {name: number}}, name)
        for name, number in {
            "smoothing": 1,
            "nasty_temperature": 0,
            "nasty_weight": -1,
            "stingy_keep": 0,
            "sparse_keep": -1,
            "sparse_temperature": 0,
            "sparse_alpha": 2,
            "eps": -1,
            "step_size": -0.5,
            "steps": 0,
            "reversal_temperature": 0,
            "reversal_weight": 0,
            "robust_steps": 0,
            "precision": "x",
        }.items()
    ),
]


@pytest.mark.parametrize(("chapter", "overrides", "name"), INSIDE, ids=str)
def test_bounds_hold_in_tables_inside_too(chapter, overrides, name):
    refused(chapter, overrides, name)


@pytest.mark.parametrize(
    ("chapter", "changes"),
    [
        ("opening", {"teacher": "digits-mlp"}),
        ("opening", {"student": "digits-mlp"}),
        ("sparse-teacher", {"teacher": "digits-mlp"}),
        ("sparse-teacher", {"students": ["digits-mlp", "digits-small"]}),
        ("poisoned-distillation", {"student": "digits-mlp"}),
        ("crossing", {"student": "digits-mlp", "thieves": ["soft labels", "features"]}),
    ],
)
def test_attention_transfer_without_a_common_stage_is_refused_before_anything_runs(chapter, changes):
    refused(chapter, changes, "=digits-mlp")


def test_a_perceptron_is_taken_where_no_attention_is_transferred():
    assert config.settings("crossing", "quick", {"student": "digits-mlp"}).student == "digits-mlp"
    pool = {"students": ["digits-mlp"], "thieves": ["soft labels"]}
    assert config.settings("sparse-teacher", "quick", pool).students == ("digits-mlp",)
