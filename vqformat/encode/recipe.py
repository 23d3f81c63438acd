"""Which method codes which tensor: the language of ``--method`` and ``--layer PATTERN=METHOD``.

A method is a sum of terms. Each term is a name with options: ``svd:rank=16+pq:dim=4,entries=256``. Each further term
codes the residual of the terms before it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..errors import EncodeError
from ..format.limits import MAX_DIM, MAX_ENTRIES, MAX_LOW_RANK, MAX_STAGES

Value = int | float | str


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a method.

    Attributes:
        default: The default. Its type is the type of the option; 0 and ``""`` often mean "not given".
        allowed: Lowest and highest value of a number, or the words that are allowed; empty for any word.
        help: The help text after its name.
    """

    default: Value
    allowed: tuple[Value, ...]
    help: str

    def read(self, text: str, where: str) -> Value:
        """Parse a value.

        Args:
            where: Name of the option, for the error.

        Raises:
            EncodeError: The value is not allowed.
        """
        if isinstance(self.default, str):
            if (self.allowed and text not in self.allowed) or not text:
                raise EncodeError(f"{where} is {text!r}; allowed are {', '.join(map(str, self.allowed)) or 'words'}")
            return text
        low, high = self.allowed
        kind = type(self.default)
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (float(low) <= value <= float(high)):
            sort = "a whole number" if kind is int else "a number"
            raise EncodeError(f"{where} is {text!r}; allowed is {sort} from {low} to {high}")
        return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of method, which terms refer to by its name.

    Attributes:
        is_vector: Whether ``quantize.quantize`` implements it.
        in_sums: Whether it may be a term of a sum.
    """

    help: str
    options: dict[str, Option]
    is_vector: bool = False
    in_sums: bool = False


_DIM = Option(4, (1, MAX_DIM), "weights a codebook entry")
_ENTRIES = Option(256, (1, MAX_ENTRIES), "entries of a codebook")
_ITERATIONS = Option(25, (0, 10_000), "rounds of k-means")
_ROWS = Option(0, (0, 1 << 40), "rows that share a codebook, 0 for all")
_SCALE = Option("none", ("none", "row"), "one scale for each row, or none")
_SHARE = Option("", (), "name of a codebook for all layers that name it")
_COMMON = {
    "axis": Option("rows", ("rows", "columns"), "the tensor's first axis as rows of the matrix, or as its columns"),
    "seed": Option(-1, (0, (1 << 63) - 1), "of the random start; else the file's"),
}

KINDS: dict[str, Kind] = {
    "raw": Kind("the bytes as they are", {}),
    "lossless": Kind("every bit kept, bytes of a kind compressed together", {}),
    "fine": Kind("a grid so fine that it is hardly felt", {}),
    "uniform": Kind("a uniform grid, entropy coded", {
        "step": Option(0.0, (0.0, 3e38), "distance of grid points; else the encoder's choice"),
        "bits": Option(0.0, (0.0, 16.0), "about so many bits a weight instead"),
    }, in_sums=True),
    "binary": Kind("the sign, times the mean magnitude", {
        "scale": Option("row", ("row", "column", "tensor", "none"), "what has a mean of its own; none for +1 and -1"),
        **_COMMON,
    }, is_vector=True, in_sums=True),
    "kmeans": Kind("the nearest of a few values", {
        "entries": Option(16, (1, MAX_ENTRIES), "values of a codebook"), "rows": _ROWS,
        "scale": Option("none", ("none", "row", "column"), "one scale for each row or column, or none"),
        "share": _SHARE, "iterations": Option(1000, (0, 1_000_000), "most rounds of k-means"), **_COMMON,
    }, is_vector=True, in_sums=True),
    "pq": Kind("product quantization: columns in segments, a codebook for each", {
        "dim": _DIM, "entries": _ENTRIES, "segments": Option(1, (1, 1 << 40), "neighbours that share a codebook"),
        "rows": _ROWS, "scale": _SCALE, "iterations": _ITERATIONS, **_COMMON,
    }, is_vector=True, in_sums=True),
    "vq": Kind("vector quantization: one codebook for all segments", {
        "dim": _DIM, "entries": _ENTRIES, "rows": _ROWS, "scale": _SCALE, "share": _SHARE, "iterations": _ITERATIONS,
        **_COMMON,
    }, is_vector=True, in_sums=True),
    "rq": Kind("residual quantization: codebooks for what earlier ones left", {
        "dim": Option(4, (0, MAX_DIM), "weights a codebook entry, 0 for a whole row"), "entries": _ENTRIES,
        "stages": Option(2, (1, MAX_STAGES), "codebooks one after another"),
        "shared": Option(1, (0, 1), "1: each serves all segments; 0: one for each segment"), "scale": _SCALE,
        "iterations": _ITERATIONS, **_COMMON,
    }, is_vector=True, in_sums=True),
    "svd": Kind("product of two thin matrices", {
        "rank": Option(0, (1, MAX_LOW_RANK), "columns of the first; else what bits allows"),
        "bits": Option(2.0, (0.0, 64.0), "bits a weight, before entropy coding"),
        "factor_bits": Option(8, (2, 16), "bits of a factor's element"), **_COMMON,
    }, is_vector=True, in_sums=True),
}  # fmt: skip


def _help(kind: Kind) -> str:
    options = [f"{name} ({option.help}{'' if option.default in (0, 0.0, '', -1) else f'; {option.default}'})"
               for name, option in kind.options.items() if name not in _COMMON]  # fmt: skip
    return kind.help + (": " + ", ".join(options) if options else "")


# One line each, for help texts.
METHODS: dict[str, str] = {name: _help(kind) for name, kind in KINDS.items()}
COMMON_OPTIONS: dict[str, str] = {name: option.help for name, option in _COMMON.items()}


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a method.

    Attributes:
        name: A key of ``KINDS``.
        given: The options that differ from their defaults, in the order of ``KINDS``.
    """

    name: str
    given: tuple[tuple[str, Value], ...] = ()

    def __getitem__(self, option: str) -> Value:
        default = KINDS[self.name].options[option].default
        return dict(self.given).get(option, default)

    def integer(self, option: str) -> int:
        """The value of an integer option."""
        return int(self[option])

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}".replace("e+", "e") for name, value in self.given)
        return f"{self.name}:{options}" if options else self.name


