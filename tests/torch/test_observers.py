"""What is learnt of a model by running it: moments of the inputs of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torchmodels import Calling

from vqformat.encode import moments

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from calibrations import only_moments, products, statistics  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402


@pytest.fixture
def without_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that is not small."""
    monkeypatch.setattr(moments, "_CREDIT", 0)


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
