"""``writer``: writing a file layer by layer, for models that do not fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import EncodeError
from ..files import Path
from ..sizes import Size
from .disk_list import DiskList
from .layers import LayerWriter, layer_name
from .model import ModelEncoder
from .new_model import open_writer
from .options import Options, Preset
from .progress import Progress
from .recipe import Recipe, as_recipe
from .report import Report
from .source import Array, SourceTensor, check_layer_name, check_name, check_tensors, native, source_tensors
from .tensor_work import Workplace
from .worker_pool import WorkerPool, opened_pool


class writer:
    """Writes a ``.vqm`` layer by layer, to a path or to a stream, which need not support ``seek``, such as a pipe.

    It is a context manager::

        with writer("model.vqm") as w:
            for name, tensors in layers:
                w.add_layer(name, tensors)

    Only the current layer is in memory. Each layer is encoded and written when it is added, like a model of its own:
    steps are relative to its weights, and each layer meets ``sqnr`` by itself. The default quality is that for layers
    of a deep network. The budgets ``bits``, ``ratio`` and ``size``, and codebooks that layers share, need the whole
    model. With these, tensors are kept in a temporary file in the folder of the path until ``close`` encodes them, as
    ``save_file`` does. (A shared codebook is trained on all its layers, which are then in memory together.)

    The file appears under its name when the writer is closed. After an exception there is no file. What a stream has
    received until then can be read only with ``allow_partial=True``.

    Args:
        filename: Path, or a binary stream to write to.
        metadata, overwrite, recipe, bits, ratio, size, sqnr, step, lossless, preset, seed, max_shard_size: As for
            ``save_file``.
        workers, executor: As for ``save_file``. They encode tensors of one layer at the same time.
        progress: As for ``save_file``, but all weights are those added. The ``share`` is None, unless ``close`` encodes
            all layers.

    Raises:
        EncodeError: The metadata or the options are not allowed.
        FileExistsError: The file exists and ``overwrite`` is false.
    """

    def __init__(
        self,
        filename: Path | BinaryIO,
        metadata: Mapping[str, Any] | None = None,
        *,
        recipe: Recipe | Mapping[str, str] | str | None = None,
        bits: float | None = None,
        ratio: float | None = None,
        size: float | str | None = None,
        sqnr: float | None = None,
        step: float | None = None,
        lossless: bool = False,
        preset: Preset = "default",
        seed: int = 0,
        progress: Progress | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        overwrite: bool = True,
        max_shard_size: Size | None = None,
    ) -> None:
        self._options = Options(as_recipe(recipe), bits, ratio, size, sqnr, step, lossless, preset, seed=seed,
                                progress=progress, workers=workers, executor=executor)  # fmt: skip
        self._metadata = dict(metadata or {})
        self._names: set[str] = set()
        self._known: dict[str, SourceTensor] = {}  # all tensors added, without their arrays
        self._copies: dict[str, str] = {}  # the copies among them, and of what
        self._n_layers = self._n_weights = 0
        self._notes: list[str] = []
        self._missed: list[str] = []  # notes on layers that missed their budget
        self._report: Report | None = None
        self._is_over = False
        self._chunks = open_writer(filename, self._metadata, self._options, overwrite=overwrite,
                                   max_shard_size=max_shard_size)  # fmt: skip
        self._layers = LayerWriter(self._chunks)
        self._waiting: list[SourceTensor] = []
        self._open = ExitStack()  # the workers
        self._pool: WorkerPool | None = None
        self._arrays: DiskList[Array] | None = None
        if self._options.concerns_all:
            self._arrays = DiskList(folder=self._chunks.folder)

    def add_layer(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Encode and write a layer.

        Args:
            name: A label for people, such as ``"encoder.layers.0"``; it may be empty. ``stream`` gives it.
            tensors: Arrays by their names in the model, as for ``save_file``. Equal views of the same memory in one
                layer become aliases. For an alias of a tensor of an earlier layer see ``add_alias``. Other equal
                tensors of one layer are stored once, too. Those of different layers are only where ``close`` encodes
                all layers: otherwise the earlier one is no longer there to be compared.

        Raises:
            EncodeError: A tensor cannot be written. Further layers can be added, unless a limit of the file was
                exceeded.
            OSError: Writing failed, and the file is discarded.
            ValueError: The writer is closed.
        """
        self._check_open()
        check_layer_name(name)
        notes: list[str] = []
        self._add(name, self._source_tensors(tensors, notes))
        self._notes.extend(notes)

    def add_alias(self, name: str, target: str) -> None:
        """Add an alias: a further name of a tensor that has been added, so that tied weights are stored once.

        Args:
            name: The further name.
            target: Name of the tensor that has been added, or of an alias of it.

        Raises:
            EncodeError: There is no tensor ``target``, or there is a tensor ``name`` already.
            OSError, ValueError: As for ``add_layer``.
        """
        self._check_open()
        check_name(name)
        known = self._known.get(target) if isinstance(target, str) else None
        if known is None:
            raise EncodeError(f"{name!r} cannot be an alias of {target!r}, which has not been added")
        alias = replace(known, name=name, alias_of=known.alias_of or target)
        self._add(layer_name(name), [alias])

    def close(self) -> Report:
        """Complete the file.

        Returns:
            A report on each tensor. Its ``notes`` name patterns of the recipe that matched no tensor.

        Raises:
            EncodeError: A budget cannot be met.
            OSError: Writing failed.
            ValueError: The file was discarded after an error.
        """
        return self._complete() if self._report is None else self._report

    def _complete(self) -> Report:
        self._check_open()
        with self._ending():
            unused = self._options.recipe.unused(self._names) if self._options.recipe is not None else []
            if self._arrays is None:
                report = self._layers.close()
                report.note_missed(self._missed)
            else:
                report = ModelEncoder(self._waiting, self._options, self._metadata).write(self._chunks)
        self._forget()
        report.notes.extend(self._notes)
        self._report = report
        for pattern in unused:  # not an error, since the file is complete and may have taken hours
            note = f"the pattern {pattern!r} matched no tensor that earlier patterns leave"
            report.notes.append(note)
            warnings.warn(note, stacklevel=3)
        return report

    @property
    def report(self) -> Report:
        """The report on each tensor, when the writer is closed.

        Raises:
            ValueError: The writer is not closed.
        """
        if self._report is None:
            raise ValueError("the report is available only after the writer is closed")
        return self._report

    def _source_tensors(self, tensors: Mapping[str, Any], notes: list[str]) -> list[SourceTensor]:
        return source_tensors(tensors)

    def _add(self, layer: str, tensors: list[SourceTensor]) -> None:
        names = check_tensors(tensors, self._names)
        tensors = [replace(tensor, layer=(self._n_layers, layer)) for tensor in tensors]
        if self._arrays is not None:
            with self._ending():
                self._waiting.extend(self._store_array(tensor, self._arrays) for tensor in tensors)
        else:
            if not self._n_layers:
                pool = opened_pool(self._options.workers, self._options.executor, self._chunks.folder)
                self._pool = self._open.enter_context(pool)
            encoder = ModelEncoder(tensors, self._layer_options(), is_part=True)
            encoder.plan.equal.targets = self._copies  # an alias may be of a copy in an earlier layer
            results = list(encoder.results(Workplace(self._pool, temporary=self._chunks.folder)))
            with self._ending():
                for result in results:
                    self._layers.add(result)
                self._layers.end()
            self._missed.extend(f"layer {layer!r}: {note}" for note in encoder.missed)
        self._n_layers += 1
        self._names = names
        for tensor in tensors:
            self._n_weights += tensor.n_elements
            self._known[tensor.name] = replace(tensor, load=_unavailable)

    def _store_array(self, tensor: SourceTensor, arrays: DiskList[Array]) -> SourceTensor:
        """Store the array of a tensor in the temporary file. Returns a tensor that loads it from there."""
        if tensor.alias_of is not None:
            return replace(tensor, load=_unavailable)
        arrays.append(native(tensor))
        return replace(tensor, load=partial(arrays.__getitem__, len(arrays) - 1))

    def _layer_options(self) -> Options:
        """The options for a layer, with a progress function that counts the weights of the file."""
        progress, before = self._options.progress, self._n_weights
        if progress is None:
            return self._options
        return replace(self._options, progress=lambda name, done, total: progress(name, before + done, before + total))

    def _check_open(self) -> None:
        if self._report is not None:
            raise ValueError("the writer is closed")
        if self._is_over:
            raise ValueError("the writer was ended by an error: there is no file")

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Context that discards the file after an exception."""
        try:
            yield
        except BaseException as err:
            self._discard()
            self._chunks.name_full_disk(err)
            raise

    def _discard(self) -> None:
        self._is_over = True
        self._chunks.discard()
        self._forget()

    def _forget(self) -> None:
        """Free the stored tensors, and end the workers."""
        self._open.close()
        self._waiting = []
        if self._arrays is not None:
            self._arrays.close()

    def __enter__(self) -> writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            self._chunks.name_full_disk(err)
        elif self._report is None:
            self._complete()


def _unavailable() -> Array:
    raise AssertionError("the array of a tensor that has been written was asked for")
