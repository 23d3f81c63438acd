"""Codebooks that several tensors of a file share."""

from __future__ import annotations

from math import prod

from ..errors import EncodeError
from .methods import quantize
from .methods.layout import layout_for, reals, view_matrix
from .plan import Plan
from .progress import Passes
from .recipe import Method
from .source import SourceTensor, fits_float32, native


class SharedCodebooks:
    """The codebooks that tensors of a file share. Each is trained on all its tensors and numbered when first used."""

    def __init__(self) -> None:
        self._books: dict[str, quantize.SharedBook] = {}
        self._numbers: dict[str, int] = {}

    def train(self, plan: Plan, passes: Passes) -> None:
        """Train all codebooks that the recipe names, in a pass over their tensors if there are any.

        Raises:
            EncodeError: Layers that share a codebook have different methods.
        """
        groups: dict[str, list[SourceTensor]] = {}
        for tensor in plan.tensors:
            method = plan.method(tensor)
            name = quantize.shared_name(method) if method is not None else None
            if name and tensor.alias_of is None and prod(tensor.shape):
                groups.setdefault(name, []).append(tensor)
        if groups:
            passes.begin("codebooks", sum(prod(tensor.shape) for members in groups.values() for tensor in members))
        for name, members in groups.items():
            methods = {plan.method(tensor) for tensor in members}
            if len(methods) > 1:
                raise EncodeError(f"layers that share codebook {name!r} have different methods: "
                                  + ", ".join(sorted(map(str, methods))))  # fmt: skip
            method = next(iter(methods))
            assert method is not None
            self._train(name, method, members, plan.options.seed)
            for tensor in members:
                passes.passed(tensor.name)

    def _train(self, name: str, method: Method, members: list[SourceTensor], seed: int) -> None:
        by_column = quantize.by_columns(method)
        arrays = [(tensor, native(tensor)) for tensor in members]
        matrices = [view_matrix(reals(array), layout_for(tensor.dtype, tensor.shape, by_column=by_column))
                    for tensor, array in arrays if fits_float32(array)]  # fmt: skip
        if matrices:
            self._books[name] = quantize.train_shared(matrices, method, seed=seed)

    def book(self, name: str) -> quantize.SharedBook:
        """The codebook with this name."""
        return self._books[name]

    def number(self, name: str) -> int:
        """Number of a codebook; if it has none yet, the number that it gets when it is used next."""
        return self._numbers.get(name, len(self._numbers))

    def use(self, name: str) -> None:
        """Give a codebook the next number, if it has none."""
        self._numbers.setdefault(name, self.number(name))

    def numbered(self, number: int) -> quantize.SharedBook:
        """The codebook with this number."""
        return next(self._books[name] for name, n in self._numbers.items() if n == number)
