"""Sensitivity of the outputs to errors of each tensor, measured by adding noise to it: ONNX has no derivatives."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from onnx import ModelProto, helper

from ..encode.source import SourceTensor
from .graph import Array, Feeds, Graph, constants

Loss = Literal["values", "logits"]
_NOISE = 0.05  # standard deviation of the noise, relative to the root mean square of the tensor


class NoiseTrials:
    """Runs a model with noise on one weight at a time.

    Noise of variance v on the elements of a tensor changes the outputs, to first order, by a mean square of v times the
    sum of the squared derivatives with respect to these elements. An error of quantization does the same.

    Args:
        trials: The batches to run the model on.
        loss: Which errors of the outputs matter, see ``calibrate``.
        seed: Seed of the noise.
    """

    def __init__(self, graph: Graph, trials: list[Feeds], loss: Loss, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._trials, self._loss = trials, loss
        self._session = graph.session(_with_weights_as_inputs(graph))
        self._outputs = graph.outputs
        self._aims = [self._run(feeds) for feeds in trials]
        self._scales = [float(np.std(np.concatenate([aim.ravel() for aim in aims]))) or 1.0
                        for aims in zip(*self._aims, strict=True)]  # fmt: skip
        self._n_inputs = sum(next((len(a) for a in feeds.values() if a.ndim), 1) for feeds in trials)

    def importance(self, tensor: SourceTensor) -> float:
        """The mean squared derivative of the outputs with respect to the elements of a tensor, for one input."""
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
        """The floating-point outputs for a batch, as float32."""
        found = self._session.run(self._outputs, dict(feeds))
        return [array.astype(np.float32) for array in found if np.issubdtype(array.dtype, np.floating)]

    def _change(self, found: Array, aim: Array, scale: float) -> float:
        """The squared change of one output; for logits twice the Kullback-Leibler divergence.

        Args:
            found, aim: The output with and without noise.
            scale: Standard deviation of the output, by which the change is divided if there are several outputs.
        """
        if self._loss == "logits":
            logs, aims = _log_softmax(found), _log_softmax(aim)
            return 2 * float((np.exp(aims) * (aims - logs)).sum())
        return float(np.square((found - aim) / (scale if len(self._scales) > 1 else 1.0), dtype=np.float64).sum())


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _with_weights_as_inputs(graph: Graph) -> ModelProto:
    """A variant of the model in which the weights are inputs with default values."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    names = {tensor.name for tensor in graph.weights}
    for node in constants(model):
        if node.output[0] in names:
            proto = model.graph.initializer.add()
            proto.CopyFrom(node.attribute[0].t)
            proto.name = node.output[0]
            model.graph.node.remove(node)
    inputs = {each.name for each in model.graph.input}
    for proto in model.graph.initializer:
        if proto.name in names - inputs:
            model.graph.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims))
    model.ir_version = max(model.ir_version, 4)  # from version 4 on, an initializer need not be an input
    return model
