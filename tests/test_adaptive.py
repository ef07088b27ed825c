"""Attacks by somebody who knows the defence, and the signs that an attack is broken."""

import itertools

import pytest
import torch
from torch import nn

from kdsec import models
from kdsec.attacks import adaptive
from kdsec.attacks.adaptive import BPDA, EOT, LOSSES, adaptive_pgd, worst_case
from kdsec.attacks.apgd import auto_ascent, checkpoints
from kdsec.attacks.gradient_masking import (
    beyond_noise,
    is_correct,
    lost_gradients,
    masking_checks,
    mean_correct,
)
from kdsec.attacks.library import library
from kdsec.budgets import distance
from kdsec.defenses.transformations import BitDepth, RandomNoise
from kdsec.errors import KdsecError
from kdsec.logits import margin
from kdsec.pgd import PerturbationSet, fgsm, label_objective, pgd, projected_ascent
from kdsec.train import Recipe, evaluating, fit, predict

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")


@pytest.fixture(scope="module")
def net(digits):
    model = models.build("digits-small", 10, (1, 8, 8), seed=0)
    fit(model, digits.train, RECIPE)
    model.zero_grad()
    return model


@pytest.fixture(scope="module")
def some(digits):
    return digits.test.float_images(slice(0, 120)), digits.test.labels[:120]


def right(model, images, labels):
    return is_correct(model, images, labels).float().mean().item()


