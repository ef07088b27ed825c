"""Reversed maximization: targets with the properties derived for them, losses with their closed gradients."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec.data import UNLABELLED, Batch
from kdsec.defenses.reversed_maximization import ReversedMaximizationLoss
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import (
    READINGS,
    decoupled_terms,
    negatives,
    replace_negatives,
    reverse,
    reverse_negatives,
    soft_cross_term,
)
from kdsec.train import Recipe, cross_entropy, evaluate, fit, predict
from tests.small import build, trained

TARGETS = [name for name in READINGS if name != "away"]
TAU = 4.0


class Fixed(nn.Module):
    """Answers with given logits, whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def draw(seed, rows=16, classes=10, scale=5.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def log_p():
    return draw(0, classes=9, scale=1.5).log_softmax(1)


@pytest.fixture(scope="module")
def honest(digits):
    return trained(digits)


def first(images, count=32):
    return Batch(images.float_images(slice(0, count)), images.labels[:count], torch.arange(count))


# Targets


@pytest.mark.parametrize("reading", TARGETS)
def test_every_target_is_a_distribution(log_p, reading):
    log_q = reverse_negatives(log_p, reading)
    assert torch.allclose(log_q.exp().sum(1), torch.ones(16), atol=1e-5)
    opposite = (log_p.argsort(1) == log_q.argsort(1, descending=True)).all()
    assert bool(opposite) == (reading not in ("copy", "uniform"))


def test_rank_keeps_the_multiset_and_the_entropy(log_p):
    log_q = reverse_negatives(log_p, "rank")
    assert torch.equal(log_q.sort(1).values, log_p.sort(1).values)
    entropy = [torch.special.entr(each.exp().sort(1).values).sum(1) for each in (log_p, log_q)]
    assert torch.equal(*entropy)


def test_rank_is_the_permutation_farthest_from_the_original():
    log_p = draw(1, rows=1, classes=5, scale=1.0).log_softmax(1)
    p, reversed_ = log_p.exp()[0], reverse_negatives(log_p, "rank")[0]
    every = torch.stack([log_p[0, list(order)] for order in itertools.permutations(range(5))])
    divergence = (p * (log_p[0] - every)).sum(1)
    overlap = (p * every.exp()).sum(1)
    assert (p * (log_p[0] - reversed_)).sum().item() == pytest.approx(divergence.max().item(), rel=1e-5)
    assert (p * reversed_.exp()).sum().item() == pytest.approx(overlap.min().item(), rel=1e-5)


@pytest.mark.parametrize("reading", ["rank", "negate"])
def test_twice_reversed_is_the_original(log_p, reading):
    again = reverse_negatives(reverse_negatives(log_p, reading), reading)
    assert torch.allclose(again, log_p, atol=1e-5)
    logits, positive = draw(2), torch.arange(16) % 10
    twice = reverse(reverse(logits, positive, reading, TAU), positive, reading, TAU)
    assert torch.allclose((twice / TAU).log_softmax(1), (logits / TAU).log_softmax(1), atol=1e-5)


def test_rank_cannot_tell_apart_what_it_gave_two_equal_probabilities():
    """The last two tie, so the first two come to tie, and nothing is left of which was larger."""
    log_p = torch.tensor([[0.4, 0.3, 0.15, 0.15]]).log()
    once = reverse_negatives(log_p, "rank")
    assert once[0, 0] == once[0, 1]
    twice = reverse_negatives(once, "rank")
    assert not torch.allclose(twice, log_p) and torch.equal(twice.sort(1).values, log_p.sort(1).values)


@pytest.mark.parametrize("classes", [3, 10, 100, 200])
def test_complement_turns_differences_around_and_contracts_them(classes):
    """Gaps become -1 / (K - 2) of what they were, and what entropy is left to gain is bounded."""
    log_p = draw(3, classes=classes - 1, scale=2.0).double().log_softmax(1)
    log_q = reverse_negatives(log_p, "complement")
    p, q = log_p.exp(), log_q.exp()
    gaps = [each[:, :, None] - each[:, None, :] for each in (p, q)]
    assert torch.allclose(gaps[1], -gaps[0] / (classes - 2), atol=1e-12)
    deficit = math.log(classes - 1) - torch.special.entr(q).sum(1)
    bound = math.log((classes - 1) / (classes - 2))
    assert bool((deficit >= -1e-9).all()) and bool((deficit <= bound + 1e-9).all())


def test_complement_of_a_certain_negative():
    """1 - p is 0 in float32, and its logarithm still a number: the sum of the others."""
    log_p = torch.tensor([[60.0, 0.0, -3.0, -5.0]]).log_softmax(1)
    assert log_p.exp()[0, 0] == 1
    log_q = reverse_negatives(log_p, "complement")
    assert log_q.isfinite().all()
    assert log_q[0, 0].item() == pytest.approx(-60 + math.log(1 + math.exp(-3) + math.exp(-5)) - math.log(3))


def test_linear_rank_forgets_everything_but_the_order(log_p):
    q = reverse_negatives(log_p, "linear rank").exp()
    steps = torch.arange(1, 10) / 45
    assert torch.allclose(q.sort(1).values, steps.expand_as(q), atol=1e-6)
    assert torch.allclose(q, reverse_negatives((2 * log_p).log_softmax(1), "linear rank").exp())


def test_negating_flattens_right_skewed_logits_only():
    """Few similar classes above a low bulk, the usual case, become flatter; the mirror image steeper."""
    logits = torch.zeros(1, 20)
    logits[0, :2] = 3
    for skewed, flatter in ((logits, True), (-logits, False)):
        log_p = skewed.log_softmax(1)
        entropy = [
            torch.special.entr(each.exp()).sum() for each in (log_p, reverse_negatives(log_p, "negate"))
        ]
        assert (entropy[1] > entropy[0]).item() == flatter


@pytest.mark.parametrize("reading", TARGETS)
def test_the_positive_class_keeps_its_probability(reading):
    logits, positive = draw(4), torch.arange(16) % 10
    target = (reverse(logits, positive, reading, TAU) / TAU).softmax(1)
    p = (logits / TAU).softmax(1)
    chosen = positive[:, None]
    assert torch.allclose(target.gather(1, chosen), p.gather(1, chosen), atol=1e-6)
    assert torch.allclose(target.sum(1), torch.ones(16), atol=1e-5)
    q = reverse_negatives(negatives(logits, positive, TAU), reading).exp()
    wanted = (1 - p.gather(1, chosen)) * q
    is_positive = F.one_hot(positive, 10).bool()
    assert torch.allclose(target[~is_positive].view(16, 9), wanted, atol=1e-6)


def test_uniform_and_complement_keep_the_decision_wherever_the_positive_beats_chance():
    logits, positive = draw(5, rows=400), torch.arange(400) % 10
    p = (logits / TAU).softmax(1).gather(1, positive[:, None])[:, 0]
    for reading in ("uniform", "complement"):
        decided = reverse(logits, positive, reading, TAU).argmax(1)
        assert bool((decided == positive)[p > 1 / 9].all())
    # The same values in another order have the same margin: the decision is the one it was.
    was, now = logits.argmax(1), reverse(logits, positive, "rank", TAU).argmax(1)
    assert torch.equal(was == positive, now == positive)


# Masks


@pytest.mark.parametrize("lead", [-300.0, 0.0, 300.0, 3000.0])
def test_negatives_do_not_depend_on_the_positive_logit(lead):
    """An epsilon in the mask, or a softmax before it, would drown them in rounding."""
    logits, positive = draw(6), torch.arange(16) % 10
    moved = logits + lead * F.one_hot(positive, 10)
    assert torch.equal(negatives(moved, positive, TAU), negatives(logits, positive, TAU))
    for reading in TARGETS:
        target = reverse(moved, positive, reading, TAU)
        assert target.isfinite().all()
        wanted = reverse_negatives(negatives(logits, positive, TAU), reading)
        assert torch.allclose(negatives(target, positive, TAU), wanted, atol=1e-3)
        model = Fixed(draw(7))
        value = ReversedMaximizationLoss(Fixed(moved), reading).divergence(model.logits, moved, positive)
        value.backward()
        assert value.isfinite() and model.logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype):
    logits, positive = draw(8).to(dtype), torch.arange(16) % 10
    for reading in TARGETS:
        target = reverse(logits, positive, reading, TAU)
        assert target.dtype == torch.float32
        assert torch.equal(target, reverse(logits.float(), positive, reading, TAU))


