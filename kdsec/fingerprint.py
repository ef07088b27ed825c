"""Content fingerprints: equal content gives the same short hash, in every process.

The cache uses them to decide whether a trained model can be reused, the runner to decide whether a record is
still what the code would produce. A fingerprint covers everything that can change a result: the attributes of
an object, nested to any depth; tensors; the code of functions and classes with what they capture and which
globals they read. What cannot be read raises an error that names it. Names of files and dates do not count.
"""

from __future__ import annotations

import ast
import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import pathlib
import pickle
import re
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError

PACKAGE = pathlib.Path(__file__).parent
# Excluded from every key and recipe, as it computes nothing in a run: code that starts or watches runs, or
# refuses settings,
DRIVERS = (
    *("__init__.py", "__main__.py", "cli.py", "runner.py", "planning.py", "notebook.py"),
    "config/checks.py",
)
# and code that draws what they recorded.
DRAWING = (
    *("exercises", "report/panels", "report/claims.py", "report/interactive.py", "report/plots.py"),
    *(
        "report/quote.py",
        "report/scoreboard.py",
        "report/statistics.py",
        "report/tables.py",
        "report/text.py",
    ),
    "report/verdicts.py",
)

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, type(...))
_HOOKS = [name for name in vars(nn.Module()) if "_hooks" in name]
_GENERATED = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_NUMBERED = (nn.Module, nn.Parameter, torch.Generator, types.FunctionType, types.ModuleType, type)
# What Python itself keeps in a class, beside what its author wrote there.
_BOOKKEEPING = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__annotations__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__", "__type_params__", "__parameters__"),
    *("__orig_bases__", "__match_args__", "__dataclass_fields__", "__dataclass_params__", "_abc_impl"),
    *("__abstractmethods__", "__firstlineno__", "__static_attributes__", "__protocol_attrs__"),
    "__non_callable_proto_members__",
}
_LOOKUPS = (globals, eval, exec)  # by these, code reads names that do not show in it


def fingerprint(value: Any) -> str:
    """Hash ``value`` to 16 hex digits.

    Raises:
        KdsecError: a part has no content that can be read (a lock, an open file, a running generator); names
            the attribute path to it.
    """
    walk = _Walk(type(value).__name__)
    try:
        walk.read(value)
    except RecursionError:
        raise KdsecError(f"no stable fingerprint for {walk.where[0]}: it is nested too deeply") from None
    return walk.digest.hexdigest()[:16]


def source_fingerprint(*paths: pathlib.Path) -> str:
    """Hash of the text of files, and of all ``.py`` files in folders; their order does not matter."""
    files: set[pathlib.Path] = set()
    for path in paths:
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return fingerprint(sorted((file.name, file.read_text(encoding="utf-8")) for file in files))


def source_dependencies(code: str) -> set[pathlib.Path]:
    """The package's files that ``code`` imports, directly or through others, without those that are excluded.

    Imports inside functions count; names put together while running (``importlib``) are not seen.
    """
    found: set[pathlib.Path] = set()
    waiting = [code]
    while waiting:
        for name in _imports(waiting.pop()):
            for file in set(_files(name)) - found:
                if not _is_excluded(file):
                    found.add(file)
                    waiting.append(file.read_text(encoding="utf-8"))
    return found


