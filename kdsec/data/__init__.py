"""Image sets as tensors: where they come from, how they are split, how they are fed to a training step.

>>> from kdsec import data
>>> splits = data.load("digits", seed=0)
>>> splits.train.images.shape, splits.train.labels.shape
(torch.Size([1078, 1, 8, 8]), torch.Size([1078]))
"""

from kdsec.data.imageset import UNLABELLED, ImageSet, Splits
from kdsec.data.loader import Augment, Batch, Loader
from kdsec.data.sources import DATASETS, check, fetch, load, pack, status

__all__ = [
    "DATASETS",
    "UNLABELLED",
    "Augment",
    "Batch",
    "ImageSet",
    "Loader",
    "Splits",
    "check",
    "fetch",
    "load",
    "pack",
    "status",
]
