"""The small networks that most tests train, on the bundled digits (see the fixture ``digits``)."""

import copy
import functools

from torch import nn

from kdsec import models
from kdsec.data import Splits
from kdsec.train import Recipe, fit


def build(digits: Splits, name: str = "digits-small", seed: int = 0, classes: int = 10) -> nn.Module:
    """A network for images of 8 x 8 pixels, normalised with the statistics of the training images."""
    mean, std = digits.train.mean_std()
    return models.build(name, classes, (1, 8, 8), mean=mean, std=std, seed=seed)


def trained(digits: Splits) -> nn.Module:
    """A copy of a teacher of digits, which is trained once in a process, in a second."""
    return copy.deepcopy(_trained(digits))


@functools.cache
def _trained(digits: Splits) -> nn.Module:
    model = build(digits, "digits-medium")
    fit(model, digits.train, Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32"))
    model.zero_grad()
    return model
