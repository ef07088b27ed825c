"""The command ``kdsec audit``: its options, and what they start."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdsec.errors import KdsecError, check_path

if TYPE_CHECKING:
    from kdsec.audit.measure import Audit
    from kdsec.data import ImageSet

TEXT = (
    "Attack a classifier of your own: what does serving its answers give away, for how many queries, and "
    "what would top-k, rounding or labels only cost a thief and honest users? A model file (.py, .pt2, .pt) "
    "is a program, which is run as if you had started it yourself: use files that you trust. Nothing is "
    "sent anywhere. The page is written again after each block; an audit that was stopped goes on when the "
    "same command is given again."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = TEXT
    add = parser.add_argument
    text = (
        "FILE.py:NAME (a network, a function that builds one, or one from images (N, C, H, W) in [0, 1] to "
    )
    add(
        "--model",
        metavar="MODEL",
        required=True,
        help=text + "probabilities), or a .pt2 or TorchScript .pt file",
    )
    add("--weights", metavar="FILE", help="safetensors file for the network that FILE.py:NAME builds")
    text = "images that a thief could have: a folder (one subfolder a class, or none) or a .npz file"
    add("--queries", metavar="IMAGES", help=text)
    text = "one class number a line, in the images' order; none ignores the labels that IMAGES has"
    add("--labels", metavar="FILE", help=text)
    add("--size", metavar="HxW", help="scale the images of a folder, such as 32x32")
    add(
        "--mean",
        metavar="LIST",
        help="per channel, if the model expects normalised images: 0.485,0.456,0.406",
    )
    add("--std", metavar="LIST", help="with --mean")
    add(
        "--budgets",
        metavar="LIST",
        default="500,2000,10000",
        help="numbers of queries (default: %(default)s)",
    )
    text = "top-K, round-D, reversed, labels, FILE.py:NAME of a protected version (default: %(default)s)"
    add("--defences", metavar="LIST", default="top-1,top-3,round-1,labels", help=text)
    add("--student", metavar="NAME", help="network of the copies (default: by the size of the images)")
    add("--flip", action="store_true", help="copies also learn from mirrored images; not for digits or signs")
    add("--seeds", metavar="N", type=int, default=3, help="how many times everything is tried (default: 3)")
    text = "train for about N minutes in all; the first block always runs (default: until all is tried)"
    add("--minutes", metavar="N", type=float, help=text)
    add("--device", metavar="DEVICE", default="auto", help="auto, cpu or cuda (default: auto)")
    text = (
        "instead: which images of a set that you are about to distil on look poisoned; IMAGES of --queries "
    )
    add("--distillation-set", metavar="SET", help=text + "are then images that you trust")
    add("--out", metavar="DIR", required=True, help="where audit.html and audit.json go")


def run(options: argparse.Namespace) -> int:
    """Read what is asked for, audit, and print what came out."""
    from kdsec.audit import loading, page, verdict
    from kdsec.audit.measure import Plan, audit
    from kdsec.audit.serving import check_names
    from kdsec.cache import check_folder
    from kdsec.run import resolve_device

    out = check_path("out", options.out)
    size, mean, std = _size(options.size), _floats("mean", options.mean), _floats("std", options.std)
    device = resolve_device(options.device)

    def read(place: str) -> ImageSet:
        images = loading.load_images(place, size)
        if mean is not None and len(mean) != images.shape[0]:
            raise KdsecError(f"--mean has {len(mean)} numbers and {images.name} {images.shape[0]} channels")
        return images

    def load(place: str, weights: str | None = None) -> loading.Target:
        return loading.load_model(place, weights, mean, std, device)

    if options.distillation_set is not None:
        from kdsec.audit import poisons

        trusted = read(options.queries) if options.queries else None
        images = read(options.distillation_set)
        given = loading.read_labels(options.labels, images)
        found = poisons.inspect(load(options.model, options.weights), images, given, trusted)
        with _folder(out):
            poisons.write(found, out, loading.file_names(options.distillation_set))
        print(poisons.summary(found))
        print(f"the whole list: {out / 'poisons.html'}")
        return 0
    if options.queries is None:
        raise KdsecError(
            "--queries is missing: give a folder or a .npz file of images that a thief could have"
        )
    names = check_names(options.defences.split(","))
    budgets = tuple(_whole("budgets", each) for each in options.budgets.split(","))
    plan = Plan(budgets, names, options.student, options.seeds, options.minutes, options.flip, device)
    images = read(options.queries)
    given = loading.read_labels(options.labels, images)
    target = load(options.model, options.weights)
    protected = [load(name) for name in names if ".py:" in name]
    check_folder()

    def report(state: Audit) -> None:
        page.write(state, out)
        said = verdict.verdict(state)
        count = f"{len(state.done)} of {len(state.done + state.left)}"
        print(f"after block {count}: {said.advice}. {said.sentences[0]}", flush=True)

    def labels(classes: int) -> Any:
        return loading.labels_for(images, classes, given)

    with _folder(out):
        state = audit(target, images, labels, plan, protected=protected, report=report)
    for sentence in verdict.verdict(state).sentences[1:]:
        print(sentence)
    print(f"the report: {out / 'audit.html'}" + (" (more with more --minutes)" if state.left else ""))
    return 0


@contextlib.contextmanager
def _folder(out: pathlib.Path) -> Iterator[None]:
    """Make the folder before the long wait; SIGTERM ends it as Ctrl-C does, and no empty folder stays."""
    if out.exists() and not out.is_dir():
        raise KdsecError(f"out={out} is a file; give a folder")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if new and not any(out.iterdir()):
            out.rmdir()


def _size(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    height, _, width = value.lower().partition("x")
    return _whole("size", height), _whole("size", width or height)


def _whole(name: str, value: str) -> int:
    if not value.strip().isdecimal() or not int(value):
        raise KdsecError(f"--{name}: {value!r} is not a whole number above 0")
    return int(value)


def _floats(name: str, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(each) for each in value.split(",")]
    except ValueError:
        raise KdsecError(f"--{name} {value!r} is not a list of numbers such as 0.5,0.5,0.5") from None
