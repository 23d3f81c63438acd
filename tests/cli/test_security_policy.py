"""The threat model in ``.github/SECURITY.md``: each threat has a test that exists, and rules that SPEC.md has."""

from __future__ import annotations

import re
from pathlib import Path

from vqformat.format import limits
from vqformat.read import budget

ROOT = Path(__file__).parent.parent.parent
POLICY = (ROOT / ".github/SECURITY.md").read_text()
THREATS = re.findall(r"^\d+\. .*?(?=^\d+\. |^\[`tests)", POLICY, re.DOTALL | re.MULTILINE)


def test_each_threat_has_a_rule_and_a_test() -> None:
    assert [int(threat.split(".")[0]) for threat in THREATS] == list(range(1, len(THREATS) + 1))
    for threat in THREATS:
        assert (threat.count("Rule: "), threat.count("Test: ")) == (1, 1), threat


def test_the_tests_exist() -> None:
    named = re.findall(r"`(tests/\S+)::(test_\w+)`", POLICY)
    assert len(named) == len(THREATS)
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), name


def test_the_rules_are_in_the_spec() -> None:
    spec = (ROOT / "SPEC.md").read_text()
    for rule in re.findall(r"\b(?!SHA)[A-Z]{3}-\d{3}\b", POLICY):
        assert f"**[{rule}]**" in spec, rule


def test_the_defaults_are_those_of_the_code() -> None:
    assert f"| {limits.DEFAULT_MAX_TENSOR_NBYTES >> 30} GiB |" in POLICY
    assert f"{budget._MOST_TABLE_NBYTES >> 20} MiB for tables" in POLICY
    assert f"an index of more than {budget._FREE_NBYTES >> 20} MiB" in POLICY
    assert f"at\nmost {limits.MAX_NODES:,} values" in POLICY
