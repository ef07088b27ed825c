"""Foreign arrays as images and labels: converted where the meaning is certain, refused in one line otherwise.

Everything that enters an ``ImageSet`` passes through the two functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsec.errors import KdsecError

UNLABELLED = -1  # the label of an image whose label is not known (an attacker's query, for instance)
ROUNDING = 1e-5  # float images this far outside [0, 1] are clamped, further ones refused
CHANNELS = (1, 3, 4)
LARGEST_LABEL = 2**31
WIDE = (torch.uint16, torch.uint32, torch.uint64)  # torch computes little in these


def as_images(images: Any, name: str) -> Tensor:
    """Images ``(N, C, H, W)``, uint8 or float32 in [0, 1], from a tensor, a numpy array or a nested list.

    uint8 is taken without a look at the pixels; other integers become uint8 if they are in 0..255, other
    floats become float32.

    Raises:
        KdsecError: anything else; says what arrived and how to convert it.
    """
    pixels = _tensor(images, "images", name).detach()
    _check_shape(pixels, name)
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.is_floating_point():
        return _unit_range(pixels.float(), name)
    if pixels.dtype == torch.bool or pixels.is_complex():
        raise KdsecError(f"{name}: images are {pixels.dtype}; give uint8 0..255 or floats in [0, 1]")
    low, high = _range(pixels)
    if not 0 <= low <= high <= 255:
        raise KdsecError(f"{name}: images are whole numbers {low:g}..{high:g}; scale them to 0..255 as uint8")
    if high == 1:
        raise KdsecError(
            f"{name}: images are {pixels.dtype} with nothing but 0 and 1; give floats if 1 means white, "
            "uint8 if it means 1 of 255"
        )
    return pixels.to(torch.uint8)


def as_labels(labels: Any, classes: int, name: str) -> Tensor:
    """Labels ``(N,)`` int64 in 0..K-1 or ``UNLABELLED``.

    Takes whole numbers of any type, a column ``(N, 1)``, and one-hot rows ``(N, K)``.

    Raises:
        KdsecError: fractions, values outside the classes, soft labels.
    """
    given = _tensor(labels, "labels", name).detach()
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim == 2 and given.shape[1] == classes:
        given = _from_one_hot(given, name)
    if given.ndim != 1 or given.is_complex():
        raise KdsecError(
            f"{name}: labels {tuple(given.shape)} are neither (N,) class numbers nor one-hot (N, {classes})"
        )
    given = _whole(given, name, f"class numbers 0..{classes - 1}")
    if len(given) and not UNLABELLED <= int(given.min()) <= int(given.max()) < classes:
        raise KdsecError(
            f"{name}: labels {int(given.min())}..{int(given.max())} outside 0..{classes - 1} "
            f"({UNLABELLED} means unlabelled)"
        )
    return given


def as_whole(labels: Any, name: str) -> Tensor:
    """Labels ``(N,)`` int64 of any classes, from whole numbers of any type and shape ``(N,)`` or ``(N, 1)``.

    Raises:
        KdsecError: fractions, truth values, one-hot rows, another shape.
    """
    given = _tensor(labels, name, "argument").detach()
    given = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if given.ndim != 1 or given.is_complex() or given.dtype == torch.bool:
        advice = "; labels.argmax(1) of one-hot rows" if given.ndim == 2 else ""
        raise KdsecError(
            f"{name} are {given.dtype} {tuple(given.shape)}, not class numbers (N,), one an image{advice}"
        )
    return _whole(given, name, "class numbers from 0 up")


def as_device(device: Any) -> torch.device:
    """A device of this machine.

    Raises:
        KdsecError: no such device here.
    """
    try:
        return torch.zeros(1, device=torch.device(device)).device
    except (RuntimeError, TypeError, AssertionError):
        raise KdsecError(f"device={device!r} is not on this machine; give cpu, or cuda with a GPU") from None


def as_index(index: Any, name: str) -> Tensor:
    """Positions ``(n,)`` or a mask ``(N,)`` of images, from a tensor, an array or a list."""
    given = _tensor(index, "index", name)
    if given.ndim != 1 or given.is_floating_point() or given.is_complex():
        raise KdsecError(
            f"{name}: index {given.dtype} {tuple(given.shape)} selects no images; give a slice, positions "
            "(n,) or a mask (N,)"
        )
    return given


def _whole(labels: Tensor, name: str, wanted: str) -> Tensor:
    if labels.is_floating_point():
        whole = labels.isfinite() & (labels.abs() < LARGEST_LABEL) & (labels == labels.round())
        if not bool(whole.all()):
            raise KdsecError(
                f"{name}: label {labels[~whole][0].item():g} is not a whole number; give {wanted}"
            )
    return labels.long()


def as_classes(classes: Any, name: str) -> tuple[str, ...]:
    """Class names as a tuple of strings.

    Raises:
        KdsecError: a number, one string, nothing, or names that are not strings.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray) or not len(classes):
        raise KdsecError(
            f"{name}: classes={classes!r} must be the names of the classes, e.g. tuple(map(str, range(10)))"
        )
    names = tuple(classes)
    if not all(isinstance(each, str) for each in names):
        raise KdsecError(f"{name}: classes {names[:3]} must be strings; tuple(map(str, ...)) makes them so")
    return tuple(map(str, names))


