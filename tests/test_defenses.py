"""Protected teachers: each loss is the formula of its paper, and does what its paper says it does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec import models
from kdsec.budgets import distance
from kdsec.data import Augment, Batch, ImageSet, Loader
from kdsec.defenses.nasty import NastyLoss
from kdsec.defenses.sparse_teacher import (
    PERTURBATIONS,
    SparseTeacherLoss,
    exponential_predictive_divergence,
    pair,
    perturb,
    sparse_targets,
)
from kdsec.defenses.stingy import Stingy
from kdsec.distill import KD, HardLabels
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import NOTHING, keep_largest, soft_cross_term
from kdsec.train import Recipe, cross_entropy, evaluate, fit, predict
from tests.test_train import net, stripes

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")


@pytest.fixture(scope="module")
def teacher(digits):
    mean, std = digits.train.mean_std()
    model = models.build("digits-small", 10, (1, 8, 8), mean=mean, std=std, seed=0)
    fit(model, digits.train, RECIPE)
    model.zero_grad()
    return model


@pytest.fixture
def logits():
    return 3 * torch.randn(12, 10, generator=torch.Generator().manual_seed(0))


def first(images, count=32):
    return Batch(images.float_images(slice(0, count)), images.labels[:count], torch.arange(count))


# Nasty


def test_nasty_loss_is_the_equation(digits, teacher):
    batch, model = first(digits.train), models.build("digits-small", 10, (1, 8, 8), seed=1).eval()
    away, honest = ((net(batch.images) / 3).softmax(1) for net in (model, teacher))
    kl = (away * (away / honest).log()).sum(1).mean()
    wanted = cross_entropy(model(batch.images), batch.labels) - 0.1 * 9 * kl
    assert NastyLoss(teacher, 3.0, 0.1)(model, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_nasty_step_moves_away_from_the_adversary(digits, teacher):
    """The sign: without the labels' term, one step of descent is one of ascent on the divergence."""
    batch, model = first(digits.train), models.build("digits-small", 10, (1, 8, 8), seed=1).eval()

    def divergence():
        return soft_cross_term(teacher(batch.images), model(batch.images), 4.0)

    before = divergence().item()
    label_term = cross_entropy(model(batch.images), batch.labels)
    (NastyLoss(teacher, 4.0, 1.0)(model, batch) - label_term).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert divergence().item() > before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_weight_zero_is_cross_entropy(digits, teacher):
    batch, model = first(digits.train), models.build("digits-small", 10, (1, 8, 8), seed=1).eval()
    plain = cross_entropy(model(batch.images), batch.labels)
    assert NastyLoss(teacher, 4.0, 0.0)(model, batch).item() == pytest.approx(plain.item(), rel=1e-6)


def test_nasty_divergence_has_a_floor(teacher, digits):
    """However far the logits run, the divergence of an image stays below -log of the adversary's smallest."""
    images = digits.train.float_images(slice(0, 50))
    honest = predict(teacher, images)
    floor = -(honest / 4).log_softmax(1).amin(1)
    for scale in (1.0, 100.0, 1e6):
        far = -scale * honest
        each = torch.stack([soft_cross_term(honest[[i]], far[[i]], 4.0) / 16 for i in range(50)])
        assert bool((each <= floor + 1e-4).all())
    assert torch.allclose(each, floor, rtol=1e-3)


def test_adversary_is_frozen(digits, teacher):
    loss = NastyLoss(teacher, 4.0, 0.02)
    before = fingerprint(teacher)
    model = models.build("digits-small", 10, (1, 8, 8), seed=1)
    fit(model, digits.train, Recipe(epochs=1, batch_size=64, lr=0.1, precision="float32"), loss)
    assert fingerprint(teacher) == before


def test_explosion_says_what_to_lower():
    base = stripes()
    recipe = Recipe(epochs=4, batch_size=32, lr=1e30, precision="float32")
    with pytest.raises(KdsecError, match=r"loss became .*lower the nasty loss's weight \(now 50\)") as error:
        fit(net(), base, recipe, NastyLoss(net(seed=1), 4.0, 50.0))
    assert "temperature (now 4)" in str(error.value) and "grad_clip" in str(error.value)
    assert "\n" not in str(error.value)


# Stingy


