"""Whole model folders of Hugging Face: the weights become ``.vqm`` files or come back, all else is copied (SPEC 18)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from vqformat.encode.options import Options
from vqformat.encode.report import Report
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.shard_index import INDEX_SUFFIX
from vqformat.new_folder import NewFolder
from vqformat.sizes import Size

from .conversion import as_options, convert_source
from .export import SUFFIXES, export
from .folder_layout import Layout, Weights, files_below, is_model_folder, read_layout
from .model_folder import is_plain_name, open_regular
from .opening import open_source
from .sharding import read_shards
from .source import Source
from .vqm import open_vqm

FILES_KEY, INDEX_KEY = "files", "index"  # fields of vqm.source (SPEC section 18)


@dataclass
class FolderReport:
    """What became of a model folder. Paths are relative to it.

    Attributes:
        reports: The report on each ``.vqm``, by its path.
        written: The weights that ``extract_folder`` wrote.
        copied: The other files.
        left_out: Lines on what was left out.
        notes: Lines on what else a user should know.
    """

    reports: dict[str, Report] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert_folder(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, options: Options | None = None,
                   metadata: Mapping[str, Any] | None = None, include_optimizer: bool = False,
                   overwrite: bool = False, max_shard_size: Size | None = None,
                   **keywords: Any) -> FolderReport:  # fmt: skip
    """Compress the weights of a model folder, and copy its configuration, tokenizer and other files.

    ``model.vqm`` takes the place of ``model.safetensors`` or ``pytorch_model.bin``, or of their shards;
    ``adapter_model.vqm`` and ``diffusion_pytorch_model.vqm`` likewise, in the folders where those lie. The same weights
    in further formats are left out.

    Args:
        src: A folder as ``save_pretrained`` writes it, of transformers, diffusers, PEFT or sentence-transformers.
        dst: The new folder. It is complete or absent.
        options, keywords: As for ``convert``. Each part of a model is encoded by itself, so that a size, a calibration
            and patterns of a recipe are for models of one part.
        metadata: Added to the metadata of each part.
        include_optimizer: Whether the files of a training run (``optimizer.pt``) are copied.
        overwrite: Whether ``dst`` may be replaced as a whole, if it is a model folder with its configuration.
        max_shard_size: Most bytes of a file, as for ``vqformat.save_file``.

    Raises:
        ConversionError: The folder has no weights, has a file that is none, or the weights cannot be read.
        EncodeError: As for ``convert``, or the options are for models of one part.
        FileExistsError: ``dst`` is a folder with files that may not be replaced.
    """
    options = as_options(options, keywords)
    root = Path(src)
    new = NewFolder(_apart(src, dst), overwrite=overwrite, is_replaceable=is_model_folder)
    layout = read_layout(root, include_optimizer=include_optimizer)
    _check_options(layout, options)
    report = FolderReport(left_out=list(layout.left_out), notes=list(layout.notes))
    with new as folder:
        _copy(root, layout.copied, folder, report)
        for weights in layout.weights:
            report.reports[weights.vqm] = _convert(weights, folder, report, options=options, metadata=metadata,
                                                   max_shard_size=max_shard_size)  # fmt: skip
    return report


def _convert(weights: Weights, folder: Path, report: FolderReport, *, options: Options,
             metadata: Mapping[str, Any] | None, max_shard_size: Size | None) -> Report:  # fmt: skip
    target = folder / weights.vqm
    if target.exists():
        raise ConversionError(f"the folder has a file {weights.vqm!r} already, which the weights would replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_source(weights.path) as source:
        if source.format != "vqm":
            source.origin |= _places(weights, source)
        return convert_source(source, target, options=options, metadata=metadata, max_shard_size=max_shard_size)


def _check_options(layout: Layout, options: Options) -> None:
    """Raise EncodeError if an option is for one part, and the model has several."""
    if len(layout.weights) == 1:
        return
    patterns = [] if options.recipe is None else options.recipe.unused(set())
    is_for_one = {"a size": options.size is not None, "a calibration": options.calibration is not None,
                  "a pattern of a recipe": bool(patterns)}  # fmt: skip
    for what, is_given in is_for_one.items():
        if is_given:
            parts = ", ".join(repr(weights.vqm) for weights in layout.weights[:4])
            raise EncodeError(f"{what} is for one file, and this model has {len(layout.weights)}: {parts}")


def _places(weights: Weights, source: Source) -> dict[str, Any]:
    """Which file has which tensors, for ``vqm.source``: the names of files, with numbers of tensors in their order."""
    index, *shards = weights.files
    if not shards:
        return {FILES_KEY: [[index, len(source.tensors)]]}
    place = {name: shard for shard, names in read_shards(weights.path).items() for name in names}
    runs = [[shard, len(list(run))] for shard, run in groupby(place.get(tensor.name, "") for tensor in source.tensors)]
    if sorted(str(shard) for shard, _ in runs) != sorted(shards):
        return {}
    return {FILES_KEY: runs, INDEX_KEY: index}


def extract_folder(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], *, overwrite: bool = False
) -> FolderReport:
    """Give back a model folder that ``convert_folder`` made: each ``.vqm`` becomes the files that it came from.

    Weights of a format that cannot be written become safetensors files.

    Args:
        src: The folder with ``.vqm`` files.
        dst: The new folder. It is complete or absent.
        overwrite: Whether ``dst`` may be replaced as a whole, if it is a model folder with its configuration.

    Raises:
        ConversionError: There is no ``.vqm``, or one cannot be written in the format that it came from.
        FileExistsError: ``dst`` is a folder with files that may not be replaced.
    """
    root = Path(src)
    new = NewFolder(_apart(src, dst), overwrite=overwrite, is_replaceable=is_model_folder)
    report = FolderReport()
    names = files_below(root, report.left_out)
    shards = {f"{folder}/{shard}".lstrip("/") for name in names if name.endswith(INDEX_SUFFIX)
              for folder in [name.rpartition("/")[0]] for shard in read_shards(root / name)}  # fmt: skip
    packed = [name for name in names if name.endswith((".vqm", INDEX_SUFFIX)) and name not in shards]
    if not packed:
        raise ConversionError(f"{str(root)!r} has no .vqm; give the folder that convert made")
    with new as folder:
        _copy(root, [name for name in names if name not in shards.union(packed)], folder, report)
        for name in packed:
            with closing(open_vqm(root / name)) as source:
                report.notes += source.notes
                part = name.removesuffix(INDEX_SUFFIX).removesuffix(".vqm")
                _extract(source, folder / part, folder, report)
    return report


def _extract(source: Source, target: Path, folder: Path, report: FolderReport) -> None:
    """Write the tensors of one ``.vqm``.

    Args:
        target: Path of the ``.vqm`` in the new folder, without its suffix.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    files = _files(source, target.name, report.notes)
    names = iter([tensor.name for tensor in source.tensors])
    placed = {file: [next(names) for _ in range(count)] for file, count in files}
    for file, held in placed.items():
        path = target.with_name(file)
        if path.exists():
            raise ConversionError(f"the folder has a file {file!r} already, which the weights would replace")
        notes = export(source, path, names=None if len(files) == 1 else held, overwrite=False)
        report.notes += [note for note in notes if note not in report.notes]
        report.written.append(path.relative_to(folder).as_posix())
    if len(files) > 1:
        index = source.origin.get(INDEX_KEY)
        if not isinstance(index, str) or not is_plain_name(index) or not index.endswith(".json"):
            index = f"{target.name}{Path(files[0][0]).suffix}.index.json"
        total = sum(tensor.nbytes for tensor in source.tensors)
        weight_map = {name: file for file, held in placed.items() for name in held}
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        with open(target.with_name(index), "x", encoding="utf-8") as stream:
            stream.write(json.dumps(document, indent=2) + "\n")


