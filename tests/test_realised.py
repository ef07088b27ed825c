"""Manipulation checks: planted answers of which it is known whether a defence's objective was reached."""

import math

import pytest
import torch

from kdsec.defenses.realised import OBJECTIVES, check_realised, objective_of, unevenness, variation
from kdsec.errors import KdsecError
from kdsec.logits import NOTHING, keep_largest, reverse

TAU = 4.0
HONEST = 4 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
LABELS = HONEST.argmax(1)


def planted(objective):
    match objective:
        case "reversed":
            return reverse(HONEST, LABELS, "negate", TAU)
        case "evened":
            return reverse(HONEST, LABELS, "complement", TAU)
        case "moved":
            return HONEST.roll(1, dims=1)
        case _:
            return keep_largest(HONEST, 2, NOTHING)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_planted_defence_is_realised_and_the_identity_is_not(objective):
    reached = check_realised(objective, planted(objective), HONEST, LABELS, TAU)
    same = check_realised(objective, HONEST, HONEST, LABELS, TAU)
    assert reached.realised and not same.realised
    assert reached.metrics["realised"] == 1 and same.metrics["realised"] == 0
    assert str(same).endswith(": not realised") and "required at" in str(reached)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_teacher_that_ignores_its_images_reverses_nothing(objective):
    deaf = HONEST[:1].expand_as(HONEST)
    check = check_realised(objective, deaf, HONEST, LABELS, TAU)
    assert check.realised == (objective == "moved")  # it did move, at the price of its accuracy


def test_a_second_honest_network_is_the_measure_of_having_moved():
    noisy = HONEST + torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    stranger = HONEST + torch.randn(200, 10, generator=torch.Generator().manual_seed(2))
    assert not check_realised("moved", noisy, HONEST, LABELS, TAU, control=stranger).realised
    assert check_realised("moved", planted("moved"), HONEST, LABELS, TAU, control=stranger).realised


def test_measures_at_their_ends():
    uniform, one = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
    assert unevenness(uniform, one, 1.0) == pytest.approx(0, abs=1e-6)
    peak = torch.zeros(4, 10).index_fill(1, torch.tensor([3]), 1e4)
    assert unevenness(peak, one, 1.0) == pytest.approx(math.log(9))
    assert variation(peak, peak, 1.0) == 0
    assert variation(peak, peak.roll(1, dims=1), 1.0) == pytest.approx(1)


def test_names_in_the_tables_have_objectives():
    assert objective_of("RML, negate") == objective_of("negate") == "reversed"
    assert objective_of("normal") is None and objective_of("copy") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("reverse", HONEST, HONEST), "unknown objective 'reverse'; did you mean 'reversed'"),
        (("evened", HONEST[:3], HONEST), "differ in shape"),
        (("evened", HONEST[:0], HONEST[:0]), "no held-out answers"),
    ],
)
def test_bad_input_ends_in_one_line(given, message):
    with pytest.raises(KdsecError, match=message) as error:
        check_realised(*given, LABELS[: len(given[1])])
    assert "\n" not in str(error.value)
