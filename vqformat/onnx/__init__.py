"""Statistics of ONNX models, gathered by running them with onnxruntime, for ``converters.convert``.

The second moments of the inputs of a layer come from a graph in which these inputs are outputs. ONNX has no
derivatives: the sensitivity of the outputs to errors of a tensor is measured by adding noise to the tensor.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable

from ..errors import missing_package

try:
    import onnxruntime
    from onnx import ModelProto
except ImportError as err:
    raise missing_package("calibrating ONNX models needs", "onnxruntime", err) from err

from ..encode.calibration import Calibration, TensorStatistics
from .graph import Array, Feeds, Graph
from .observers import InputObservers
from .sensitivity import Loss, NoiseTrials

__all__ = ["Calibration", "calibrate"]

_MOST_TRIALS = 8  # batches that each tensor's sensitivity is measured with


def calibrate(
    model: str | os.PathLike[str] | ModelProto, batches: Iterable[Array | Feeds], *, loss: Loss = "values",
    seed: int = 0, options: onnxruntime.SessionOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Gather the statistics for ``converters.convert(…, preset="small", calibration=…)``.

    Some hundreds of inputs are enough, if they are like those that the model will get in use. The model runs on all of
    them (several times if it has many layers), and for each tensor on up to eight of the batches.

    Args:
        model: Path of a model, or a model without external data.
        batches: Inputs, without labels: arrays by the names of the graph's inputs, or one array if there is one input.
        loss: Which errors of the outputs matter. ``"values"``: squared errors of all floating-point outputs.
            ``"logits"``: the outputs are logits of classes, on the last axis.
        seed: Seed of the noise.
        options: Session options of onnxruntime, such as the number of threads.
        progress: Called with ``"batch"``, the number of batches done, and the number of all batches (0 if unknown);
            then with ``"tensor"``, the number of tensors done, and the number of all tensors.

    Returns:
        Statistics of the tensors, by the names that ``convert`` gives them.

    Raises:
        ConversionError: The file is damaged, or not an ONNX model.
        ValueError: There are no batches, they do not fit the inputs of the graph, or the loss is unknown.
    """
    if loss not in ("values", "logits"):
        raise ValueError(f"loss is {loss!r}; 'values' or 'logits' is allowed")
    graph = Graph(model, options)
    watching = InputObservers(graph)
    trials: list[Feeds] = []
    stride = n_batches = 0
    n_all = operator.length_hint(batches)
    for n_batches, batch in enumerate(batches, 1):
        feeds = graph.feeds(batch)
        watching.run(feeds)
        if (n_batches - 1) % max(stride, 1) == 0:  # every stride-th batch: evenly spread, whatever their number is
            trials.append({name: array.copy() for name, array in feeds.items()})
            if len(trials) > _MOST_TRIALS:
                trials, stride = trials[::2], 2 * max(stride, 1)
        if progress is not None:
            progress("batch", n_batches, n_all)
    if not n_batches:
        raise ValueError("there are no batches to calibrate with")
    found = watching.statistics()
    del watching  # frees its session
    noisy = NoiseTrials(graph, trials, loss, seed)
    for done, tensor in enumerate(graph.weights, 1):
        known = found.get(tensor.name, TensorStatistics())
        found[tensor.name] = TensorStatistics(noisy.importance(tensor), known.moments, known.n_observed,
                                              known.row_counts)  # fmt: skip
        if progress is not None:
            progress("tensor", done, len(graph.weights))
    return Calibration(found, loss=loss)
