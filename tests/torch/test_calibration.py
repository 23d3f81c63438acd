"""What is learnt of a model by running it: statistics of inputs, importance, and files of them."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import names
from torchmodels import Calling, saved

import vqformat
from vqformat.encode import moments
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.errors import EncodeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

from vqformat import torch as vt  # noqa: E402


def only_moments(found: TensorStatistics) -> np.ndarray:
    """The moments where there is one group of one block."""
    assert found.moments is not None
    ((block,),) = found.moments
    return block


def statistics(model: nn.Module, *batches: Any, **options: Any) -> Mapping[str, TensorStatistics]:
    return vt.calibrate(model, batches, **options).tensors


def importances(model: nn.Module, *batches: Any, **options: Any) -> dict[str, float]:
    return {name: found.importance for name, found in statistics(model, *batches, **options).items()}


def products(vectors: Any) -> np.ndarray:
    """Mean of the products of vectors ``(n, inputs)``."""
    x = vectors.detach().double().numpy()
    return x.T @ x / len(x)


@pytest.fixture
def without_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that is not small."""
    monkeypatch.setattr(moments, "_CREDIT", 0)


# Observers


class TestObservers:
    @given(st.sampled_from([(), (5,), (3, 4), (2, 2, 2)]), st.integers(1, 9), st.integers(1, 3))
    @examples(20)
    def test_moments_of_a_linear_layer_are_those_of_its_inputs(
        self, shape: tuple[int, ...], n: int, n_batches: int
    ) -> None:
        torch.manual_seed(0)
        batches = [torch.randn(*shape, n) for _ in range(n_batches)]

        found = statistics(nn.Linear(n, 2), *batches)

        expected = torch.cat([batch.reshape(-1, n) for batch in batches])
        np.testing.assert_allclose(only_moments(found["weight"]), products(expected), rtol=1e-4, atol=1e-5)
        assert found["weight"].n_observed == len(expected)
        assert found["bias"].moments is None

    @given(st.data())
    @examples(80)
    def test_moments_of_a_convolution_give_the_energy_of_its_outputs(self, data: st.DataObject) -> None:
        torch.manual_seed(0)
        rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        channels, outputs = (groups * data.draw(st.integers(1, 2)) for _ in range(2))
        mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        padding = data.draw(st.sampled_from(["same", "valid"]) | st.tuples(*[st.integers(0, 2)] * rank))
        is_same = padding == "same"
        kernel = tuple(data.draw(st.sampled_from([1, 3] if is_same else [1, 2, 3])) for _ in range(rank))
        stride = 1 if is_same else tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
        dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(rank))
        places = tuple((size - 1) * spacing + 1 + data.draw(st.integers(2, 4))
                       for size, spacing in zip(kernel, dilation, strict=True))  # fmt: skip
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](
            channels, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode
        )
        x = torch.randn(*data.draw(st.sampled_from([(), (1,), (3,)])), channels, *places)

        found = statistics(layer, x)["weight"]

        layer.bias.data.zero_()
        energies = layer(x).movedim(-rank - 1, 0).reshape(outputs, -1).square().mean(1).tolist()
        assert found.moments is not None and len(found.moments) == groups
        for output, (weight, energy) in enumerate(zip(layer.weight.detach(), energies, strict=True)):
            (moments,) = found.moments[output * groups // outputs]
            w = weight.reshape(-1).double().numpy()  # in the order of the weight's axes 1, 2, …
            assert w @ moments @ w == pytest.approx(energy, abs=1e-5 * (w @ w) * np.trace(moments))
        assert found.n_observed == prod(layer(x).shape) // outputs

    @given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=9), st.booleans())
    @examples(20)
    def test_rows_of_a_table_are_counted(self, rows: list[list[int]], is_bag: bool) -> None:
        table = nn.EmbeddingBag(7, 3) if is_bag else nn.Embedding(7, 3)
        looked_up = torch.tensor(rows)

        found = statistics(table, looked_up, looked_up)["weight"]

        assert found.row_counts is not None and found.moments is None
        assert found.row_counts.tolist() == [2 * sum(pair.count(row) for pair in rows) for row in range(7)]

    def test_a_table_in_which_nothing_was_looked_up_has_no_counts(self) -> None:
        model = Calling(lambda model, x: x @ model.table.weight, table=nn.Embedding(7, 3))
        assert statistics(model, torch.ones(2, 7))["table.weight"].row_counts is None

    def test_a_table_with_sparse_gradients_is_calibrated(self) -> None:
        looked_up = torch.tensor([[1, 2, 2]])
        found = statistics(nn.Embedding(9, 4, sparse=True), looked_up)["weight"]
        torch.manual_seed(0)
        dense = statistics(nn.Embedding(9, 4), looked_up)["weight"]
        assert found.importance == pytest.approx(dense.importance) != 0

    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
    @given(st.data())
    @examples(40)
    def test_moments_of_a_recurrent_layer_are_those_of_what_its_weights_meet(self, data: st.DataObject) -> None:
        torch.manual_seed(0)
        kind = data.draw(st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]))
        n_layers = data.draw(st.integers(1, 3))
        options: dict[str, Any] = {"bidirectional": data.draw(st.booleans()), "bias": data.draw(st.booleans())}
        if kind is nn.LSTM:
            options["proj_size"] = data.draw(st.sampled_from([0, 3]))
        if kind is nn.RNN:
            options["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu"]))
        form = data.draw(st.sampled_from(["unbatched", "batched", "batch first", "packed"]))
        lengths = {"unbatched": [4], "packed": [2, 5, 1]}.get(form, [4, 4, 4])
        sequences = [torch.randn(length, 4) for length in lengths]
        dropout = 0.5 if n_layers > 1 else 0.0  # does nothing in evaluation mode
        layer = kind(4, 5, n_layers, batch_first=form == "batch first", dropout=dropout, **options)
        states = None
        if data.draw(st.booleans()):
            n = n_layers * (1 + layer.bidirectional)
            h = torch.randn(n, len(lengths), options.get("proj_size") or 5)
            states = (h, torch.randn(n, len(lengths), 5)) if kind is nn.LSTM else (h,)
        batch = {
            "unbatched": lambda: sequences[0],
            "packed": lambda: pack_sequence(sequences, enforce_sorted=False),
        }.get(form, lambda: torch.stack(sequences, dim=int(form != "batch first")))()
        given_states = None
        if states is not None:
            given_states = tuple(state[:, 0] if form == "unbatched" else state for state in states)
            given_states = given_states if kind is nn.LSTM else given_states[0]

        found = statistics(layer, (batch, given_states))

        met: dict[str, list[Tensor]] = {}
        for i, sequence in enumerate(sequences):
            of_one = None if states is None else tuple(state[:, i] for state in states)
            for name, vectors in recurrent_inputs(layer, options, sequence, of_one).items():
                met.setdefault(name, []).append(vectors)
        assert {name for name, statistic in found.items() if statistic.moments is not None} == met.keys()
        for name, vectors in met.items():
            np.testing.assert_allclose(only_moments(found[name]), products(torch.cat(vectors)), rtol=1e-3, atol=1e-5)
            assert found[name].n_observed == sum(lengths)

    def test_a_recurrent_layer_that_is_run_step_by_step_meets_its_own_states(self) -> None:
        def step_by_step(model: Any, x: Tensor) -> Tensor:
            state, outputs = None, []
            for step in x.split(1):
                output, state = model.layer(step, hx=state)
                outputs.append(output)
            return torch.cat(outputs)

        layer, x = nn.LSTM(6, 6), torch.randn(5, 2, 6)

        found = statistics(Calling(step_by_step, layer=layer), x)

        at_once = statistics(layer, x)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            np.testing.assert_allclose(only_moments(found[f"layer.{name}"]), only_moments(at_once[name]), atol=1e-6)

    def test_a_subclass_of_a_recurrent_layer_is_observed(self) -> None:
        class Own(nn.GRU):
            pass

        assert statistics(Own(3, 4), torch.randn(5, 2, 3))["weight_hh_l0"].moments is not None

    @pytest.mark.parametrize("shape", [(5, 8), (5, 2, 8)])
    def test_moments_of_attention_are_those_of_the_input_of_its_projections(self, shape: tuple[int, ...]) -> None:
        layer, x = nn.MultiheadAttention(8, 2), torch.randn(shape)

        found = statistics(Calling(lambda model, x: model.layer(x, key=x, value=x), layer=layer), x)

        np.testing.assert_allclose(only_moments(found["layer.in_proj_weight"]), products(x.reshape(-1, 8)), atol=1e-5)

    def test_attention_to_something_else_has_no_moments(self) -> None:
        found = statistics(nn.MultiheadAttention(8, 2), (torch.randn(5, 8), x := torch.randn(4, 8), x))
        assert found["in_proj_weight"].moments is None and found["in_proj_weight"].importance > 0

    @pytest.mark.parametrize(("make", "shape", "expected"), [
        (lambda: nn.Linear(50, 3), (6, 50), [22, 22, 6]),
        (lambda: nn.Conv1d(10, 3, 5), (6, 10, 5), [20, 20, 10]),  # whole channels
    ], ids=["linear", "convolution"])  # fmt: skip
    def test_moments_of_many_inputs_are_blocks_within_a_bound(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...], expected: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        layer, x = make(), torch.randn(shape)
        whole = only_moments(statistics(layer, x)["weight"])
        monkeypatch.setattr(moments, "_MOMENTS_NBYTES", 4 * 50 * 22)
        monkeypatch.setattr(moments, "_FEWEST_BLOCK_INPUTS", 1)

        (blocks,) = statistics(layer, x)["weight"].moments or ()

        sizes = [len(block) for block in blocks]
        assert sizes == expected
        assert sum(block.nbytes for block in blocks) <= 4 * 50 * 22
        for end, size, block in zip(np.cumsum(sizes), sizes, blocks, strict=True):
            np.testing.assert_allclose(block, whole[end - size : end, end - size : end], rtol=1e-5)

    def test_of_many_vectors_some_are_taken_evenly(self, without_credit: None) -> None:
        x = torch.randn(100_000, 64)
        x[50_000:] *= 3

        found = statistics(nn.Linear(64, 64), x)["weight"]

        assert found.n_observed == 2 * 64
        assert np.trace(only_moments(found)) == pytest.approx(5 * 64, rel=0.15)

    def test_vectors_that_are_taken_have_no_period(self, without_credit: None) -> None:
        x = torch.zeros(64, 64, 32, 32)
        x[..., 0] = 1  # each 32nd vector

        found = statistics(nn.Conv2d(64, 64, 1), *[x] * 16)["weight"]

        assert found.n_observed < 3000
        assert only_moments(found)[0, 0] == pytest.approx(1 / 32, rel=0.5)

    def test_each_vector_counts_alike_whatever_share_of_its_batch_was_taken(self, without_credit: None) -> None:
        few, many = torch.ones(1000, 256), torch.full((9000, 256), 2.0)

        found = statistics(nn.Linear(256, 64), few, many)["weight"]

        assert found.n_observed < 5000
        assert only_moments(found)[0, 0] == pytest.approx(0.1 + 0.9 * 4, rel=1e-3)

    @pytest.mark.parametrize("make", [
        lambda: nn.Sequential(*[nn.Linear(400, 400) for _ in range(4)]),
        lambda: nn.Sequential(nn.Linear(400, 1600), nn.Linear(1600, 400)),
    ])  # fmt: skip
    def test_moments_take_no_more_products_than_the_model(
        self, make: Callable[[], nn.Module], without_credit: None
    ) -> None:
        found = statistics(make(), *[torch.randn(1000, 400)] * 4)

        products = sum(len(only_moments(each)) ** 2 * each.n_observed for each in found.values() if each.n_observed)
        of_model = sum(4000 * p.numel() for p in make().parameters())
        assert 0.1 * of_model < products <= of_model

    def test_of_a_small_model_all_vectors_are_taken(self) -> None:
        assert statistics(nn.Linear(8, 8), torch.randn(100_000, 8))["weight"].n_observed == 100_000

    def test_tied_weights_have_statistics_under_every_name(self) -> None:
        tied = Calling(lambda model, x: model.b(model.a(x)), a=nn.Linear(5, 5), b=nn.Linear(5, 5))
        tied.b.weight = tied.a.weight

        x = torch.randn(9, 5)

        found = statistics(tied, x)

        assert found["a.weight"] is found["b.weight"] and found["a.weight"].importance > 0
        met = torch.cat([x, tied.a(x)])  # by the weight, in both layers
        np.testing.assert_allclose(only_moments(found["a.weight"]), products(met), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_a_table_that_is_a_layer_s_weight_too_is_treated_as_that(self, order: str) -> None:
        layers: dict[str, nn.Module] = {"a": nn.Embedding(7, 5), "b": nn.Linear(5, 7)}
        layers["b"].weight = layers["a"].weight
        model = Calling(lambda model, x: model.b(model.a(x)), **{name: layers[name] for name in order})

        found = statistics(model, torch.tensor([[1, 2, 3]]))

        assert found["a.weight"] is found["b.weight"]
        assert only_moments(found["a.weight"]).shape == (5, 5) and found["a.weight"].row_counts is None

    def test_a_layer_that_gets_no_vectors_has_no_moments(self) -> None:
        def call(model: Any, x: Tensor) -> Tensor:
            return model.used(x) + model.idle(x[:0]).sum() + model.conv(x[:0, :, None, None]).sum()

        layers = {"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 1)}

        found = statistics(Calling(call, **layers), torch.randn(3, 4))

        assert [found[f"{name}.weight"].moments is None for name in layers] == [False, True, True]

    @pytest.mark.parametrize(("make", "shape"), [
        (lambda: nn.Linear(6, 6), (9, 6)),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
        (lambda: nn.GRU(6, 5, bidirectional=True), (4, 3, 6)),
        (lambda: Calling(lambda model, x: model.layer(x, x, x), layer=nn.MultiheadAttention(6, 2)), (4, 3, 6)),
    ], ids=["linear", "convolution", "recurrent", "attention"])  # fmt: skip
    def test_moments_of_bfloat16_are_those_of_float32(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...]
    ) -> None:
        layer, x = make(), torch.randn(shape)

        found = statistics(copy.deepcopy(layer).bfloat16(), x.bfloat16())

        for name, expected in statistics(layer, x).items():
            assert found[name].importance == pytest.approx(expected.importance, rel=0.9)
            if expected.moments is not None:
                np.testing.assert_allclose(only_moments(found[name]), only_moments(expected), rtol=0.1, atol=0.05)


def recurrent_inputs(
    layer: Any, options: dict[str, Any], sequence: Tensor, states: tuple[Tensor, ...] | None
) -> dict[str, Tensor]:
    """What each weight of a recurrent layer meets in a sequence: the outputs of as many of its layers as it takes."""
    met = {}
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    below = sequence
    for k in range(layer.num_layers):
        part = type(layer)(layer.input_size, layer.hidden_size, k + 1, **options)
        part.load_state_dict({name: layer.state_dict()[name] for name in part.state_dict()})
        n = (k + 1) * len(directions)
        start = None if states is None else tuple(state[:n] for state in states)
        with torch.no_grad():
            above = part(sequence, start if start is None or len(start) > 1 else start[0])[0]
        for i, (direction, own) in enumerate(zip(directions, above.chunk(len(directions), dim=1), strict=True)):
            first = torch.zeros(own.shape[1]) if states is None else states[0][k * len(directions) + i]
            before = torch.cat([own[1:], first[None]] if direction else [first[None], own[:-1]])
            met[f"weight_ih_l{k}{direction}"], met[f"weight_hh_l{k}{direction}"] = below, before
        below = above
    return met


# Calibrating


class TestCalibrate:
    @pytest.mark.parametrize("fails", [False, True])
    def test_the_model_is_as_before(self, fails: bool) -> None:
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
        model[0].weight.requires_grad_(False)
        model[2].eval()
        model(torch.randn(8, 4)).sum().backward()
        model.register_forward_pre_hook(lambda module, args: None)
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]

        def rest() -> list[Any]:
            return [[module.training, len(module._forward_hooks), len(module._forward_pre_hooks)]
                    for module in model.modules()] + [p.requires_grad for p in model.parameters()]  # fmt: skip

        before, random = rest(), torch.get_rng_state()

        with torch.no_grad():
            if fails:
                with pytest.raises(RuntimeError, match="shapes"):
                    vt.calibrate(model, [torch.ones(8, 4), torch.ones(8, 5)])
            else:
                vt.calibrate(model, [torch.ones(8, 4)])
            assert not torch.is_grad_enabled()

        assert rest() == before and torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)

    def test_recurrent_layers_draw_no_random_numbers(self) -> None:
        layer, before = nn.LSTM(3, 4), torch.get_rng_state()
        vt.calibrate(layer, [torch.ones(2, 2, 3)])
        assert torch.equal(torch.get_rng_state(), before)

    def test_it_runs_in_evaluation_mode(self) -> None:
        model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2))
        x = torch.randn(10, 3)
        np.testing.assert_allclose(only_moments(statistics(model, x)["1.weight"]), products(x), rtol=1e-4, atol=1e-5)

    def test_frozen_parameters_have_importances_too(self) -> None:
        model = nn.Linear(3, 2).requires_grad_(False)
        assert importances(model, torch.ones(4, 3))["weight"] > 0

    def test_batches_may_be_tensors_arguments_or_keywords(self) -> None:
        model, x = Calling(lambda model, x, y=1: y * model.layer(x), layer=nn.Linear(3, 2)), torch.randn(5, 3)
        found = [importances(model, batch) for batch in (x, (x, 1), [x, 1], {"y": 1, "x": x})]
        assert found[0] == found[1] == found[2] == found[3]

    def test_batches_may_be_a_generator(self) -> None:
        def batches() -> Iterator[Tensor]:
            for i in range(3):
                yield torch.full((2, 3), float(i))

        found = vt.calibrate(nn.Linear(3, 2), batches())

        assert found.tensors["weight"].n_observed == 6
        assert [float(batch[0, 0]) for batch in found.inputs] == [0, 1, 2]

    def test_batches_may_come_from_a_loader_of_no_known_length(self) -> None:
        class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[Tensor]:
                yield from torch.ones(8, 3)

        steps: list[tuple[str, int, int]] = []
        loader = torch.utils.data.DataLoader(Stream(), batch_size=4)

        vt.calibrate(nn.Linear(3, 2), loader, progress=lambda *step: steps.append(step))

        assert steps == [("batch", 1, 0), ("batch", 2, 0)]

    def test_progress_says_how_many_batches_there_are(self) -> None:
        steps: list[tuple[str, int, int]] = []
        vt.calibrate(nn.Linear(3, 2), [torch.ones(1, 3)] * 2, progress=lambda *step: steps.append(step))
        assert steps == [("batch", 1, 2), ("batch", 2, 2)]

    def test_only_so_many_bytes_of_inputs_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.import_module("vqformat.torch.calibration"), "_KEPT_NBYTES", 100)
        batches = [torch.ones(2, 5), torch.ones(9, 5), (torch.ones(2, 5),), torch.ones(2, 5)]
        found = vt.calibrate(nn.Linear(5, 1), batches)  # an output has 4 bytes for each input's 20
        kept: list[Any] = found.inputs
        assert len(kept) == 2 and torch.equal(kept[0], batches[0]) and torch.equal(kept[1][0], torch.ones(2, 5))

    def test_kept_inputs_do_not_change_with_a_loaders_buffer(self) -> None:
        buffer = torch.empty(2, 5)
        kept: list[Any] = vt.calibrate(nn.Linear(5, 1), (buffer.fill_(i) for i in range(3))).inputs
        assert [float(x[0, 0]) for x in kept] == [0, 1, 2]

    @pytest.mark.parametrize("batches", [torch.ones(2, 5), {"input": torch.ones(2, 5)}])
    def test_one_batch_is_no_iterable_of_batches(self, batches: Any) -> None:
        with pytest.raises(ValueError, match="batches is one "):
            vt.calibrate(nn.Linear(5, 1), batches)

    def test_a_compiled_model_is_watched_too(self) -> None:
        model = torch.compile(nn.Sequential(nn.Linear(5, 3)), backend="eager")
        model(torch.ones(2, 5))
        found = vt.calibrate(model, [torch.ones(2, 5)])
        assert [statistics.n_observed for name, statistics in found.tensors.items() if "weight" in name] == [2]

    def test_a_model_that_keeps_an_activation_can_be_saved(self) -> None:
        class Keeps(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                self.last = super().forward(x)
                return self.last

        model = Keeps(20, 20)
        calibration = vt.calibrate(model, [torch.randn(4, 20) for _ in range(6)])
        assert vt.load(saved(model, calibration=calibration)).keys() == {"weight", "bias"}

    def test_moments_are_exact_under_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = vt.calibrate(nn.Linear(5, 1), [torch.full((1, 5), 1.0)] * 300)
        assert only_moments(found.tensors["weight"])[0, 0] == pytest.approx(1.0)

    @pytest.mark.parametrize("wrap", [
        lambda y: (y,), lambda y: {"logits": y, "n": 3}, lambda y: Output(y), lambda y: [None, {"a": (y, "text")}],
    ], ids=["tuple", "dict", "dataclass", "nested"])  # fmt: skip
    def test_outputs_may_be_in_anything(self, wrap: Callable[[Tensor], Any]) -> None:
        layer, x = nn.Linear(3, 2), torch.randn(5, 3)
        model = Calling(lambda model, x: wrap(model.layer(x)), layer=layer)
        assert importances(model, x)["layer.weight"] == importances(layer, x)["weight"]

    def test_no_batches_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no batches"):
            vt.calibrate(nn.Linear(3, 2), [])

    @pytest.mark.parametrize("output", [lambda y: y.argmax(1), lambda y: y.detach(), lambda y: None])
    def test_a_model_without_floating_point_outputs_is_refused(self, output: Callable[[Tensor], Any]) -> None:
        with pytest.raises(ValueError, match="no floating-point tensor that depends on its parameters"):
            vt.calibrate(Calling(lambda model, x: output(model.layer(x)), layer=nn.Linear(3, 2)), [torch.ones(1, 3)])

    @pytest.mark.parametrize("loss", ["logit", "", None])
    def test_an_unknown_loss_is_refused(self, loss: Any) -> None:
        model = nn.Linear(3, 2)
        message = f"loss is {loss!r}; 'values', 'logits' or a function"
        with pytest.raises(ValueError, match=message):
            vt.calibrate(model, [torch.ones(1, 3)], loss=loss)


@dataclass
class Output:
    logits: Tensor


class TestImportance:
    def test_what_moves_the_outputs_more_is_more_important(self) -> None:
        layers = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3), "idle": nn.Linear(4, 3)}
        found = importances(Calling(lambda model, x: 10 * model.a(x) + model.b(x), **layers), torch.randn(5, 4))
        for name in ("weight", "bias"):
            assert found[f"a.{name}"] == pytest.approx(100 * found[f"b.{name}"]) != 0
            assert found[f"idle.{name}"] == 0

    @pytest.mark.parametrize("n", [1, 20])
    def test_it_is_the_mean_squared_derivative_for_one_input(self, n: int) -> None:
        found = importances(nn.Linear(3, 20), *[torch.full((n, 3), 2.0)] * 100)
        assert found["bias"] == pytest.approx(1, rel=0.2)
        assert found["weight"] == pytest.approx(4, rel=0.2)

    @pytest.mark.parametrize("n", [1, 8])
    def test_of_logits_it_is_fisher_s_information(self, n: int) -> None:
        layer = nn.Linear(2, 3)
        layer.weight.data.zero_()
        layer.bias.data = torch.tensor([0.7, 0.2, 0.1]).log()

        found = importances(layer, *[torch.ones(n, 2)] * 400, loss="logits")

        assert found["bias"] == pytest.approx((0.7 * 0.3 + 0.2 * 0.8 + 0.1 * 0.9) / 3, rel=0.25)

    def test_classes_are_on_the_last_axis(self) -> None:
        layer = nn.Linear(2, 3)
        x = torch.randn(4, 2)
        rows = importances(layer, *[x] * 50, loss="logits")
        of_one = importances(layer, *[x.reshape(1, 2, 2, 2)] * 50, loss="logits")
        assert of_one["weight"] == pytest.approx(4 * rows["weight"])  # the same sums, for one input in place of four

    def test_the_loss_may_be_a_function_of_the_output(self) -> None:
        found = importances(nn.Linear(3, 2), torch.ones(1, 3), loss=lambda output: 3 * output[:, 0].sum())
        assert found["bias"] == 4.5

    @given(st.floats(1e-3, 1e3))
    @examples(10)
    def test_each_of_several_outputs_counts_alike(self, scale: float) -> None:
        torch.manual_seed(0)
        layers, x = {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}, torch.randn(50, 3)

        found = importances(Calling(lambda model, x: (model.a(x), scale * model.b(x)), **layers), x)

        plain = importances(Calling(lambda model, x: (model.a(x), model.b(x)), **layers), x)
        assert found == pytest.approx(plain, rel=1e-3)

    def test_outputs_without_spread_do_not_drown_the_others(self) -> None:
        def call(model: Any, x: Tensor) -> tuple[Tensor, ...]:
            y = model.layer(x)
            return y, y.mean(), model.zero(x), y[:0]

        zero = nn.Linear(3, 1, bias=False)
        zero.weight.data.zero_()

        found = importances(Calling(call, layer=nn.Linear(3, 2), zero=zero), torch.randn(20, 3))

        assert all(0 < importance < 1e3 for importance in found.values())

    def test_gradients_that_overflow_tell_nothing(self) -> None:
        layer = nn.Linear(3, 2).half()
        assert importances(layer, torch.full((400, 3), 6e4).half())["weight"] == 0

    def test_an_eighth_of_the_inputs_is_differentiated(self) -> None:
        seen: list[int] = []

        def call(model: Any, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(len(x))
            return model.layer(x)

        statistics(Calling(call, layer=nn.Linear(3, 2)), *[torch.randn(40, 3)] * 16)

        assert 16 * 40 / 8 <= sum(seen) <= 16 * 40 / 8 + 8 and max(seen) < 40

    def test_a_batch_whose_inputs_are_mixed_is_taken_whole(self) -> None:
        seen: list[int] = []

        def call(model: Any, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(len(x))
            return model.layer(x - x.mean(0))

        statistics(Calling(call, layer=nn.Linear(3, 2)), *[torch.randn(40, 3)] * 16)

        assert seen == [40, 40, 40]

    def test_a_model_that_takes_whole_batches_only_is_calibrated(self) -> None:
        model = Calling(lambda model, x: model.layer(x.reshape(4, 3)), layer=nn.Linear(3, 2))

        found = importances(model, torch.ones(4, 3))

        assert found["layer.bias"] > 0

    def test_few_activations_are_kept_for_derivatives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.import_module("vqformat.torch.sensitivity"), "_GRAPH_NBYTES", 5 * 2 * 4 * 3)
        seen: list[int] = []

        def call(model: Any, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(len(x))
            return model.layer(x)

        statistics(Calling(call, layer=nn.Linear(3, 2)), *[torch.randn(80, 3)] * 4)

        assert seen == [5, 5, 5, 5]

    def test_a_seed_decides(self) -> None:
        layer, x = nn.Linear(3, 2), torch.randn(5, 3)
        first, again, other = (importances(layer, x, seed=seed) for seed in (1, 1, 2))
        assert first == again and first["weight"] != other["weight"]


# Files of statistics


def blocks(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)


@st.composite
def all_statistics(draw: st.DrawFn) -> TensorStatistics:
    groups = draw(st.none() | st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=12))
    moments = None if groups is None else tuple(tuple(blocks(n, i) for i, n in enumerate(group)) for group in groups)
    counts = draw(st.none() | st.lists(st.integers(0, 1 << 60), max_size=5))
    return TensorStatistics(
        draw(st.floats(0, 1e30)), moments, draw(st.integers(0, 1 << 60)),
        None if counts is None else np.array(counts, np.int64),
    )  # fmt: skip


def plain(found: TensorStatistics) -> tuple[Any, ...]:
    """The same, to be compared."""
    moments = None if found.moments is None else [[block.tolist() for block in group] for group in found.moments]
    return found.importance, moments, found.n_observed, None if found.row_counts is None else found.row_counts.tolist()


class TestFiles:
    @given(st.dictionaries(names(), all_statistics(), max_size=12))
    @examples(25)
    def test_statistics_come_back(self, tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
        path = tmp_path_factory.mktemp("calibration") / "a.calibration"  # no suffix is added

        Calibration(tensors, ["inputs"], "logits").save(path)
        found = Calibration.load(path)

        assert list(found.tensors) == list(tensors) and found.inputs == [] and found.loss == "logits"
        assert [plain(value) for value in found.tensors.values()] == [plain(value) for value in tensors.values()]

    @given(st.data())
    @examples(150)
    def test_a_damaged_file_is_refused_or_read_as_it_was(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.npz"
        counts = np.arange(4)
        tensors = {"a": TensorStatistics(1.5, ((blocks(3, 0),),), 4), "b": TensorStatistics(0.5, row_counts=counts)}
        Calibration(tensors).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2, 0]))])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy has some for odd files
            try:
                found = Calibration.load(path).tensors
            except EncodeError:
                return

        values = {name: plain(value) for name, value in tensors.items()}
        assert {name: plain(value) for name, value in found.items()}.items() <= values.items()

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        def arrays(path: Path, **found: Any) -> None:
            with open(path, "wb") as stream:
                np.savez(stream, **found)

        fine = {"format": np.array(1), "0/name": np.array("w"), "0/importance": np.array(1.0)}
        fine["0/n_observed"] = np.array(1)
        path = tmp_path / "other"
        for content in (b"", b"text", b"PK\3\4", vqformat.save({"w": np.ones(3, np.float32)})):
            path.write_bytes(content)
            with pytest.raises(EncodeError, match="other' is no saved calibration"):
                Calibration.load(path)
        with open(path, "wb") as stream:
            np.save(stream, np.ones(3))
        with pytest.raises(EncodeError, match="no saved calibration"):
            Calibration.load(path)
        for change in ({"0/name": None}, {"0/importance": np.array("x")}, {"0/moments/x": np.ones((2, 2))}):
            arrays(path, **{key: value for key, value in {**fine, **change}.items() if value is not None})
            with pytest.raises(EncodeError, match="no saved calibration"):
                Calibration.load(path)
        arrays(path, **{**fine, "format": np.array(2)})
        with pytest.raises(EncodeError, match="another version of this package"):
            Calibration.load(path)
        arrays(path, **fine)
        found = Calibration.load(path)
        assert found.tensors.keys() == {"w"} and found.loss == "values"
        assert (found.tensors["w"].importance, found.tensors["w"].n_observed) == (1.0, 1)

    def test_no_pickle_is_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        objects = np.empty(1, object)
        objects[0] = Tripwire(tmp_path / "harm")
        contents = io.BytesIO()
        np.savez(contents, format=np.array(1), **{"0/name": objects, "0/importance": objects})
        for content in (contents.getvalue(), pickle.dumps(objects[0])):
            path.write_bytes(content)
            with pytest.raises(EncodeError, match="no saved calibration"):
                Calibration.load(path)
        assert not (tmp_path / "harm").exists()

    def test_a_file_is_replaced_only_if_that_is_allowed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        Calibration({}).save(path, overwrite=False)
        with pytest.raises(FileExistsError):
            Calibration({"w": TensorStatistics(1.0)}).save(path, overwrite=False)
        assert Calibration.load(path).tensors == {}
        Calibration({"w": TensorStatistics(1.0)}).save(path)
        assert list(Calibration.load(path).tensors) == ["w"]

    def test_a_missing_file_stays_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Calibration.load(tmp_path / "a.npz")


class Tripwire:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)
