"""Evasion attacks: they fool what can be fooled, and never leave their budget."""

import pytest
import torch

from kdsec import models
from kdsec.attacks.adaptive import adaptive_pgd
from kdsec.attacks.library import library
from kdsec.budgets import distance
from kdsec.data import Batch
from kdsec.defenses.adversarial_training import attack_batch
from kdsec.errors import KdsecError
from kdsec.pgd import PerturbationSet, fgsm, pgd
from kdsec.train import Recipe, fit, predict

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")


@pytest.fixture(scope="module")
def net(digits):
    model = models.build("digits-small", 10, (1, 8, 8), seed=0)
    fit(model, digits.train, RECIPE)
    return model


@pytest.fixture(scope="module")
def some(digits):
    return digits.test.float_images(slice(0, 60)), digits.test.labels[:60]


def right(model, images, labels):
    return (predict(model, images).argmax(1) == labels).float().mean().item()


def loss(model, images, labels):
    return torch.nn.functional.cross_entropy(predict(model, images), labels).item()


ATTACKS = {
    "fgsm": lambda *args, eps: fgsm(*args, eps=eps),
    "pgd": lambda *args, eps: pgd(*args, eps=eps),
    "pgd, restarts": lambda *args, eps: pgd(*args, eps=eps, steps=3, restarts=3),
    "pgd, early stop": lambda *args, eps: pgd(*args, eps=eps, stop_early=True),
    "pgd, bf16": lambda *args, eps: pgd(*args, eps=eps, precision="bf16"),
    "pgd, huge step": lambda *args, eps: pgd(*args, eps=eps, steps=2, step_size=5.0),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.3, 1.0])
def test_linf_attacks_stay_in_the_budget_and_in_the_box(net, some, attack, eps):
    images, labels = some
    found = attack(net, images, labels, eps=eps)
    assert found.dtype == torch.float32 and found.shape == images.shape
    assert found.min() >= 0 and found.max() <= 1
    assert distance(found, images).max().item() <= eps + 1e-6


