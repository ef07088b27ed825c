"""Distillation: the losses are the formulas they are named after, and a student learns by each of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec.data import UNLABELLED, Batch, ImageSet
from kdsec.distill import (
    KD,
    AttentionTransfer,
    HardLabels,
    attention_map,
    kd_loss,
    teacher_labels,
)
from kdsec.errors import KdsecError
from kdsec.logits import decoupled_terms, soft_cross_term
from kdsec.train import Recipe, evaluate, fit
from tests.test_train import net, stripes

RECIPE = Recipe(epochs=6, batch_size=32, lr=0.05, precision="float32")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    return student.float(), teacher.float(), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="module")
def teacher():
    model = net(seed=3)
    fit(model, stripes(), RECIPE)
    return model


def test_soft_term_is_the_textbook_sum(logits):
    student, teacher, _ = logits
    temperature = 3.0
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    by_hand = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert soft_cross_term(student, teacher, temperature).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_soft_term_is_zero_only_at_the_teacher(logits):
    student, teacher, _ = logits
    assert soft_cross_term(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert soft_cross_term(teacher + 7.0, teacher, 4.0).item() == pytest.approx(
        0, abs=1e-5
    )  # shifting all logits changes nothing
    assert soft_cross_term(student, teacher, 4.0).item() > 0.01


def test_gradient_is_the_difference_of_softmaxes(logits):
    student, teacher, _ = logits
    student.requires_grad_()
    temperature = 2.5
    soft_cross_term(student, teacher, temperature).backward()
    closed = (
        temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / len(student)
    )
    assert torch.allclose(student.grad, closed, atol=1e-6)


def test_high_temperature_matches_centred_logits(logits):
    """Hinton et al. 2015, section 2.1: as tau grows, the gradient becomes (z_S - z_T)/K, matching logits."""
    student, teacher, _ = logits
    student.requires_grad_()
    soft_cross_term(student, teacher, 1000.0).backward()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert torch.allclose(student.grad, centred.detach() / 5 / 6, atol=1e-3)


def test_alpha_mixes_the_two_terms(logits):
    student, teacher, labels = logits
    ends = [kd_loss(student, teacher, labels, 4.0, alpha) for alpha in (0.0, 1.0)]
    assert ends[0].item() == pytest.approx(F.cross_entropy(student, labels).item(), rel=1e-5)
    assert kd_loss(student, teacher, labels, 4.0, 0.3).item() == pytest.approx(
        (0.7 * ends[0] + 0.3 * ends[1]).item(), rel=1e-5
    )


def test_decoupling_adds_up_to_hinton(logits):
    """Zhao et al. 2022, eq. 6: KL = TCKD + (1 - p_target) NCKD, image by image."""
    student, teacher, labels = logits
    temperature = 2.0
    for row in range(len(labels)):
        one = slice(row, row + 1)
        tckd, nckd = decoupled_terms(student[one], teacher[one], labels[one], temperature)
        rest = 1 - (teacher[one] / temperature).softmax(1)[0, labels[row]]
        whole = soft_cross_term(student[one], teacher[one], temperature)
        assert (tckd + rest * nckd).item() == pytest.approx(whole.item(), rel=1e-4)


def test_non_target_term_ignores_the_target_logit(logits):
    student, teacher, labels = logits
    bumped = student.clone()
    bumped[torch.arange(6), labels] += 3.0
    before, after = (decoupled_terms(each, teacher, labels, 2.0) for each in (student, bumped))
    assert before[1].item() == pytest.approx(after[1].item(), rel=1e-5)
    assert before[0].item() != pytest.approx(after[0].item(), rel=1e-2)


def test_attention_map_is_a_unit_vector_that_ignores_scale():
    features = torch.rand(3, 8, 4, 4)
    maps = attention_map(features)
    assert torch.allclose(maps.norm(dim=1), torch.ones(3))
    assert torch.allclose(maps, attention_map(5 * features), atol=1e-6)


def test_cached_and_online_labels_agree_without_augmentation(teacher):
    base = stripes()
    batch = Batch(base.float_images(slice(10, 20)), base.labels[10:20], torch.arange(10, 20))
    student = net(seed=9).eval()
    online = KD(teacher, 4.0, 0.9)(student, batch)
    cached = KD(teacher_labels(teacher, base), 4.0, 0.9)(student, batch)
    assert online.item() == pytest.approx(cached.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [KD, HardLabels])
def test_students_learn_from_an_unlabelled_set(teacher, kind):
    student = net(seed=5)
    loss = kind(teacher, 4.0, 1.0) if kind is KD else kind(teacher)
    fit(student, stripes().unlabelled(), RECIPE, loss)
    assert evaluate(student, stripes(seed=1)).accuracy > 0.97


def test_students_learn_from_a_partly_labelled_set(teacher):
    base = stripes()
    labels = base.labels.clone()
    labels[8:] = UNLABELLED
    student = net(seed=5)
    fit(student, base.replace(labels=labels), RECIPE, KD(teacher, 4.0, 0.5))
    assert evaluate(student, stripes(seed=1)).accuracy > 0.97


def test_teacher_stays_as_it_is(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    fit(net(seed=5), stripes(), Recipe(epochs=1, batch_size=32, precision="float32"), KD(teacher))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_attention_transfer_pulls_the_maps_together():
    from kdsec.models import build

    base = ImageSet(torch.rand(64, 1, 8, 8), torch.arange(64) % 10, tuple("0123456789"), "noise")
    big = build("digits-cnn", 10, (1, 8, 8), seed=0).eval()

    def gap(model):
        pairs = zip(model.features(base.images), big.features(base.images), strict=False)
        same = [
            (ours, theirs) for ours, theirs in pairs if ours.ndim == 4 and ours.shape[2:] == theirs.shape[2:]
        ]
        return sum(
            (attention_map(ours) - attention_map(theirs)).square().mean().item() for ours, theirs in same
        )

    plain, taught = (build("digits-small", 10, (1, 8, 8), seed=1) for _ in range(2))
    recipe = Recipe(epochs=10, batch_size=16, lr=0.02, precision="float32")
    fit(plain, base, recipe)
    fit(taught, base, recipe, AttentionTransfer(big))
    assert gap(taught) < 0.7 * gap(plain)


def test_attention_transfer_needs_stages_of_equal_size():
    class Odd(nn.Module):
        def __init__(self, side):
            super().__init__()
            self.side, self.head = side, nn.Flatten()

        def features(self, images):
            return [images[:, :, : self.side, : self.side]]

    batch = Batch(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(KdsecError, match="no stages of equal size"):
        AttentionTransfer(Odd(8))(Odd(4), batch)
