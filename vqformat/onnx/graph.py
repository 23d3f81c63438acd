"""The graph of an ONNX model: its tensors, its inputs, and sessions that run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto

from vqformat.converters.onnx import open_model, parse_model

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class Graph:
    """A model, its floating-point tensors, and sessions that run it.

    Args:
        model: Path of a model, or a model without external data.
        options: Session options of onnxruntime; None for the defaults.

    Attributes:
        model: The model.
        weights: The floating-point tensors of the outer graph, without those of a few elements.
        outputs: Names of the outputs.
    """

    def __init__(self, model: str | os.PathLike[str] | ModelProto, options: onnxruntime.SessionOptions | None) -> None:
        if isinstance(model, ModelProto):
            self.model, path = model, Path("model.onnx")
        else:
            path = Path(model)
            self.model = parse_model(path.read_bytes(), repr(str(path)))
        self._options = options or onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # errors only: else it warns about weights that are inputs
        self._options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                               str(path.resolve().parent))  # fmt: skip
        graph = self.model.graph
        outer = {each.name for each in graph.initializer} | {node.output[0] for node in constants(self.model)}
        copy = ModelProto()
        copy.CopyFrom(self.model)
        self.weights = [tensor for tensor in open_model(path, copy).tensors if not tensor.is_exact
                        and tensor.name in outer and tensor.dtype in ("f16", "f32", "f64")]  # fmt: skip
        self.outputs = [output.name for output in graph.output]
        self._inputs = [each.name for each in graph.input if each.name not in outer]

    def session(self, model: ModelProto) -> onnxruntime.InferenceSession:
        """A session that runs the model, or a variant of it, on the CPU."""
        return onnxruntime.InferenceSession(model.SerializeToString(), self._options, ["CPUExecutionProvider"])

    def feeds(self, batch: Array | Feeds) -> Feeds:
        """The arrays of a batch by the names of the graph's inputs.

        Raises:
            ValueError: The names are not those of the inputs.
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


def constants(model: ModelProto) -> list[NodeProto]:
    """The Constant nodes of the outer graph that hold a tensor."""
    return [node for node in model.graph.node
            if node.op_type == "Constant" and len(node.output) == 1 and node.attribute[0].name == "value"]  # fmt: skip
