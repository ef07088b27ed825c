"""What enters the public functions: each kind of argument is looked at in one place.

``@checked`` on a function or a class looks at its arguments before anything runs. The kind of an argument
follows from its annotation and, for tensors and numbers, from its name, which means the same everywhere:
``images``, ``labels``, ``logits``, ``seed``, ``temperature``, ... What has one meaning is converted (numpy
arrays, other number types); anything else is refused in one line that says what is allowed.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError, check_number

Entry = TypeVar("Entry", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]

IMAGES = {"images", "sources", "targets", "originals", "overlays", "disturbed"}
LABELS = {"labels", "source_labels", "target_labels", "positive", "target", "groups"}
LOGITS = {"logits", "student", "teacher", "served", "honest", "protected", "control"}
NUMBERS = {
    "features": 2,
    "clean": 2,
    "scores": 1,
    "high": 1,
    "low": 1,
}  # and of how many dimensions
# What has as many rows as there are labels; groups belong to features, labels to the clean ones beside them.
ROWS = {"groups": ("features",)}
ROWS_OF_LABELS = ("clean", "images", "sources", "logits", "student", "served", "first")
# How torch begins to say that shapes, or a label and the number of classes, do not fit.
MISFIT = re.compile(
    r"cannot be multiplied|expected input.* to have|greater than actual input|size mismatch|must match the s|"
    r"too small|Expected more than 1|Expected (3D|4D|2D)|should contain|normalized_shape|invalid for input|"
    r"out of bounds|out of range|not compatible|Sizes of tensors|shape mismatch|inconsistent numbers|"
    r"doesn't match|Class values must be|solver failed|Incompatible shapes"
)
# Bounds that a number has wherever it is given; other bounds are checked where they are used.
BOUNDS: dict[str, dict[str, float]] = {
    "seed": {"least": 0, "below": 2**32},
    "temperature": {"above": 0},
    "alpha": {"least": 0, "most": 1},
    "smoothing": {"least": 0, "below": 1},
    "wanted": {"above": 0, "most": 1},
    "rho": {"least": 0, "below": 1},
    **{name: {"least": 0, "most": 1} for name in ("accuracy", "undefended", "loss")},
    **{name: {"least": 0} for name in ("ridge", "tolerance", "needed")},
    **{name: {"least": 1} for name in ("batch_size", "draws", "blends", "components", "window")},
    "num_classes": {"most": 10**6},
    **{name: {"least": 1, "most": 10**6} for name in ("classes", "bins")},
}


def checked(
    entry: Entry | None = None, *, labelled: Iterable[str] = (), some: Iterable[str] = (), values: bool = True
) -> Any:  # the decorated function or class itself, or a decorator
    """Look at all arguments of a function, or of a class when it is made.

    Args:
        entry: what is decorated.
        labelled: names of image sets in which every image must have a label, and there must be some.
        some: names of images or sets that must not be empty.
        values: look at the numbers in logits and labels too; not where a training or an attack calls it in
            each step.
    """
    if entry is None:
        return functools.partial(checked, labelled=labelled, some=some, values=values)
    if isinstance(entry, type):
        made: Any = entry
        made.__init__ = _checked(made.__init__, (), (), values)
        return made
    return _checked(entry, tuple(labelled), tuple(some), values)


def _checked(function: Any, labelled: tuple[str, ...], some: tuple[str, ...], values: bool) -> Any:
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | options
        checks = _checks(function, values)
        for name, value in given.items():
            if name in checks:
                given[name] = checks[name](name, value)
        _check_together(given, checks, values)
        for name in some:
            if name in given and not len(given[name]):
                raise KdsecError(f"{name} is empty; give at least one")
        for name in labelled:
            _check_labelled(given.get(name))
        kept = len(args)
        positional = [given[name] for name in names[:kept]] + list(args[len(names) :])
        try:
            return function(*positional, **{name: given[name] for name in options})
        except (RuntimeError, ValueError, IndexError) as error:
            if "alloc" in str(error) and not isinstance(error, torch.OutOfMemoryError):
                raise KdsecError(f"{_name(function)}: not enough memory for a setting this large") from error
            if isinstance(error, torch.OutOfMemoryError) or not MISFIT.search(str(error)):
                raise
            raise KdsecError(_misfit(_name(function), given, str(error))) from error

    return wrapper


@functools.lru_cache(maxsize=1024)
def _checks(function: Any, values: bool) -> dict[str, Check]:
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    found = {name: _check_of(name, hint, defaults.get(name), values) for name, hint in hints.items()}
    return {name: check for name, check in found.items() if check is not None}


def _check_of(name: str, hint: Any, default: Any, values: bool) -> Check | None:
    """The check for one parameter; None where its annotation says too little."""
    hint = hint.__bound__ if isinstance(hint, TypeVar) else hint
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    wanted = [each for each in options if each is not type(None)]
    if name == "shape" and hint is not torch.Size:
        return _shape
    if not all(isinstance(each, type) and typing.get_origin(each) is None for each in wanted):
        return None
    check = _check_of_class(name, wanted, default, values)
    if check is None:
        return None
    may_be_none = len(wanted) < len(options)
    return lambda label, value: value if value is None and may_be_none else check(label, value)


def _check_of_class(name: str, wanted: list[type], default: Any, values: bool) -> Check | None:
    if Tensor in wanted and name in IMAGES:
        return functools.partial(_images, sets=len(wanted) > 1)
    if wanted == [Tensor] and name in LABELS:
        return functools.partial(_labels, values=values)
    if wanted == [Tensor] and name in LOGITS:
        return functools.partial(_logits, values=values)
    if wanted == [Tensor] and name in NUMBERS:
        return _finite
    if wanted in ([int], [float]):
        return functools.partial(_number, whole=wanted == [int], infinite=default == math.inf)
    others = tuple(kind for kind in wanted if kind not in (int, float))
    if len(others) < len(wanted):
        return lambda label, value: value if isinstance(value, others) else _number(label, value)
    if wanted == [str]:
        return _text
    if str in wanted or object in wanted or getattr(wanted[0], "_is_protocol", False):
        return None
    return functools.partial(_instance, kinds=tuple(wanted))


def _name(function: Any) -> str:
    """As a user knows it: a class by its name."""
    return str(function.__qualname__.removesuffix(".__call__").removesuffix(".__init__"))


def _misfit(name: str, given: dict[str, Any], said: str) -> str:
    shapes = [
        f"{each} {tuple(value.shape)}"
        for each, value in given.items()
        if isinstance(getattr(value, "shape", 0), tuple)
    ]
    return (
        f"{name}: what was given does not fit together ({', '.join(shapes) or 'no tensors'}; torch says: "
        f"{said.splitlines()[0][:100]}); a network must be built for the shape and the classes of its images"
    )


# Kinds


def _number(name: str, value: Any, whole: bool = False, infinite: bool = False) -> Any:
    if infinite and value == math.inf:
        return value
    check_number(name, value, whole=whole, **BOUNDS.get(name, {}))
    return value if whole or abs(value) < 2**31 else float(value)  # torch takes no larger whole number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):  # names are compared with a list where they are used
        raise KdsecError(f"{name} is {_described(value)}; it must be a string")
    return value


def _images(name: str, value: Any, sets: bool) -> Any:
    """Bytes, or float32 in [0, 1]; an image set's were looked at when it was made."""
    from kdsec.data import ImageSet  # here, as what is below uses this module too
    from kdsec.data.convert import as_images

    if isinstance(value, ImageSet):
        return value if sets else value.images
    return as_images(value, name)


