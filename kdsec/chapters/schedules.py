"""Training schedules that chapters share."""

from __future__ import annotations

import dataclasses

from kdsec.train import Recipe


def same_steps(recipe: Recipe, steps: int, images: int) -> Recipe:
    """The same number of training steps however many images there are: on fewer images, more epochs.

    Where the schedule is stepwise, its milestones keep their place in the training.

    Args:
        recipe: everything but the epochs.
        steps: how many are wanted; met to within half an epoch.
        images: in the training set.
    """
    epochs = max(1, round(steps / max(1, images // recipe.batch_size)))
    milestones = tuple(round(each * epochs / recipe.epochs) for each in recipe.milestones)
    return dataclasses.replace(recipe, epochs=epochs, milestones=milestones)
