"""``vqm convert`` with ``--workers`` and ``--resume``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_runs import Run, write_matrices


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_matrices(tmp_path / "model.safetensors", 4, (64, 128))


def test_two_workers_write_the_same_file(source: Path, run: Run) -> None:
    for n in (1, 2):
        assert run("convert", source, "-o", source.with_name(f"{n}.vqm"), "--bits", "4", "--workers", n).code == 0

    assert source.with_name("1.vqm").read_bytes() == source.with_name("2.vqm").read_bytes()


@pytest.mark.parametrize("args", [("--workers", "0"), ("--workers", "x"), ("--workers", "2", "--dask", "tcp://a:1"),
                                  ("--resume", "-o", "-")])  # fmt: skip
def test_wrong_usage_is_told(source: Path, run: Run, args: tuple[str, ...]) -> None:
    assert run("convert", source, *args).code == 2


def test_what_is_kept_is_told_when_the_run_fails(source: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vqformat.encode.outcome_file._finish", fail)
        result = run("convert", source, "--resume")

    assert result.code == 1
    assert "model.vqm.part keeps the tensors that are finished; --resume continues from them" in result.err
    assert run("convert", source, "--resume").code == 0


def test_a_cluster_needs_distributed(source: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    run("convert", source, "--dask", "tcp://127.0.0.1:9").failed_with("--dask needs distributed", "pip install")
