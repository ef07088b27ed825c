"""Training-free protections: each is its formula, keeps the decision, and answers with probabilities."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from kdsec.defenses.output_wrappers import Reversed, Rounded, TopK
from kdsec.defenses.prediction_poisoning import PredictionPoisoning, deviation
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import READINGS, negatives, reverse

TAU = 4.0
WRAPPERS = {
    **{name: Reversed(name, TAU) for name in READINGS if name != "away"},
    "rounded": Rounded(1),
    "top 2": TopK(2),
    "MAD": PredictionPoisoning(0.5),
}
KEEPING = [name for name in WRAPPERS if name not in ("negate", "complement", "linear rank")]


@st.composite
def answers(draw):
    """Logits of a few images over 3 to 12 classes, from nearly even to very sure."""
    classes, seed = draw(st.integers(3, 12)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return scale * torch.randn(16, classes, generator=torch.Generator().manual_seed(seed))


@given(answers())
@settings(max_examples=25, deadline=None)
def test_answers_are_probabilities_and_decisions_are_kept(logits):
    for name, wrapper in WRAPPERS.items():
        served = wrapper(logits)
        assert served.shape == logits.shape and not served.isnan().any()
        assert torch.allclose(served.softmax(1).sum(1), torch.ones(16), atol=1e-5)
        sure = (logits / TAU).softmax(1).amax(1) > 0.501
        same = served.argmax(1) == logits.argmax(1)
        assert same[sure].all() and (name not in KEEPING or same.all()), name


@given(answers())
@settings(max_examples=25, deadline=None)
def test_exact_reversal_is_the_formula_and_undoes_itself(logits):
    decided = logits.argmax(1)
    for reading in (name for name in READINGS if name != "away"):
        assert torch.equal(WRAPPERS[reading](logits), reverse(logits, decided, reading, TAU))
    log_p = negatives(logits, decided, TAU)
    assume((log_p.sort(1).values.diff(dim=1) > 1e-4).all())
    sure = (logits / TAU).softmax(1).amax(1) > 0.501
    for reading in ("rank", "negate"):
        twice = WRAPPERS[reading](WRAPPERS[reading](logits))
        kept = (negatives(twice, decided, TAU) - log_p).abs().amax(1)
        assert (kept[sure] < 2e-2).all()


def test_rounding_by_hand():
    logits = torch.tensor([[0.52, 0.31, 0.14, 0.03], [0.48, 0.48, 0.02, 0.02]]).log()
    served = Rounded(1)(logits).softmax(1)
    assert torch.allclose(
        served, torch.tensor([[5, 3, 1, 0], [5, 5, 0, 0.0]]) / torch.tensor([[9.0], [10]]), atol=1e-3
    )
    many = Rounded(1)(torch.zeros(1, 100)).softmax(1)  # 100 times 0.01: the decision is what is left
    assert many[0, 0] == 1 and many[0, 1:].sum() == 0


def test_a_protected_teacher_is_a_sequence_and_its_settings_count():
    teacher, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), torch.rand(3, 1, 2, 2)
    for name, wrapper in WRAPPERS.items():
        assert torch.equal(nn.Sequential(teacher, wrapper)(images), wrapper(teacher(images))), name
    assert (
        len({fingerprint(wrapper) for wrapper in (*WRAPPERS.values(), Rounded(2), TopK(3))})
        == len(WRAPPERS) + 2
    )


# Prediction poisoning


def last_layer_deviation(poisoned, y, features, weights):
    """The paper's objective from autograd: gradients of the copy's cross-entropy on its last layer."""
    gradients = []
    for target in (poisoned, y):
        w = weights.clone().requires_grad_()
        loss = -(target * (features @ w.T).log_softmax(0)).sum()
        (gradient,) = torch.autograd.grad(loss, w)
        gradients.append(gradient / gradient.norm())
    return (gradients[0] - gradients[1]).square().sum()


def test_the_objective_is_the_angle_between_gradients():
    y, poisoned = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    by_hand = last_layer_deviation(poisoned, y, torch.randn(9), torch.zeros(6, 9))
    assert deviation(poisoned[None], y[None]).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_with_three_classes_and_no_limit_it_is_the_best_answer_with_this_decision():
    """The optimum is known: a fine grid of all answers whose largest probability is the decision's."""
    ends = torch.linspace(0, 1, 201)
    grid = torch.stack(torch.meshgrid(ends, ends, indexing="ij"), -1).view(-1, 2)
    grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], dim=1)
    grid = grid[(grid[:, 2] >= 0)]
    for y in torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).softmax(1):
        allowed = grid[(grid[:, y.argmax()] >= grid.amax(1)) & ((grid - 1 / 3).norm(dim=1) > 1e-3)]
        best = deviation(allowed, y.expand_as(allowed)).max().item()
        found = deviation(PredictionPoisoning(2.0)(y.log()[None]).softmax(1), y[None]).item()
        assert found == pytest.approx(best, abs=1e-2)


@given(answers(), st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_the_budget_is_kept_and_more_of_it_turns_more(logits, budget):
    y = logits.softmax(1)
    turned = []
    for allowed in (0.0, budget / 2, budget):
        served = PredictionPoisoning(allowed)(logits).softmax(1)
        assert ((served - y).abs().sum(1) <= allowed + 1e-4).all()
        turned.append(deviation(served, y))
    assert turned[0].abs().max() < 1e-3
    assert (turned[2] >= turned[1] - 1e-3).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reversed("away"), "unknown reading 'away'"),
        (lambda: Reversed("negate", 0.0), "temperature=0.0 must be above 0"),
        (lambda: Rounded(0), "decimals"),
        (lambda: TopK(0), "keep"),
        (lambda: PredictionPoisoning(3.0), "budget"),
    ],
)
def test_bad_settings_end_in_one_line(make, message):
    with pytest.raises(KdsecError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
