"""The chapter on reversed maximization: its settings, the groups it counts in, and the theft it caches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdsec import chapters
from kdsec.attacks.datafree import DFAD
from kdsec.chapters.reversed_maximization import COMPANIONS, DATAFREE_TARGETS, OTHERS, PROFILES
from kdsec.data.names import CLASS_NAMES, GROUPS
from kdsec.defenses.reversed_maximization import READINGS
from kdsec.errors import KdsecError
from kdsec.run import start


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"readings": ("negated",)}, "unknown reading 'negated'; did you mean 'negate'"),
        ({"readings": ()}, "readings is empty"),
        ({"strengths": (1.0, 0.0)}, "strengths=.*must be above 0"),
        ({"reversal_temperature": 0.0}, "reversal_temperature=0.0 must be above 0"),
        ({"allowed": 2.0}, "allowed=2.0 must be between 0 and 1"),
        ({"suspects": ("normal", "uniformed")}, "unknown teacher 'uniformed'"),
        ({"readings": ("negate", "rank")}, "unknown teacher 'uniform'"),  # a suspect that nobody trains
        ({"datafree_targets": ("soft label",)}, "did you mean 'soft labels'"),
        ({"nasty_weights": (-0.1,)}, "must be 0 or more"),
        ({"thieves": ("mean remover",)}, "unknown thief"),
        ({"student_steps": 0}, "student_steps=0 must be 1 or more"),
    ],
)
def test_impossible_settings_end_in_one_line_before_anything_runs(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        chapters.settings("reversed-maximization", "quick", setting)
    assert "\n" not in str(error.value)


def test_the_paper_profile_tries_every_reading_and_every_way():
    paper = PROFILES["paper"]
    assert set(paper.readings) == set(READINGS) and paper.datafree_targets == DATAFREE_TARGETS
    assert set(OTHERS) < set(paper.drawn_from) and set(OTHERS) < set(paper.suspects)


@pytest.mark.parametrize("dataset", COMPANIONS)
def test_another_data_set_brings_settings_along(dataset):
    there = chapters.settings("reversed-maximization", "paper", {"dataset": dataset, "sparse_keep": 3})
    assert there.nasty_temperature == COMPANIONS[dataset]["nasty_temperature"] and there.sparse_keep == 3


@pytest.mark.parametrize("profile", PROFILES)
def test_thieves_with_a_generator_take_as_many_steps_of_the_student(profile):
    """Equal budgets: otherwise the figure compares patience."""
    at = PROFILES[profile]
    steps = (at.drawing.rounds - at.drawing.warmup) * at.drawing.student_steps
    if profile != "paper":  # there each takes the budget of its own authors' code
        assert at.game.rounds * at.game.student_steps == steps
        assert at.game.batch_size == at.drawing.batch_size


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
    images = [run.steal("normal", attack, student, teacher) for student in students[:2]]
    assert (run.cache.misses, run.cache.hits) == (1, 1)
    assert torch.equal(*images) and images[0].shape[1:] == run.data.train.shape
    one, other, fresh = (student.state_dict() for student in students)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], fresh[name]) for name in one)
    run.steal("normal", dataclasses.replace(attack, rounds=4), students[2], teacher)
    assert run.cache.misses == 2
    run.finish()
