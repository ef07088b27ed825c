"""Fingerprints: whatever can change a result changes them, and nothing else does."""

from __future__ import annotations

import dataclasses
import enum
import functools
import pathlib
import random
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.fingerprint import _package_code, fingerprint, source_dependencies, source_fingerprint
from tests.test_train import net


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Setting:
    size: object = 1.0


class Plain:
    def __init__(self, size=1.0):
        self.size = size


class Noise(nn.Module):
    """A defence whose settings are plain attributes, which are in no state dict."""

    def __init__(self, size=1.0):
        super().__init__()
        self.size = size
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.weight = nn.Parameter(torch.ones(2))

    @functools.cached_property
    def derived(self):
        return torch.zeros(3)

    def forward(self, images):
        return images + self.size


def array(values):
    return np.array(values, dtype=np.float32)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.sampled_from(Colour),
    st.sampled_from([torch.float32, torch.int64, torch.device("cpu"), torch.relu, np.float32(1), np.int8(1)]),
    st.lists(st.floats(width=32, allow_nan=False)).map(torch.tensor),
    st.lists(st.floats(width=32, allow_nan=False)).map(array),
    st.frozensets(st.text()),
    st.integers(0, 99).map(random.Random),
    st.integers(0, 99).map(np.random.default_rng),
    st.integers(0, 99).map(lambda seed: torch.Generator().manual_seed(seed)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text(), inner),
        inner.map(Setting),
        inner.map(Plain),
        inner.map(Noise),
        inner.map(lambda value: types.SimpleNamespace(value=value)),
        inner.map(lambda value: functools.partial(max, value)),
        inner.map(lambda value: lambda model, batch: value),
        inner.map(lambda value: lambda model, batch=value: batch),
    ),
    max_leaves=6,
)


