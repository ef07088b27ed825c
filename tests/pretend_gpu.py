"""A GPU that is not there: tensors that say they are on ``cuda``, compute on the CPU, and refuse mix-ups.

PyTorch's own fake tensors (``FakeTensorMode``) have a device and no values: code that looks at a value stops
there, and where there is no GPU they have no backward pass either. Here a tensor "on the GPU" is an ordinary
one of the class ``OnGPU``, so that networks, trainings and attacks run to their end. Every call of a function
of PyTorch is looked at first, and refused if a GPU would refuse it: tensors of two devices, an index on the
GPU into a tensor on the CPU, a generator of the CPU that draws for the GPU, a numpy array of what is there.

Not seen is what PyTorch does inside a function, and Python code that runs in a backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
# Tensors of two devices may meet in these: the result is where the first one is.
FREE = {Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__, torch.tensor, torch.as_tensor}
PLACE = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}
TOGETHER = {torch.cat, torch.stack}  # take no number from elsewhere


class MixedDevices(RuntimeError):
    """What a GPU would refuse."""


class OnGPU(Tensor):
    """A tensor that says it is on the GPU."""


class _Watch(TorchFunctionMode):
    """Looks at every call of a function of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = list(args), dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return _called(func, args, kwargs)


def _called(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call, on the right device."""
    if func in PLACE and isinstance(args[0], OnGPU):
        return PLACE[func]
    if func is Tensor.__deepcopy__:
        return _copied(*args)
    if func is Tensor.numpy or func is Tensor.__array__:
        _refuse(isinstance(args[0], OnGPU), func, "numpy arrays are on the CPU; copy with .cpu() first")
    place = _wanted(func, args, kwargs)
    if place is None:
        place = _common(func, args, kwargs)
    elif func is Tensor.cuda or func is Tensor.cpu:
        return _moved(args[0], place)
    elif func is Tensor.to or func is torch.as_tensor:
        return _moved(func(*args, **kwargs), place)
    drawn = kwargs.get("generator") is not None
    _refuse(drawn and place, func, "a generator of the CPU draws for the GPU")
    found = func(*args, **kwargs)
    return _on_gpu(found) if place else found


def _wanted(func: Any, args: list[Any], kwargs: dict[str, Any]) -> bool | None:
    """Whether the call asks for the GPU; None if it names no device. The arguments then name the CPU."""
    if func in (Tensor.cpu, Tensor.cuda):
        return func is Tensor.cuda
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"]).type != "cpu"
        kwargs["device"] = torch.device("cpu")
        return asked
    if func is Tensor.to:
        for place, value in [*enumerate(args[1:], 1), *kwargs.items()]:
            if isinstance(value, str | torch.device):
                args[place] = torch.device("cpu")
                return torch.device(value).type != "cpu"
            if isinstance(value, Tensor):
                return isinstance(value, OnGPU)
    return None


def _common(func: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the tensors that are given lie on the GPU; refused if only some do."""
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index = list(_tensors(args[1]))
        _refuse(
            not isinstance(args[0], OnGPU) and _any(index), func, "an index on the GPU, a tensor on the CPU"
        )
        if func is Tensor.__setitem__ and index and isinstance(args[2], Tensor):
            _common(Tensor.add, [args[0], args[2]], {})
    if func in FREE:
        return isinstance(args[0], OnGPU)
    tensors = list(_tensors([args, kwargs]))
    there = _any(tensors)
    # A number, a tensor without dimensions, may come from the CPU.
    here = any(not isinstance(each, OnGPU) and (each.ndim or func in TOGETHER) for each in tensors)
    _refuse(there and here, func, "tensors on the GPU and on the CPU")
    return there


def _refuse(wrong: Any, func: Any, why: str) -> None:
    if wrong:
        raise MixedDevices(f"{getattr(func, '__name__', func)}: {why}")


def _any(tensors: Iterable[Tensor]) -> bool:
    return any(isinstance(each, OnGPU) for each in tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _on_gpu(found: Any) -> Any:
    """A result, with every tensor in it on the GPU."""
    if isinstance(found, Tensor):
        if isinstance(found, OnGPU):
            return found
        if found.requires_grad and found.is_leaf:
            return found.detach().as_subclass(OnGPU).requires_grad_()
        return found.as_subclass(OnGPU)
    if isinstance(found, tuple) and hasattr(found, "n_fields"):  # values and indices of max, for instance
        return type(found)([_on_gpu(each) for each in found])
    if isinstance(found, list | tuple):
        return type(found)(_on_gpu(each) for each in found)
    return map(_on_gpu, found) if isinstance(found, Iterator) else found


def _moved(found: Tensor, place: bool) -> Tensor:
    """A tensor on the device asked for: itself, or a copy if it is on the other."""
    if isinstance(found, OnGPU) == place:
        return found
    return found.clone().as_subclass(OnGPU) if place else found.clone()


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        copy = tensor.detach().clone()
        copy = copy.as_subclass(OnGPU) if isinstance(tensor, OnGPU) else copy
        if isinstance(tensor, nn.Parameter):
            copy._is_param = True  # how PyTorch marks parameters of other classes
        memo[id(tensor)] = copy.requires_grad_(tensor.requires_grad)
    copied: Tensor = memo[id(tensor)]
    return copied


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` that gives a moved network new parameters: their class tells where they are."""
    for child in module.children():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = change(parameter)
            if changed is not parameter:
                module._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextlib.contextmanager
def _fork_rng(*_: Any, **__: Any) -> Iterator[None]:
    """``torch.random.fork_rng`` without the GPU's generators: all is drawn on the CPU."""
    state = torch.random.default_generator.get_state()
    yield
    torch.random.default_generator.set_state(state)


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Inside, ``.to("cuda")`` gives tensors that behave as if they were on a GPU."""
    with (
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(torch.random, "fork_rng", _fork_rng),
        mock.patch.object(torch.cuda, "get_rng_state", lambda *_: torch.zeros(1, dtype=torch.uint8)),
        _Watch(),
    ):
        yield
