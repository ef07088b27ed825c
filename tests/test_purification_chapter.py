"""Settings of the chapter on purification: possible ones only, and equal budgets."""

import dataclasses

import pytest

from kdsec import chapters, data
from kdsec.chapters.purification import COMPANIONS, PROFILES
from kdsec.defenses.purification import LEVELS, READINGS
from kdsec.errors import KdsecError
from kdsec.report import plots
from tests.test_plots import EYES, nearest


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'"),
        ({"classifier": "resnet21"}, "unknown model 'resnet21'.*did you mean"),
        ({"teacher": "resnet20"}, "unknown autoencoder 'resnet20'"),
        ({"readings": ("mine",)}, "unknown reading 'mine'"),
        ({"levels": ("pixels",)}, "unknown level 'pixels'"),
        ({"readings": ()}, "setting readings is empty"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
        ({"eps": 8.0}, "eps=8.0 must be between 0 and 1"),
        ({"budgets": (0.1, 0.0)}, "budgets=.* must be above 0"),
        ({"weight": 1.0}, "leaves the normal teacher nothing"),
        ({"weight": 0.0}, "weight=0.0 must be above 0"),
        ({"probes": 0}, "probes=0 must be 1 or more"),
        ({"restarts": 0}, "restarts=0 must be 1 or more"),
        ({"bits": 0}, "bits=0 must be 1 or more"),
        ({"library": 121}, "library=121 must be between 0 and the number of probes, 120"),
    ],
)
def test_impossible_settings_end_in_one_line(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        dataclasses.replace(PROFILES["quick"], **setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_measures_its_training_budget_and_trains_all_autoencoders_alike(profile):
    at = PROFILES[profile]
    assert at.eps in at.budgets and at.readings[0] == "averaged" and at.levels[0] == "image"
    steps = at.autoencoder_recipe.epochs * (at.owner // at.autoencoder_recipe.batch_size)
    assert steps == pytest.approx(at.purifier_steps, rel=0.1)
    assert at.end_to_end_recipe.epochs == at.robust_recipe.epochs
    assert at.end_to_end_recipe.optimizer == at.autoencoder_recipe.optimizer == "adam"


def test_the_paper_profile_tries_every_reading_and_every_level():
    assert set(PROFILES["paper"].readings) == set(READINGS) and set(PROFILES["paper"].levels) == set(LEVELS)


def test_there_are_enough_digits_for_the_quick_profile():
    at = PROFILES["quick"]
    digits = data.load("digits", validation=at.validation)
    assert at.training_images <= len(digits.train) and at.probes <= len(digits.test)


@pytest.mark.parametrize("dataset", COMPANIONS)
def test_companions_are_settings(dataset):
    assert dataclasses.replace(PROFILES["paper"], dataset=dataset, **COMPANIONS[dataset]).dataset == dataset


def test_another_data_set_brings_its_budget_along():
    there = chapters.settings("purification", "paper", {"dataset": "fashion-mnist", "probes": 600})
    assert there.eps == COMPANIONS["fashion-mnist"]["eps"] and there.probes == 600


@pytest.mark.parametrize("eye", EYES)
def test_defences_that_share_a_panel_of_curves_are_told_apart(eye):
    """There colour alone says which curve is which."""
    curves = ("undefended", "ensemble, averaged", "end to end", "PGD-AT", "TRADES")
    assert set(curves) <= set(plots.ARM_COLOURS) and nearest(curves, eye)[0] > 10