@pytest.mark.parametrize("keep", [1, 2, 5, 10])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0, 100.0, 1000.0])
def test_stingy_probabilities_are_exactly_zero_outside_the_largest(digits, teacher, keep, temperature):
    images = digits.test.float_images(slice(0, 100))
    honest, stingy = predict(teacher, images), predict(Stingy(teacher, keep), images)
    p = (stingy / temperature).softmax(1)
    assert bool(((p > 0).sum(1) == keep).all())
    assert bool((p.sum(1) - 1).abs().max() < 1e-5)
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(1, honest.topk(keep).indices, True)
    assert bool((p[~inside] == 0).all())
    kept = (honest / temperature).softmax(1).masked_fill(~inside, 0)
    assert torch.allclose(p, kept / kept.sum(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 9, 10])
def test_stingy_never_changes_a_decision(digits, teacher, keep):
    stingy = Stingy(teacher, keep)
    assert torch.equal(predict(stingy, digits.test).argmax(1), predict(teacher, digits.test).argmax(1))
    assert evaluate(stingy, digits.test) == evaluate(teacher, digits.test)


def test_stingy_survives_half_precision(digits, teacher):
    images = digits.test.float_images(slice(0, 20))
    for dtype in (torch.bfloat16, torch.float16):
        half = nn.Sequential(teacher, _Cast(dtype)).eval()
        answer = Stingy(half, 3)(images)
        assert answer.dtype == torch.float32 and bool(((answer / 20).softmax(1) > 0).sum(1).eq(3).all())


class _Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, logits):
        return logits.to(self.dtype)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0, 100.0])
@pytest.mark.parametrize("keep", [1, 2, 10])
def test_students_of_a_stingy_teacher_get_finite_losses(digits, teacher, temperature, keep):
    batch, stingy = first(digits.train), Stingy(teacher, keep)
    losses = [KD(stingy, temperature, 0.9), HardLabels(stingy)]
    for loss in losses:
        model = models.build("digits-small", 10, (1, 8, 8), seed=1)
        value = loss(model, batch)
        value.backward()
        assert value.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_stingy_settings_are_part_of_its_fingerprint(teacher):
    assert fingerprint(Stingy(teacher, 2)) != fingerprint(Stingy(teacher, 3))
    assert not Stingy(teacher, 2).training and not teacher.training


@pytest.mark.parametrize("keep", [0, -1, 11])
def test_keep_must_be_one_to_the_number_of_classes(digits, teacher, keep):
    with pytest.raises(KdsecError, match=f"keep={keep} ") as error:
        Stingy(teacher, keep)(digits.test.float_images(slice(0, 2)))
    assert "\n" not in str(error.value)


def test_nothing_is_far_below_any_logit_and_yet_a_number():
    assert math.isfinite(NOTHING) and torch.tensor(NOTHING / 100).exp() == 0
    filled = keep_largest(torch.tensor([[3.0, 1.0, 2.0]]), 2, NOTHING)
    assert filled.tolist() == [[3.0, NOTHING, 2.0]]


# AST


def test_epd_is_its_formula_and_what_kl_div_makes_of_probabilities(logits):
    q, p = sparse_targets(logits, 2, 6.0), (logits.flip(0) / 6).softmax(1)
    by_hand = sum(
        math.exp(a) * (a - b) for a, b in zip(q.flatten().tolist(), p.flatten().tolist(), strict=True)
    )
    value = exponential_predictive_divergence(q, p)
    assert value.item() == pytest.approx(by_hand / 12, rel=1e-4)
    misused = F.kl_div(p, q, log_target=True, reduction="batchmean")
    assert value.item() == pytest.approx(misused.item(), rel=1e-4)


def test_epd_gradient_is_the_closed_form(logits):
    temperature = 6.0
    q = sparse_targets(logits, 2, temperature).double()
    z = logits.flip(0).double().requires_grad_()
    p = (z / temperature).softmax(1)
    exponential_predictive_divergence(q, p).backward()
    closed = -p * (q.exp() - (p * q.exp()).sum(1, keepdim=True)) / temperature / len(q)
    assert torch.allclose(z.grad, closed, atol=1e-12)


