"""Settings of the chapter on purification: possible ones only, and equal budgets."""

import dataclasses

import pytest

from kdsec import config, data
from kdsec.defenses.purification import LEVELS, READINGS
from kdsec.errors import KdsecError
from kdsec.report import plots
from kdsec.report.panels import purification as panels

PROFILES = {name: config.settings("purification", name) for name in config.profiles("purification")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'"),
        ({"classifier": "resnet21"}, "unknown model 'resnet21'.*did you mean"),
        ({"teacher": "resnet20"}, "unknown autoencoder 'resnet20'"),
        ({"readings": ("mine",)}, "unknown reading 'mine'"),
        ({"levels": ("pixels",)}, "unknown level 'pixels'"),
        ({"strong": 500}, "strong=500 .*probes="),
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
    assert at.autoencoder_recipe.total_steps(at.owner) == at.purifier_steps
    assert at.end_to_end_recipe.epochs == at.robust_recipe.epochs
    assert at.end_to_end_recipe.optimizer == at.autoencoder_recipe.optimizer == "adam"


def test_the_paper_profile_tries_every_reading_and_every_level():
    assert set(PROFILES["paper"].readings) == set(READINGS) and set(PROFILES["paper"].levels) == set(LEVELS)


def test_there_are_enough_digits_for_the_quick_profile():
    at = PROFILES["quick"]
    digits = data.load("digits", validation=at.validation)
    assert at.training_images <= len(digits.train) and at.probes <= len(digits.test)


def test_another_data_set_brings_its_budget_along():
    there = config.settings("purification", "paper", {"dataset": "fashion-mnist", "probes": 600})
    assert there.eps == 0.1 and there.probes == 600


def test_defences_that_share_a_panel_of_curves_have_colours_of_their_own():
    """There colour alone says which curve is which."""
    curves = panels.curve_arms(PROFILES["quick"])
    assert set(curves) <= set(plots.ARM_COLOURS)
    assert len({plots.colour(arm) for arm in curves}) == len(curves)
