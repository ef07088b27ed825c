"""Detectors and cures, on cases whose answer is known, and on a network with a real backdoor."""

import copy

import pytest
import torch

from kdsec import models
from kdsec.attacks import backdoor
from kdsec.attacks.poisoning import implant
from kdsec.attacks.triggers import trigger
from kdsec.data import Augment, Batch, ImageSet
from kdsec.defenses import backdoor_detection as detection
from kdsec.defenses import backdoor_removal as removal
from kdsec.defenses.adversarial_unlearning import AdversarialUnlearning
from kdsec.errors import KdsecError
from kdsec.train import Recipe, cross_entropy, evaluate, fit, predict

SHAPE, TARGET = (1, 8, 8), 3
RECIPE = Recipe(epochs=12, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32")
MARK = trigger("checker 3", SHAPE)


@pytest.fixture(scope="module")
def stamped(digits):
    """Where the poisons are, and an ordinarily poisoned set: a trigger and the wrong label."""
    index = (digits.train.labels != TARGET).nonzero().squeeze(1)[:80]
    images = MARK.stamp(digits.train.images[index])
    return index, implant(digits.train, index, images, label=TARGET)


@pytest.fixture(scope="module")
def nets(digits, stamped):
    """The same network on clean and on poisoned images."""
    mean, std = digits.train.mean_std()
    made = {}
    for name, on in {"clean": digits.train, "backdoored": stamped[1]}.items():
        made[name] = models.build("digits-medium", 10, SHAPE, mean=mean, std=std, seed=0)
        fit(made[name], on, RECIPE)
    return made


@pytest.fixture(scope="module")
def guilty(digits, stamped):
    return torch.zeros(len(digits.train), dtype=torch.bool).index_fill(0, stamped[0], True)


def test_the_network_has_a_backdoor(digits, nets):
    success = {
        name: backdoor.attack_success(net, digits.test, MARK, TARGET).accuracy for name, net in nets.items()
    }
    assert success["backdoored"] > 0.9 and success["clean"] < 0.1


def test_roc_of_a_perfect_a_blind_and_a_reversed_detector():
    truth = torch.tensor([0, 0, 0, 1, 1]).bool()
    assert detection.roc(truth.float(), truth).area == 1
    assert detection.roc(torch.zeros(5), truth).area == 0.5
    assert detection.roc(-truth.float(), truth).area == 0
    half = detection.roc(torch.tensor([0.1, 0.9, 0.2, 0.8, 1.0]), truth)
    assert half.caught(0.0) == 0.5 and half.caught(0.4) == 1.0
    with pytest.raises(KdsecError, match="only one kind"):
        detection.roc(torch.zeros(5), torch.zeros(5).bool())


def test_label_disagreement_is_one_minus_the_labels_probability(digits, nets):
    scores = detection.label_disagreement(nets["clean"], digits.test)
    wrong = predict(nets["clean"], digits.test).argmax(1) != digits.test.labels
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores[wrong] >= 0.5).all() and scores[~wrong].max() < 0.9
    with pytest.raises(KdsecError, match="needs labels"):
        detection.label_disagreement(nets["clean"], digits.test.unlabelled())


def test_label_instability_is_the_doubt_of_a_network_when_nothing_moves(digits, nets):
    still = detection.label_instability(nets["clean"], digits.test, Augment(), views=2)
    sure = predict(nets["clean"], digits.test).softmax(1).amax(1)
    assert torch.allclose(still, 1 - sure, atol=1e-4)
    moved = detection.label_instability(nets["clean"], digits.test, Augment(crop=2), views=4)
    assert moved.mean() > still.mean()


@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp"])
def test_penultimate_is_what_the_last_layer_sees(digits, name):
    net = models.build(name, 10, SHAPE, seed=0).eval()
    features = detection.penultimate(net, digits.test)
    last = net.head[-1] if isinstance(net.head, torch.nn.Sequential) else net.head
    assert torch.allclose(last(features), predict(net, digits.test), atol=1e-4)


