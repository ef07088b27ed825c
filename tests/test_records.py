"""Records: what goes in comes out, nothing wrong goes in, nothing half-written counts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsec.errors import KdsecError
from kdsec.report import provenance as origin
from kdsec.report.records import COLUMNS, Records, expand, read, recipe_of, recorded, runs

FACTS = {"recipe": "abc", "seconds": 1.5}


def one(seed: int = 0, value: float = 0.5) -> Records:
    record = Records("opening", "quick", seed, "digits")
    record.add("kd", "net", "accuracy", value, n=100, temperature=4)
    return record


labels = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
setting_text = labels.filter(lambda text: not set(text) & set("=;") and text not in ("nan", "inf", "-inf"))
finite = st.floats(allow_nan=False, allow_infinity=False)
row = st.tuples(labels, labels, labels, finite, st.none() | st.integers(1, 10**9), st.none() | setting_text)


def identity(each):
    return (*each[:3], each[5])


@given(st.lists(row, min_size=1, unique_by=identity))
def test_what_is_saved_reads_back_the_same(rows):
    record = Records("opening", "quick", 3, "digits")
    for arm, model, metric, value, n, setting in rows:
        record.add(arm, model, metric, value, n, **({} if setting is None else {"kind": setting}))
    with tempfile.TemporaryDirectory() as out:
        record.save(out, FACTS)
        back = read(out, "quick", "opening")
    pd.testing.assert_frame_equal(back, record.frame())
    assert all(
        math.isclose(kept, given[3], rel_tol=1e-8, abs_tol=5e-324)
        for kept, given in zip(back.value, rows, strict=True)
    )


def test_saving_again_gives_the_same_bytes(tmp_path):
    first = one().save(tmp_path / "a", FACTS)
    again = one().save(tmp_path / "b", FACTS)
    assert first.read_bytes() == again.read_bytes()
    assert first.with_suffix(".json").read_bytes() == again.with_suffix(".json").read_bytes()


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, None, "0.5", True, [0.5], 1j, torch.tensor(0.5), np.array([1.0])]
)
def test_only_finite_numbers_are_values(value):
    record = one()
    with pytest.raises(KdsecError, match="not a finite number") as caught:
        record.add("kd", "net", "loss", value)
    assert "\n" not in str(caught.value) and len(record) == 1


@pytest.mark.parametrize("value", [1, 0.25, np.float32(0.25), np.int64(3)])
def test_numpy_numbers_are_numbers(value):
    record = one()
    record.add("kd", "net", "loss", value)
    assert record.frame().value.iloc[-1] == float(value)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "7"])
def test_n_is_a_count(n):
    with pytest.raises(KdsecError, match="not a count"):
        one().add("kd", "net", "loss", 0.1, n=n)


@pytest.mark.parametrize("label", ["", " kd", "two\nlines", 3, None])
def test_labels_are_plain_text(label):
    for position in range(3):
        arguments = ["kd", "net", "loss"]
        arguments[position] = label
        with pytest.raises(KdsecError, match="not a plain label"):
            one().add(*arguments, 0.1)


@pytest.mark.parametrize("value", [None, "a=b", "a;b", math.nan, math.inf, [1], "", "nan"])
def test_settings_that_would_not_read_back_are_refused(value):
    with pytest.raises(KdsecError):
        one().add("kd", "net", "loss", 0.1, kind=value)


def test_a_row_is_added_once():
    record = one()
    with pytest.raises(KdsecError, match="added before"):
        record.add("kd", "net", "accuracy", 0.6, temperature=4)
    record.add("kd", "net", "accuracy", 0.6, temperature=5)
    with pytest.raises(KdsecError, match="column"):
        record.add("kd", "net", "accuracy", 0.6, dataset="x")


@pytest.mark.parametrize(
    "arguments",
    [
        ("opning", "quick", 0, "digits"),
        ("opening", "big", 0, "digits"),
        ("opening", "quick", -1, "digits"),
        ("opening", "quick", 1.0, "digits"),
        ("opening", "quick", True, "digits"),
        ("opening", "quick", 0, ""),
    ],
)
def test_a_record_belongs_to_a_known_chapter_profile_and_seed(arguments):
    with pytest.raises(KdsecError):
        Records(*arguments)


def test_expand_gives_settings_their_own_columns():
    record = one()
    record.add("kd", "net", "loss", 0.1, queries=50, kind="soft")
    record.add("kd", "net", "loss", 0.2, temperature=2.5)
    wide = expand(record.frame())
    assert "setting" not in wide
    assert wide.temperature.tolist()[::2] == [4, 2.5] and wide.queries.tolist()[1] == 50
    assert wide.kind.tolist()[1] == "soft" and wide.kind.isna().tolist() == [True, False, True]
    assert expand(record.frame()[:0]).empty


def test_read_orders_seeds_as_numbers_and_ignores_other_files(tmp_path):
    for seed in (10, 2, 0):
        one(seed).save(tmp_path, FACTS)
    (tmp_path / "quick/opening/seed2.failed.csv").write_text("x")
    (tmp_path / "quick/opening/notes.csv").write_text("x")
    assert read(tmp_path, "quick").seed.tolist() == [0, 2, 10]
    assert [run["seed"] for run in runs(tmp_path, "quick")] == [0, 2, 10]
    assert runs(tmp_path, "quick")[0]["recipe"] == "abc"
    assert read(tmp_path, "small").empty and tuple(read(tmp_path, "small").columns) == COLUMNS


def test_a_csv_without_its_json_is_absent(tmp_path):
    path = one().save(tmp_path, FACTS)
    assert recipe_of(tmp_path, "quick", "opening", 0) == "abc"
    path.with_suffix(".json").unlink()
    assert read(tmp_path, "quick", "opening").empty
    assert recipe_of(tmp_path, "quick", "opening", 0) is None


@pytest.mark.parametrize("step", range(4))
def test_a_crash_while_saving_leaves_the_old_record_or_none(tmp_path, monkeypatch, step):
    """Break at every file operation of an overwriting save in turn: never a mixture, never litter."""
    one(value=0.25).save(tmp_path, FACTS)
    calls = itertools.count()

    def fragile(real):
        def call(*arguments, **options):
            if next(calls) == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "replace", fragile(os.replace))
    monkeypatch.setattr(pathlib.Path, "write_text", fragile(pathlib.Path.write_text))
    with pytest.raises(KeyboardInterrupt):
        one(value=0.75).save(tmp_path, FACTS)
    assert read(tmp_path, "quick").value.tolist() in ([0.25], [])
    assert {path.suffix for path in (tmp_path / "quick/opening").iterdir()} <= {".csv", ".json"}
    assert not list((tmp_path / "quick/opening").glob(".*"))


def _cut(text):
    return text[: len(text) // 2]


def _drop_last_row(text):
    return text[: text.rstrip().rindex("\n") + 1]


@pytest.mark.parametrize(
    "damage",
    [_cut, _drop_last_row, lambda text: "", lambda text: text.replace("0.5", "0.6"), lambda text: "\0\xff"],
)
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_damage_is_noticed_and_named(tmp_path, damage, suffix):
    path = one().save(tmp_path, FACTS).with_suffix(suffix)
    before = path.read_text()
    after = damage(before)
    if before == after:
        pytest.skip("does not apply")
    path.write_text(after, encoding="latin-1")
    with pytest.raises(KdsecError) as caught:
        read(tmp_path, "quick")
    assert (
        "seed0.csv" in str(caught.value) and "--fresh" in str(caught.value) and "\n" not in str(caught.value)
    )
    assert recipe_of(tmp_path, "quick", "opening", 0) is None


def test_a_record_in_the_wrong_place_is_noticed(tmp_path):
    path = one(0).save(tmp_path, FACTS)
    for suffix in (".csv", ".json"):
        os.rename(path.with_suffix(suffix), path.with_name("seed1" + suffix))
    with pytest.raises(KdsecError, match="seed1"):
        read(tmp_path, "quick")


def test_windows_line_ends_do_no_harm(tmp_path):
    path = one().save(tmp_path, FACTS)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(tmp_path, "quick").value.tolist() == [0.5]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(KdsecError, match=r"seed0.csv: No space left on device; free"):
        one().save(tmp_path, FACTS)


def test_an_empty_record_is_not_saved(tmp_path):
    with pytest.raises(KdsecError, match="no rows"):
        Records("opening", "quick", 0, "digits").save(tmp_path, FACTS)
    assert not list(tmp_path.iterdir())


def test_recorded_reads_the_folder_it_is_told(tmp_path, monkeypatch):
    one(4).save(tmp_path, FACTS)
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path))
    assert recorded("opening", "quick").seed.tolist() == [4]
    assert recorded("opening", "paper").empty
    with pytest.raises(KdsecError, match="did you mean 'opening'"):
        recorded("opning", "quick")


def test_recorded_finds_results_inside_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.delenv("KDSEC_RESULTS", raising=False)
    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "site-packages" / "kdsec")
    one(5).save(tmp_path / "site-packages" / "kdsec" / "_results", FACTS)
    assert origin.repository() is None
    assert recorded("opening", "quick").seed.tolist() == [5]


@dataclasses.dataclass(frozen=True)
class Settings:
    rates: tuple[float, ...] = (0.1, 0.2)
    inner: object = None
    limit: float = math.inf


def test_provenance_is_whole_and_private(monkeypatch):
    monkeypatch.setenv("KDSEC_RECIPE", "feed")
    facts = origin.provenance("cpu", 12.345, {"digits": "1234"}, Settings(inner=Settings()), {"limit": 2})
    text = json.dumps(facts, allow_nan=False)
    assert facts["recipe"] == "feed" and facts["seconds"] == 12.3 and facts["date"].endswith("Z")
    assert facts["settings"]["inner"]["rates"] == [0.1, 0.2] and facts["overrides"] == {"limit": 2}
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    assert facts["machine"]["device"] == "cpu" and facts["machine"]["gpu"] is None
    for private in {str(pathlib.Path.home()), os.uname().nodename, str(pathlib.Path.cwd())} - {"/"}:
        assert private not in text


def test_provenance_refuses_paths():
    with pytest.raises(KdsecError, match="cannot be recorded"):
        origin.provenance("cpu", 1.0, {}, Settings(inner=pathlib.Path("/home")))


def test_commit_is_of_its_own_checkout_only(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    inner = tmp_path / "inner"
    for folder in (tmp_path / "kdsec", tmp_path / "results", inner):
        folder.mkdir()
        (folder / "file").write_text("1")
    assert origin.commit_of(tmp_path) == (None, None)
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit, dirty = origin.commit_of(tmp_path)
    assert commit is not None and len(commit) == 40 and dirty is False
    (tmp_path / "results" / "file").write_text("2")
    assert origin.commit_of(tmp_path) == (commit, False)
    (tmp_path / "kdsec" / "new.py").write_text("")
    assert origin.commit_of(tmp_path) == (commit, True)
    assert origin.commit_of(inner) == (None, None)
    assert origin.commit_of(None) == (None, None)
