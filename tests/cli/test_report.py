"""``vqm report``: the page, its charts and its advice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from cli_runs import HOSTILE, Run
from conftest import CHECKPOINT

import vqformat

pytest.importorskip("matplotlib", reason="not installed: pip install 'vqformat[plot]'")

from vqformat.cli import main
from vqformat.cli.report.measure import measure
from vqformat.cli.report.tree_map import Rectangle, squarify

VOID = {"meta", "br", "wbr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INJECTIONS = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{a}{b}$", "]]></svg>&amp;",
              HOSTILE]  # fmt: skip


class Page(HTMLParser):
    """What is in a page. It checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.policy = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += attrs
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def text_of(html: str) -> str:
    """The text of a page in one line, without elements."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("report") / "lenet.vqm"
    tensors = {name: tensor.numpy() for name, tensor in torch.load(CHECKPOINT, weights_only=True).items()}
    vqformat.save_file(tensors, path, bits=4)
    return path


@pytest.fixture(scope="module")
def html(lenet: Path) -> str:
    """The page of LeNet and its source."""
    output = lenet.with_name("report.html")
    assert main(["report", str(lenet), str(CHECKPOINT), "-o", str(output)]) == 0
    return output.read_text("utf-8")


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (64, 96), "b.weight": (32, 64), "c.weight": (16, 32), "c.bias": (16,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_a_page_with_the_source(lenet: Path, html: str) -> None:
    page, text = Page(html), text_of(html)

    for words in ("What to do next", "fc1.weight takes 8", "Where the bytes are", "Where the expected loss comes from",
                  "Error by tensor", "Weights and reconstruction points", "Code entropy and stored size", "All tensors",
                  "compared with lenet300_100_mnist.pt"):  # fmt: skip
        assert words in text
    assert str(lenet.parent) not in html  # the page may be passed on
    assert page.policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert len(html) < 200_000


def test_nothing_is_run_and_nothing_is_loaded(html: str) -> None:
    page = Page(html)

    assert not {"script", "img", "link", "iframe", "image", "object", "a"} & page.tags.keys()
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert (value or "").startswith("#")


def test_ids_are_unique(html: str) -> None:
    ids = [value for name, value in Page(html).attributes if name == "id"]

    assert len(ids) == len(set(ids))


def test_the_same_files_give_the_same_page(lenet: Path, run: Run, tmp_path: Path) -> None:
    for name in "ab":
        assert run("report", lenet, "-o", tmp_path / name).code == 0

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_a_source(lenet: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert run("report", lenet, "-o", output).code == 0

    text = text_of(output.read_text("utf-8"))

    assert "The errors are not known, because no source was given." in text
    assert "Where the expected loss comes from" not in text
    assert "SQNR of all weights" not in text


def test_hostile_names(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((16, 32), np.float32) for name in INJECTIONS}
    vqformat.save_file(tensors, tmp_path / "model.vqm", {INJECTIONS[0]: INJECTIONS[1]}, bits=4)
    vqformat.save_file(tensors, tmp_path / "source.vqm", lossless=True)
    output = tmp_path / "report.html"

    result = run("report", tmp_path / "model.vqm", "--source", tmp_path / "source.vqm", "-o", output)

    assert result.code == 0, result.err
    html = output.read_text("utf-8")
    page = Page(html)
    assert not {"script", "img", "frac"} & page.tags.keys()
    assert not any(attribute.startswith("on") for attribute, _ in page.attributes)
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_several_files_side_by_side(weights: dict[str, np.ndarray], run: Run, tmp_path: Path) -> None:
    vqformat.save_file(weights, tmp_path / "coarse.vqm", bits=3)
    vqformat.save_file(weights, tmp_path / "fine.vqm", bits=6)
    vqformat.save_file(weights | {"d.weight": np.ones((4, 4), np.float32)}, tmp_path / "source.vqm", lossless=True)
    output = tmp_path / "report.html"

    result = run("report", tmp_path / "coarse.vqm", tmp_path / "fine.vqm", "--source", tmp_path / "source.vqm", "-o",
                 output, "--json")  # fmt: skip

    assert result.code == 0, result.err
    coarse, fine = result.json["files"]
    assert coarse["sqnr_db"] + 10 < fine["sqnr_db"]
    assert coarse["file_nbytes"] < fine["file_nbytes"]
    text = text_of(output.read_text("utf-8"))
    for words in ("Side by side", "Bits per weight by tensor", "SQNR by tensor", "Bytes by tensor",
                  "coarse.vqm by itself"):  # fmt: skip
        assert words in text
    Page(output.read_text("utf-8"))


def test_many_layers_are_numbered_and_repeated_ones_share_a_row(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.weight": rng.standard_normal((4, 32), np.float32) for i in range(60)}
    vqformat.save_file(tensors, tmp_path / "model.vqm", sqnr=20)
    vqformat.save_file(tensors, tmp_path / "source.vqm", lossless=True)
    output = tmp_path / "report.html"

    assert run("report", tmp_path / "model.vqm", "--source", tmp_path / "source.vqm", "-o", output).code == 0

    html = output.read_text("utf-8")
    assert "number, in the order of the file" in html
    assert "layers.0-59.weight, 60 alike" in html
    assert html.count("<figure>") == 3

    exact = tmp_path / "source.vqm"  # has no SQNR
    assert run("report", exact, tmp_path / "model.vqm", "--source", exact, "-fo", output).code == 0


def test_the_entropy_of_even_codes(tmp_path: Path) -> None:
    codes = np.repeat(np.arange(16, dtype=np.float32), 512).reshape(64, 128)
    vqformat.save_file({"even": codes}, tmp_path / "even.vqm", recipe="kmeans:entries=16")

    file = measure("even", tmp_path / "even.vqm", None, None, n_histograms=1)

    (tensor,) = file.tensors
    assert tensor.entropy_bits == pytest.approx(4 * codes.size)
    assert tensor.histogram is not None
    assert tensor.histogram.points is not None
    assert tensor.histogram.points[0].tolist() == list(range(16))


@pytest.mark.parametrize("options", [
    {"preset": "small", "bits": 3}, {"lossless": True}, {"preset": "fast", "bits": 2},
    {"recipe": {"*.weight": "svd:rank=4"}}, {"recipe": {"*.weight": "pq:dim=4,entries=16"}},
])  # fmt: skip
def test_each_method_has_an_entropy(options: dict[str, object], weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    vqformat.save_file(weights, tmp_path / "model.vqm", **options)

    file = measure("model", tmp_path / "model.vqm", None, None, n_histograms=0)

    for tensor in file.stored:
        assert 0 < tensor.entropy_bits <= 1.3 * 8 * tensor.stored_nbytes


def test_tensors_without_values_and_of_other_dtypes(run: Run, tmp_path: Path) -> None:
    tensors = {"empty": np.empty((0, 3), np.float32), "one": np.float32(1), "mask": np.ones(100, bool),
               "z": np.arange(200).astype(np.complex64), "n": np.full(100, np.nan, np.float32)}  # fmt: skip
    vqformat.save_file(tensors, tmp_path / "odd.vqm")
    vqformat.save_file({}, tmp_path / "empty.vqm")
    for name in ("odd", "empty"):
        result = run("report", tmp_path / f"{name}.vqm", "--source", tmp_path / f"{name}.vqm", "-o",
                     tmp_path / f"{name}.html")  # fmt: skip

        assert result.code == 0, result.err
        Page((tmp_path / f"{name}.html").read_text("utf-8"))
    twice = run("report", tmp_path / "empty.vqm", tmp_path / "empty.vqm", "-o", tmp_path / "twice.html")
    assert twice.code == 0, twice.err


def test_a_calibration_gives_the_loss(lenet: Path, run: Run, tmp_path: Path) -> None:
    from vqformat.encode.calibration import Calibration, TensorStatistics

    statistics = {"fc1.weight": TensorStatistics(0.0), "fc2.weight": TensorStatistics(2.0)}
    Calibration(statistics).save(tmp_path / "calibration.npz")

    result = run("report", lenet, CHECKPOINT, "--calibration", tmp_path / "calibration.npz", "-o",
                 tmp_path / "report.html", "--json")  # fmt: skip

    shares = {tensor["name"]: tensor["loss_share"] for tensor in result.json["files"][0]["tensors"]}
    assert (shares["fc1.weight"], shares["fc2.weight"], shares["fc3.weight"]) == (0, 1, None)
    assert "that the calibration has measured" in text_of((tmp_path / "report.html").read_text("utf-8"))


def test_wrong_usage(lenet: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    for args, words in (
        ([CHECKPOINT], "no FILE is a .vqm"),
        ([lenet, CHECKPOINT, "--source", CHECKPOINT], "one source at most"),
        ([lenet, "--calibration", CHECKPOINT], "--calibration needs the source"),
        ([lenet, "-o", lenet], "the output is the source itself"),
    ):
        result = run("report", *args, *([] if "-o" in args else ["-o", output]))

        assert result.code == 2
        assert words in result.err
    output.write_text("mine")
    run("report", lenet, "-o", output).failed_with("exists; -f replaces it")


def test_matplotlib_is_asked_for(lenet: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)

    run("report", lenet, "-o", tmp_path / "report.html").failed_with("vqm report needs matplotlib", "pip install")


def test_matplotlib_is_not_imported_before() -> None:
    code = "import sys, vqformat.cli.report; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tree_map_fills_its_area() -> None:
    sizes = [6, 6, 4, 3, 2, 2, 1]  # the example of the paper

    places = squarify(sizes, Rectangle(0, 0, 6, 4))

    assert [place.width * place.height for place in places] == pytest.approx(sizes)
    assert (places[0].width, places[0].height) == (3, 2)
    assert max(max(place.width / place.height, place.height / place.width) for place in places) < 3


def test_the_page_has_the_width_of_a_phone(html: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    (tmp_path / "report.html").write_text(html, "utf-8")
    # The window of a browser cannot be so narrow, but a frame can
    (tmp_path / "frame.html").write_text(
        '<iframe src="report.html" style="width: 390px; height: 800px"></iframe><script>onload = () => {'
        "const page = frames[0].document; document.title = page.documentElement.scrollWidth + ' ' +"
        "page.querySelectorAll('.cell').length; document.body.textContent = document.title }</script>")  # fmt: skip
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]  # fmt: skip

    done = subprocess.run([browser, *options, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip

    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= 390
    assert int(found[2]) >= 6