class Counting(nn.Module):
    """Counts the images that pass through."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, images):
        self.seen += len(images)
        return self.model(images)


# Margin


def test_margin_is_positive_exactly_where_the_answer_is_wrong(net, some):
    images, labels = some
    gap = margin(predict(net, images), labels.roll(1))
    assert (
        torch.equal(gap > 0, ~is_correct(net, images, labels.roll(1))) and (gap > 0).any() and (gap < 0).any()
    )
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.5]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [-1.0, 0.5]


def test_margin_has_a_gradient_where_cross_entropy_has_none(net, some):
    """A network whose logits are a thousand times as large decides the same and is as easily fooled."""

    class Loud(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return 1000 * self.model(images)

    images, labels = some
    loud = Loud(net)
    assert lost_gradients(loud, images, labels) > 0.5 > lost_gradients(net, images, labels) == 0
    plain = {
        name: right(loud, adaptive_pgd(loud, images, labels, eps=0.15, losses=[name]), labels)
        for name in LOSSES
    }
    assert plain["margin"] < 0.2 < plain["cross-entropy"]
    same = adaptive_pgd(net, images, labels, eps=0.15, losses=["margin"], seed=0)
    assert abs(right(net, same, labels) - plain["margin"]) <= 0.03


# The strongest attack


@pytest.mark.parametrize("norm, eps", [("linf", 8 / 255), ("linf", 0.3), ("linf", 1.0), ("l2", 1.5)])
def test_strongest_stays_in_its_budget_and_in_the_box(net, some, norm, eps):
    images, labels = some
    for precision in ("float32", "bf16"):
        found = adaptive_pgd(
            net, images, labels, eps=eps, norm=norm, steps=4, restarts=1, precision=precision
        )
        assert found.dtype == torch.float32 and found.shape == images.shape
        assert found.min() >= 0 and found.max() <= 1
        assert distance(found, images, norm).max().item() <= eps + 1e-5


def test_strongest_is_at_least_as_strong_as_pgd_and_fgsm(net, some):
    images, labels = some
    found = right(net, adaptive_pgd(net, images, labels, eps=0.1, steps=20), labels)
    many = right(net, pgd(net, images, labels, eps=0.1, steps=20), labels)
    assert found <= many <= right(net, fgsm(net, images, labels, eps=0.1), labels)
    assert 0 < found < right(net, images, labels)


def test_more_restarts_only_help(net, some):
    """The first attempts are the same, so an image that fell to them stays down."""
    images, labels = some
    few, many = (adaptive_pgd(net, images, labels, eps=0.08, steps=5, restarts=count) for count in (1, 4))
    fell = ~is_correct(net, few, labels)
    assert torch.equal(many[fell], few[fell])
    assert right(net, many, labels) < right(net, few, labels)
    gained = margin(predict(net, many), labels) - margin(predict(net, few), labels)
    assert bool((gained >= -1e-4).all())


def test_fooled_images_are_left_alone_and_cost_nothing(net, some):
    images, labels = some
    wrong = labels.roll(1)
    already = ~is_correct(net, images, wrong)
    found = adaptive_pgd(net, images, wrong, eps=0.1, steps=5)
    assert already.float().mean() > 0.7 and torch.equal(found[already], images[already])

    counted = Counting(net)
    adaptive_pgd(counted, images, labels, eps=0.3, steps=40, restarts=3)
    assert counted.seen < 0.2 * 40 * 3 * 2 * len(images)  # images times steps times restarts times losses


def test_a_given_start_is_used(net, some):
    """Where another attack has been already, no image gets better than it was there."""
    images, labels = some
    other = pgd(net, images, labels, eps=0.1, steps=20, seed=5)
    fell = ~is_correct(net, other, labels)
    found = adaptive_pgd(net, images, labels, eps=0.1, steps=1, restarts=0, starts=[other])
    assert fell.any() and not is_correct(net, found, labels)[fell].any()
    # A start outside the budget is moved into it.
    far = adaptive_pgd(net, images, labels, eps=0.05, steps=1, restarts=0, starts=[1 - images])
    assert distance(far, images).max().item() <= 0.05 + 1e-6


def test_same_seed_same_images_and_the_model_is_as_it_was(net, some):
    images, labels = some
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    one, two = (adaptive_pgd(net, images, labels, eps=0.1, steps=3, seed=3) for _ in range(2))
    other = adaptive_pgd(net, images, labels, eps=0.1, steps=3, seed=4)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert net.training and all(
        torch.equal(before[name], tensor) for name, tensor in net.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in net.eval().parameters())


def test_bytes_and_floats_are_attacked_alike(net, digits):
    images, labels = digits.test.images[:40], digits.test.labels[:40]
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    one, two = (
        adaptive_pgd(net, given, labels, eps=0.1, steps=3) for given in (images, images.float() / 255)
    )
    assert torch.equal(one, two)


def test_worst_case_takes_of_each_image_what_hurts_most(net, some):
    images, labels = some
    candidates = [pgd(net, images, labels, eps=0.08, steps=3, seed=seed) for seed in range(3)]
    worst = worst_case(net, candidates, labels)
    together = torch.stack([is_correct(net, each, labels) for each in candidates]).all(0)
    assert torch.equal(is_correct(net, worst, labels), together)
    assert together.float().mean() <= min(right(net, each, labels) for each in candidates)


@pytest.mark.parametrize("candidates", [[], [torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8)]])
def test_worst_case_needs_candidates_that_fit(net, candidates):
    with pytest.raises(KdsecError, match="the results of at least one attack"):
        worst_case(net, candidates, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps=0 is no attack; give a budget above 0"),
        ({"eps": 8.0}, r"eps=8 is outside \[0, 1\] for linf; divide by 255"),
        ({"eps": -0.1}, "eps=-0.1 is outside"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"eps": 0.1, "steps": 0}, "steps=0.*at least 1"),
        ({"eps": 0.1, "restarts": 0}, "restarts=0: give at least one of each"),
        ({"eps": 0.1, "losses": ()}, r"losses=\(\).*give at least one"),
        ({"eps": 0.1, "losses": ("dlr",)}, "unknown loss 'dlr'.*choose from: cross-entropy, margin"),
        ({"eps": 0.1, "norm": "l1"}, "unknown norm 'l1'"),
        ({"eps": 0.1, "precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_bad_arguments_end_in_one_line(net, some, options, message):
    with pytest.raises(KdsecError, match=message) as error:
        adaptive_pgd(net, *some, **options)
    assert "\n" not in str(error.value)


def test_labels_are_needed(net, some, digits):
    for labels in (digits.test.unlabelled().labels[:120], some[1][:5]):
        with pytest.raises(KdsecError, match="one label an image"):
            adaptive_pgd(net, some[0], labels, eps=0.1)


def test_an_attack_that_leaves_its_budget_is_caught(net, some, monkeypatch):
    monkeypatch.setattr(adaptive.PerturbationSet, "project", lambda self, images: images)
    with pytest.raises(KdsecError, match=r"left its budget|not \[0, 1\]"):
        adaptive_pgd(net, *some, eps=0.1, steps=2)


# Auto-PGD


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100)[:9] == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1)[:2] == [0, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_ascent_finds_an_optimum_that_a_fixed_step_misses(norm):
    """The nearest allowed point to a target, some of it inside the ball: a fixed step jumps over it."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.full((5, 1, 4, 4), 0.5)
    target = centre + 0.12 * torch.randn(centre.shape, generator=generator)
    eps = 0.1 if norm == "linf" else 0.3
    ball = PerturbationSet(centre, eps, norm)

    def objective(images, which):
        return -(images - target[which]).square().flatten(1).sum(1), None

    optimum = objective(ball.project(target), torch.arange(5))[0]
    found = auto_ascent(objective, centre, ball, 60)
    fixed = projected_ascent(objective, centre, ball, 2.5 * eps / 10, 60)
    assert distance(found, centre, norm).max() <= eps + 1e-6
    gaps = [optimum - objective(each, torch.arange(5))[0] for each in (found, fixed)]
    assert gaps[0].max() < 1e-3 and (norm == "l2" or gaps[1].min() > 1e-3)


