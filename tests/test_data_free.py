"""Data-free thieves: they draw images, see no real one, and their students learn."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec import data, models
from kdsec.attacks.data_free import DFAD, SHOWN, TARGETS, Generator, disagreement
from kdsec.attacks.data_free_fast import FastDFKD, Statistics
from kdsec.attacks.inverse_reversal import inverse
from kdsec.attacks.postprocessing import keep_top
from kdsec.data import Augment, ImageSet
from kdsec.defenses.output_wrappers import Rounded
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import soft_cross_term
from kdsec.train import evaluate
from tests.small import build, trained

SHAPE = (1, 8, 8)
SMALL = {"batch_size": 16, "latent": 8, "width": 8}
SHORT = {
    "DFAD": DFAD(rounds=2, **SMALL),
    "FastDFKD": FastDFKD(rounds=3, warmup=1, student_steps=2, augment=Augment(crop=1), **SMALL),
}


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


# The generator


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 28, 12)])
def test_generated_images_stay_in_range(shape):
    torch.manual_seed(0)
    generator = Generator(shape, latent=16, width=8)
    for scale in (1.0, 1e4):
        images = generator(scale * torch.randn(5, 16))
        assert images.shape == (5, *shape)
        assert images.min() >= 0 and images.max() <= 1


def test_generator_has_the_parameters_of_the_papers():
    """128 x 8 x 8 from 256 numbers, two enlargements: 2.33 million, of which 2.1 in the first layer."""
    generator = Generator((3, 32, 32))
    assert models.count_parameters(generator) == 2_329_091


def test_images_of_another_size():
    with pytest.raises(KdsecError, match="divisible by 4, not 30x32; pad") as error:
        Generator((3, 30, 32))
    assert "\n" not in str(error.value)


# What is compared


def test_disagreements_are_their_formulas():
    student, teacher = 3 * torch.randn(2, 12, 10, generator=torch.Generator().manual_seed(0))
    kl = disagreement(student, teacher, "kl", 4.0)
    assert kl.mean().item() == pytest.approx(soft_cross_term(student, teacher, 4.0).item(), rel=1e-4)
    shifted = disagreement(student, teacher + 5, "l1")
    assert torch.allclose(shifted, disagreement(student, teacher.log_softmax(1), "l1"), atol=1e-4)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert torch.allclose(shifted, gap.abs().mean(1), atol=1e-4)
    hard = disagreement(student, teacher, "decision")
    assert torch.allclose(hard, F.cross_entropy(student, teacher.argmax(1), reduction="none"))
    for target in ("kl", "l1"):
        assert disagreement(teacher, teacher, target).abs().max() < 1e-5


# Statistics


def layer_with(images):
    """Batch normalisation that has stored exactly these images' statistics."""
    layer = nn.BatchNorm2d(images.shape[1]).eval()
    layer.running_mean.copy_(images.mean((0, 2, 3)))
    layer.running_var.copy_(images.var((0, 2, 3), correction=0))
    return layer


def test_matching_statistics_are_at_distance_zero():
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = layer_with(images)
    with Statistics(layer) as statistics:
        layer(images)
        assert statistics.distance().item() == pytest.approx(0, abs=1e-6)
        layer(2 * images + 1)
        mean, variance = images.mean((0, 2, 3)), images.var((0, 2, 3), correction=0)
        wanted = (mean + 1).norm() + (3 * variance).norm()
        assert statistics.distance().item() == pytest.approx(wanted.item(), rel=1e-4)


def test_statistics_are_summed_over_layers_and_found_inside_views(digits, teacher):
    images = digits.train.float_images(slice(0, 64))
    apart = []
    for network in (teacher, keep_top(teacher, digits.train, 1)):
        with Statistics(network) as statistics:
            assert len(statistics.layers) == 3
            network(images)
            apart.append(statistics.distance().item())
    assert apart[0] == apart[1] > 0


