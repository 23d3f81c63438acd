"""What the function ``progress`` is told: each pass over the tensors, and the share of the work of all passes."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import Run

import vqformat
from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.progress import TensorProgress, advance_share
from vqformat.encode.source import source_tensors

Told = list[tuple[TensorProgress, int, int]]


def model() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tensors = {f"fc{i}.{name}": rng.standard_normal(shape).astype(np.float32)
               for i in range(3) for name, shape in (("weight", (80, 60)), ("bias", (80,)))}  # fmt: skip
    return {**tensors, "step": np.array(3), "none": np.empty((0, 3), np.float32), "tied": tensors["fc0.weight"]}


def told(tensors: dict[str, Any], **options: Any) -> Told:
    calls: Told = []

    def progress(name: TensorProgress, done: int, total: int) -> None:
        calls.append((name, done, total))

    encode_model(source_tensors(tensors), io.BytesIO(), None, Options(**options, progress=progress))
    return calls


def phases(calls: Told) -> list[str]:
    return [key[1] for key, _ in groupby((name.number, name.phase) for name, _, _ in calls)]


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made of small models, too."""
    monkeypatch.setattr("vqformat.encode.model._DRAFTED", 1)


CASES: dict[str, dict[str, Any]] = {
    "without options": {},
    "lossless": {"lossless": True},
    "a ratio": {"ratio": 8},
    "a ratio, fast": {"ratio": 8, "preset": "fast"},
    "a ratio, small": {"ratio": 8, "preset": "small"},
    "an SQNR": {"sqnr": 20.0},
    "a step": {"step": 0.3, "preset": "small"},
    "nearly lossless": {"ratio": 1.05},
    "corrected": {"ratio": 8, "preset": "small", "correct": lambda weights: {name: None for name, _ in weights} and {}},
    "a recipe": {"bits": 5, "recipe": vqformat.Recipe({"fc0.weight": "pq:dim=2,entries=16"})},
    "a shared codebook": {"recipe": vqformat.Recipe({"*.weight": "kmeans:entries=16,share=all"})},
}


@pytest.mark.usefixtures("drafted")
@pytest.mark.parametrize("name", CASES)
class TestEachPass:
    def test_is_told_from_its_beginning_to_its_end(self, name: str) -> None:
        passes = [list(calls) for _, calls in groupby(told(model(), **CASES[name]), lambda call: call[0].number)]

        assert [calls[0][0].number for calls in passes] == list(range(1, len(passes) + 1))
        for calls in passes:
            assert len({(call[0].phase, call[2]) for call in calls}) == 1
            assert all(before[1] <= after[1] for before, after in pairwise(calls))
            assert calls[-1][1] == calls[-1][2]

    def test_adds_to_the_share_which_never_decreases_and_ends_at_1(self, name: str) -> None:
        calls = told(model(), **CASES[name])

        shares = [call[0].share for call in calls]
        assert all(share is not None and 0 <= share <= 1 for share in shares)
        assert shares == sorted(shares)
        assert shares[-1] == 1.0 and all(share < 1.0 for share in shares[:-1])
        ends = [[call[0].share for call in of_pass][-1] for _, of_pass in groupby(calls, lambda call: call[0].number)]
        assert all(before < after for before, after in pairwise(ends))


@pytest.mark.usefixtures("drafted")
def test_the_passes_are_named() -> None:
    assert phases(told(model())) == ["statistics", "encoding", "writing"]
    assert phases(told(model(), **CASES["a shared codebook"]))[:2] == ["codebooks", "statistics"]
    small = phases(told(model(), **CASES["a ratio, small"]))
    assert list(dict.fromkeys(small)) == ["statistics", "drafts", "encoding", "measuring", "writing"]
    assert "correction" in phases(told(model(), **CASES["corrected"]))


