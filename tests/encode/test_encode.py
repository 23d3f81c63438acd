"""What the encoder makes of models: budgets, choices, and tensors out of the ordinary."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINT
from examples import some_of

import vqformat
import vqformat.numpy as vqm
from vqformat.encode.methods import packing, quantize
from vqformat.encode.methods.fine import encode_fine
from vqformat.encode.recipe import parse_method
from vqformat.encode.report import Report
from vqformat.encode.sensitivity import Statistics, Steps
from vqformat.encode.step_search import Goal, Outcome, meet
from vqformat.errors import EncodeError
from vqformat.format import bits
from vqformat.format.layout import Layout, make_view
from vqformat.format.stages import LowRankStage

Model = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(model: Model, **options: Any) -> tuple[bytes, Report]:
    stream = io.BytesIO()
    report = vqm.save_file(model, stream, **options)
    return stream.getvalue(), report


def saved_and_loaded(model: Model, **options: Any) -> tuple[Model, Report]:
    data, report = save(model, **options)
    return vqm.load(data), report


def sqnr_db(original: np.ndarray, decoded: np.ndarray) -> float:
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    scale = np.abs(a).max()  # squares of 1e-200 would be 0
    return float(10 * np.log10(np.square(a / scale).sum() / np.square((a - b) / scale).sum()))


@pytest.fixture(scope="module")
def lenet() -> Model:
    torch = pytest.importorskip("torch")
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


# The encoder's own choice


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


@pytest.mark.parametrize(
    "options",
    [{"bits": "3"}, {"ratio": "8"}, {"bits": True}, {"bits": float("nan")}, {"ratio": 0}, {"ratio": [4]}, {"bits": 1j}],
    ids=str,
)  # fmt: skip
def test_budgets_are_numbers_above_0(options: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="a number above 0"):
        save({"w": normal(32, 32)}, **options)


def test_budgets_may_be_numbers_of_numpy() -> None:
    assert save({"w": normal(64, 64)}, bits=np.float32(4))[1].file_nbytes <= 2048


def test_lossless_and_a_recipe_exclude_each_other() -> None:
    with pytest.raises(EncodeError, match="lossless and a recipe exclude each other"):
        save({"w": normal(32, 32)}, lossless=True, recipe="pq")


# Budgets


@pytest.mark.parametrize("ratio", [8, 20, 40])
def test_ratio_is_met_within_one_percent(lenet: Model, ratio: float) -> None:
    source_nbytes = sum(array.nbytes for array in lenet.values())

    data, report = save(lenet, ratio=ratio)

    assert 0.99 * source_nbytes / ratio <= len(data) <= source_nbytes / ratio
    assert report.ratio == pytest.approx(ratio, rel=0.0102)


@pytest.mark.parametrize("bits_per_weight", [0.8, 2, 6])
def test_bits_are_met_within_one_percent(lenet: Model, bits_per_weight: float) -> None:
    goal = bits_per_weight * sum(array.size for array in lenet.values()) / 8

    data, _ = save(lenet, bits=bits_per_weight)

    assert 0.99 * goal <= len(data) <= goal


@pytest.mark.parametrize(("preset", "nbytes"), some_of(
    product(["default", "small"], [25_000, 60_000, 140_000]), [("default", 25_000), ("small", 60_000)]
))  # fmt: skip
def test_sizes_are_met_to_a_percent(lenet: Model, preset: str, nbytes: int) -> None:
    data, _ = save(lenet, size=nbytes, preset=preset)
    assert 0.99 * nbytes <= len(data) <= nbytes


@pytest.mark.parametrize(("preset", "sqnr_db"), some_of(
    product(["default", "small"], [3.0, 12.0, 33.3]), [("default", 33.3), ("small", 12.0)]
))  # fmt: skip
def test_an_sqnr_is_met_to_a_tenth(lenet: Model, preset: str, sqnr_db: float) -> None:
    data, report = save(lenet, sqnr=sqnr_db, preset=preset)

    decoded = vqm.load(data)
    weights = [name for name, array in lenet.items() if array.ndim > 1]
    noise = sum(float(np.square(lenet[name] - decoded[name], dtype=np.float64).sum()) for name in weights)
    signal = sum(float(np.square(lenet[name], dtype=np.float64).sum()) for name in weights)
    assert 10 * np.log10(signal / noise) == pytest.approx(report.sqnr_db, abs=0.01)
    assert sqnr_db <= report.sqnr_db <= sqnr_db + 0.1


def test_presets_are_ordered_by_size_and_keep_budgets(lenet: Model) -> None:
    lenet = {**lenet, "fc1.weight": lenet["fc1.weight"][:100]}  # a third of it takes a third of the time
    sizes = {preset: len(save(lenet, sqnr=15, preset=preset)[0]) for preset in ("small", "default", "fast")}
    assert sizes["small"] < 0.93 * sizes["default"] < 0.93 * sizes["fast"]
    assert save(lenet, ratio=9, preset="fast")[1].ratio >= 9  # of whole bits: not always near


@pytest.mark.parametrize("steepness", [0.5, 1, 10, 30])
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
def test_a_size_is_met_however_it_goes_with_the_step(steepness: float, share: float) -> None:
    steps = Steps([Statistics.of(normal(300, 200))])
    tried = []

    def encode(step: float) -> Outcome:  # up to a step of 0.9 as estimated, then of another slope
        nbytes = steps.estimate(min(step, 0.9)) * max(1.0, step / 0.9) ** -steepness
        tried.append(int(nbytes))
        return Outcome(int(nbytes) + 1, 0.0)

    nbytes = share * steps.estimate(0.9)
    meet(steps, Goal(nbytes), encode)
    assert 0.99 * nbytes <= max(n for n in tried if n <= nbytes)


def test_a_fixed_step_stays_and_the_others_meet_the_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    data, report = save(model, bits=3, recipe={"a": "uniform:bits=4"})

    assert 0.99 * 49152 <= len(data) <= 49152
    first, second = report.tensors
    assert first.bits_per_weight == pytest.approx(4, abs=0.15)
    assert second.bits_per_weight == pytest.approx(2, abs=0.15)


def test_uniform_without_a_step_takes_part_in_the_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    _, report = save(model, bits=3, recipe={"a": "uniform"})

    assert [tensor.bits_per_weight for tensor in report.tensors] == pytest.approx([3, 3], abs=0.1)


def test_vector_methods_keep_their_bits_under_a_budget() -> None:
    model = {"a": normal(256, 256), "b": normal(256, 256, seed=1)}

    data, report = save(model, bits=3, recipe={"a": "kmeans:entries=4"})

    assert 0.99 * 49152 <= len(data) <= 49152
    assert report.tensors[0].bits_per_weight < 2.1


def test_a_generous_budget_is_spent_on_no_loss() -> None:
    model = {"a": normal(128, 128), "b": normal(100)}
    exact = len(save(model, lossless=True)[0])

    loaded, report = saved_and_loaded(model, bits=32)

    assert report.file_nbytes == exact
    assert all(loaded[name].tobytes() == array.tobytes() for name, array in model.items())


def test_a_generous_budget_leaves_the_recipe_its_tensors() -> None:
    model = {"a": normal(128, 128), "b": normal(128, 128)}

    loaded, report = saved_and_loaded(model, ratio=1.0, recipe={"a": "kmeans:entries=4"})

    assert report.tensors[0].bits_per_weight < 3
    assert loaded["b"].tobytes() == model["b"].tobytes()


def test_larger_budgets_give_larger_files() -> None:
    model = {"a": normal(128, 128), "b": normal(100)}

    sizes = [save(model, bits=n)[1].file_nbytes for n in (1, 2, 4, 8, 12, 14, 20, 30)]

    assert all(later > 0.97 * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] > 1.5 * sizes[3]


@pytest.mark.parametrize(("options", "possible"), [
    ({"ratio": 100}, r"a ratio of \d+\.\d\d is possible"), ({"bits": 0.5}, r"\d+\.\d\d bits a weight are possible"),
])  # fmt: skip
def test_a_budget_that_cannot_be_met_says_what_can(options: dict[str, Any], possible: str) -> None:
    model = {"a": normal(64, 64), "bias": normal(4000)}

    with pytest.raises(EncodeError, match=possible) as caught:
        save(model, **options)

    assert "bytes in tensors that no step changes" in str(caught.value)


def test_the_possible_ratio_is_possible() -> None:
    model = {"a": normal(64, 64), "bias": normal(4000)}
    with pytest.raises(EncodeError) as caught:
        save(model, ratio=100)
    ratio = float(str(caught.value).partition("a ratio of ")[2].partition(" ")[0])

    assert save(model, ratio=ratio)[1].ratio >= ratio


@pytest.mark.parametrize("model", [{}, {"e": np.empty((0, 3), np.float32)}], ids=["no tensors", "no elements"])
@pytest.mark.parametrize("options", [{"bits": 2}, {"ratio": 8}], ids=str)
def test_an_empty_model_meets_any_budget(model: Model, options: dict[str, Any]) -> None:
    loaded, _ = saved_and_loaded(model, **options)

    assert loaded.keys() == model.keys()


def test_tensors_that_no_step_changes_are_encoded_once() -> None:
    calls: list[str] = []

    with pytest.raises(EncodeError, match="smallest possible"):
        save({"a": normal(100), "b": normal(100)}, ratio=8,
             progress=lambda name, done, total: calls.append(name) if name.phase == "encoding" else None)  # fmt: skip

    assert calls == ["a", "b"]


# Recipes


def test_a_wildcard_falls_back_where_its_method_fails() -> None:
    """Sums of stages could leave the range of float16."""
    model = {"wide": np.clip(normal(64, 64) * 30_000, -65504, 65504).astype(np.float16), "fits": normal(64, 64)}

    for options in ({}, {"bits": 6}):
        loaded, report = saved_and_loaded(model, recipe={"*": "rq:entries=16,stages=3"}, **options)
        assert sqnr_db(model["wide"], loaded["wide"]) > 10
        assert len(report.notes) == 1 and "'wide'" in report.notes[0] and "rq:" in report.notes[0]
        assert report.tensors[1].bits_per_weight < 4

    with pytest.raises(EncodeError, match="'wide'"):
        save(model, recipe={"wide": "rq:entries=16,stages=3"})


def test_a_fallen_tensor_takes_part_in_the_budget() -> None:
    model = {"wide": np.clip(normal(128, 128) * 30_000, -65504, 65504).astype(np.float16)}

    data, _ = save(model, recipe="rq:entries=16,stages=3", bits=5)

    assert 0.99 * 10240 <= len(data) <= 10240


# Low rank


def low_rank(matrix: np.ndarray, text: str) -> LowRankStage:
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    stage = quantize.quantize(matrix, view, parse_method(text))[0].stage
    assert isinstance(stage, LowRankStage)
    return stage


def test_right_factors_stay_within_their_limit() -> None:
    wide = np.ones((3, 9_000_000), np.float32)

    with pytest.raises(EncodeError, match="right factor of 18000000 elements; at most 16777216"):
        low_rank(wide, "svd:rank=2")


def test_bits_choose_a_rank_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.encode.methods.lowrank.MAX_RIGHT_FACTOR", 3 * 400)

    assert low_rank(normal(100, 400), "svd:bits=8").rank == 3


def test_ranks_are_at_most_the_shorter_side() -> None:
    assert low_rank(normal(20, 30), "svd:rank=50").rank == 20
    assert low_rank(normal(20, 30), "svd:bits=60").rank == 20


def test_bits_leave_small_output_layers_their_rank() -> None:
    assert low_rank(normal(10, 100), "svd:bits=1").rank == 10
    assert low_rank(normal(16, 100), "svd:bits=1").rank == 16
    assert low_rank(normal(17, 100), "svd:bits=1").rank == 1


# Packing and compression


def test_a_second_plane_must_save_one_percent() -> None:
    """Of codes without any structure the dense packing is best by a little, or nearly so."""
    codes = np.random.default_rng(0).integers(0, 255, 1 << 16).astype(np.uint8)
    wide = np.clip(np.rint(normal(1 << 16) * 3 + 500), 0, 999).astype(np.uint16)

    assert len(packing.choose_planes(codes, 255)) <= 1
    planes = packing.choose_planes(wide, 1000)
    assert len(planes) == 2
    two = sum(map(packing.quick_nbytes, bits.pack(wide, 1000, planes)))
    assert two <= 0.99 * packing.quick_nbytes(bits.pack(wide, 1000, ())[0])


def test_threads_compress_side_by_side() -> None:
    payloads = [np.random.default_rng(i).integers(0, 3 + i, 3000 * i).astype(np.uint8).tobytes() for i in range(1, 9)]
    expected = [packing.sections([payload]) for payload in payloads]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda payload: packing.sections([payload]), payloads * 10))

    assert found == expected * 10


def test_long_matches_are_found() -> None:
    row = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()

    sections = packing.sections([row * 20, row * 20])

    assert [len(section.stored) < 3200 for section in sections] == [True, True]


def test_exponents_are_compressed_better_than_by_literals_alone() -> None:
    """Three tensors of different scale by turns, as of a cell's gates."""
    scales = np.repeat(2.0 ** np.array([0, -6, 5] * 40), 512)
    weights = (normal(len(scales)) * scales).astype(np.float32)
    exponents = ((weights.view(np.uint32) >> 23) & 255).astype(np.uint8).tobytes()

    (section,) = packing.sections([exponents])

    assert section.is_zstd and len(section.stored) < 0.5 * len(exponents)


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
