"""Purifiers: the losses are their formulas, the classifier stays as it is, and the teaching teaches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec import models
from kdsec.attacks.adaptive import adaptive_pgd, worst_case
from kdsec.attacks.gradient_masking import beyond_noise, is_correct
from kdsec.budgets import distance
from kdsec.data import Augment, Batch, Loader
from kdsec.defenses.adversarial_training import TRADES, PGDTraining, attack_batch
from kdsec.defenses.perturbations import ClassifierPGD, EndToEnd, Identity, Noise, Precomputed
from kdsec.defenses.purification import (
    READINGS,
    DistillationTerm,
    EnsembleDistillation,
    Restore,
    two_teacher_terms,
)
from kdsec.defenses.purifiers import frozen, protect, purified
from kdsec.defenses.sparse_teacher import pair
from kdsec.defenses.transformations import Blur
from kdsec.distill import attention_map
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import soft_cross_term
from kdsec.pgd import pgd
from kdsec.train import Recipe, cross_entropy, evaluate, fit, predict

EPS = 0.15
SHAPE = (1, 8, 8)
CLASSIFIER = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")
PURIFIER = Recipe(
    epochs=12,
    batch_size=64,
    optimizer="adam",
    lr=5e-3,
    weight_decay=0.0,
    augment=Augment(crop=1),
    precision="float32",
)
SHORT = Recipe(epochs=1, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, precision="float32")


@pytest.fixture(scope="module")
def net(digits):
    mean, std = digits.train.mean_std()
    model = models.build("digits-small", 10, SHAPE, mean=mean, std=std, seed=0)
    fit(model, digits.train, CLASSIFIER)
    model.zero_grad()
    return model


@pytest.fixture(scope="module")
def attacked(net, digits):
    """The training set's images under the grey-box attack, and the test set's."""
    return {
        part: pgd(net, each.images, each.labels, eps=EPS, steps=10)
        for part, each in (("train", digits.train), ("test", digits.test))
    }


@pytest.fixture(scope="module")
def pairs(digits, attacked):
    return pair(digits.train, attacked["train"])


@pytest.fixture(scope="module")
def teacher(pairs):
    """The adversarial teacher."""
    return train(Restore(Precomputed()), pairs)


def purifier(seed=0, name="autoencoder-small", shape=SHAPE):
    return models.build_autoencoder(name, shape, seed=seed)


def train(loss, on, recipe=PURIFIER, seed=0):
    model = purifier(seed)
    fit(model, on, recipe, loss, seed=seed)
    model.zero_grad()
    return model


def first(images, count=32):
    return Batch(images.float_images(slice(0, count)), images.labels[:count], torch.arange(count))


def accuracy(model, images, labels):
    return is_correct(model, images, labels).float().mean().item()


# Disturbances


def test_training_attacks_stay_in_their_budget_and_work(digits, net):
    batch, front = first(digits.train, 128), purifier().train()
    for attack in (ClassifierPGD(net, EPS), EndToEnd(net, EPS)):
        clean, changed = attack(front, batch)
        assert torch.equal(clean, batch.images) and not changed.requires_grad
        assert distance(changed, clean).max().item() <= EPS + 1e-6
        assert changed.min() >= 0 and changed.max() <= 1
    assert accuracy(net, ClassifierPGD(net, EPS)(front, batch)[1], batch.labels) < 0.2


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_training_attacks_reach_their_budget_in_any_number_of_steps(steps):
    """On a linear classifier the gradient's sign never changes, so that every pixel should be at the rim."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    batch = Batch(torch.rand(20, *SHAPE) * 0.4 + 0.3, torch.arange(20) % 2, torch.arange(20))
    attacked = attack_batch(linear, batch, EPS, steps), TRADES(EPS, steps=steps).attack(linear, batch.images)
    for changed in attacked:
        assert (changed - batch.images).abs().min().item() == pytest.approx(EPS, abs=1e-5)


def test_the_grey_box_attack_does_not_look_at_the_purifier_and_the_white_box_one_does(digits, net, teacher):
    batch, other = first(digits.train, 200), purifier(seed=5)

    def made(attack, front):
        torch.manual_seed(0)
        return attack(front, batch)[1]

    grey, white = ClassifierPGD(net, EPS), EndToEnd(net, EPS)
    assert torch.equal(made(grey, teacher), made(grey, other))
    assert not torch.equal(made(white, teacher), made(white, other))
    defended = protect(teacher, net, SHAPE)
    harm = [accuracy(defended, made(attack, teacher), batch.labels) for attack in (grey, white)]
    assert harm[1] < harm[0] - 0.2


