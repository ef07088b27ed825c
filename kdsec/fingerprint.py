"""Content fingerprints: the same inputs give the same short hash, in every process and on every day.

The cache uses them to know whether a trained model can be reused, the runner to know whether a record is
still what the code would produce. A fingerprint covers *content*: the weights of a network, the pixels of
a set, the fields of a recipe, the source text of a function, never a name or a date.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kdsec.errors import KdsecError
from kdsec.imports import imported_files

METHODS = ("kdsec.attacks", "kdsec.defenses")


def fingerprint(value: Any) -> str:
    """Hash ``value`` to 16 hex digits.

    Understands None, bool, int, float, str, bytes, paths, tensors, devices, dtypes, modules (architecture and
    state), image sets, dataclasses, mappings, sequences, ``functools.partial`` and plain functions (by their
    source text).

    Raises:
        KdsecError: the value has no stable content, a lambda with captured variables for instance.
    """
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:16]


def source_fingerprint(*paths: pathlib.Path) -> str:
    """Hash the source text of files, and of all ``.py`` files in folders, order not mattering."""
    files: set[pathlib.Path] = set()
    for path in paths:
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    texts = sorted((file.name, file.read_text(encoding="utf-8")) for file in files)
    return fingerprint(texts)


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield a type tag and the content of ``value``, so that 1, 1.0, True and "1" all differ."""
    yield type(value).__name__.encode()
    match value:
        case None | bool() | int() | float() | str() | torch.dtype() | torch.device() | pathlib.PurePath():
            yield repr(value).encode()
        case bytes():
            yield value
        case torch.Tensor():
            yield from _tensor(value)
        case _ if isinstance(getattr(value, "checksum", None), str):
            yield value.checksum.encode()  # image sets know theirs already
        case torch.nn.Module():
            yield str(value).encode()  # the printed architecture: layer types and their settings
            for kind in sorted({type(layer) for layer in value.modules()}, key=lambda kind: kind.__name__):
                if not kind.__module__.startswith(("torch.", "kdsec.models.")):
                    yield _class_source(kind).encode()
            for name, tensor in value.state_dict().items():
                yield name.encode()
                yield from _tensor(tensor)
        case functools.partial():
            yield from _pieces([value.func, value.args, value.keywords])
        case Mapping():
            for key in sorted(value, key=repr):
                yield from _pieces(key)
                yield from _pieces(value[key])
        case list() | tuple():
            yield str(len(value)).encode()
            for item in value:
                yield from _pieces(item)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield _class_source(type(value)).encode()
            for field in dataclasses.fields(value):
                yield from _pieces(getattr(value, field.name))
        case types.FunctionType():
            yield from _function(value)
        case types.BuiltinFunctionType() | type():
            yield f"{value.__module__}.{value.__qualname__}".encode()
        case _:
            raise KdsecError(
                f"no stable fingerprint for a {type(value).__name__}; pass a dataclass, a tensor or a number"
            )


def _tensor(tensor: torch.Tensor) -> Iterator[bytes]:
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _function(function: types.FunctionType) -> Iterator[bytes]:
    if function.__closure__:
        raise KdsecError(
            f"no stable fingerprint for {function.__qualname__}, which captures variables; "
            "use a frozen dataclass with a __call__ method or functools.partial"
        )
    yield (_method_source(function) or inspect.getsource(function)).encode()


def _method_source(item: type | types.FunctionType) -> str:
    """Hash of a method's module and of what it imports from other methods; empty outside ``METHODS``.

    The classes and functions of these modules lean on others beside them.
    """
    if ".".join(item.__module__.split(".")[:2]) not in METHODS:
        return ""
    module = pathlib.Path(inspect.getfile(item))
    code = module.read_text(encoding="utf-8")
    others = {file for name in METHODS for file in imported_files(code, within=name.split(".")[1])}
    return source_fingerprint(module, *others)


def _class_source(kind: type) -> str:
    """What a class does: its source text, or that of its methods where it was typed into a notebook cell."""
    if source := _method_source(kind):
        return source
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        methods = [item for item in vars(kind).values() if isinstance(item, types.FunctionType)]
        return "\n".join(inspect.getsource(method) for method in methods if _typed(method))


def _typed(method: types.FunctionType) -> bool:
    """False for the methods that the dataclass decorator generates, which have no source."""
    return inspect.unwrap(method).__code__.co_filename != "<string>"