def test_auto_ascent_stops_each_image_where_it_is_done():
    """The value is the mean pixel; an image is done above a mean of its own, and changes no more."""
    centre, limits = torch.full((3, 1, 2, 2), 0.2), torch.tensor([0.1, 0.3, 2.0])
    seen = []

    def objective(images, which):
        seen.append(which.tolist())
        value = images.flatten(1).mean(1)
        return value, value > limits[which]

    found = auto_ascent(objective, centre, PerturbationSet(centre, 0.25), 4).flatten(1).mean(1)
    assert torch.allclose(found, torch.tensor([0.2, 0.45, 0.45])) and seen[:3] == [[0, 1, 2], [1, 2], [2]]


# Random models


class Coin(nn.Module):
    """Class 1 where the mean pixel is above 0.7; else with probability ``luck``, drawn in every pass."""

    def __init__(self, luck=0.4):
        super().__init__()
        self.luck, self.generator = luck, torch.Generator().manual_seed(0)

    def forward(self, images):
        lucky = torch.rand(len(images), generator=self.generator) < self.luck
        score = 50 * (images.flatten(1).mean(1) + lucky.float() - 0.7)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("draws", [1, 5], ids=["one draw", "EOT"])
def test_a_lucky_draw_does_not_stop_the_attack_on_a_random_model(draws, monkeypatch):
    """A few draws fall to anything, all of them to the whole budget."""
    images, labels = torch.full((60, 1, 4, 4), 0.4), torch.zeros(60, dtype=torch.long)
    model = Coin() if draws == 1 else EOT(Coin(), draws)
    found = adaptive_pgd(model, images, labels, eps=0.4, steps=20, restarts=1)
    assert mean_correct(model, found, labels).max() == 0
    monkeypatch.setattr(adaptive, "is_random", lambda *_: False)
    lucky = adaptive_pgd(model, images, labels, eps=0.4, steps=20, restarts=1)
    assert mean_correct(model, lucky, labels).mean() > 0.2  # what stopping early would report as robust


def test_a_random_model_is_judged_by_its_mean_over_draws():
    """One draw often prefers the weaker candidate; the mean never does."""
    labels = torch.zeros(40, dtype=torch.long)
    weak, strong = torch.full((40, 1, 4, 4), 0.5), torch.full((40, 1, 4, 4), 0.8)
    assert torch.equal(worst_case(Coin(), [weak, strong], labels), strong)
    share = mean_correct(Coin(), weak, labels, draws=50)
    assert share.mean().item() == pytest.approx(0.6, abs=0.03) and share.unique().numel() > 2
    assert set(mean_correct(Coin(0.0), weak, labels).tolist()) == {1.0}


# Against the kept library


@pytest.mark.parametrize("steps", [1, 7])
def test_pgd_agrees_with_the_library_at_equal_settings(net, some, steps):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = some
    theirs = torchattacks.PGD(net, eps=0.1, alpha=0.03, steps=steps, random_start=False)(images, labels)
    ours = pgd(net, images, labels, eps=0.1, step_size=0.03, steps=steps, random_start=False)
    differing = (distance(ours, theirs) > 1e-5).float().mean().item()
    assert differing <= 0.02  # a gradient of 1e-9 may have either sign
    assert abs(right(net, ours, labels) - right(net, theirs, labels)) <= 1 / len(labels)


def test_strongest_is_about_as_strong_as_the_library(net, some):
    pytest.importorskip("torchattacks")
    images, labels = some
    ours = right(net, adaptive_pgd(net, images, labels, eps=0.08, steps=40, restarts=3), labels)
    theirs = right(net, library("apgd", net, images, labels, eps=0.08, steps=50), labels)
    full = right(net, library("autoattack", net, images, labels, eps=0.08, steps=20, queries=100), labels)
    assert full - 0.01 <= ours <= min(theirs, full) + 0.03


# Parts without a gradient, and random parts


def test_pass_through_keeps_the_values_and_lends_a_gradient(net, some):
    images, labels = some
    blind = nn.Sequential(BitDepth(2), net).eval()
    seeing = nn.Sequential(BPDA(BitDepth(2)), net).eval()
    assert torch.equal(predict(blind, images), predict(seeing, images))
    assert lost_gradients(blind, images, labels) == 1 and lost_gradients(seeing, images, labels) < 0.05
    # Steps of the rounding: 1/3. Whoever follows the rounding's own gradient never leaves the random start.
    fooled = {"blind": blind, "seeing": seeing}
    score = {
        name: right(blind, adaptive_pgd(model, images, labels, eps=0.2, steps=20, restarts=1), labels)
        for name, model in fooled.items()
    }
    assert score["seeing"] < 0.3 < 0.7 < score["blind"]


