"""The chapter on attacks through a public teacher: its settings, its margin, and attacks made only once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdsec import chapters, models
from kdsec.attacks.ascent import margin
from kdsec.attacks.mimicry import mimic
from kdsec.chapters.differentiators import ADAPTIVE, COMPANIONS, PROFILES
from kdsec.defenses.pruning import RANKINGS
from kdsec.errors import KdsecError
from kdsec.run import start
from kdsec.transfer import only, unfold


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"adaptive": ("differentiator",)}, "did you mean 'differentiators'"),
        ({"adaptive": ()}, "adaptive is empty"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (2, 1)}, "layer 3, which students keep"),
        ({"layers": (3, 0)}, "layers=.*1 or more"),
        ({"keeps": (2, 3)}, "keeps=.*most layers first"),
        ({"beyond": 0.0}, "beyond=0.0 must be above 0"),
        ({"rivals": 0}, "rivals=0 must be 1 or more"),
        ({"adversarial_steps": 0}, "adversarial_steps=0 must be 1 or more"),
        ({"rankings": ("activations",)}, "did you mean 'activation'"),
        ({"student_classes": 1}, "at least 2"),
        ({"teacher_classes": 6}, "at most the 10 of digits"),
        ({"group": 6}, "must be 2 to 5"),
        ({"rate": 1.5}, "between 0 and 1"),
    ],
)
def test_impossible_settings_end_in_one_line_before_anything_runs(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        chapters.settings("differentiators", "quick", setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_tables_and_the_verdict_need_is_run(profile):
    at = PROFILES[profile]
    assert 0.0 in at.ratios and "random" in at.rankings  # the controls
    assert {"differentiators", "one full student"} <= set(at.adaptive)
    assert 0 in at.keeps and at.budgets and at.epsilons
    assert at.members <= at.student_classes - 1 and max(at.sizes) <= at.student_classes - 1


def test_the_paper_profile_tries_every_ranking_and_every_attacker():
    paper = PROFILES["paper"]
    assert {*paper.rankings, paper.making.ranking} == set(RANKINGS)
    assert paper.adaptive == ADAPTIVE
    assert paper.mimicry.steps == 2_000 and paper.mimicry.budget == 0.003  # as in the attack's code


@pytest.mark.parametrize("profile", PROFILES)
def test_layers_exist_and_classes_are_shared_out(profile):
    at = PROFILES[profile]
    shape = (1, 8, 8) if at.dataset == "digits" else (3, 32, 32)
    depth = unfold(models.build(at.model, 2, shape)).depth
    assert at.keeps[0] == depth and max(at.layers) == depth
    assert set(at.keeps) - {0} <= set(at.layers)  # every frozen student is attacked at its own K
    taught, learnt = at.classes
    assert len(learnt) == at.student_classes
    assert at.dataset != at.student_dataset or not set(taught) & set(learnt)


def test_traffic_signs_are_never_mirrored():
    for at in (PROFILES["second"], chapters.settings("differentiators", "paper", {"dataset": "gtsrb-224"})):
        assert at.student_dataset.startswith("gtsrb")
        assert not any(each.augment.flip for each in (at.student_recipe, at.making.recipe, at.away_recipe))


@pytest.mark.parametrize("dataset", COMPANIONS)
def test_published_teachers_are_taken_as_they_are(dataset):
    at = chapters.settings("differentiators", "paper", {"dataset": dataset})
    assert at.published and at.student_dataset == dataset and "hardened teacher" not in at.adaptive
    with torch.device("meta"):
        depth = unfold(models.imagenet(at.model, 10, weights=False)).depth
    assert at.keeps[0] == depth == max(at.layers) and set(at.keeps) - {0} <= set(at.layers)
    for wrong in ({"dataset": "cifar10"}, {"adaptive": ADAPTIVE}):
        with pytest.raises(KdsecError, match="published teacher, whose training images are not here"):
            dataclasses.replace(at, **wrong)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_the_margin_that_passes_a_threshold_does(classes):
    """As the chapter derives kappa: log odds of the threshold, and log(C - 1) for more than two classes."""
    generator = torch.Generator().manual_seed(0)
    for theta in (0.2, 0.9, 0.999):
        logits = 4 * torch.randn(2_000, classes, generator=generator, dtype=torch.float64)
        wide = torch.tensor(theta, dtype=torch.float64).logit() + torch.tensor(classes - 1.0).log()
        logits[:, 0] += wide + 4
        enough = -margin(logits, torch.zeros(2_000, dtype=torch.long)) >= wide
        assert enough.any() and (logits.softmax(1)[enough, 0] >= theta - 1e-6).all()
    # For two classes no smaller margin will do.
    short = torch.tensor([[0.9, 0.0]], dtype=torch.float64).logit()[:, :1]
    assert torch.cat([short - 0.01, torch.zeros(1, 1)], 1).softmax(1)[0, 0] < 0.9


def test_an_attack_is_computed_once_and_gives_the_same_again():
    run = start("differentiators", seed=1)
    at = run.settings
    taught = only(run.data.train, at.classes[0])
    teacher = models.build(at.model, 5, taught.shape, seed=0).eval()
    images = taught.float_images(slice(0, 6))
    budget = dataclasses.replace(at.mimicry, steps=3)
    made = [run.once("mimic", mimic, teacher, 3, images, images.flip(0), budget) for _ in range(2)]
    assert torch.equal(*made) and (run.cache.misses, run.cache.hits) == (1, 1)
    run.once("mimic", mimic, teacher, 2, images, images.flip(0), budget)
    assert run.cache.misses == 2
    run.finish()