def test_the_share_is_that_of_the_weights_where_the_number_of_passes_is_known() -> None:
    tensors = {name: np.random.default_rng(0).standard_normal((100, 100)) for name in "abcd"}

    share = {(name.phase, str(name)): name.share for name, _, _ in told(tensors)}

    encoded = [share["encoding", name] - share["statistics", "d"] for name in "abcd"]
    assert encoded == pytest.approx([encoded[3] * i / 4 for i in (1, 2, 3, 4)])
    assert encoded[3] > 0.8  # statistics and writing are quick


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_large_tensor_is_told_in_parts(calibrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.encode.progress._OFTEN", 2000)
    monkeypatch.setattr("vqformat.encode.small.bands._BAND", 2000)
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((200, 100)).astype(np.float32)}
    options: dict[str, Any] = {"preset": "small"}
    if calibrated:
        from vqformat.encode.calibration import Calibration, TensorStatistics

        inputs = rng.standard_normal((500, 100)).astype(np.float32)
        moments = (inputs.T @ inputs / 500)[None]
        options["calibration"] = Calibration({"w": TensorStatistics(1.0, [moments], 500)}, [])

    parts = [done for name, done, _ in told(tensors, **options) if name.phase == "encoding"]

    assert len(parts) >= 4 and parts == sorted(parts)
    assert parts[0] <= 10_000 and parts[-1] == 20_000


def test_a_correction_is_told_in_parts() -> None:
    def correct(weights: Any) -> dict[str, Any]:
        list(weights)
        for _ in range(4):
            advance_share(0.25)
        return {}

    calls = told({"w": np.random.default_rng(0).standard_normal((1200, 300))}, preset="small", correct=correct)

    parts = [(str(name), done) for name, done, _ in calls if name.phase == "correction"]
    assert ("correction", 270_000) in parts and parts[-1] == ("correction", 360_000)


def test_the_name_is_a_string_and_the_file_is_the_same() -> None:
    names: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        names.append(name)

    data = vqformat.save(model(), ratio=8, preset="small", progress=progress)

    assert data == vqformat.save(model(), ratio=8, preset="small")
    assert {"fc0.weight", "tied"} <= set(names) <= set(model())


@pytest.mark.parametrize(("options", "shares"), [({}, {None}), ({"ratio": 6}, {1.0})])
def test_a_writer_knows_the_share_only_if_it_encodes_all_at_the_end(options: Any, shares: set[float | None]) -> None:
    calls: Told = []
    with vqformat.writer(io.BytesIO(), progress=lambda *call: calls.append(call), **options) as w:
        for i in range(3):
            w.add_layer(f"fc{i}", {name: array for name, array in model().items() if name.startswith(f"fc{i}")})

    assert {call[0].share for call in calls} >= shares
    assert options or all(call[0].share is None for call in calls)
    assert calls[-1][0].share in shares


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C is what it is in a terminal. A shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("drafted", "listens_to_ctrl_c")
@pytest.mark.parametrize("phase", ["statistics", "drafts", "encoding", "measuring", "writing"])
def test_ctrl_c_in_any_pass_ends_with_one_line_and_leaves_no_file(
    phase: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "model.npz", **model())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    is_sent = False

    def interrupt(name: Any, done: int, total: int) -> None:
        nonlocal is_sent
        if name.phase == phase and not is_sent:
            is_sent = True
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def line(*, quiet: bool) -> Any:
        yield interrupt

    monkeypatch.setattr("vqformat.cli.convert.progress_line", line)

    result = run("convert", tmp_path / "model.npz", "--preset", "small", "--ratio", "8")

    assert (result.code, result.out, result.err) == (130, "", "vqm: interrupted\n")
    assert os.listdir(tmp_path) == ["model.npz"]


def test_an_exception_of_the_function_ends_the_encoding(tmp_path: Path) -> None:
    def at(phase: str) -> Callable[[Any, int, int], None]:
        def progress(name: Any, done: int, total: int) -> None:
            if name.phase == phase:
                raise ZeroDivisionError

        return progress

    for phase in ("statistics", "encoding", "writing"):
        with pytest.raises(ZeroDivisionError):
            vqformat.save_file(model(), tmp_path / "model.vqm", progress=at(phase))
    assert os.listdir(tmp_path) == []
