"""Image sets as tensors: data sets by name, your own images, splits, and training batches.

>>> from kdsec import data
>>> splits = data.load("digits", seed=0)
>>> splits.train.images.shape, splits.train.labels.shape
(torch.Size([1078, 1, 8, 8]), torch.Size([1078]))
"""

from kdsec.data.convert import UNLABELLED
from kdsec.data.imageset import ImageSet, Splits
from kdsec.data.loader import Augment, Batch, Loader
from kdsec.data.own import from_dataset, from_folder, from_npz
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
    "from_dataset",
    "from_folder",
    "from_npz",
    "load",
    "pack",
    "status",
]