def without_commands(code: str) -> str:
    """A cell's code as plain Python: IPython's commands (``%`` and ``!``) become ``pass``."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)


@functools.lru_cache(maxsize=512)
def _imports(code: str) -> tuple[str, ...]:
    """Dotted names below kdsec; ``from kdsec.data import load`` names both kdsec.data and kdsec.data.load."""
    names: list[str] = []
    try:
        tree = ast.parse(without_commands(code))
    except SyntaxError:
        return ()  # it will not run either
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.partition(".")[0] == PACKAGE.name)


@functools.cache
def _is_excluded(file: pathlib.Path) -> bool:
    excluded = {PACKAGE / name for name in (*DRIVERS, *DRAWING)}
    return not excluded.isdisjoint((file, *file.parents))


@functools.cache
def _files(name: str) -> tuple[pathlib.Path, ...]:
    """The file of a module and the ``__init__`` files above it; for a name in a module, what is above."""
    path, candidates = PACKAGE, []
    for part in name.split(".")[1:]:
        candidates.append(path / "__init__.py")
        path = path / part
    candidates += [path.with_suffix(".py"), path / "__init__.py"]
    return tuple(file for file in candidates if file.is_file())


class _Walk:
    """One pass over a value.

    Attributes:
        digest: of all pieces read so far.
        where: the attribute path to the part being read.
        numbers: functions, classes, networks, parameters and generators in the order in which they were met.
            Meeting one again gives its number: sharing a layer is not the same as having two equal ones.
        open: containers and objects around the part being read, for cycles.
    """

    def __init__(self, root: str) -> None:
        self.digest = hashlib.sha256()
        self.where = [root]
        self.numbers: dict[int, tuple[int, object]] = {}  # the object too: a freed one would lend its id
        self.open: list[object] = []

    def write(self, *pieces: Any) -> None:
        for piece in pieces:
            data: Any = piece if isinstance(piece, bytes | np.ndarray) else str(piece).encode()
            self.digest.update(len(data).to_bytes(8, "little"))
            self.digest.update(data)

    def fail(self, kind: str) -> NoReturn:
        raise KdsecError(
            f"no stable fingerprint for {''.join(self.where)}, a {kind}; "
            "keep plain values, tensors, functions or networks there"
        )

    def read(self, value: Any, step: str = "") -> None:
        """Add the type and the content of ``value``, so that 1, 1.0, True and "1" all differ."""
        if number := self.numbers.get(id(value)):
            return self.write("seen", number[0])
        self.write(type(value).__name__)
        if type(value) in _PLAIN or isinstance(value, pathlib.PurePath):
            return self.write(repr(value))
        if type(value) is bytes:
            return self.write(value)
        if any(value is each for each in self.open):
            depth = next(depth for depth, each in enumerate(self.open) if each is value)
            return self.write("inside", depth)
        self.where.append(step)
        self.open.append(value)
        if isinstance(value, _NUMBERED):
            self.numbers[id(value)] = len(self.numbers), value
        self.content(value)
        self.open.pop()
        self.where.pop()

    def content(self, value: Any) -> None:
        match value:
            case Tensor():
                self.tensor(value)
            case np.ndarray() | np.generic() if (
                type(value).__module__ == "numpy" and not value.dtype.hasobject
            ):
                self.write(value.dtype.descr, value.shape, np.ascontiguousarray(value).tobytes())
            case nn.Module():
                self.network(value)
            case torch.Generator():
                self.read(value.get_state())
            case types.FunctionType():
                self.function(value)
            case type():
                self.kind(value)
            case types.ModuleType():
                self.module(value)
            case types.CodeType():
                self.code(value)
            case dict() | types.MappingProxyType() if type(value) in (dict, types.MappingProxyType):
                for key, item in value.items():
                    self.read(key)
                    self.read(item, f"[{key!r:.40}]")
            case list() | tuple() if type(value) in (list, tuple):
                self.write(len(value))
                for index, item in enumerate(value):
                    self.read(item, f"[{index}]")
            case set() | frozenset():  # in an order that differs between processes
                self.write(*sorted(map(fingerprint, value)))
                if type(value) not in (set, frozenset):
                    self.read(type(value))
                    self.attributes(vars(value), value)
            case functools.partial():
                self.read([value.func, value.args])
                self.attributes(value.keywords, value)
            case types.MethodType():
                self.read(value.__func__, ".__func__")
                self.read(value.__self__, ".__self__")
            case types.BuiltinFunctionType():
                self.write(value.__module__, value.__qualname__)
                if not isinstance(value.__self__, types.ModuleType | type | None):
                    self.read(value.__self__, ".__self__")
            case staticmethod() | classmethod():
                self.read(value.__func__)
            case property():
                self.read([value.fget, value.fset, value.fdel])
            case functools.cached_property():
                self.read(value.func)
            case weakref.ref():
                self.read(value(), "()")
            case enum.Enum():
                self.read(type(value))
                self.read([value.name, value.value])
            case _ if _own_checksum(value):
                self.write(value.checksum)
                if not _package_name(type(value).__module__):  # somebody's own kind of image set
                    self.read(type(value))
                    self.attributes(vars(value), value)
            case _:
                self.instance(value)

    def tensor(self, tensor: Tensor) -> None:
        """Type, shape, numbers; whether it is trained; what was set on it. Not its memory layout."""
        plain = tensor.detach()
        try:
            flat = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            self.write(f"{tensor.dtype}{tuple(tensor.shape)}", flat.numpy())
        except (RuntimeError, TypeError, NotImplementedError):
            self.fail(f"{tensor.layout} tensor on {tensor.device}")
        if tensor.requires_grad:
            self.write("requires_grad")
        if own := {
            **vars(tensor),
            **({"hooks": [*hooks.values()]} if (hooks := tensor._backward_hooks) else {}),
        }:
            self.attributes(own, tensor)

    def network(self, network: nn.Module) -> None:
        """All of ``__dict__``: layers in order, parameters, all buffers, modes, hooks, plain attributes."""
        self.read(type(network))
        state = dict(vars(network))
        hooks = {name: state.pop(name) for name in _HOOKS if name in state}
        ranks = {
            key: rank for rank, key in enumerate(sorted({key for each in hooks.values() for key in each}))
        }
        for name, registered in hooks.items():  # under numbers that count all hooks of the process
            for key, hook in registered.items():
                self.write(name, ranks[key])
                self.read(hook, f".{name}")
        for name in ("_parameters", "_buffers", "_modules"):
            for key, item in state.pop(name, {}).items():
                self.write(key)
                self.read(item, f".{key}")
        self.attributes(state, network)

    def instance(self, value: Any) -> None:
        """Any other object: its class, what ``pickle`` would need to build an equal one, its attributes."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception:
            reduced = None
        if reduced is None or type(value) is object:
            self.fail(type(value).__name__)
        self.read(type(value))
        if isinstance(reduced, str):  # found by its name, where a library has it under that name
            self.write(reduced)
            home = pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]  # unknown to typeshed
            if not hasattr(value, "__dict__") and not _library_version(home):
                self.fail(type(value).__name__)
            return self.attributes(getattr(value, "__dict__", {}), value)
        maker, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        self.read(maker)
        self.read(arguments)
        parts = state if isinstance(state, tuple) else (state,)
        named = [
            part for part in parts if isinstance(part, dict) and all(isinstance(key, str) for key in part)
        ]
        for part in parts:
            if any(part is each for each in named):
                self.attributes(part, value)
            else:
                self.read(part)
        self.read([*(items or ())])
        self.read([*(pairs or ())])
        if not _library(type(value)):  # what its author leaves out of a pickle counts too
            kept = {name: item for part in named for name, item in part.items()}
            own = _own_attributes(value).items()
            self.attributes({name: item for name, item in own if kept.get(name, kept) is not item}, value)

    def attributes(self, state: Mapping[str, Any], owner: object) -> None:
        """Values in the order of their names; without cached properties, which follow from the rest."""
        kind: Any = type(owner)
        derived = _cached_properties(kind)
        for name in sorted(state):
            if name not in derived:
                self.write(name)
                self.read(state[name], f".{name}")

    def function(self, function: types.FunctionType) -> None:
        """Code, captured values and defaults, and for code outside libraries the globals that it reads."""
        if version := _library(function):
            return self.write(version, function.__module__, function.__qualname__)
        home = _home(function)
        self.code(function.__code__, None if home else function.__globals__)
        if home and _package(home):
            self.read(home)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.read(cell.cell_contents, f".{name}")
            except ValueError:
                self.write("not yet set")
        self.read([function.__defaults__, function.__kwdefaults__], " defaults")
        self.attributes(vars(function), function)

    def code(self, code: types.CodeType, scope: dict[str, Any] | None = None) -> None:
        """Instructions, names and constants; where ``scope`` is given, the values of the globals used."""
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        self.write(code.co_code, code.co_exceptiontable, counts, names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant, scope)
            else:
                self.read(constant)
        for name, value in _globals_read(code, scope) if scope is not None else ():
            if any(value is each for each in _LOOKUPS):
                self.fail(f"function that reads names while it runs, by {name}()")
            self.write(name)
            self.read(value, f" global {name}")

    def kind(self, kind: type) -> None:
        """A class: by name from a library, by its files from this package, else all that it defines."""
        self.write(kind.__qualname__)
        if version := _library(kind):
            return self.write(version, kind.__module__)
        home = sys.modules.get(kind.__module__)
        if home and _package(home):
            self.read(home)
            return self.replaced(vars(kind))
        self.read([*kind.__bases__, type(kind)], " bases")
        generated = _GENERATED if "__dataclass_fields__" in vars(kind) else set()
        for name, member in sorted(vars(kind).items()):
            code = getattr(member, "__code__", None)
            if name in generated and code and code.co_filename == "<string>":
                continue
            if name not in _BOOKKEEPING and not isinstance(member, _DESCRIPTORS):
                self.write(name)
                self.read(member, f".{name}")

    def module(self, module: types.ModuleType) -> None:
        """A library by its version, this package by the files a module depends on, others by their text."""
        name = module.__name__
        if version := _library(module):
            return self.write(name, version)
        if not (file := getattr(module, "__file__", None)):
            return self.attributes(
                {key: value for key, value in vars(module).items() if not key.startswith("__")}, module
            )
        if _package(module):
            code, modules = _package_code(pathlib.Path(file))
            self.write(name, code)
            for each in modules:
                self.replaced(vars(sys.modules[each]) if each in sys.modules else {})
            return
        text = pathlib.Path(file).read_text(encoding="utf-8")
        self.write(name, text, source_fingerprint(*source_dependencies(text)))
        for key, value in sorted(vars(module).items()):  # as they are now: the text tells how they began
            if not key.startswith("__"):
                self.write(key)
                self.attempt(value, f".{key}")

    def attempt(self, value: Any, step: str) -> None:
        """Read ``value`` as far as it can be read."""
        depth = len(self.open)
        try:
            self.read(value, step)
        except KdsecError:
            del self.open[depth:], self.where[depth + 1 :]

    def replaced(self, namespace: Mapping[str, Any]) -> None:
        """What somebody has put in place of a part of this package while the program runs.

        Its functions and classes are in the key by their text; its constants as they are now.
        """
        for name, value in sorted(namespace.items()):
            if _is_foreign(value) or (_is_constant(value) and not name.startswith("__")):
                self.write(name)
                self.read(value, f" {name}")


