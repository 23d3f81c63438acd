"""The fixtures notice each fault of a decoder, but for those that tests/surviving_mutants.json explains."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("resource")  # what a mutant may allocate is bounded


def run(*options: str) -> tuple[int, int]:
    """How many mutants there are, and survive. They run in a process of their own, whose memory is bounded."""
    script = ROOT / "tests" / "mutate_minidecoder.py"
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.splitlines()[-1].split()  # "24 mutants, 2 survive, 5 s"
    return int(words[0]), int(words[2])


def test_fixtures_notice_a_sample_of_faults() -> None:
    n_mutants, _ = run("--every", "89", "--processes", "1")

    assert n_mutants > 20


@pytest.mark.exhaustive
def test_fixtures_notice_every_fault_but_those_listed() -> None:
    n_mutants, n_survivors = run()

    assert n_survivors <= 0.05 * n_mutants
