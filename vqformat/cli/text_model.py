"""Language models of Hugging Face: the model of a folder, windows of a text, and how far predictions diverge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import missing_package
from ..text import counted, one_line
from .files import label
from .text import FileError
from .torch_model import FilledModel

_LENGTH = 512  # tokens of a window
_MOST_CHARACTERS = 1 << 24  # of the text that are read: more windows than a calibration takes


class TextModel:
    """A causal language model with the weights of its folder, and its tokenizer. Nothing in the folder is run.

    Args:
        folder: The folder, which has ``config.json``, the weights and the tokenizer.
        device: Where the model shall run.

    Attributes:
        filled: The model.
        length: Tokens of a window.

    Raises:
        ImportError: transformers is missing.
        FileError: The folder has no such model, or its weights do not fit.
    """

    def __init__(self, folder: str, device: str) -> None:
        try:
            import transformers
        except ImportError as err:
            raise missing_package("--text needs", "transformers", err) from err
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        path = Path(folder)
        self._label = label(folder)
        with self._refused("model"):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            config.use_cache = False
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
        with self._refused("tokenizer"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True,
                                                                         trust_remote_code=False)  # fmt: skip
        self.length = min(_LENGTH, getattr(config.get_text_config(), "max_position_embeddings", None) or _LENGTH)
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()  # buffers in old files
        self.filled = FilledModel(model, folder, path, device, ignored)

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as err:
            raise FileError(f"{self._label}: transformers opens no {what} of it: {one_line(str(err))}") from err

    def windows(self, file: str, n_most: int) -> list[dict[str, torch.Tensor]]:
        """Windows of a text, spread evenly over it: batches of one window each.

        Raises:
            FileError: The text has less than two tokens.
            OSError: The file cannot be read.
        """
        with open(file, encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MOST_CHARACTERS)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        first = self._tokenizer("")["input_ids"][:1]  # what the model expects before each text
        first = [token for token in first if token == self._tokenizer.bos_token_id]
        if len(ids) < 2:
            raise FileError(f"{label(file)}: the text has {counted(len(ids), 'token')}; 2 or more are needed")
        length = self.length - len(first)
        n_whole = max(len(ids) // length, 1)
        n = min(n_most, n_whole)
        starts = [length * (i * n_whole // n) for i in range(n)]
        return [{"input_ids": torch.tensor([first + ids[start : start + length]])} for start in starts]

    def divergence(self, windows: list[dict[str, torch.Tensor]]) -> Callable[[nn.Module], float]:
        """A function that says how far a model's predictions are from those of the original.

        Returns:
            It gives the negative KL divergence of the next token's distribution from the original's, in nats, on
            average over the tokens of the windows.
        """

        def measure(model: nn.Module) -> float:
            total = n_tokens = 0.0
            for window in windows:
                batch = self.filled.moved(window)
                other, original = (_log_chances(each, batch) for each in (model, self.filled.model))
                total += float(nn.functional.kl_div(other, original, log_target=True, reduction="sum"))
                n_tokens += window["input_ids"].numel()
            return -total / n_tokens

        return measure


def _log_chances(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return torch.as_tensor(model(**batch).logits).float().log_softmax(-1)
