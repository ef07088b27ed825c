"""Pruning that really removes, differentiators, thresholds that never saw test data, and the comparators."""

import dataclasses

import pytest
import torch

from kdsec import data, models
from kdsec.data import Augment, Batch
from kdsec.defenses import differentiators, pruning, rejection, verifiers
from kdsec.defenses.differentiators import (
    DifferentiatorConfig,
    DifferentiatorEnsemble,
    Restricted,
    build,
    pairs,
)
from kdsec.defenses.pruning import cost, keep_channels, links, prune
from kdsec.defenses.rejection import RejectorOutput, choose_threshold, on_attack, on_clean
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.layered import feature_distance, flatten_layers, nearest_mean, select_classes, transfer
from kdsec.train import Recipe, evaluate, fit, predict

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32")
MAKING = DifferentiatorConfig(
    Recipe(epochs=4, batch_size=32, lr=0.05, augment=Augment(crop=1), precision="float32")
)


@pytest.fixture(scope="module")
def parts():
    """Digits 5 to 9 as classes 0 to 4: training, validation, test."""
    splits = data.load("digits", validation=0.15)
    return [select_classes(part, range(5, 10)) for part in (splits.train, splits.val, splits.test)]


@pytest.fixture(scope="module")
def teacher():
    train = select_classes(data.load("digits").train, range(5))
    mean, std = train.mean_std()
    net = models.build("digits-small", 5, train.shape, mean=mean, std=std, seed=0)
    fit(net, train, RECIPE)
    return net


@pytest.fixture(scope="module")
def student(parts, teacher):
    net = transfer(teacher, 5, 1)
    fit(net, parts[0], RECIPE)
    return net


@pytest.fixture(scope="module")
def committee(parts, student):
    return build(student, parts[0], pairs(5), MAKING)


# ---- pruning ------------------------------------------------------------------------------------

NETS = {"digits-cnn": (1, 8, 8), "digits-mlp": (1, 8, 8), "cnn": (3, 32, 32), "vgg11": (3, 32, 32)}
NETS |= {name: (3, 32, 32) for name in ("resnet8", "resnet50", "wrn16-1", "mobilenetv2")}


