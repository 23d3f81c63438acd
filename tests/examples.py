"""How many examples of a property are tried: few by default, many more in the exhaustive runs of ``.ci/run``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

UNIT = 50  # what the numbers of tests count against
BRIEF = 20
EXHAUSTIVE = 200


def register_profiles() -> None:
    """Profiles for ``--hypothesis-profile``. In none of them does a test depend on how busy the machine is."""
    no_clock: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    # The same examples each time: a gate that looks for new ones refuses at random. --hypothesis-seed asks for others
    settings.register_profile("brief", max_examples=BRIEF, derandomize=True, **no_clock)
    settings.register_profile("exhaustive", max_examples=EXHAUSTIVE, derandomize=True, **no_clock)


def examples(n: int, *, may_share_fixtures: bool = False) -> settings:
    """More or fewer examples than other properties have.

    Args:
        n: So many where others have ``UNIT``.
        may_share_fixtures: Whether examples may find what those before them left in the fixtures of their test.
    """
    suppressed = list(settings.default.suppress_health_check)
    if may_share_fixtures:
        suppressed.append(HealthCheck.function_scoped_fixture)
    n_examples = max(n * settings.default.max_examples // UNIT, 1)
    return settings(max_examples=n_examples, suppress_health_check=suppressed)


def some_of(values: Iterable[Any], by_default: Collection[Any]) -> list[Any]:
    """Parameters of a test; those that are not named are left to the exhaustive runs."""
    return [value if value in by_default else
            pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive)
            for value in values]  # fmt: skip
