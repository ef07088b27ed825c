"""The chapter on attacks through a public teacher: its settings, its margin, and attacks made only once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdsec import config, data, models, train
from kdsec.attacks.adaptive_mimicry import enough_margin
from kdsec.attacks.mimicry import mimic
from kdsec.data import Augment
from kdsec.data.imageset import to_bytes
from kdsec.defenses.pruning import RANKINGS
from kdsec.errors import KdsecError
from kdsec.layered import fit_above, flatten_layers, select_classes, student_parts, transfer
from kdsec.logits import margin
from kdsec.report.claims import Quantity
from kdsec.report.panels import differentiators as panels
from kdsec.report.panels import disguises
from kdsec.report.records import Records, labelled
from kdsec.run import start
from kdsec.train import Recipe, predict

PROFILES = {name: config.settings("differentiators", name) for name in config.profiles("differentiators")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": (2, 1)}, "layer 3, which students keep"),
        ({"keeps": (2, 3)}, "keeps=.*most layers first"),
        ({"rankings": ("activations",)}, "did you mean 'activation'"),
        ({"student_classes": 1}, "at least 2"),
        ({"teacher_classes": 6}, "at most the 10 of digits"),
        ({"shots": 50}, "more than attacker_images=200"),
        ({"chosen": (1, 2)}, "name 5 classes"),
        ({"chosen": (1, 2, 3, 4, 10)}, "classes are 0 to 9"),
        ({"others": ("cifar10",)}, "needs a published teacher, not digits-small"),
    ],
)
def test_impossible_settings_end_in_one_line_before_anything_runs(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        config.settings("differentiators", "quick", setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_tables_and_the_verdict_need_is_run(profile):
    at = PROFILES[profile]
    assert {at.main_budget, at.main_box} <= set(at.all_budgets)
    assert 0.0 in at.ratios and "random" in at.rankings  # the controls
    assert at.attacker_images >= at.student_classes * at.shots
    assert 0 in at.keeps and at.budgets and at.epsilons
    assert at.members <= at.student_classes - 1


def test_the_paper_profile_tries_every_ranking_with_the_attack_of_the_code():
    paper = PROFILES["paper"]
    assert {*paper.rankings, paper.making.ranking} == set(RANKINGS)
    assert paper.mimicry.steps == 2_000 and paper.mimicry.budget == 0.003  # as in the attack's code


@pytest.mark.parametrize("profile", PROFILES)
def test_layers_exist_and_classes_are_shared_out(profile):
    at = PROFILES[profile]
    shape = (1, 8, 8) if at.dataset == "digits" else (3, 32, 32)
    with torch.device("meta"):
        net = models.imagenet(at.model, weights=False) if at.published else models.build(at.model, 2, shape)
    depth = flatten_layers(net).depth
    assert at.keeps[0] == depth and max(at.layers) == depth
    assert set(at.keeps) - {0} <= set(at.layers)  # every frozen student is attacked at its own K
    taught, learnt = at.classes
    assert len(learnt) == at.student_classes
    assert at.published or at.dataset != at.student_dataset or not set(taught) & set(learnt)


def test_traffic_signs_are_never_mirrored():
    for at in (PROFILES["second"], config.settings("differentiators", "paper", {"dataset": "gtsrb-224"})):
        assert at.student_dataset.startswith("gtsrb")
        assert not any(each.augment.flip for each in (at.student_recipe, at.making.recipe, at.away_recipe))


@pytest.mark.parametrize("dataset", config.companions("differentiators"))
def test_published_teachers_are_taken_as_they_are(dataset):
    at = config.settings("differentiators", "paper", {"dataset": dataset})
    assert at.published and at.student_dataset == dataset
    with torch.device("meta"):
        depth = flatten_layers(models.imagenet(at.model, 10, weights=False)).depth
    assert at.keeps[0] == depth == max(at.layers) and set(at.keeps) - {0} <= set(at.layers)
    with pytest.raises(KdsecError, match="published teacher, whose training images are not here"):
        dataclasses.replace(at, dataset="cifar10")


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_the_margin_that_passes_a_threshold_does(classes):
    """As the chapter derives kappa."""
    generator = torch.Generator().manual_seed(0)
    for theta in (0.0, 0.02, 0.2, 0.9, 0.999):
        logits = 4 * torch.randn(2_000, classes, generator=generator, dtype=torch.float64)
        wide = enough_margin(theta, classes)
        logits[:, 0] += wide + 4
        enough = -margin(logits, torch.zeros(2_000, dtype=torch.long)) >= wide
        assert enough.any() and (logits.softmax(1)[enough, 0] >= theta - 1e-6).all()
        # However little the judge asks for, the student must say the target too.
        assert wide >= 0 and (logits[enough].argmax(1) == 0).all()
    # For two classes no smaller margin will do.
    short = torch.tensor([[0.9, 0.0]], dtype=torch.float64).logit()[:, :1]
    assert torch.cat([short - 0.01, torch.zeros(1, 1)], 1).softmax(1)[0, 0] < 0.9


def test_an_attack_is_computed_once_and_gives_the_same_again():
    run = start("differentiators", seed=1)
    at = run.settings
    taught = select_classes(run.data.train, at.classes[0])
    teacher = models.build(at.model, 5, taught.shape, seed=0).eval()
    images = taught.float_images(slice(0, 6))
    budget = dataclasses.replace(at.mimicry, steps=3)
    made = [run.cached("mimic", mimic, teacher, 3, images, images.flip(0), budget) for _ in range(2)]
    assert torch.equal(*made) and (run.cache.misses, run.cache.hits) == (1, 1)
    run.cached("mimic", mimic, teacher, 2, images, images.flip(0), budget)
    assert run.cache.misses == 2
    run.finish()


def test_cached_features_train_the_student_that_the_whole_network_would():
    """Without augmentation, frozen layers say the same in every epoch."""
    parts = data.load("digits", validation=0.2).parts
    own, loot, val, test = student_parts(parts, range(5, 10), 120, 60, 40, seed=0)
    assert (len(own), len(loot), len(val), len(test)) == (120, 60, 40, 40)
    net = models.build("digits-small", 5, own.shape, seed=0)
    recipe = Recipe(epochs=2, batch_size=30, lr=0.05, precision="float32")
    for keep in (2, 3):
        cached, whole = (transfer(net, 5, keep, seed=0) for _ in range(2))
        fit_above(cached, own, recipe, train.fit)
        train.fit(whole, own, recipe)
        assert torch.allclose(predict(cached, test), predict(whole, test), atol=1e-4)
        assert not torch.equal(cached.head.weight, transfer(net, 5, keep, seed=0).head.weight)
    seen = []
    mirrored = dataclasses.replace(recipe, augment=Augment(flip=True))
    fit_above(transfer(net, 5, 3), own, mirrored, lambda net, images, recipe: seen.append(images))
    assert len(seen[0]) == 240 and torch.equal(seen[0].labels[120:], own.labels)


def test_pictures_and_words_survive_their_file(tmp_path, monkeypatch):
    images = torch.randint(256, (2, 3, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    words = (("stop", "yield", "yield"), ("cat", "dog", "cat"))
    examples = [
        disguises.Example(name, each, said)
        for name, each, said in zip(("GTSRB, 18 layers kept", "CIFAR-10, é"), images, words, strict=True)
    ]
    assert disguises.save(tmp_path, "second", examples).stat().st_size < 10_000
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path))
    for one, again in zip(examples, disguises.recorded(), strict=True):
        assert (one.name, one.said) == (again.name, again.said)
        assert torch.equal(to_bytes(one.images), again.images)
    figure = disguises.show(disguises.recorded())
    assert [ax.get_title() for ax in figure.axes[:5]] == ["“stop”", "“yield”", "", "“yield”", ""]
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path / "nothing"))
    assert disguises.recorded() == []


def test_the_example_is_one_that_reaches_its_target():
    classes, student = ("sign 14", "sign 13"), lambda images: images.flatten(1)[:, :2]
    sources, fooled = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    views = [each.view(2, 1, 1, 2) for each in (sources, fooled)]
    net = torch.nn.Module()
    net.forward = student
    shown = disguises.example("gtsrb", 18, net, classes, views[0], [views[1]], torch.tensor([1, 1]))
    assert shown.said == ("stop", "yield") and shown.name == "GTSRB, 18 layers kept"


def test_rows_of_neighbours_have_their_own_data_set_and_claims_find_them():
    records = Records("differentiators", "second", 0, "gtsrb")
    at = {"attack": "targeted", "budget": "pixel 4", "keep": 18}
    records.add("differentiators", "net", "before", 0.25, **at)
    records.add("differentiators", "net", "before", 0.75, dataset="cifar10", data="cifar10", **at)
    frame = records.frame()
    assert frame["dataset"].tolist() == ["gtsrb", "cifar10"]
    setting = "attack=targeted;budget=pixel 4;data=cifar10;keep=18"
    claimed = Quantity("differentiators", "before", setting)
    assert claimed.values(labelled(frame), PROFILES["second"]) == {0: 0.75}
    mine = labelled(frame[frame["dataset"] == "gtsrb"])
    claimed.check("here", mine, PROFILES["second"])  # a quick run has no neighbours
    with pytest.raises(KdsecError, match="unknown setting"):
        Quantity("differentiators", "before", setting.replace("18", "9")).check("here", mine, None)
    with pytest.raises(KdsecError, match="did you mean 'cifar10'"):
        records.add("differentiators", "net", "caught", 0.5, dataset="cifar-10", **at)
    assert "CIFAR-10, 18 layers kept" in panels.cases(PROFILES["second"], frame)