def test_earlier_batches_are_blended_in():
    first, second = torch.rand(2, 20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    second = 2 * second
    layer = layer_with(first)
    with Statistics(layer, momentum=0.75) as statistics:
        layer(first)
        statistics.remember()
        layer(second)
        moved = 0.25 * (second.mean((0, 2, 3)) - first.mean((0, 2, 3)))
        spread = 0.25 * (second.var((0, 2, 3), correction=0) - first.var((0, 2, 3), correction=0))
        assert statistics.distance().item() == pytest.approx((moved.norm() + spread.norm()).item(), rel=1e-4)


def test_real_images_are_nearer_than_noise_and_the_hooks_come_off(digits, teacher):
    real = digits.test.float_images(slice(0, 200))
    noise = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Statistics(teacher) as statistics:
        teacher(real)
        near = statistics.distance().item()
        teacher(noise)
        far = statistics.distance()
        (gradient,) = torch.autograd.grad(far, noise)
    assert near < far.item() / 3 and gradient.abs().max() > 0
    assert not any(layer._forward_pre_hooks for layer in teacher.modules())


def test_a_teacher_without_batch_normalisation(digits):
    plain = build(digits, "digits-mlp")
    with pytest.raises(
        KdsecError, match="no batch normalisation.*use DFAD.*or set statistics_weight=0"
    ) as error:
        SHORT["FastDFKD"](build(digits), plain, SHAPE)
    assert "\n" not in str(error.value)
    images = SHORT["DFAD"](build(digits), plain, SHAPE)
    assert images.shape == (SHOWN, *SHAPE)
    without = FastDFKD(rounds=2, warmup=0, student_steps=1, statistics_weight=0.0, **SMALL)
    assert without(build(digits), plain, SHAPE).shape == (32, *SHAPE)


# No real image


def test_there_is_no_place_for_images():
    for attack in SHORT.values():
        call = inspect.signature(type(attack).__call__).parameters
        assert list(call) == ["self", "student", "teacher", "shape", "seed"]
        for setting in inspect.signature(type(attack)).parameters.values():
            assert not any(kind in str(setting.annotation) for kind in ("Tensor", "ImageSet"))


@pytest.mark.parametrize("name", SHORT)
def test_no_real_image_is_ever_seen(digits, teacher, name, monkeypatch):
    """Every image that either network is asked about is drawn; nothing is loaded."""
    real = {
        image.contiguous().numpy().tobytes()
        for part in (digits.train, digits.val, digits.test)
        for image in part.images
    }
    asked = []

    class Spy(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            asked.append(images.detach().clone())
            return self.network(images)

    def refuse(*_, **__):
        raise AssertionError("a data-free thief reads no data")

    monkeypatch.setattr(data, "load", refuse)
    monkeypatch.setattr(data.sources, "load", refuse)
    returned = SHORT[name](Spy(build(digits)), Spy(teacher), SHAPE)
    pixels = {image.numpy().tobytes() for image in torch.cat(asked).mul(255).round().byte()}
    assert len(asked) > 4 and not pixels & real
    assert returned.dtype == torch.uint8 and returned.shape[1:] == SHAPE


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("target", TARGETS)
def test_the_teacher_is_only_asked(digits, teacher, name, target):
    before = fingerprint(teacher)
    student = build(digits)
    fresh = fingerprint(student)
    attack = type(SHORT[name])(**{**vars(SHORT[name]), "target": target})
    attack(student, teacher, SHAPE)
    assert fingerprint(teacher) == before and not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert fingerprint(student) != fresh and not student.training


@pytest.mark.parametrize("name", SHORT)
def test_same_seed_same_student_and_nobody_elses_random_numbers(digits, teacher, name):
    before = torch.get_rng_state()
    pairs = [
        (fingerprint(student), fingerprint(images))
        for seed in (3, 3, 4)
        for student in [build(digits)]
        for images in [SHORT[name](student, teacher, SHAPE, seed=seed)]
    ]
    assert pairs[0] == pairs[1] and pairs[0][0] != pairs[2][0] and pairs[0][1] != pairs[2][1]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SHORT)
def test_a_view_is_just_another_teacher(digits, teacher, name):
    """With the negatives dropped or turned around the student is another one; nothing else has to change."""
    nothing = digits.train.subset(slice(0, 0))  # these views need no images to be made
    students = []
    for view in (teacher, keep_top(teacher, nothing, 1), inverse(teacher, nothing, "negate")):
        student = build(digits)
        SHORT[name](student, view, SHAPE)
        students.append(fingerprint(student))
    assert len(set(students)) == 3


def test_the_pool_holds_every_round(digits, teacher):
    images = SHORT["FastDFKD"](build(digits), teacher, SHAPE)
    assert images.shape == (48, *SHAPE)
    assert len({image.numpy().tobytes() for image in images}) > 40


def test_drawn_images_are_of_the_class_asked_for(digits, teacher):
    """The one-hot term alone: the teacher comes to see every class; without the term, hardly two."""
    seen = {}
    for weight in (0.0, 1.0):
        attack = FastDFKD(
            rounds=12,
            warmup=11,
            student_steps=1,
            generator_steps=10,
            batch_size=64,
            latent=16,
            width=16,
            class_weight=weight,
            statistics_weight=0.0,
            generator_lr=0.004,
        )
        images = attack(build(digits), teacher, SHAPE)[-64:]
        with torch.no_grad():
            seen[weight] = teacher(images.float() / 255).softmax(1)
    assert len(seen[0.0].argmax(1).unique()) < 5
    assert len(seen[1.0].argmax(1).unique()) == 10
    assert seen[1.0].amax(1).mean() > 0.3, "less than three times chance: the classes are a guess"


def test_drawing_with_statistics_comes_nearer(digits, teacher):
    apart = []
    for weight in (0.0, 10.0):
        attack = FastDFKD(
            rounds=6,
            warmup=5,
            student_steps=1,
            batch_size=64,
            latent=16,
            width=16,
            statistics_weight=weight,
            adversarial_weight=0.0,
        )
        images = attack(build(digits), teacher, SHAPE)[-64:]
        with Statistics(teacher) as statistics:
            teacher(images.float() / 255)
            apart.append(statistics.distance().item())
    assert apart[1] < 0.7 * apart[0]


# They learn


def test_a_student_learns_from_drawn_images(digits, teacher):
    student = build(digits)
    attack = FastDFKD(
        rounds=12,
        warmup=4,
        student_steps=15,
        batch_size=64,
        latent=32,
        width=16,
        student_lr=0.1,
        temperature=4.0,
        augment=Augment(crop=1),
    )
    images = attack(student, teacher, SHAPE)
    assert evaluate(student, digits.test).accuracy > 0.5
    assert isinstance(ImageSet(images, torch.zeros(len(images)).long(), ("?",), "drawn"), ImageSet)


# Bad input


@pytest.mark.parametrize("name", SHORT)
def test_other_class_count(digits, teacher, name):
    with pytest.raises(KdsecError, match="the student has 7 classes and the teacher 10; build the student"):
        SHORT[name](build(digits, classes=7), teacher, SHAPE)


def test_an_explosion_names_the_rates(digits, teacher):
    with pytest.raises(KdsecError, match=r"loss became .* lower student_lr \(now 1e\+30\) or generator_lr"):
        DFAD(rounds=3, student_lr=1e30, **SMALL)(build(digits), teacher, SHAPE)


def test_settings_are_part_of_the_fingerprint():
    attacks = [DFAD(), DFAD(target="kl"), FastDFKD(), FastDFKD(meta=False), FastDFKD(target="decision")]
    assert len({fingerprint(attack) for attack in attacks}) == len(attacks)


@pytest.mark.parametrize("name", SHORT)
def test_answers_without_a_gradient_are_refused_before_any_training(digits, teacher, name):
    """Rounded answers are flat: their gradient exists and is zero."""
    student = build(digits)
    fresh = fingerprint(student)
    with pytest.raises(KdsecError, match="no gradient reaches the teacher's input") as error:
        SHORT[name](student, nn.Sequential(teacher, Rounded(1)), SHAPE)
    assert "\n" not in str(error.value) and fingerprint(student) == fresh
