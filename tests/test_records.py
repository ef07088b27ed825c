"""Records: what goes in comes out, nothing wrong goes in, nothing half-written counts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsec import data
from kdsec.cli import main
from kdsec.errors import KdsecError
from kdsec.report import provenance as origin
from kdsec.report.records import COLUMNS, DATASETS, Records, expand, read, recipe_of, recorded, runs

FACTS = {"recipe": "abc", "seconds": 1.5}


def one(seed: int = 0, value: float = 0.5) -> Records:
    record = Records("opening", "quick", seed, "digits")
    record.add("kd", "net", "accuracy", value, n=100, temperature=4)
    return record


labels = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
setting_text = labels.filter(lambda text: not set(text) & set("=;") and text not in ("nan", "inf", "-inf"))
finite = st.floats(allow_nan=False, allow_infinity=False)
row = st.tuples(
    labels,
    labels,
    labels.filter(lambda text: not text.endswith("accuracy")),
    finite,
    st.none() | st.integers(1, 10**9),
    st.none() | setting_text,
)


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


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, None, "0.5", True, [0.5], 1j, torch.tensor(0.5), np.array([1.0])]
)
def test_only_finite_numbers_are_values(value):
    record = one()
    with pytest.raises(KdsecError, match="not a finite number") as caught:
        record.add("kd", "net", "loss", value)
    assert "\n" not in str(caught.value) and len(record) == 1


@pytest.mark.parametrize("value", [-0.01, 1.01, 97.5])
def test_an_accuracy_is_a_share(value):
    with pytest.raises(KdsecError, match="not a share"):
        one().add("kd", "net", "robust accuracy", value)


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
        record.add("kd", "net", "accuracy", 0.6, profile="x")


@pytest.mark.parametrize(
    "arguments",
    [
        ("opning", "quick", 0, "digits"),
        ("opening", "big", 0, "digits"),
        ("opening", "quick", -1, "digits"),
        ("opening", "quick", 1.0, "digits"),
        ("opening", "quick", True, "digits"),
        ("opening", "quick", 0, "dogits"),
    ],
)
def test_a_record_belongs_to_a_known_chapter_profile_and_seed(arguments):
    with pytest.raises(KdsecError):
        Records(*arguments)


def test_every_data_set_has_a_name_in_records():
    assert set(DATASETS) == set(data.DATASETS)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a record without its json
        assert read(tmp_path, "quick").value.tolist() in ([0.25], [])
    assert {path.suffix for path in (tmp_path / "quick/opening").iterdir()} <= {".csv", ".json"}
    assert not list((tmp_path / "quick/opening").glob(".*"))


@pytest.mark.parametrize("missing", [".json", ".csv"])
def test_a_record_that_lacks_a_file_is_named_and_left_out(tmp_path, missing):
    paths = [one(seed).save(tmp_path, FACTS) for seed in range(3)]
    assert recipe_of(tmp_path, "quick", "opening", 1) == "abc"
    paths[1].with_suffix(missing).unlink()
    with pytest.warns(UserWarning, match=rf"seed1\{missing} is missing.* --seeds 1 --out {tmp_path} --fresh"):
        assert read(tmp_path, "quick", "opening").seed.tolist() == [0, 2]
    assert recipe_of(tmp_path, "quick", "opening", 1) is None


def test_the_command_line_names_it_in_one_line(tmp_path):
    paths = [one(seed).save(tmp_path, FACTS) for seed in range(2)]
    paths[1].with_suffix(".json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert main(["results", "--out", str(tmp_path)]) == 0
    (line,) = warnings.formatwarning(caught[0].message, UserWarning, "file", 1).splitlines()
    assert line.startswith("kdsec: warning: ") and "seed1.json is missing" in line


def rewritten(path, text):
    """Put other rows into a record, with their checksum: what a mistaken or hostile author would do."""
    about = json.loads(path.with_suffix(".json").read_text())
    about["checksum"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    path.with_suffix(".json").write_text(json.dumps(about))
    path.write_text(text)


ROW = "opening,quick,0,digits,kd,net,temperature=4,accuracy,0.5,100"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",digits,", ",dogits,", "did you mean 'digits'"),
        (",0.5,", ",1.5,", "not a share"),
        (",0.5,", ",nan,", "not a finite number"),
        (",0.5,", ",half,", "half"),
        (",100", ",0", "not a count"),
        (",100", ",1.5", "1.5"),
        (ROW, f"{ROW}\n{ROW}", "row 3"),
        ("quick,0,", "quick,1,", "not a row of opening / quick / 0"),
        (",quick,", ",small,", "not a row of"),
        (",100", ",100,1", "not a row of"),
        (",kd,", ',"a\nb",', "not a plain label"),
        ("temperature=4", "temperature", "temperature"),
        ("temperature=4", "b=1;a=2", "key=value"),
        ("temperature=4", "arm=x", "name of a column"),
        (ROW, "", "row 2"),
        (",metric,", ",measure,", "columns"),
    ],
)
def test_a_wrong_row_is_named_with_its_file_and_place(tmp_path, old, new, message):
    path = one().save(tmp_path, FACTS)
    text = path.read_text()
    assert old in text and read(tmp_path, "quick").shape[0] == 1
    rewritten(path, text.replace(old, new))
    with pytest.raises(KdsecError, match=re.escape(message)) as caught:
        read(tmp_path, "quick")
    said = str(caught.value)
    assert str(path) in said and f"--out {tmp_path} --fresh" in said and "\n" not in said
    assert message == "columns" or "row 2, " in said or "row 3, " in said


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from([".csv", ".json"]))
def test_damage_of_any_kind_is_one_line(content, suffix):
    with tempfile.TemporaryDirectory() as out:
        path = one().save(out, FACTS).with_suffix(suffix)
        path.write_bytes(content)
        with pytest.raises(KdsecError) as caught:
            read(out, "quick")
        assert "seed0.csv" in str(caught.value) and "\n" not in str(caught.value)
        assert recipe_of(out, "quick", "opening", 0) is None


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '{"checksum": 3}'])
def test_json_that_is_no_provenance_is_damage(tmp_path, content):
    one().save(tmp_path, FACTS).with_suffix(".json").write_text(content)
    with pytest.raises(KdsecError, match="is damaged"):
        read(tmp_path, "quick")


def test_a_record_in_the_wrong_place_is_noticed(tmp_path):
    path = one(0).save(tmp_path, FACTS)
    for suffix in (".csv", ".json"):
        os.rename(path.with_suffix(suffix), path.with_name("seed1" + suffix))
    with pytest.raises(KdsecError, match="seed1"):
        read(tmp_path, "quick")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path, suffix):
    path = one().save(tmp_path, FACTS).with_suffix(suffix)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(tmp_path, "quick").value.tolist() == [0.5]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(KdsecError, match=r"seed0.csv: No space left on device; free"):
        one().save(tmp_path, FACTS)


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
