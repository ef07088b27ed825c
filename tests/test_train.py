"""Training: it learns, it repeats to the bit, it stops with a clear word when the loss explodes."""

import pytest
import torch
from torch import nn

from kdsec.data import UNLABELLED, Augment, ImageSet
from kdsec.errors import KdsecError
from kdsec.train import CrossEntropy, Recipe, bf16_pays, cross_entropy, evaluate, fit, predict


def stripes(count=256, seed=0):
    """Two classes that any net can tell apart: the left or the right half is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.rand(count, 1, 4, 4, generator=generator) * 0.6
    images[labels == 0, :, :, :2] += 0.3
    images[labels == 1, :, :, 2:] += 0.3
    return ImageSet(images, labels, ("left", "right"), "stripes")


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


PLAIN = Recipe(epochs=5, batch_size=32, lr=0.05, precision="float32")


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        Recipe(
            epochs=5,
            batch_size=32,
            optimizer="adam",
            lr=0.01,
            schedule="constant",
            precision="float32",
        ),
        Recipe(epochs=6, batch_size=32, lr=0.05, schedule="step", milestones=(4,), precision="bf16"),
        Recipe(epochs=8, batch_size=32, lr=0.05, grad_clip=0.5, augment=Augment(crop=1)),
    ],
)
def test_every_recipe_learns(recipe):
    model = net()
    assert evaluate(model, stripes(seed=1)).accuracy < 0.9
    history = fit(model, stripes(), recipe)
    assert len(history) == recipe.epochs and history[-1] < history[0]
    assert evaluate(model, stripes(seed=1)).accuracy > 0.97
    assert not model.training


def weights(model):
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_same_seed_same_bits(precision):
    recipe = Recipe(epochs=3, batch_size=32, lr=0.05, precision=precision, augment=Augment(crop=1, cutout=2))
    results = []
    for draws, seed in ((0, 0), (5, 0), (0, 1)):
        model = net(dropout=0.2)
        torch.rand(draws)  # whatever was drawn before from the global generator must not matter
        fit(model, stripes(), recipe, seed=seed)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)).requires_grad_(True)
    torch.random.set_rng_state(before)
    fit(model, stripes(), PLAIN)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_exploding_loss_names_the_step_and_the_cure():
    with pytest.raises(
        KdsecError,
        match=r"became (nan|inf) at step \d+ \(epoch \d+\); lower lr \(now 1e\+10\) or set grad_clip",
    ) as caught:
        fit(
            net(),
            stripes(),
            Recipe(epochs=20, batch_size=32, lr=1e10, schedule="constant", precision="float32"),
        )
    assert "\n" not in str(caught.value)


def test_a_loss_that_explodes_may_say_what_to_lower():
    class Explosive:
        advice = "lower its weight (now 7)"

        def __call__(self, model, batch):
            return CrossEntropy()(model, batch) * float("inf")

    with pytest.raises(KdsecError, match=r"at step 1 \(epoch 1\); lower its weight \(now 7\)"):
        fit(net(), stripes(), PLAIN, Explosive())


def test_the_first_bad_step_is_the_one_named():
    calls = iter(range(1000))

    def poisoned(model, batch):
        value = CrossEntropy()(model, batch)
        return value * (float("nan") if next(calls) == 11 else 1.0)

    with pytest.raises(KdsecError, match="at step 12 "):
        fit(net(), stripes(), PLAIN, poisoned)


def test_gradient_clipping_bounds_the_step():
    def step_length(clip):
        model = net()
        before = weights(model)
        recipe = Recipe(
            epochs=1,
            batch_size=256,
            lr=1.0,
            schedule="constant",
            momentum=0.0,
            weight_decay=0.0,
            grad_clip=clip,
            precision="float32",
        )
        parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
        fit(model, stripes(), recipe, lambda m, b: 1000 * CrossEntropy()(m, b))
        del before
        return (torch.cat([p.detach().flatten() for p in model.parameters()]) - parameters).norm()

    assert step_length(0.1) == pytest.approx(0.1, rel=1e-3)
    assert step_length(None) > 10


def test_one_cycle_ends_at_rest_and_step_decays():
    def rates(recipe):
        seen = []

        def spy(model, batch):
            return CrossEntropy()(model, batch)

        model = net()
        original = torch.optim.SGD.step

        def record(self, *args, **kwargs):
            seen.append(self.param_groups[0]["lr"])
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", record)
            fit(model, stripes(), recipe, spy)
        return seen

    cycle = rates(Recipe(epochs=10, batch_size=32, lr=0.05, precision="float32"))
    assert max(cycle) == pytest.approx(0.05, rel=0.01) and cycle[-1] < 0.05 / 50 and cycle[0] < 0.05 / 10
    steps = rates(
        Recipe(
            epochs=3,
            batch_size=32,
            lr=0.1,
            schedule="step",
            milestones=(1, 2),
            gamma=0.1,
            precision="float32",
        )
    )
    assert steps == pytest.approx([0.1] * 8 + [0.01] * 8 + [0.001] * 8)


def test_cross_entropy_skips_unlabelled_images():
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, UNLABELLED, 2, UNLABELLED])
    value = cross_entropy(logits, labels)
    assert value.item() == pytest.approx(nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]]).item())
    none = cross_entropy(logits, torch.full((4,), UNLABELLED))
    none.backward()
    assert none.item() == 0 and (logits.grad == 0).all()


def test_label_smoothing_is_minimal_at_the_smoothed_target():
    target = torch.tensor([[0.9 + 0.1 / 4, 0.1 / 4, 0.1 / 4, 0.1 / 4]])
    logits = target.log().requires_grad_()
    cross_entropy(logits, torch.tensor([0]), smoothing=0.1).backward()
    assert logits.grad.abs().max() < 1e-6


def test_accuracy_is_exact_and_mode_is_kept():
    base = stripes(33)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model.train()
    score = evaluate(model, base)
    by_hand = (model(base.float_images()).argmax(1) == base.labels).sum().item()
    assert (score.correct, score.total) == (by_hand, 33)
    assert model.training
    assert torch.allclose(predict(model, base.float_images()), predict(model, base, batch_size=5))


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(KdsecError, match="fp16 needs a GPU"):
        fit(net(), stripes(), Recipe(epochs=1, precision="fp16"))


@pytest.mark.slow
def test_compiled_training_learns_the_same():
    models = []
    for compile in (False, True):
        model = net()
        fit(
            model,
            stripes(),
            Recipe(epochs=3, batch_size=32, lr=0.02, precision="float32", compile=compile),
        )
        models.append(model)
    assert torch.allclose(weights(models[0]), weights(models[1]), atol=1e-3)


def test_asking_a_network_whose_parts_are_in_different_modes_leaves_them_there():
    body, head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4)), torch.nn.Linear(4, 2)
    whole = torch.nn.Sequential(body.train(), head.eval())
    whole.training = True
    predict(whole, torch.rand(3, 1, 2, 2))
    assert whole.training and body.training and body[1].training and not head.training


@pytest.mark.parametrize(
    ("described", "pays"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", False),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", True),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", True),
        (None, True),
    ],
)
def test_bf16_is_taken_where_it_is_faster(tmp_path, monkeypatch, described, pays):
    file = tmp_path / "cpuinfo"
    if described:
        file.write_text(described)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert bf16_pays(str(file)) == pays
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    bf16_pays.cache_clear()
    assert not bf16_pays(str(file))
    bf16_pays.cache_clear()