@dataclass(frozen=True, slots=True)
class Method:
    """How a tensor is coded. ``str`` gives its canonical text, which ``parse_method`` can read."""

    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        """Name of the only term, or names joined by ``+``."""
        return "+".join(term.name for term in self.terms)

    def get(self, option: str) -> Value | None:
        """The value of the first term's option; None if it has no such option."""
        return self.terms[0][option] if option in KINDS[self.terms[0].name].options else None

    @property
    def seed(self) -> int | None:
        """Seed of the random start; None if the method does not set it."""
        seed = self.get("seed")
        return None if seed is None or int(seed) < 0 else int(seed)

    @property
    def by_columns(self) -> bool:
        """Whether the tensor's first axis becomes the columns of the matrix."""
        return self.get("axis") == "columns"

    @property
    def is_vector(self) -> bool:
        """Whether ``quantize.quantize`` implements the method."""
        return len(self.terms) > 1 or KINDS[self.terms[0].name].is_vector

    def __str__(self) -> str:
        return "+".join(map(str, self.terms))


def parse_method(text: str) -> Method:
    """Parse a method, such as ``"svd:rank=16+pq:dim=4,entries=256"``.

    Raises:
        EncodeError: A name or an option is unknown, or a value is not allowed. The message says what is allowed.
    """
    terms = tuple(_parse_term(term.strip(), text) for term in re.split(r"\+(?!\d)", text))  # not at the + of 1e+3
    if len(terms) > 1:
        for term in terms:
            if not KINDS[term.name].in_sums:
                raise EncodeError(f"method {text!r}: {term.name} cannot be part of a sum; these can:"
                                  f" {', '.join(name for name, kind in KINDS.items() if kind.in_sums)}")  # fmt: skip
        if terms[0].name == "uniform":
            raise EncodeError(f"method {text!r}: uniform cannot be the first of a sum")
        for term in terms[1:]:
            for name, _ in term.given:
                if name in ("axis", "share", "seed"):
                    raise EncodeError(f"method {text!r}: option {name!r} is one of the first term only")
            if term.name == "uniform" and not (term["step"] or term["bits"]):
                raise EncodeError(f"method {text!r}: uniform needs step or bits in a sum")
    n_stages = sum(term.integer("stages") if term.name == "rq" else 1 for term in terms)
    if n_stages > MAX_STAGES:
        raise EncodeError(f"method {text!r} has {n_stages} stages; a tensor can have {MAX_STAGES}")
    return Method(terms)


