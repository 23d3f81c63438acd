"""The command ``vqm``: what it prints, its exit codes, and how it fails."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINT

import vqformat.cli.inspect as verbs
from vqformat import ConversionError, load, load_file
from vqformat.cli import main
from vqformat.cli.text import escape, shape_text, table, to_json
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.records import AliasRecord

Run = Callable[..., "Result"]

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\r\nb\u202egnp.exe\u2028c\\d"
HOSTILE_ESCAPED = r"a\x1b]0;owned\x07\x1b[2J\r\nb\u202egnp.exe\u2028c\\d"


class Result:
    """What a run left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def failed_with(self, *words: str) -> None:
        """It failed with one line on stderr that has these words, and nothing on stdout."""
        assert (self.code, self.out) == (1, "")
        assert self.err.startswith("vqm: error: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        for word in words:
            assert word in self.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str | Path) -> Result:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as err:  # by argparse
            assert isinstance(err.code, int)
            code = err.code
        out, err_text = capsys.readouterr()
        return Result(code, out, err_text)

    return run


def vqm(*args: str | Path, data: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "vqformat", *map(str, args)]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=120, **options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small .vqm with an alias, a scalar, an empty tensor and a name that attacks the terminal."""
    path = tmp_path / "model.vqm"
    with ChunkWriter(path, {"note": "x\x1b[31m", "vqm.source": {"format": "npz"}}) as writer:
        weight = np.array([[1, 2, 3], [4, 5, 6]], "<f4")
        writer.add_layer("fc1", [assemble_raw("fc1.weight", "f32", weight, 0, compress=False),
                                 assemble_raw("fc1.bias", "f16", np.array([0.5, -2], "<f2"), 0, compress=False),
                                 AliasRecord("fc1.tied", "fc1.weight")])  # fmt: skip
        writer.add_layer("", [assemble_raw("step", "i64", np.array(7, "<i8"), 0, compress=False),
                              assemble_raw("none", "f32", np.zeros((0, 3), "<f4"), 0),
                              assemble_raw(HOSTILE, "u8", np.array([9], np.uint8), 0, compress=False)])  # fmt: skip
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A checkpoint that needs neither torch nor safetensors."""
    path = tmp_path / "net.npz"
    rng = np.random.default_rng(1)
    np.savez(path, **{"fc1.weight": rng.standard_normal((64, 48), np.float32),
                      "fc1.bias": rng.standard_normal(64, np.float32), "step": np.array(3)})  # fmt: skip
    return path


def as_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# Text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("conv1.weight", "conv1.weight"),
        ("层.重み é", "层.重み é"),
        (HOSTILE, HOSTILE_ESCAPED),
        ("\x9b31m\x7f\ufeff\u2066\udc80", r"\x9b31m\x7f\ufeff\u2066\udc80"),
        ("\\x1b", r"\\x1b"),
    ],
)
def test_names_are_escaped_without_ambiguity(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_table_aligns_wide_characters() -> None:
    assert table([("name", "n"), ("层", "10"), ("ab", "2")], "<>") == ["name   n", "层    10", "ab     2"]


def test_a_long_name_does_not_widen_its_column() -> None:
    lines = table([("name", "n"), ("x" * 300, "1"), ("y", "2")], "<>")
    assert lines == ["name" + " " * 58 + "n", "x" * 300 + "  1", "y" + " " * 61 + "2"]


def test_shape_of_a_scalar_has_a_word() -> None:
    assert [shape_text(shape) for shape in [(), (3,), (2, 0)]] == ["scalar", "3", "2x0"]


def test_json_has_no_nan_and_is_ascii() -> None:
    text = to_json({"a": math.inf, "b": [math.nan, 1.5], "c": b"\x00", "d": "\x7f\u202eé"})
    assert text.isascii()
    assert "\x7f" not in text
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"base64": "AA=="}, "d": "\x7f\u202eé"}