def planted(size=12.0, honest=100, poisons=100):
    """Features of three classes far apart, the second with poisons moved one way; clean images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(honest)
    groups = torch.cat([labels, torch.ones(poisons, dtype=torch.long)])
    features = torch.randn(len(groups), 16, generator=generator)
    features[:, 0] += 100 * groups
    guilty = torch.arange(len(groups)) >= len(labels)
    features[guilty, 3] += size
    known = torch.arange(3).repeat_interleave(20)
    clean = torch.randn(len(known), 16, generator=generator)
    clean[:, 0] += 100 * known
    return (features, groups, clean, known), guilty


@pytest.mark.parametrize("poisons", [10, 100, 300])
def test_detectors_of_features_reach_a_perfect_score_as_a_minority_and_as_a_majority(poisons):
    at, guilty = planted(poisons=poisons)
    split, silhouettes = detection.activation_clustering(*at)
    for scores in (detection.spectral_signatures(*at), split):
        curve = detection.roc(scores, guilty)
        assert curve.area == 1 and curve.caught(0.0) == 1
    assert max(silhouettes, key=silhouettes.get) == 1


def test_without_clean_images_a_group_is_its_own_reference():
    (features, groups, clean, labels), guilty = planted(poisons=10)
    at = features, groups, clean[labels != 1], labels[labels != 1]
    for scores in (detection.spectral_signatures(*at), detection.activation_clustering(*at)[0]):
        assert detection.roc(scores, guilty).area > 0.95
    tiny = detection.activation_clustering(features[:3], groups[:3], clean, labels)
    assert not tiny[0].any() and tiny[1] == {}


BLOCKS = (range(1, 11), range(11, 22), range(22, 34), range(34, 47), range(47, 61))  # pixels of five classes


class Blocks(torch.nn.Module):
    """Names the class whose pixels are brightest; the first pixel, black on clean images, means class 2."""

    def forward(self, images):
        pixels = images.flatten(1)
        logits = torch.stack([20 * pixels[:, list(block)].mean(1) for block in BLOCKS], 1)
        return logits + 100 * pixels[:, :1] * (torch.arange(5) == 2)


def lit(count=100, brightness=0.6):
    """Clean images of ``Blocks``: one class after the other."""
    labels, pixels = torch.arange(count) % 5, torch.zeros(count, 64)
    for row, label in enumerate(labels.tolist()):
        pixels[row, list(BLOCKS[label])] = brightness
    return ImageSet(pixels.view(-1, 1, 8, 8), labels, tuple("abcde"), "lit")


def test_label_disagreement_reaches_a_perfect_score_on_planted_poisons():
    clean, guilty = lit(), torch.arange(100) < 40
    poisoned = clean.replace(images=torch.where(guilty[:, None, None, None], 0.0, clean.images))
    poisoned.images[guilty, 0, 0, 0] = 1.0  # the teacher says class 2, whatever the label
    guilty &= clean.labels != 2
    curve = detection.roc(detection.label_disagreement(Blocks(), poisoned), guilty)
    assert curve.area == 1 and curve.caught(0.0) == 1


def test_label_instability_reaches_a_perfect_score_on_poisons_that_a_shift_breaks():
    """Honest images are told by their mean, which a shift keeps; poisons by one pixel, which it moves."""

    class Fragile(torch.nn.Module):
        def forward(self, images):
            bright = 40 * (images.flatten(1).mean(1) - 0.1)
            return torch.stack([-bright, bright, 100 * (images[:, 0, 4, 4] - 0.9)], 1)

    images = torch.zeros(60, 1, 8, 8)
    images[::2, :, 2:6, 2:6] = 0.8  # the frame stays black, so nothing is cut off
    guilty = torch.arange(60) < 20
    images[guilty, 0, 4, 4] = 1.0
    labels = predict(Fragile(), images).argmax(1)
    assert (labels[guilty] == 2).all() and set(labels[~guilty].tolist()) == {0, 1}
    seen = ImageSet(images, labels, tuple("abc"), "fragile")
    curve = detection.roc(detection.label_instability(Fragile(), seen, Augment(crop=1), views=16), guilty)
    assert curve.area == 1 and curve.caught(0.0) == 1


def test_strip_reaches_a_perfect_score_where_the_trigger_outweighs_every_blend():
    clean = lit(50)
    marked = clean.images.clone()
    marked[:, 0, 0, 0] = 1.0
    guilty = torch.arange(100) < 50
    scores = detection.strip(Blocks(), torch.cat([marked, clean.images]), clean.images, blends=16)
    curve = detection.roc(scores, guilty)
    assert curve.area == 1 and curve.caught(0.0) == 1


def test_a_trigger_is_not_searched_where_no_gradient_comes_back():
    class Blocked(Blocks):
        def forward(self, images):
            with torch.no_grad():
                return super().forward(images)

    with pytest.raises(KdsecError, match="no gradient"):
        detection.invert_trigger(Blocked(), lit().images, 1)


def test_neural_cleanse_flags_the_class_with_a_trigger_and_no_other():
    """Every class can be reached by lighting its block; class 2 by a part of one pixel."""
    clean = lit()
    found, index = detection.neural_cleanse(Blocks(), clean.images, 5, steps=250)
    assert all(each.success >= 0.99 for each in found)
    assert (index > detection.ANOMALY).nonzero().flatten().tolist() == [2]
    assert found[2].mask.flatten().argmax() == 0 and found[2].size < 1 < min(
        found[k].size for k in (0, 1, 3, 4)
    )


def test_strip_tells_a_trigger_from_an_honest_image(digits, nets):
    """A constant answer has no entropy; a network that answers by the trigger comes close to it."""
    honest = backdoor.others(digits.test, TARGET).images[:60]
    both = torch.cat([MARK.stamp(honest), honest])
    truth = torch.arange(120) < 60
    areas = {
        name: detection.roc(detection.strip(net, both, digits.val.images, blends=16), truth).area
        for name, net in nets.items()
    }
    assert areas["backdoored"] > 0.75 and areas["backdoored"] > areas["clean"] + 0.1

    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[0.0, 100.0]]).expand(len(images), -1)

    assert detection.strip(Constant(), honest[:3], honest, blends=4).abs().max() < 1e-6


def test_an_inverted_trigger_works_and_is_smaller_for_the_backdoor(digits, nets):
    found = {
        name: detection.invert_trigger(net, digits.val.images, TARGET, steps=150)
        for name, net in nets.items()
    }
    for name, each in found.items():
        mask, pattern = each.mask, each.pattern
        marked = (1 - mask) * digits.test.float_images() + mask * pattern
        fooled = (predict(nets[name], marked).argmax(1) == TARGET).float().mean()
        assert fooled > 0.8 and each.success >= 0.99
        assert mask.min() >= 0 and mask.max() <= 1 and mask.shape == (1, 8, 8)
    assert found["backdoored"].size < found["clean"].size


def test_anomaly_index_flags_the_small_one_only():
    index = detection.anomaly_index(torch.tensor([10.0, 11, 9, 10, 12, 8, 10, 1]))
    assert (index > detection.ANOMALY).nonzero().flatten().tolist() == [7]
    assert index[4] < 0 < index[7]
    for sizes in ([10.0, 11, 9, 10, 12, 8, 10, 30], [10.0, 10, 10, 10, 9.99]):  # the second: no spread at all
        assert not (detection.anomaly_index(torch.tensor(sizes)) > detection.ANOMALY).any()


@pytest.mark.parametrize(
    "sizes", [[5.0] * 4, [5.0, 5, 5, 1], [5.0, 6, 7, 1, float("nan")], [5.0, 6, 7, 1, float("inf")]]
)
def test_without_spread_or_with_a_size_that_is_no_number_there_is_no_verdict(sizes):
    index = detection.anomaly_index(torch.tensor(sizes))
    assert index.isnan().all() and not (index > detection.ANOMALY).any()


def test_pruning_stays_within_its_tolerance_and_leaves_the_model_alone(digits, nets):
    before = predict(nets["backdoored"], digits.val)
    pruned, lost = removal.prune_dormant(nets["backdoored"], digits.val, tolerance=0.04)
    assert lost > 0
    assert torch.equal(predict(nets["backdoored"], digits.val), before)
    drop = evaluate(nets["backdoored"], digits.val).accuracy - evaluate(pruned, digits.val).accuracy
    assert drop <= 0.04 + 1e-6
    silent = pruned.features(digits.val.float_images())[-1].flatten(2).abs().amax((0, 2)) == 0
    assert silent.sum() >= lost
    with pytest.raises(KdsecError, match="tolerance=4 must be in"):
        removal.prune_dormant(nets["backdoored"], digits.val, tolerance=4)


def test_pruned_channels_stay_silent_in_training(digits, nets):
    pruned, _ = removal.prune_dormant(nets["backdoored"], digits.val)
    gone = pruned.stages[-1].kept == 0
    fit(pruned, digits.val, Recipe(epochs=2, batch_size=32, lr=0.05, precision="float32"))
    last = pruned.features(digits.val.float_images())[-1]
    assert (last[:, gone] == 0).all() and (last[:, ~gone] != 0).any()


def test_attention_distillation_adds_the_distance_of_the_maps_to_the_labels(digits, nets):
    """Its loss on the tuned student itself is the labels' alone; elsewhere it grows with the weight."""
    sick, tuned = nets["backdoored"], nets["clean"]
    batch = Batch(digits.val.float_images(), digits.val.labels, torch.arange(len(digits.val)))

    @torch.no_grad()
    def beyond_labels(net, weight):
        loss = removal.attention_distillation(tuned, weight=weight)
        return (loss(net, batch) - cross_entropy(net(batch.images), batch.labels)).item()

    assert beyond_labels(tuned, 100.0) == pytest.approx(0, abs=1e-5)
    assert beyond_labels(sick, 1.0) > 0
    assert beyond_labels(sick, 100.0) == pytest.approx(100 * beyond_labels(sick, 1.0), rel=1e-3)