class Linear(torch.nn.Module):
    """Two classes, logits w x and -w x about a grey image: the margin of class 0 is 2 w (x - 1/2)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(16, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([score, -score], 1)


def test_a_wrong_label_in_a_later_batch_is_refused_before_work():
    net, asked = Linear(), []
    net.register_forward_hook(lambda *_: asked.append(1))
    images, labels = torch.full((600, 1, 4, 4), 0.5), torch.zeros(600, dtype=torch.long)
    labels[599] = 2
    with pytest.raises(KdsecError, match="label"):
        pgd(net, images, labels, eps=0.1)
    assert len(asked) <= 1


OPTIMUM = {
    "fgsm": lambda *args: fgsm(*args, eps=0.1),
    "pgd": lambda *args: pgd(*args, eps=0.1),
    "pgd, restarts": lambda *args: pgd(*args, eps=0.1, restarts=2),
    "pgd, l2": lambda *args: pgd(*args, eps=0.1, norm="l2", random_start=False),
    "in training": lambda net, images, labels: attack_batch(
        net, Batch(images, labels, torch.arange(len(images))), 0.1, 3
    ),
}


@pytest.mark.parametrize("name", OPTIMUM)
def test_attacks_reach_the_known_optimum_of_a_linear_classifier(name):
    """The corner of the box, or the point of the ball, against the weights."""
    net, labels = Linear(), torch.tensor([0, 1, 0])
    images = torch.full((3, 1, 4, 4), 0.5)
    weight = net.weight.view(1, 4, 4)
    worst = weight / weight.norm() if "l2" in name else weight.sign()
    signs = torch.tensor([-1.0, 1.0, -1.0])[:, None, None, None]
    found = OPTIMUM[name](net, images, labels)
    assert torch.allclose(found, images + 0.1 * signs * worst, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_adaptive_attack_fools_exactly_what_can_be_fooled(norm):
    """An image is as far from the boundary as its score over the dual norm of the weights."""
    net, dual = Linear(), 1 if norm == "linf" else 2
    direction = net.weight.view(1, 4, 4) / net.weight.square().sum()
    radii = torch.tensor([0.01, 0.05, 0.095, 0.105, 0.15, 0.2])
    scores = radii * net.weight.norm(dual)
    images = 0.5 + scores[:, None, None, None] * direction
    found = adaptive_pgd(net, images, torch.zeros(6, dtype=torch.long), eps=0.1, norm=norm, restarts=1)
    assert torch.equal(predict(net, found).argmax(1) == 1, radii < 0.1)


@pytest.mark.parametrize("random_start", [True, False])
def test_l2_attack_stays_in_the_budget_and_works(net, some, random_start):
    images, labels = some
    found = pgd(net, images, labels, eps=1.5, norm="l2", steps=20, random_start=random_start)
    assert found.min() >= 0 and found.max() <= 1
    assert distance(found, images, "l2").max().item() <= 1.5 + 1e-5
    assert distance(found, images, "l2").mean().item() > 1.0  # it uses its budget
    assert right(net, found, labels) < 0.5 < right(net, images, labels)


def test_stronger_attacks_do_more_harm(net, some):
    images, labels = some
    noise = (images + 0.2 * (torch.rand_like(images) - 0.5).sign()).clamp(0, 1)
    one = fgsm(net, images, labels, eps=0.2)
    many = pgd(net, images, labels, eps=0.2, steps=20)
    assert right(net, many, labels) <= right(net, one, labels) < right(net, noise, labels) - 0.1
    assert loss(net, many, labels) > loss(net, one, labels) > loss(net, noise, labels)


def test_restarts_never_lower_the_loss_of_an_image(net, some):
    images, labels = some

    def losses(restarts):
        found = pgd(net, images, labels, eps=0.1, steps=2, restarts=restarts, batch_size=60)
        return torch.nn.functional.cross_entropy(predict(net, found), labels, reduction="none")

    assert bool((losses(4) >= losses(1) - 1e-4).all()) and losses(4).mean() > losses(1).mean()


def test_targeted_attack_reaches_its_target(net, some):
    images, labels = some
    target = (labels + 1) % 10
    found = pgd(net, images, target, eps=0.5, steps=30, targeted=True)
    assert right(net, found, target) > 0.8 > 0.2 > right(net, images, target)


def test_early_stop_fools_as_many_and_leaves_the_fooled_alone(net, some):
    images, labels = some
    full = pgd(net, images, labels, eps=0.15, steps=20, random_start=False)
    early = pgd(net, images, labels, eps=0.15, steps=20, random_start=False, stop_early=True)
    wrong = predict(net, images).argmax(1) != labels
    assert abs(right(net, early, labels) - right(net, full, labels)) <= 0.05
    assert distance(early, images).mean() < distance(full, images).mean()
    already = images.clone()
    already[~wrong] = full[~wrong]
    fooled = predict(net, already).argmax(1) != labels
    again = pgd(net, already, labels, eps=0.15, random_start=False, stop_early=True)
    assert fooled.any() and torch.equal(again[fooled], already[fooled])


def test_batches_and_bytes_change_nothing(net, digits):
    images, labels = digits.test.images[:50], digits.test.labels[:50]
    assert images.dtype == torch.uint8
    whole = pgd(net, images, labels, eps=0.1, random_start=False)
    parts = pgd(net, images, labels, eps=0.1, random_start=False, batch_size=7)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.equal(whole, pgd(net, images.float() / 255, labels, eps=0.1, random_start=False))


def test_seed_decides_the_random_start(net, some):
    images, labels = some
    runs = [pgd(net, images, labels, eps=0.1, steps=1, step_size=0.01, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_attacks_leave_the_model_as_it_was(net, some):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.zero_grad(set_to_none=True)
    net.train()
    pgd(net, *some, eps=0.1, steps=2)
    assert net.training
    net.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_one_forward_and_one_backward_pass_a_step(net, some):
    """The adversarial set must cost no more than the passes it is made of."""
    calls = {"forward": 0, "backward": 0}
    handles = [
        net.register_forward_hook(lambda *_: calls.__setitem__("forward", calls["forward"] + 1)),
        net.head.register_full_backward_hook(lambda *_: calls.__setitem__("backward", calls["backward"] + 1)),
    ]
    pgd(net, *some, eps=0.1, steps=7)
    for handle in handles:
        handle.remove()
    assert calls == {"forward": 7, "backward": 7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8.0}, r"eps=8 is outside \[0, 1\] for linf; divide by 255"),
        ({"eps": -0.1}, r"eps=-0.1 is outside"),
        ({"eps": float("nan")}, r"eps=nan"),
        ({"eps": 9.0, "norm": "l2"}, r"eps=9 is outside \[0, 8\] for l2"),
        ({"eps": 0.1, "steps": 0}, "steps=0.*at least 1"),
        ({"eps": 0.1, "restarts": 0}, "restarts=0.*at least 1"),
        ({"eps": 0.1, "norm": "l1"}, "unknown norm 'l1'.*choose from: linf, l2"),
        ({"eps": 0.1, "precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_bad_arguments_end_in_one_line(net, some, options, message):
    with pytest.raises(KdsecError, match=message) as error:
        pgd(net, *some, **options)
    assert "\n" not in str(error.value)


def test_labels_are_needed(net, some, digits):
    with pytest.raises(KdsecError, match="one label an image"):
        pgd(net, some[0], digits.test.unlabelled().labels[:60], eps=0.1)
    with pytest.raises(KdsecError, match="one label an image"):
        fgsm(net, some[0], some[1][:5], eps=0.1)


def test_an_attack_that_leaves_its_budget_is_caught(net, some, monkeypatch):
    monkeypatch.setattr(PerturbationSet, "project", lambda self, images: images)
    with pytest.raises(KdsecError, match="left its budget"):
        pgd(net, *some, eps=0.1, steps=2, step_size=0.2)


def test_library_says_how_to_get_it(net, some, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(KdsecError, match="make attacks") as error:
        library("square", net, *some, eps=0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lbfgs", {"eps": 0.1}, "unknown attack 'lbfgs'"),
        ("cw", {"eps": 0.1}, "'cw' measures in L2"),
        ("apgd", {"eps": 2.0}, "eps=2 is outside"),
        ("apgd", {"eps": 0.1, "steps": 0}, "at least 1"),
    ],
)
def test_library_checks_its_arguments_first(net, some, name, options, message):
    with pytest.raises(KdsecError, match=message):
        library(name, net, *some, **options)


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("apgd", "linf", 0.2),
        ("apgd-targeted", "l2", 1.5),
        ("fab", "linf", 0.2),
        ("square", "linf", 0.25),
        ("autoattack", "linf", 0.15),
        ("cw", "l2", 1.5),
        ("deepfool", "l2", 1.5),
    ],
)
def test_library_attacks_work_within_their_budget(net, some, name, norm, eps):
    pytest.importorskip("torchattacks")
    images, labels = some[0][:24], some[1][:24]
    state = torch.get_rng_state()
    steps = 200 if name == "cw" else 10
    found = library(name, net, images, labels, eps=eps, norm=norm, steps=steps, queries=100)
    assert torch.equal(state, torch.get_rng_state())
    assert found.min() >= 0 and found.max() <= 1
    assert distance(found, images, norm).max().item() <= eps + 1e-5
    assert right(net, found, labels) < 0.7 < right(net, images, labels)
