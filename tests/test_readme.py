"""README and the pages it leads to: each command and snippet runs as written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run
from conftest import CHECKPOINT, FIXTURES, ROOT
from examples import some_of
from warm_python import VQM, WarmPython

import vqformat

README = ROOT / "README.md"
PAGES = [README, *(ROOT / ".github" / "docs" / f"{name}.md"
                   for name in ("formats", "frameworks", "smaller", "large", "devices", "results"))]  # fmt: skip
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
SETUP = [line for line in LINES if line.startswith("python3 -m venv")]
SHELL = [line for line in LINES if line not in SETUP]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
EXAMPLES = ROOT / ".github" / "docs" / "examples.md"  # whose sections are run one by one, in several languages
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", EXAMPLES.read_text("utf-8"), re.MULTILINE))
PROGRAMS = {"c": "print_weights.c", "js": "print_weights.mjs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the lines start from, and what the lines before have made."""
    os.environ["KERAS_BACKEND"] = "torch"
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path_factory.mktemp("readme")
    state = torch.load(CHECKPOINT, weights_only=True)
    state["conv1.weight"] = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.save(state, folder / "model.pt")
    safetensors.save_file(state, folder / "model.safetensors")
    shutil.copy(CHECKPOINT, folder / "lenet.pt")
    for model in EXAMPLES.with_suffix("").glob("*.py"):
        shutil.copy(model, folder)
    _save_onnx_model(folder / "model.onnx")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
                              keras.layers.Dense(10)])  # fmt: skip
    model.compile("adam", "mse")
    model.save(folder / "model.keras")
    model.save(folder / "legacy.h5")
    return folder


def _save_onnx_model(path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")
    pytest.importorskip("onnxruntime", reason="not installed: pip install 'vqformat[onnxruntime]'")
    weights = np.random.default_rng(0).standard_normal((784, 10)).astype(np.float32)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y],
                                   [onnx.numpy_helper.from_array(weights, "w")])  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def warm(folder: Path) -> Iterator[WarmPython]:
    """Python in that folder."""
    # What most programs of the pages import, or PyTorch when they calibrate
    warm = WarmPython(folder, ["torch", "torch._dynamo", "vqformat.torch", "vqformat.cli.convert", "transformers"])
    _save_model_folder(folder / "bert", warm)
    yield warm
    warm.close()


def _save_model_folder(folder: Path, warm: WarmPython) -> None:
    """A model as transformers saves it; without that package, files that look so."""
    if find_spec("transformers") is None:
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "bert"}')
        shutil.copy(folder.with_name("model.safetensors"), folder / "model.safetensors")
        return
    code = """if True:
        from transformers import BertConfig, BertModel
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=100, **sizes)).save_pretrained("bert")
    """
    done = warm.run(code, may_warn=True)
    assert done.returncode == 0, done.stderr


def test_readme_has_the_two_commands_and_others() -> None:
    assert len(SETUP) == 2  # .ci/run runs them
    assert len(SHELL) >= 10
    assert len(PYTHON) >= 3


ALONE = some_of([False, True], [False])  # whether each command and snippet is a process of its own


@pytest.mark.parametrize("is_alone", ALONE)
def test_commands_and_then_snippets_run_one_after_another(is_alone: bool, folder: Path, warm: WarmPython) -> None:
    vqm = shutil.which("vqm", path=str(Path(sys.executable).parent))
    assert vqm is not None, "vqm is not installed beside this Python"
    for line in SHELL:
        if is_alone:
            command = line.replace("vqm ", f"{vqm} ", 1)
            done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        else:
            done = warm.run(VQM, shlex.split(line, comments=True))
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout, line
    for text in PYTHON:
        if "transformers" in text and find_spec("transformers") is None:
            continue
        # transformers makes pydantic and others warn
        done = warm.run(text, may_warn="transformers" in text, is_alone=is_alone)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.fixture(scope="module")
def pictures(warm: WarmPython, folder: Path) -> Path:
    """The file that the first example makes, of which others take the weights."""
    _run_example("Pictures", warm, folder)
    return folder / "pictures.vqm"


@pytest.mark.parametrize("title", some_of(SECTIONS, SECTIONS.keys() - {"Text"}))  # it trains for long
def test_examples_run(title: str, warm: WarmPython, folder: Path, pictures: Path) -> None:
    if title == "C":
        _skip_without_c(folder)
        for name in ("vqm.c", "vqm.h"):
            shutil.copy(ROOT / "vqformat" / "native" / name, folder)
    if title == "JavaScript":
        _skip_without_node()
        shutil.copytree(FIXTURES / "decoders" / "javascript", folder / "javascript")
    if title != "Pictures":
        _run_example(title, warm, folder)
    assert pictures.stat().st_size < 60_000


def _run_example(title: str, warm: WarmPython, folder: Path) -> None:
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", SECTIONS[title], re.MULTILINE | re.DOTALL):
        if kind in PROGRAMS:
            (folder / PROGRAMS[kind]).write_text(text, "utf-8")
            continue
        for code in [text] if kind == "python" else text.splitlines():
            done = warm.run(code) if kind == "python" else subprocess.run(
                code, shell=True, cwd=folder, capture_output=True, text=True, check=False)  # fmt: skip
            assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert done.stdout  # each prints what it has found


def _skip_without_c(folder: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc)")
    command = "echo 'int main(void) { return 0; }' | cc -x c -include zstd.h - -x none -lzstd -o with_zstd"
    if subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("there is no zstd.h, or no libzstd to link with: on Debian they are in libzstd-dev")


def _skip_without_node() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 18:
        pytest.skip(f"node {version.strip()} is older than version 18")


def test_a_device_that_reads_needs_three_packages(tmp_path: Path) -> None:
    code = """if True:
        import importlib.abc, sys
        allowed = {"vqformat", "numpy", "zstandard", "msgpack", *sys.stdlib_module_names}
        class Only(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] not in allowed:
                    raise ModuleNotFoundError(f"No module named {name!r}")
        sys.meta_path.insert(0, Only())
        import numpy, vqformat
        for name in ("fast.vqm", "default.vqm", "small.vqm"):
            for layer in vqformat.stream(name):
                print(layer["x"].shape)
            with vqformat.safe_open(name) as file:
                assert numpy.array_equal(file.get_slice("x")[3], file["x"][3])
            vqformat.verify(name)
        try:
            vqformat.load_file(sys.argv[1])
        except ImportError as err:
            print(err)
    """
    for preset in ("fast", "default", "small"):
        weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        vqformat.save_file({"x": weights}, tmp_path / f"{preset}.vqm", preset=preset)
    bfloat16 = FIXTURES / "valid" / "raw-bf16.vqm"
    done = subprocess.run([sys.executable, "-c", code, bfloat16], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["(64, 64)"] * 3
    assert "pip install ml_dtypes" in done.stdout


@pytest.mark.parametrize("page", [*PAGES, EXAMPLES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text("utf-8")

    assert len(text.splitlines()) <= 200
    assert set((ROOT / ".github" / "docs").glob("*.md")) == {*PAGES[1:], EXAMPLES}
    assert all(f"](.github/docs/{page.name})" in text for page in PAGES[1:])
    assert f"]({EXAMPLES.name})" in TEXT


def test_the_first_commands_table_is_the_one_shown(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    shown = next(text for kind, text in BLOCKS if not kind)
    monkeypatch.chdir(tmp_path)

    table = run("convert", CHECKPOINT, "-o", "lenet.vqm").out

    assert [line.split()[:2] for line in shown.splitlines()] == [line.split()[:2] for line in table.splitlines()]
