"""What an audit starts from: somebody's model as a function, and images, with or without labels.

Loading ``FILE.py`` runs it, and so does loading a ``.pt2`` or ``.pt`` file, which may hold code of any kind.
Nothing is sent anywhere, unless that code does so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsec.cache import what_it_is
from kdsec.data.convert import as_labels
from kdsec.data.imageset import ImageSet
from kdsec.data.npz import array_names
from kdsec.data.own import from_files, from_folder, from_npz
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.models import Normalize
from kdsec.train import evaluating

FORMS = "FILE.py:NAME, a torch.export file .pt2, or a TorchScript file .pt"


class Target(NamedTuple):
    """The model under audit.

    Attributes:
        call: float images ``(N, C, H, W)`` in [0, 1] to whatever the model answers.
        name: as the user named it.
        key: fingerprint of its code and weights; empty where it has none.
    """

    call: Callable[[Tensor], Any]
    name: str
    key: str


def load_model(
    place: str,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Target:
    """The model at ``place``.

    Args:
        place: ``FILE.py:NAME``, where NAME is a network, a function without arguments that builds one, or a
            function from images to probabilities; or a ``.pt2`` or ``.pt`` file.
        weights: safetensors file for the network that is built.
        mean, std: per channel in [0, 1], where the model expects normalised images.
        device: where the network runs.

    Raises:
        KdsecError: one line: no such file or name, code that raises, weights that do not fit.
    """
    if (mean is None) != (std is None):
        raise KdsecError("give both --mean and --std, or neither")
    path, _, name = place.partition(":") if ".py:" in place else (place, "", "")
    file = pathlib.Path(path)
    if not file.is_file():
        raise KdsecError(f"model {path} {'is a folder' if file.is_dir() else 'does not exist'}; give {FORMS}")
    if file.suffix == ".py":
        model = _from_code(file, name)
    elif weights is not None:
        raise KdsecError(f"--weights goes with FILE.py:NAME; {path} brings its own")
    elif file.suffix in (".pt2", ".pt"):
        model = _from_file(file, device)
    else:
        raise KdsecError(f"model {place} is of an unknown form; give {FORMS}")
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise KdsecError(f"--weights needs a network, and {name} of {path} is a function of images")
        _load_weights(model, pathlib.Path(weights))
    return target(model, place, mean, std, device, hashlib.sha256(file.read_bytes()).hexdigest())


def target(
    model: nn.Module | Callable[[Tensor], Any],
    name: str = "model",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    code: str | None = None,
) -> Target:
    """A network (moved to ``device``, asked in eval mode) or a function as what is audited.

    ``code`` is a fingerprint of the code, where the model itself may have none.
    """
    if not callable(model):
        raise KdsecError(f"{name} is a {type(model).__name__}, not a network or a function of images")
    network = model.to(device) if isinstance(model, nn.Module) else nn.Identity()
    normalize = Normalize(len(mean), mean, std).to(device) if mean is not None else nn.Identity()
    try:
        weights = sorted(model.state_dict().items()) if isinstance(model, nn.Module) else None
        with evaluating(network):
            key = fingerprint([model if code is None else code, name, weights, mean, std])
    except KdsecError:
        key = ""

    def call(images: Tensor) -> Any:
        with torch.no_grad(), evaluating(network):
            return model(normalize(images.to(device)))

    return Target(call, name, key)


def _from_code(file: pathlib.Path, name: str) -> Any:
    """What ``name`` means after running ``file``; called if it is a function or class without arguments."""
    if not name:
        raise KdsecError(f"say what builds the model: {file}:NAME, a function in that file")
    spec = importlib.util.spec_from_file_location("audited_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))  # it may import its neighbours
    sys.modules[spec.name] = module
    guarded(f"{file}", lambda: spec.loader.exec_module(module), file)  # type: ignore[union-attr]
    if not hasattr(module, name):
        own = [each for each, value in vars(module).items() if callable(value) and each[0] != "_"]
        raise KdsecError(f"{file} has no {name}; it has: {', '.join(own) or 'no functions'}")
    found = getattr(module, name)
    if isinstance(found, nn.Module) or not callable(found) or _arguments(found):
        return found
    built = guarded(f"{name} of {file}", found, file)
    if not callable(built):
        raise KdsecError(f"{name}() of {file} returned a {type(built).__name__}; return an nn.Module")
    return built


def _arguments(function: Callable[..., Any]) -> bool:
    """Whether it needs an argument: then it takes images, and builds nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in kinds for each in parameters)


def guarded(what: str, call: Callable[[], Any], file: pathlib.Path | None = None) -> Any:
    """``call()``; whatever somebody else's code raises becomes one line, with its place in ``file``."""
    try:
        return call()
    except KdsecError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in frames if file is not None and each.filename == str(file.absolute())]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f" at line {lines[-1]}" if lines else ""
        said = next(iter(str(error).splitlines()), "")[:200]
        raise KdsecError(f"{what} raised {type(error).__name__}{where}: {said}") from None


