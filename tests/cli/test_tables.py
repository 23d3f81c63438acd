"""The tables of ``vqm`` and of reports: folded layers, legend, width, notes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run

import vqformat
from vqformat.cli.legend import legend
from vqformat.converters import convert
from vqformat.encode.report import Report, TensorReport
from vqformat.folding import fold, merged
from vqformat.text import cut_middle, table


def layers(n: int = 12) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    names = [f"layers.{i}.attention.query.{what}" for i in range(n) for what in ("weight", "bias")]
    shapes = {"weight": (32, 32), "bias": (32,)}
    return {name: random.standard_normal(shapes[name.rpartition(".")[2]]).astype(np.float32)
            for name in [*names, "head.weight"]}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    np.savez(tmp_path / "deep.npz", **layers())
    return tmp_path / "deep.npz"


# Folding


def test_names_that_differ_in_a_number_are_folded() -> None:
    names = ["conv1", "a.0.w", "a.0.b", "a.1.w", "a.1.b", "a.2.w", "a.2.b", "conv2", "a.7.w"]

    rows = fold(names, ["conv" in name or name[-1] for name in names])

    assert [row.label for row in rows] == ["conv1", "a.0-2,7.w, 4 alike", "a.0-2.b, 3 alike", "conv2"]
    assert rows[1].members == (1, 3, 5, 8)


def test_experts_in_layers_are_folded_twice() -> None:
    names = [f"layers.{i:02}.experts.{j}.w1" for i in range(10) for j in range(4)]

    assert [row.label for row in fold(names, [0] * 40)] == ["layers.00-09.experts.0-3.w1, 40 alike"]
    assert len(fold(names, [0] * 40, unfold=True)) == 40


def test_what_is_not_alike_is_not_folded() -> None:
    assert len(fold(["a.0", "a.1", "a.2"], [(3,), (4,), (3,)])) == 3
    assert len(fold(["x", "y", "z"], [0, 0, 0])) == 3
    assert len(fold(["a.0", "a.1"], [0, 0])) == 2  # two rows are shorter than an explanation


def test_texts_are_merged_to_ranges() -> None:
    assert merged(["grid 12 + low-rank 3", "grid 7 + low-rank 3"]) == "grid 7-12 + low-rank 3"


def test_repeated_layers_share_rows(run: Run, checkpoint: Path) -> None:
    lines = run("convert", checkpoint).out.splitlines()

    assert [re.split("  +", line)[0] for line in lines[:-1]] == [
        "tensor", "layers.0-11.attention.query.weight, 12 alike", "layers.0-11.attention.query.bias, 12 alike",
        "head.weight", "overhead", "total"]  # fmt: skip
    cells = re.split("  +", lines[1])
    assert cells[1] == "32x32" and re.fullmatch(r"grid \d+-\d+|codebook \d+-\d+", cells[2])
    low, high = map(float, cells[4].split(".."))
    assert 20 < low < high < 60
    nbytes = [int(re.split("  +", line)[-2].replace(",", "")) for line in lines[1:-1]]
    assert sum(nbytes[:-1]) == nbytes[-1] == checkpoint.with_suffix(".vqm").stat().st_size


@pytest.mark.parametrize("option", ["--all", "-v"])
def test_layers_are_unfolded_on_request(run: Run, checkpoint: Path, option: str) -> None:
    converted = run("convert", checkpoint, option).out
    shown = run("info", checkpoint.with_suffix(".vqm"), option).out
    source = run("info", checkpoint, option).out
    compared = run("diff", checkpoint, checkpoint.with_suffix(".vqm"), option).out

    for out in (converted, shown, source, compared):
        assert "layers.7.attention.query.weight" in out
        assert " alike" not in out


def test_info_and_diff_fold_too(run: Run, checkpoint: Path) -> None:
    run("convert", checkpoint)
    path = checkpoint.with_suffix(".vqm")

    for args in (["info", path], ["info", checkpoint], ["diff", checkpoint, path]):
        out = run(*args).out
        assert "layers.0-11.attention.query.weight, 12 alike" in out
        assert "layers.7." not in out
    assert "layers.7.attention.query.bias" in run("info", path, "layers.[78].*").out


# Words and widths


def test_the_legend_explains_every_word(run: Run) -> None:
    result = run("info", "--legend")

    assert result.code == 0
    for word in ("SQNR dB", "codebook NxD", "bits/weight", "overhead", "12 alike", "ratio"):
        assert word in result.out
    assert run("info").code == 2


def test_below_a_table_only_its_words_are_explained(run: Run, model: Path, checkpoint: Path) -> None:
    words = run("info", model, "-v").out.split("\n\n")[-1]
    assert "alias of T" in words and "trellis" not in words
    assert "trellis" in run("info", model, "--legend").out
    assert "alias of T" not in run("info", model).out
    assert "\noverhead  " in run("convert", checkpoint, "-v").out


def test_methods_have_words_in_the_legend() -> None:
    for method in ("grid 12", "codebook 16x4 shared 2 by segment scaled", "low-rank 3 + codebook 4", "float e4m8",
                   "fixed point of 7 bits", "raw planes rotated without zeros", "alias of x", "empty",
                   "transform 8 trellis 16 grid 31 entropy-coded"):  # fmt: skip
        assert len(legend([method])) >= 1, method


def test_a_table_fits_the_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.encoder.block.layers.attention.self_attention.query_projection.weight"
    np.savez(tmp_path / "net.npz", **{name: np.ones((8, 8))})
    monkeypatch.setenv("COLUMNS", "90")
    assert name in run("info", tmp_path / "net.npz").out  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    line = run("info", tmp_path / "net.npz").out.splitlines()[-1]

    assert len(line) == 90 and line.startswith("model.enc") and "…" in line and "query_projection.weight  f64" in line
    assert name in run("info", "-v", tmp_path / "net.npz").out


def test_names_are_cut_in_the_middle_by_columns() -> None:
    assert cut_middle("abcdefghij", 7) == "ab…ghij"
    assert cut_middle("层层层层层层", 7) == "层…层层"
    assert table([("name", "n"), ("x" * 100, "1")], "<>", 20)[1] == "x" * 13 + "…" + "x" * 26 + "  1"


# Reports


def report() -> Report:
    tensors = [TensorReport("a<b>\x1b", "f32", (4, 4), "grid 3", 10, 12.0),
               TensorReport("c", "f32", (4, 4), "alias of a<b>", 0, float("nan"))]  # fmt: skip
    return Report(tensors, 64, 20, 10, 12.0, ["left out '<i>'"])


def test_print_shows_the_table_of_the_command_line(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    *printed, summary = str(convert(checkpoint, tmp_path / "python.vqm")).splitlines()
    *shown, last = run("convert", checkpoint).out.splitlines()

    assert printed == shown
    assert last == f"{tmp_path / 'deep.vqm'}: {summary}"


def test_a_report_is_short_in_repr_and_escaped_in_html() -> None:
    assert str(report()).splitlines()[-2:] == ["64 bytes of tensors in 20, ratio 3.20", "note: left out '<i>'"]
    assert repr(report()) == "<Report: 2 tensors, 64 bytes of tensors in 20, ratio 3.20, SQNR 12.00 dB, 1 note>"
    text = report()._repr_html_()
    assert "a&lt;b&gt;\\x1b" in text and "&lt;i&gt;" in text
    assert "<b>" not in text and "<i>" not in text and "\x1b" not in text
    assert text.count("<tr>") == 5


def test_an_empty_report_can_be_printed() -> None:
    assert str(Report()).startswith("tensor")


# Notes


def test_a_file_that_grows_when_coded_again_says_why(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "net.npz", w=np.random.default_rng(0).standard_normal((100, 100)).astype("f4"))
    run("convert", tmp_path / "net.npz", "--bits", "2", "-q")

    result = run("convert", tmp_path / "net.vqm", "-o", tmp_path / "again.vqm", "-q")

    assert "larger than the source file" in result.err
    assert "the source is a .vqm already: convert the checkpoint that it was made from" in result.err


@pytest.mark.parametrize(
    ("options", "is_ruined"),
    [(["--method", "svd:rank=1"], True), (["--method", "kmeans:entries=16"], False), (["--bits", "4"], False),
     (["--bits", "0.6"], True), (["--lossless"], False)],
)  # fmt: skip
def test_a_model_drowned_in_noise_will_not_work(run: Run, tmp_path: Path, options: list[str], is_ruined: bool) -> None:
    np.savez(tmp_path / "net.npz", w=np.random.default_rng(0).standard_normal((100, 100)).astype("f4"))

    result = run("convert", tmp_path / "net.npz", *options, "-q")

    assert result.code == 0
    assert ("this model will most likely not work" in result.err) == is_ruined


def test_a_search_says_its_preset() -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)}

    def likeness(tensors: dict[str, np.ndarray]) -> float:
        return 1 - float(np.square(tensors["w"] - weights["w"]).mean())

    found = vqformat.search(weights, likeness, 0.1, preset="default", max_evaluations=2)

    assert found.preset == "default"
    assert str(found).splitlines()[-1].startswith("preset: default; original: 1; ")
