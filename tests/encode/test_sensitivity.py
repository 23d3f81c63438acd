"""How finely tensors are coded by default: it depends on what they are, not on what lies beside them."""

from __future__ import annotations

import io
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from examples import some_of

import vqformat
from vqformat.encode.constant_tensors import are_scales, is_counted, is_designed, is_filter_bank, is_in_order
from vqformat.encode.sensitivity import Statistics, Steps, has_recurrent_name

Model = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sqnr(model: Model, **options: Any) -> dict[str, float]:
    """SQNR of each tensor in dB, measured on the file."""
    stream = io.BytesIO()
    vqformat.save_file(model, stream, **options)
    back = vqformat.load(stream.getvalue())

    def power(values: np.ndarray) -> Any:
        return np.square(values, dtype="f8").sum()

    with np.errstate(divide="ignore"):
        return {name: float(10 * np.log10(power(a) / power(a - back[name]))) for name, a in model.items()}


LAYERS = {f"layer{i}.weight": 0.05 * normal(256, 256, seed=i) for i in range(3)}
CENTRES = np.arange(80) + 0.5
CONSTANTS = {
    "mask": np.triu(np.full((128, 128), -1e9, np.float32), 1),
    "anchors": np.stack(np.meshgrid(CENTRES, CENTRES)).reshape(2, -1).astype(np.float32),
    "times": 10 * np.arange(1000, dtype=np.float32)[None],
    "frequencies": (1e4 ** (-np.arange(0, 64, 2) / 64)).astype(np.float32),
    "lengths": np.full((300, 1, 1), 12, np.float32),
}


OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "ratio": {"ratio": 8}, "small": {"preset": "small", "ratio": 8}}


@cache
def sqnr_alone(options: str) -> dict[str, float]:
    return sqnr(LAYERS, **OPTIONS[options])


@pytest.mark.parametrize(("name", "options"), some_of(
    product(CONSTANTS, OPTIONS), [*product(CONSTANTS, ["default"]), ("anchors", "ratio"), ("mask", "small")]
))  # fmt: skip
def test_a_constant_is_exact_and_costs_the_weights_nothing(name: str, options: str) -> None:
    alone = sqnr_alone(options)

    beside = sqnr({**LAYERS, name: CONSTANTS[name]}, **OPTIONS[options])

    assert beside.pop(name) == np.inf
    assert all(beside[name] > alone[name] - 1 for name in alone)


def test_irregular_values_of_large_scale_cost_the_weights_nothing() -> None:
    beside = sqnr({**LAYERS, "large": 1e6 * normal(64, 64)})

    alone = sqnr_alone("default")
    assert all(beside[name] > alone[name] - 1 for name in alone)


@pytest.mark.parametrize("shape", [(256,), (256, 1, 1), (1, 256, 1, 1), (1, 256)], ids=str)
def test_factors_of_channels_keep_their_precision_whatever_their_axes(shape: tuple[int, ...]) -> None:
    factors = (10 ** (-3 * np.random.default_rng(0).random(256))).astype(np.float32)
    stream = io.BytesIO()

    vqformat.save_file({"g": factors.reshape(shape)}, stream)

    found = vqformat.load(stream.getvalue())["g"].reshape(-1)
    assert (np.abs(found - factors) <= factors * 2.0**-9).all()


def test_trained_weights_are_no_constants() -> None:
    weights = normal(64, 33)
    assert not is_counted(weights) and not is_in_order(weights) and not is_filter_bank(weights)
    assert is_counted(np.rint(weights)) and is_in_order(np.sort(weights.reshape(-1)))
    assert not is_in_order(np.arange(5, dtype=np.float32))  # few values may be in order by chance


def fourier(n: int = 512, n_frequencies: int = 257) -> np.ndarray:
    """Kernels of a short-time Fourier transform, (2 * n_frequencies, n)."""
    t = np.arange(n)
    angles = 2 * np.pi * np.arange(n_frequencies)[:, None] * t / n
    window = 0.5 - 0.5 * np.cos(2 * np.pi * t / n)
    return np.concatenate([window * np.cos(angles), window * np.sin(angles)]).astype(np.float32)


@pytest.mark.parametrize("kernels", [fourier(), fourier()[:, None], fourier().T, np.hanning(33)[None].astype("f4")])
def test_filters_are_told_by_their_symmetry(kernels: np.ndarray) -> None:
    assert is_filter_bank(kernels)


def angles(n: int = 512, dim: int = 64) -> np.ndarray:
    """Angles of positions, (n, dim // 2), as the tables of transformers have them."""
    return np.arange(n)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)