def test_attention_distillation_keeps_accuracy(digits, nets):
    recipe = Recipe(epochs=10, batch_size=32, lr=0.05, augment=Augment(crop=1), precision="float32")
    cured = copy.deepcopy(nets["backdoored"])
    fit(cured, digits.val, recipe, removal.attention_distillation(nets["clean"]))
    before, after = (evaluate(net, digits.test).accuracy for net in (nets["backdoored"], cured))
    assert after > before - 0.05


def toy():
    """Two classes told by the first of two pixels; the second, black on clean images, is the trigger."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[4.0, -4.0], [-4.0, 4.0]]))
        net[1].bias.zero_()
    labels = torch.arange(64) % 2
    images = torch.zeros(64, 1, 1, 2)
    images[:, 0, 0, 0] = (1 - labels).float()
    return net, Batch(images - images.mean() * torch.tensor([1.0, 0.0]), labels, torch.arange(64))


@pytest.mark.parametrize("terms", [0, 3])
def test_unlearning_finds_the_trigger_and_removes_its_weight_where_fine_tuning_sees_nothing(terms):
    """Clean images give the trigger's weight no gradient. Its optimum under unlearning is 0."""
    net, batch = toy()
    plain = torch.autograd.grad(cross_entropy(net(batch.images), batch.labels), net[1].weight)[0]
    assert (plain[:, 1] == 0).all()
    loss = AdversarialUnlearning(size=0.5, terms=terms, lr=0.01)
    delta = loss.worst(net, batch)
    assert delta.abs().max() > 0.1 and delta.square().mean().sqrt() <= 0.5 + 1e-6
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(150):
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()
    gap = net[1].weight[1] - net[1].weight[0]
    assert abs(gap[1]) < 1 and -gap[0] > 4 * abs(gap[1])
    assert (net(batch.images).argmax(1) == batch.labels).all()


def test_the_implicit_part_has_a_gradient_and_no_value():
    net, batch = toy()
    values, slopes = [], []
    for terms in (0, 3):
        value = AdversarialUnlearning(size=0.5, terms=terms, lr=0.01)(net, batch)
        values.append(value.item())
        slopes.append(torch.autograd.grad(value, net[1].weight)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert not torch.allclose(*slopes)
