"""Converting a file of one large tensor takes little more memory than the tensor: each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memory
import ml_dtypes
import numpy as np
import pytest
from examples import some_of
from numpy.typing import DTypeLike

from vqformat.converters import convert, extract

pytestmark = pytest.mark.skipif(not memory.IS_KNOWN, reason="memory is told by /proc/self/status, which is Linux's")

NBYTES = 1 << 26
TENSOR_MB = NBYTES / memory.MB
WORKING_MB = 44  # for the blocks in work, and the sections that are kept in memory before a file is begun
STACKS_MB = 24  # that the system counts as taken for threads
OPTIONS = some_of([{"lossless": True}, {}, {"bits": 4}], [{"lossless": True}, {}])


def make(
    path: Path, dtype: DTypeLike = np.float32, *, nbytes: int = NBYTES, has_zeros: bool = False,
    is_on_grid: bool = False,
) -> Path:  # fmt: skip
    """A file of one tensor.

    Args:
        nbytes: Of the tensor.
        has_zeros: Whether half of the values are zero.
        is_on_grid: Whether the values of a row are integers up to 127 times a scale.
    """
    random = np.random.default_rng(0)
    weights = np.empty((4096, nbytes // 4096 // np.dtype(dtype).itemsize), dtype)
    for band in np.split(weights, 16):
        values = random.standard_normal(band.shape, np.float32)
        if has_zeros:
            values[random.random(band.shape, np.float32) < 0.5] = 0
        if is_on_grid:
            scales = (np.abs(values).max(axis=1, keepdims=True) / 127).astype(ml_dtypes.bfloat16).astype(np.float32)
            values = np.rint(values / scales) * scales
        band[...] = values
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"w": weights}, path)
    elif path.suffix == ".pt":
        import torch

        from vqformat.torch import from_numpy

        torch.save({"w": from_numpy(weights)}, path)
    elif path.suffix == ".onnx":
        import onnx

        graph = onnx.GraphProto(name="g", initializer=[onnx.numpy_helper.from_array(weights, "w")])
        onnx.save(onnx.ModelProto(ir_version=8, graph=graph), path)
    else:
        np.savez(path, w=weights)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one_tensor")


@pytest.fixture(scope="module")
def safetensors(folder: Path) -> Path:
    pytest.importorskip("safetensors")
    return make(folder / "model.safetensors")


@pytest.fixture(scope="module")
def quarter(folder: Path) -> Path:
    """A file of a quarter of the size, for what takes longer."""
    pytest.importorskip("safetensors")
    return make(folder / "quarter.safetensors", nbytes=NBYTES // 4)


@pytest.fixture(scope="module")
def bf16(folder: Path) -> Path:
    pytest.importorskip("safetensors")
    return make(folder / "bf16.safetensors", ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def pytorch(folder: Path) -> Path:
    pytest.importorskip("torch")
    return make(folder / "model.pt")


@pytest.fixture(scope="module")
def npz(folder: Path) -> Path:
    return make(folder / "model.npz")


@pytest.fixture(scope="module")
def onnx(folder: Path) -> Path:
    pytest.importorskip("onnx")
    return make(folder / "model.onnx")


@pytest.fixture(scope="module")
def vqm(safetensors: Path) -> Path:
    convert(safetensors, safetensors.with_suffix(".vqm"), lossless=True)
    return safetensors.with_suffix(".vqm")


def prepare() -> None:
    """Import what the work needs."""
    import zipfile  # noqa: F401

    import vqformat.converters.npz
    import vqformat.converters.pytorch
    import vqformat.converters.safetensors  # noqa: F401


def prepare_onnx() -> None:
    prepare()
    import vqformat.converters.onnx  # noqa: F401


def prepare_torch() -> None:
    import vqformat.converters.export.pytorch  # noqa: F401


def prepare_small() -> None:
    """As ``prepare``; and each matrix is too large to be held together with its codes, or with results."""
    prepare()
    from vqformat.encode.small import bands, small

    small._HELD_NBYTES = bands._KEPT = 0


def prepare_fast() -> None:
    """As ``prepare``; and levels are trained on few values, for the memory of many does not depend on the tensor."""
    prepare()
    from vqformat.encode.methods import kmeans_1d

    kmeans_1d.SAMPLE = 1 << 16


def encode_with_two_codebooks(source: Path) -> int:
    """Encode a tensor as preset ``fast`` does for some goals. Returns the number of stages."""
    from safetensors import safe_open

    from vqformat.encode.methods import fast

    with safe_open(source, "np") as file:
        values = file.get_tensor("w")
    choice = fast.Choice(16, (16, 12))
    return len(fast.encode("w", "f32", values.shape, values, choice)[0].record.stages)


def work(function: Any, source: Path, target: Path, options: dict[str, Any]) -> None:
    function(source, target, overwrite=True, **options)


def check(function: Any, source: Path, target: Path, options: dict[str, Any], *, most: float) -> None:
    """Check that work takes at most ``most`` times the tensor, and what it takes for small tensors, too."""
    most_mb = most * TENSOR_MB + WORKING_MB
    start = prepare_torch if target.suffix == ".pt" else prepare_onnx if source.suffix == ".onnx" else prepare
    limit_mb = most_mb + STACKS_MB
    assert memory.measure(work, function, source, target, options, prepare=start, limit_mb=limit_mb).peak_mb <= most_mb


def _share_of_codes(options: dict[str, Any], itemsize: int) -> float:
    """Bytes of codes over bytes of elements."""
    return 0.0 if options.get("lossless") else 1 / itemsize


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("source", ["safetensors", "pytorch"])
def test_of_a_mapped_tensor_only_codes_are_held(
    source: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check(convert, request.getfixturevalue(source), tmp_path / "out.vqm", options, most=_share_of_codes(options, 4))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_tensor_of_short_floats_is_not_widened(options: dict[str, Any], bf16: Path, tmp_path: Path) -> None:
    check(convert, bf16, tmp_path / "out.vqm", options, most=_share_of_codes(options, 2))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("source", ["npz", "onnx"])
def test_a_tensor_that_is_not_mapped_is_held_once(
    source: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check(convert, request.getfixturevalue(source), tmp_path / "out.vqm", options, most=1 + _share_of_codes(options, 4))


@pytest.mark.parametrize(("dtype", "most"), some_of(
    [(np.float32, 1 / 2), (ml_dtypes.bfloat16, 1.0)], [(np.float32, 1 / 2)]
), ids=["f32", "bf16"])  # fmt: skip
def test_of_a_dequantized_tensor_two_copies_of_its_codes_are_held(
    dtype: DTypeLike, most: float, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    source = make(folder / f"dequantized_{np.dtype(dtype)}.safetensors", dtype, is_on_grid=True)
    check(convert, source, tmp_path / "out.vqm", {"lossless": True}, most=most)


def test_tensors_with_zeros_are_made_block_by_block(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    source = make(folder / "zeros.safetensors", has_zeros=True)
    check(convert, source, tmp_path / "out.vqm", {"lossless": True}, most=0)


@pytest.mark.parametrize("options", some_of(
    [{"step": 0.5}, {"ratio": 24}, {"sqnr": 12}], [{"ratio": 24}]
), ids=str)  # fmt: skip
def test_preset_small_holds_a_tensor_once(options: dict[str, Any], quarter: Path, tmp_path: Path) -> None:
    most_mb = TENSOR_MB / 4 + WORKING_MB

    found = memory.measure(work, convert, quarter, tmp_path / "out.vqm", {"preset": "small", **options},
                           prepare=prepare_small)  # fmt: skip

    assert found.peak_mb <= most_mb


def test_a_second_codebook_takes_little_more_than_codes(safetensors: Path) -> None:
    most_mb = TENSOR_MB * (1 + 1 / 4 + 1 / 48) + WORKING_MB  # the tensor, which is not mapped, and both stages' codes

    found = memory.measure(encode_with_two_codebooks, safetensors, prepare=prepare_fast)

    assert found.result == 2
    assert found.peak_mb <= most_mb


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "npz"])
def test_an_extracted_tensor_is_held_once(suffix: str, vqm: Path, tmp_path: Path) -> None:
    if suffix == "pt":
        pytest.importorskip("torch")
    check(extract, vqm, tmp_path / f"out.{suffix}", {}, most=1)