def test_epd_is_linear_in_p_and_not_smallest_at_q(logits):
    q = sparse_targets(logits, 2, 6.0)
    one_hot = F.one_hot(q.argmax(1), 10).float()
    p = (logits.flip(0) / 6).softmax(1)
    epd = exponential_predictive_divergence
    mixed = epd(q, 0.3 * p + 0.7 * one_hot)
    assert mixed.item() == pytest.approx((0.3 * epd(q, p) + 0.7 * epd(q, one_hot)).item(), rel=1e-4)
    assert epd(q, q).item() == pytest.approx(0, abs=1e-6)
    assert epd(q, one_hot).item() < -0.01


def test_sparse_targets_are_zero_outside_the_largest(logits):
    q = sparse_targets(logits, 3, 6.0)
    assert bool(((q > 0).sum(1) == 3).all()) and torch.allclose(q.sum(1), torch.ones(12))
    assert torch.equal(q.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("divergence", ["epd", "kl"])
def test_sparse_teacher_loss_is_the_equation(digits, teacher, divergence):
    pairs = pair(digits.train, perturb(teacher, digits.train, "noise", eps=0.3))
    batch = first(pairs)
    clean, other = batch.images[:, :1], batch.images[:, 1:]
    model = models.build("digits-small", 10, (1, 8, 8), seed=1).eval()
    q, p = sparse_targets(model(other), 2, 6.0), (model(clean) / 6).softmax(1)
    gap = (
        (q.exp() * (q - p)).sum(1) if divergence == "epd" else torch.where(q > 0, q * (q / p).log(), 0).sum(1)
    )
    wanted = 0.1 * 36 * gap.mean() + 0.9 * cross_entropy(model(clean), batch.labels)
    value = SparseTeacherLoss(2, 6.0, 0.1, divergence)(model, batch)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_target_carries_no_gradient_and_teaches_no_statistics(digits, teacher):
    batch = first(pair(digits.train, perturb(teacher, digits.train, "none")))
    model = models.build("digits-small", 10, (1, 8, 8), seed=1)
    before = fingerprint(model)
    target = SparseTeacherLoss().target(model, batch.images[:, 1:])
    assert model.training and not target.requires_grad and fingerprint(model) == before


def test_source_of_the_target(digits, teacher):
    """From a frozen net, the target does not depend on the net in training; the random one has its values."""
    other = digits.train.float_images(slice(0, 32))
    models_ = [models.build("digits-small", 10, (1, 8, 8), seed=seed) for seed in (1, 2)]
    frozen = [SparseTeacherLoss(source=teacher).target(each, other) for each in models_]
    current = [SparseTeacherLoss().target(each, other) for each in models_]
    assert torch.equal(*frozen) and not torch.equal(*current)
    drawn = SparseTeacherLoss(source="random").target(models_[0], other)
    assert torch.allclose(drawn.sort(1).values, current[0].sort(1).values, atol=1e-6)
    assert not torch.equal(drawn.argmax(1), current[0].argmax(1))


def test_pairs_stay_pairs_under_augmentation(digits):
    """The disturbed half is a copy here, so the two halves of every batch must be the same pixels."""
    images = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    base = ImageSet(images, torch.arange(64) % 10, tuple("0123456789"), "noise")
    pairs = pair(base, base.float_images())
    assert pairs.images.dtype == torch.uint8 and pairs.shape == (6, 8, 8)
    moved = False
    for batch in Loader(pairs, 16, augment=Augment(crop=2, flip=True, cutout=3)):
        clean, other = batch.images.chunk(2, dim=1)
        assert torch.equal(clean, other)
        moved |= not torch.equal(clean, base.float_images(batch.position))
    assert moved


def test_unpaired_uses_the_neighbour(digits, teacher):
    batch = first(pair(digits.train, perturb(teacher, digits.train, "none")))
    shifted = Batch(
        torch.cat([batch.images[:, :1], batch.images[:, 1:].roll(1, 0)], dim=1), batch.labels, batch.position
    )
    loss, unpaired = SparseTeacherLoss(alpha=0.5), SparseTeacherLoss(alpha=0.5, paired=False)
    assert unpaired(teacher, batch).item() == pytest.approx(loss(teacher, shifted).item(), rel=1e-5)
    assert unpaired(teacher, batch).item() != pytest.approx(loss(teacher, batch).item(), rel=1e-3)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_disturbed_images_are_images(digits, teacher, kind):
    some = digits.train.subset(slice(0, 64))
    found = perturb(teacher, some, kind, eps=0.1, step_size=0.025)
    assert found.shape == some.images.shape and found.min() >= 0 and found.max() <= 1
    if kind != "none":
        assert distance(found, some.images).max() > 0.05
    if kind == "pgd":
        assert distance(found, some.images).max().item() <= 0.1 + 1e-6
        assert evaluate(teacher, some.replace(images=found)).accuracy < 0.7
    # Rounded to bytes for training, a budget of whole levels is kept to the letter.
    if kind == "pgd":
        whole = perturb(teacher, some, "pgd", eps=26 / 255, step_size=0.03)
        stored = pair(some, whole).images[:, 1:].int()
        assert (stored - some.images.int()).abs().max().item() == 26


def test_literal_pgd_is_the_attack_on_normalised_images(digits):
    """Against the authors' loop, written out: images normalised first, clamped to [0, 1] there."""
    mean, std = digits.train.mean_std()
    model = models.build("digits-small", 10, (1, 8, 8), mean=mean, std=std, seed=0).eval()
    some = digits.train.subset(slice(0, 16))
    bare = nn.Sequential(model.stages, model.head)
    original = (some.float_images() - mean[0]) / std[0]
    images = original.clone()
    for _ in range(40):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(bare(images), some.labels, reduction="sum"), images)
        eta = (images.detach() + 0.01 * gradient.sign() - original).clamp(-0.3, 0.3)
        images = (original + eta).clamp(0, 1)
    found = (perturb(model, some, "literal pgd") - mean[0]) / std[0]
    assert (found - images).abs().mean() < 1e-3
    assert distance(found * std[0] + mean[0], some.images).min() > 0.3 * std[0]  # and its budget is not kept