# The loss


def divergence_gradient(reading, binary, reversal, *, decoupled=True, seed=9):
    """The divergence's gradient on the logits, summed over the batch, and all that a closed form needs."""
    honest, z = draw(seed).double(), draw(seed + 1).double().requires_grad_()
    positive = torch.arange(16) % 10
    loss = ReversedMaximizationLoss(Fixed(honest), reading, TAU, 1.0, binary, reversal, decoupled=decoupled)
    (gradient,) = torch.autograd.grad(loss.divergence(z, honest, positive), z)
    is_positive = F.one_hot(positive, 10).bool()
    p = (z / TAU).softmax(1).detach()
    return 16 * gradient, is_positive, p, honest, positive


@pytest.mark.parametrize("reading", TARGETS)
def test_gradient_of_the_reversal_is_the_closed_form(reading):
    """tau (p_j - q_j) on the negatives, and exactly nothing on the positive logit."""
    gradient, is_positive, p, honest, positive = divergence_gradient(reading, 0.0, 1.0)
    q = reverse_negatives(negatives(honest, positive, TAU), reading).exp()
    among = p[~is_positive].view(16, 9) / p[~is_positive].view(16, 9).sum(1, keepdim=True)
    assert torch.allclose(gradient[~is_positive].view(16, 9), (TAU * (among - q)).double(), atol=1e-4)
    assert bool((gradient[is_positive] == 0).all())


