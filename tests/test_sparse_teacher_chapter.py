"""The chapter on the adversarial sparse teacher: its settings, and on real small nets what it builds on."""

import dataclasses
import statistics

import pytest

from kdsec import config, data, models
from kdsec.config.sparse_teacher import VARIANTS
from kdsec.defenses.nasty import NastyLoss
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.train import evaluate, fit

PROFILES = {name: config.settings("sparse-teacher", name) for name in config.profiles("sparse-teacher")}
QUICK = PROFILES["quick"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"thieves": ("soft label",)}, "did you mean 'soft labels'"),
        ({"variants": ("paired",)}, "unknown variant 'paired'"),
        ({"schedule": "fast"}, "unknown schedule 'fast'"),
    ],
)
def test_impossible_settings_end_in_one_line_before_anything_runs(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        config.settings("sparse-teacher", "quick", setting)
    assert "\n" not in str(error.value)


def test_the_paper_profile_has_a_fast_schedule_and_tries_every_variant():
    paper = PROFILES["paper"]
    fast = dataclasses.replace(paper, schedule="fast")
    assert fast.training.epochs < paper.training.epochs / 3
    assert set(paper.variants) == set(VARIANTS)


def test_lists_are_taken_for_settings_of_several_values():
    changed = config.settings("sparse-teacher", "quick", {"students": ["digits-small"], "alphas": [0.5, 1]})
    assert (changed.students, changed.alphas) == (("digits-small",), (0.5, 1))


def test_another_data_set_brings_the_authors_settings_along():
    there = config.settings("sparse-teacher", "paper", {"dataset": "cifar100", "sparse_keep": 5})
    assert (there.stingy_keep, there.temperature, there.recipe.epochs) == (10, 20.0, 200)
    assert there.sparse_keep == 5  # what is named stays
    assert config.settings("sparse-teacher", "small", {"dataset": "cifar100"}).stingy_keep == 2


@pytest.mark.parametrize("images", [1_000, 5_000, 20_000, 45_000])
def test_students_take_as_many_steps_on_few_images_and_decay_at_the_same_share(images):
    paper = PROFILES["paper"]
    recipe = paper.student_recipe(images)
    assert recipe.total_steps(images) == paper.student_steps
    shares = [milestone / recipe.epochs for milestone in recipe.milestones]
    assert shares == pytest.approx([0.5, 0.75], abs=0.01)


def test_the_short_schedule_is_short_for_students_too():
    fast = dataclasses.replace(PROFILES["paper"], schedule="fast")
    recipe = fast.student_recipe(fast.owner)
    assert (recipe.epochs, recipe.optimizer) == (50, "muon")


@pytest.mark.parametrize(
    "changed",
    [
        {"teacher": "digits-mlp", "thieves": ["soft labels"]},  # attention transfer would refuse it too
        {"students": ["cnn", "digits-mlp"]},
    ],
)
def test_networks_that_the_short_schedule_cannot_train_are_refused_before_anything_runs(changed):
    config.settings("sparse-teacher", "paper", changed)
    with pytest.raises(KdsecError, match="schedule=fast .* digits-mlp has none; .* schedule=full"):
        config.settings("sparse-teacher", "paper", {"schedule": "fast", **changed})


@pytest.mark.slow
def test_a_nasty_teacher_keeps_its_accuracy_and_fails_its_students():
    """Over six seeds, at the settings of the quick profile: the claim that the chapter starts from."""
    lost, harm = [], []
    for seed in range(6):
        splits = data.load(QUICK.dataset, validation=QUICK.validation, seed=seed)
        mean, std = splits.train.mean_std()
        owner = splits.train.subset(slice(0, QUICK.owner))

        def trained(name, images, recipe, loss=None, mean=mean, std=std, seed=seed):
            model = models.build(name, 10, (1, 8, 8), mean=mean, std=std, seed=seed)
            fit(model, images, recipe, loss, seed=seed)
            return model

        normal = trained(QUICK.teacher, owner, QUICK.training)
        loss = NastyLoss(normal, QUICK.nasty_temperature, QUICK.nasty_weights[0])
        nasty = trained(QUICK.teacher, owner, QUICK.training, loss)
        students = [
            trained(
                QUICK.students[0],
                owner.unlabelled(),
                QUICK.student_recipe(len(owner)),
                KD(teacher, QUICK.temperature, 1.0),
            )
            for teacher in (normal, nasty)
        ]
        accuracy = [evaluate(model, splits.test).accuracy for model in (normal, nasty, *students)]
        lost.append(accuracy[0] - accuracy[1])
        harm.append(accuracy[2] - accuracy[3])
    assert statistics.mean(lost) < 0.01, lost
    assert statistics.mean(harm) > 0.015 and min(harm) > 0, harm
