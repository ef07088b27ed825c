"""The shared pool of extraction attacks: its search, what that costs, and learned recovery."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch
from torch import nn

from kdsec import config
from kdsec.attacks.extraction import EXTRACTION_ATTACKS, POOL, RECOVERY, labelled, run_attacks
from kdsec.attacks.recovery import fit_recovery, learned_recovery, pool
from kdsec.attacks.tuning import Candidate, Search, successive_halving
from kdsec.data import Augment
from kdsec.defenses.registry import DEFENSES, shadow
from kdsec.defenses.stingy import Stingy
from kdsec.errors import KdsecError
from kdsec.logits import negatives, rank_agreement, replace_negatives
from kdsec.oracle import Oracle
from kdsec.report.panels import realised
from kdsec.train import Diverged, Recipe, fit, predict
from tests.small import build, trained

QUICK = config.settings("crossing", "quick")

SHORT = Recipe(batch_size=64, lr=0.05, augment=Augment(crop=1), precision="float32", steps=12)


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8])
def test_the_search_finds_a_known_optimum_and_costs_the_same_whatever_the_number_of_candidates(count):
    candidates, spent = [Candidate(float(t), 1.0) for t in range(count)], []
    wanted = candidates[count // 2]

    def train(candidate, steps):
        spent.append(steps)
        return candidate

    best, model = successive_halving(
        candidates, train, lambda each: -abs(each.temperature - wanted.temperature), 1000
    )
    assert best == model == wanted and spent[-1] == 1000
    assert sum(spent[:-1]) == pytest.approx(1000 if count > 1 else 0, abs=count)


def test_a_training_that_explodes_is_worse_than_all_others_and_never_the_last_word():
    candidates = [Candidate(None, rate) for rate in (1.0, 0.5, 0.25)]

    def train(candidate, steps, limit=0.5):
        if candidate.rate > limit or (steps == 100 and candidate.rate > limit / 2):
            raise Diverged("the loss became nan")
        return candidate

    best, _ = successive_halving(candidates, train, lambda each: each.rate, 100)
    assert best.rate == 0.25  # 0.5 wins the search and explodes when it is trained in full
    with pytest.raises(Diverged, match="became nan"):
        successive_halving(candidates, lambda *at: train(*at, limit=0.1), lambda each: each.rate, 100)


@pytest.mark.parametrize(
    "wrong", [{"temperatures": (0.0,)}, {"rates": ()}, {"rates": (-1.0,)}, {"share": 0.0}]
)
def test_an_impossible_search_is_refused_in_one_line(wrong):
    with pytest.raises(KdsecError, match=next(iter(wrong))) as error:
        Search(**wrong)
    assert "\n" not in str(error.value)


def test_a_search_asks_the_teacher_nothing_that_the_full_training_does_not(digits, teacher):
    """Under augmentation too: a short training sees the first views of the full one."""
    own = digits.train.subset(slice(0, 200)).unlabelled()
    names = ("soft labels", "class means removed", "hard labels")
    given = {name: EXTRACTION_ATTACKS[name] for name in names}
    search = Search((1.0, 4.0), (1.0, 0.25))
    rest = (lambda: build(digits), teacher, own, digits.val.unlabelled(), SHORT)
    plain, tuned = run_attacks(given, *rest, alpha=1.0), run_attacks(given, *rest, search=search, alpha=1.0)
    assert [each.queries for each in tuned] == [each.queries for each in plain]
    assert plain[0].queries > len(own)  # views, not images
    assert tuned[0].chosen in [Candidate(t, rate) for t in (1.0, 4.0) for rate in (1.0, 0.25)]
    assert tuned[2].chosen.temperature is None and tuned[2].metrics["chosen rate"] in (1.0, 0.25)


def test_an_attack_keeps_the_temperature_that_is_its_own(digits, teacher):
    attack, losses = EXTRACTION_ATTACKS["negatives dropped"], []
    assert {each.temperature for each in attack.candidates(Search((4.0, 20.0)))} == {1.0}
    attack(
        build(digits),
        teacher,
        digits.train,
        SHORT,
        temperature=4.0,
        fit=lambda *at, **_: losses.append(at[3]),
    )
    assert losses[0].temperature == 1.0


def test_every_arm_takes_exactly_as_many_steps_as_it_is_told(digits):
    for images in (70, 500, 900):
        taken = []

        def loss(model, batch, taken=taken):
            taken.append(len(batch.images))
            return model(batch.images).square().mean()

        history = fit(build(digits), digits.train.subset(slice(0, images)), SHORT, loss)
        assert taken == [64] * 12 and len(history) == math.ceil(12 / (images // 64))
    long = dataclasses.replace(SHORT, steps=30)
    for first, same in zip(SHORT.batches(digits.train, 3), long.batches(digits.train, 3), strict=False):
        assert torch.equal(first.images, same.images)


class Negated(nn.Module):
    """A defence that is known exactly: the negatives' log-probabilities change sign."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        z = self.teacher(images)
        among = (-negatives(z, z.argmax(1), 4.0)).log_softmax(1)
        return replace_negatives(z, z.argmax(1), among, 4.0)


