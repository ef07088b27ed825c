"""Muon: its steps are orthogonal, it trains in fewer of them, and it says where it does not fit."""

import dataclasses

import pytest
import torch
from torch import nn

from kdsec import models
from kdsec.data import Augment
from kdsec.errors import KdsecError
from kdsec.optim import MOMENTUM, Muon, orthogonalise
from kdsec.train import Recipe, evaluate, fit
from tests.small import build

OPTIONS = {"momentum": 0.9, "weight_decay": 5e-4, "dtype": torch.float32}


def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_lengths():
    matrices = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))
    matrices[:, 0] *= 5  # one direction dominates, as in gradients
    result = orthogonalise(matrices)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ result @ v.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert torch.allclose(inside, torch.diag_embed(values), atol=1e-4)
    assert (s.max() / s.min()) > 5
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.allclose(orthogonalise(matrices.mT), result.mT, atol=1e-5)
    assert torch.allclose(orthogonalise(1000 * matrices), result, atol=1e-4)


def test_a_gradient_of_nothing_is_a_step_of_nothing():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 9)), torch.zeros(1, 4, 9))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


def test_one_step_is_the_formula():
    model = network()
    optimizer = Muon(model, 0.1, **OPTIONS)
    plain = torch.optim.SGD(
        network().parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    generator = torch.Generator().manual_seed(1)
    before = model[2].weight.detach().clone()
    kept = torch.zeros_like(before)
    wanted = before
    for _ in range(2):
        others = plain.param_groups[0]["params"]
        for tensor, twin in zip(model.parameters(), others, strict=True):
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            twin.grad = tensor.grad.clone()
        optimizer.step()
        plain.step()
        gradient = model[2].weight.grad
        kept = MOMENTUM * kept + gradient
        step = orthogonalise((gradient + MOMENTUM * kept).reshape(1, 8, 72)).view_as(before)
        wanted = wanted * 8**0.5 / wanted.norm() - 0.1 * step
        assert torch.allclose(model[2].weight, wanted, atol=1e-5)
    # The first convolution, the grouped one and all that is no convolution go the way of SGD.
    for (name, tensor), twin in zip(model.named_parameters(), others, strict=True):
        assert torch.equal(tensor, twin) is (name != "2.weight"), name


def test_what_is_frozen_or_unused_stays():
    model = network()
    model[5].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = Muon(model, 0.1, **OPTIONS)
    reached = model[3](model[0](torch.rand(4, 1, 4, 4)))  # past the second and the third convolution
    reached.square().mul(torch.arange(4.0)[:, None, None, None]).sum().backward()
    optimizer.step()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_schedules_set_both_rates():
    optimizer = Muon(network(), 0.1, **OPTIONS)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], 0.1)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in (*optimizer.param_groups, *optimizer.others.param_groups)] == [
        pytest.approx(0.01)
    ] * 3


@pytest.mark.parametrize("kind", ["mlp", "no normalisation"])
def test_networks_it_does_not_fit_are_refused(digits, kind):
    model = build(digits, "digits-mlp")
    if kind == "no normalisation":
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(KdsecError, match="optimizer muon is for networks with .*; take sgd or adam"):
        fit(model, digits.train, Recipe(epochs=1, optimizer="muon"))


@pytest.mark.parametrize("name", ["resnet18", "resnetc20", "cnn", "shufflenetv2"])
def test_it_takes_every_network_of_the_sparse_teachers_chapter(name):
    model = models.build(name, 10, (3, 32, 32))
    optimizer = Muon(model, 0.1, **OPTIONS)
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(model.parameters()))
    assert len(optimizer.param_groups[0]["params"]) >= 2


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_in_few_steps_it_is_further_than_sgd(digits, precision):
    recipe = Recipe(epochs=2, batch_size=64, lr=0.1, augment=Augment(crop=1), precision=precision)
    reached = {}
    for optimizer in ("sgd", "muon"):
        model = build(digits, "digits-cnn")
        fit(model, digits.train, dataclasses.replace(recipe, optimizer=optimizer))
        reached[optimizer] = evaluate(model, digits.test).accuracy
    assert reached["muon"] > reached["sgd"] + 0.02 and reached["muon"] > 0.9, reached