# Usage


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("vqm 0.")
    assert "format version 1.1" in result.out


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["compress", "x.pt"],
        ["convert"],
        ["convert", "x.pt", "--bits", "0"],
        ["convert", "x.pt", "--bits", "inf"],
        ["convert", "x.pt", "--ratio", "ten"],
        ["convert", "x.pt", "--bits", "2", "--lossless"],
        ["convert", "x.pt", "--seed", "-1"],
        ["convert", "x.pt", "--layer", "fc*"],
        ["convert", "x.pt", "--layer", "fc*=pg"],
        ["convert", "x.pt", "--method", "pq:entires=16"],
        ["convert", "x.pt", "--lossless", "--method", "raw"],
        ["convert", "-"],
        ["convert", "x.vqm"],
        ["info"],
        ["info", "x.vqm", "-q", "-v"],
        ["verify"],
        ["extract", "x.vqm"],
        ["extract", "x.vqm", "-o", "out.gguf"],
        ["extract", "x.vqm", "-o", "-"],
        ["diff", "a.vqm"],
        ["diff", "-", "-"],
    ],
)
def test_wrong_usage_exits_with_2(run: Run, args: list[str]) -> None:
    result = run(*args)
    assert (result.code, result.out) == (2, "")
    assert "usage: vqm" in result.err
    assert "error: " in result.err


def test_usage_error_names_the_near_method(run: Run) -> None:
    assert "did you mean 'kmeans'?" in run("convert", "x.pt", "--method", "kmean").err


def test_help_tells_the_methods(run: Run) -> None:
    result = run("convert", "--help")
    assert result.code == 0
    for word in ("--layer PATTERN=METHOD", "kmeans", "svd:rank=8+kmeans:entries=4"):
        assert word in result.out


# info


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
                                      "bits_per_weight": 16.0, "stored_nbytes": 4, "alias_of": None}  # fmt: skip
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
    run("verify", model).failed_with("damaged")