def test_gradient_of_the_binary_term_is_the_closed_form():
    """tau (p_t - p_t^A) on the positive logit, taken evenly by share from the negatives."""
    gradient, is_positive, p, honest, _ = divergence_gradient("negate", 1.0, 0.0)
    surplus = TAU * (p[is_positive] - (honest / TAU).softmax(1)[is_positive])
    among = p[~is_positive].view(16, 9) / p[~is_positive].view(16, 9).sum(1, keepdim=True)
    assert torch.allclose(gradient[is_positive], surplus, atol=1e-4)
    assert torch.allclose(gradient[~is_positive].view(16, 9), -surplus[:, None] * among, atol=1e-4)


def test_away_leaves_the_positive_logit_alone_and_moves_away():
    honest, z, positive = draw(11), draw(12), torch.arange(16) % 10
    loss = ReversedMaximizationLoss(Fixed(honest), "away", TAU, 1.0, 0.0, 1.0)

    def divergence(logits):
        p, q = (negatives(each, positive, TAU) for each in (logits, honest))
        return TAU**2 * (p.exp() * (p - q)).sum(1).mean()

    z.requires_grad_()
    value = loss.divergence(z, honest, positive)
    assert value.item() == pytest.approx(-divergence(z).item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient[F.one_hot(positive, 10).bool()].abs().max() == 0
    assert divergence(z - gradient) > divergence(z)


@pytest.mark.parametrize("reading", TARGETS)
def test_the_joint_divergence_splits(reading):
    """KL(y* || p) = KL of the binary parts + (1 - p_t^A) KL(q || negatives), image by image."""
    for honest, z, t in zip(draw(13), draw(14), torch.arange(16) % 10, strict=True):
        honest, z, t = honest[None], z[None], t[None]
        target = reverse(honest, t, reading, TAU)
        joint = soft_cross_term(z, target, TAU)
        binary, reversal = decoupled_terms(z, target, t, TAU)
        left = 1 - (honest / TAU).softmax(1)[0, t]
        assert joint.item() == pytest.approx((binary + left * reversal).item(), rel=1e-3, abs=1e-4)
        loss = ReversedMaximizationLoss(Fixed(honest), reading, TAU, decoupled=False)
        assert loss.divergence(z, honest, t).item() == pytest.approx(joint.item(), rel=1e-5)


def test_without_the_split_a_sure_teacher_silences_the_reversal():
    """The reason for decoupling: the gradient on the negatives carries a factor of 1 - p_t^A."""
    honest = torch.tensor([[60.0, 3.0, 1.0, -1.0, -3.0]])
    t, sizes = torch.zeros(1, dtype=torch.int64), []
    for decoupled in (True, False):
        z = honest.clone().requires_grad_()
        loss = ReversedMaximizationLoss(Fixed(honest), "negate", TAU, decoupled=decoupled)
        loss.divergence(z, honest, t).backward()
        sizes.append(z.grad[0, 1:].abs().max().item())
    left = 1 - (honest.double() / TAU).softmax(1)[0, 0].item()
    assert left < 1e-5 and sizes[0] > 1
    assert sizes[1] == pytest.approx(left * sizes[0], rel=0.05)


@pytest.mark.parametrize("reading", READINGS)
def test_the_loss_is_the_equation(digits, honest, reading):
    batch, model = first(digits.train), build(digits, seed=1).eval()
    z, z_honest = model(batch.images), honest(batch.images)
    (p, q), (t, u) = (
        (negatives(each, batch.labels, 3.0) for each in (z, z_honest)),
        ((each / 3).softmax(1).gather(1, batch.labels[:, None]) for each in (z, z_honest)),
    )
    binary = (u * (u / t).log() + (1 - u) * ((1 - u) / (1 - t)).log()).mean()
    if reading == "away":
        reversal = -(p.exp() * (p - q)).sum(1).mean()
    else:
        target = reverse_negatives(q, reading)
        reversal = (target.exp() * (target - p)).sum(1).mean()
    wanted = 0.5 * cross_entropy(z, batch.labels) + 0.7 * 9 * binary + 0.3 * 9 * reversal
    loss = ReversedMaximizationLoss(honest, reading, 3.0, 0.5, 0.7, 0.3)
    assert loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-3)


