"""Attacks on stored answers: one query an image is all they cost, and each is the loss it says."""

import pytest
import torch
from torch import nn

from kdsec.attacks.extraction import run_attacks
from kdsec.attacks.inverse_reversal import Inverse
from kdsec.attacks.stored import stored_attacks
from kdsec.attacks.tuning import Search
from kdsec.data import Batch
from kdsec.defenses.output_wrappers import Reversed
from kdsec.distill import KD
from kdsec.logits import kl
from kdsec.oracle import Oracle
from kdsec.train import Recipe, predict
from tests.small import build, trained

TAU = 4.0


def test_an_exact_reversal_is_undone_exactly(digits):
    """The undoing thief's loss on the reversed table is that of soft labels on the honest one."""
    images = digits.train.subset(slice(0, 64)).unlabelled()
    teacher = trained(digits)
    honest, protected = predict(teacher, images), Oracle(nn.Sequential(teacher, Reversed("rank", TAU)))
    attacks = stored_attacks(0.1, {"undone": Inverse("rank", TAU)})
    assert list(attacks) == ["soft labels", "negatives dropped", "smoothed hard labels", "undone"]
    batch = Batch(images.float_images(slice(0, 64)), images.labels, torch.arange(64))
    model = build(digits, seed=3).eval()
    spec = attacks["undone"].prepare(model, protected, images, TAU, 1.0, 0)
    assert spec.loss(model, batch).item() == pytest.approx(
        KD(honest, TAU, 1.0)(model, batch).item(), rel=0.02
    )
    fooled = attacks["soft labels"].prepare(model, protected, images, TAU, 1.0, 0).loss.teacher
    log_p, log_q = ((each / TAU).log_softmax(1) for each in (honest, fooled))
    assert kl(log_p, log_q) > 0.1


def test_stored_answers_are_searched_like_any_and_cost_one_query_an_image(digits):
    teacher, images = trained(digits), digits.train.subset(slice(0, 200)).unlabelled()
    recipe = Recipe(epochs=2, batch_size=50, lr=0.05, precision="float32")
    found = run_attacks(
        stored_attacks(0.1),
        lambda: build(digits, seed=2),
        teacher,
        images,
        digits.val.unlabelled(),
        recipe,
        search=Search((1.0, TAU), share=0.5),
        alpha=1.0,
    )
    assert {each.queries for each in found} == {200}
    assert {each.name: each.chosen.temperature for each in found}["negatives dropped"] is None
