"""Statistics of ONNX models, gathered by running them with onnxruntime; ``converters`` compresses with them.

Which inputs of a layer go together is seen from what its weight meets, which is made an output of the graph. ONNX has
no derivatives: how much the outputs mind errors of a tensor is seen from what they become with noise on it.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

try:
    import onnxruntime
    from onnx import ModelProto, NodeProto, ValueInfoProto, helper
except ImportError as err:
    raise ImportError(f"calibrating ONNX models needs {err.name}; run: pip install 'vqformat[onnxruntime]'") from err

from vqformat.converters.onnx import open_model, parse_model

from .encode.calibration import Calibration, TensorStatistics
from .encode.moments import Chosen, Moments, Pace, by_group
from .encode.source import SourceTensor

__all__ = ["Calibration", "calibrate"]

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Loss = Literal["values", "logits"]
_TOGETHER = 16  # tensors of the graph that are looked at in a run, so that few are in memory
_MOST_TRIALS = 8  # batches that each tensor's sensitivity is measured with
_NOISE = 0.05  # of a tensor's root mean square


def calibrate(
    model: str | os.PathLike[str] | ModelProto, batches: Iterable[Array | Feeds], *, loss: Loss = "values",
    seed: int = 0, options: onnxruntime.SessionOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Gather what ``converters.convert(…, preset="small", calibration=…)`` makes use of.

    Some hundreds of inputs like those that the model will meet do. The model runs on all of them, some times if it has
    many layers, and for each tensor on up to eight of the batches.

    Args:
        model: Path of a model, or a model without external data.
        batches: Inputs, without labels: arrays by the names of the graph's inputs, or an array where there is one.
        loss: Which errors of the outputs matter: ``"values"``, squared errors of all its floating-point outputs, or
            ``"logits"`` where they are logits of classes, on the last axis.
        seed: Of the noise.
        options: For onnxruntime, such as its number of threads.
        progress: Called with ``"batch"``, batches done, and batches in all (or 0 where that is not known); then with
            ``"tensor"``, tensors done, and tensors in all.

    Returns:
        Statistics of the tensors, by the names that ``convert`` gives them.

    Raises:
        ConversionError: The file is damaged or no ONNX model.
        ValueError: There are no batches, they are not what the graph takes, or the loss has an unknown name.
    """
    if loss not in ("values", "logits"):
        raise ValueError(f"loss is {loss!r}; 'values' or 'logits' is allowed")
    graph = _Graph(model, options)
    watching = _Watching(graph)
    trials: list[Feeds] = []
    stride = n_batches = 0
    n_all = operator.length_hint(batches)
    for n_batches, batch in enumerate(batches, 1):
        feeds = graph.feeds(batch)
        watching.run(feeds)
        if (n_batches - 1) % max(stride, 1) == 0:  # evenly spread, however many there come
            trials.append({name: array.copy() for name, array in feeds.items()})
            if len(trials) > _MOST_TRIALS:
                trials, stride = trials[::2], 2 * max(stride, 1)
        if progress is not None:
            progress("batch", n_batches, n_all)
    if not n_batches:
        raise ValueError("there are no batches to calibrate with")
    found = watching.statistics()
    del watching  # with its session
    noisy = _Noisy(graph, trials, loss, seed)
    for done, tensor in enumerate(graph.weights, 1):
        known = found.get(tensor.name, TensorStatistics())
        found[tensor.name] = TensorStatistics(noisy.importance(tensor), known.moments, known.n_observed,
                                              known.row_counts)  # fmt: skip
        if progress is not None:
            progress("tensor", done, len(graph.weights))
    return Calibration(found, loss=loss)


class _Graph:
    """A model, its tensors, and sessions of it.

    Attributes:
        model: As it is.
        weights: Its floating-point tensors of the outer graph, other than a few numbers.
        outputs: Names.
    """

    def __init__(self, model: str | os.PathLike[str] | ModelProto, options: onnxruntime.SessionOptions | None) -> None:
        if isinstance(model, ModelProto):
            self.model, path = model, Path("model.onnx")
        else:
            path = Path(model)
            self.model = parse_model(path.read_bytes(), repr(str(path)))
        self._options = options or onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # it warns of weights that are inputs
        self._options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                               str(path.resolve().parent))  # fmt: skip
        graph = self.model.graph
        outer = {each.name for each in graph.initializer} | {node.output[0] for node in _constants(self.model)}
        copy = ModelProto()
        copy.CopyFrom(self.model)
        self.weights = [tensor for tensor in open_model(path, copy).tensors if not tensor.is_exact
                        and tensor.name in outer and tensor.dtype in ("f16", "f32", "f64")]  # fmt: skip
        self.outputs = [output.name for output in graph.output]
        self._inputs = [each.name for each in graph.input if each.name not in outer]

    def session(self, model: ModelProto) -> onnxruntime.InferenceSession:
        """Of the model, or of a variant."""
        return onnxruntime.InferenceSession(model.SerializeToString(), self._options, ["CPUExecutionProvider"])

    def feeds(self, batch: Array | Feeds) -> Feeds:
        """Arrays by name.

        Raises:
            ValueError: They are not what the graph takes.
        """
        if not isinstance(batch, Mapping):
            if len(self._inputs) != 1:
                raise ValueError(f"the graph has the inputs {', '.join(map(repr, self._inputs))}; a batch is a mapping"
                                 " from their names to arrays")  # fmt: skip
            batch = {self._inputs[0]: batch}
        if batch.keys() != set(self._inputs):
            raise ValueError(f"a batch has the names {', '.join(map(repr, batch))}; the graph takes"
                             f" {', '.join(map(repr, self._inputs))}")  # fmt: skip
        return {name: np.asarray(array) for name, array in batch.items()}