def _from_file(file: pathlib.Path, device: torch.device | str) -> Callable[[Tensor], Any]:
    """An exported program or a script, as a function: both are frozen, and may refuse ``eval()``."""
    log = logging.getLogger("torch")
    before = log.level
    try:
        log.setLevel(logging.CRITICAL)  # torch logs tracebacks of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated
            if file.suffix == ".pt2":
                return torch.export.load(file).module().to(device).forward
            return torch.jit.load(str(file), map_location=device).eval().forward
    except Exception as error:  # readers of foreign files raise almost anything
        kind = "torch.export" if file.suffix == ".pt2" else "TorchScript"
        raise KdsecError(
            f"{file} is no {kind} file ({type(error).__name__}); weights alone go into a safetensors file, "
            "with --model FILE.py:build --weights W.safetensors"
        ) from None
    finally:
        log.setLevel(before)


def _load_weights(model: nn.Module, path: pathlib.Path) -> None:
    if not path.is_file():
        raise KdsecError(f"weights {path}: there is no such file")
    try:
        given = load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise KdsecError(f"weights {path}: the file {what_it_is(path)}") from None
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in own]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise KdsecError(f"weights {path} do not fit the network: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(given)


# Answers


def as_rows(answer: Any, count: int) -> Tensor:
    """Logits ``(N, K)``, float32 on the CPU, of whatever a model answered to ``count`` images.

    Probabilities become their logarithms.

    Raises:
        KdsecError: what came back is neither; says what it is.
    """
    if isinstance(answer, Mapping) and "logits" in answer:
        answer = answer["logits"]
    elif not isinstance(answer, Tensor) and hasattr(answer, "logits"):
        answer = answer.logits
    wanted = f"the audit needs logits or probabilities ({count}, K), K at least 2"
    try:
        rows = torch.as_tensor(answer).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise KdsecError(f"the model answered with a {type(answer).__name__}; {wanted}") from None
    if rows.ndim != 2 or len(rows) != count or rows.shape[1] < 2:
        hint = "; class numbers alone tell no probabilities: return one-hot rows" if rows.ndim == 1 else ""
        raise KdsecError(f"the model answered {tuple(rows.shape)} for {count} images; {wanted}{hint}")
    if not bool(rows.amax(1).isfinite().all()):
        raise KdsecError("the model answered with numbers that are infinite or not a number; check its input")
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        return rows
    if not bool(((rows.sum(1) - 1).abs() < 0.02).all()):
        raise KdsecError(
            "the model's answers lie in [0, 1] and do not sum to 1 (one sigmoid a class?); return logits, "
            "or probabilities of exclusive classes"
        )
    return rows.clamp(min=torch.finfo(torch.float32).tiny).log()


# Images


def load_images(path: str, size: tuple[int, int] | None = None) -> ImageSet:
    """Images of a folder (one subfolder a class, or none and no labels) or of a .npz file.

    Where there are no labels, the set has the one class name ``unlabelled``.

    Raises:
        KdsecError: see ``kdsec.data.own``.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        inside = [each for each in place.iterdir() if not each.name.startswith(".")]
        read = from_folder if any(each.is_dir() for each in inside) else from_files
        return read(place, size=size)
    if size is not None:
        raise KdsecError("--size scales the images of a folder; those of a .npz file stay as they are")
    if place.exists() and (place.suffix != ".npz" or not place.is_file()):
        raise KdsecError(f"{place} is neither a folder of images nor a .npz file")
    labels = "labels" if "labels" in array_names(place) else None
    return from_npz(place, labels=labels)


def file_names(path: str) -> list[str] | None:
    """Names of the files that ``load_images`` reads from a folder, in its order; None for a .npz file."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return None
    inside = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    deeper = [each for each in inside if each.is_dir()]
    files = [file for each in deeper for file in sorted(each.iterdir())] if deeper else inside
    return [str(file.relative_to(folder)) for file in files if not file.name.startswith(".")]


def read_labels(source: str | None, images: ImageSet) -> np.ndarray | None:
    """The numbers of a text file, one a line for each of ``images``; None where ``source`` is None.

    ``none`` gives an empty array: there are no labels.

    Raises:
        KdsecError: a file that cannot be read, is no list of numbers, or has another length.
    """
    if source is None:
        return None
    if source == "none":
        return np.zeros(0)
    try:
        given = np.array(pathlib.Path(source).read_text(encoding="utf-8").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "not all of it is numbers"
        raise KdsecError(f"labels {source}: {said}; give a file of class numbers, or `none`") from None
    if len(given) != len(images):
        raise KdsecError(f"{len(given)} labels for {len(images)} images; give one a line, in their order")
    return given


def labels_for(images: ImageSet, classes: int, given: np.ndarray | None = None) -> Tensor | None:
    """Class numbers ``(N,)`` of ``images`` for a model of so many classes, or None.

    Args:
        images: as ``load_images`` read them.
        classes: K of the model.
        given: as ``read_labels`` read them; None: the images' own.

    Raises:
        KdsecError: labels that do not fit the images or the model, or of one class only.
    """
    if given is not None and not len(given):
        return None
    if given is not None:
        labels = as_labels(given, classes, "labels")
    elif images.classes == ("unlabelled",):
        return None
    else:
        if images.num_classes > classes or (images.num_classes < classes and "class 0" not in images.classes):
            raise KdsecError(
                f"classes of {images.name}: {images.num_classes}, of the model: {classes}; name the "
                "subfolders so that their order is the model's, give --labels FILE, or --labels none"
            )
        labels = images.labels
    if int(labels.min()) < 0:
        raise KdsecError("some images have no label; label all, or give --labels none")
    if len(labels.unique()) < 2:
        raise KdsecError("all labels are one class; an audit needs images of at least two")
    return labels
