"""The closing chapter: its settings, and the dictionary of protected teachers that readers may add to."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdsec import config
from kdsec.attacks.extraction import EXTRACTION_ATTACKS, ExtractionAttack, TrainSpec, run_attacks
from kdsec.defenses.registry import DEFENSES, DefenseContext
from kdsec.defenses.stingy import Stingy
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.train import Recipe, evaluate, fit, predict
from tests.small import build

PROFILES = {name: config.settings("crossing", name) for name in config.profiles("crossing")}
QUICK = PROFILES["quick"]
RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"teachers": ("nasty", "normal")}, 'begin with "normal" and "soft labels"'),
        ({"teachers": ("normal", "nastier")}, "unknown teacher 'nastier'; did you mean 'nasty'"),
        ({"teachers": ("normal",)}, "victims names .* not among teachers"),
        ({"private_classes": 6}, "together at most the 10 of digits"),
        ({"eps": 8.0}, "eps"),
        ({"autoencoder": "autoencode"}, "did you mean 'autoencoder'"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        dataclasses.replace(QUICK, **setting)
    assert "\n" not in str(error.value)


def test_students_take_as_many_steps_on_few_images_as_on_many():
    for images in (128, 506, 2_000):
        recipe = QUICK.student_recipe(images)
        assert recipe.total_steps(images) == QUICK.student_steps


@pytest.fixture(scope="module")
def shop(digits):
    owner = digits.train.subset(slice(0, 400))
    trained = []

    def train(arm, loss=None, images=None):
        model = build(digits)
        fit(model, owner if images is None else images, RECIPE, loss)
        trained.append(arm)
        return model

    normal = train("normal")
    made = DefenseContext(normal, train, owner, QUICK.strengths, lambda label, make, *a, **o: make(*a, **o))
    return made, trained


@pytest.mark.parametrize("name", DEFENSES)
def test_every_protected_teacher_is_one(name, shop, digits):
    made, trained = shop
    before = {key: value.clone() for key, value in made.normal.state_dict().items()}
    trained.clear()
    teacher = DEFENSES[name](made)
    assert evaluate(teacher, digits.test).accuracy > 0.6
    assert all(torch.equal(value, before[key]) for key, value in made.normal.state_dict().items())
    answers, honest = predict(teacher, digits.test), predict(made.normal, digits.test)
    assert answers.shape == honest.shape
    assert torch.equal(answers, honest) == (name == "normal")
    assert trained == ([] if name in ("normal", "stingy") else [name])


def test_ones_own_defence_and_thief_meet_all_others(shop, digits, monkeypatch):
    """What the page on adding a method says, to the letter."""
    made, _ = shop
    monkeypatch.setitem(DEFENSES, "mine", lambda each: Stingy(each.normal, 1))

    def mine(student, teacher, images, temperature, alpha, seed):
        return TrainSpec(student, images, KD(teacher, temperature, alpha))

    monkeypatch.setitem(EXTRACTION_ATTACKS, "mine", ExtractionAttack(mine))
    at = dataclasses.replace(QUICK, teachers=(*QUICK.teachers, "mine"), thieves=(*QUICK.thieves, "mine"))
    assert at.teachers[-1] == at.thieves[-1] == "mine"
    stolen = run_attacks(
        {name: EXTRACTION_ATTACKS[name] for name in ("soft labels", "mine")},
        lambda: build(digits),
        DEFENSES["mine"](made),
        digits.train.subset(slice(400, 700)).unlabelled(),
        digits.val,
        RECIPE,
        alpha=1.0,
    )
    first, second = (predict(each.student, digits.test) for each in stolen)
    assert torch.equal(first, second)  # mine *is* plain distillation