def test_a_recovery_learns_to_undo_a_defence_on_other_images(digits, teacher):
    honest, protected = (predict(net, digits.train) for net in (teacher, Negated(teacher).eval()))
    half = len(honest) // 2
    recovered = fit_recovery(protected[:half], honest[:half], 4.0)(protected[half:].log_softmax(1))
    decided = honest[half:].argmax(1)
    assert rank_agreement(protected[half:], honest[half:], decided) < -0.9
    assert rank_agreement(recovered, honest[half:], decided) > 0.8
    nothing = fit_recovery(honest[:half], honest[:half], 4.0)(honest[half:].log_softmax(1))
    assert (nothing.softmax(1) - honest[half:].softmax(1)).abs().max() < 0.01


def test_the_recovery_thief_trains_its_shadows_once_and_on_half_of_the_images(digits, teacher):
    own, asked = digits.train.subset(slice(0, 400)).unlabelled(), []

    def shadow(images):
        asked.append(images)
        net = build(digits, seed=5)
        fit(net, images, dataclasses.replace(SHORT, steps=60))
        return net, Negated(net).eval()

    attacks = pool(shadow)
    assert tuple(attacks) == POOL and len(POOL) <= 8
    oracle = Oracle(Negated(teacher).eval())
    for temperature in (1.0, 4.0):
        student = attacks[RECOVERY](build(digits), oracle, own, SHORT, temperature=temperature, alpha=1.0)
    assert [len(each) for each in asked] == [len(own) // 2]
    assert torch.equal(asked[0].labels, predict(teacher, own).argmax(1)[: len(own) // 2])
    assert oracle.queries > len(own) and predict(student, digits.val).isfinite().all()
    other = learned_recovery(shadow)
    other(build(digits), teacher, own, SHORT)
    assert len(asked) == 2


def test_a_shadow_is_the_defence_rebuilt_on_the_thiefs_images(digits):
    seen = []

    def train(arm, images, loss):
        seen.append((arm, images, type(loss).__name__))
        return build(digits, seed=len(seen)).eval()

    given = (QUICK.strengths, lambda label, make, *at, **how: make(*at, **how))
    own = digits.train.subset(slice(0, 64))
    honest, protected = shadow(DEFENSES["nasty"], train, *given)(own)
    assert [(arm, images is own) for arm, images, _ in seen] == [("normal", True), ("nasty", True)]
    assert seen[1][2] == "NastyLoss" and protected is not honest
    same, stingy = shadow(DEFENSES["stingy"], train, *given)(own)
    assert isinstance(stingy, Stingy) and stingy.teacher is same


def test_the_yardstick_learns_from_labels_and_asks_nobody(digits, teacher):
    own = digits.train.subset(slice(0, 128))
    (result,) = run_attacks(
        {"labels": labelled(0.1)},
        lambda: build(digits),
        teacher,
        own,
        digits.val,
        SHORT,
        search=Search(rates=(1.0, 0.5)),
    )
    assert result.queries <= 1  # that of the check that the classes agree
    assert result.chosen.temperature is None


def test_a_table_of_checks_says_what_was_not_realised_and_what_was_not_recorded():
    metrics = {"moved": (0.1, 0.3), "required": (0.2, 0.2), "realised": (0.0, 1.0)}
    rows = pd.DataFrame(
        [
            {"seed": seed, "arm": "AST", "setting": "check=moved", "metric": metric, "value": values[seed]}
            for seed in (0, 1)
            for metric, values in metrics.items()
        ]
    )
    assert "| AST | moved | 0.20 | 0.20 | not realised |" in realised(rows)
    assert "not yet recorded" in realised(rows.assign(setting=""))