def test_the_white_box_training_attack_leaves_every_layer_in_its_mode(digits, net):
    front = purifier().train()
    statistics = front.encoder[0][1].running_mean.clone()
    attack = EndToEnd(net, EPS, steps=2)
    attack(front, first(digits.train))
    assert all(layer.training for layer in front.modules())
    assert not any(layer.training for layer in attack.classifier.modules())
    assert torch.equal(front.encoder[0][1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in front.parameters())


def test_training_attacks_repeat_with_the_seed(digits, net):
    batch = first(digits.train)
    torch.manual_seed(1)
    one = attack_batch(net, batch, EPS, 2)
    torch.manual_seed(1)
    assert torch.equal(one, attack_batch(net, batch, EPS, 2))
    assert not torch.equal(one, attack_batch(net, batch, EPS, 2))


def test_noise_and_nothing(digits):
    batch = first(digits.train)
    clean, changed = Noise(0.2)(nn.Identity(), batch)
    assert torch.equal(clean, batch.images) and changed.min() >= 0 and changed.max() <= 1
    inside = (clean > 0.4) & (clean < 0.6)
    assert (changed - clean)[inside].std().item() == pytest.approx(0.2, rel=0.2)
    assert all(torch.equal(view, batch.images) for view in Identity()(nn.Identity(), batch))


def test_stored_pairs_are_cropped_alike(digits, attacked, pairs):
    batch = next(iter(Loader(pairs, 64, augment=Augment(crop=2), seed=0)))
    clean, changed = Precomputed()(nn.Identity(), batch)
    assert clean.shape == changed.shape == (64, *SHAPE)
    assert distance(clean, changed).max().item() <= EPS + 1 / 255


# The losses are the formulas


def test_restore_is_the_equation(digits, net):
    model, batch = purifier().eval(), first(digits.train)
    attack = ClassifierPGD(net, EPS, steps=1)
    torch.manual_seed(0)
    loss = Restore(attack, net, pixels=2.0, clean=0.5, labels=0.3)(model, batch)
    torch.manual_seed(0)
    clean, changed = attack(model, batch)
    wanted = 2.0 * (model(changed) - clean).square().mean() + 0.5 * (model(clean) - clean).square().mean()
    wanted = wanted + 0.3 * cross_entropy(net(model(changed)), batch.labels)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def gradient(loss, model):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize(("reading", "at", "asked"), [("averaged", "x'", "x"), ("both attacked", "x'", "x'")])
def test_two_lessons_at_one_image_are_one_from_the_average(digits, net, reading, at, asked):
    """Two squared distances from one point differ from the distance to their mean by a constant alone."""
    one, two, model = purifier(1).eval(), purifier(2).eval(), purifier(0).eval()
    batch = pair_batch(digits, net)
    loss = EnsembleDistillation(two_teacher_terms(one, two, reading, weight=0.3), Precomputed())
    clean, changed = batch.images.chunk(2, dim=1)
    with torch.no_grad():
        mean = 0.3 * one(changed) + 0.7 * two(clean if asked == "x" else changed)
    wanted = (model(changed) - mean).square().mean()
    found = gradient(loss(model, batch), model)
    assert torch.allclose(found, gradient(wanted, model), atol=1e-6) and found.abs().max() > 1e-5


def pair_batch(digits, net, count=32):
    plain = first(digits.train, count)
    changed = pgd(net, plain.images, plain.labels, eps=EPS, steps=3)
    return Batch(torch.cat([plain.images, changed], dim=1), plain.labels, plain.position)


def test_each_its_own_is_two_distances_at_two_images(digits, net):
    one, two, model = purifier(1).eval(), purifier(2).eval(), purifier(0).eval()
    batch = pair_batch(digits, net)
    clean, changed = batch.images.chunk(2, dim=1)
    loss = EnsembleDistillation(
        two_teacher_terms(one, two, "each its own"), Precomputed(), reconstruction=0.2
    )(model, batch)
    wanted = 0.5 * F.mse_loss(model(changed), one(changed)) + 0.5 * F.mse_loss(model(clean), two(clean))
    wanted = wanted + 0.2 * F.mse_loss(model(changed), clean)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_levels_are_what_they_say(digits, net):
    one, model = purifier(1, "autoencoder").eval(), purifier(0).eval()
    batch = pair_batch(digits, net)
    clean, changed = batch.images.chunk(2, dim=1)
    lesson = (DistillationTerm(one, 1.0),)
    logits = EnsembleDistillation(lesson, Precomputed(), level="logits", classifier=net, temperature=2.0)(
        model, batch
    )
    wanted = soft_cross_term(net(model(changed)), net(one(changed)), 2.0)
    assert logits.item() == pytest.approx(wanted.item(), rel=1e-3)
    features = EnsembleDistillation(lesson, Precomputed(), reconstruction=1.0, level="features")(model, batch)
    gap = (attention_map(model.encoder(changed)) - attention_map(one.encoder(changed))).square().sum(1).mean()
    assert features.item() == pytest.approx((gap + F.mse_loss(model(changed), clean)).item(), rel=1e-4)


@pytest.mark.parametrize("level", ["image", "features", "logits"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(digits, net, level):
    model, batch = purifier(0).eval(), pair_batch(digits, net)
    lesson = two_teacher_terms(model, model, "both attacked")
    reconstruction = 1.0 if level == "features" else 0.0
    loss = EnsembleDistillation(lesson, Precomputed(), reconstruction, level, net)(model, batch)
    left = reconstruction * F.mse_loss(model(batch.images[:, 1:]), batch.images[:, :1])
    assert (loss - left).abs().item() < 1e-6


# Who is changed and who is not


LOSSES = {
    "grey": lambda net, teacher: Restore(ClassifierPGD(net, EPS, 1)),
    "end to end": lambda net, teacher: Restore(EndToEnd(net, EPS, 1), net, labels=1.0),
    "logits": lambda net, teacher: EnsembleDistillation(
        (DistillationTerm(teacher),), ClassifierPGD(net, EPS, 1), level="logits", classifier=net
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_purifier_training_leaves_classifier_and_teachers_alone(digits, net, teacher, name):
    before = fingerprint([net, teacher])
    net.train()  # even if somebody left it so: then its statistics would move with every batch
    some = digits.train.subset(torch.arange(192))
    student = train(LOSSES[name](net, teacher), some, SHORT)
    assert net.training and fingerprint([net.eval(), teacher]) == before
    assert all(parameter.grad is None for part in (net, teacher) for parameter in part.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert fingerprint(student) != fingerprint(purifier())


def test_losses_have_a_fingerprint_that_tells_them_apart(net, teacher):
    made = [loss(net, teacher) for loss in LOSSES.values()]
    made += [
        Restore(Precomputed()),
        Restore(Precomputed(), clean=1.0),
        Restore(Noise(0.1)),
        Restore(Identity()),
    ]
    made += [Restore(ClassifierPGD(net, EPS, 2)), Restore(EndToEnd(net, EPS, 2))]
    made += [
        EnsembleDistillation(two_teacher_terms(teacher, net, reading), Precomputed()) for reading in READINGS
    ]
    made += [PGDTraining(0.1), PGDTraining(0.2), TRADES(0.1), TRADES(0.1, beta=1.0)]
    assert len({fingerprint(each) for each in made}) == len(made)
    assert fingerprint(Restore(EndToEnd(net, EPS), net)) == fingerprint(Restore(EndToEnd(net, EPS), net))


def test_frozen_is_a_copy(net):
    net.train()
    copy = frozen(net)
    assert net.training and not copy.training and copy is not net
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    weights = copy.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())


# The defended model


def test_the_identity_reproduces_the_undefended_model_to_the_bit(digits, net):
    images, labels = digits.test.images[:100], digits.test.labels[:100]
    defended = protect(nn.Identity(), net, SHAPE)
    assert torch.equal(predict(defended, images), predict(net, images))
    for attack in (pgd, adaptive_pgd):
        one, two = (attack(model, images, labels, eps=EPS, steps=5) for model in (defended, net))
        assert torch.equal(one, two)


def test_the_defended_model_is_its_parts_and_stays_in_eval_mode(digits, net):
    front = purifier().eval()
    defended = protect(front, net.eval(), SHAPE)
    assert defended[0] is front and defended[1] is net and not defended.training
    images = digits.test.float_images(slice(0, 20))
    predict(defended, images)
    adaptive_pgd(defended, images, digits.test.labels[:20], eps=EPS, steps=1)
    assert not any(layer.training for layer in defended.modules())
    with torch.no_grad():
        assert torch.equal(defended(images), net(front(images)))


def test_the_residual_purifier_begins_as_the_identity_and_is_smaller(digits):
    net, images = purifier(0, "residual-purifier").eval(), digits.test.float_images(slice(0, 20))
    assert torch.equal(net(images), images)
    assert models.count_parameters(net) < 11_000 < models.count_parameters(purifier())
    assert not any(layer.stride != (1, 1) for layer in net.modules() if isinstance(layer, nn.Conv2d))


# It learns, and what it is worth


def test_the_adversarial_teacher_restores_grey_box_accuracy(digits, net, attacked, teacher):
    defended = protect(teacher, net, SHAPE)
    undefended = accuracy(net, attacked["test"], digits.test.labels)
    assert undefended < 0.1
    assert accuracy(defended, attacked["test"], digits.test.labels) > 0.5
    assert evaluate(defended, digits.test).accuracy > 0.9
    untrained = protect(purifier().eval(), net, SHAPE)
    assert accuracy(untrained, attacked["test"], digits.test.labels) < 0.3


def predict_images(model, images):
    with torch.no_grad():
        return model.eval()(images)


def test_white_box_accuracy_is_never_above_grey_box_accuracy(digits, net, attacked, teacher):
    """If it were, the attack would be broken, not the defence strong."""
    images, labels = digits.test.images[:150], digits.test.labels[:150]
    grey = attacked["test"][:150]
    for front in (teacher, Blur(0.6), nn.Identity()):
        defended = protect(front, net, SHAPE)
        white = adaptive_pgd(defended, images, labels, eps=EPS, steps=20, restarts=1)
        stands = {
            name: is_correct(defended, each, labels) for name, each in (("white", white), ("grey", grey))
        }
        assert not beyond_noise(stands["white"], stands["grey"])
        worst = is_correct(defended, worst_case(defended, [white, grey], labels), labels)
        assert not beyond_noise(worst, stands["white"])
        if front is teacher:
            share = {name: each.float().mean() for name, each in stands.items()}
            assert share["white"] < share["grey"] - 0.2


def test_an_unbounded_attack_leaves_nothing(digits, net, teacher):
    images, labels = digits.test.images[:60], digits.test.labels[:60]
    defended = protect(teacher, net, SHAPE)
    curve = [
        accuracy(defended, adaptive_pgd(defended, images, labels, eps=eps, steps=20, restarts=1), labels)
        for eps in (0.02, 0.1, 1.0)
    ]
    assert curve == sorted(curve, reverse=True) and curve[-1] == 0


def test_the_ensemble_teaches_both_teachers_lessons(pairs, digits, attacked, teacher):
    """Distillation works: the student comes to do what its teachers do. Not a claim that this helps."""
    normal = train(Restore(Identity()), digits.train)
    student = purifier(3)
    loss = EnsembleDistillation(two_teacher_terms(teacher, normal, "each its own"), Precomputed())

    def gaps():
        made = {
            kind: (predict_images(student, images), predict_images(front, images))
            for kind, images, front in (
                ("denoising", attacked["test"], teacher),
                ("restoring", digits.test.float_images(), normal),
            )
        }
        return torch.tensor([F.mse_loss(*pair).item() for pair in made.values()])

    before = gaps()
    fit(student, pairs, PURIFIER, loss)
    assert bool((gaps() < 0.3 * before).all())


@pytest.mark.slow
def test_training_through_the_classifier_holds_better_against_an_attacker_who_knows(digits, net, teacher):
    images, labels = digits.test.images[:300], digits.test.labels[:300]
    whole = train(Restore(EndToEnd(net, EPS, 4), net, labels=1.0), digits.train)
    score = {}
    for name, front in (("grey", teacher), ("end to end", whole)):
        defended = protect(front, net, SHAPE)
        score[name] = accuracy(defended, adaptive_pgd(defended, images, labels, eps=EPS, steps=20), labels)
    assert score["end to end"] > score["grey"] + 0.1


# Adversarial training


@pytest.mark.parametrize("loss", [PGDTraining(EPS, 3), TRADES(EPS, 3.0, 3)], ids=["PGD-AT", "TRADES"])
def test_adversarial_training_makes_a_classifier_robust(digits, net, loss):
    images, labels = digits.test.images[:150], digits.test.labels[:150]
    mean, std = digits.train.mean_std()
    robust = models.build("digits-small", 10, SHAPE, mean=mean, std=std, seed=0)
    fit(robust, digits.train, Recipe(epochs=8, batch_size=64, lr=0.1, precision="float32"), loss)
    score = [
        accuracy(model, adaptive_pgd(model, images, labels, eps=EPS, steps=20), labels)
        for model in (net, robust)
    ]
    assert score[1] > score[0] + 0.2 and evaluate(robust, digits.test).accuracy > 0.8


def test_trades_is_the_equation(digits, net):
    batch, loss = first(digits.train), TRADES(EPS, beta=2.5, steps=2)
    net.eval()
    torch.manual_seed(0)
    found = loss(net, batch)
    torch.manual_seed(0)
    clean, shifted = net(batch.images).softmax(1), net(loss.attack(net, batch.images)).softmax(1)
    gap = (clean * (clean / shifted).log()).sum(1).mean()
    wanted = -clean.gather(1, batch.labels[:, None]).log().mean() + 2.5 * gap
    assert found.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_the_attack_of_trades_needs_no_labels_and_raises_the_divergence(digits, net):
    images = digits.train.float_images(slice(0, 100))
    net.train()
    found = TRADES(EPS, steps=5).attack(net, images)
    assert net.training and distance(found, images).max().item() <= EPS + 1e-6
    clean = predict(net.eval(), images).log_softmax(1)

    def gap(changed):
        return F.kl_div(
            predict(net, changed).log_softmax(1), clean, log_target=True, reduction="batchmean"
        ).item()

    noise = (images + EPS * (2 * torch.rand_like(images) - 1).sign()).clamp(0, 1)
    assert gap(found) > 3 * gap(noise) > 0
    unlabelled = Batch(images, torch.full((100,), -1), torch.arange(100))
    assert TRADES(EPS, steps=1)(net, unlabelled).item() > 0


def test_pgd_training_is_cross_entropy_at_the_attack(digits, net):
    batch = first(digits.train)
    net.eval()
    torch.manual_seed(0)
    found = PGDTraining(EPS, steps=3, step_size=0.1)(net, batch)
    torch.manual_seed(0)
    wanted = cross_entropy(net(attack_batch(net, batch, EPS, 3, 0.1)), batch.labels)
    assert found.item() == wanted.item() > cross_entropy(net(batch.images), batch.labels).item()


def test_the_inner_attack_asks_for_no_gradient_of_the_weights(digits, net):
    """Most of what adversarial training costs: the backward passes of the attack must be the short ones."""
    calls = []
    weight = net.head[-1].weight
    handle = weight.register_hook(lambda gradient: calls.append(1))
    attack_batch(net, first(digits.train), EPS, 3)
    assert not calls and weight.grad is None
    handle.remove()


# Bad input


class Larger(nn.Module):
    def forward(self, images):
        return F.pad(images, (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: models.build_autoencoder("autoencoder", (1, 10, 8)), "height and width divisible by 4"),
        (
            lambda net: protect(purifier(), net, (1, 10, 10)),
            r"makes images \(1, 12, 12\) of images \(1, 10, 10\)",
        ),
        (lambda net: protect(purifier(), net, (3, 8, 8)), "takes images of 1 channels, got 3"),
        (lambda net: protect(Larger(), net, SHAPE), "strides must divide height and width"),
        (lambda net: ClassifierPGD(net, 0.0), "eps=0 must be above 0 and at most 1"),
        (lambda net: ClassifierPGD(net, 8.0), "eps=8 .*divide by 255"),
        (lambda net: EndToEnd(net, 1.5), "eps=1.5 must be above 0"),
        (lambda net: ClassifierPGD(net, 0.1, 0), "steps=0: an attack needs at least 1"),
        (lambda net: PGDTraining(0.0), "eps=0 must be above 0"),
        (lambda net: PGDTraining(float("nan")), "eps=nan"),
        (lambda net: TRADES(0.1, steps=0), "steps=0"),
        (lambda net: TRADES(0.1, beta=-1.0), "beta=-1.0 must be 0 or more"),
        (lambda net: Noise(0.0), "sigma=0 must be above 0"),
        (lambda net: Restore(Precomputed(), pixels=0.0), "not all of them 0"),
        (lambda net: Restore(Precomputed(), clean=-1.0), "clean=-1.*must be 0 or more"),
        (lambda net: Restore(Precomputed(), labels=1.0), "needs the classifier"),
        (
            lambda net: EnsembleDistillation((), Precomputed()),
            "an ensemble of no teachers; give a DistillationTerm",
        ),
        (
            lambda net: EnsembleDistillation((DistillationTerm(net),), Precomputed(), level="features"),
            "decoder untrained",
        ),
        (
            lambda net: EnsembleDistillation((DistillationTerm(net),), Precomputed(), level="logits"),
            "give the classifier",
        ),
        (
            lambda net: EnsembleDistillation((DistillationTerm(net),), Precomputed(), level="pixels"),
            "unknown level 'pixels'",
        ),
        (
            lambda net: EnsembleDistillation((DistillationTerm(net),), Precomputed(), -1.0),
            "reconstruction=-1",
        ),
        (
            lambda net: EnsembleDistillation((DistillationTerm(net),), Precomputed(), temperature=0.0),
            "temperature=0.0",
        ),
        (lambda net: DistillationTerm(net, 0.0), "weight=0.0 of a term must be above 0"),
        (lambda net: DistillationTerm(net, teacher_sees="noisy"), "unknown view 'noisy'"),
        (lambda net: two_teacher_terms(net, net, "own"), "unknown reading 'own'"),
        (lambda net: two_teacher_terms(net, net, weight=1.0), r"weight=1.0 must be in \(0, 1\)"),
    ],
)
def test_bad_settings_end_in_one_line(net, make, message):
    with pytest.raises(KdsecError, match=message) as error:
        make(net)
    assert "\n" not in str(error.value)


def ensemble(net, teacher, level="image"):
    return EnsembleDistillation((DistillationTerm(teacher, 1.0),), Precomputed(), 1.0, level)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: Restore(Precomputed()), "trains on pairs of images"),
        (lambda net: ensemble(net, Larger()), "trains on pairs of images"),
    ],
)
def test_a_set_of_single_images_is_refused(digits, net, make, message):
    with pytest.raises(KdsecError, match=message):
        make(net)(purifier(), first(digits.train))


def test_teachers_of_another_shape_are_refused(digits, net):
    batch = pair_batch(digits, net)
    with pytest.raises(KdsecError, match=r"makes images \(1, 10, 10\) of images \(1, 8, 8\)"):
        ensemble(net, Larger())(purifier(), batch)
    with pytest.raises(KdsecError, match="takes images of 3 channels, got 1"):
        ensemble(net, purifier(shape=(3, 8, 8)))(purifier(), batch)
    with pytest.raises(KdsecError, match="has no encoder"):
        ensemble(net, Blur(1.0), "features")(purifier(), batch)


def test_a_set_of_pairs_is_refused_by_what_takes_single_images(digits, net):
    with pytest.raises(KdsecError, match=r"takes images of 1 channels, got 2.*Precomputed\(\)"):
        Restore(Identity())(purifier(), pair_batch(digits, net))


def test_the_attack_on_labels_needs_labels(digits, net):
    batch = first(digits.train)._replace(labels=torch.full((32,), -1))
    with pytest.raises(KdsecError, match="some images have none"):
        PGDTraining(EPS)(net, batch)
    with pytest.raises(KdsecError, match="some images have none"):
        ClassifierPGD(net, EPS)(purifier(), batch)


def test_purified_makes_one_pass_of_all_views(digits):
    class Counting(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return 1 - images

    counting, images = Counting(), digits.test.float_images(slice(0, 6))
    made = purified(counting, {"attacked": images, "clean": images / 2})
    assert counting.calls == 1
    assert torch.equal(made["attacked"], 1 - images) and torch.equal(made["clean"], 1 - images / 2)
