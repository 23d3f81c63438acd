"""Parsers of ``vqm``: how wrong usage and help are shown, and the types of arguments."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from ..sizes import parse_size
from ..text import one_line
from .text import message

WRONG_USAGE = 2


class UsageError(Exception):
    """Wrong arguments that were found after parsing. The exit code is 2."""


class Parser(argparse.ArgumentParser):
    """Tells wrong usage in one line, and where the help is in another."""

    def error(self, text: str) -> NoReturn:
        message("error", one_line(text))
        if sys.stderr is not None:
            print(f"see {self.prog} --help", file=sys.stderr)
        sys.exit(WRONG_USAGE)


class VerbParser(Parser):
    """Allows options between positional arguments: ``vqm extract FILE -o OUT NAME``."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_intermixing:  # called by parse_known_intermixed_args
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:  # told here, because the parser above does not know the verb
            option = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            self.error(f"there is no option {option}{f'; did you mean {near[0]}?' if near else ''}"
                       if option.startswith("-") else f"{unknown[0]!r} is one argument too many")  # fmt: skip
        return found, unknown


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal. Lines that begin with spaces stay lines, with a hanging indent."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in re.sub(r"(?<=\S)\n(?=\S)", " ", text.strip("\n")).split("\n"):
            n_spaces = len(line) - len(line.lstrip())
            column = re.match(r"\s+\S+\s\s+", line)  # a word, and what is said of it
            hanging = len(column.group()) if column else 2 * n_spaces
            lines.append(textwrap.fill(line, width, subsequent_indent=" " * hanging, break_on_hyphens=False))
        return "\n".join(indent + line for line in lines)


def spelled_out(argv: Sequence[str], parser: Parser, verbs: Sequence[str]) -> list[str]:
    """The arguments, with help for an empty line and for ``help VERB``. A verb that there is not ends the process."""
    if not argv or set(argv) == {"help"}:
        return ["--help"]
    first, *rest = argv
    if first == "help":
        first, rest = rest[0], ["--help"]
    if first not in verbs and not first.startswith("-"):
        near = difflib.get_close_matches(first, verbs, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the verbs are {', '.join(verbs)}"
        if os.path.exists(first):
            hint = f"; to look into the file: vqm info {first}"
        parser.error(f"there is no verb {first!r}{hint}")
    return [first, *rest]


def given(text: str) -> str:
    """Accept any text that is not empty, as an unset shell variable is."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def place(text: str) -> str:
    """A name in a Python file: ``FILE.py:NAME``."""
    file, _, name = text.rpartition(":")
    if not (file.lower().endswith(".py") and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE.py:NAME, such as model.py:make_model")
    return text


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def nbytes(text: str) -> int:
    """A number of bytes, with or without a unit."""
    try:
        return parse_size(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def positive_integer(text: str) -> int:
    """An integer above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def seed(text: str) -> int:
    """An integer of 32 bits."""
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 4294967295")
    return int(text)
