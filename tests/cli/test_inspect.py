"""``vqm info``, ``vqm verify`` and ``vqm diff``."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import HOSTILE, HOSTILE_ESCAPED, Run, as_stdin

import vqformat


def test_info(run: Run, model: Path) -> None:
    result = run("info", model)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert "format    vqm 1.1, written by vqformat " in result.out
    assert "content   2 layers, 6 tensors (1 alias), 10 weights" in lines
    assert r"metadata  note = x\x1b[31m" in lines
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["fc1.weight"] == ["fc1.weight", "f32", "2x3", "raw", "32.000", "24"]
    assert rows["fc1.tied"] == ["fc1.tied", "f32", "2x3", "alias", "of", "fc1.weight", "-", "-"]
    assert rows["none"] == ["none", "f32", "0x3", "empty", "0.000", "0"]
    assert HOSTILE_ESCAPED in result.out
    assert "\x1b" not in result.out


def test_info_tells_copies_from_aliases(run: Run, tmp_path: Path) -> None:
    w = np.arange(2500, dtype=np.float32)
    vqformat.save_file({"a": w, "b": w.copy(), "c": w}, tmp_path / "a.vqm", lossless=True)

    out = run("info", tmp_path / "a.vqm").out

    assert "3 tensors (1 alias, 1 copy), 5,000 weights" in out
    assert "copy of a" in out and "alias of a" in out


def test_info_json(run: Run, model: Path) -> None:
    result = run("info", "--json", model)
    document = result.json
    nbytes = model.stat().st_size
    assert document["format_version"] == "1.1"
    assert document["metadata"] == {"note": "x\x1b[31m", "vqm.source": {"format": "npz"}}
    assert (document["n_tensors"], document["n_layers"], document["n_books"], document["n_weights"]) == (6, 2, 0, 10)
    assert (document["file_nbytes"], document["section_nbytes"]) == (nbytes, 24 + 4 + 8 + 1)
    assert document["overhead_nbytes"] == nbytes - 37
    assert document["tensors"][1] == {"name": "fc1.bias", "layer": "fc1", "dtype": "f16", "shape": [2], "method": "raw",
                                      "bits_per_weight": 16.0, "stored_nbytes": 4, "alias_of": None,
                                      "copy_of": None}  # fmt: skip
    assert document["tensors"][2]["alias_of"] == "fc1.weight"
    assert document["tensors"][5]["name"] == HOSTILE


def test_info_of_chosen_tensors(run: Run, model: Path) -> None:
    lines = run("info", model, "-v", "step", "fc1.[bt]*").out.splitlines()
    assert [line.split()[0] for line in lines] == ["tensor", "fc1.bias", "fc1.tied", "step"]


def test_info_quiet_leaves_out_the_tensors(run: Run, model: Path) -> None:
    out = run("info", "-q", model).out
    assert "6 tensors" in out
    assert "fc1.weight" not in out


def test_info_of_an_unknown_tensor_has_near_matches(run: Run, model: Path) -> None:
    run("info", model, "fc1.wieght").failed_with("model.vqm: no tensor 'fc1.wieght'; near matches: 'fc1.weight'")


def test_info_from_stdin(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, model.read_bytes())
    result = run("info", "-")
    assert result.code == 0
    assert "file      stdin" in result.out


def test_info_reads_no_data(run: Run, model: Path) -> None:
    whole = bytearray(model.read_bytes())
    at = whole.index(np.array([1, 2, 3, 4, 5, 6], "<f4").tobytes())
    whole[at] ^= 1
    model.write_bytes(whole)
    assert run("info", model).code == 0
    run("verify", "-q", model).failed_with("damaged")


def test_info_does_not_import_torch(model: Path) -> None:
    code = ("import sys; from vqformat.cli import main; code = main(sys.argv[1:]);"
            "heavy = {'torch', 'h5py', 'safetensors', 'tqdm', 'faiss', 'vqformat.converters'} & set(sys.modules);"
            "sys.exit(f'{heavy} imported' if heavy else code)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "info", model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# verify


def test_verify(run: Run, model: Path) -> None:
    digest = run("info", "--json", model).json["digest"]
    content = vqformat.content_digest(model)
    result = run("verify", model)
    assert (result.code, result.out, result.err) == (0, f"{model}: ok {digest}, contents {content}\n", "")


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_a_budget_that_is_missed_is_always_said(run: Run, tmp_path: Path, option: str) -> None:
    np.savez(tmp_path / "zeros.npz", w=np.zeros((64, 64), np.float32), big=np.zeros((300, 300)))

    result = run("convert", tmp_path / "zeros.npz", "--ratio", "8", option)

    assert result.code == 0
    assert result.err.startswith("vqm: note: a ratio of 8 was asked for; ")


def test_verify_quiet(run: Run, model: Path) -> None:
    result = run("verify", "-q", model)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_verify_goes_on_after_a_bad_file(run: Run, model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.vqm"
    cut.write_bytes(model.read_bytes()[:-1])
    result = run("verify", cut, tmp_path / "absent.vqm", tmp_path, model)
    assert result.code == 1
    assert f"\n{model}: ok " in result.out
    errors = result.err.splitlines()
    assert errors[0].startswith(f"vqm: error: {cut}: ")
    assert errors[1:] == [f"vqm: error: '{tmp_path / 'absent.vqm'}': no such file or directory",
                          f"vqm: error: '{tmp_path}': is a directory"]  # fmt: skip


def test_verify_finds_any_flipped_byte(run: Run, model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    bad = tmp_path / "bad.vqm"
    for at in range(0, len(whole), 7):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        run("verify", "-q", bad).failed_with("bad.vqm: ")


def test_verify_json(run: Run, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.vqm"
    bad.write_bytes(b"GGUF" + bytes(100))
    result = run("verify", "--json", model, bad)
    good, refused = result.json
    assert (result.code, result.err) == (1, "")
    assert (good["ok"], len(good["digest"])) == (True, 64)
    assert (refused["ok"], refused["error_class"], refused["clause"]) == (False, "format", "HDR-001")
    assert "GGUF" in refused["error"]


def test_verify_from_stdin(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, model.read_bytes())
    assert run("verify", "-").out.startswith("stdin: ok ")
    as_stdin(monkeypatch, model.read_bytes() + b"\0")
    run("verify", "-").failed_with("stdin: ", "FTR-001")


def test_a_hostile_file_name_is_escaped(run: Run, model: Path) -> None:
    path = model.rename(model.with_name("m\x1b[31m\u202e.vqm"))
    assert r"m\x1b[31m\u202e.vqm: ok " in run("verify", path).out
    path.write_bytes(b"nonsense" * 10)
    run("verify", path).failed_with(r"m\x1b[31m\u202e.vqm: ")
    path.unlink()
    run("verify", path).failed_with(r"m\x1b[31m\u202e.vqm': no such file")


def save_pair(folder: Path, a: dict[str, Any], b: dict[str, Any]) -> tuple[Path, Path]:
    for name, arrays in (("a.npz", a), ("b.npz", b)):
        np.savez(folder / name, **{key: np.asarray(value) for key, value in arrays.items()})
    return folder / "a.npz", folder / "b.npz"


def test_diff_measures(run: Run, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path, {"w": np.float32([3, 4, 0, 0])}, {"w": np.float32([3, 4, 0, 0.5])})
    result = run("diff", a, b, "--json")
    row = result.json["tensors"][0]
    assert result.code == 0
    assert (row["max_abs"], row["rms"], row["identical"]) == (0.5, 0.25, False)
    assert row["sqnr_db"] == pytest.approx(20.0)  # 10 log10(25 / 0.25)
    assert row["cosine"] == pytest.approx(5 / math.sqrt(25.25))
    assert result.json["total"]["sqnr_db"] == pytest.approx(20.0)


def test_diff_prints_a_table(run: Run, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path, {"w": np.float32([3, 4]), "n": [1]}, {"w": np.float32([3, 4.5]), "n": [1]})
    lines = [line.split() for line in run("diff", a, b).out.splitlines()]
    assert lines[0][:2] == ["tensor", "shape"]
    assert lines[1] == ["w", "2", "0.5", "0.3536", "20.00", "0.998460"]
    assert lines[2][:5] == ["n", "1", "0", "0", "identical"]
    assert lines[3][:2] == ["all", "weights"]
    assert len(run("diff", "-q", a, b).out.splitlines()) == 2


def test_diff_of_the_same_file(run: Run, archive: Path) -> None:
    document = run("diff", archive, archive, "--json").json
    assert all(row["identical"] and row["sqnr_db"] is None and row["rms"] == 0 for row in document["tensors"])
    assert document["total"]["identical"]


def test_diff_of_nan_infinity_and_zero(run: Run, tmp_path: Path) -> None:
    same = np.float32([np.nan, np.inf, 1])
    a, b = save_pair(
        tmp_path,
        {"same": same, "nan": np.float32([1, 2]), "zero": np.zeros(2, "f4"), "no": np.zeros(0)},
        {"same": same, "nan": np.float32([np.nan, 2]), "zero": np.ones(2, "f4"), "no": np.zeros(0)},
    )
    result = run("diff", a, b, "--json")
    alike, nan, zero, empty = result.json["tensors"]
    assert result.code == 0
    assert (alike["max_abs"], alike["rms"], alike["identical"]) == (0, 0, True)
    assert (nan["max_abs"], nan["rms"], nan["sqnr_db"]) == (None, None, None)
    assert (zero["rms"], zero["sqnr_db"], zero["cosine"]) == (1, None, None)
    assert (empty["rms"], empty["identical"]) == (None, True)
    assert run("diff", a, b).code == 0


def test_diff_of_unlike_models_exits_with_1(run: Run, tmp_path: Path) -> None:
    a, b = save_pair(
        tmp_path,
        {"shape": np.zeros((2, 3)), "dtype": np.float32([1]), HOSTILE: np.zeros(1), "both": np.ones(1)},
        {"shape": np.zeros((3, 2)), "dtype": np.float16([1]), "new": np.zeros(1), "both": np.ones(1)},
    )
    result = run("diff", a, b)
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert "shape: shape 2x3 in A, 3x2 in B" in lines
    assert "dtype: dtype f32 in A, f16 in B" in lines
    assert lines[-4:] == [f"1 tensor only in A, {a}:", f"  {HOSTILE_ESCAPED}", f"1 tensor only in B, {b}:", "  new"]
    document = run("diff", a, b, "--json").json
    assert (document["same_structure"], document["only_in_a"], document["only_in_b"]) == (False, [HOSTILE], ["new"])
    assert "rms" not in document["tensors"][0]
    assert document["tensors"][1]["rms"] == 0


def test_diff_compares_large_tensors_in_pieces(run: Run, tmp_path: Path) -> None:
    n = (1 << 20) + 3
    a, b = save_pair(tmp_path, {"w": np.ones(n, "f4")}, {"w": np.append(np.ones(n - 1, "f4"), np.float32(3))})
    row = run("diff", a, b, "--json").json["tensors"][0]
    assert (row["max_abs"], row["rms"]) == (2, pytest.approx(math.sqrt(4 / n)))


def test_diff_of_complex_and_integers(run: Run, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path, {"c": np.complex64([3 + 4j]), "i": np.array([5, 7]), "t": np.array([True])},
                     {"c": np.complex64([3 + 3j]), "i": np.array([5, 8]), "t": np.array([False])})  # fmt: skip
    c, i, t = run("diff", a, b, "--json").json["tensors"]
    assert (c["max_abs"], i["max_abs"], t["max_abs"]) == (1, 1, 1)


def test_diff_with_stdin(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, archive.read_bytes())
    assert run("diff", "-", archive).code == 0


def test_diff_tells_which_file_is_bad(run: Run, archive: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.vqm"
    bad.write_bytes(b"nonsense" * 10)
    run("diff", archive, bad).failed_with("bad.vqm")
    run("diff", archive, tmp_path / "absent").failed_with("absent': no such file or directory")


# The content digest


def test_info_shows_the_content_digest_on_request(run: Run, model: Path, archive: Path) -> None:
    for path in (model, archive):
        digest = vqformat.content_digest(path)
        assert digest not in run("info", path).out
        assert f"contents  {digest}" in run("info", "--digest", path).out.splitlines()
        assert run("info", "--digest", "--json", path).json["content_digest"] == digest


def test_diff_says_whether_the_contents_are_the_same(run: Run, archive: Path, tmp_path: Path) -> None:
    run("convert", archive, "--lossless", "-o", tmp_path / "exact.vqm")
    run("convert", archive, "-o", tmp_path / "lossy.vqm")
    same, other = (run("diff", archive, tmp_path / name).out for name in ("exact.vqm", "lossy.vqm"))
    assert "same contents" in same.splitlines()
    assert "same contents" not in other.splitlines()
    assert run("diff", "--json", archive, tmp_path / "exact.vqm").json["same_contents"] is True
    assert run("diff", "--json", archive, tmp_path / "lossy.vqm").json["same_contents"] is False
