"""Models of the transformers library, from folders that ``vqm convert FOLDER -o FOLDER`` makes."""

from __future__ import annotations

import copy
import os
import pathlib
from typing import Any, TypeVar

from .model_folder import find_folder, opened_weights, package, take_hub_options
from .torch.deferred_tensor import deferred_state

__all__ = ["from_pretrained"]

Model = TypeVar("Model")
_NOT_OF_THE_CONFIGURATION = ("dtype", "torch_dtype", "quantization_config")  # that have a meaning for it, too


def from_pretrained(
    source: str | os.PathLike[str], model_class: type[Model], *, subfolder: str = "", **options: Any
) -> Model:
    """Load a model, as ``model_class.from_pretrained(source)`` would from safetensors.

    The library builds the model without memory for its weights, and takes these one by one from the ``.vqm``. Names,
    ties, dtypes, devices and quantizers are its matter.

    Args:
        source: Folder, or repository of the Hugging Face Hub.
        model_class: ``AutoModel``, ``AutoModelForCausalLM`` and so on, or the class of a model.
        subfolder: Folder in the source that has the model.
        options: What ``model_class.from_pretrained`` takes: ``dtype``, ``device_map``, ``attn_implementation``,
            ``revision``, ``token``, ``output_loading_info``, values of the configuration, and so on.

    Returns:
        The model, in evaluation mode; with ``output_loading_info`` also which names were missing or unexpected.

    Raises:
        ImportError: transformers or, for a repository, huggingface_hub is not installed.
        FileNotFoundError: The folder has no ``.vqm``.
        VqmError: The file is refused.
    """
    hub = take_hub_options(options)
    transformers = package("transformers")
    folder = find_folder(source, subfolder, "model", "config.json", "generation_config.json", **hub)
    config, options = _configuration(transformers, model_class, folder, options)
    loaded_class = model_class
    if not issubclass(model_class, transformers.PreTrainedModel):  # AutoModel and the like
        loaded_class, config = _class_for(model_class, config, options)
    if options.get("generation_config") is None and (folder / "generation_config.json").is_file():
        options["generation_config"] = transformers.GenerationConfig.from_pretrained(folder)
    with opened_weights(folder, "model") as file:
        state = deferred_state([file])
        loaded: Any = loaded_class
        result = loaded.from_pretrained(None, config=config, state_dict=state, **options)
    model = result[0] if isinstance(result, tuple) else result
    model.config.name_or_path = model.name_or_path = os.fspath(source)
    return result  # type: ignore[no-any-return]


def _configuration(
    transformers: Any, model_class: Any, folder: pathlib.Path, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The configuration, with the values that are given for it, and the other options."""
    config = options.pop("config", None)
    if isinstance(config, transformers.PreTrainedConfig):
        return config, options
    kept = {key: options.pop(key) for key in _NOT_OF_THE_CONFIGURATION if key in options}
    config_class = getattr(model_class, "config_class", None) or transformers.AutoConfig
    config, options = config_class.from_pretrained(config or folder, return_unused_kwargs=True, **options)
    return config, {**options, **kept}


def _class_for(model_class: Any, config: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """The class that an Auto class chooses for a configuration, and the configuration that this class takes."""
    import torch

    trust = {"trust_remote_code": options["trust_remote_code"]} if "trust_remote_code" in options else {}
    with torch.device("meta"):
        model = model_class.from_config(copy.deepcopy(config), **trust)
    chosen = type(model)
    return chosen, config if isinstance(config, chosen.config_class) else model.config