def _constants(model: ModelProto) -> list[NodeProto]:
    """Nodes of the outer graph that hold a tensor."""
    return [node for node in model.graph.node
            if node.op_type == "Constant" and len(node.output) == 1 and node.attribute[0].name == "value"]  # fmt: skip


# What the layers meet


class _Watching:
    """A model whose inner tensors are noted as weights meet them."""

    def __init__(self, graph: _Graph) -> None:
        shapes = {tensor.name: tensor.shape for tensor in graph.weights}
        self._layers: dict[str, list[_Layer]] = {}  # by the tensor that they are given
        pace = Pace()
        for node in graph.model.graph.node:
            kind = _KINDS.get(node.op_type)
            if kind is not None and node.input[kind.weight_place] in shapes:
                layer = kind(node, shapes[node.input[kind.weight_place]], pace)
                self._layers.setdefault(node.input[1 - kind.weight_place], []).append(layer)
        model = ModelProto()
        model.CopyFrom(graph.model)
        given = {each.name for each in [*model.graph.input, *model.graph.output, *model.graph.initializer]}
        model.graph.output.extend(ValueInfoProto(name=name) for name in self._layers if name not in given)
        self._inner = [name for name in self._layers if name not in {each.name for each in model.graph.input}]
        self._session = graph.session(model)
        self._outputs = graph.outputs

    def run(self, feeds: Feeds) -> None:
        """Run the model and note what its layers meet."""
        for name in self._layers.keys() & feeds.keys():
            self._note(name, feeds[name])
        for start in range(0, len(self._inner), _TOGETHER):
            names = self._inner[start : start + _TOGETHER]
            for name, array in zip(names, self._session.run(names, dict(feeds)), strict=True):
                self._note(name, array)

    def _note(self, name: str, array: Array) -> None:
        for layer in self._layers[name]:
            layer.observe(array)

    def statistics(self) -> dict[str, TensorStatistics]:
        """Of each weight."""
        found: dict[str, TensorStatistics] = {}
        for layers in self._layers.values():
            for layer in layers:
                found.setdefault(layer.weight, layer.statistics())  # of a weight of two layers the first one's
        return found


class _Layer:
    """What a node does with a weight.

    Attributes:
        weight_place: Of the weight among the inputs of the node; the other one of the first two is what it meets.
        weight: Its name.
    """

    weight_place = 1

    def __init__(self, node: NodeProto, shape: tuple[int, ...], pace: Pace) -> None:
        self.weight = node.input[self.weight_place]
        self.shape = shape
        self.options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._pace = pace
        self._moments: Moments | None = None

    def observe(self, x: Array) -> None:
        """Note what the weight meets."""
        raise NotImplementedError

    def _note(self, n: int, take: Callable[[Chosen], Array], shape: tuple[int, int, int], unit: int = 1) -> None:
        """Some of n vectors.

        Args:
            shape: Groups, inputs and outputs of a group.
            unit: See ``Moments``.
        """
        groups, n_inputs, n_outputs = shape
        if self._moments is None:
            self._moments = Moments(groups, n_inputs, unit)
        if n:
            self._pace.note(self._moments, n, lambda chosen: take(chosen).astype(np.float32), n_outputs)

    def statistics(self) -> TensorStatistics:
        """What was noted."""
        if self._moments is None:
            return TensorStatistics()
        return TensorStatistics(moments=by_group(self._moments.mean()), n_observed=self._moments.n_observed)


class _Dense(_Layer):
    """Inputs times a matrix: MatMul, Gemm."""

    def observe(self, x: Array) -> None:
        if len(self.shape) != 2:  # a matrix for each input
            return
        rows = (x.T if self.options.get("transA") else x).reshape(-1, x.shape[0 if self.options.get("transA") else -1])
        n_inputs, n_outputs = self.shape[::-1] if self.options.get("transB") else self.shape
        self._note(len(rows), lambda chosen: rows[chosen][:, None], (1, n_inputs, n_outputs))


