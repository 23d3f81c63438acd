"""What a caller asks of the encoder."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy.typing as npt

from ..errors import EncodeError
from .calibration import Calibration
from .recipe import Recipe

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
Preset = Literal["fast", "default", "small"]

# What each preset is for, for help texts
PRESETS = {
    "fast": "codes of fixed width, 1, 2, 4 or 8 bits; for a budget others too: opens nearly at the speed of memory",
    "default": "a grid, its codes compressed: small, and quick to write and open",
    "small": "trellis-coded and entropy-coded: the smallest, some times slower to write and open",
}


class SaveOptions(TypedDict, total=False):
    """Keywords of ``save_file``, for signatures that hand them on."""

    recipe: Recipe | Mapping[str, str] | str | None
    bits: float | None
    ratio: float | None
    size: float | None
    sqnr: float | None
    step: float | None
    lossless: bool
    preset: Preset
    seed: int
    progress: Progress | None


class FileOptions(SaveOptions, total=False):
    """The same, and that of the file."""

    overwrite: bool


@dataclass(frozen=True)
class Options:
    """What the caller asks of the encoder.

    Attributes:
        recipe: Methods by name; where it has none the encoder chooses.
        bits: Bits a weight of the whole file.
        ratio: Bytes of the tensors over bytes of the file.
        size: Bytes of the file.
        sqnr: Signal-to-quantization-noise ratio of all weights together, in dB.
        step: Of the grid of the typical tensor, relative to its scale, see ``sensitivity.Steps``.
        lossless: Every bit kept, whatever else is asked.
        preset: How the encoder codes what it chooses for, a key of ``PRESETS``.
        calibration: What is known of the model's inputs, for ``small``.
        correct: Told names and values of what became of the weights, gives new values of other tensors by name.
        seed: Of everything random.
        progress: Called with a tensor's name, weights done and weights in all.
    """

    recipe: Recipe | None = None
    bits: float | None = None
    ratio: float | None = None
    size: float | None = None
    sqnr: float | None = None
    step: float | None = None
    lossless: bool = False
    preset: str = "default"
    calibration: Calibration | None = None
    correct: Callable[[Iterable[tuple[str, Array]]], Mapping[str, Array]] | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        numeric = {"bits": self.bits, "ratio": self.ratio, "size": self.size, "sqnr": self.sqnr,
                   "step": self.step}  # fmt: skip
        asked = [name for name, value in {**numeric, "lossless": self.lossless or None}.items() if value is not None]
        if len(asked) > 1:
            raise EncodeError(f"{' and '.join(asked)} exclude each other")
        if self.lossless and self.recipe is not None:
            raise EncodeError("lossless and a recipe exclude each other; the recipe's default can be lossless")
        if self.preset not in PRESETS:
            raise EncodeError(f"preset is {self.preset!r}; {', '.join(PRESETS)} are allowed")
        if self.calibration is not None and self.preset != "small":
            raise EncodeError(f"a calibration is for the preset 'small', not {self.preset!r}")
        for name, value in numeric.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (is_number and math.isfinite(value) and value > 0):
                raise EncodeError(f"{name} is {value!r}; a number above 0 is allowed")

    @property
    def has_budget(self) -> bool:
        return any(value is not None for value in (self.bits, self.ratio, self.size, self.sqnr, self.step))

    @property
    def codes_anew(self) -> bool:
        """Whether tensors that are quantized already are to be quantized again."""
        return self.has_budget or self.preset != "default" or self.calibration is not None

    @property
    def concerns_all(self) -> bool:
        """Whether what becomes of a tensor depends on all others."""
        has_shared = self.recipe is not None and any(method.get("share") for method in self.recipe.methods())
        has_total = any(value is not None for value in (self.bits, self.ratio, self.size))
        return has_shared or has_total or self.calibration is not None