def shifted_fourier(n: int = 512) -> np.ndarray:
    """Kernels whose window has another middle than the waves: that of 400 samples in a transform of 512."""
    window = np.pad(np.hanning(400) ** 0.85, (0, n - 400))
    return (np.cos(2 * np.pi * np.arange(n // 2)[:, None] * np.arange(n) / n) * window).astype(np.float32)


def constant_q(n: int = 2048) -> np.ndarray:
    """Kernels of a constant-Q transform, (84, n): the higher a note is, the shorter."""
    notes = 32.7 * 2 ** (np.arange(84) / 12)[:, None]
    heights = np.exp(-(((np.arange(n) - n / 2) * notes / 2e5) ** 2))
    return (np.cos(2 * np.pi * notes * np.arange(n) / 16000) * heights).astype(np.float32)


DESIGNED = {
    "positions": np.concatenate([np.sin(angles()), np.cos(angles())], axis=1).astype("f4"),
    "rotary, of heads": np.cos(np.concatenate([angles(), angles()], axis=1)).astype("f4")[None, None],
    "shifted window": shifted_fourier(), "constant Q": constant_q()[:, None],
    "slopes times distances": (2.0 ** -np.arange(1, 9)[:, None, None] * -np.arange(300)).astype("f4"),
    "coordinates": np.stack(np.meshgrid(np.linspace(-1, 1, 33), np.linspace(-1, 1, 33)))[None].astype("f4"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESIGNED)
def test_waves_and_ramps_along_any_axis_are_no_weights(name: str) -> None:
    found = sqnr({**LAYERS, "table": DESIGNED[name]})

    assert is_designed(DESIGNED[name]) and found["table"] > 50


@pytest.mark.parametrize("weights", [
    normal(64, 33), normal(512, 16), normal(64, 16, 3, 3), 0.3 + normal(300, 40), np.eye(64, dtype="f4"),
    np.cumsum(normal(64, 64), axis=1).astype("f4"), np.zeros((32, 32), "f4"),
], ids=lambda weights: str(weights.shape))  # fmt: skip
def test_weights_are_no_waves(weights: np.ndarray) -> None:
    assert not is_designed(weights)


def test_scales_of_groups_keep_the_precision_of_each() -> None:
    scales = (10 ** (-3 * np.random.default_rng(0).random((64, 32)))).astype(np.float16)
    stream = io.BytesIO()

    vqformat.save_file({**LAYERS, "scales": scales}, stream)

    found = vqformat.load(stream.getvalue())["scales"]
    assert (np.abs(found - scales) <= scales * 2.0**-8.5).all()


def test_scales_have_one_sign_and_are_seldom_zero() -> None:
    scales = np.abs(normal(64, 64)) + np.float32(0.1)
    assert are_scales(scales) and are_scales(np.where(np.eye(64, dtype=bool), np.float32(0), scales))
    assert are_scales(-scales) and not are_scales(normal(64, 64)) and not are_scales(np.maximum(normal(64, 64), 0))


def test_repeated_small_filters_are_exact() -> None:
    blur = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16 / 3

    found = sqnr({**LAYERS, "blur": np.tile(blur, (64, 1, 1, 1))})

    assert np.isinf(found["blur"])


def test_a_fourier_transform_beside_weights_is_much_finer_than_they() -> None:
    found = sqnr({**LAYERS, "stft": fourier()[:, None]})

    assert found["stft"] > 50 > max(found[name] for name in LAYERS)


@pytest.mark.parametrize("name", [
    "lstm.weight_hh_l0", "enc.weight_ih_l1_reverse", "cell.weight_hh", "lstm/lstm_cell/recurrent_kernel",
    "bidirectional/forward_gru/gru_cell/kernel", "OptimizedLSTMCell_0.hi.kernel", "onnx::LSTM_231",
])  # fmt: skip
def test_recurrent_kernels_are_known_by_the_names_of_frameworks(name: str) -> None:
    assert has_recurrent_name(name)


@pytest.mark.parametrize("name", ["fc.weight", "conv1.kernel", "attn.in_proj_weight", "dense/kernel", "onnx::MatMul_7"])
def test_other_names_are_not_those_of_recurrent_kernels(name: str) -> None:
    assert not has_recurrent_name(name)


def statistics(*shape: int, scale: float = 0.05, **known: Any) -> Statistics:
    return Statistics.of(scale * normal(*shape), **known)


def test_deeper_networks_and_recurrent_ones_are_finer() -> None:
    shallow, deep = Steps([statistics(64, 64)] * 8), Steps([statistics(64, 64)] * 128)
    recurrent = Steps([statistics(64, 64, is_recurrent=True)] * 8)

    assert shallow.default > 3.9 * deep.default > 7 * recurrent.default
    assert Steps([statistics(64, 64)] * 8, is_part=True).default < shallow.default  # of a network of unknown depth


def test_small_tensors_and_those_with_few_large_values_are_finer() -> None:
    spiky = 0.05 * normal(300, 300) * (1 + 30 * (np.random.default_rng(1).random((300, 300)) < 0.003))
    plain, small, odd = statistics(300, 300), statistics(20, 20), Statistics.of(spiky.astype(np.float32))

    steps = Steps([plain, small, odd])

    relative = [steps.step(one, 1.0) / one.deviation for one in (plain, small, odd)]
    assert relative[1] < 0.3 * relative[0] and relative[2] < 0.8 * relative[0]


def test_few_values_among_zeros_are_kept() -> None:
    rare = np.zeros((1000, 1000), np.float32)
    rare[500, 500:510] = normal(10)

    assert sqnr({"rare": rare})["rare"] > 28 and sqnr({"rare": rare, **LAYERS}, ratio=6)["rare"] > 15


CNN = {"conv1": normal(16, 3, 5, 5) / 8, "conv2": normal(32, 16, 5, 5, seed=1) / 20, "fc": normal(10, 800, seed=2) / 28}


@pytest.mark.parametrize(("ratio", "is_ruined"), [(8, False), (30, True)])
def test_a_model_that_will_most_likely_not_work_is_said_aloud(ratio: float, is_ruined: bool) -> None:
    report = vqformat.save_file(CNN, io.BytesIO(), ratio=ratio)

    assert bool(report.ruined) == is_ruined and set(report.ruined) <= set(report.notes)
    if is_ruined:
        advised = float(report.ruined[0].rpartition("try a ratio of ")[2])
        again = vqformat.save_file(CNN, io.BytesIO(), ratio=advised)
        assert advised < ratio and not again.ruined