def _labels(name: str, value: Any, values: bool) -> Tensor:
    from kdsec.data.convert import UNLABELLED, as_whole

    labels = as_whole(value, name)
    if values and len(labels) and int(labels.min()) < 0:
        missing = "images without one" if int(labels.min()) == UNLABELLED else "negative ones"
        raise KdsecError(f"{name} must be one label an image, a class number from 0 up; got {missing}")
    return labels


def _logits(name: str, value: Any, values: bool) -> Tensor:
    from kdsec.logits import as_logits

    rows = torch.from_numpy(value) if type(value).__module__ == "numpy" else value
    if isinstance(rows, Tensor) and not (rows.is_floating_point() or rows.is_complex()):
        rows = rows.float()
    try:
        return as_logits(rows, len(rows) if isinstance(rows, Tensor) and rows.ndim else 0, values=values)
    except KdsecError as error:
        raise KdsecError(f"{name}: {error}") from None


def _finite(name: str, value: Any) -> Tensor:
    rows = torch.from_numpy(value) if type(value).__module__ == "numpy" else value
    is_real = isinstance(rows, Tensor) and rows.ndim == NUMBERS[name] and not rows.is_complex()
    if not is_real or not bool(rows.isfinite().all()):
        form = "(N, width)" if NUMBERS[name] == 2 else "(N,)"
        raise KdsecError(f"{name} must be a tensor {form} of finite numbers, not {_described(value)}")
    return rows if rows.is_floating_point() else rows.float()


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} with {'other' if value.isnan().any() else 'such'} values"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, typing.Sequence) and not isinstance(value, str) else ()
    if len(sizes) != 3 or not all(type(size) is int and size >= 1 for size in sizes):
        raise KdsecError(f"{name}={value!r} must be (channels, height, width), whole numbers from 1 up")
    return sizes


