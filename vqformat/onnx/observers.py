"""Second moments of the vectors by which the weights of a graph are multiplied, collected while the model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from ..encode.calibration import TensorStatistics
from ..encode.moments import Chosen, Moments, VectorSampler, by_group
from .graph import Array, Feeds, Graph

_TOGETHER = 16  # inner tensors that are computed in one run, so that only so many are in memory


class InputObservers:
    """Runs a model and collects the second moments of the inputs of its layers."""

    def __init__(self, graph: Graph) -> None:
        shapes = {tensor.name: tensor.shape for tensor in graph.weights}
        self._layers: dict[str, list[_Layer]] = {}  # by the name of their input
        sampler = VectorSampler()
        for node in graph.model.graph.node:
            kind = _KINDS.get(node.op_type)
            if kind is not None and node.input[kind.weight_place] in shapes:
                layer = kind(node, shapes[node.input[kind.weight_place]], sampler)
                self._layers.setdefault(node.input[1 - kind.weight_place], []).append(layer)
        model = ModelProto()
        model.CopyFrom(graph.model)
        given = {each.name for each in [*model.graph.input, *model.graph.output, *model.graph.initializer]}
        model.graph.output.extend(ValueInfoProto(name=name) for name in self._layers if name not in given)
        self._inner = [name for name in self._layers if name not in {each.name for each in model.graph.input}]
        self._session = graph.session(model)
        self._outputs = graph.outputs

    def run(self, feeds: Feeds) -> None:
        """Run the model on a batch and process the inputs of its layers."""
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
        """Statistics of each weight, by its name."""
        found: dict[str, TensorStatistics] = {}
        for layers in self._layers.values():
            for layer in layers:
                found.setdefault(layer.weight, layer.statistics())  # of the first layer, if several share a weight
        return found


class _Layer:
    """A node that multiplies its input by a weight, or looks up rows of it.

    Args:
        shape: Shape of the weight.
        sampler: Chooses the vectors; one for all layers of a model.

    Attributes:
        weight_place: Position of the weight among the first two inputs of the node; the other one is the layer's input.
        weight: Name of the weight.
        options: Attributes of the node.
    """

    weight_place = 1

    def __init__(self, node: NodeProto, shape: tuple[int, ...], sampler: VectorSampler) -> None:
        self.weight = node.input[self.weight_place]
        self.shape = shape
        self.options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._sampler = sampler
        self._moments: Moments | None = None

    def observe(self, x: Array) -> None:
        """Process the input of the layer for a batch."""
        raise NotImplementedError

    def _note(self, n: int, take: Callable[[Chosen], Array], shape: tuple[int, int, int], unit: int = 1) -> None:
        """Add some of the n vectors of a batch to the moments.

        Args:
            take: Returns the vectors with given numbers, ``(chosen, groups, inputs)``.
            shape: Number of groups, and of inputs and outputs of a group.
            unit: See ``Moments``.
        """
        groups, n_inputs, n_outputs = shape
        if self._moments is None:
            self._moments = Moments(groups, n_inputs, unit)
        if n:
            self._sampler.note(self._moments, n, lambda chosen: take(chosen).astype(np.float32), n_outputs)

    def statistics(self) -> TensorStatistics:
        """Statistics of the weight."""
        if self._moments is None:
            return TensorStatistics()
        return TensorStatistics(moments=by_group(self._moments.mean()), n_observed=self._moments.n_observed)


class _Dense(_Layer):
    """A product of inputs and a matrix: MatMul, Gemm."""

    def observe(self, x: Array) -> None:
        if len(self.shape) != 2:  # a batch of matrices
            return
        rows = (x.T if self.options.get("transA") else x).reshape(-1, x.shape[0 if self.options.get("transA") else -1])
        n_inputs, n_outputs = self.shape[::-1] if self.options.get("transB") else self.shape
        self._note(len(rows), lambda chosen: rows[chosen][:, None], (1, n_inputs, n_outputs))


class _Convolution(_Layer):
    """A convolution of any rank: a vector is a patch of the channels of a group."""

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
        """Padding before and after each axis, by the attributes ``pads`` or ``auto_pad``.

        Args:
            sizes: Length of each axis.
            spans: Length of the dilated kernel along each axis.
            steps: Stride along each axis.
        """
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
    """A table whose rows are looked up: Gather. It counts how often each row is looked up."""

    weight_place = 0

    def __init__(self, node: NodeProto, shape: tuple[int, ...], sampler: VectorSampler) -> None:
        super().__init__(node, shape, sampler)
        self._counts = np.zeros(shape[0], np.int64)

    def observe(self, x: Array) -> None:
        if self.options.get("axis", 0) == 0:
            self._counts += np.bincount(x.reshape(-1) % len(self._counts), minlength=len(self._counts))

    def statistics(self) -> TensorStatistics:
        return TensorStatistics(row_counts=self._counts if self._counts.any() else None)


_KINDS: dict[str, type[_Layer]] = {"MatMul": _Dense, "Gemm": _Dense, "Conv": _Convolution, "Gather": _Table}
