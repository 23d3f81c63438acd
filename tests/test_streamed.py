"""vqformat.torch.stream_model: a model whose weights stay in the file gives what the loaded one gives, bit for bit."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torchmodels import Calling, filled, saved

import vqformat

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from vqformat import torch as vt  # noqa: E402
from vqformat.tensor import TensorDecoder  # noqa: E402
from vqformat.torch.streamed import Streamed  # noqa: E402

WIDTH = 160  # a square matrix of it has more than the 64 KiB from which weights are streamed


def tied() -> nn.Module:
    model = Calling(lambda m, ids: m.head(torch.tanh(m.embed(ids))), embed=nn.Embedding(300, WIDTH),
                    head=nn.Linear(WIDTH, 300, bias=False))  # fmt: skip
    model.head.weight = model.embed.weight
    return model


def by_hand() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
        x = functional.linear(x, m.embed.weight)
        x = x @ m.embed.weight + m.fc.weight[:2].sum(0) - m.fc.weight.T.mean(1)
        return torch.einsum("bi,oi->bo", x, m.fc.weight * 0.5) + torch.cat([m.fc.weight, m.fc.weight])[7]

    return Calling(call, embed=nn.Embedding(300, WIDTH), fc=nn.Linear(WIDTH, WIDTH))


def normalized() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 64, 5, padding=2)
            self.norm = nn.BatchNorm2d(64)
            self.register_buffer("basis", torch.randn(WIDTH, WIDTH))
            self.register_buffer("mask", torch.ones(WIDTH, WIDTH), persistent=False)
            self.register_buffer("position_ids", torch.arange(20_000)[None])

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.norm(self.conv(x))).flatten(2)[..., :WIDTH]
            return x @ (self.basis * self.mask) + self.position_ids[0, 3:4]

    return Net()


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 300, shape, generator=torch.Generator().manual_seed(2))


def self_attention(layer: nn.Module) -> nn.Module:
    return Calling(lambda m, x: m.layer(x, x, x)[0], layer=layer)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(WIDTH, 300), nn.ReLU(), nn.Sequential(nn.Linear(300, WIDTH), nn.Tanh())),
            (rand(3, WIDTH),)),
    "tied": (tied, (ids(4, 5),)),
    "weights by hand": (by_hand, (rand(3, WIDTH),)),
    "conv, norm and buffers": (normalized, (rand(2, 16, 14, 14),)),
    "conv1d": (lambda: nn.Conv1d(64, 128, 5, groups=2), (rand(2, 64, 30),)),
    "conv3d": (lambda: nn.Conv3d(16, 64, 3), (rand(1, 16, 5, 5, 5),)),
    "transposed": (lambda: nn.ConvTranspose2d(64, 32, 3), (rand(1, 64, 5, 5),)),
    "bilinear": (lambda: nn.Bilinear(40, 30, 20), (rand(4, 40), rand(4, 30))),
    "embedding bag": (lambda: nn.EmbeddingBag(300, WIDTH, mode="max"), (ids(4, 5),)),
    "embedding, padding": (lambda: nn.Embedding(300, WIDTH, padding_idx=3), (torch.tensor([[3, 4], [0, 299]]),)),
    "embedding, norm": (lambda: nn.Embedding(300, WIDTH, max_norm=1.0), (ids(4, 5),)),
    "lstm": (lambda: Calling(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(WIDTH, 96, 2, bidirectional=True)),
             (rand(7, 2, WIDTH),)),
    "gru": (lambda: Calling(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(WIDTH, 128, batch_first=True)), (rand(2, 7, WIDTH),)),
    "lstm cell": (lambda: Calling(lambda m, x: m.cell(x)[0], cell=nn.LSTMCell(WIDTH, 128)), (rand(2, WIDTH),)),
    "attention": (lambda: self_attention(nn.MultiheadAttention(WIDTH, 4)), (rand(6, 2, WIDTH),)),
    "attention of others": (lambda: Calling(lambda m, q, k: m.layer(q, k, k)[0],
                                            layer=nn.MultiheadAttention(WIDTH, 4, kdim=200, vdim=200)),
                            (rand(6, 2, WIDTH), rand(5, 2, 200))),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True), (rand(2, 6, WIDTH),)),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True), 2),
                    (rand(2, 6, WIDTH),)),
    "decoder": (lambda: nn.TransformerDecoderLayer(WIDTH, 4, 256), (rand(6, 2, WIDTH), rand(5, 2, WIDTH))),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), (rand(3, WIDTH),)),
    "modules of one": (lambda: Calling(lambda m, x: m.b(m.a(x)), **dict.fromkeys("ab", nn.Linear(WIDTH, WIDTH))),
                       (rand(3, WIDTH),)),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    return make().eval(), inputs


def streamed(model: nn.Module, data: bytes, **options: Any) -> nn.Module:
    """A copy of the model, streamed from a file."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    return vt.stream_model(other, io.BytesIO(data), **options)