def _instance(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if isinstance(value, kinds) or _is_network(value, kinds[0]):
        return value
    wanted = " or ".join(kind.__name__ for kind in kinds)
    hint = ""
    if isinstance(value, type) and issubclass(value, kinds):
        hint = "; give an instance of it"
    elif issubclass(kinds[0], nn.Module):
        hint = _about_networks(value, kinds[0])
    elif kinds[0].__name__ == "ImageSet":
        hint = "; ImageSet(images, labels, classes) or ImageSet.from_dataset(...) makes one"
    raise KdsecError(
        f"{name} is {_described(value)}, not {'an' if wanted[0] in 'AEIOU' else 'a'} {wanted}{hint}"
    )


def _is_network(value: Any, kind: type) -> bool:
    """Any network where one of this package is asked for: what it lacks is told where it is needed."""
    return isinstance(value, nn.Module) and kind.__name__ == "Classifier"


def _about_networks(value: Any, kind: type) -> str:
    if kind.__name__ == "LayeredClassifier" and isinstance(value, nn.Module):
        return "; kdsec.layered.flatten_layers(network) makes one of a network of kdsec.models"
    if callable(value) and not isinstance(value, type):
        return "; kdsec.models.wrapping.wrap(function, num_classes) makes one of a function"
    return ", which is a network"


# Arguments that must fit each other


def _check_together(given: dict[str, Any], checks: dict[str, Check], values: bool) -> None:
    """As many labels as images or rows, and no label beyond the classes."""
    for name in LABELS & given.keys() & checks.keys():
        labels = given[name]
        beside = next(
            (each for each in ROWS.get(name, ROWS_OF_LABELS) if isinstance(given.get(each), Tensor)), ""
        )
        if not isinstance(labels, Tensor) or not beside:
            continue
        rows = given[beside]
        if len(labels) != len(rows):
            raise KdsecError(f"{len(labels)} {name} for {len(rows)} {beside}; give one label an image, (N,)")
        largest = int(labels.max()) if values and beside in LOGITS and len(labels) else -1
        if largest >= (rows.shape[1] if rows.ndim > 1 else 1):
            raise KdsecError(f"{name} up to {largest} and {rows.shape[1]} classes do not fit")


def _check_labelled(data: Any) -> None:
    from kdsec.data import UNLABELLED, ImageSet

    if isinstance(data, ImageSet):
        unknown = int((data.labels == UNLABELLED).sum())
        if unknown or not len(data):
            raise KdsecError(
                f"{unknown} of the {len(data)} images of {data.name} have no label; give some images here, "
                "and a label for each"
            )
