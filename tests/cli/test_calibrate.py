"""``vqm calibrate`` and ``vqm search`` with models and functions of the user."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run
from conftest import ROOT

import vqformat

torch = pytest.importorskip("torch")

MODEL = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10))

def make_other():
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10), nn.Linear(10, 10))

def make_wider():
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10))

def make_dict():
    return {}
"""
DATA = """
import torch

def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 24, generator=generator) for _ in range(12)]

def endless():
    while True:
        yield torch.randn(4, 24)

def with_labels():
    return [(torch.randn(4, 24), torch.zeros(4))]

one = torch.randn(4, 24)
"""
EVAL = """
from data import batches  # a file beside this one

inputs = batches()[0]
answers = []

def agreement(model):
    found = model(inputs).argmax(1)
    answers.append(found)
    return (found == answers[0]).float().mean()

def broken(model):
    raise KeyError("no such label")

def text(model):
    return "good"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and the user's files; the current folder. Modules are forgotten at the end."""
    for name, text in (("model", MODEL), ("data", DATA), ("eval", EVAL)):
        (tmp_path / f"{name}.py").write_text(text)
    for name in ("model", "data", "eval", "vision", "text", "audio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    state = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).state_dict()
    torch.save(state, tmp_path / "model.pt")
    torch.save({f"module.{name}": value.bfloat16() for name, value in state.items()}, tmp_path / "prefixed.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["model.pt", "prefixed.pt"])
def test_convert_takes_what_calibrate_wrote(run: Run, folder: Path, source: str) -> None:
    found = run("calibrate", source, "--model", "model.py:make_model", "--inputs", "data.py:batches", "-o", "c.npz")

    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("c.npz: 12 batches, 4 tensors, 2 of them with their inputs, ")
    assert set(vqformat.torch.Calibration.load("c.npz").tensors) == set(torch.load(source, weights_only=True))
    assert run("convert", source, "--calibration", "c.npz", "--ratio", "3").code == 0


def test_search_shows_trials_the_preset_and_the_file(run: Run, folder: Path) -> None:
    found = run("search", "model.pt", "--model", "model.py:make_model", "--metric", "eval.py:agreement", "--max-drop",
                "0.1", "--inputs", "data.py:batches", "-o", "best.vqm", "--trials", "3")  # fmt: skip

    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == "trials of preset small"
    assert lines[1].split() == ["ratio", "bytes", "metric", "drop"]
    assert "preset: small; original: 1; a drop of 0.1 is allowed" in lines
    assert lines[-1].startswith("best.vqm: 4,520 bytes of tensors in ")
    assert set(vqformat.load_file("best.vqm")) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_search_keeps_the_names_and_dtypes_of_the_file(run: Run, folder: Path) -> None:
    found = run("search", "prefixed.pt", "--model", "model.py:make_model", "--metric", "eval.py:agreement",
                "--max-drop", "0.2", "--inputs", "data.py:batches", "--trials", "1", "--json")  # fmt: skip

    assert found.code == 0, found.err
    assert found.json["preset"] == "small"
    assert sum(trial["best"] for trial in found.json["trials"]) == 1
    assert {tensor["dtype"] for tensor in found.json["tensors"]} == {"bf16"}
    assert found.json["tensors"][0]["name"] == "module.0.weight"
    assert os.path.exists("prefixed.vqm")


def test_an_endless_iterable_ends(run: Run, folder: Path) -> None:
    found = run("calibrate", "model.pt", "--model", "model.py:make_model", "--inputs", "data.py:endless", "--batches",
                "2", "-o", "c.npz")  # fmt: skip

    assert found.code == 0
    assert "note: 2 batches: ten or more are better" in found.err


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("make_modle", "batches", "model.py has no function 'make_modle'; near matches: 'make_model'"),
        ("make_dict", "batches", "model.py:make_dict returned a dict; a torch.nn.Module is allowed"),
        ("make_other", "batches", "does not fit the model: only the model has '3.weight', '3.bias'"),
        ("make_wider", "batches", "does not fit the model: size mismatch for 0.weight"),
        ("make_model", "one", "data.py:one is one Tensor; an iterable of batches is allowed"),
    ],
)
def test_what_does_not_fit_is_one_line(run: Run, folder: Path, model: str, inputs: str, words: str) -> None:
    run("calibrate", "model.pt", "--model", f"model.py:{model}", "--inputs", f"data.py:{inputs}", "-o",
        "c.npz").failed_with(words)  # fmt: skip

    assert not os.path.exists("c.npz")


def test_an_error_of_the_users_code_has_its_traceback(run: Run, folder: Path) -> None:
    found = run("search", "model.pt", "--model", "model.py:make_model", "--metric", "eval.py:broken")

    lines = found.err.splitlines()
    assert (found.code, found.out) == (1, "")
    assert lines[0] == "vqm: error: eval.py:broken raised KeyError: 'no such label'"
    assert lines[1] == "Traceback (most recent call last):"
    assert "eval.py" in lines[2]  # no frame of this package before the user's
    assert lines[-1] == "KeyError: 'no such label'"