def test_channels_must_come_in_pairs(digits, teacher):
    with pytest.raises(KdsecError, match="give fit the set pair"):
        SparseTeacherLoss()(teacher, first(digits.train))
    with pytest.raises(KdsecError, match=r"disturbed images of shape \(2, 1, 8, 8\)"):
        pair(digits.train, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: NastyLoss(net, -1.0), "temperature=-1.0 must be above 0"),
        (lambda net: NastyLoss(net, 4.0, -0.1), "weight=-0.1 must be 0 or more"),
        (lambda net: SparseTeacherLoss(temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda net: SparseTeacherLoss(alpha=1.5), "alpha=1.5 must"),
        (lambda net: SparseTeacherLoss(keep=0), "keep=0 be 1 or more"),
        (lambda net: SparseTeacherLoss(divergence="js"), "unknown divergence 'js'"),
        (lambda net: SparseTeacherLoss(source="frozen"), "unknown source 'frozen'"),
    ],
)
def test_bad_settings_end_in_one_line(teacher, make, message):
    with pytest.raises(KdsecError, match=message) as error:
        make(teacher)
    assert "\n" not in str(error.value)


def test_disturb_refuses_what_it_cannot_do(digits, teacher):
    with pytest.raises(KdsecError, match="eps=8 is outside"):
        perturb(teacher, digits.train, eps=8.0)
    with pytest.raises(KdsecError, match="unknown disturbance 'pdg'; did you mean 'pgd'"):
        perturb(teacher, digits.train, "pdg")
    with pytest.raises(KdsecError, match="one label an image"):
        perturb(teacher, digits.train.unlabelled(), "literal pgd")
    batch = first(pair(digits.train, perturb(teacher, digits.train, "none")))
    with pytest.raises(KdsecError, match="keep=11 of 10 logits"):
        SparseTeacherLoss(keep=11)(teacher, batch)


def test_losses_have_fingerprints(teacher):
    losses = [
        NastyLoss(teacher, 4.0, 0.02),
        NastyLoss(teacher, 4.0, 0.03),
        SparseTeacherLoss(),
        SparseTeacherLoss(divergence="kl"),
        SparseTeacherLoss(paired=False),
        SparseTeacherLoss(source=teacher),
    ]
    assert len({fingerprint(loss) for loss in losses}) == len(losses)


def test_sparse_teacher_trains(digits, teacher):
    pairs = pair(digits.train, perturb(teacher, digits.train, eps=0.2, step_size=0.05))
    model = models.build("digits-small", 10, (1, 8, 8), seed=0)
    fit(model, pairs, RECIPE, SparseTeacherLoss(alpha=0.01))
    assert evaluate(model, digits.test).accuracy > 0.85
