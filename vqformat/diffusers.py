"""Models and pipelines of the diffusers library, from folders that ``vqm convert FOLDER -o FOLDER`` makes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from importlib.util import find_spec
from typing import Any

import torch

from . import transformers
from .hub import local_folder
from .model_folder import find_folder, opened_weights, package, take_hub_options
from .torch.loading import Device, load_opened

__all__ = ["from_pretrained"]

_PART = "diffusion_pytorch_model"
_OF_PIPELINES = ("*.json", "*.txt", "*.model", "*.vqm")


def from_pretrained(source: str | os.PathLike[str], model_class: Any, *, subfolder: str = "",
                    dtype: torch.dtype | None = None, device: Device = "cpu", **options: Any) -> Any:  # fmt: skip
    """Load a model such as ``UNet2DConditionModel``, or a whole ``DiffusionPipeline``.

    Args:
        source: Folder, or repository of the Hugging Face Hub.
        model_class: Class of the model or of the pipeline.
        subfolder: Folder in the source that has the model, such as ``"unet"``.
        dtype: dtype of the weights; None for float32, as in diffusers.
        device: Device of the weights.
        options: Of a pipeline: what ``model_class.from_pretrained`` takes. Also ``revision``, ``token`` and so on for a
            repository.

    Returns:
        The model, in evaluation mode, or the pipeline.

    Raises:
        ImportError: diffusers or another package that is needed is not installed.
        FileNotFoundError: The folder has no ``.vqm``.
        RuntimeError: Names or shapes of the weights are not those of the model.
        ValueError: A part of a pipeline is no model of diffusers or transformers.
        VqmError: The file is refused.
    """
    hub = take_hub_options(options)
    diffusers = package("diffusers")
    if issubclass(model_class, diffusers.DiffusionPipeline):
        folder = local_folder(source, _OF_PIPELINES, **hub) / subfolder
        parts = _parts(diffusers, folder, dtype, device, options)
        return model_class.from_pretrained(folder, **options, **parts)
    folder = find_folder(source, subfolder, _PART, "config.json", **hub)
    with _without_memory():
        model = model_class.from_config(model_class.load_config(folder), **options)
    model = model.to(dtype or torch.float32)
    with opened_weights(folder, _PART) as file:
        load_opened(model, file, device=device)
    return model.to(device).eval()


def _parts(diffusers: Any, folder: pathlib.Path, dtype: torch.dtype | None, device: Device,
           given: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The models of a pipeline whose folders have a ``.vqm``, but for those that are given."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    libraries = {"diffusers": (diffusers, diffusers.ModelMixin)}
    parts = {}
    for path in folder.glob("*/*.vqm"):
        name = path.parent.name
        value = index.get(name)
        if name in given or name in parts or not isinstance(value, list) or len(value) != 2:
            continue
        if value[0] == "transformers":
            library = package("transformers")
            libraries["transformers"] = library, library.PreTrainedModel
        # Of classes that a file names, only those of models
        library, base = libraries.get(value[0], (None, object))
        found = getattr(library, value[1], None) if isinstance(value[1], str) else None
        if not isinstance(found, type) or not issubclass(found, base):
            raise ValueError(f"{str(path.parent)!r} is said to have a {str(value)[:100]}; vqformat loads models of"
                             " diffusers and transformers: give the others by name")  # fmt: skip
        if library is diffusers:
            parts[name] = from_pretrained(path.parent, found, dtype=dtype, device=device)
        else:
            model: Any = transformers.from_pretrained(path.parent, found, dtype=dtype or torch.float32)
            parts[name] = model.to(device)
    return parts


def _without_memory() -> contextlib.AbstractContextManager[Any]:
    """Context in which modules are built without memory for parameters, if accelerate is there, as in diffusers.

    Buffers get their values: those that are not persistent are in no file.
    """
    if find_spec("accelerate") is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = package("accelerate").init_empty_weights(include_buffers=False)
    return context