def _parse_term(text: str, whole: str) -> Term:
    name, _, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise EncodeError(f"method {whole!r}: there is no method {name!r}{hint} known are {', '.join(KINDS)}")
    given: dict[str, Value] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in kind.options:
            known = ", ".join(kind.options) or "none"
            near = difflib.get_close_matches(key, kind.options, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise EncodeError(f"method {whole!r}: {name} has no option {key!r}{hint} its options: {known}")
        if not equals:
            raise EncodeError(f"method {whole!r}: option {key!r} has no value, as in {key}={kind.options[key].default}")
        if key in given:
            raise EncodeError(f"method {whole!r}: option {key!r} is given twice")
        given[key] = kind.options[key].read(value, f"method {whole!r}: option {key!r}")
    return Term(name, tuple((key, given[key]) for key, option in kind.options.items()
                            if key in given and given[key] != option.default))  # fmt: skip


class Match(NamedTuple):
    """The method of a recipe for a tensor.

    Attributes:
        method: None if the encoder chooses.
        is_wildcard: Whether a pattern or the default matched, and not the name itself.
    """

    method: Method | None
    is_wildcard: bool


class Recipe:
    """Methods for tensors, by patterns of their names.

    Args:
        layers: Methods by pattern (with ``*``, ``?`` and ``[…]``; case matters). The first pattern that matches is
            used, but a pattern that equals the name comes before all others.
        default: Method of tensors that no pattern matches; with None the encoder chooses.

    Raises:
        EncodeError: A method cannot be parsed.
    """

    def __init__(
        self, layers: Mapping[str, str | Method] | None = None, default: str | Method | None = None
    ) -> None:
        self._rules = {pattern: _as_method(method) for pattern, method in (layers or {}).items()}
        self.default = None if default is None else _as_method(default)

    @classmethod
    def parse(cls, rules: Iterable[str] = (), default: str | None = None) -> Recipe:
        """Parse a recipe from texts of the form ``PATTERN=METHOD``.

        Args:
            rules: The texts, such as ``"fc*=pq:dim=4"``. The first pattern that matches a name counts.
            default: Method of tensors that no pattern matches; None leaves them to the encoder.

        Raises:
            EncodeError: A text is not of this form, two have the same pattern, or a method cannot be parsed.
        """
        layers: dict[str, str | Method] = {}
        for rule in rules:
            pattern, equals, method = rule.partition("=")
            if not equals or not pattern:
                raise EncodeError(f"rule {rule!r} is not of the form PATTERN=METHOD, as in 'fc*=pq:dim=4'")
            if pattern in layers:
                raise EncodeError(f"pattern {pattern!r} has two methods: {layers[pattern]} and {method}")
            layers[pattern] = _as_method(method)
        return cls(layers, default)

    def methods(self) -> list[Method]:
        """All methods of the recipe."""
        return [*self._rules.values(), *([self.default] if self.default is not None else [])]

    def method_for(self, name: str) -> Match:
        """The method of a tensor, and whether a pattern or the default has matched."""
        if name in self._rules:
            return Match(self._rules[name], False)
        for pattern, method in self._rules.items():
            if fnmatchcase(name, pattern):
                return Match(method, True)
        return Match(self.default, True)

    def names(self, name: str) -> bool:
        """Whether a pattern matches a tensor."""
        return name in self._rules or any(fnmatchcase(name, pattern) for pattern in self._rules)

    def unused(self, names: Iterable[str]) -> list[str]:
        """Patterns that are used for none of these names, such as misspelt ones."""
        used = set()
        for name in names:
            if name in self._rules:
                used.add(name)
            else:
                used.update([next((p for p in self._rules if fnmatchcase(name, p)), "")])
        return [pattern for pattern in self._rules if pattern not in used]

    def __repr__(self) -> str:
        layers = {pattern: str(method) for pattern, method in self._rules.items()}
        return f"Recipe({layers!r}, default={None if self.default is None else str(self.default)!r})"


def _as_method(method: str | Method) -> Method:
    return method if isinstance(method, Method) else parse_method(method)


def as_recipe(recipe: Recipe | Mapping[str, str | Method] | str | None) -> Recipe | None:
    """A recipe from a mapping, from the text of a method for all tensors, or from a recipe; None stays None."""
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    return Recipe({}, default=recipe) if isinstance(recipe, str) else Recipe(recipe)