class _Convolution(_Layer):
    """A convolution of any rank: a vector is a patch of a group's channels."""

    def observe(self, x: Array) -> None:
        kernel = self.shape[2:]
        rank = len(kernel)
        steps = self.options.get("strides", [1] * rank)
        spacings = self.options.get("dilations", [1] * rank)
        groups = self.options.get("group", 1)
        spans = [(size - 1) * spacing + 1 for size, spacing in zip(kernel, spacings, strict=True)]
        x = np.pad(x, [(0, 0), (0, 0), *self._padding(x.shape[2:], spans, steps)])
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, 2 + rank)))
        every = (slice(None), slice(None), *(slice(None, None, step) for step in steps),
                 *(slice(None, None, spacing) for spacing in spacings))  # fmt: skip
        windows = np.moveaxis(windows[every], 1, 1 + rank)  # (batch, places…, channels, taps…)
        places = windows.shape[: 1 + rank]

        def take(chosen: Chosen) -> Array:
            return windows[np.unravel_index(chosen, places)].reshape(len(chosen), groups, -1)

        shape = (groups, math.prod(self.shape[1:]), self.shape[0] // groups)
        self._note(math.prod(places), take, shape, math.prod(kernel))

    def _padding(self, sizes: Sequence[int], spans: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
        """Before and after each axis."""
        rank = len(spans)
        automatic = self.options.get("auto_pad", b"NOTSET").decode()
        if not automatic.startswith("SAME"):
            pads = self.options.get("pads", [0] * 2 * rank)
            return list(zip(pads[:rank], pads[rank:], strict=True))
        found = []
        for size, span, step in zip(sizes, spans, steps, strict=True):
            total = max((-(-size // step) - 1) * step + span - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
        return found


class _Table(_Layer):
    """A table whose rows are looked up: how often each of them is."""

    weight_place = 0

    def __init__(self, node: NodeProto, shape: tuple[int, ...], pace: Pace) -> None:
        super().__init__(node, shape, pace)
        self._counts = np.zeros(shape[0], np.int64)

    def observe(self, x: Array) -> None:
        if self.options.get("axis", 0) == 0:
            self._counts += np.bincount(x.reshape(-1) % len(self._counts), minlength=len(self._counts))

    def statistics(self) -> TensorStatistics:
        return TensorStatistics(row_counts=self._counts if self._counts.any() else None)


_KINDS: dict[str, type[_Layer]] = {"MatMul": _Dense, "Gemm": _Dense, "Conv": _Convolution, "Gather": _Table}


# What the outputs mind


class _Noisy:
    """A model with noise on its weights, one at a time.

    Noise of variance v on the n elements of a tensor changes the outputs by v times the sum of the squared derivatives,
    and so does an error of quantization.
    """

    def __init__(self, graph: _Graph, trials: list[Feeds], loss: Loss, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._trials, self._loss = trials, loss
        self._session = graph.session(_with_weights_as_inputs(graph))
        self._outputs = graph.outputs
        self._aims = [self._run(feeds) for feeds in trials]
        self._scales = [float(np.std(np.concatenate([aim.ravel() for aim in aims]))) or 1.0
                        for aims in zip(*self._aims, strict=True)]  # fmt: skip
        self._n_inputs = sum(next((len(a) for a in feeds.values() if a.ndim), 1) for feeds in trials)

    def importance(self, tensor: SourceTensor) -> float:
        """The mean of the squared derivatives to a tensor's elements, for one input."""
        values = tensor.load()
        size = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        if not 0 < size < math.inf:
            return 0.0
        change = 0.0
        for feeds, aims in zip(self._trials, self._aims, strict=True):
            noise = self._random.standard_normal(values.shape, np.float32) * (_NOISE * size)
            found = self._run({**feeds, tensor.name: (values + noise).astype(values.dtype)})
            change += sum(map(self._change, found, aims, self._scales))
        total = change / ((_NOISE * size) ** 2 * values.size * self._n_inputs)
        return total if math.isfinite(total) else 0.0

    def _run(self, feeds: Feeds) -> list[Array]:
        """The floating-point outputs."""
        found = self._session.run(self._outputs, dict(feeds))
        return [array.astype(np.float32) for array in found if np.issubdtype(array.dtype, np.floating)]

    def _change(self, found: Array, aim: Array, scale: float) -> float:
        """Of one output."""
        if self._loss == "logits":
            logs, aims = _log_softmax(found), _log_softmax(aim)
            return 2 * float((np.exp(aims) * (aims - logs)).sum())
        return float(np.square((found - aim) / (scale if len(self._scales) > 1 else 1.0), dtype=np.float64).sum())


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _with_weights_as_inputs(graph: _Graph) -> ModelProto:
    """A variant whose weights are inputs that have defaults."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    names = {tensor.name for tensor in graph.weights}
    for node in _constants(model):
        if node.output[0] in names:
            proto = model.graph.initializer.add()
            proto.CopyFrom(node.attribute[0].t)
            proto.name = node.output[0]
            model.graph.node.remove(node)
    inputs = {each.name for each in model.graph.input}
    for proto in model.graph.initializer:
        if proto.name in names - inputs:
            model.graph.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims))
    model.ir_version = max(model.ir_version, 4)  # before, initializers could not be constants
    return model
