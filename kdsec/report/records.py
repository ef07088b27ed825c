"""Result rows in tidy form, and the files that hold them.

One run of a chapter at one profile and seed is one record of two files: ``seed<k>.csv`` holds the rows,
``seed<k>.json`` their origin and their checksum. The json is written last: a record with a json is whole.
Every row is checked when it is added and again when it is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import numbers
import os
import pathlib
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdsec import config
from kdsec.config import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, atomic_write, check_choice
from kdsec.report.provenance import bundled

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("chapter", "profile", "seed", "dataset", "arm", "model", "setting", "metric", "value", "n")
# Names of the data sets as records have them, and as prose writes them.
DATASETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "gtsrb": "GTSRB",
    "gtsrb-224": "GTSRB",
    "flowers102": "Flowers-102",
    "tiny-imagenet": "Tiny ImageNet",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Rows of one chapter and profile by arm, metric and setting: model, seed and value of each.
Labelled = Mapping[tuple[str, str, str], list[tuple[str, int, float]]]
_FILE = re.compile(r"seed(0|[1-9][0-9]*)\.(csv|json)")


class Records:
    """The rows of one run in progress."""

    def __init__(self, chapter: str, profile: str, seed: int, dataset: str) -> None:
        """Start an empty record.

        Raises:
            KdsecError: unknown chapter, profile or data set, a seed below 0.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise KdsecError(f"seed {seed!r} is not a whole number from 0 up")
        self.chapter = check_choice("chapter", chapter, CHAPTERS)
        self.profile = check_choice("profile", profile, PROFILES)
        self.seed, self.dataset = seed, check_choice("data set", dataset, DATASETS)
        self._rows: dict[tuple[str, str, str, str, str], tuple[float, int | None]] = {}

    def add(
        self,
        arm: str,
        model: str,
        metric: str,
        value: float,
        n: int | None = None,
        dataset: str | None = None,
        **setting: Any,
    ) -> None:
        """Add one measured number, rounded to the 9 significant digits that the file keeps.

        Args:
            arm: what was done ("kd", "hard labels", "baseline").
            model: the network measured.
            metric: what was measured ("test accuracy").
            value: a finite number; a share in [0, 1] for an accuracy.
            n: number of examples it was measured on.
            dataset: of this row; the run's unless given. Claims look at the setting: name it there, too.
            **setting: what else distinguishes the row, e.g. ``temperature=4``.

        Raises:
            KdsecError: a value, count or label that is not one, or the same row twice.
        """
        own = self.dataset if dataset is None else check_choice("data set", dataset, DATASETS)
        key = (own, _label("arm", arm), _label("model", model), _setting(setting), _label("metric", metric))
        where = " / ".join(part for part in key[1:] if part)
        try:
            _check_numbers(metric, value, n)
        except ValueError as error:
            raise KdsecError(f"row {where}: {error}") from None
        if key in self._rows:
            raise KdsecError(f"row {where} was added before; add a setting to one, e.g. queries=100")
        self._rows[key] = (float(f"{float(value):.9g}"), None if n is None else int(n))

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> pd.DataFrame:
        """The rows so far, with the columns ``COLUMNS``."""
        return _frame(list(self._tuples()))

    def save(self, out: str | os.PathLike[str], provenance: Mapping[str, Any]) -> pathlib.Path:
        """Write ``out/<profile>/<chapter>/seed<k>.csv`` and ``.json``; returns the path of the csv.

        A record of the same recipe that is there already keeps its ``claims``: those known before its rows.

        Raises:
            KdsecError: there are no rows, or the folder cannot be written to.
        """
        if not self._rows:
            raise KdsecError(f"chapter {self.chapter} has no rows to save; call records.add(...) first")
        path = location(out, self.profile, self.chapter, self.seed, ".csv")
        rows = _text(self._tuples())
        about = {"rows": len(self), "checksum": _checksum(rows), **provenance}
        before = _about(path)
        if about.get("recipe") and before.get("recipe") == about["recipe"] and "claims" in before:
            about["claims"] = before["claims"]  # a claim made since has been made with these rows in view
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)  # no json, no record, until both files are new
            _replace(path, rows)
            _replace(path.with_suffix(".json"), json.dumps(about, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            advice = "free some space or choose another folder"
            raise KdsecError(f"cannot write {path}: {error.strerror}; {advice}") from None
        return path

    def _tuples(self) -> Iterator[tuple[Any, ...]]:
        for labels, (value, n) in self._rows.items():
            yield (self.chapter, self.profile, self.seed, *labels, value, n)


def location(out: str | os.PathLike[str], profile: str, chapter: str, seed: int, suffix: str) -> pathlib.Path:
    """Path of a run's file: the only function that knows the folders."""
    return pathlib.Path(out) / profile / chapter / f"seed{seed}{suffix}"


def load(
    out: str | os.PathLike[str], profile: str, chapter: str | None = None
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """What ``read`` and ``runs`` return, of the same files."""
    rows, about = [], []
    for path in _complete(out, profile, chapter):
        found, facts = _load(path)
        rows += found
        seed = int(path.stem.removeprefix("seed"))
        about.append({"chapter": path.parent.name, "profile": profile, "seed": seed, **facts})
    return _frame(rows), about


def read(out: str | os.PathLike[str], profile: str, chapter: str | None = None) -> pd.DataFrame:
    """All rows under ``out`` at ``profile``, for one chapter or all; empty if there are none.

    A record with only one of its two files is left out with a warning that names it.

    Raises:
        KdsecError: unknown profile or chapter, or a damaged file; names the file and the row.
    """
    return load(out, profile, chapter)[0]


def runs(out: str | os.PathLike[str], profile: str, chapter: str | None = None) -> list[dict[str, Any]]:
    """Provenance of every record that ``read`` returns, with its ``chapter``, ``profile`` and ``seed``."""
    return load(out, profile, chapter)[1]


def recipe_of(out: str | os.PathLike[str], profile: str, chapter: str, seed: int) -> str | None:
    """Recipe of a complete record; None if there is none, it is damaged, or the notebook was run by hand."""
    recipe = _about(location(out, profile, chapter, seed, ".csv")).get("recipe")
    return recipe if isinstance(recipe, str) else None


def _about(path: pathlib.Path) -> dict[str, Any]:
    """Provenance of the record at ``path``; empty if that is incomplete or damaged: it is made again."""
    if not (path.exists() and path.with_suffix(".json").exists()):
        return {}
    try:
        return _load(path)[1]
    except KdsecError:
        return {}


def recorded(chapter: str | None, profile: str) -> pd.DataFrame:
    """The rows that come with the book: in ``results/`` of the repository, or inside an installed wheel.

    The environment variable ``KDSEC_RESULTS`` names another folder. Empty if there are none.
    """
    return read(recorded_folder(), profile, chapter)


def recorded_folder() -> pathlib.Path:
    """The folder that ``recorded`` reads."""
    return pathlib.Path(os.environ.get("KDSEC_RESULTS") or bundled("results") or "results")


def recordings(chapter: str) -> dict[str, tuple[Any, pd.DataFrame]]:
    """Settings and recorded rows of a chapter, by profile; a profile without rows is left out."""
    found = {
        name: (config.settings(chapter, name), recorded(chapter, name)) for name in config.profiles(chapter)
    }
    return {name: (settings, rows) for name, (settings, rows) in found.items() if not rows.empty}


def in_print(datasets: str) -> str:
    """Data sets in any text by their printed names: ``cifar100 to gtsrb`` becomes CIFAR-100 to GTSRB."""
    return re.sub(r"[\w-]+", lambda name: DATASETS.get(name[0], name[0]), datasets)


def labelled(frame: pd.DataFrame) -> Labelled:
    """The rows of one chapter and profile by arm, metric and setting."""
    rows: dict[tuple[str, str, str], list[tuple[str, int, float]]] = {}
    columns = ("arm", "metric", "setting", "model", "seed", "value")
    for arm, metric, setting, model, seed, value in zip(*(frame[name] for name in columns), strict=True):
        rows.setdefault((arm, metric, setting), []).append((model, int(seed), float(value)))
    return rows


def typed(setting: str) -> dict[str, bool | int | float | str]:
    """A recorded setting by key, as values: ``temperature=4;labels=all`` is 4 and "all"."""
    return {
        key: _typed(text) for key, _, text in (part.partition("=") for part in setting.split(";") if part)
    }


def canonical(setting: str) -> str:
    """The text that records have for a setting: keys in order, equal numbers alike (4.0 is 4)."""
    try:
        return _setting(typed(setting))
    except KdsecError as error:
        raise KdsecError(f"setting {setting!r} is not of the form key=value;key=value: {error}") from None


def _typed(text: str) -> bool | int | float | str:
    if _NUMBER.fullmatch(text):
        value = float(text)
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return {"True": True, "False": False}.get(text, text)


def expand(frame: pd.DataFrame) -> pd.DataFrame:
    """Give each key of ``setting`` a column of its own, numeric where every value is a number."""
    import pandas as pd

    pairs = [dict(part.split("=", 1) for part in text.split(";") if part) for text in frame["setting"]]
    wide = pd.DataFrame(pairs, index=frame.index)
    for key in wide:
        present = wide[key].dropna()
        if pd.to_numeric(present, errors="coerce").notna().all():
            wide[key] = pd.to_numeric(wide[key])
    return pd.concat([frame.drop(columns="setting"), wide], axis=1)


def _label(kind: str, text: object) -> str:
    """Text that is one csv cell, one line, and readable in a table."""
    if not isinstance(text, str) or not text or text != text.strip() or not text.isprintable():
        raise KdsecError(f"{kind} {text!r} is not a plain label; give one line of text")
    return text


def _setting(setting: Mapping[str, Any]) -> str:
    """``key=value;key=value``, keys in order. Text that reads as a number or as True is that value."""
    parts = []
    for key in sorted(setting):
        value = setting[key]
        _label("setting", key)
        if key in COLUMNS:
            raise KdsecError(f"setting {key!r} is the name of a column; choose another name")
        if isinstance(value, str):
            value = _typed(value)
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            rounded = _typed(f"{float(value):.9g}")
            text = str(rounded) if isinstance(rounded, int | str) else f"{rounded:.9g}"
        elif isinstance(value, str | bool):
            text = _label(f"setting {key}", str(value))
        else:
            raise KdsecError(f"setting {key}={value!r} cannot be recorded; give a number or text")
        if "=" in text or ";" in text or text in ("nan", "inf", "-inf"):
            allowed = "give a finite number, or text without = and ;"
            raise KdsecError(f"setting {key}={value!r} cannot be recorded; {allowed}")
        parts.append(f"{key}={text}")
    return ";".join(parts)


def _check_numbers(metric: str, value: object, n: object) -> None:
    """Value and count of a row.

    Raises:
        ValueError: says which is wrong, and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"value {value!r} is not a finite number")
    if metric.endswith("accuracy") and not 0 <= float(value) <= 1:
        raise ValueError(f"{metric} {value!r} is not a share; give a number in [0, 1]")
    if n is not None and (isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1):
        raise ValueError(f"n={n!r} is not a count of examples; give a whole number from 1 up")


def _text(rows: Iterator[tuple[Any, ...]]) -> str:
    """The csv. Values carry 9 significant digits, which a rerun reproduces: diffs show only real changes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for *labels, value, n in rows:
        writer.writerow([*labels, f"{value:.9g}", "" if n is None else n])
    return buffer.getvalue()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _replace(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _complete(out: str | os.PathLike[str], profile: str, chapter: str | None) -> list[pathlib.Path]:
    """The csv files of complete records, chapters in the book's order, seeds in number order."""
    folder = pathlib.Path(out) / check_choice("profile", profile, PROFILES)
    chapters = list(CHAPTERS) if chapter is None else [check_choice("chapter", chapter, CHAPTERS)]
    complete = []
    for name in chapters:
        kinds: dict[int, set[str]] = {}
        for path in (folder / name).glob("seed*"):
            if match := _FILE.fullmatch(path.name):
                kinds.setdefault(int(match[1]), set()).add(match[2])
        for seed in sorted(kinds):
            path = location(out, profile, name, seed, ".csv")
            if kinds[seed] == {"csv", "json"}:
                complete.append(path)
                continue
            missing = {"csv": ".json", "json": ".csv"}[kinds[seed].pop()]
            warnings.warn(
                f"{path.with_suffix(missing)} is missing, so seed {seed} of {name} at {profile} is left out; "
                f"restore it, or {_again(path)}",
                stacklevel=3,
            )
    return complete


def _again(path: pathlib.Path) -> str:
    """The command that makes the record at ``path`` again, in its own folder and no other."""
    seed, chapter, profile = path.stem.removeprefix("seed"), path.parent.name, path.parent.parent.name
    out = shlex.quote(str(path.parent.parent.parent))
    return f"make it again by `kdsec run {chapter} --profile {profile} --seeds {seed} --out {out} --fresh`"


def _load(path: pathlib.Path) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Rows and provenance of one record, checked against each other and against their place.

    An editor may have put a byte order mark in front of either file.
    """
    seed, chapter, profile = path.stem.removeprefix("seed"), path.parent.name, path.parent.parent.name
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8-sig"))
        text = path.read_text(encoding="utf-8-sig")
        if not isinstance(about, dict) or about.get("checksum") != _checksum(text):
            raise ValueError("its rows are not those its json was written for")
        header, *lines = csv.reader(io.StringIO(text), strict=True)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        seen: set[tuple[Any, ...]] = set()
        return [
            _row(line, place, [chapter, profile, seed], seen) for place, line in enumerate(lines, 2)
        ], about
    except OSError as error:
        raise KdsecError(f"cannot read {path}: {error.strerror}; restore it, or {_again(path)}") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise KdsecError(f"record {path} is damaged: {error}; restore it, or {_again(path)}") from None


def _row(line: list[str], place: int, belongs: list[str], seen: set[tuple[Any, ...]]) -> tuple[Any, ...]:
    """One row of a file, checked as ``Records.add`` checks it.

    Args:
        line: its cells.
        place: its number in the file, for the message.
        belongs: chapter, profile and seed of the file.
        seen: labels of the rows before; those of this row are added.

    Raises:
        ValueError: names the row and says what is wrong with it.
    """
    try:
        if len(line) != len(COLUMNS) or line[:3] != belongs:
            raise ValueError(f"it is not a row of {' / '.join(belongs)}")
        *labels, value, n = line
        dataset, arm, model, setting, metric = labels[3:]
        check_choice("data set", dataset, DATASETS)
        for kind, text in (("arm", arm), ("model", model), ("metric", metric)):
            _label(kind, text)
        if setting != _setting(dict(part.split("=") for part in setting.split(";") if part)):
            raise ValueError(f"setting {setting!r} is not of the form key=value;key=value, keys in order")
        number, count = float(value), int(n) if n else None
        _check_numbers(metric, number, count)
        if tuple(labels) in seen:
            raise ValueError("the same labels as a row before it")
        seen.add(tuple(labels))
    except (ValueError, KdsecError) as error:
        raise ValueError(f"row {place}, {','.join(line)[:100]!r}: {error}") from None
    return (*labels[:2], int(labels[2]), *labels[3:], number, count)


def _frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"seed": "int64", "value": "float64", "n": "Int64"})
