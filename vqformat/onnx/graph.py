"""A model's graph: its tensors, its inputs, and sessions that run it."""

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
        outer = {each.name for each in graph.initializer} | {node.output[0] for node in constants(self.model)}
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


def constants(model: ModelProto) -> list[NodeProto]:
    """Nodes of the outer graph that hold a tensor."""
    return [node for node in model.graph.node
            if node.op_type == "Constant" and len(node.output) == 1 and node.attribute[0].name == "value"]  # fmt: skip