def shape(value):
    """The value as nested tuples that are equal exactly where the values are of equal content."""
    kind = type(value).__name__
    match value:
        case torch.Tensor() | np.ndarray() | np.generic():
            return kind, str(value.dtype), value.tobytes() if kind != "Tensor" else value.numpy().tobytes()
        case list() | tuple():
            return kind, *map(shape, value)
        case dict():
            return kind, *((shape(key), shape(item)) for key, item in value.items())
        case Setting() | Plain() | Noise():
            return kind, shape(value.size)
        case types.SimpleNamespace():
            return kind, shape(value.value)
        case functools.partial():
            return kind, shape(value.args)
        case types.FunctionType():
            return (
                kind,
                shape(value.__defaults__),
                *(shape(cell.cell_contents) for cell in value.__closure__ or ()),
            )
        case random.Random():
            return kind, value.getstate()
        case np.random.Generator():
            return kind, repr(value.bit_generator.state)
        case torch.Generator():
            return kind, value.get_state().numpy().tobytes()
        case _:
            return kind, repr(sorted(value)) if isinstance(value, frozenset) else repr(value)


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_values_agree_in_fingerprint_exactly_if_they_agree_in_content(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (shape(one) == shape(other))
    assert (fingerprint(Noise(one)) == fingerprint(Noise(other))) == (shape(one) == shape(other))


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_a_fingerprint_changes_nothing_and_repeats(value):
    before = shape(value)
    assert fingerprint(value) == fingerprint(value) and shape(value) == before


def test_two_processes_agree():
    """Sets and hooks come in another order, or under other numbers, in another process."""
    code = """
import random, enum, functools, collections, numpy as np, torch
from torch import nn
from kdsec.fingerprint import fingerprint
import sys
for _ in range(int(sys.argv[1])):
    nn.Linear(1, 1).register_forward_hook(print)
SIZE = {"a", "b", "c", "d"}
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.names, self.lstm, self.order = {"x", "y", "z"}, nn.LSTM(2, 2), collections.OrderedDict(a=1)
        self.rng, self.generator = random.Random(0), torch.Generator().manual_seed(1)
        self.array, self.first = np.arange(6.).reshape(2, 3), np.float64(0.5)
        self.register_forward_hook(lambda *_: None)
        for parameter in self.parameters():
            parameter.data.fill_(0.5)
    def forward(self, x):
        return x in {"p", "q", "r"} and SIZE
print(fingerprint([Loss(), torch.no_grad()(lambda x: x), functools.lru_cache(len)]))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code, hooks],
            env={**__import__("os").environ, "PYTHONHASHSEED": hooks},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hooks in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop().strip()) == 16


def hooked(module, **options):
    module.register_forward_hook(lambda *_: None, **options)


CHANGES = {
    "attribute": lambda module: setattr(module, "size", 2.0),
    "new attribute": lambda module: setattr(module, "other", None),
    "hidden buffer": lambda module: module.hidden.add_(1),
    "parameter": lambda module: module.weight.data.add_(1),
    "frozen parameter": lambda module: module.weight.requires_grad_(False),
    "attribute of a parameter": lambda module: setattr(module.weight, "decay", False),
    "mode": lambda module: module.eval(),
    "forward of the instance": lambda module: setattr(module, "forward", lambda images: images),
    "hook": hooked,
    "layer": lambda module: module.add_module("extra", nn.ReLU()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_of_a_module_counts(change):
    module, before = Noise(), fingerprint(Noise())
    around = nn.Sequential(module)
    whole = fingerprint(around)
    CHANGES[change](module)
    assert fingerprint(module) != before and fingerprint(around) != whole


def test_what_follows_from_the_rest_does_not_count():
    module = Noise()
    module.derived  # noqa: B018 (computes the cached property)
    module.register_forward_hook(print).remove()
    module.weight.sum().backward()
    assert fingerprint(module) == fingerprint(Noise())
    images = torch.rand(2, 3, 4, 4)
    assert fingerprint(images) == fingerprint(images.to(memory_format=torch.channels_last))


def test_order_and_sharing_of_layers_count():
    relu, tanh = nn.ReLU(), nn.Tanh()
    one, other = nn.Module(), nn.Module()
    for module, layers in ((one, (("a", relu), ("b", tanh))), (other, (("b", tanh), ("a", relu)))):
        for name, layer in layers:
            module.add_module(name, layer)
    assert fingerprint(one) != fingerprint(other)
    shared, apart = net(seed=0), [net(seed=0), net(seed=0)]
    assert fingerprint(nn.ModuleList([shared, shared])) != fingerprint(nn.ModuleList(apart))
    hook = [nn.Sequential(), nn.Sequential()]
    hooked(hook[0], with_kwargs=True)
    hooked(hook[1])
    assert fingerprint(hook[0]) != fingerprint(hook[1])


def typed(source, **names):
    """What ``source`` defines as ``made``, as if it were typed into a cell: without a file."""
    scope = {"torch": torch, "nn": nn, "dataclass": dataclasses.dataclass, **names}
    exec(source, scope)
    return scope["made"]


MODULE = """
class Made(nn.Module):
    T = 1
    def helper(self, x):
        return x * 2
    def forward(self, x):
        return self.helper(x) + SIZE
made = Made()
"""
CALLS = "def inner(x): return x * 2\ndef made(x): return inner(x)"
TYPED = {
    "method": (MODULE, MODULE.replace("* 2", "* 3"), {"SIZE": 1}, {"SIZE": 1}),
    "class attribute": (MODULE, MODULE.replace("T = 1", "T = 2"), {"SIZE": 1}, {"SIZE": 1}),
    "global value": (MODULE, MODULE, {"SIZE": 1}, {"SIZE": 2}),
    "global list": (MODULE, MODULE, {"SIZE": [1]}, {"SIZE": [2]}),
    "global tensor": (MODULE, MODULE, {"SIZE": torch.zeros(1)}, {"SIZE": torch.ones(1)}),
    "global of a global": (CALLS, CALLS.replace("* 2", "* 3"), {}, {}),
    "nested": ("def made(x): return [SIZE for _ in x]",) * 2 + ({"SIZE": 1}, {"SIZE": 2}),
    "default": ("def made(x, k=1): pass", "def made(x, k=2): pass", {}, {}),
    "keyword default": ("def made(x, *, k=1): pass", "def made(x, *, k=2): pass", {}, {}),
    "constant": ("made = lambda x: x + 1", "made = lambda x: x + 2", {}, {}),
    "name": ("made = lambda x: x.sum()", "made = lambda x: x.mean()", {}, {}),
    "operator": ("made = lambda x: x + x", "made = lambda x: x - x", {}, {}),
    "on one line": (
        "made, b = lambda x: x + 1, lambda x: x",
        "b, made = lambda x: x + 1, lambda x: x",
        {},
        {},
    ),
    "captured": (
        "def f(k): return lambda x: x + k\nmade = f(1)",
        "def f(k): return lambda x: x + k\nmade = f(2)",
        {},
        {},
    ),
    "dataclass": (
        "@dataclass\nclass C:\n a: int = 1\n def __call__(self, x): return x\nmade = C()",
        "@dataclass\nclass C:\n a: int = 1\n def __call__(self, x): return -x\nmade = C()",
        *({}, {}),
    ),
    "base class": (
        "class B:\n def f(self): return 1\nclass C(B): pass\nmade = C()",
        "class B:\n def f(self): return 2\nclass C(B): pass\nmade = C()",
        *({}, {}),
    ),
    "property": (
        "class C:\n @property\n def f(self): return 1\nmade = C()",
        "class C:\n @property\n def f(self): return 2\nmade = C()",
        *({}, {}),
    ),
    "bound method": (
        "class C:\n def __init__(self, k): self.k = k\n def f(self): return self.k\nmade = C(1).f",
        "class C:\n def __init__(self, k): self.k = k\n def f(self): return self.k\nmade = C(2).f",
        *({}, {}),
    ),
    "decorated": (
        "@torch.no_grad()\ndef made(x): return x",
        "@torch.no_grad()\ndef made(x): return -x",
        *({}, {}),
    ),
}


@pytest.mark.parametrize("case", TYPED)
def test_code_without_a_file_counts_with_all_that_it_reads(case):
    one, other, names, other_names = TYPED[case]
    assert fingerprint(typed(one, **names)) == fingerprint(typed(one, **names))
    assert fingerprint(typed(one, **names)) != fingerprint(typed(other, **other_names))


def test_files_of_the_user_count_as_far_as_they_are_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def loss(size, unused=0):
        for name in ("own_helper", "own_loss"):
            sys.modules.pop(name, None)
        (tmp_path / "own_helper.py").write_text(f"unused = {unused}\ndef scale(x): return x * {size}\n")
        (tmp_path / "own_loss.py").write_text("import own_helper\ndef loss(x): return own_helper.scale(x)\n")
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        __import__("importlib").invalidate_caches()
        return fingerprint(__import__("own_loss").loss)

    before = loss(2)
    assert loss(2, unused=1) == before
    assert loss(3) != before


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (each for each in ()), object(), torch.empty(1, device="meta")],
    ids=["lock", "generator", "object", "tensor without data"],
)
def test_what_cannot_be_read_is_named_with_the_path_to_it(value):
    module = nn.Sequential(Noise())
    module[0].size = {"deep": [1, value]}
    with pytest.raises(KdsecError, match=r"Sequential\.0\.size\['deep'\]\[1\]") as caught:
        fingerprint(module)
    assert "\n" not in str(caught.value)


def test_cycles_end():
    ring: list = []
    ring.append(ring)
    module = Noise()
    module.size = types.MethodType(lambda self: self, module)
    assert fingerprint(ring) and fingerprint(module)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(KdsecError, match="nested"):
        fingerprint(deep)


def test_the_package_counts_along_its_imports(monkeypatch):
    from kdsec import data, optim, train
    from kdsec.attacks.postprocessing import postprocess
    from kdsec.defenses.sparse_teacher import SparseTeacherLoss
    from kdsec.defenses.stingy import Stingy

    values = [train.fit, SparseTeacherLoss(), Stingy(net(), 1), postprocess(net()), KD(torch.zeros(2, 2))]
    before = [fingerprint(value) for value in values]
    read_text = pathlib.Path.read_text

    def changed(*names):
        def edited(path, **options):
            return read_text(path, **options) + ("# edited" if path.name in names else "")

        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "read_text", edited)
            _package_code.cache_clear()  # as in another process
            return [old != fingerprint(value) for old, value in zip(before, values, strict=True)]

    assert changed("stingy.py") == [False, False, True, False, False]
    assert [*changed("imageset.py")[:2], changed("imageset.py")[4]] == [
        True
    ] * 3  # its to_float feeds every batch
    assert changed("optim.py")[:2] == [True, True]
    assert changed("cli.py", "runner.py", "progress.py", "notebook.py") == [False] * 5
    assert data and optim


def test_a_function_of_the_package_that_is_replaced_counts(monkeypatch):
    before = fingerprint(KD(torch.zeros(2, 2)))
    monkeypatch.setattr("kdsec.distill.kd_loss", lambda *arguments: 0.0)
    replaced = fingerprint(KD(torch.zeros(2, 2)))
    monkeypatch.setattr(KD, "__call__", lambda self, model, batch: 1.0)
    assert len({before, replaced, fingerprint(KD(torch.zeros(2, 2)))}) == 3


def test_imports_are_followed_also_inside_functions():
    files = {
        file.name for file in source_dependencies("%pip install x\ndef f():\n    from kdsec import layered")
    }
    assert {"layered.py", "imageset.py", "errors.py"} <= files and "cli.py" not in files


def test_source_fingerprint_follows_the_text(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    before = source_fingerprint(file)
    assert source_fingerprint(tmp_path) == before
    file.write_text("x = 2\n")
    assert source_fingerprint(file) != before


class Forgetful:
    """Leaves its setting out of a pickle."""

    def __init__(self, size):
        self.size = size

    def __getstate__(self):
        return {}


class Constant(Forgetful):
    def __reduce__(self):
        return Constant, (0,)


class Named(Forgetful):
    def __reduce__(self):
        return "Named"


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size


class Array(np.ndarray):
    pass


class Text(str):
    pass


def with_attribute(value, size):
    value.setting = size
    return value


def class_with(**members):
    return type("Made", (), members)()


PAIRS = {
    "left out of a pickle": Forgetful,
    "pickled as a constant": Constant,
    "pickled by name": Named,
    "slots": Slotted,
    "memory of a function": lambda size: functools.lru_cache(lambda x: x * size),
    "array with an attribute": lambda size: with_attribute(np.zeros(1).view(Array), size),
    "text with an attribute": lambda size: with_attribute(Text("a"), size),
    "special method": lambda size: class_with(__call__=functools.partialmethod(max, size)),
    "special attribute": lambda size: class_with(__size__=size),
    "metaclass": lambda size: type("Meta", (type,), {"size": size})("Made", (), {})(),
    "descriptor": lambda size: class_with(size=types.DynamicClassAttribute(lambda self: size)),
    "expression": lambda size: __import__("re").compile(f"a{size}"),
    "module": lambda size: with_attribute(types.ModuleType("made"), size),
}


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", PAIRS)
@given(one=st.integers(0, 9), other=st.integers(0, 9))
def test_settings_that_a_pickle_or_a_class_hides_count(kind, one, other):
    make = PAIRS[kind]
    assert (fingerprint(make(one)) == fingerprint(make(other))) == (one == other)


def test_names_read_at_run_time_cannot_be_keyed():
    for source in ("def made(x): return globals()['SIZE']", "made = lambda x: eval('SIZE')"):
        with pytest.raises(KdsecError, match="reads names while it runs"):
            fingerprint(typed(source, SIZE=1))
    assert fingerprint(typed("made = lambda model: model.eval()"))


READS = {
    "attribute": "def made(x): return settings_of_mine.T",
    "by name": "def made(x): return getattr(settings_of_mine, 'T')",
    "import inside": "def made(x):\n import settings_of_mine\n return settings_of_mine.T",
    "import of a name": "def made(x):\n from settings_of_mine import T\n return T",
    "another name": "def made(x):\n other = settings_of_mine\n return other.T",
    "default": "def made(x, other=settings_of_mine): return other.T",
    "attribute of an object": "class C: pass\nmade = C()\nmade.settings = settings_of_mine",
    "class": "def made(x):\n other = settings_of_mine.Options\n return other.T",
}


@pytest.mark.parametrize("how", READS)
def test_a_module_of_the_user_counts_as_it_is_now(how, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "settings_of_mine", raising=False)
    (tmp_path / "settings_of_mine.py").write_text(
        "import threading\nT = 1\nlock = threading.Lock()\nclass Options: T = 1\n"
    )
    module = __import__("settings_of_mine")
    made = typed(READS[how], settings_of_mine=module)
    before = fingerprint(made)
    assert fingerprint(made) == before
    module.T = module.Options.T = 2
    assert fingerprint(made) != before


def test_a_replaced_constant_or_class_of_the_package_counts(monkeypatch):
    loss = KD(torch.zeros(2, 2))
    before = fingerprint(loss)
    monkeypatch.setattr("kdsec.logits.NOTHING", -3.0)
    constant = fingerprint(loss)
    monkeypatch.setattr("kdsec.train.CrossEntropy", type("CrossEntropy", (), {"__module__": __name__}))
    assert len({before, constant, fingerprint(loss)}) == 3


def image_set(pixels):
    from kdsec.data import ImageSet

    return ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.long), ("a", "b"), "mine")


CHANGED_IN_PLACE = {
    "pixels": lambda images, source: images.images.add_(1),
    "labels": lambda images, source: images.labels.add_(1),
    "data": lambda images, source: images.images.data.add_(1),
    "the array they came from": lambda images, source: source.__iadd__(1),
}


@pytest.mark.parametrize("what", CHANGED_IN_PLACE)
def test_pixels_changed_in_place_count(what):
    source = np.zeros((4, 1, 4, 4), dtype=np.uint8)
    images = image_set(source)
    before = fingerprint(images)
    CHANGED_IN_PLACE[what](images, source)
    assert fingerprint(images) != before


def test_only_sets_of_the_package_are_known_by_their_checksum():
    class Own:
        checksum = property(lambda self: "a file")

        def __init__(self, size):
            self.size = size

    assert fingerprint(Own(1)) != fingerprint(Own(2))