def test_info_does_not_import_torch(model: Path) -> None:
    code = ("import sys; from vqformat.cli import main; code = main(sys.argv[1:]);"
            "heavy = {'torch', 'h5py', 'safetensors', 'tqdm', 'faiss', 'vqformat.converters'} & set(sys.modules);"
            "sys.exit(f'{heavy} imported' if heavy else code)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "info", model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# verify


def test_verify(run: Run, model: Path) -> None:
    digest = run("info", "--json", model).json["digest"]
    result = run("verify", model)
    assert (result.code, result.out, result.err) == (0, f"{model}: ok {digest}\n", "")


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
    assert result.out.startswith(f"{model}: ok ")
    errors = result.err.splitlines()
    assert errors[0].startswith(f"vqm: error: {cut}: ")
    assert errors[1:] == [f"vqm: error: '{tmp_path / 'absent.vqm'}': no such file or directory",
                          f"vqm: error: '{tmp_path}': is a directory"]  # fmt: skip


def test_verify_finds_any_flipped_byte(run: Run, model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    bad = tmp_path / "bad.vqm"
    for at in range(0, len(whole), 7):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        run("verify", bad).failed_with("bad.vqm: ")


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


# convert


def test_convert_prints_a_table(run: Run, archive: Path, tmp_path: Path) -> None:
    result = run("convert", archive)
    output = tmp_path / "net.vqm"
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["tensor", "shape", "method", "bits/weight", "SQNR", "dB", "bytes", "%", "of", "file"]
    assert lines[1][:2] == ["fc1.weight", "64x48"]
    assert 25 < float(lines[1][-3]) < 50
    assert lines[3][:2] == ["step", "scalar"]
    assert lines[3][-3:-1] == ["exact", "8"]
    assert lines[5][0] == "total"
    assert lines[5][-2:] == [f"{output.stat().st_size:,}", "100.0"]
    assert result.out.splitlines()[-1].startswith(f"{output}: 12,552 bytes of tensors in ")
    assert list(load_file(output)) == ["fc1.weight", "fc1.bias", "step"]


def test_convert_json(run: Run, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "other.vqm"
    document = run("convert", archive, "-o", output, "--json").json
    assert document["source_nbytes"] == 12_552
    assert document["file_nbytes"] == output.stat().st_size
    assert document["ratio"] == 12_552 / output.stat().st_size
    weight, _, step = document["tensors"]
    assert weight["shape"] == [64, 48]
    assert (weight["exact"], step["exact"], step["sqnr_db"]) == (False, True, None)
    assert document["notes"] == []


def test_the_rows_of_a_report_add_up_to_the_file(run: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"a.weight": (64, 48), "a.bias": (64,), "b.weight": (32, 64), "b.bias": (32,)}
    np.savez(tmp_path / "net.npz", **{name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()})
    result = run("convert", tmp_path / "net.npz", "--ratio", "8", "--preset", "small")
    lines = [line.split() for line in result.out.splitlines()]
    nbytes = {line[0]: int(line[-2].replace(",", "")) for line in lines[1:-1]}
    assert nbytes["shared"] > 0
    assert sum(nbytes.values()) == 2 * nbytes["total"] == 2 * (tmp_path / "net.vqm").stat().st_size

    document = run("convert", tmp_path / "net.npz", "--ratio", "8", "--preset", "small", "--json", "-f").json
    stored = [tensor["stored_nbytes"] for tensor in document["tensors"]]
    assert sum(stored) + document["shared_nbytes"] + document["overhead_nbytes"] == document["file_nbytes"]


@pytest.mark.parametrize(
    ("name", "output"),
    [("net.npz", "net.vqm"), ("net.v1.5", "net.v1.5.vqm"), ("NET.PTH.TAR", "NET.vqm"), ("net", "net.vqm"),
     ("net.safetensors.index.json", "net.vqm")],
)  # fmt: skip
def test_default_output_lies_beside_the_source(run: Run, archive: Path, name: str, output: str) -> None:
    source = archive.rename(archive.with_name(name))
    assert run("convert", "-q", source).code == 0
    assert source.with_name(output).is_file()


def test_convert_lossless(run: Run, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.vqm"
    assert run("convert", archive, "--lossless", "-q").code == 0
    with np.load(archive) as arrays:
        for name, array in load_file(output).items():
            assert array.tobytes() == arrays[name].tobytes()


def test_convert_meets_a_ratio(run: Run, archive: Path) -> None:
    assert run("convert", archive, "--ratio", "6", "--json").json["ratio"] == pytest.approx(6, rel=0.02)


def test_convert_with_a_calibration(run: Run, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    np.savez(tmp_path / "net.npz", w=weights)
    Calibration({"w": TensorStatistics(1.0, ((np.eye(64, dtype=np.float32) + 1,),), 1000)}).save(tmp_path / "c.npz")

    run("convert", tmp_path / "net.npz", "-o", tmp_path / "with.vqm", "--calibration", tmp_path / "c.npz")
    run("convert", tmp_path / "net.npz", "-o", tmp_path / "without.vqm", "--preset", "small")

    found, other = (load_file(tmp_path / name)["w"] - weights for name in ("with.vqm", "without.vqm"))
    assert np.square(found.sum(1)).mean() < np.square(other.sum(1)).mean() / 4  # what all inputs have in common


def test_a_calibration_that_is_none_fails(run: Run, archive: Path) -> None:
    run("convert", archive, "--calibration", archive).failed_with("no saved calibration")
    run("convert", archive, "--calibration", "missing").failed_with("missing")


def test_convert_with_methods(run: Run, archive: Path) -> None:
    result = run("convert", archive, "--layer", "fc*=kmeans:entries=4", "--method", "lossless", "--json", "--seed", "3")
    weight, bias, step = result.json["tensors"]
    assert weight["method"] == "codebook 4"
    assert weight["bits_per_weight"] < 2.1
    assert (bias["exact"], step["exact"]) == (False, True)


def test_a_pattern_for_nothing_fails_before_the_work(run: Run, archive: Path, tmp_path: Path) -> None:
    run("convert", archive, "--layer", "fc\x1b*=raw").failed_with(r"net.npz: the pattern 'fc\x1b*' matches no tensor")
    assert os.listdir(tmp_path) == ["net.npz"]


def test_same_seed_same_bytes(run: Run, archive: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert run("convert", archive, "-o", tmp_path / name, "--method", "pq:dim=2,entries=8", "-q").code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_notes_go_to_stderr(run: Run, archive: Path) -> None:
    np.savez(archive, **{"w": np.ones(3), "te\x1bxt": np.array(["a"])})
    result = run("convert", archive)
    assert result.code == 0
    assert result.err.startswith("vqm: note: ")
    assert r"te\x1bxt" in result.err
    assert "vqm: note" not in result.out
    assert len(run("convert", archive, "-f", "--json").json["notes"]) == 1
    assert run("convert", archive, "-f", "-q").err == ""


def test_convert_from_stdin_to_stdout(archive: Path) -> None:
    done = vqm("convert", "-", "-o", "-", data=archive.read_bytes())
    assert done.returncode == 0
    assert list(load(done.stdout)) == ["fc1.weight", "fc1.bias", "step"]
    assert b"fc1.weight  64x48" in done.stderr
    assert b"stdout: 12,552 bytes" in done.stderr
    checked = vqm("verify", "-", data=done.stdout)
    assert checked.stdout.startswith(b"stdin: ok ")


def test_a_terminal_gets_no_binary(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    result = run("convert", archive, "-o", "-")
    assert (result.code, result.out) == (2, "")
    assert "not for a terminal" in result.err


def test_convert_from_stdin_names_it_in_errors(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, b"plain text\n")
    result = run("convert", "-", "-o", tmp_path / "x.vqm")
    result.failed_with("stdin is a text file")


def test_nothing_is_overwritten_without_f(run: Run, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.vqm"
    output.write_bytes(b"precious")
    run("convert", archive).failed_with("net.vqm' exists; -f replaces it")
    assert output.read_bytes() == b"precious"
    assert run("convert", archive, "-f").code == 0
    assert run("verify", output).code == 0


def test_the_source_is_never_overwritten(run: Run, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    link = tmp_path / "link.vqm"
    link.symlink_to(archive)
    for output in (archive, link):
        result = run("convert", archive, "-o", output, "-f")
        assert result.code == 2
        assert "the output is the source itself" in result.err
    assert archive.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
def test_a_pipe_is_written_to_and_never_replaced(run: Run, archive: Path, model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert run("convert", archive, "-o", pipe, "-f", "-q").code == 0
        data, _ = reader.communicate(timeout=60)
    assert list(load(data)) == ["fc1.weight", "fc1.bias", "step"]
    run("extract", model, "-o", pipe, "-f").failed_with("pipe.npz' is a device or pipe, not a file")
    assert pipe.is_fifo()


def test_failed_convert_leaves_nothing(run: Run, archive: Path, tmp_path: Path) -> None:
    run("convert", archive, "--bits", "1e-9").failed_with("net.npz: ")
    assert os.listdir(tmp_path) == ["net.npz"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\x80\x04K\x01.", "pickle"), (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
     (b"PK\x03\x04", "zip"), (b"\x89VQM\r\n\x1a\n\x01\0\0\0\0\0\0\0", "too short")],
)  # fmt: skip
def test_convert_refuses_what_it_cannot_read(run: Run, tmp_path: Path, content: bytes, words: str) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(content)
    run("convert", source, "-o", tmp_path / "out.vqm").failed_with("source.bin", words)
    assert not (tmp_path / "out.vqm").exists()


def test_convert_of_a_missing_file(run: Run, tmp_path: Path) -> None:
    run("convert", tmp_path / "absent.pt").failed_with("absent.pt': no such file or directory")


def test_convert_into_a_missing_folder(run: Run, archive: Path, tmp_path: Path) -> None:
    run("convert", archive, "-o", tmp_path / "no" / "x.vqm").failed_with("there is no folder")
    run("convert", archive, "-o", tmp_path).failed_with("is a folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_convert_of_an_unreadable_file(run: Run, archive: Path) -> None:
    archive.chmod(0)
    run("convert", archive).failed_with("net.npz': permission denied")


# extract


def test_extract_npz(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    result = run("extract", model, "-o", output, "fc1.*")
    assert result.code == 0
    assert result.out == f"{output}: 3 tensors, {output.stat().st_size:,} bytes\n"
    with np.load(output) as arrays:
        assert set(arrays) == {"fc1.weight", "fc1.bias", "fc1.tied"}
        assert arrays["fc1.bias"].tolist() == [0.5, -2.0]


def test_extract_all_from_stdin(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, model.read_bytes())
    document = run("extract", "-", "-o", tmp_path / "out.npz", "--json").json
    assert document["names"] == ["fc1.weight", "fc1.bias", "fc1.tied", "step", "none", HOSTILE]
    assert document["file_nbytes"] == (tmp_path / "out.npz").stat().st_size


def test_extract_verbose_lists_escaped_names(run: Run, model: Path, tmp_path: Path) -> None:
    result = run("extract", model, "-v", "-o", tmp_path / "out.npz")
    assert HOSTILE_ESCAPED in result.out
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize(("suffix", "needs"), [(".pt", "torch"), (".safetensors", "safetensors")])
def test_extract_and_back(run: Run, archive: Path, tmp_path: Path, suffix: str, needs: str) -> None:
    pytest.importorskip(needs)
    first, second = tmp_path / "first.vqm", tmp_path / f"second{suffix}"
    assert run("convert", archive, "-o", first, "-q").code == 0
    assert run("extract", first, "-o", second).code == 0
    document = run("diff", first, second, "--json").json
    assert document["same_structure"]
    assert all(row["identical"] for row in document["tensors"])


def test_extract_of_an_unknown_tensor(run: Run, model: Path, tmp_path: Path) -> None:
    run("extract", model, "-o", tmp_path / "out.npz", "fc2.*").failed_with("no tensor 'fc2.*'")
    assert not (tmp_path / "out.npz").exists()


def test_extract_does_not_overwrite(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    output.write_bytes(b"precious")
    run("extract", model, "-o", output).failed_with("exists; -f replaces it")
    assert output.read_bytes() == b"precious"
    assert run("extract", model, "-o", output, "-f").code == 0


def test_extract_of_a_checkpoint(run: Run, archive: Path, tmp_path: Path) -> None:
    assert run("extract", archive, "-o", tmp_path / "out.npz").code == 0
    with np.load(archive) as a, np.load(tmp_path / "out.npz") as b:
        assert a.files == b.files and all(np.array_equal(a[name], b[name]) for name in a.files)


def test_extract_of_what_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no model")
    run("extract", tmp_path / "x.txt", "-o", tmp_path / "out.npz").failed_with("text file")


def test_info_of_several_files_of_any_kind(run: Run, model: Path, archive: Path) -> None:
    result = run("info", model, archive)
    assert f"file      {model}" in result.out and f"file      {archive}" in result.out
    assert "times smaller than the tensors" in result.out and "format    npz" in result.out

    documents = json.loads(run("info", model, archive, "--json").out)
    assert [document["file"] for document in documents] == [str(model), str(archive)]


def test_a_file_larger_than_its_source_is_said_to_be(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(1, np.float32))

    result = run("convert", tmp_path / "x.npy", "-q")

    assert "the .vqm is larger than the source file" in result.err
    assert "; the source file has 132 bytes, ratio 0." in run("convert", tmp_path / "x.npy", "-f").out


# diff


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


# Real models


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("torch")
    name = "lenet300_100_mnist.pt"
    path = CHECKPOINT if CHECKPOINT.is_file() else request.getfixturevalue("data_folder") / name
    if not path.is_file():
        pytest.skip(f"no {name}")
    return Path(path)


def test_lenet_from_checkpoint_to_checkpoint(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "lenet.vqm", tmp_path / "lenet.pt"
    result = run("convert", checkpoint, "-o", packed, "--ratio", "10")
    assert (result.code, result.err) == (0, "")
    assert "1,066,440 bytes of tensors" in result.out
    assert 1_066_440 / packed.stat().st_size == pytest.approx(10, rel=0.01)
    assert run("verify", packed).code == 0
    assert run("extract", packed, "-o", back).code == 0
    document = run("diff", checkpoint, back, "--json").json
    assert document["same_structure"]
    assert document["total"]["sqnr_db"] > 10


def test_lenet_without_loss(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    packed = tmp_path / "lenet.vqm"
    assert run("convert", checkpoint, "-o", packed, "--lossless", "-q").code == 0
    assert all(row["identical"] for row in run("diff", checkpoint, packed, "--json").json["tensors"])


# Failing well


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "not enough memory"),
        (
            ImportError("needs torch; run: pip install 'vqformat[torch]'"),
            "needs torch; run: pip install 'vqformat[torch]'",
        ),
        (OSError(28, "No space left on device", "x.vqm"), "'x.vqm': no space left on device"),
        (OSError(5, "Input/output error"), "input/output error"),
        (OSError("odd"), "odd"),
        (ConversionError("two\nlines \x1b[31m"), "FILE: two lines \\x1b[31m"),
        (ZeroDivisionError("oops"), "unexpected ZeroDivisionError: oops (VQM_TRACEBACK=1 shows where)"),
    ],
)
def test_errors_are_one_line(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(stream: object) -> None:
        raise error

    monkeypatch.setattr(verbs, "_Contents", fail)
    result = run("info", model)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"vqm: error: {line.replace('FILE', str(model))}\n"


@pytest.mark.parametrize(
    ("error", "code", "text"), [(KeyboardInterrupt, 130, "vqm: interrupted\n"), (BrokenPipeError, 141, "")]
)
def test_interruptions(model: Path, monkeypatch: pytest.MonkeyPatch, error: type, code: int, text: str) -> None:
    def fail(stream: object) -> None:
        raise error

    stderr = io.StringIO()
    monkeypatch.setattr(verbs, "_Contents", fail)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert (main(["info", str(model)]), stderr.getvalue()) == (code, text)


def test_traceback_on_request(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stream: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(verbs, "_Contents", fail)
    monkeypatch.setenv("VQM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("info", model)


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    script = f"'{sys.executable}' -m vqformat info --json '{model}' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert done.returncode in (0, 141)  # 0 if all fitted into the pipe
    assert done.stderr == b""


def test_an_ascii_terminal_shows_every_name(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    with ChunkWriter(path) as writer:
        writer.add_layer("", [assemble_raw("层", "u8", np.zeros(1, np.uint8), 0)])
    done = vqm("info", path, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert rb"\u5c42" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_leaves_no_temporary_file(archive: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    np.savez(archive, w=rng.standard_normal((4000, 2000), np.float32))
    command = [sys.executable, "-m", "vqformat", "convert", archive, "--method", "pq:dim=8,entries=4096"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.vqm.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (143, b"")
    assert os.listdir(tmp_path) == ["net.npz"]


@pytest.mark.parametrize(("is_terminal", "shows"), [(True, True), (False, False)])
def test_progress_only_on_a_terminal(
    run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shows: bool
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    result = run("convert", archive)
    assert result.code == 0
    assert ("%|" in result.err) == shows
    assert run("convert", archive, "-f", "-q").err == ""


def test_no_bar_without_tqdm(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    result = run("convert", archive)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("arguments", [["convert", "", "-o", "x.vqm"], ["convert", "x.pt", "-o", ""],
                                       ["convert", "x.pt", "--method", ""], ["info", ""]])  # fmt: skip
def test_an_empty_argument_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from vqformat.cli import main

    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "empty" in capsys.readouterr().err
