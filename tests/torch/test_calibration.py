"""Calibrating: which batches, which loss, and how important each tensor is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torchmodels import Calling, saved

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from calibrations import importances, only_moments, products, statistics  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vqformat import torch as vt  # noqa: E402


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