def test_pass_through_takes_the_gradient_of_the_substitute(some):
    images = some[0].clone().requires_grad_()
    smooth = nn.Conv2d(1, 1, 3, padding=1)
    made = BPDA(BitDepth(1), smooth)(images)
    (gradient,) = torch.autograd.grad(made.square().sum(), images)
    wanted = torch.autograd.grad(smooth(images), images, grad_outputs=2 * BitDepth(1)(images.detach()))[0]
    assert torch.allclose(gradient, wanted, atol=1e-5)
    assert torch.allclose(made, BitDepth(1)(images), atol=1e-6)


def test_averaged_is_the_logarithm_of_the_mean_probability(net, some):
    images, _ = some
    net.eval()
    assert torch.allclose(EOT(net, 3)(images).exp(), net(images).softmax(1), atol=1e-6)
    noisy = nn.Sequential(RandomNoise(0.3, seed=1), net).eval()
    mean = EOT(noisy, 5)(images).exp()
    again = nn.Sequential(RandomNoise(0.3, seed=1), net).eval()
    wanted = torch.stack([again(images).softmax(1) for _ in range(5)]).mean(0)
    assert torch.allclose(mean, wanted, atol=1e-6) and torch.allclose(mean.sum(1), torch.ones(len(images)))


def test_averaging_helps_against_a_random_defence(net, some):
    images, labels = some
    options = {"eps": 0.12, "steps": 20, "random_start": False}

    def survivors(draws):
        noisy = nn.Sequential(RandomNoise(0.2), net).eval()
        found = pgd(EOT(noisy, draws), images, labels, **options)
        judge = EOT(nn.Sequential(RandomNoise(0.2, seed=99), net).eval(), 50)
        return right(judge, found, labels)

    assert survivors(20) < survivors(1) - 0.02


def test_averaged_refuses_no_draws(net):
    with pytest.raises(KdsecError, match="draws=0 must be 1 or more"):
        EOT(net, 0)


# Signs of masked gradients


def test_an_honest_model_shows_no_sign(net, some):
    images, labels = some
    grey = pgd(net, images, labels, eps=0.1)
    signs = masking_checks(net, images, labels, eps=0.1, others={"grey box": grey})
    assert [sign.name for sign in signs if sign.suspicious] == []
    assert signs[-1].name == "attack against grey box" and signs[-1].measured <= signs[-1].limit
    unlimited = next(sign for sign in signs if sign.name == "unlimited budget")
    assert unlimited.measured == 0


def test_a_model_that_hides_its_gradient_is_found_out(net, some):
    images, labels = some
    grey = pgd(net, images, labels, eps=0.1)
    hidden = nn.Sequential(BitDepth(3), net).eval()
    signs = masking_checks(hidden, images, labels, eps=0.1, others={"grey box": grey})
    suspicious = {sign.name for sign in signs if sign.suspicious}
    assert {"images without a gradient", "unlimited budget", "attack against grey box"} <= suspicious
    # Through the rounding, the same defence is no more than the network behind it.
    seeing = nn.Sequential(BPDA(BitDepth(3)), net).eval()
    found = adaptive_pgd(seeing, images, labels, eps=0.1)
    assert right(hidden, found, labels) < 0.4


def test_beyond_noise():
    ones, zeros = torch.ones(100), torch.zeros(100)
    few = zeros.clone()
    few[:3] = 1
    many = zeros.clone()
    many[:20] = 1
    assert beyond_noise(many, zeros) and beyond_noise(ones, zeros)
    assert not beyond_noise(few, zeros) and not beyond_noise(zeros, many) and not beyond_noise(ones, ones)
    assert not beyond_noise(ones[:1], zeros[:1])


def test_masking_signs_check_their_budget(net, some):
    for eps, message in ((0.0, "eps=0 is no attack"), (2.0, "outside")):
        with pytest.raises(KdsecError, match=message):
            masking_checks(net, *some, eps=eps)


def test_evaluating_puts_every_layer_back():
    front, back = nn.BatchNorm2d(1).train(), nn.BatchNorm2d(1).eval()
    whole = nn.Sequential(front, back)
    with evaluating(whole):
        assert not any(layer.training for layer in whole.modules())
    assert front.training and not back.training
    with pytest.raises(ValueError), evaluating(whole):
        raise ValueError
    assert front.training and not back.training


def test_every_pair_of_loss_and_start_is_tried(net, some, monkeypatch):
    tried = []

    def watch(model, labels, loss, **options):
        tried.append(loss)
        return label_objective(model, labels, loss, **options)

    monkeypatch.setattr(adaptive, "label_objective", watch)
    images, labels = some
    adaptive_pgd(net, images, labels, eps=0.01, steps=1, restarts=2)
    assert [name for name, _ in itertools.groupby(tried)] == list(LOSSES) * 2