def _files(source: Source, part: str, notes: list[str]) -> list[tuple[str, int]]:
    """Names of the files that tensors came from, and how many each has; one file if that is not known."""
    found = source.origin.get(FILES_KEY)
    files = [(file[0], file[1]) for file in found if _is_file(file)] if isinstance(found, list) else []
    names = {name.casefold() for name, _ in files}
    is_sound = isinstance(found, list) and len(files) == len(found) == len(names)
    if is_sound and files and sum(count for _, count in files) == len(source.tensors):
        if all(name.lower().endswith(SUFFIXES) for name, _ in files):
            return files
        notes.append(f"{files[0][0]!r} has a format that is not written: safetensors takes its place")
    is_pytorch = source.origin.get("format") == "pytorch"
    name = f"{'pytorch_model' if part == 'model' else part}.bin" if is_pytorch else f"{part}.safetensors"
    return [(name, len(source.tensors))]


def _is_file(value: object) -> bool:
    """Whether this is an element of ``files``, which anybody may have written."""
    match value:
        case [name, int(count)]:
            return is_plain_name(name) and not isinstance(count, bool) and count >= 0
    return False


def _apart(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The new folder, checked not to be in the other one, and not to have it in it.

    Raises:
        ConversionError: It is.
    """
    a, b = Path(os.path.realpath(src)), Path(os.path.realpath(dst))
    if a == b:
        raise ConversionError(f"{os.fspath(dst)!r} is the source itself; write to another folder")
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise ConversionError(f"one of {os.fspath(src)!r} and {os.fspath(dst)!r} is in the other; write to a folder"
                              " apart from the source")  # fmt: skip
    return dst


def _copy(root: Path, names: list[str], folder: Path, report: FolderReport) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(root / name) as stream, open(target, "xb") as copy:
            shutil.copyfileobj(stream, copy)
            copy.flush()
            os.fsync(copy.fileno())
    report.copied += names
