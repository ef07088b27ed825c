"""The chapter on reversed maximization: its settings, the groups it counts in, and the theft it caches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdsec import config
from kdsec.attacks.data_free import DFAD
from kdsec.attacks.extraction import POOL, ExtractionResult
from kdsec.attacks.tuning import Candidate
from kdsec.config.reversed_maximization import OTHERS
from kdsec.data.names import CLASS_NAMES, GROUPS
from kdsec.errors import KdsecError
from kdsec.logits import READINGS
from kdsec.report.panels.reversed_maximization import KINDS, by_kind
from kdsec.run import start

CHAPTER = "reversed-maximization"
PROFILES = {name: config.settings(CHAPTER, name) for name in config.profiles(CHAPTER)}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"readings": ("negated",)}, "unknown reading 'negated'; did you mean 'negate'"),
        ({"suspects": ("normal", "uniformed")}, "unknown teacher 'uniformed'"),
        (
            {"readings": ("negate", "rank", "copy")},
            "unknown teacher 'uniform'",
        ),  # a suspect that nobody trains
        ({"datafree_targets": ("soft label",)}, "did you mean 'soft labels'"),
        ({"thieves": ("mean remover",)}, "unknown thief"),
        ({"readings": ("negate", "uniform")}, "unknown reading, for the cost of the others, 'copy'"),
        ({"poison_budget": 3.0}, "poison_budget"),
    ],
)
def test_impossible_settings_end_in_one_line_before_anything_runs(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        config.settings("reversed-maximization", "quick", setting)
    assert "\n" not in str(error.value)


def test_the_paper_profile_tries_every_reading_and_every_way():
    paper = PROFILES["paper"]
    assert set(paper.readings) == set(READINGS) and paper.game and paper.drawing
    assert set(OTHERS) < set(paper.drawn_from) and set(OTHERS) < set(paper.suspects)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_its_controls(profile):
    at = PROFILES[profile]
    assert {"negate", "rank", "uniform", "copy"} <= set(at.readings)
    assert profile == "quick" or "complement" in at.readings
    assert {1.0, at.temperature} <= set(at.temperatures) & {1.0, *at.search.temperatures}
    assert profile == "quick" or set(POOL) <= set(at.thieves)
    assert all(set(at.thieves) & set(kind) for kind in KINDS.values())
    assert "normal" in at.suspects and len(at.strengths) > 1
    assert at.protections(0.7).reversal_weight == 0.7


@pytest.mark.parametrize(("dataset", "temperature"), [("cifar10", 4.0), ("tiny-imagenet", 20.0)])
def test_another_data_set_brings_settings_along(dataset, temperature):
    there = config.settings("reversed-maximization", "paper", {"dataset": dataset, "sparse_keep": 3})
    assert there.nasty_temperature == temperature and there.sparse_keep == 3


@pytest.mark.parametrize("dataset", GROUPS)
def test_every_class_is_in_one_group(dataset):
    members = [name for names in GROUPS[dataset].values() for name in names]
    assert sorted(members) == sorted(CLASS_NAMES[dataset])


def test_the_groups_of_cifar100_are_twenty_of_five():
    assert len(GROUPS["cifar100"]) == 20
    assert {len(members) for members in GROUPS["cifar100"].values()} == {5}


def test_a_theft_without_data_is_done_once_and_gives_the_same_again():
    attack = DFAD(rounds=3, batch_size=16, latent=8, width=8)
    run = start("reversed-maximization", seed=1)
    teacher = run.build("digits-cnn").eval()
    students = [run.build("digits-small") for _ in range(3)]
    images = [run.data_free("normal", attack, student, teacher) for student in students[:2]]
    assert (run.cache.misses, run.cache.hits) == (1, 1)
    assert torch.equal(*images) and images[0].shape[1:] == run.data.train.shape
    one, other, fresh = (student.state_dict() for student in students)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], fresh[name]) for name in one)
    run.data_free("normal", dataclasses.replace(attack, rounds=4), students[2], teacher)
    assert run.cache.misses == 2
    run.finish()


def test_a_kind_of_thief_that_was_not_run_has_no_best():
    result = ExtractionResult("negatives negated", torch.nn.Identity(), 1.0, 0, Candidate(1.0, 1.0))
    assert by_kind([result]) == {"best undoing": [result]}
