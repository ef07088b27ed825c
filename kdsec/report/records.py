"""Tidy result rows, and the small files they live in.

One run of a chapter at one profile and one seed is one record, two files: ``seed<k>.csv`` holds the rows,
``seed<k>.json`` says where they come from and carries the checksum of the rows. The json is written last, so
that a record with its json is whole; a csv alone counts as absent.
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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdsec.chapters import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, choose
from kdsec.files import beside
from kdsec.report.provenance import bundled

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("chapter", "profile", "seed", "dataset", "arm", "model", "setting", "metric", "value", "n")
_FILE = re.compile(r"seed(\d+)\.csv")


class Records:
    """The rows of one run in the making."""

    def __init__(self, chapter: str, profile: str, seed: int, dataset: str) -> None:
        """Begin an empty record.

        Raises:
            KdsecError: unknown chapter or profile, a seed below 0, an empty data set name.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise KdsecError(f"seed {seed!r} is not a whole number from 0 up")
        self.chapter, self.profile = (
            choose("chapter", chapter, CHAPTERS),
            choose("profile", profile, PROFILES),
        )
        self.seed, self.dataset = seed, _label("dataset", dataset)
        self._rows: dict[tuple[str, str, str, str], tuple[float, int | None]] = {}

    def add(
        self, arm: str, model: str, metric: str, value: float, n: int | None = None, **setting: Any
    ) -> None:
        """Add one measured number, kept to 9 significant digits (as the file will keep it).

        Args:
            arm: what was done ("kd", "hard labels", "baseline").
            model: the network measured.
            metric: what was measured ("accuracy").
            value: a finite number.
            n: how many examples it was measured on.
            **setting: what else tells this row from its neighbours, e.g. ``temperature=4``.

        Raises:
            KdsecError: a value that is not a finite number, a label that is not plain text, a row twice.
        """
        key = (_label("arm", arm), _label("model", model), _setting(setting), _label("metric", metric))
        where = " / ".join(part for part in key if part)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise KdsecError(f"row {where}: value {value!r} is not a finite number; a record holds only such")
        if n is not None and (isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1):
            raise KdsecError(
                f"row {where}: n={n!r} is not a count of examples; give a whole number from 1 up"
            )
        if key in self._rows:
            raise KdsecError(
                f"row {where} was added before; tell the two apart by a setting, e.g. add(..., queries=100)"
            )
        self._rows[key] = (float(f"{float(value):.9g}"), None if n is None else int(n))

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> pd.DataFrame:
        """The rows so far, with the columns ``COLUMNS``."""
        return _frame(list(self._tuples()))

    def save(self, out: str | os.PathLike[str], provenance: Mapping[str, Any]) -> pathlib.Path:
        """Write ``out/<profile>/<chapter>/seed<k>.csv`` and ``.json``; returns the path of the csv.

        Raises:
            KdsecError: there are no rows, or the folder cannot be written to (no space, no permission).
        """
        if not self._rows:
            raise KdsecError(f"chapter {self.chapter} has no rows to save; call records.add(...) first")
        path = location(out, self.profile, self.chapter, self.seed, ".csv")
        rows = _text(self._tuples())
        about = {"rows": len(self), "checksum": _checksum(rows), **provenance}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").unlink(
                missing_ok=True
            )  # until the new pair is whole there is no record
            _replace(path, rows)
            _replace(path.with_suffix(".json"), json.dumps(about, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise KdsecError(
                f"cannot write {path}: {error.strerror}; free some space or choose another folder"
            ) from None
        return path

    def _tuples(self) -> Iterator[tuple[Any, ...]]:
        for (arm, model, setting, metric), (value, n) in self._rows.items():
            yield (self.chapter, self.profile, self.seed, self.dataset, arm, model, setting, metric, value, n)


def location(out: str | os.PathLike[str], profile: str, chapter: str, seed: int, suffix: str) -> pathlib.Path:
    """The one place that knows where a run's files lie."""
    return pathlib.Path(out) / profile / chapter / f"seed{seed}{suffix}"


def read(out: str | os.PathLike[str], profile: str, chapter: str | None = None) -> pd.DataFrame:
    """All rows under ``out`` at ``profile``, over all seeds, for one chapter or all; empty if there are none.

    Raises:
        KdsecError: unknown profile or chapter, or a damaged file, which is named.
    """
    return _frame([row for csv_path in _complete(out, profile, chapter) for row in _load(csv_path)[0]])


def runs(out: str | os.PathLike[str], profile: str, chapter: str | None = None) -> list[dict[str, Any]]:
    """The provenance of every record that ``read`` would return, each with its ``chapter`` and ``seed``."""
    found = []
    for path in _complete(out, profile, chapter):
        seed = int(path.stem.removeprefix("seed"))
        found.append({"chapter": path.parent.name, "profile": profile, "seed": seed, **_load(path)[1]})
    return found


def recipe_of(out: str | os.PathLike[str], profile: str, chapter: str, seed: int) -> str | None:
    """The recipe of a whole record; None when there is none, it is damaged, or was made by hand."""
    path = location(out, profile, chapter, seed, ".csv")
    try:
        recipe = (
            _load(path)[1].get("recipe") if path.exists() and path.with_suffix(".json").exists() else None
        )
    except KdsecError:
        return None  # a damaged record is made again
    return recipe if isinstance(recipe, str) else None


def recorded(chapter: str | None, profile: str) -> pd.DataFrame:
    """The rows that come with the book: the repository's ``results/``, or those inside an installed wheel.

    The environment variable ``KDSEC_RESULTS`` names another folder. Empty frame when there are none.
    """
    return read(recorded_folder(), profile, chapter)


def recorded_folder() -> pathlib.Path:
    """The folder that ``recorded`` reads."""
    return pathlib.Path(os.environ.get("KDSEC_RESULTS") or bundled("results") or "results")


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


def _label(kind: str, text: str) -> str:
    """Text that stays one csv cell, one line, and readable in a table."""
    if not isinstance(text, str) or not text or text != text.strip() or not text.isprintable():
        raise KdsecError(f"{kind} {text!r} is not a plain label; give one line of text")
    return text


def _setting(setting: Mapping[str, Any]) -> str:
    parts = []
    for key in sorted(setting):
        value = setting[key]
        if key in COLUMNS:
            raise KdsecError(f"setting {key!r} is the name of a column; choose from other names")
        if isinstance(value, numbers.Real) and not isinstance(value, bool | numbers.Integral):
            text = f"{float(value):.9g}"
        elif isinstance(value, str | bool | numbers.Integral):
            text = _label(f"setting {key}", str(value))
        else:
            raise KdsecError(f"setting {key}={value!r} cannot be recorded; give a number or text")
        if "=" in text or ";" in text or text in ("nan", "inf", "-inf"):
            raise KdsecError(
                f"setting {key}={value!r} cannot be recorded; give a finite number, or text without = and ;"
            )
        parts.append(f"{key}={text}")
    return ";".join(parts)


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
    with beside(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _complete(out: str | os.PathLike[str], profile: str, chapter: str | None) -> list[pathlib.Path]:
    """The csv files of whole records, chapters in the book's order, seeds in number order."""
    folder = pathlib.Path(out) / choose("profile", profile, PROFILES)
    chapters = list(CHAPTERS) if chapter is None else [choose("chapter", chapter, CHAPTERS)]
    found = []
    for name in chapters:
        seeds = {
            int(match[1]): path
            for path in (folder / name).glob("*.csv")
            if (match := _FILE.fullmatch(path.name))
        }
        found += [seeds[seed] for seed in sorted(seeds) if seeds[seed].with_suffix(".json").exists()]
    return found


def _load(path: pathlib.Path) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Rows and provenance of one record, checked against each other and against the place they lie in."""
    seed, chapter, profile = (path.stem.removeprefix("seed"), path.parent.name, path.parent.parent.name)
    again = f"`kdsec run {chapter} --profile {profile} --seeds {seed} --fresh` makes it again"
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        text = path.read_text(encoding="utf-8")
        if not isinstance(about, dict) or about.get("checksum") != _checksum(text):
            raise ValueError("its rows are not those its json was written for")
        header, *lines = list(csv.reader(io.StringIO(text), strict=True))
        if tuple(header) != COLUMNS or any(line[:3] != [chapter, profile, seed] for line in lines):
            raise ValueError("its columns are not those of a record of this chapter, profile and seed")
        return [_row(line) for line in lines], about
    except OSError as error:
        raise KdsecError(f"cannot read {path}: {error.strerror}; {again}") from None
    except (ValueError, csv.Error) as error:
        raise KdsecError(f"record {path} is damaged: {error}; {again}") from None


def _row(line: list[str]) -> tuple[Any, ...]:
    if len(line) != len(COLUMNS) or not math.isfinite(float(line[-2])):
        raise ValueError(f"row {','.join(line)!r} is not a record's row")
    return (*line[:2], int(line[2]), *line[3:-2], float(line[-2]), int(line[-1]) if line[-1] else None)


def _frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"seed": "int64", "value": "float64", "n": "Int64"})
