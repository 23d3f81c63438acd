"""What the encoder makes of a calibration: feedback, budgets, corrections."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coding import written
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st
from torchmodels import Calling, correlated, filled, output_error, saved

import vqformat
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.encode.options import Options
from vqformat.encode.plan import Plan
from vqformat.encode.small import row_steps, small
from vqformat.encode.small.entropy_coding import Pool
from vqformat.encode.small.error_feedback import Factors
from vqformat.encode.source import SourceTensor
from vqformat.errors import EncodeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402

from vqformat import torch as vt  # noqa: E402
from vqformat.torch import correction  # noqa: E402

# Feedback


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
    @examples(60)
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
        factors = Factors.of(TensorStatistics(1.0, tuple(moments), 30), n_outputs)
        weights = np.random.default_rng(seed).standard_normal((n_outputs, n_inputs)).astype(np.float32)
        step = data.draw(st.sampled_from([0.05, 0.8, 4.0]))

        with pytest.MonkeyPatch.context() as patch:
            if data.draw(st.booleans()):  # many blocks
                patch.setattr(small, "BLOCK_ELEMENTS", 512)
                patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 768)
            settings = small.Settings(factors=factors)
            coded = small.quantize("w", "f32", weights.shape, weights, step, settings=settings).coded

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

    def test_inputs_that_matter_more_have_finer_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def inputs(seed: int) -> Tensor:
            return correlated(2000, 64, seed=seed) * torch.logspace(-1, 1, 64)

        layer = nn.Linear(64, 256, bias=False)
        calibration = Calibration(vt.calibrate(layer, [inputs(1)]).tensors)
        by_rows = saved(layer, calibration=calibration, bits=4)
        monkeypatch.setattr(row_steps, "are_worth_it", lambda *_: False)
        alike = saved(layer, calibration=calibration, bits=4)

        assert len(by_rows) <= len(alike) * 1.01
        assert output_error(layer, alike, inputs(2)) > 1.5 * output_error(layer, by_rows, inputs(2))

    @pytest.mark.parametrize(("shape", "output_axis"), [((4, 64), 0), ((64, 4), 1)])
    def test_few_outputs_do_not_pay_for_steps_of_their_inputs(self, shape: tuple[int, int], output_axis: int) -> None:
        scales = np.logspace(-1, 1, 64, dtype=np.float32)
        calibration = Calibration({"w": TensorStatistics(1.0, ((np.diag(scales),),), 1000)})
        tensor = SourceTensor("w", "f32", shape, lambda: np.ones(shape, np.float32), output_axis=output_axis)
        large = replace(tensor, shape=tuple(256 if n == 4 else n for n in shape))

        plan = Plan([tensor], Options(preset="small", calibration=calibration))
        plan_of_large = Plan([large], Options(preset="small", calibration=calibration))

        assert plan.feedback(tensor).steps is None
        assert plan_of_large.feedback(large).steps.shape == (64,)

    def test_a_coarse_matrix_has_no_steps_of_inputs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = of_inputs("correlated", 1000, 64, 0) * np.logspace(-1, 1, 64, dtype=np.float32)
        statistics = TensorStatistics(1.0, ((x.T @ x / 1000,),), 1000)
        fine = Factors.of(statistics, 256)
        monkeypatch.setattr(row_steps, "are_worth_it", lambda *_: False)
        alike = Factors.of(statistics, 256)

        assert fine.steps is not None and fine.at(1.0) is fine
        coarse = fine.at(3.0)
        assert coarse.steps is None and alike.steps is None
        assert np.allclose(coarse.spread, alike.spread, rtol=1e-5, atol=0)
        assert np.allclose(coarse.upper[0][0], alike.upper[0][0], rtol=1e-5, atol=0)

    @pytest.mark.parametrize(("ratio", "has_steps"), [(8, True), (60, False)])
    def test_files_have_steps_of_inputs_at_high_rates_only(self, ratio: float, has_steps: bool) -> None:
        layer = nn.Linear(64, 512, bias=False)
        inputs = correlated(2000, 64, seed=1) * torch.logspace(-1, 1, 64)
        calibration = Calibration(vt.calibrate(layer, [inputs]).tensors)
        report = vt.save_model(layer, io.BytesIO(), calibration=calibration, ratio=ratio)
        assert ("scaled" in report.tensors[0].method) == has_steps

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
        assert Factors.of(found.tensors["weight"], 32) is None
        assert saved(layer, calibration=Calibration(found.tensors)) == saved(layer, preset="small")

    @pytest.mark.parametrize(("n_inputs", "n_outputs", "step", "is_calibrated"), some_of([
        (600, 4100, 0.2, True), (600, 4100, 0.2, False),
        (1400, 300, 2.0, True),  # few bits: tiles so long that there must be many of them (TRL-002)
    ], [(1400, 300, 2.0, True)]))  # fmt: skip
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
    @pytest.mark.parametrize(("option", "value", "nbytes"), some_of([
        ("ratio", 14, 4 * 121_510 / 14), ("bits", 2.5, 121_510 * 2.5 / 8), ("size", 20_000, 20_000),
    ], [("size", 20_000, 20_000)]))  # fmt: skip
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

        corrected = saved(model, calibration=Calibration(tensors, calibration.inputs), step=0.6)
        without = saved(model, calibration=Calibration(tensors), step=0.6)

        assert len(corrected) == pytest.approx(len(without), rel=0.01)
        x = images(-1)
        assert output_error(model, corrected, x) < 0.85 * output_error(model, without, x)

    def test_normalizations_get_the_statistics_of_their_new_inputs(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, momentum=1.0))
        x = torch.randn(100, 8) + 1
        model(x)

        found = correction.Corrector(model, Calibration({}, [x]))([("0.weight", model[0].weight.detach().numpy() / 2)])

        np.testing.assert_allclose(found["1.running_mean"], model[1].running_mean / 2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["1.running_var"], model[1].running_var / 4, rtol=1e-4)

    def test_biases_keep_the_means_of_outputs_layer_by_layer(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Unflatten(1, (16, 1)), nn.Conv1d(16, 4, 1))
        x = torch.randn(100, 8) + 2
        weights = {name: tensor.numpy() * 0.7 for name, tensor in model.state_dict().items() if tensor.ndim > 1}

        found = correction.Corrector(model, Calibration({}, [x]))(weights.items())

        other = copy.deepcopy(model)
        other.load_state_dict({name: torch.from_numpy(array) for name, array in (weights | found).items()})
        for end in (1, 4):
            assert torch.allclose(other[:end](x).mean(0), model[:end](x).mean(0), atol=1e-5)

    def test_short_parameters_are_tuned_on_the_outputs(self) -> None:
        model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8, bias=False))
        weights = {"1.weight": model[1].weight.detach().numpy() * 0.97}

        found = correction.Corrector(model, Calibration({}, [torch.randn(20, 16) for _ in range(10)]))(weights.items())

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

        found = correction.Corrector(model, calibration)(weights.items())

        assert all(np.array_equal(found[name], tensor) for name, tensor in short_tensors(model).items())

    def test_what_does_no_good_is_undone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def harm(model: nn.Module) -> None:
            for tensor in short_tensors(model).values():
                tensor += 100

        def tune(corrector: Any, student: nn.Module, *rest: Any) -> None:
            harm(student)

        monkeypatch.setattr(correction, "_match_moments", lambda teacher, student, batch: harm(student))
        monkeypatch.setattr(correction.Corrector, "_tune", tune)
        model = convolutional()
        calibration = vt.calibrate(model, [images(seed) for seed in range(6)])
        weights = {name: tensor.numpy() * 0.9 for name, tensor in model.state_dict().items() if tensor.ndim > 1}

        found = correction.Corrector(model, calibration)(weights.items())

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
