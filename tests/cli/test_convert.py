"""``vqm convert`` and ``vqm extract``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import HOSTILE, HOSTILE_ESCAPED, Run, as_stdin, vqm
from conftest import CHECKPOINT

from vqformat import load, load_file
from vqformat.encode.calibration import Calibration, TensorStatistics


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
    np.savez(archive, w=np.ones(3), dates=np.array(["2026"], "M8[D]"))
    assert "left out 'dates'" in run("convert", archive, "-f", "-q").err


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
        data, _ = reader.communicate(timeout=600)
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