def _tensor(value: Any, kind: str, name: str) -> Tensor:
    """A dense tensor of numbers, without a copy where possible."""
    if isinstance(value, Tensor):
        if value.is_nested or value.is_meta:
            raise KdsecError(f"{name}: {kind} are a nested tensor or one without data; give a plain tensor")
        if value.layout != torch.strided or value.is_quantized:
            raise KdsecError(
                f"{name}: {kind} are a sparse or quantised tensor; .to_dense() or .dequantize() it"
            )
        return _narrow(value, kind, name)
    if isinstance(value, torch.utils.data.DataLoader):
        raise _conversion(f"{kind} are a DataLoader", "loader.dataset")
    if isinstance(value, torch.utils.data.Dataset):
        raise _conversion(f"{kind} are a {type(value).__name__}", "dataset")
    if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        return _stacked(value, kind, name)
    try:
        array = np.ascontiguousarray(value)
    except Exception as error:  # whatever a foreign object raises when it is asked for an array
        raise KdsecError(f"{name}: {kind} cannot be read as an array ({type(error).__name__})") from None
    if array.dtype.kind not in "buifc":
        raise KdsecError(
            f"{name}: {kind} are {type(value).__name__} of {array.dtype}, not numbers of one shape; "
            "give a tensor or a numpy array"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return _narrow(tensor, kind, name)


def _narrow(tensor: Tensor, kind: str, name: str) -> Tensor:
    """Types in which torch computes little as int64."""
    if tensor.dtype not in WIDE:
        return tensor
    narrow = tensor.long()
    if bool((narrow < 0).any()):
        raise KdsecError(f"{name}: {kind} hold numbers of 2^63 or more, and torch counts no further")
    return narrow


def _stacked(parts: Sequence[Tensor], kind: str, name: str) -> Tensor:
    if len({(part.shape, part.dtype, part.device) for part in parts}) > 1:
        raise KdsecError(f"{name}: {kind} are tensors that differ in shape, type or device; make them equal")
    return torch.stack(list(parts))


def _conversion(what: str, argument: str) -> KdsecError:
    return KdsecError(
        f"{what}, not a tensor; ImageSet.from_dataset({argument}, classes=[...], name='...') converts it"
    )


def _check_shape(pixels: Tensor, name: str) -> None:
    shape = tuple(pixels.shape)
    if pixels.ndim == 3:
        raise KdsecError(f"{name}: images {shape} have no channels; images[:, None] makes (N, 1, H, W)")
    if pixels.ndim != 4 or 0 in shape[1:]:
        raise KdsecError(f"{name}: images {shape} do not fit; give (N, C, H, W)")
    if shape[1] not in CHANNELS and shape[3] in CHANNELS:
        raise KdsecError(
            f"{name}: images {shape} have their channels last; transpose them to (N, C, H, W): "
            "numpy images.transpose(0, 3, 1, 2), torch images.permute(0, 3, 1, 2)"
        )


def _range(values: Tensor) -> tuple[float, float]:
    """Least and largest value (nan if there is one); (0, 0) of nothing."""
    if not values.numel():
        return 0.0, 0.0
    low, high = values.aminmax()
    return low.item(), high.item()


def _unit_range(pixels: Tensor, name: str) -> Tensor:
    """``pixels`` if they are in [0, 1]; rounding errors are clamped."""
    low, high = _range(pixels)
    if 0 <= low <= high <= 1:
        return pixels
    if -ROUNDING <= low <= high <= 1 + ROUNDING:
        return pixels.clamp(0, 1)
    advice = "they must be finite"
    if 1 < high <= 255 and low >= 0:
        advice = "divide by 255"
    elif -1 - ROUNDING <= low < 0 and high <= 1 + ROUNDING:
        advice = "if they span [-1, 1], take (images + 1) / 2"
    elif np.isfinite([low, high]).all():
        advice = "leave mean and standard deviation to the model, which normalises inside"
    raise KdsecError(f"{name}: float images span {low:g}..{high:g}, not [0, 1]; {advice}")


def _from_one_hot(rows: Tensor, name: str) -> Tensor:
    is_one_hot = ((rows == 0) | (rows == 1)).all(1) & (rows.float().sum(1) == 1)
    if not bool(is_one_hot.all()):
        bad = int((~is_one_hot).nonzero()[0])
        raise KdsecError(
            f"{name}: row {bad} of the labels is not one-hot; class numbers labels.argmax(1) can be used, "
            "soft labels need a loss of their own"
        )
    return rows.float().argmax(1)