def test_the_copy_is_decoupled_distillation(digits, honest):
    batch, model = first(digits.train), build(digits, seed=1).eval()
    copied = ReversedMaximizationLoss(honest, "copy", TAU, 1.0, 1.0, 2.0)(model, batch)
    z, z_honest = (predict(net, batch.images) for net in (model, honest))
    tckd, nckd = decoupled_terms(z, z_honest, batch.labels, TAU)
    by_hand = cross_entropy(z, batch.labels) + tckd + 2.0 * nckd
    assert copied.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_the_positive_class_is_the_label_or_the_decision(digits, honest):
    batch, model = first(digits.train), build(digits, seed=1).eval()
    wrong = batch._replace(labels=(batch.labels + 1) % 10)
    bare = [
        ReversedMaximizationLoss(honest, label_weight=0.0, positive=positive)(model, each).item()
        for positive in ("label", "decision")
        for each in (batch, wrong)
    ]
    assert bare[0] != pytest.approx(bare[1]) and bare[2] == bare[3]
    blind = batch._replace(labels=torch.full_like(batch.labels, UNLABELLED))
    assert ReversedMaximizationLoss(honest)(model, blind).item() == pytest.approx(bare[2], rel=1e-5)


def test_honest_network_is_frozen(digits, honest):
    loss = ReversedMaximizationLoss(honest)
    before = fingerprint(honest)
    fit(build(digits), digits.train, Recipe(epochs=1, batch_size=64, precision="float32"), loss)
    assert fingerprint(honest) == before and not honest.training
    assert all(parameter.grad is None for parameter in honest.parameters())


