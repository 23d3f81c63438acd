"""The options of the encoder."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy.typing as npt

from ..errors import EncodeError
from ..sizes import Size, parse_size
from .calibration import Calibration
from .progress import Progress
from .recipe import Recipe

Array = npt.NDArray[Any]
Preset = Literal["fast", "default", "small"]

# What each preset is for, for help texts
PRESETS = {
    "fast": "codes of fixed width, 1, 2, 4 or 8 bits; for a budget others too: opens nearly at the speed of memory",
    "default": "a grid, its codes compressed: small, and quick to write and open",
    "small": "trellis-coded and entropy-coded: the smallest, some times slower to write and open",
}


class SaveOptions(TypedDict, total=False):
    """Keyword arguments of ``save_file``, for the signatures of functions that pass them on."""

    recipe: Recipe | Mapping[str, str] | str | None
    bits: float | None
    ratio: float | None
    size: float | str | None
    sqnr: float | None
    step: float | None
    lossless: bool
    preset: Preset
    seed: int
    progress: Progress | None
    workers: int
    executor: Executor | None


class FileOptions(SaveOptions, total=False):
    """The same, and the keyword arguments for the file."""

    overwrite: bool
    max_shard_size: Size | None


@dataclass(frozen=True)
class Options:
    """The options of the encoder. At most one of ``bits`` to ``lossless`` is set.

    Attributes:
        recipe: Methods by name pattern. The encoder chooses for tensors without a method.
        bits: Bits of the whole file for each weight.
        ratio: Bytes of the tensors divided by bytes of the file.
        size: Bytes of the file; or a text such as ``"1.5MB"``.
        sqnr: Signal-to-quantization-noise ratio of all weights together, in dB.
        step: Step of the grid of the typical tensor, relative to its scale, see ``sensitivity.Steps``.
        lossless: Whether every bit is kept.
        preset: How tensors without a method are coded: a key of ``PRESETS``.
        calibration: Statistics of the model, for the preset ``small``.
        correct: A function that gets names and values of the quantized weights, and returns new values of other
            tensors by name.
        seed: Seed of all random choices.
        progress: Called in each pass over the tensors, with the name of a tensor, the number of weights done in this
            pass, and the number of its weights. The name is a ``TensorProgress``: its ``share`` is that of all passes.
        workers: How many tensors are encoded at the same time. Without an executor, 1 is this process, and more are as
            many new processes.
        executor: Runs the encoding of tensors, instead of new processes.
    """

    recipe: Recipe | None = None
    bits: float | None = None
    ratio: float | None = None
    size: float | str | None = None
    sqnr: float | None = None
    step: float | None = None
    lossless: bool = False
    preset: str = "default"
    calibration: Calibration | None = None
    correct: Callable[[Iterable[tuple[str, Array]]], Mapping[str, Array]] | None = None
    seed: int = 0
    progress: Progress | None = None
    workers: int = 1
    executor: Executor | None = None

    def __post_init__(self) -> None:
        numeric = {"bits": self.bits, "ratio": self.ratio, "size": self.size_nbytes, "sqnr": self.sqnr,
                   "step": self.step}  # fmt: skip
        asked = [name for name, value in {**numeric, "lossless": self.lossless or None}.items() if value is not None]
        if len(asked) > 1:
            raise EncodeError(f"{' and '.join(asked)} exclude each other")
        if self.lossless and self.recipe is not None:
            raise EncodeError("lossless and a recipe exclude each other; the recipe's default can be lossless")
        if not isinstance(self.workers, int) or isinstance(self.workers, bool) or self.workers < 1:
            raise EncodeError(f"workers is {self.workers!r}; whole numbers from 1 are allowed")
        if self.preset not in PRESETS:
            raise EncodeError(f"preset is {self.preset!r}; {', '.join(PRESETS)} are allowed")
        if self.calibration is not None and self.preset != "small":
            raise EncodeError(f"a calibration is for the preset 'small', not {self.preset!r}")
        for name, value in numeric.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (is_number and math.isfinite(value) and value > 0):
                raise EncodeError(f"{name} is {value!r}; a number above 0 is allowed")

    @property
    def size_nbytes(self) -> float | None:
        """Bytes of the file, as a number.

        Raises:
            EncodeError: ``size`` is a text that is no size.
        """
        if not isinstance(self.size, str):
            return self.size
        try:
            return parse_size(self.size)
        except ValueError as err:
            raise EncodeError(f"size: {err}") from err

    @property
    def has_budget(self) -> bool:
        """Whether a size, a quality or a step is given."""
        return any(value is not None for value in (self.bits, self.ratio, self.size, self.sqnr, self.step))

    @property
    def codes_anew(self) -> bool:
        """Whether tensors that are quantized already are to be quantized again."""
        return self.has_budget or self.preset != "default" or self.calibration is not None

    @property
    def concerns_all(self) -> bool:
        """Whether the encoding of a tensor depends on all other tensors of the file."""
        has_shared = self.recipe is not None and any(method.get("share") for method in self.recipe.methods())
        has_total = any(value is not None for value in (self.bits, self.ratio, self.size))
        return has_shared or has_total or self.calibration is not None
