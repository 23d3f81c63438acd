"""Writing a file layer by layer, for models that are never in memory as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import EncodeError
from ..files import Path
from .disk_list import DiskList
from .layers import LayerWriter, layer_name
from .model import ModelEncoder, check_tensors, open_writer
from .options import Options, Preset, Progress
from .recipe import Recipe, as_recipe
from .report import Report
from .source import Array, SourceTensor, check_layer_name, check_name, native, source_tensors


class writer:
    """Writes a ``.vqm`` layer by layer, to a path or to a stream that need not seek, such as a pipe.

    A context manager::

        with writer("model.vqm") as w:
            for name, tensors in layers:
                w.add_layer(name, tensors)

    In memory is the layer in hand. Each is encoded and written as it comes, as if it were a model of its own: steps
    are relative to its weights, ``sqnr`` is met by each. The default quality is that of layers of a deep network. Where
    the whole model must be known, for the budgets ``bits``, ``ratio`` and ``size`` and for codebooks that layers share,
    tensors wait in a temporary file, in the folder of the path, until ``close`` encodes them as ``save_file`` does. (A
    codebook that layers share is trained on all of them, which then are in memory together.)

    A path gets its file when the writer is closed. After an exception there is none, and what a stream has got does not
    open as a file, but for ``allow_partial=True``.

    Args:
        filename: Path, or a binary stream to write to.
        metadata, overwrite, recipe, bits, ratio, size, sqnr, step, lossless, preset, seed: As for ``save_file``.
        progress: Called with a tensor's name, weights done, weights in all as far as they are known.

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
        size: float | None = None,
        sqnr: float | None = None,
        step: float | None = None,
        lossless: bool = False,
        preset: Preset = "default",
        seed: int = 0,
        progress: Progress | None = None,
        overwrite: bool = True,
    ) -> None:
        self._options = Options(as_recipe(recipe), bits, ratio, size, sqnr, step, lossless, preset, seed=seed,
                                progress=progress)  # fmt: skip
        self._metadata = dict(metadata or {})
        self._names: set[str] = set()
        self._known: dict[str, SourceTensor] = {}  # without their arrays
        self._n_layers = self._n_weights = 0
        self._notes: list[str] = []
        self._missed: list[str] = []  # of layers
        self._report: Report | None = None
        self._is_over = False
        self._chunks = open_writer(filename, self._metadata, self._options, overwrite=overwrite)
        self._layers = LayerWriter(self._chunks)
        self._waiting: list[SourceTensor] = []
        self._arrays: DiskList[Array] | None = None
        if self._options.concerns_all:
            self._arrays = DiskList(folder=self._chunks.folder)

    def add_layer(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Encode and write a layer.

        Args:
            name: A label for people, such as ``"encoder.layers.0"``; it may be empty. ``stream`` gives it.
            tensors: Arrays by their names in the model, as for ``save_file``. One that is equal to another of the same
                layer and in the same memory becomes its alias; for one of an earlier layer see ``add_alias``.

        Raises:
            EncodeError: Something cannot be written. The file can be gone on with, unless it is more than a file can
                hold.
            OSError: Writing failed; the file is given up.
            ValueError: The writer is closed.
        """
        self._check_open()
        check_layer_name(name)
        notes: list[str] = []
        self._add(name, self._source_tensors(tensors, notes))
        self._notes.extend(notes)

    def add_alias(self, name: str, target: str) -> None:
        """Give a tensor that has been added a further name: tied weights are stored once.

        Raises:
            EncodeError: There is no such tensor, or the name is taken.
            OSError, ValueError: As ``add_layer``.
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
            What became of each tensor; its ``notes`` name patterns of the recipe that matched none.

        Raises:
            EncodeError: A budget cannot be met.
            OSError: Writing failed.
            ValueError: An error has ended the file.
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
        for pattern in unused:  # no error: the file is whole, and may have taken hours
            note = f"the pattern {pattern!r} matched no tensor that an earlier one does not"
            report.notes.append(note)
            warnings.warn(note, stacklevel=3)
        return report

    @property
    def report(self) -> Report:
        """What became of each tensor, once the writer is closed.

        Raises:
            ValueError: It is not.
        """
        if self._report is None:
            raise ValueError("the report is there when the writer is closed")
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
            encoder = ModelEncoder(tensors, self._layer_options(), is_part=True)
            results = list(encoder.results(self._chunks.folder))
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
        """A tensor that will load its array from the temporary file."""
        if tensor.alias_of is not None:
            return replace(tensor, load=_unavailable)
        arrays.append(native(tensor))
        return replace(tensor, load=partial(arrays.__getitem__, len(arrays) - 1))

    def _layer_options(self) -> Options:
        """The options for a layer, whose progress is that of the file."""
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
        """Give the file up on an exception."""
        try:
            yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        self._is_over = True
        self._chunks.discard()
        self._forget()

    def _forget(self) -> None:
        """Let go of what has waited."""
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
        elif self._report is None:
            self._complete()


def _unavailable() -> Array:
    raise AssertionError("the array of a tensor that has been written was asked for")
