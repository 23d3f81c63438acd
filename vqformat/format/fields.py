"""The fields of a metadata record, read one by one with their types checked (MET-008)."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import FormatError, LimitError, UnsupportedError
from .dtypes import BY_NAME, TABLE_DTYPES, by_id


class Fields:
    """The fields of an array of metadata, taken one by one. Each error names the record and the field (MET-008).

    Args:
        values: The array.
        n_fields: The number of fields that it must have.
        where: Name of the record, for error texts.
    """

    def __init__(self, values: Any, n_fields: int, where: str) -> None:
        self.where = where
        if not isinstance(values, list):
            self.fail(f"is {values!r:.80}, not an array", "MET-008")
        if len(values) != n_fields:
            self.fail(f"has {len(values)} fields, not {n_fields}", "MET-008")
        self._left = iter(values)

    def fail(self, message: str, clause: str, error: type[FormatError] = FormatError) -> NoReturn:
        raise error(f"{self.where}: {message}", clause=clause)

    def any(self) -> Any:
        """The next field, of any type."""
        return next(self._left)

    def integer(self, name: str, low: int, high: int | None, clause: str) -> int:
        """The next field, an integer of at least ``low``.

        Args:
            high: A larger integer is a LimitError; None for no limit.
            clause: Id of the rule that sets ``low`` and ``high``.
        """
        value = next(self._left)
        if type(value) is not int:
            self.fail(f"{name} is {value!r:.80}, not an integer", "MET-008")
        if value < low:
            self.fail(f"{name} is {value}; at least {low} is allowed", clause)
        if high is not None and value > high:
            self.fail(f"{name} is {value}; at most {high} is allowed", clause, LimitError)
        return value

    def array(self, name: str) -> list[Any]:
        value = self.any()
        if not isinstance(value, list):
            self.fail(f"{name} is {value!r:.80}, not an array", "MET-008")
        return value

    def bin(self, name: str) -> bytes:
        value = self.any()
        if not isinstance(value, bytes):
            self.fail(f"{name} is {value!r:.80}, not a bin", "MET-008")
        return value

    def string(self, name: str) -> str:
        value = self.any()
        if not isinstance(value, str):
            self.fail(f"{name} is {value!r:.80}, not a string", "MET-008")
        return value

    def table_dtype(self, name: str) -> str:
        id = self.integer(name, 0, None, "CBK-007")
        dtype = by_id(id).name if id < len(BY_NAME) else "?"
        if dtype not in TABLE_DTYPES:
            self.fail(f"{name} is dtype id {id}; f32, f16 and bf16 are allowed", "CBK-007", UnsupportedError)
        return dtype
