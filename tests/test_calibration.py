"""Calibration: what is learnt of a model by running it, and what the encoder makes of it."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import names

import vqformat
from vqformat.encode import small, tiles
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.encode.coded import Pool
from vqformat.encode.feedback import Factors
from vqformat.errors import EncodeError
from vqformat.limits import MAX_STEPS_PER_SEQUENCE
from vqformat.writer import Writer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

from vqformat import torch as vt  # noqa: E402
from vqformat.torch import correct, observe  # noqa: E402


class Calling(nn.Module):
    """Layers, and a function that says what is done with them."""

    def __init__(self, call: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self._call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self, *args, **kwargs)


def statistics(model: nn.Module, *batches: Any, **options: Any) -> Mapping[str, TensorStatistics]:
    return vt.calibrate(model, batches, **options).tensors


def importances(model: nn.Module, *batches: Any, **options: Any) -> dict[str, float]:
    return {name: found.importance for name, found in statistics(model, *batches, **options).items()}


def only_moments(found: TensorStatistics) -> np.ndarray:
    """The moments where there is one group of one block."""
    assert found.moments is not None
    ((block,),) = found.moments
    return block


def products(vectors: Any) -> np.ndarray:
    """Mean of the products of vectors ``(n, inputs)``."""
    x = vectors.detach().double().numpy()
    return x.T @ x / len(x)


def correlated(*shape: int, seed: int = 0, rank: int = 8) -> Tensor:
    """Vectors that are nearly in a space of few dimensions, the same for any seed."""
    mixed = torch.randn(rank, shape[-1], generator=torch.Generator().manual_seed(77))
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(*shape[:-1], rank, generator=random)
    return few @ mixed + 0.1 * torch.randn(*shape, generator=random)


def saved(model: nn.Module, **options: Any) -> bytes:
    stream = io.BytesIO()
    vt.save_model(model, stream, **options)
    return stream.getvalue()


def filled(model: nn.Module, data: bytes) -> nn.Module:
    """A copy of the model, from a file."""
    other = copy.deepcopy(model)
    vt.load_model(other, io.BytesIO(data))
    return other.eval()


def output_error(model: nn.Module, data: bytes, *inputs: Tensor) -> float:
    """Of the model's first output, when it is loaded from a file; relative to the output's energy."""
    with torch.no_grad():
        aim, found = (run(*inputs) for run in (copy.deepcopy(model).eval(), filled(model, data)))
    if isinstance(aim, tuple):
        aim, found = aim[0], found[0]
    return float((found - aim).square().sum() / aim.square().sum())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# Observers


class TestObservers:
    @given(st.sampled_from([(), (5,), (3, 4), (2, 2, 2)]), st.integers(1, 9), st.integers(1, 3))
    @settings(max_examples=20, deadline=None)
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
    @settings(max_examples=80, deadline=None)
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
    @settings(max_examples=20, deadline=None)
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
    @settings(max_examples=40, deadline=None)
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
        monkeypatch.setattr(observe, "_MOMENTS_NBYTES", 4 * 50 * 22)
        monkeypatch.setattr(observe, "_FEWEST_BLOCK_INPUTS", 1)

        (blocks,) = statistics(layer, x)["weight"].moments or ()

        sizes = [len(block) for block in blocks]
        assert sizes == expected
        assert sum(block.nbytes for block in blocks) <= 4 * 50 * 22
        for end, size, block in zip(np.cumsum(sizes), sizes, blocks, strict=True):
            np.testing.assert_allclose(block, whole[end - size : end, end - size : end], rtol=1e-5)

    def test_of_very_many_vectors_some_are_taken_evenly(self) -> None:
        x = torch.ones(100_000, 1)
        x[50_000:] = 3

        found = statistics(nn.Linear(1, 1), x)["weight"]

        assert found.n_observed == 4096 and only_moments(found)[0, 0] == pytest.approx(5, abs=0.01)

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
        monkeypatch.setattr(importlib.import_module("vqformat.torch.calibrate"), "_KEPT_NBYTES", 100)
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
    @settings(max_examples=10, deadline=None)
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
    @settings(max_examples=25, deadline=None)
    def test_statistics_come_back(self, tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
        path = tmp_path_factory.mktemp("calibration") / "a.calibration"  # no suffix is added

        Calibration(tensors, ["inputs"], "logits").save(path)
        found = Calibration.load(path)

        assert list(found.tensors) == list(tensors) and found.inputs == [] and found.loss == "logits"
        assert [plain(value) for value in found.tensors.values()] == [plain(value) for value in tensors.values()]

    @given(st.data())
    @settings(max_examples=150, deadline=None)
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


# Feedback


def written(tensor: Any) -> bytes:
    stream = io.BytesIO()
    pool = Pool.of([tensor])
    with Writer(stream) as writer:
        writer.add_layer("", [pool.encode(tensor, writer.add_freq(pool.record, pool.section))])
    return stream.getvalue()


def of_inputs(kind: str, n: int, size: int, seed: int) -> np.ndarray:
    """Input vectors ``(n, size)`` of a layer."""
    x = correlated(n, size, seed=seed, rank=3).numpy()
    match kind:
        case "zero":
            x[:] = 0
        case "constant":
            x[:] = 2.5
        case "dead":
            x[:, ::2] = 0
        case "tiny":
            x *= np.float32(1e-25)
        case "wild":
            x *= np.float32(10.0) ** np.linspace(-6, 6, size, dtype=np.float32)
    return x


KINDS = ["correlated", "zero", "constant", "dead", "tiny", "wild"]


class TestFeedback:
    @pytest.mark.parametrize(("make", "inputs", "gain"), [
        (lambda: nn.Linear(96, 128), lambda seed: correlated(300, 96, seed=seed), 6),
        (lambda: nn.Conv2d(32, 64, 3, groups=2), lambda seed: correlated(24, 8, 8, 32, seed=seed).movedim(3, 1), 2),
        (lambda: nn.LSTM(64, 32, bidirectional=True), lambda seed: correlated(20, 12, 64, seed=seed), 4),
    ], ids=["linear", "grouped convolution", "LSTM"])  # fmt: skip
    def test_errors_of_outputs_are_some_times_smaller_at_the_same_bytes(
        self, make: Callable[[], nn.Module], inputs: Callable[[int], Tensor], gain: float
    ) -> None:
        layer = make()
        calibration = Calibration(vt.calibrate(layer, [(inputs(1),)]).tensors)  # without inputs: feedback alone

        by_feedback = saved(layer, calibration=calibration, ratio=10)
        without = saved(layer, preset="small", ratio=10)

        assert len(by_feedback) == pytest.approx(len(without), rel=0.01)
        x = inputs(2)
        assert output_error(layer, without, x) > gain * output_error(layer, by_feedback, x)

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_codes_stay_on_the_trellis(self, data: st.DataObject) -> None:
        n_inputs, n_groups = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 4))
        n_outputs = n_groups * data.draw(st.integers(1, 100 // n_groups))
        seed, kind = data.draw(st.integers(0, 99)), data.draw(st.sampled_from(KINDS))
        cut = data.draw(st.none() | st.integers(1, n_inputs))  # into blocks of moments
        pairs = [(0, n_inputs)] if cut in (None, n_inputs) else [(0, cut), (cut, n_inputs)]
        moments = []
        for group in range(n_groups):
            x = of_inputs(kind, 30, n_inputs, seed + group)
            moments.append(tuple(x[:, a:b].T @ x[:, a:b] / 30 for a, b in pairs))
        factors = Factors.of(TensorStatistics(1.0, tuple(moments), 30))
        weights = np.random.default_rng(seed).standard_normal((n_outputs, n_inputs)).astype(np.float32)
        step = data.draw(st.sampled_from([0.05, 0.8, 4.0]))

        with pytest.MonkeyPatch.context() as patch:
            if data.draw(st.booleans()):  # many blocks
                patch.setattr(small, "BLOCK_ELEMENTS", 512)
                patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 768)
            coded = small.quantize("w", "f32", weights.shape, weights, step, factors=factors).coded

        loaded = vqformat.load(written(coded))["w"]
        assert loaded.T.tobytes() == Pool.of([coded]).decoded(coded).tobytes()
        assert np.square(loaded - weights).mean() <= np.square(weights).mean() + step**2

    def test_each_group_of_a_convolution_has_its_own_feedback(self) -> None:
        def inputs(seed: int) -> Tensor:
            scales = torch.tensor([1.0, 8.0]).repeat_interleave(24)
            x = torch.cat([correlated(300, 24, seed=2 * seed + i) for i in range(2)], dim=1)
            return (x * scales)[:, :, None]

        layer = nn.Conv1d(48, 64, 1, groups=2, bias=False)
        calibration = Calibration(vt.calibrate(layer, [inputs(1)]).tensors)
        by_feedback = saved(layer, calibration=calibration, ratio=8)
        without = saved(layer, preset="small", ratio=8)

        x = inputs(2)
        aim, found, other = (run(x).detach() for run in (layer, filled(layer, by_feedback), filled(layer, without)))
        for group in range(2):
            of_group = slice(32 * group, 32 * group + 32)
            error, error_without = ((y - aim)[:, of_group].square().mean() for y in (found, other))
            assert error_without > 2 * error

    @pytest.mark.parametrize("kind", KINDS)
    def test_inputs_of_any_kind_do(self, kind: str) -> None:
        layer = nn.Linear(40, 40)
        batches = [torch.from_numpy(of_inputs(kind, 50, 40, seed)) for seed in (1, 2)]

        data = saved(layer, calibration=vt.calibrate(layer, batches), step=0.1)

        assert output_error(layer, data, torch.from_numpy(of_inputs(kind, 50, 40, 3))) < 0.03

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
    def test_inputs_without_finite_moments_are_as_if_unknown(self, value: float) -> None:
        layer = nn.Linear(32, 32)
        found = vt.calibrate(layer, [torch.full((4, 32), value)])
        assert Factors.of(found.tensors["weight"]) is None
        assert saved(layer, calibration=Calibration(found.tensors)) == saved(layer, preset="small")

    @pytest.mark.parametrize(("n_inputs", "n_outputs", "step", "is_calibrated"), [
        (600, 4100, 0.2, True), (600, 4100, 0.2, False),
        (1400, 300, 2.0, True),  # few bits: tiles so long that there must be many of them (TRL-002)
    ])  # fmt: skip
    def test_a_matrix_cut_into_blocks_is_read_back(
        self, n_inputs: int, n_outputs: int, step: float, is_calibrated: bool
    ) -> None:
        layer, x = nn.Linear(n_inputs, n_outputs), torch.randn(32, n_inputs)
        calibration = Calibration(vt.calibrate(layer, [x]).tensors) if is_calibrated else None

        data = saved(layer, preset="small", calibration=calibration, step=step)

        assert output_error(layer, data, x) < 0.3 * step**2
        with vqformat.safe_open(io.BytesIO(data)) as file:
            whole = file["weight"]
            assert np.array_equal(file.get_slice("weight")[200:203, 7:9], whole[200:203, 7:9])


# Budgets


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(200, 400), nn.ReLU(), nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 10))


def calibrated(model: nn.Module, n_batches: int = 2) -> Calibration:
    return vt.calibrate(model, [correlated(40, 200, seed=seed) for seed in range(n_batches)])


class TestBudgets:
    @pytest.mark.parametrize(("option", "value", "nbytes"), [
        ("ratio", 14, 4 * 121_510 / 14), ("bits", 2.5, 121_510 * 2.5 / 8), ("size", 20_000, 20_000),
    ])  # fmt: skip
    def test_a_budget_is_met_to_within_1_percent(self, option: str, value: float, nbytes: float) -> None:
        model = perceptron()

        data = saved(model, calibration=calibrated(model), **{option: value})

        assert 0.99 * nbytes <= len(data) <= nbytes

    def test_a_quality_is_met(self) -> None:
        model, stream = perceptron(), io.BytesIO()

        report = vt.save_model(model, stream, calibration=calibrated(model), sqnr=15)

        loaded = vt.load(stream.getvalue())
        pairs = [(tensor, loaded[name]) for name, tensor in model.state_dict().items() if name.endswith("weight")]
        noise = sum(float((found - tensor).square().sum()) for tensor, found in pairs)
        found = 10 * np.log10(sum(float(tensor.square().sum()) for tensor, _ in pairs) / noise)
        assert 14.95 <= found <= 15.2 and report.sqnr_db == pytest.approx(found, abs=0.05)

    def test_a_calibration_that_knows_nothing_changes_nothing(self) -> None:
        model = perceptron()
        without = vt.save(model.state_dict(), preset="small")
        assert saved(model, preset="small") == without
        assert saved(model, calibration=Calibration({"0.weight": TensorStatistics()})) == without

    def test_tensors_that_a_calibration_does_not_name_are_as_without(self) -> None:
        model = perceptron()
        of_first = {name: found for name, found in calibrated(model).tensors.items() if name.startswith("0.")}

        loaded = vt.load(saved(model, calibration=Calibration(of_first)))

        without = vt.load(saved(model, preset="small"))
        assert [name for name in loaded if not torch.equal(loaded[name], without[name])] == ["0.weight"]

    def test_bits_go_where_the_model_minds_errors(self) -> None:
        model = Calling(lambda model, x: 30 * model.a(x) + model.b(x), a=nn.Linear(64, 64), b=nn.Linear(64, 64))
        calibration = Calibration(vt.calibrate(model, [torch.randn(100, 64)]).tensors)

        report = vt.save_model(model, io.BytesIO(), calibration=calibration, bits=4)

        quality = {tensor.name: tensor.sqnr_db for tensor in report.tensors}
        assert quality["a.weight"] > quality["b.weight"] + 20
        report = vt.save_model(model, io.BytesIO(), preset="small", bits=4)
        assert report.tensors[0].sqnr_db == pytest.approx(report.tensors[2].sqnr_db, abs=2)

    @pytest.mark.parametrize(("known", "message"), [
        (TensorStatistics(1.0, ((np.eye(7, dtype=np.float32),),), 9), "'weight' has 36 inputs, its calibration 7"),
        (TensorStatistics(1.0, ((np.eye(36, dtype=np.float32),),) * 5, 9), "'weight' has 32 outputs.* 5 groups"),
        (TensorStatistics(1.0, row_counts=np.arange(31)), "'weight' has 32 rows, its calibration 31"),
    ])  # fmt: skip
    def test_statistics_of_another_model_are_refused(self, known: TensorStatistics, message: str) -> None:
        with pytest.raises(EncodeError, match=message):
            saved(nn.Conv2d(4, 32, 3), calibration=Calibration({"weight": known}))

    @pytest.mark.parametrize("preset", ["default", "fast"])
    def test_other_presets_are_refused(self, preset: str) -> None:
        with pytest.raises(EncodeError, match=f"calibration is for the preset 'small', not '{preset}'"):
            saved(nn.Linear(3, 3), calibration=Calibration({}), preset=preset)

    def test_lossless_stays_lossless(self) -> None:
        model = perceptron()
        loaded = vt.load(saved(model, calibration=calibrated(model), lossless=True))
        assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())

    def test_complex_weights_and_other_floats_are_saved_too(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.randn(32, 32, dtype=torch.complex64))
                self.layer = nn.Linear(32, 4)
                for i, dtype in enumerate((torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.int8)):
                    self.register_buffer(f"b{i}", torch.ones(4).to(dtype))

            def forward(self, x: Tensor) -> Any:
                return self.layer((x.to(torch.complex64) @ self.w).abs())

        model = Odd()
        data = saved(model, calibration=vt.calibrate(model, [torch.randn(8, 32)] * 2))
        assert output_error(model, data, torch.randn(8, 32)) < 0.02
        assert {name: tensor.dtype for name, tensor in vt.load(data).items()} == {
            name: tensor.dtype for name, tensor in model.state_dict().items()
        }


# Corrections


def convolutional() -> nn.Module:
    """A small network, its normalizations with statistics of their inputs."""
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 40),
    )  # fmt: skip
    for seed in range(20):
        model(images(seed))
    return model


def images(seed: int) -> Tensor:
    """Images whose channels have means."""
    means = 3 * torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(3))
    return correlated(32, 6, 6, 8, seed=100 + seed).movedim(3, 1) / 2 + means


def short_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 1}


class TestCorrections:
    @pytest.mark.parametrize("n_batches", [2, 10])
    def test_outputs_are_nearer_to_the_original(self, n_batches: int) -> None:
        model = convolutional()
        calibration = vt.calibrate(model, [images(seed) for seed in range(n_batches)])
        # Without moments there is no feedback, which leaves less to correct
        tensors = {name: replace(found, moments=None) for name, found in calibration.tensors.items()}

        corrected = saved(model, calibration=Calibration(tensors, calibration.inputs), step=0.5)
        without = saved(model, calibration=Calibration(tensors), step=0.5)

        assert len(corrected) == pytest.approx(len(without), rel=0.01)
        x = images(-1)
        assert output_error(model, corrected, x) < 0.85 * output_error(model, without, x)

    def test_normalizations_get_the_statistics_of_their_new_inputs(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, momentum=1.0))
        x = torch.randn(100, 8) + 1
        model(x)

        found = correct.Corrector(model, Calibration({}, [x]))({"0.weight": model[0].weight.detach().numpy() / 2})

        np.testing.assert_allclose(found["1.running_mean"], model[1].running_mean / 2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["1.running_var"], model[1].running_var / 4, rtol=1e-4)

    def test_biases_keep_the_means_of_outputs_layer_by_layer(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Unflatten(1, (16, 1)), nn.Conv1d(16, 4, 1))
        x = torch.randn(100, 8) + 2
        weights = {name: tensor.numpy() * 0.7 for name, tensor in model.state_dict().items() if tensor.ndim > 1}

        found = correct.Corrector(model, Calibration({}, [x]))(weights)

        other = copy.deepcopy(model)
        other.load_state_dict({name: torch.from_numpy(array) for name, array in (weights | found).items()})
        for end in (1, 4):
            assert torch.allclose(other[:end](x).mean(0), model[:end](x).mean(0), atol=1e-5)

    def test_short_parameters_are_tuned_on_the_outputs(self) -> None:
        model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8, bias=False))
        weights = {"1.weight": model[1].weight.detach().numpy() * 0.97}

        found = correct.Corrector(model, Calibration({}, [torch.randn(20, 16) for _ in range(10)]))(weights)

        np.testing.assert_allclose(found["0.weight"], 1 / 0.97, rtol=0.01)

    def test_the_model_is_as_before(self) -> None:
        model = convolutional()
        model[1].eval()
        calibration = vt.calibrate(model, [images(seed) for seed in range(6)])
        before = copy.deepcopy(model)

        saved(model, calibration=calibration, step=0.3)

        assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
        for module, other in zip(model.modules(), before.modules(), strict=True):
            assert module.training == other.training
            assert not module._forward_hooks and not module._forward_pre_hooks
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("n_batches", [1, 2, 6])
    def test_what_is_right_stays_as_it_is(self, n_batches: int) -> None:
        model = convolutional()
        calibration = vt.calibrate(model, [images(seed) for seed in range(n_batches)])
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.ndim > 1}

        found = correct.Corrector(model, calibration)(weights)

        assert all(np.array_equal(found[name], tensor) for name, tensor in short_tensors(model).items())

    def test_what_does_no_good_is_undone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def harm(model: nn.Module) -> None:
            for tensor in short_tensors(model).values():
                tensor += 100

        def tune(corrector: Any, student: nn.Module, *rest: Any) -> None:
            harm(student)

        monkeypatch.setattr(correct, "_match_moments", lambda teacher, student, batch: harm(student))
        monkeypatch.setattr(correct.Corrector, "_tune", tune)
        model = convolutional()
        calibration = vt.calibrate(model, [images(seed) for seed in range(6)])
        weights = {name: tensor.numpy() * 0.9 for name, tensor in model.state_dict().items() if tensor.ndim > 1}

        found = correct.Corrector(model, calibration)(weights)

        assert all(np.array_equal(found[name], tensor) for name, tensor in short_tensors(model).items())

    def test_a_layer_that_had_no_vectors_keeps_its_bias(self) -> None:
        def call(model: Any, x: Tensor) -> Tensor:
            return model.used(x) + model.norm(model.idle(x[:0])).sum()

        layers = {"used": nn.Linear(32, 32), "idle": nn.Linear(32, 32), "norm": nn.BatchNorm1d(32)}
        model = Calling(call, **layers).eval()

        loaded = vt.load(saved(model, calibration=vt.calibrate(model, [torch.randn(20, 32)] * 2), ratio=8))

        assert torch.allclose(loaded["idle.bias"], model.idle.bias, atol=0.02)
        assert torch.equal(loaded["norm.running_var"], torch.ones(32))

    def test_a_saved_calibration_gives_the_same_file_as_one_without_inputs(self, tmp_path: Path) -> None:
        model = convolutional()
        calibration = vt.calibrate(model, [images(0)])
        calibration.save(tmp_path / "a.npz")

        data = saved(model, calibration=Calibration.load(tmp_path / "a.npz"), step=0.3)

        assert data == saved(model, calibration=Calibration(calibration.tensors), step=0.3)
        assert output_error(model, data, images(-1)) < 0.1

    def test_the_same_model_and_inputs_give_the_same_bytes(self) -> None:
        model = convolutional()
        batches = [images(seed) for seed in range(5)]
        first, again = (saved(model, calibration=vt.calibrate(model, batches), step=0.3) for _ in range(2))
        assert first == again

    @pytest.mark.parametrize("loss", ["values", "logits", lambda output: output.square().sum()])
    def test_any_loss_will_do(self, loss: Any) -> None:
        model = convolutional()
        calibration = vt.calibrate(model, [images(seed) for seed in range(5)], loss=loss)
        assert calibration.loss == (loss if isinstance(loss, str) else "values")
        data = saved(model, calibration=calibration, step=0.3)
        assert output_error(model, data, images(-1)) < 0.1


# Tiles


@given(st.integers(1, 300), st.integers(1, 5000), st.floats(0.01, 12), st.none() | st.integers(1, 48))
@settings(max_examples=300)
def test_whole_tiles_are_enough_for_their_length(n_rows: int, n_columns: int, bits: float, wanted: int | None) -> None:
    columns = None if wanted is None else tiles.band_width(n_columns, wanted)

    height, width = tiles.choose_tile(n_rows, n_columns, bits, columns, in_whole=True)

    assert 1 <= height <= n_rows and 1 <= width <= n_columns
    assert height * width <= MAX_STEPS_PER_SEQUENCE * (n_rows // height) * (n_columns // width)


@given(st.integers(1, 5000), st.integers(1, 100))
def test_bands_are_about_as_wide_as_wanted(n_columns: int, wanted: int) -> None:
    width = tiles.band_width(n_columns, wanted)
    assert min(n_columns, wanted // 2) <= width <= min(n_columns, 3 * wanted)
