"""What the encoder makes of models: its own choice, and tensors out of the ordinary."""

from __future__ import annotations

import io

import numpy as np
import pytest
from saved_models import Model, normal, save, saved_and_loaded, sqnr_db

import vqformat
import vqformat.numpy as vqm
from vqformat.encode.methods.fine import encode_fine
from vqformat.encode.sensitivity import Statistics
from vqformat.errors import EncodeError


def test_same_model_gives_the_same_bytes(lenet: Model) -> None:
    assert save(lenet)[0] == save(lenet)[0]
    assert save(lenet, ratio=20)[0] == save(lenet, ratio=20)[0]
    vectors = {"a": normal(64, 32)}
    assert save(vectors, recipe="pq:entries=16", seed=3)[0] == save(vectors, recipe="pq:entries=16", seed=3)[0]


def test_small_tensors_are_within_one_in_512_of_each_value() -> None:
    values = normal(200) * np.exp(normal(200, seed=1) * 20)
    model = {"bias": values.astype(np.float32), "variance": values.astype(np.float64) ** 2, "small": normal(15, 17)}

    loaded, _ = saved_and_loaded(model)

    for name, original in model.items():
        assert (np.abs(loaded[name] - original) <= np.abs(original) * 2.0**-9).all(), name


def test_subnormal_values_are_not_rounded() -> None:
    values = np.array([1e-45, -3e-42, 1e-39, 1.2345678, 0, -0.0], np.float32)

    _, rounded = encode_fine("b", "f32", values)

    assert rounded[:3].tobytes() == values[:3].tobytes()
    assert rounded[3] != values[3]


def test_weights_of_any_magnitude_are_as_fine_as_others() -> None:
    weights = normal(64, 64)

    for scale in (2.0**-100, 2.0**-80, 2.0**60, 2.0**100):
        scaled = weights * np.float32(scale)
        loaded, report = saved_and_loaded({"w": scaled})
        found = sqnr_db(scaled, loaded["w"])
        assert 29 < found < 39, scale  # a layer that amplifies is up to 9 dB finer
        assert report.tensors[0].sqnr_db == pytest.approx(found, abs=0.1)


def test_statistics_of_values_whose_squares_leave_float32() -> None:
    for scale in (1e-24, 1e18):
        assert Statistics.of(np.full((8, 8), scale, np.float32)).deviation == pytest.approx(scale)


@pytest.mark.parametrize("scale", [1e-36, 1e-46, 1e-300, 1e39, 1e300])
def test_weights_too_small_or_large_for_float32_are_exact(scale: float) -> None:
    weights = normal(64, 64).astype(np.float64) * scale

    for recipe in (None, "kmeans:entries=4", "uniform:bits=2"):
        loaded, _ = saved_and_loaded({"w": weights}, recipe=recipe)
        assert loaded["w"].tobytes() == weights.tobytes()


def signs(*shape: int) -> np.ndarray:
    """No grid whose step is above 1.6 has anything left of them."""
    return np.where(normal(*shape) > 0, np.float32(1), np.float32(-1))


def test_a_tensor_that_its_grid_would_lose_is_coded_finely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.encode.sensitivity.Steps.default", 4.0)

    loaded, report = saved_and_loaded({"w": signs(64, 64)})

    assert np.array_equal(loaded["w"], signs(64, 64))
    assert report.tensors[0].method.startswith("float")


def test_a_tensor_that_a_budget_drowns_is_named() -> None:
    model = {"signs": signs(128, 128), "other": normal(128, 128) * 2}

    _, report = save(model, bits=1)

    assert report.tensors[0].sqnr_db < 1 < report.tensors[1].sqnr_db
    assert len(report.notes) == 2 and "'signs'" in report.notes[0] and report.notes[1:] == report.ruined


def test_tensors_of_zeros_are_no_loss() -> None:
    loaded, report = saved_and_loaded({"w": np.zeros((64, 64), np.float32)}, ratio=8)

    assert not loaded["w"].any() and report.notes == report.missed


def test_long_vectors_go_on_a_grid_and_short_ones_do_not() -> None:
    model = {"long": normal(600_000), "shortest": normal(65_536), "short": normal(65_535)}

    data, report = save(model)
    loaded = vqm.load(data)

    bits_per_weight = [tensor.bits_per_weight for tensor in report.tensors]
    assert max(bits_per_weight[:2]) < 6.5 and bits_per_weight[2] > 10
    assert sqnr_db(model["long"], loaded["long"]) > 20
    with vqformat.safe_open(io.BytesIO(data)) as file:
        assert np.array_equal(file.get_slice("long")[300_000:300_010], loaded["long"][300_000:300_010])


def test_bools_of_any_byte_become_0_and_1() -> None:
    odd = np.frombuffer(bytes([0, 1, 2, 255]), np.bool_)

    loaded, _ = saved_and_loaded({"b": odd, "scalar": odd[2:3].reshape(())})

    assert loaded["b"].view(np.uint8).tolist() == [0, 1, 1, 1]
    assert loaded["scalar"].view(np.uint8) == 1


# What cannot be written


def test_at_most_32_axes() -> None:
    loaded, _ = saved_and_loaded({"w": normal(16, 16).reshape(16, *[1] * 30, 16)})
    assert loaded["w"].ndim == 32

    with pytest.raises(EncodeError, match="'w' has 33 axes; at most 32"):
        save({"w": normal(2, 2).reshape(2, *[1] * 31, 2)})


def test_shapes_with_too_large_a_product() -> None:
    loaded, _ = saved_and_loaded({"w": np.empty((0, 2**57), np.uint8)})
    assert loaded["w"].shape == (0, 2**57)

    with pytest.raises(EncodeError, match="the product 288230376151711744; it must be below 288230376151711744"):
        save({"w": np.empty((0, 2**58), np.uint8)})


def test_lossless_keeps_every_bit_of_a_checkpoint(lenet: Model) -> None:
    loaded, report = saved_and_loaded(lenet, lossless=True)

    assert all(loaded[name].tobytes() == array.tobytes() for name, array in lenet.items())
    assert report.file_nbytes < 897_000  # 1,066,440 bytes of float32


def test_a_method_that_cannot_code_infinity_says_so() -> None:
    model = {"w": np.full((30, 30), np.inf, np.float32)}

    with pytest.raises(EncodeError, match="infinity"):
        vqm.save(model, recipe={"w": "kmeans:entries=4"})
    loaded, report = saved_and_loaded(model, recipe="kmeans:entries=4")
    assert np.isinf(loaded["w"]).all()
    assert "infinity" in report.notes[0]