def _is_constant(value: Any) -> bool:
    if type(value) in (tuple, list, frozenset):
        return all(map(_is_constant, value))
    if type(value) is dict:
        return all(_is_constant(each) for item in value.items() for each in item)
    return type(value) in (bool, int, float, str)


def _is_foreign(value: Any) -> bool:
    """Whether a function or class is neither of this package nor of a library."""
    if isinstance(value, types.FunctionType):
        return not _home(value)
    return isinstance(value, type) and not _package_name(value.__module__) and not _library(value)


def _own_attributes(value: Any) -> dict[str, Any]:
    """All attributes of an object of the user's, with those in slots."""
    slots = [
        name
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def _own_checksum(value: Any) -> bool:
    """Whether its class computes a checksum of its content, as image sets do."""
    found = inspect.getattr_static(type(value), "checksum", None)
    return isinstance(found, property | functools.cached_property)


@functools.lru_cache(maxsize=4096)
def _cached_properties(kind: type) -> frozenset[str]:
    """Names of the attributes of a class that follow from the others."""
    members = [item for each in kind.__mro__ for item in vars(each).items()]
    return frozenset(name for name, member in members if isinstance(member, functools.cached_property))


@functools.cache
def _package_code(file: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """Of a file of this package: a hash of it and all that it imports from here, and the modules' names.

    Read once in a process, like the code itself.
    """
    files = sorted({file, *source_dependencies(file.read_text(encoding="utf-8"))})
    names = (".".join(each.relative_to(PACKAGE.parent).with_suffix("").parts) for each in files)
    return source_fingerprint(*files), tuple(names)


def _package(module: types.ModuleType) -> bool:
    return _package_name(module.__name__)


def _package_name(name: str | None) -> bool:
    return (name or "").partition(".")[0] == PACKAGE.name


@functools.lru_cache(maxsize=4096)
def _library_version(name: str) -> str:
    """Version of the library that a module belongs to; empty for this package and for the user's code."""
    top = name.partition(".")[0]
    module, root = sys.modules.get(name), sys.modules.get(top)
    if module is None or top in ("", "__main__", "__mp_main__", PACKAGE.name):
        return ""
    file = getattr(module, "__file__", None)
    installed = {"site-packages", "dist-packages"} & set(pathlib.Path(file or "").parts)
    return f"{top} {getattr(root, '__version__', '')}" if installed or top in sys.stdlib_module_names else ""


def _library(item: Any) -> str:
    """Version of the library that ``item`` is found in by its name; empty if it is in none."""
    if isinstance(item, types.ModuleType):
        return _library_version(item.__name__)
    found: Any = sys.modules.get(item.__module__ or "")
    for part in item.__qualname__.split("."):
        found = inspect.getattr_static(found, part, None)
    return _library_version(item.__module__) if found is item else ""


def _home(function: types.FunctionType) -> types.ModuleType | None:
    """The module of this package or of a library that a function was written in; None for the user's own."""
    home = sys.modules.get(str(function.__globals__.get("__name__")))
    written_there = home is not None and vars(home) is function.__globals__
    return home if home and written_there and (_package(home) or _library(home)) else None


def _globals_read(code: types.CodeType, scope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names that code takes from outside, with their values; ``helper.f`` gives what ``f`` is."""
    name, value = "", None
    seen = {each.__name__: each for each in _LOOKUPS} | scope
    for step in [*dis.get_instructions(code), None]:
        of_users = isinstance(value, types.ModuleType) and not _package(value) and not _library(value)
        if step and name and of_users and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name, value = f"{name}.{step.argval}", getattr(value, step.argval, None)
            continue
        if name:
            yield name, value
        name = ""
        if step and step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in seen:
            name, value = step.argval, seen[step.argval]
        elif step and step.opname == "IMPORT_NAME":
            name, value = step.argval, _imported(step.argval, str(scope.get("__package__") or ""))


def _imported(name: str, package: str) -> types.ModuleType | None:
    """The module that ``import name`` gives in ``package``; None if there is none."""
    for candidate in (name, f"{package}.{name}"):
        try:
            return importlib.import_module(candidate)
        except ImportError:
            continue
    return None