@pytest.mark.parametrize("reading", ["rank", "negate"])
def test_the_reversal_is_learnt_and_the_accuracy_kept(digits, honest, reading):
    """On images never seen: the order of the negatives turned around, the decision as good as before."""
    model = build(digits, "digits-medium")
    recipe = Recipe(epochs=10, batch_size=64, lr=0.1, precision="float32")
    fit(model, digits.train, recipe, ReversedMaximizationLoss(honest, reading, reversal_weight=0.3))
    assert evaluate(model, digits.test).accuracy > evaluate(honest, digits.test).accuracy - 0.03
    decided = predict(honest, digits.test).argmax(1)
    ranks = [negatives(predict(net, digits.test), decided).argsort(1).argsort(1) for net in (model, honest)]
    correlation = torch.corrcoef(torch.stack([each.flatten().float() for each in ranks]))[0, 1]
    assert correlation < -0.3


# Bad input


def test_two_classes():
    two = draw(15, classes=2)
    with pytest.raises(KdsecError, match="2 classes leave nothing to reverse.*NastyLoss") as error:
        reverse(two, torch.zeros(16, dtype=torch.int64), "negate", TAU)
    assert "\n" not in str(error.value)
    batch = Batch(torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64), torch.arange(16))
    for reading in READINGS:
        with pytest.raises(KdsecError, match="three or more"):
            ReversedMaximizationLoss(Fixed(two), reading)(Fixed(two), batch)


@pytest.mark.parametrize("positive", [[-1, 3], [0, 10]])
def test_positive_class_outside_the_range(positive):
    with pytest.raises(KdsecError, match=r"positive classes from .* outside 0\.\.9; give labels of") as error:
        reverse(draw(16, rows=2), torch.tensor(positive), "negate", TAU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"reading": "negated"}, "unknown reading 'negated'; did you mean 'negate'"),
        ({"positive": "argmax"}, "unknown positive 'argmax'; choose from: label, decision"),
        ({"reversal_weight": -1.0}, "must be 0 or more"),
        ({"binary_weight": float("nan")}, "must be a finite number"),
        ({"decoupled": False, "reversal_weight": 3.0}, "the same value .now 1 and 3."),
        ({"decoupled": False, "reading": "away"}, "a reading other than 'away'"),
    ],
)
def test_bad_settings_end_in_one_line(setting, message):
    with pytest.raises(KdsecError, match=message) as error:
        ReversedMaximizationLoss(Fixed(draw(17)), **setting)
    assert "\n" not in str(error.value)


def test_a_temperature_of_zero_and_a_reading_without_target():
    with pytest.raises(KdsecError, match="temperature=0 must be above 0"):
        negatives(draw(18), torch.zeros(16, dtype=torch.int64), 0)
    with pytest.raises(KdsecError, match="unknown reading 'away'"):
        reverse_negatives(draw(18).log_softmax(1), "away")


def test_explosion_says_what_to_lower(digits, honest):
    recipe = Recipe(epochs=4, batch_size=32, lr=1e30, precision="float32")
    with pytest.raises(KdsecError, match=r"loss became .*lower reversal_weight \(now 9\)"):
        fit(build(digits), digits.train, recipe, ReversedMaximizationLoss(honest, reversal_weight=9.0))


def test_every_setting_is_part_of_the_fingerprint(honest):
    losses = [ReversedMaximizationLoss(honest, reading) for reading in READINGS]
    losses += [
        ReversedMaximizationLoss(honest, temperature=2.0),
        ReversedMaximizationLoss(honest, reversal_weight=2.0),
        ReversedMaximizationLoss(honest, positive="decision"),
        ReversedMaximizationLoss(honest, decoupled=False),
    ]
    assert len({fingerprint(loss) for loss in losses}) == len(losses)


def test_negatives_can_be_put_back():
    logits, positive = draw(19), torch.arange(16) % 10
    same = replace_negatives(logits, positive, negatives(logits, positive, TAU), TAU)
    assert torch.allclose((same / TAU).log_softmax(1), (logits / TAU).log_softmax(1), atol=1e-5)
