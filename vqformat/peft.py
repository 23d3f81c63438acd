"""Adapters of the PEFT library, from folders that ``vqm convert FOLDER -o FOLDER`` makes."""

from __future__ import annotations

import os
from typing import Any

from .model_folder import find_folder, opened_weights, package, take_hub_options
from .torch.deferred_tensor import deferred_state

__all__ = ["from_pretrained"]


def from_pretrained(model: Any, source: str | os.PathLike[str], adapter_name: str = "default",
                    is_trainable: bool = False, *, subfolder: str = "", **options: Any) -> Any:  # fmt: skip
    """Put an adapter into a model, as ``PeftModel.from_pretrained(model, source)`` would from safetensors.

    Args:
        model: The model that the adapter was trained for.
        source: Folder with ``adapter_model.vqm``, or repository of the Hugging Face Hub.
        adapter_name, is_trainable: As for ``PeftModel.from_pretrained``.
        subfolder: Folder in the source that has the adapter.
        options: Keyword arguments of ``get_peft_model``; also ``revision``, ``token`` and so on for a repository.

    Returns:
        A ``PeftModel``.

    Raises:
        ImportError: peft or, for a repository, huggingface_hub is not installed.
        FileNotFoundError: The folder has no ``.vqm``.
        RuntimeError: The file has weights that the adapter has no place for.
        VqmError: The file is refused.
    """
    hub = take_hub_options(options)
    peft = package("peft")
    folder = find_folder(source, subfolder, "adapter_model", "adapter_config.json", **hub)
    config = peft.PeftConfig.from_pretrained(folder)
    config.inference_mode = not is_trainable
    adapted = peft.get_peft_model(model, config, adapter_name=adapter_name, **options)
    with opened_weights(folder, "adapter_model") as file:
        state = {name: tensor[...] for name, tensor in deferred_state([file]).items()}
    unexpected = peft.set_peft_model_state_dict(adapted, state, adapter_name=adapter_name).unexpected_keys
    if unexpected:
        raise RuntimeError(f"{str(folder)!r} has weights that the adapter has no place for, such as {unexpected[0]!r}")
    return adapted if is_trainable else adapted.eval()
