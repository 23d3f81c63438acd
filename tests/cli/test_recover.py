"""``vqm verify`` of damaged files, and ``vqm recover``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from cli_runs import HOSTILE, HOSTILE_ESCAPED, Run, as_stdin

import vqformat
from vqformat.cli import verify
from vqformat.read.survey import survey
from vqformat.read.surveyed import Survey

NAMES = ["fc1.weight", "fc1.bias", "fc1.tied", "step", "none", HOSTILE]


@pytest.fixture
def damaged(model: Path) -> Path:
    """The model with a flipped bit in fc1.weight."""
    data = bytearray(model.read_bytes())
    data[place_of_weight(bytes(data)) + 5] ^= 1
    path = model.with_name("damaged.vqm")
    path.write_bytes(data)
    return path


def place_of_weight(data: bytes) -> int:
    return data.index(np.array([1, 2, 3, 4, 5, 6], "<f4").tobytes())


def test_verify_lists_all_damage_by_tensor(run: Run, damaged: Path) -> None:
    data = bytearray(damaged.read_bytes())
    place_of_step = data.index(np.array(7, "<i8").tobytes())
    data[place_of_step] ^= 1
    damaged.write_bytes(data)

    result = run("verify", damaged)

    assert result.code == 1
    assert result.err.count("\n") == 1
    lines = result.out.splitlines()
    assert lines[0] == f"{damaged}: 3 of 6 tensors are whole; the metadata is whole"
    assert lines[1].startswith("  fc1.weight: block 0 is damaged: CRC-32 ")
    assert lines[2] == "  fc1.tied: its target 'fc1.weight' is damaged or lost"
    assert lines[3].startswith("  step: block 0 is damaged: ")
    assert lines[3].endswith(f" at byte {place_of_step} [SEC-001]")
    assert lines[4:] == ["  vqm recover writes what is whole to a new file"]


def test_verify_verbose_lists_whole_tensors_too(run: Run, damaged: Path) -> None:
    lines = run("verify", "-v", damaged).out.splitlines()
    assert "  fc1.bias: whole" in lines
    assert f"  {HOSTILE_ESCAPED}: whole" in lines


def test_verify_json_lists_all_tensors(run: Run, damaged: Path, model: Path) -> None:
    result = run("verify", "--json", damaged)
    (document,) = result.json
    assert (result.code, result.err) == (1, "")
    assert (document["ok"], document["n_whole"], document["metadata_is_whole"]) == (False, 4, True)
    assert [tensor["name"] for tensor in document["tensors"]] == NAMES
    assert [tensor["whole"] for tensor in document["tensors"]] == [False, True, False, True, True, True]
    (fault,) = document["tensors"][0]["faults"]
    offset = place_of_weight(model.read_bytes())
    assert (fault["clause"], fault["error_class"], fault["offset"]) == ("SEC-001", "checksum", offset)


def test_verify_of_a_damaged_stdin_gives_the_first_fault(
    run: Run, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_stdin(monkeypatch, damaged.read_bytes())
    run("verify", "-").failed_with("stdin: ", "damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_verify_of_a_damaged_named_pipe_gives_the_first_fault(run: Run, damaged: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(damaged.read_bytes(),))
    has_hung = threading.Event()

    def release() -> None:
        """Let a reader go that waits for another writer."""
        has_hung.set()
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    guard = threading.Timer(60, release)
    writer.start()
    guard.start()
    try:
        result = run("verify", pipe)
    finally:
        guard.cancel()
        writer.join()

    result.failed_with("pipe: ", "damaged")
    assert not has_hung.is_set()


def test_verify_surveys_a_file_only_for_what_it_prints(
    run: Run, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyed = []

    def noted(stream: BinaryIO) -> Survey:
        surveyed.append(stream)
        return survey(stream)

    monkeypatch.setattr(verify, "survey", noted)

    run("verify", "-q", damaged).failed_with("damaged")
    assert surveyed == []
    assert run("verify", "-q", "--json", damaged).json[0]["n_whole"] == 4
    assert len(surveyed) == 1


def test_verify_of_another_format_lists_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.vqm").write_bytes(b"GGUF" + bytes(100))
    run("verify", tmp_path / "m.vqm").failed_with("GGUF")


def test_recover_writes_what_is_whole(run: Run, damaged: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.vqm"

    result = run("recover", damaged, "-o", out)

    assert result.code == 0
    assert result.out == f"{out}: 4 of 6 tensors, {out.stat().st_size:,} bytes\n"
    notes = result.err.splitlines()
    assert notes[0].startswith("vqm: note: left out fc1.weight: block 0 is damaged: ")
    assert notes[1:] == ["vqm: note: left out fc1.tied: its target 'fc1.weight' is damaged or lost"]
    assert run("verify", out).code == 0
    expected, found = vqformat.load_file(model), vqformat.load_file(out)
    assert list(found) == ["fc1.bias", "step", "none", HOSTILE]
    assert all(found[name].tobytes() == expected[name].tobytes() for name in found)
    with vqformat.safe_open(out) as file:
        assert file.metadata() == {"note": "x\x1b[31m", "vqm.source": {"format": "npz"}}


def test_what_is_recovered_can_be_extracted(run: Run, archive: Path, tmp_path: Path) -> None:
    run("convert", archive, "-o", tmp_path / "m.vqm", "--lossless")
    data = bytearray((tmp_path / "m.vqm").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.vqm").write_bytes(data)
    run("recover", tmp_path / "m.vqm", "-o", tmp_path / "whole.vqm")
    assert run("extract", tmp_path / "whole.vqm", "-o", tmp_path / "whole.npz").code == 0
    assert set(np.load(tmp_path / "whole.npz")) == {"fc1.bias", "step"}


def test_recover_of_a_truncated_file(run: Run, model: Path, tmp_path: Path) -> None:
    cut, out = tmp_path / "cut.vqm", tmp_path / "whole.vqm"
    cut.write_bytes(model.read_bytes()[:-60])
    assert run("verify", cut).out.splitlines()[0] == (
        f"{cut}: 6 of 6 tensors are whole; the index is lost, so that there may have been more; the metadata is whole"
    )
    result = run("recover", cut, "-o", out)
    assert "vqm: note: the index is lost, so that there may have been more tensors\n" in result.err
    assert out.read_bytes() == model.read_bytes()


def test_recover_tells_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    fixture = Path(__file__).parent.parent.parent / "fixtures/valid/ancillary.vqm"
    result = run("recover", fixture, "-o", tmp_path / "whole.vqm")
    assert result.code == 0
    assert result.err.startswith("vqm: note: left out the ")


def test_recover_without_a_whole_tensor_fails(run: Run, model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.vqm"
    cut.write_bytes(model.read_bytes()[:120])
    run("recover", cut, "-o", tmp_path / "whole.vqm").failed_with("cut.vqm: no tensor of it is whole")
    assert not (tmp_path / "whole.vqm").exists()


def test_recover_replaces_only_by_force(run: Run, damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.vqm"
    out.write_bytes(b"precious")
    run("recover", damaged, "-o", out).failed_with("exists; -f replaces it")
    assert run("recover", damaged, "-o", out, "-f", "-q").out == ""
    assert run("verify", out).code == 0
    assert run("recover", damaged, "-o", damaged, "-f").code == 2