def silence(net, gone=None):
    """Make the channels ``gone`` (or the first eighth) of every link exactly zero where they are read."""
    with torch.no_grad():
        for link in links(net):
            last = link.norms[-1] if link.norms else link.writer
            silent = gone if gone is not None else slice(0, link.channels // 8)
            last.weight[silent] = 0
            last.bias[silent] = 0


@pytest.mark.parametrize(
    "name", ["digits-cnn", "digits-mlp", "cnn", "vgg11", "resnet8", "wrn16-1", "mobilenetv2"]
)
def test_removing_silent_channels_changes_no_output(name):
    net = flatten_layers(models.build(name, 4, NETS[name], seed=0)).eval()
    gone = torch.tensor([0, 3])
    silence(net, gone)
    kept = [torch.tensor([i for i in range(link.channels) if i not in gone]) for link in links(net)]
    smaller = keep_channels(net, kept).eval()
    images = torch.rand(5, *NETS[name], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(smaller(images), net(images), atol=1e-5)
    # Loud channels do matter: the test above would pass for a network that ignores its channels. Half of
    # them, since two may happen to be dead.
    loud = flatten_layers(models.build(name, 4, NETS[name], seed=0)).eval()
    half = [torch.arange(link.channels // 2) for link in links(loud)]
    assert not torch.allclose(keep_channels(loud, half).eval()(images), loud(images), atol=1e-3)


@pytest.mark.parametrize("name", ["digits-cnn", "cnn", "resnet8"])
def test_the_least_active_channels_are_those_that_go(name):
    net = flatten_layers(models.build(name, 4, NETS[name], seed=0)).eval()
    silence(net)
    images = torch.rand(6, *NETS[name])
    for ranking in ("activation", "zeros"):
        smaller = prune(net, images, 1 / 8, ranking)
        assert torch.allclose(smaller(images), net(images), atol=1e-5)
        assert cost(smaller, NETS[name]).parameters < cost(net, NETS[name]).parameters
    for link, mean in zip(links(net), pruning.activity(net, images), strict=True):
        assert mean.shape == (link.channels,) and (mean[: link.channels // 8] == 0).all()


@pytest.mark.parametrize("name", NETS)
def test_parameters_and_work_really_shrink(name):
    net = flatten_layers(models.build(name, 4, NETS[name], seed=0)).eval()
    images = torch.rand(2, *NETS[name])
    half, most = prune(net, images, 0.5), prune(net, images, 0.9)
    whole, smaller, smallest = (cost(each, NETS[name]) for each in (net, half, most))
    assert smallest.parameters < smaller.parameters < whole.parameters
    assert smallest.multiply_adds < smaller.multiply_adds < whole.multiply_adds
    assert sum(tensor.numel() for tensor in half.state_dict().values()) < sum(
        tensor.numel() for tensor in net.state_dict().values()
    )
    assert half(images).shape == (2, 4) and half(images).isfinite().all()
    if name in ("digits-cnn", "vgg11"):  # chains: what is between two thinned layers has a quarter left
        assert (
            smaller.parameters < 0.3 * whole.parameters and smaller.multiply_adds < 0.3 * whole.multiply_adds
        )


def test_cost_is_counted_by_hand():
    net = flatten_layers(models.build("digits-cnn", 5, (1, 8, 8), seed=0))
    layers = [(1, 32, 64), (32, 64, 64), (64, 64, 16)]  # inputs, outputs, places
    work = sum(9 * inputs * outputs * places for inputs, outputs, places in layers) + 1024 * 5
    found = cost(net, (1, 8, 8))
    assert found.multiply_adds == work
    assert found.parameters == sum(each.numel() for each in net.parameters())
    assert found.megabytes == pytest.approx(found.parameters * 4e-6)


def test_rankings_differ_and_the_original_stays(student, parts):
    before, images = fingerprint(student), parts[0].images[:50]
    made = {ranking: fingerprint(prune(student, images, 0.5, ranking)) for ranking in pruning.RANKINGS}
    assert made["reverse"] != made["activation"] != made["random"]
    assert fingerprint(prune(student, images, 0.5, "random", seed=1)) != made["random"]
    assert fingerprint(prune(student, images, 0.5, "random")) == made["random"]
    assert fingerprint(student) == before
    same = prune(student, images, 0.0)
    assert torch.allclose(predict(same, images), predict(student, images), atol=1e-4)


def test_a_pruned_network_learns(student, parts):
    train, _, test = parts
    net = differentiators.start(student, (0, 1, 2, 3, 4), train.images, MAKING)
    before = evaluate(net, test).accuracy
    fit(net, train, RECIPE)
    assert evaluate(net, test).accuracy > max(0.75, before)


# ---- the committee ------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Answers with the same logits whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def panel(**settings):
    """The student says 0, then 2, then 1; three pairs answer with known probabilities of class 0."""
    odds = torch.tensor([0.9, 0.4, 0.6]).logit()
    nets = [Fixed([value.item(), 0.0]) for value in odds]
    return DifferentiatorEnsemble(Fixed([3.0, 0.0, 1.0, -1.0]), [(0, 1), (0, 2), (0, 3)], nets, **settings)


@pytest.mark.parametrize(("members", "score"), [(None, 0.4), (1, 0.4), (2, 0.4), (9, 0.4)])
def test_the_least_probability_among_the_runners_up_counts(members, score):
    """The runner-up is class 2, whose differentiator is the one that doubts."""
    decision, given = panel(members=members).predict_with_score(torch.zeros(3, 1, 8, 8))
    assert decision.tolist() == [0, 0, 0]
    assert given.tolist() == pytest.approx([score] * 3, abs=1e-6)
    certain = dataclasses.replace(panel(members=members), student=Fixed([3.0, 1.0, 0.0, -1.0]))
    expected = 0.9 if members == 1 else 0.4  # now class 1 comes second, and class 2 third
    assert certain.predict_with_score(torch.zeros(1, 1, 8, 8)).score.item() == pytest.approx(expected)


def test_differentiators_tell_their_pair_apart_and_are_small(committee, student, parts):
    train, _, test = parts
    assert len(set(committee.which)) == len(committee.which) == 10  # each two of five classes
    right = [
        evaluate(net, select_classes(test, group)).accuracy
        for group, net in zip(committee.which, committee.nets, strict=True)
    ]
    assert min(right) > 0.85
    whole = cost(student, train.shape).parameters
    assert all(cost(net, train.shape).parameters < 0.5 * whole for net in committee.nets)
    table = committee.verifiers()
    assert sorted(table) == [0, 1, 2, 3, 4] and all(len(judges) == 4 for judges in table.values())
    assert all(net.head.out_features == 2 for net in committee.nets)


def test_the_head_begins_as_the_students(student, parts):
    making = dataclasses.replace(MAKING, ratio=0.0)
    net = differentiators.start(student, (3, 1), parts[0].images, making)
    images = parts[0].images[:7]
    expected = predict(student, images)[:, [3, 1]]
    assert torch.allclose(predict(net, images), expected, atol=1e-5)
    assert torch.allclose(predict(Restricted(student, (3, 1)), images), expected, atol=1e-5)
    assert net.frozen == 0 and all(parameter.requires_grad for parameter in net.parameters())
    assert (
        differentiators.start(student, (3, 1), images, dataclasses.replace(making, retrain="head")).frozen
        == 3
    )


def test_distillation_and_a_given_fit_are_used(student, parts):
    seen = []

    def record(name, net, on, recipe, loss):
        seen.append((on.num_classes, loss, fingerprint(loss)))
        return net

    for alpha in (0.0, 0.7):
        build(student, parts[0], [(0, 1), (2, 3, 4)], dataclasses.replace(MAKING, alpha=alpha), fit=record)
    assert [count for count, *_ in seen] == [2, 3, 2, 3]
    assert seen[0][1] is None and seen[2][1].alpha == 0.7
    assert len({mark for *_, mark in seen}) == 3  # none, and one for each restricted student


# ---- thresholds and what they are worth ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Decides right on even pixels; its score is the pixel in the corner."""

    labels: torch.Tensor

    def predict_with_score(self, images):
        return RejectorOutput(self.labels[: len(images)], images[:, 0, 0, 0].float())


def numbered(parts, count=100):
    """Images whose corner pixel counts from 0."""
    part = parts[0].subset(slice(0, count))
    images = part.images.clone()
    images[:, 0, 0, 0] = torch.arange(count).to(torch.uint8)
    return part.replace(images=images)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.051, 0.5, 0.99])
def test_a_threshold_rejects_no_more_than_stated(parts, rate):
    clean = numbered(parts)
    threshold = choose_threshold(Oracle(clean.labels), clean, rate)
    assert threshold.value == int(rate * 100)
    assert threshold.measured == pytest.approx(int(rate * 100) / 100) and threshold.measured <= rate


def test_ties_are_accepted(parts):
    clean = numbered(parts)
    flat = clean.replace(images=torch.ones_like(clean.images))
    threshold = choose_threshold(Oracle(clean.labels), flat, 0.3)
    assert threshold.measured == 0 and threshold.value == 1


def test_a_threshold_depends_on_validation_images_alone_and_is_not_evaluated_there(committee, parts):
    _, validation, test = parts
    threshold = choose_threshold(committee, validation, 0.05)
    assert threshold.measured <= 0.05
    with pytest.raises(KdsecError, match="evaluate on others"):
        on_clean(committee, threshold, validation)
    with pytest.raises(KdsecError, match="evaluate on others"):
        on_attack(committee, threshold, validation.float_images(slice(0, 9)), validation.labels[:9])
    clean = on_clean(committee, threshold, test)
    assert clean.alone == evaluate(committee.student, test)
    assert clean.protected.correct == clean.alone.correct - clean.false_rejection.correct
    assert clean.false_rejection.total == clean.alone.correct
    assert clean.errors_rejected.total == len(test) - clean.alone.correct
    assert clean.false_rejection.accuracy < 0.25


def test_attacks_are_counted_so_that_nobody_can_move_the_goalposts(parts):
    clean = numbered(parts, 8)
    decisions = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    truth, wanted = torch.full((8,), 0), torch.full((8,), 2)
    threshold = rejection.Threshold(5.0, 0.05, 0.0, frozenset())
    targeted = on_attack(Oracle(decisions), threshold, clean.images, truth, wanted)
    assert [score.correct for score in targeted] == [3, 2, 1] and targeted.before.total == 8
    assert targeted.rejected.total == 3  # a share of the successes
    anything = on_attack(Oracle(decisions), threshold, clean.images, truth)
    assert [score.correct for score in anything] == [6, 3, 3]


# ---- comparators --------------------------------------------------------------------------------


def test_every_comparator_accepts_clean_images_and_rejects_blends_more_often(student, teacher, parts):
    train, validation, test = parts
    other = transfer(teacher, 5, 0, seed=1)
    fit(other, train, RECIPE, seed=1)
    images = test.float_images()
    blends = (images + images.roll(1, 0)) / 2  # neither of two digits, mostly
    rejectors = {
        "confidence": verifiers.Confidence(student),
        "agreement": verifiers.Agreement(student, (other,)),
        "dropout": verifiers.InputDropout(student),
        "squeezing": verifiers.Squeezing(student, bits=2),
    }
    for name, rejector in rejectors.items():
        threshold = choose_threshold(rejector, validation, 0.1)
        clean = on_clean(rejector, threshold, test)
        decision, score = rejector.predict_with_score(blends)
        assert score.min() >= -1e-6 and score.max() <= 1 + 1e-6 and decision.shape == (len(blends),), name
        assert clean.false_rejection.accuracy < 0.3, name
        if name in (
            "confidence",
            "agreement",
        ):  # the others ask whether an answer is steady, not whether it is sure
            assert (score < threshold.value).float().mean() > clean.false_rejection.accuracy, name


def test_agreement_by_hand():
    images = torch.zeros(2, 1, 8, 8)
    others = (Fixed([0.0, 0.0]), Fixed([torch.tensor(0.8).logit().item(), 0.0]))
    found = verifiers.Agreement(Fixed([1.0, 0.0]), others).predict_with_score(images)
    assert found.score.tolist() == pytest.approx([0.5] * 2, abs=1e-6)
    assert verifiers.Agreement(Fixed([1.0, 0.0]), others).verifiers(2)[1] == [(net, 1) for net in others]


def test_dropout_answers_the_same_twice(student, parts):
    rejector = verifiers.InputDropout(student, rate=0.3)
    first, second = rejector.predict_with_score(parts[2].images), rejector.predict_with_score(parts[2].images)
    assert torch.equal(first.score, second.score) and first.score.min() < 1


class Brightness(torch.nn.Module):
    """Class 1 where the mean pixel exceeds a limit, ever surer."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, images):
        over = 50 * (images.flatten(1).mean(1) - self.limit)
        return torch.stack([-over, over], 1)


def test_dropout_is_the_largest_that_keeps_the_accuracy(parts):
    """Images of brightness 0.6 are class 1: blanking a sixth of their pixels turns the answer at 0.5."""
    bright, dark = torch.full((40, 1, 8, 8), 0.6), torch.full((40, 1, 8, 8), 0.2)
    labels = torch.arange(80) // 40
    planted = data.ImageSet(torch.cat([dark, bright]), labels, ("dark", "bright"), "planted")
    rates = (0.3, 0.05, 0.1, 0.6)
    assert verifiers.choose_dropout(Brightness(0.5), planted, rates).rate == 0.1
    assert verifiers.choose_dropout(Brightness(0.3), planted, rates).rate == 0.3
    assert verifiers.choose_dropout(Brightness(0.59), planted, rates).rate == 0.05  # all cost too much
    blank = verifiers.Blank(0.3)
    first, second = blank(torch.ones(50, 3, 8, 8)), blank(torch.ones(50, 3, 8, 8))
    assert not torch.equal(first, second) and torch.equal(first[:, 0], first[:, 2])
    assert first.mean().item() == pytest.approx(0.7, abs=0.03)


def test_who_gives_the_class_everywhere_is_accepted_by_squeezing(student, parts):
    """The score is at least the least probability of the decision, squeezed or not."""
    rejector, images = verifiers.Squeezing(student, bits=2), parts[2].float_images()
    decision, score = rejector.predict_with_score(images)
    seen = [images, *(squeeze(images) for squeeze in rejector.squeezers())]
    beliefs = torch.stack([predict(student, each).softmax(1) for each in seen])
    least = beliefs.gather(2, decision.expand(3, -1)[..., None]).squeeze(2).amin(0)
    assert (score >= least - 1e-5).all()


def test_a_perfect_detector_reaches_a_perfect_score(parts):
    """Planted: attacked images carry a mark that the rejector knows."""

    @dataclasses.dataclass(frozen=True)
    class Perfect:
        def predict_with_score(self, images):
            marked = images[:, 0, 0, 0].float() == 255
            return RejectorOutput(torch.zeros(len(images)).long(), 1 - marked.float())

    clean = numbered(parts).replace(labels=torch.zeros(100).long())
    marked = clean.images.clone()
    marked[:, 0, 0, 0] = 255
    zeros, ones = torch.zeros(100).long(), torch.ones(100).long()
    attacks = {"targeted": (marked, ones, zeros), "any": (marked, ones, None), "idle": (marked, zeros, ones)}
    other = clean.replace(images=255 - clean.images.clamp(1))
    worth = rejection.measure(Perfect(), 0.05, clean, other, attacks)
    assert worth.cost["accuracy left"].accuracy == 1 and worth.cost["false rejection"].accuracy == 0
    for kind in ("targeted", "any"):
        facts = worth.attacks[kind]
        assert (facts["before"].accuracy, facts["defended"].accuracy, facts["caught"].accuracy) == (1, 0, 1)
        assert facts["AUC"] == facts["caught at the rate"] == 1
    assert "AUC" not in worth.attacks["idle"]  # nobody was fooled


def test_a_baseline_that_lost_its_accuracy_is_none():
    assert rejection.check_baseline(0.80, 0.89).realised
    broken = rejection.check_baseline(0.17, 0.82)
    assert not broken.realised and broken.metrics["accuracy lost"] == pytest.approx(0.65)


def test_feature_distance_forgets_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    assert feature_distance(x, 3 * x @ turn + 7) == pytest.approx(0, abs=1e-5)
    basis = torch.linalg.qr(torch.randn(60, 9, generator=generator) * 1.0)[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]
    assert feature_distance(basis[:, :4], basis[:, 4:]) == pytest.approx(1, abs=1e-5)  # uncorrelated
    assert 0 < feature_distance(x, x[:, :2]) < 1


def test_the_nearest_mean_decides(teacher, parts):
    train, _, test = parts
    net = nearest_mean(teacher, train, 2)
    flat = flatten_layers(teacher).eval()
    features, known = flat.output(test.float_images(), 2), flat.output(train.float_images(), 2)
    means = torch.stack([known[train.labels == label].mean(0) for label in range(5)])
    assert torch.equal(predict(net, test).argmax(1), torch.cdist(features, means).argmin(1))


def test_neuron_distance_is_the_formula(student, teacher, parts):
    away, images, labels = (
        flatten_layers(teacher).eval(),
        parts[0].float_images(slice(0, 6)),
        parts[0].labels[:6],
    )
    student.eval()
    loss = verifiers.NeuronDistance(away, 3, distance=50.0, weight=0.1)
    value = loss(student, Batch(images, labels, torch.arange(6)))
    gap = (away.output(images, 3) - student.output(images, 3)) ** 2
    heard = student.head.weight.abs().sum(0)
    omega = len(heard) * heard / heard.norm()
    short = (50.0 - (omega * gap).sum(1).sqrt()).clamp(min=0) ** 2
    expected = torch.nn.functional.cross_entropy(student(images), labels) + 0.1 * short.mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_neuron_distance_begins_where_the_distance_is_zero(teacher, parts):
    net = transfer(teacher, 5, 0).eval()
    batch = Batch(parts[0].float_images(slice(0, 6)), parts[0].labels[:6], torch.arange(6))
    verifiers.NeuronDistance(flatten_layers(teacher).eval(), 3, 10.0)(net, batch).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_pushing_away_moves_features_and_keeps_accuracy(student, teacher, parts):
    recipe = Recipe(epochs=1, batch_size=32, lr=0.02, schedule="constant", precision="float32")
    away, images = flatten_layers(teacher).eval(), parts[2].float_images()
    net = verifiers.push_away(
        student, teacher, parts[0], recipe, layer=3, distance=60.0, stages=3, weight=1e-2
    )

    def gap(other):
        return (other.eval().output(images, 3) - away.output(images, 3)).norm(dim=1).mean().item()

    assert gap(net) > 1.3 * gap(student) and net.frozen == 0 and student.frozen == 1
    assert evaluate(net, parts[2]).accuracy > 0.75


def test_the_last_push_is_as_long_as_all_others_by_epochs_and_by_steps(student, teacher, parts):
    def lengths(**length):
        recipe, seen = dataclasses.replace(RECIPE, **length), []

        def fit(label, net, data, recipe, loss):
            seen.append(recipe.total_steps(len(data)))

        verifiers.push_away(student, teacher, parts[0], recipe, layer=3, distance=9.0, stages=3, fit=fit)
        return seen

    assert lengths(steps=5) == [5, 5, 20]
    once = RECIPE.total_steps(len(parts[0])) // RECIPE.epochs
    assert lengths(epochs=2) == [2 * once, 2 * once, 8 * once]


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, d: pairs(1), "differentiators need 2 or more"),
        (lambda s, d: build(s, d, [], MAKING), "no groups"),
        (lambda s, d: build(s, d.subset(d.labels != 1), [(0, 1)], MAKING), "no images of class 1"),
        (lambda s, d: build(s, d, [(0, 9)], MAKING), "not all classes"),
        (lambda s, d: prune(s, d.images, 1.0), "not a share"),
        (lambda s, d: prune(s, d.images[:0], 0.5), "no images to measure"),
        (
            lambda s, d: links(flatten_layers(models.build("resnext29", 4, (3, 32, 32)))),
            "no channels that can be",
        ),
        (lambda s, d: prune(s, d.images, 0.5, "activations"), "did you mean 'activation'"),
        (lambda s, d: DifferentiatorConfig(RECIPE, retrain="none"), "unknown retrain"),
        (lambda s, d: DifferentiatorEnsemble(s, [(0, 1)], []), "1 groups for 0"),
        (lambda s, d: DifferentiatorEnsemble(s, [(0, 1)], [s], members=0), "at least 1"),
        (
            lambda s, d: DifferentiatorEnsemble(s, [(0, 1)], [Fixed([0.0, 0.0])]).predict_with_score(
                d.images
            ),
            "no differentiator knows",
        ),
        (lambda s, d: choose_threshold(verifiers.Confidence(s), d, 1.0), "not a share"),
        (lambda s, d: choose_threshold(Oracle(d.labels + 1), d, 0.1), "classified correctly"),
        (lambda s, d: verifiers.Agreement(s, ()), "at least one other"),
        (lambda s, d: verifiers.InputDropout(s, rate=1.0), "share in"),
        (lambda s, d: verifiers.choose_dropout(s, d, ()), "no dropout rates"),
        (lambda s, d: verifiers.Squeezing(s, bits=0).squeezers(), "choose 1 to 8"),
        (lambda s, d: verifiers.push_away(s, s, d, RECIPE, layer=4, distance=1.0), "layer 4 is beyond"),
        (lambda s, d: verifiers.push_away(s, s, d, RECIPE, layer=3, distance=0.0), "above 0"),
    ],
)
def test_mistakes_are_named(student, parts, call, message):
    with pytest.raises(KdsecError, match=message) as caught:
        call(student, parts[0])
    assert "\n" not in str(caught.value)
