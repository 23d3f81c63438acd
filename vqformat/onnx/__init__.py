"""Statistics of ONNX models, gathered by running them with onnxruntime; ``converters`` compresses with them.

Which inputs of a layer go together is seen from what its weight meets, which is made an output of the graph. ONNX has
no derivatives: how much the outputs mind errors of a tensor is seen from what they become with noise on it.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable

try:
    import onnxruntime
    from onnx import ModelProto
except ImportError as err:
    raise ImportError(f"calibrating ONNX models needs {err.name}; run: pip install 'vqformat[onnxruntime]'") from err

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
    graph = Graph(model, options)
    watching = InputObservers(graph)
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
    noisy = NoiseTrials(graph, trials, loss, seed)
    for done, tensor in enumerate(graph.weights, 1):
        known = found.get(tensor.name, TensorStatistics())
        found[tensor.name] = TensorStatistics(noisy.importance(tensor), known.moments, known.n_observed,
                                              known.row_counts)  # fmt: skip
        if progress is not None:
            progress("tensor", done, len(graph.weights))
    return Calibration(found, loss=loss)
