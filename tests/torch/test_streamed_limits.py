"""What differs from a streamed model, what is damaged, and what such a model cannot do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import vqformat

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from streamed_models import (  # noqa: E402
    CASES,
    STREAMED_NBYTES,
    Decoded,
    Make,
    file_of,
    filled,
    frozen,
    ids,
    mlp,
    randn,
    run,
    same,
    seeded,
    streamed,
    tied,
)
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchmodels import saved  # noqa: E402

from vqformat import torch as vt  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def snapshot(model: nn.Module) -> list[tuple[str, Tensor, bytes | None]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, tensor, None if tensor.is_meta else tensor.detach().numpy().tobytes()) for name, tensor in tensors]


def is_as_before(model: nn.Module, before: list[tuple[str, Tensor, bytes | None]]) -> bool:
    return all(a[0] == b[0] and a[1] is b[1] and a[2] == b[2]
               for a, b in zip(snapshot(model), before, strict=True))  # fmt: skip


class TestNames:
    @pytest.mark.parametrize("is_meta", [False, True])
    @pytest.mark.parametrize(("change", "message"), [
        (lambda state: state.pop("0.weight"), r"Missing key\(s\): '0.weight'"),
        (lambda state: state.pop("0.bias"), r"Missing key\(s\): '0.bias'"),
        (lambda state: state.update(extra=torch.ones(3)), r"Unexpected key\(s\): 'extra'"),
        (lambda state: state.update(extra=torch.ones(300, 300)), r"Unexpected key\(s\): 'extra'"),
        (lambda state: state.update({"2.weight": torch.ones(128, 255)}), r"'2.weight' has shape \(128, 255\)"),
        (lambda state: state.update({"2.bias": torch.ones(127)}), "size mismatch for 2.bias"),
    ])  # fmt: skip
    def test_a_file_that_differs_is_refused_and_the_model_is_as_before(
        self, change: Any, message: str, is_meta: bool
    ) -> None:
        state = dict(seeded(mlp).state_dict())
        change(state)
        data = io.BytesIO(vt.save(state))
        with torch.device("meta" if is_meta else "cpu"):
            model = seeded(mlp, 1)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=message):
            vt.stream_model(model, data)
        assert is_as_before(model, before)
        assert vt.stream_model(model, io.BytesIO(file_of(mlp))) is model
        (x,) = randn((5, 128))()
        assert same(run(model, x), run(filled(mlp), x))

    def test_what_the_file_lacks_is_left_where_strict_is_false(self) -> None:
        state = {name: tensor for name, tensor in seeded(mlp).state_dict().items() if not name.startswith("2.")}
        model = seeded(mlp, 1)
        weight, bias = model[2].weight, model[2].bias
        vt.stream_model(model, io.BytesIO(vt.save({**state, "extra": torch.ones(3)}, lossless=True)), strict=False)
        assert model[2].weight is weight and model[2].bias is bias
        aim = seeded(mlp)
        aim[2] = copy.deepcopy(model[2])
        (x,) = randn((5, 128))()
        assert same(run(model, x), run(aim, x))

    def test_one_name_of_a_tied_weight_is_enough(self) -> None:
        state = dict(seeded(tied).state_dict())
        del state["head.weight"]
        model = streamed(tied, vt.save(state, lossless=True))
        assert model.head.weight is model.embed.weight
        assert same(run(model, *ids(2, 7)()), run(seeded(tied), *ids(2, 7)()))

    def test_hooks_that_rename_small_tensors_are_run(self) -> None:
        state = dict(seeded(mlp).state_dict())
        state["old"] = state.pop("0.bias")
        model = seeded(mlp, 1)
        model.register_load_state_dict_pre_hook(lambda _, state, *rest: state.update({"0.bias": state.pop("old")}))
        vt.stream_model(model, io.BytesIO(vt.save(state, lossless=True)))
        assert same(run(model, *randn((5, 128))()), run(seeded(mlp), *randn((5, 128))()))


class TestDamage:
    def damaged(self, make: Make, name: str) -> bytes:
        """A file with a bit changed near the end of a tensor."""
        data = bytearray(file_of(make))
        reader = vqformat.safe_open(io.BytesIO(bytes(data)))._reader
        record, layer, first = reader._locate(reader.entry(name))
        _, end = layer.spans[first + record.n_sections() - 1]
        data[end - 5] ^= 16
        return bytes(data)

    @pytest.mark.parametrize("prefetch", [0, 1])
    @pytest.mark.parametrize(("name", "tensor"), [("mlp", "2.weight"), ("embedding", "weight"),
                                                  ("lstm", "weight_hh_l1"), ("attention", "out_proj.weight"),
                                                  ("encoder layer", "linear2.weight")])  # fmt: skip
    def test_of_a_weight_is_found_by_each_pass(self, name: str, tensor: str, prefetch: int) -> None:
        case = CASES[name]
        model = streamed(case.make, self.damaged(case.make, tensor), prefetch=prefetch).eval()
        before = [*model.parameters()]
        for _ in range(3):
            with torch.no_grad(), pytest.raises(vqformat.VqmError, match=f"'{tensor}'"):
                run(model, *case.inputs())
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))

    def test_of_a_small_tensor_is_found_at_once_and_the_model_is_as_before(self) -> None:
        model = seeded(mlp, 1)
        before = snapshot(model)
        with pytest.raises((vqformat.VqmError, RuntimeError), match=r"'?2\.bias'?"):
            vt.stream_model(model, io.BytesIO(self.damaged(mlp, "2.bias")))
        assert is_as_before(model, before)
        assert run(model, *randn((5, 128))())

    def test_of_a_lookup_by_blocks_is_found(self) -> None:
        model = streamed(mlp, self.damaged(mlp, "2.weight"), max_weight_bytes=0)
        with pytest.raises(vqformat.VqmError, match=r"'2\.weight'"):
            run(model, *randn((5, 128))())

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        model = seeded(mlp, 1)
        before = snapshot(model)
        for data in (b"", b"no model" * 100, file_of(mlp)[:-9]):
            with pytest.raises(vqformat.VqmError):
                vt.stream_model(model, io.BytesIO(data))
        with pytest.raises(FileNotFoundError):
            vt.stream_model(model, tmp_path / "absent.vqm")
        assert is_as_before(model, before)

    def test_an_interrupted_pass_lets_go_of_its_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = streamed(CASES["attention"].make)
        weight = model.in_proj_weight
        monkeypatch.setattr(functional, "multi_head_attention_forward", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(model, *CASES["attention"].inputs())
        assert model.in_proj_weight is weight


class TestWithoutDecoding:
    """What streamed weights tell of themselves, and what is not changed."""

    @pytest.mark.parametrize("ask", [
        repr,
        lambda model: sum(p.numel() for p in model.parameters()) == 65_920 or pytest.fail(),
        lambda model: [(p.shape, p.dtype, p.device, p.requires_grad, p.grad, p.nbytes, p.ndim, p.layout, p.is_leaf,
                        p.size(0), len(p), p.stride(), p.is_contiguous(), p.is_floating_point(), p.is_cuda, p.is_cpu,
                        p.is_meta, p.is_sparse, p.is_quantized, hash(p)) for p in model.parameters()],
        lambda model: model.eval().train().zero_grad(),
        lambda model: model.requires_grad_(False),
        lambda model: [setattr(p, "requires_grad", False) or setattr(p, "grad", None) for p in model.parameters()],
        lambda model: torch.optim.AdamW(model.parameters()).zero_grad(),
        lambda model: [model.state_dict(keep_vars=True), copy.copy(model), model.half()],
    ])  # fmt: skip
    def test_it_is_told(self, ask: Any, decoded: Decoded) -> None:
        model = streamed(mlp)
        decoded.whole.clear()
        ask(model)
        assert not decoded

    def test_streamed_weights_look_like_parameters_that_are_frozen(self) -> None:
        weight, aim = streamed(mlp)[0].weight, mlp()[0].weight
        assert isinstance(weight, nn.Parameter) and not weight.requires_grad
        for name in ("shape", "dtype", "device", "nbytes", "ndim", "layout", "is_leaf", "is_cpu", "is_cuda", "is_meta",
                     "is_sparse", "itemsize"):  # fmt: skip
            assert getattr(weight, name) == getattr(aim, name)
        assert weight.stride() == aim.stride() and weight.is_contiguous() and weight.grad is None


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "copy_": (lambda model: model[0].weight.copy_(torch.ones(256, 128)), "cannot be changed"),
    "+=": (lambda model: model[0].weight.__iadd__(1), "cannot be changed"),
    "item": (lambda model: model[0].weight.__setitem__(0, 1.0), "cannot be changed"),
    "data": (lambda model: setattr(model[0].weight, "data", torch.ones(256, 128)), "cannot be changed"),
    "grad": (lambda model: setattr(model[0].weight, "grad", torch.ones(256, 128)), "or trained; load_model fills"),
    "requires_grad": (lambda model: setattr(model[0].weight, "requires_grad", True), "or trained; load_model fills"),
    "requires_grad_": (lambda model: model.requires_grad_(), "or trained; load_model fills"),
    "out": (lambda model: torch.add(torch.ones(256, 128), 1, out=model[0].weight), "cannot be changed"),
    "init": (lambda model: nn.init.normal_(model[0].weight), "cannot be changed"),
    "reset": (lambda model: model[0].reset_parameters(), "cannot be changed"),
    "load_state_dict": (lambda model: model.load_state_dict(mlp().state_dict()), "load_model fills a model that can"),
    "load_model": (lambda model: vt.load_model(model, io.BytesIO(file_of(mlp))), "load_model fills a model that can"),
    "data_ptr": (lambda model: model[0].weight.data_ptr(), "has no memory of its own"),
    "storage": (lambda model: model[0].weight.untyped_storage(), "has no memory of its own"),
    "script": (lambda model: torch.jit.script(model), "cannot become TorchScript"),
    "trace": (lambda model: torch.jit.trace(model, torch.ones(5, 128)), "'0.weight' is streamed .* trace a model that"),
    "export": (lambda model: torch.export.export(model, (torch.ones(5, 128),)), "as torch.compile and torch.export"),
    "compile": (lambda model: torch.compile(model, backend="eager")(torch.ones(5, 128)), "as torch.compile and"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_streamed_model_cannot_do_is_said_and_it_still_runs(name: str) -> None:
    act, message = REFUSED[name]
    model = streamed(mlp)
    biases = copy.deepcopy([model[0].bias, model[2].bias])
    with pytest.raises(Exception, match=message):
        act(model)
    for layer, bias in zip((model[0], model[2]), biases, strict=True):
        layer.bias = bias  # load_state_dict fills what it can
    (x,) = randn((5, 128))()
    assert same(run(model, x), run(filled(mlp), x))


def lazy_buffers() -> nn.Module:
    return nn.LazyBatchNorm1d(affine=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*[Ll]azy.*:UserWarning")
@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.jit.script(mlp()), "the model is TorchScript.*: stream the Python model"),
    (lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2))), "module '0' is TorchScript"),
    (lambda: nn.DataParallel(mlp()), "the model is a DataParallel.*: stream the model in it"),
    (lambda: torch.compile(mlp()), "the model is a OptimizedModule"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), "module '0' has parameters without a shape yet"),
    (lazy_buffers, "the model has parameters without a shape yet"),
])  # fmt: skip
def test_models_that_keep_their_weights_to_themselves_are_refused(make: Make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vt.stream_model(make(), io.BytesIO(file_of(mlp)))


def prune(model: Any) -> Any:
    from torch.nn.utils import prune

    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def with_ones(model: Any) -> Any:
    model[0].weight = nn.Parameter(torch.ones(256, 128))
    return model


USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "functional_call": lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), x),
    "vmap": lambda model, x: torch.func.vmap(model)(x[:, None])[:, 0],
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sin().sum())(x),
    "jacobian": lambda model, x: torch.func.jacrev(model)(x[0]),
    "forward mode": lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    "symbolic trace": lambda model, x: torch.fx.symbolic_trace(model)(x),
    "checkpoint": lambda model, x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False),
    "DataParallel": lambda model, x: nn.DataParallel(model)(x),
    "pruning": lambda model, x: prune(model)(x),
    "modules used twice": lambda model, x: nn.Sequential(*model, *model)(x),
    "a weight replaced": lambda model, x: with_ones(model)(x),
    "vector": lambda model, x: nn.utils.parameters_to_vector(model.parameters()),
    "numpy": lambda model, x: torch.from_numpy(model[0].weight.detach().numpy() * model[0].weight.data.numpy()),
    "save and load": lambda model, x: torch.load(through_torch_save(model.state_dict()))["0.weight"],
    "copy": lambda model, x: copy.deepcopy(model)(x),
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model))(x),
    "save the model": lambda model, x: torch.load(through_torch_save(model), weights_only=False)(x),
    "saved again": lambda model, x: vt.load(saved(model, lossless=True))["2.weight"],
    "streamed again": lambda model, x: vt.stream_model(model, io.BytesIO(file_of(mlp)))(x),
    "assigned": lambda model, x: (model.load_state_dict(seeded(mlp).state_dict(), assign=True), model(x))[1],
    "SGD": lambda model, x: trained(model, x, torch.optim.SGD),
    "AdamW": lambda model, x: trained(model, x, torch.optim.AdamW),
}


def through_torch_save(state: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def trained(model: nn.Module, x: Tensor, kind: Any) -> Tensor:
    """Small tensors are trained: outputs after a step."""
    optimizer = kind(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    assert all((p.grad is None) == (p.nbytes >= STREAMED_NBYTES) for p in model.parameters())
    optimizer.step()
    return model(x)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what PyTorch itself does for torch.func.jvp
@pytest.mark.parametrize("name", USES)
def test_what_else_is_done_with_models_works(name: str) -> None:
    (x,) = randn((5, 128))()
    found, aim = (USES[name](model, x) for model in (streamed(mlp), frozen(filled(mlp))))
    assert same([found.detach()], [aim.detach()])


@pytest.mark.parametrize("name", ["lstm", "attention", "encoder layer"])
@pytest.mark.parametrize("way", ["assigned", "streamed again"])
def test_weights_that_take_the_place_of_streamed_ones_are_used(name: str, way: str) -> None:
    case = CASES[name]
    model, other = streamed(case.make).eval(), seeded(case.make, 8).eval()
    with torch.no_grad():
        run(model, *case.inputs())
        if way == "assigned":
            model.load_state_dict(other.state_dict(), assign=True)
        else:
            vt.stream_model(model, io.BytesIO(saved(other, lossless=True)))
        assert same(run(model, *case.inputs()), run(other, *case.inputs()))
        assert same([*model.state_dict().values()], [*other.state_dict().values()])


def test_a_copy_made_before_is_not_streamed() -> None:
    model = seeded(mlp)
    other = copy.deepcopy(model)
    vt.stream_model(model, io.BytesIO(file_of(mlp)))
    pickle.dumps(other)
    assert other[0].weight.data_ptr() and not isinstance(other[0].weight, type(model[0].weight))
