"""Thieves who know reversed maximization: each view is the inverse it claims to be, and the sign is found."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec.attacks.extraction import EXTRACTION_ATTACKS, powers
from kdsec.attacks.inverse_reversal import (
    class_means_negated,
    guess_from_pixels,
    inverse,
    power,
    sign_detected,
)
from kdsec.attacks.postprocessing import FLOOR, keep_top, postprocess
from kdsec.defenses.stingy import Stingy
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import negatives, rank_agreement, reverse
from kdsec.train import Recipe, evaluate, predict
from tests.small import build, trained

TAU = 4.0
RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")
SHORT = Recipe(epochs=1, batch_size=64, lr=0.05, precision="float32")


class Reversed(nn.Module):
    """A teacher that has learnt its target exactly."""

    def __init__(self, teacher, reading):
        super().__init__()
        self.teacher, self.reading = teacher, reading
        self.eval()

    def extra_repr(self):
        return self.reading

    def forward(self, images):
        logits = self.teacher(images)
        return reverse(logits, logits.argmax(1), self.reading, TAU)


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


def softened(model, images):
    return (predict(model, images) / TAU).softmax(1)


@pytest.mark.parametrize("reading", ["rank", "negate", "complement"])
def test_an_exact_reversal_is_undone_exactly(digits, teacher, reading):
    """Dark knowledge was encoded, not eliminated: who knows the rule reads the honest answers."""
    # Where the reversed answer still has the same decision, without which nobody knows what to leave out.
    reversed_ = Reversed(teacher, reading)
    honest = predict(teacher, digits.val)
    kept = predict(reversed_, digits.val).argmax(1) == honest.argmax(1)
    assert kept.float().mean() > 0.95
    seen = softened(inverse(reversed_, digits.train, reading), digits.val)
    assert torch.allclose(seen[kept], (honest / TAU).softmax(1)[kept], atol=1e-3)
    told = softened(reversed_, digits.val)
    assert (told - (honest / TAU).softmax(1)).abs().max() > 0.05


def test_uniform_negatives_are_gone_for_good(digits, teacher):
    flat = Reversed(teacher, "uniform")
    for reading in ("rank", "negate", "complement"):
        seen = negatives(*decided(inverse(flat, digits.train, reading), digits.val), TAU)
        assert seen.exp().max() < 0.2  # one ninth, give or take rounding


def decided(model, images):
    logits = predict(model, images)
    return logits, logits.argmax(1)


def test_powers_run_from_reversed_over_dropped_to_honest(digits, teacher):
    honest = softened(postprocess(teacher), digits.val)
    assert torch.allclose(softened(power(teacher, digits.train, 1.0), digits.val), honest, atol=1e-5)
    negated = softened(inverse(teacher, digits.train, "negate"), digits.val)
    assert torch.allclose(softened(power(teacher, digits.train, -1.0), digits.val), negated, atol=1e-5)
    dropped = softened(power(teacher, digits.train, 0.0), digits.val)
    chosen = honest.argmax(1)
    rest = dropped[~F.one_hot(chosen, 10).bool()].view(-1, 9)
    assert torch.allclose(rest, rest[:, :1].expand_as(rest))
    for exponent in (-2.0, -0.5, 0.0, 0.5, 2.0):
        seen = softened(power(teacher, digits.train, exponent), digits.val)
        index = chosen[:, None]
        assert torch.allclose(seen.gather(1, index), honest.gather(1, index), atol=1e-5)
        wanted = (exponent * negatives(honest.log(), chosen)).softmax(1)
        assert torch.allclose(negatives(seen.log(), chosen).exp(), wanted, atol=1e-4)


def test_power_zero_drops_the_negatives_as_the_thief_of_that_name_does(digits, teacher):
    """The two differ in the temperature at which the decision keeps its probability."""
    one = predict(power(teacher, digits.train, 0.0, temperature=1.0), digits.val)
    other = predict(keep_top(teacher, digits.train, 1), digits.val)
    assert torch.allclose(one.log_softmax(1), other.log_softmax(1), atol=1e-3)


def test_class_means_negated_knows_the_decision_only(digits, teacher):
    log_p = predict(postprocess(teacher), digits.train)
    chosen = log_p.argmax(1)
    seen = predict(class_means_negated(teacher, digits.train), digits.train)
    for k in range(10):
        mine = chosen == k
        profile = negatives(seen[mine], chosen[mine], TAU)
        wanted = (-negatives(log_p[mine], chosen[mine], TAU).mean(0)).log_softmax(0)
        assert torch.allclose(profile, wanted.expand_as(profile), atol=1e-3)
    index = chosen[:, None]
    honest = (log_p / TAU).softmax(1).gather(1, index)
    assert torch.allclose((seen / TAU).softmax(1).gather(1, index), honest, atol=1e-4)


def test_class_means_of_decisions_never_seen_are_even(digits, teacher):
    some = digits.train.subset(digits.train.labels < 3)
    seen = predict(class_means_negated(teacher, some), digits.val)
    assert seen.isfinite().all()
    rare = predict(teacher, digits.val).argmax(1) == 8
    profile = negatives(seen[rare], torch.full((int(rare.sum()),), 8), TAU).exp()
    assert torch.allclose(profile, torch.full_like(profile, 1 / 9), atol=1e-4)


# The sign


def test_rank_agreement_is_spearmans():
    from scipy.stats import spearmanr

    first, second = torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(0))
    positive = torch.arange(30) % 10
    by_hand = [
        spearmanr(*(torch.cat([row[:t], row[t + 1 :]]).numpy() for row in rows)).statistic
        for *rows, t in zip(first, second, positive.tolist(), strict=True)
    ]
    assert rank_agreement(first, second, positive) == pytest.approx(sum(by_hand) / 30, abs=1e-6)
    assert rank_agreement(first, 3 * first + 1, positive) == pytest.approx(1)
    assert rank_agreement(first, -first, positive) == pytest.approx(-1)


@pytest.mark.parametrize("reading", ["rank", "negate", "complement"])
def test_the_sign_of_a_reversal_is_found_without_labels(digits, teacher, reading):
    own = digits.train.unlabelled()
    for model, exponent in ((teacher, 1.0), (Reversed(teacher, reading), -1.0)):
        found = sign_detected(model, own)
        wanted = power(model, own, exponent)
        assert torch.equal(predict(found, digits.val), predict(wanted, digits.val))


def test_the_guess_is_the_closed_form_of_a_ridge_regression(digits):
    """Whatever moves away from the solution costs more."""
    some = digits.train.subset(slice(0, 300))
    scores = guess_from_pixels(some, some.labels, 10)
    assert scores.shape == (300, 10) and (scores.argmax(1) == some.labels).float().mean() > 0.9
    x = some.float_images().flatten(1).double()
    x = x - x.mean(0)
    y = F.one_hot(some.labels, 10).double()
    y = y - y.mean(0)
    penalty = 0.01 * (x.T @ x).diagonal().mean()
    stacked = torch.cat([x, penalty.sqrt() * torch.eye(64, dtype=torch.float64)])
    weights = torch.linalg.lstsq(stacked, torch.cat([y, torch.zeros(64, 10, dtype=torch.float64)])).solution
    assert torch.allclose(scores, (x @ weights).float(), atol=1e-4)


# As thieves


def test_who_knows_the_rule_gets_the_honest_student_back(digits, teacher):
    """From an exactly reversed teacher: the same student as from the honest one, up to rounding.

    The thief who believes what it is told does not become its mirror image: which classes look alike is in
    the images too.
    """
    own = digits.train.unlabelled()
    agreement = {}
    reference = EXTRACTION_ATTACKS["soft labels"](build(digits), teacher, own, RECIPE, alpha=1.0)
    chosen = predict(reference, digits.val).argmax(1)
    for name in ("soft labels", "negatives negated"):
        student = EXTRACTION_ATTACKS[name](build(digits), Reversed(teacher, "negate"), own, RECIPE, alpha=1.0)
        assert evaluate(student, digits.val).accuracy > 0.85
        agreement[name] = rank_agreement(predict(student, digits.val), predict(reference, digits.val), chosen)
    assert agreement["negatives negated"] > 0.8 and agreement["soft labels"] < 0.6


def test_powers_are_thieves(digits, teacher):
    thieves = powers([-1.0, 0.5])
    assert list(thieves) == ["power -1", "power 0.5"]
    students = [
        thief(build(digits), teacher, digits.train.unlabelled(), SHORT, alpha=1.0)
        for thief in thieves.values()
    ]
    assert fingerprint(students[0]) != fingerprint(students[1])


def test_every_view_has_its_settings_in_its_fingerprint(digits, teacher):
    views = [
        power(teacher, digits.train, -1.0),
        power(teacher, digits.train, -0.5),
        power(teacher, digits.train, -1.0, temperature=2.0),
        inverse(teacher, digits.train, "negate"),
        inverse(teacher, digits.train, "rank"),
        inverse(teacher, digits.train, "rank", temperature=2.0),
        class_means_negated(teacher, digits.train),
        class_means_negated(teacher, digits.train, temperature=2.0),
    ]
    assert len({fingerprint(each) for each in views}) == len(views)


def test_views_survive_answers_without_a_rest(digits, teacher):
    """A stingy teacher of one class: nothing to turn around, and no NaN."""
    for reading in ("rank", "negate", "complement"):
        answers = predict(inverse(Stingy(teacher, 1), digits.train, reading), digits.val)
        assert answers.isfinite().all() and answers.min() > 2 * FLOOR
        assert torch.equal(answers.argmax(1), predict(teacher, digits.val).argmax(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda net, own: inverse(net, own, "uniform"),
            "unknown reading to undo 'uniform'; choose from: rank",
        ),
        (
            lambda net, own: predict(power(net, own, -1.0, temperature=0.0), own),
            "temperature=0.0 must be above 0",
        ),
    ],
)
def test_bad_settings_end_in_one_line(digits, teacher, make, message):
    with pytest.raises(KdsecError, match=message) as error:
        make(teacher, digits.val)
    assert "\n" not in str(error.value)