def test_a_batch_with_labels_is_explained(run: Run, folder: Path) -> None:
    found = run("calibrate", "model.pt", "--model", "model.py:make_model", "--inputs", "data.py:with_labels", "-o", "c")

    assert found.code == 1
    assert found.err.splitlines()[0].endswith("leave labels out")


def test_a_file_that_python_cannot_read_is_named(run: Run, folder: Path) -> None:
    Path("wrong.py").write_text("def make_model(:\n")

    found = run("calibrate", "model.pt", "--model", "wrong.py:make_model", "--inputs", "data.py:batches", "-o", "c")

    assert found.err.startswith("vqm: error: wrong.py raised SyntaxError")


def test_a_metric_is_a_number(run: Run, folder: Path) -> None:
    found = run("search", "model.pt", "--model", "model.py:make_model", "--metric", "eval.py:text")

    found.failed_with("eval.py:text returned a str that is no number")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["calibrate", "model.pt", "--model", "model.py", "-o", "c"], "'model.py' is not FILE.py:NAME"),
        (["calibrate", "model.pt", "--inputs", "data.py:batches", "-o", "c"], "--model FILE.py:NAME tells the model"),
        (["calibrate", "model.pt", "--model", "model.py:make_model", "-o", "c"], "--inputs FILE.py:NAME tells"),
        (["calibrate", "model.pt", "--text", "model.py", "-o", "c"], "'model.pt' is no folder"),
        (["search", "model.pt", "--model", "model.py:make_model"], "--metric FILE.py:NAME tells how good it is"),
        (["search", "model.pt", "--model", "model.py:make_model", "--metric", "eval.py:agreement", "--preset", "fast",
          "--inputs", "data.py:batches"], "a calibration is for the preset small, not fast"),
    ],
)  # fmt: skip
def test_wrong_usage(run: Run, folder: Path, args: list[str], words: str) -> None:
    found = run(*args)

    assert (found.code, found.out) == (2, "")
    assert words in found.err


def test_an_onnx_model_needs_no_other(run: Run, folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = np.random.default_rng(0).standard_normal((24, 10)).astype(np.float32)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y],
                                   [onnx.numpy_helper.from_array(weights, "w")])  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
    Path("arrays.py").write_text("import numpy\n\ndef batches():\n    return [numpy.eye(24, dtype='f4')] * 10\n")

    found = run("calibrate", "m.onnx", "--inputs", "arrays.py:batches", "-o", "c.npz")

    assert (found.code, found.err) == (0, "")
    assert run("convert", "m.onnx", "--calibration", "c.npz").code == 0


@pytest.mark.parametrize(
    ("example", "metric", "drop"),
    [("vision", "accuracy", "0.2"),
     pytest.param("text", "minus_loss", "0.1", marks=pytest.mark.exhaustive),
     pytest.param("audio", "signal_to_noise", "40", marks=pytest.mark.exhaustive)],
)  # fmt: skip
def test_examples_run(run: Run, folder: Path, example: str, metric: str, drop: str) -> None:
    file = ROOT / ".github" / "docs" / "examples" / f"{example}.py"
    functions = runpy.run_path(str(file))
    torch.save(functions["make_model"]().state_dict(), "weights.pt")
    shutil.copy(file, ".")
    model = ["weights.pt", "--model", f"{example}.py:make_model", "--inputs", f"{example}.py:batches"]

    assert run("calibrate", *model, "-o", "c.npz").code == 0
    found = run("search", *model, "--metric", f"{example}.py:{metric}", "--max-drop", drop, "--trials", "2")

    assert found.code == 0, found.err
    assert found.out.startswith("trials of preset small")


@pytest.mark.parametrize("is_base", [False, True])
def test_a_folder_of_hugging_face_and_a_text(run: Run, folder: Path, is_base: bool) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["?", *(f"w{i}" for i in range(49))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained("lm")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=None,
                                     eos_token_id=None)  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    (model.transformer if is_base else model).save_pretrained("lm")  # other names, and the head is tied
    Path("text.txt").write_text(" ".join(f"w{i * i % 49}" for i in range(700)))

    made = run("calibrate", "lm", "--text", "text.txt", "-o", "c.npz")
    found = run("search", "lm", "--text", "text.txt", "--max-divergence", "0.1", "--batches", "20", "--trials", "2")

    assert made.code == 0, made.err
    assert made.out.startswith("c.npz: 21 batches, ")
    assert found.code == 0, found.err
    assert "preset: small; original: -0; a drop of 0.1 is allowed" in found.out
    assert run("convert", "lm", "--calibration", "c.npz", "--ratio", "3", "-f").code == 0
