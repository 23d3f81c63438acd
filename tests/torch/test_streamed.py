"""Models whose weights stay in the file: outputs are those of a model that is filled."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from streamed_models import (  # noqa: E402
    CASES,
    STREAMED_NBYTES,
    Decoded,
    deep,
    file_of,
    filled,
    flat,
    frozen,
    mlp,
    randn,
    run,
    same,
    seeded,
    settle,
    streamed,
    tied,
)
from torch import Tensor, nn  # noqa: E402

from vqformat import torch as vt  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("name", CASES)
class TestModules:
    @pytest.mark.parametrize("is_training", [False, True])
    def test_outputs_are_bit_for_bit_those_of_a_filled_model(
        self, name: str, is_training: bool, decoded: Decoded
    ) -> None:
        case = CASES[name]
        aim, model = filled(case.make).train(is_training), streamed(case.make).train(is_training)
        inputs = case.inputs()
        decoded.whole.clear()
        with torch.no_grad():
            aims = [run(aim, *inputs, **case.named) for _ in range(2)]
            assert not decoded
            outputs = [run(model, *inputs, **case.named) for _ in range(2)]  # the second with what was decoded ahead
            assert decoded
        assert all(map(same, outputs, aims))

    def test_large_tensors_are_streamed_and_the_others_are_there(self, name: str) -> None:
        model = streamed(CASES[name].make)
        tensors = [*model.parameters(), *model.buffers()]
        is_streamed = [not hasattr(tensor, "untyped_storage") or type(tensor) not in (Tensor, nn.Parameter)
                       for tensor in tensors]  # fmt: skip
        assert sum(is_streamed) == CASES[name].n_streamed
        assert is_streamed == [tensor.nbytes >= STREAMED_NBYTES for tensor in tensors]

    def test_gradients_of_inputs_are_those_of_a_model_with_frozen_weights(self, name: str) -> None:
        case = CASES[name]
        if not case.inputs()[0].is_floating_point():
            pytest.skip("its inputs are ids")
        gradients = []
        for model in (frozen(filled(case.make)), streamed(case.make)):
            inputs = [tensor.requires_grad_() for tensor in case.inputs()]
            sum((out.sin().sum() for out in run(model, *inputs, **case.named)), torch.zeros(())).backward()
            small = [p.grad for p in model.parameters() if p.requires_grad]
            gradients.append([tensor.grad for tensor in inputs] + [grad for grad in small if grad is not None])
        assert same(*gradients)

    def test_the_state_dict_is_that_of_the_file(self, name: str) -> None:
        data = file_of(CASES[name].make)
        state, aim = streamed(CASES[name].make).state_dict(), vt.load(data)
        assert list(state) == list(aim) and same(list(state.values()), list(aim.values()))


class TestOptions:
    @pytest.mark.parametrize("source", ["path", "stream"])
    @pytest.mark.parametrize("keep", ["file", "memory"])
    @pytest.mark.parametrize("prefetch", [0, 1, 3])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_none_changes_the_outputs(
        self, tmp_path: Path, source: str, keep: Any, prefetch: int, threads: int
    ) -> None:
        (tmp_path / "a.vqm").write_bytes(file_of(deep))
        stream = io.BytesIO(file_of(deep))
        model = vt.stream_model(seeded(deep, 2), tmp_path / "a.vqm" if source == "path" else stream, keep=keep,
                                prefetch=prefetch, threads=threads)  # fmt: skip
        if keep == "memory":
            (tmp_path / "a.vqm").write_bytes(b"")
            stream.close()
        (x,) = randn((5, 128))()
        with torch.no_grad():
            aim = run(filled(deep), x)
            assert all(same(run(model, x), aim) for _ in range(3))
        assert stream.closed == (keep == "memory")

    @pytest.mark.parametrize("prefetch", [0, 1, 3])
    def test_prefetch_is_how_many_weights_are_decoded_ahead(self, prefetch: int, decoded: Decoded) -> None:
        model = streamed(deep, prefetch=prefetch)
        (x,) = randn((5, 128))()
        with torch.no_grad():
            run(model, x)  # the order of weights is learnt
            run(model, x)
            settle(decoded)
            decoded.whole.clear()
            for layer in model:
                x = layer(x)
                settle(decoded)  # else a weight that is needed before its turn is decoded before it
        assert len(decoded.whole) == 4  # of each pass; those ahead are of the pass that follows
        assert decoded.whole == [f"{2 * ((i + prefetch) % 4)}.weight" for i in range(4)]

    def test_each_weight_is_decoded_for_each_pass(self, decoded: Decoded) -> None:
        model = streamed(deep, prefetch=0)
        (x,) = randn((5, 128))()
        decoded.whole.clear()
        with torch.no_grad():
            run(model, x)
            run(model, x)
        assert decoded.whole == ["0.weight", "2.weight", "4.weight", "6.weight"] * 2

    @pytest.mark.parametrize(("options", "message"), [
        ({"keep": "disk"}, "keep is 'disk'; 'file' and 'memory' are allowed"),
        ({"prefetch": -1}, "prefetch is -1; whole numbers from 0 are allowed"),
        ({"prefetch": 1.5}, "prefetch is 1.5"),
        ({"prefetch": True}, "prefetch is True"),
        ({"threads": 0}, "threads is 0"),
    ])  # fmt: skip
    def test_wrong_ones_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            streamed(mlp, **options)


class TestDtypesAndDevices:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("name", ["mlp", "tied", "lstm", "attention", "encoder layer"])
    @pytest.mark.parametrize("when", ["before", "after", "on meta"])
    def test_models_of_another_dtype_are_as_if_they_were_filled(self, dtype: Any, name: str, when: str) -> None:
        case = CASES[name]
        data = file_of(case.make)
        aim = filled(case.make).to(dtype).eval()
        if when == "after":
            model = streamed(case.make).to(dtype)
        elif when == "before":
            model = vt.stream_model(seeded(case.make).to(dtype), io.BytesIO(data))
        else:
            with torch.device("meta"):
                model = vt.stream_model(case.make().to(dtype), io.BytesIO(data))
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs()]
        with torch.no_grad():
            assert same(run(model.eval(), *inputs), run(aim, *inputs))
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}

    @pytest.mark.parametrize("name", ["mlp", "tied", "positions", "batch norm", "lstm", "encoder layer"])
    def test_models_on_the_meta_device_get_their_weights(self, name: str) -> None:
        with torch.device("meta"):
            model = CASES[name].make()
        vt.stream_model(model, io.BytesIO(file_of(CASES[name].make)), device="cpu")
        inputs = CASES[name].inputs()
        if name == "positions":
            assert model.mask.is_meta  # the file does not have it
            model.mask = torch.ones(1)
        assert all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
        with torch.no_grad():
            assert same(run(model.eval(), *inputs), run(filled(CASES[name].make).eval(), *inputs))

    def test_moving_a_model_decodes_nothing(self, decoded: Decoded) -> None:
        model = streamed(tied)
        decoded.whole.clear()
        assert model.to("cpu").cpu().half().float() is model
        assert model.to("meta").head.weight.device.type == "meta"
        assert model.head.weight is model.embed.weight
        assert not decoded

    def test_a_default_device_has_no_effect_on_decoding(self) -> None:
        model = streamed(mlp)
        (x,) = randn((5, 128))()
        with torch.device("meta"):
            assert same(run(model, x), run(filled(mlp), x))

    def test_autocast_is_heeded(self) -> None:
        model, (x,) = streamed(mlp), randn((5, 128))()
        with torch.autocast("cpu", torch.bfloat16):
            found = run(model, x)
            assert found[0].dtype == torch.bfloat16 and same(found, run(filled(mlp), x))


class TestThreads:
    @pytest.mark.parametrize("name", ["mlp", "tied", "lstm", "attention", "encoder layer", "weight norm"])
    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_several_may_run_a_model_at_once(self, name: str, prefetch: int) -> None:
        case = CASES[name]
        aim, model = filled(case.make).eval(), streamed(case.make, prefetch=prefetch).eval()
        inputs = case.inputs()

        def forward(_: int) -> list[Tensor]:
            with torch.no_grad():
                return flat(model(*inputs))

        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(forward, range(16)))
        with torch.no_grad():
            aims = flat(aim(*inputs))
        assert all(same(output, aims) for output in outputs)
        assert not any(type(p) in (Tensor, nn.Parameter) for p in model.parameters() if p.nbytes >= STREAMED_NBYTES)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("name", ["mlp", "lstm", "attention", "embedding", "weight norm"])
    def test_any_mode_may_follow_any_other(self, mode: Any, name: str) -> None:
        model = streamed(CASES[name].make)
        inputs = CASES[name].inputs()
        aim = filled(CASES[name].make)
        for other in (mode, torch.enable_grad, mode):
            with other():
                found, expected = run(model, *inputs), run(aim, *inputs)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("keep", ["file", "memory"])
def test_a_model_in_shards_is_streamed(keep: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200), nn.Linear(200, 200))
    report = vt.save_model(model, tmp_path / "model.vqm", lossless=True, max_shard_size="200kB")
    assert len(report.files) == 4
    loaded, streamed_model = (nn.Sequential(*(nn.Linear(200, 200) for _ in range(3))) for _ in range(2))

    vt.load_model(loaded, tmp_path)
    vt.stream_model(streamed_model, tmp_path / "model.vqm", keep=keep)
    if keep == "memory":
        for path in tmp_path.iterdir():
            path.unlink()

    with torch.no_grad():
        inputs = torch.randn(5, 200)
        assert torch.equal(loaded(inputs), model(inputs))
        assert torch.equal(streamed_model(inputs), model(inputs))
        assert torch.equal(pickle.loads(pickle.dumps(streamed_model))(inputs), model(inputs))