def n_streamed(model: nn.Module) -> int:
    return sum(isinstance(tensor, Streamed) for tensor in [*model.parameters(), *model.buffers()])


@pytest.fixture
def n_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of each block that is decoded."""
    found: list[int] = []
    fill = TensorDecoder._fill

    def counted(self: TensorDecoder, block: Any, of_stages: Any, out: Any) -> None:
        found.append(block.n_elements)
        fill(self, block, of_stages, out)

    monkeypatch.setattr(TensorDecoder, "_fill", counted)
    return found


# Outputs


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_loaded_model(name: str) -> None:
    model, inputs = built(name)
    data = saved(model)
    loaded, other = filled(model, data), streamed(model, data)

    assert n_streamed(other) > 0
    with torch.no_grad():
        for _ in range(3):  # the second time, what follows is guessed
            assert torch.equal(other(*inputs), loaded(*inputs))
    other.train()
    loaded.train()
    for module in [*other.modules(), *loaded.modules()]:
        if hasattr(module, "dropout"):
            module.dropout = 0.0 if isinstance(module.dropout, float) else nn.Identity()
        for inner in ("dropout1", "dropout2", "dropout3"):
            if hasattr(module, inner):
                setattr(module, inner, nn.Identity())
    with torch.no_grad():
        assert torch.equal(other(*inputs), loaded(*inputs))


@pytest.mark.parametrize("options", [
    {"keep": "memory"}, {"prefetch": 0}, {"prefetch": 3}, {"threads": 1}, {"keep": "memory", "prefetch": 0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("name", "preset"), [("mlp", "fast"), ("mlp", "small"), ("tied", "default"),
                                               ("lstm", "default"), ("transformer", "fast")])  # fmt: skip
def test_no_option_changes_the_outputs(name: str, preset: str, options: dict[str, Any]) -> None:
    model, inputs = built(name)
    data = saved(model, preset=preset)
    loaded, other = filled(model, data), streamed(model, data, **options)

    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(other(*inputs), loaded(*inputs))


@pytest.mark.parametrize("name", ["mlp", "tied", "conv, norm and buffers", "lstm", "attention", "transformer"])
def test_models_on_the_meta_device(name: str, tmp_path: Path) -> None:
    model, inputs = built(name)
    vt.save_model(model, tmp_path / "model.vqm")
    loaded = filled(model, (tmp_path / "model.vqm").read_bytes())
    with torch.device("meta"):
        other = MODELS[name][0]().eval()
    if hasattr(other, "mask"):
        other.mask = torch.ones(WIDTH, WIDTH)  # not in the file

    vt.stream_model(other, tmp_path / "model.vqm")

    with torch.no_grad():
        assert torch.equal(other(*inputs), loaded(*inputs))


@pytest.mark.parametrize("convert", [
    lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.to("cpu", torch.float16),
], ids=["half", "bfloat16", "double", "to"])  # fmt: skip
@pytest.mark.parametrize("name", ["mlp", "conv, norm and buffers", "lstm", "transformer layer"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_precisions(name: str, convert: Callable[[nn.Module], nn.Module], when: str) -> None:
    model, inputs = built(name)
    data = saved(model)
    loaded = convert(filled(model, data))
    dtype = next(loaded.parameters()).dtype
    other = streamed(convert(model), data) if when == "before" else convert(streamed(model, data))

    assert n_streamed(other) > 0
    assert {p.dtype for p in other.parameters()} == {dtype}
    with torch.no_grad():
        given = [x.to(dtype) for x in inputs]
        assert torch.equal(other(*given), loaded(*given))


@pytest.mark.parametrize("name", ["mlp", "tied", "lstm", "transformer layer"])
def test_several_threads_run_a_model(name: str) -> None:
    model, inputs = built(name)
    data = saved(model)
    other = streamed(model, data)
    with torch.no_grad():
        expected = filled(model, data)(*inputs)

    def run(_: int) -> bool:
        with torch.no_grad():
            return torch.equal(other(*inputs), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(24)))


def test_gradients_reach_the_inputs() -> None:
    model, (x,) = built("mlp")
    data = saved(model)
    grads = []
    for runner in (filled(model, data), streamed(model, data)):
        leaf = x.clone().requires_grad_()
        runner(leaf).square().sum().backward()
        grads.append(leaf.grad)

    assert torch.equal(*grads)


def test_inference_mode_and_functional_call() -> None:
    model, (x,) = built("mlp")
    data = saved(model)
    loaded, other = filled(model, data), streamed(model, data)

    with torch.inference_mode():
        assert torch.equal(other(x), loaded(x))
    replaced = {"0.weight": torch.ones(300, WIDTH)}
    assert torch.equal(torch.func.functional_call(other, replaced, x), torch.func.functional_call(loaded, replaced, x))


# What is decoded


def test_telling_shapes_and_counting_parameters_decodes_nothing(n_decoded: list[int]) -> None:
    model, _ = built("tied")
    other = streamed(model, saved(model))
    n_decoded.clear()

    assert "Embedding(300, 160)" in repr(other)
    assert sum(p.numel() for p in other.parameters()) == 300 * WIDTH
    (weight,) = other.parameters()
    assert (weight.shape, weight.dtype, weight.device) == ((300, WIDTH), torch.float32, torch.device("cpu"))
    assert isinstance(weight, nn.Parameter)
    assert not weight.is_meta
    other.to("cpu").eval().requires_grad_(False)
    assert n_decoded == []


@pytest.mark.parametrize("preset", ["fast", "default", "small"])
def test_an_embedding_decodes_the_blocks_of_its_rows(preset: str, n_decoded: list[int]) -> None:
    model = nn.Embedding(3_000, 640)
    data = saved(model, preset=preset)
    expected = filled(model, data)
    other = streamed(model, data)
    n_decoded.clear()

    found = other(torch.tensor([[5, 2_999], [5, 6]]))

    assert len(n_decoded) == 2
    assert torch.equal(found, expected(torch.tensor([[5, 2_999], [5, 6]])))
    assert other(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 640)


@pytest.mark.parametrize("bad", [-1, 300, 10**9])
def test_ids_that_are_not_there_are_index_errors(bad: int) -> None:
    model = nn.Embedding(300, WIDTH)
    other = streamed(model, saved(model))

    for module in (model, other):
        with pytest.raises(IndexError):
            module(torch.tensor([0, bad]))


@pytest.mark.parametrize("shape", [(64, 9000), (9000, 64), (800, 800)], ids=str)
@pytest.mark.parametrize("preset", ["fast", "default", "small"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_of_a_large_weight_works_block_by_block(
    shape: tuple[int, int], preset: str, has_bias: bool, n_decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(*shape, bias=has_bias)
    data = saved(model, preset=preset)
    expected = filled(model, data)
    other = streamed(model, data, max_weight_bytes=1000)
    monkeypatch.setattr("vqformat.torch.streamed._Store.tensor", None)  # nothing is decoded whole
    n_decoded.clear()

    with torch.no_grad():
        for x in (rand(5, shape[0]), rand(2, 3, shape[0]), rand(shape[0])):
            assert torch.allclose(other(x), expected(x), rtol=1e-5, atol=1e-5)
    assert sum(n_decoded) == 3 * shape[0] * shape[1]
    assert max(n_decoded) < shape[0] * shape[1]


def test_half_precision_by_blocks() -> None:
    model = nn.Linear(800, 900)
    data = saved(model)
    expected = filled(model, data).half()
    other = streamed(model, data, max_weight_bytes=1000).half()
    x = rand(4, 800).half()

    with torch.no_grad():
        found = other(x)
        assert found.dtype == torch.float16
        assert torch.allclose(found.float(), expected(x).float(), rtol=2e-3, atol=2e-3)


# What the file has and has not


@pytest.mark.parametrize("on_meta", [False, True])
def test_names_that_do_not_fit_are_told_and_the_model_stays(on_meta: bool) -> None:
    model, (x,) = built("mlp")
    data = saved(model)
    other = copy.deepcopy(model)
    other.append(nn.Linear(WIDTH, 8))
    del other[0].bias
    other[0].register_parameter("bias", None)
    if on_meta:
        other = other.to("meta")
    before = {name: (parameter, parameter.clone()) for name, parameter in other.named_parameters()}

    with pytest.raises(RuntimeError, match=r"Missing key.*'3.weight'(.|\n)*Unexpected key.*'0.bias'"):
        vt.stream_model(other, io.BytesIO(data))

    assert all(parameter is before[name][0] for name, parameter in other.named_parameters())
    if not on_meta:
        assert all(torch.equal(*before[name]) for name in before)
        other(x)
        vt.stream_model(other, io.BytesIO(data), strict=False)
        assert n_streamed(other) == 2
        other(x)


def test_shapes_that_do_not_fit_are_told_and_the_model_stays() -> None:
    model, (x,) = built("mlp")
    data = saved(nn.Sequential(nn.Linear(WIDTH, 200), nn.ReLU(), nn.Sequential(nn.Linear(200, WIDTH))))
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}

    with pytest.raises(RuntimeError, match=r"0\.weight"):
        vt.stream_model(model, io.BytesIO(data))

    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(*before[name])
    model(x)


def test_damage_is_met_when_it_is_decoded_and_names_the_tensor() -> None:
    model, (x,) = built("mlp")
    data = bytearray(saved(model))
    with vqformat.safe_open(io.BytesIO(bytes(data))) as file:
        (_, chunk, first) = file._reader._locate("2.0.weight")
        data[list(chunk.spans())[first][1] - 9] ^= 4
    other = streamed(model, bytes(data))

    for _ in range(2):
        with pytest.raises(vqformat.ChecksumError, match=r"2\.0\.weight"):
            other(x)


def test_state_dict_gives_what_the_file_holds(tmp_path: Path) -> None:
    model, _ = built("tied")
    data = saved(model)
    other = streamed(model, data)

    state = other.state_dict()
    torch.save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "state.pt")
    vt.save_model(other, tmp_path / "again.vqm", lossless=True)

    for found in (torch.load(tmp_path / "state.pt"), vt.load_file(tmp_path / "again.vqm")):
        assert all(torch.equal(found[name], tensor) for name, tensor in vt.load(data).items())


def test_a_streamed_model_can_be_streamed_from_another_file() -> None:
    model, (x,) = built("mlp")
    other = streamed(model, saved(model))
    model[0].weight.data *= 2
    data = saved(model)

    vt.stream_model(other, io.BytesIO(data))

    with torch.no_grad():
        assert torch.equal(other(x), filled(model, data)(x))


# What cannot be


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m[0].weight.zero_(), r"'0\.weight' is streamed from a file.*cannot be changed \(zero_\)"),
    (lambda m: m[0].weight.mul_(2), "cannot be changed"),
    (lambda m: m[0].weight.__setitem__(0, 1.0), "cannot be changed"),
    (lambda m: m[0].weight.data_ptr(), "has no memory of its own"),
    (copy.deepcopy, "cannot be copied or pickled"),
    (pickle.dumps, "cannot be copied or pickled"),
    (lambda m: m.load_state_dict(vt.load(saved(built("mlp")[0]))), "load_model"),
    (lambda m: vt.load_model(m, io.BytesIO(saved(built("mlp")[0]))), "load_model"),
])  # fmt: skip
def test_what_a_streamed_weight_cannot_says_why(change: Callable[[Any], Any], message: str) -> None:
    model, _ = built("mlp")
    other = streamed(model, saved(model))

    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        change(other)


@pytest.mark.parametrize(("wrap", "message"), [
    (torch.nn.DataParallel, "the model is a DataParallel"),
    (lambda m: nn.Sequential(nn.DataParallel(m)), "module '0' is a DataParallel"),
    (lambda m: nn.Sequential(nn.LazyLinear(3)), "parameters without a shape"),
])  # fmt: skip
def test_models_that_cannot_be_streamed_say_why(wrap: Callable[[nn.Module], nn.Module], message: str) -> None:
    model, _ = built("mlp")
    data = saved(model)

    with pytest.raises(ValueError, match=message):
        vt.stream_model(wrap(model), io.BytesIO(data))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_cannot_be_streamed() -> None:
    model, (x,) = built("mlp")

    with pytest.raises(ValueError, match="is TorchScript"):
        vt.stream_model(torch.jit.trace(model, x), io.BytesIO(saved(model)))


@pytest.mark.parametrize(("options", "message"), [
    ({"keep": "disk"}, "keep is 'disk'"), ({"prefetch": -1}, "prefetch is -1"), ({"prefetch": 1.5}, "prefetch is 1.5"),
    ({"prefetch": True}, "prefetch is True"), ({"threads": 0}, "threads is 0"),
])  # fmt: skip
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    model, _ = built("mlp")

    with pytest.raises(ValueError, match=message):
        streamed(model, saved(model), **options)


# What it leaves


def test_file_and_thread_go_with_the_model(tmp_path: Path) -> None:
    model, (x,) = built("mlp")
    vt.save_model(model, tmp_path / "model.vqm")
    before = threading.active_count()
    other = vt.stream_model(copy.deepcopy(model), tmp_path / "model.vqm")
    with torch.no_grad():
        other(x)
        other(x)

    del other
    gc.collect()

    for thread in threading.enumerate():
        if thread.name.startswith("vqformat"):
            thread.join(5)
    assert threading.active_count() <= before
