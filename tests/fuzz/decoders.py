"""Gives files to all decoders and compares what they find; a command of its own.

    python tests/fuzz/decoders.py [--minutes M] [--count N] [--seed S] [--kind valid|mutated] [--sanitized]
                                  [--only NAMES] [--keep FOLDER] [--number N] [FILE ...]

Valid files are random ones that an encoder would hardly write; what they hold is known. Mutated ones are such files
and those of the conformance suite with faults in records, sections, frames and chunks, their checksums right. The
decoders are the reference (with NumPy and with kernels), the mini decoder, that in C and that in JavaScript, each in
several ways; a campaign of valid files takes these in turn. They must find the same bits, or refuse a file alike. An
exception that is no refusal, a crash, more than 2 s of CPU time for 100 kB in one way of reading, or more memory than
``vqm conformance`` allows is a finding, too. With ``--sanitized`` the decoder in C is compiled with ASan and UBSan.

A file is made from the seed and its number alone: ``--number`` makes it again. Each finding is a line, and with
``--keep`` a file. The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import make_fixtures
from vqmbuilder import File

from fuzz.comparison import disagreements, label
from fuzz.file_mutations import mutate
from fuzz.valid_files import random_file
from fuzz.workers import Found, Worker, decoders

EPOCH = 1000  # so many mutated files come from the same random files
PER_EPOCH = 30
MOST_LINES = 5  # for findings that differ only in names and numbers
MOST_NBYTES = 20_000  # of a file that is mutated


def valid(seed: int, number: int) -> tuple[bytes, Found]:
    """A valid file and what it holds."""
    model = random_file(np.random.default_rng([seed, number]))
    return model.build(), make_fixtures.contents(model)


@cache
def suite() -> list[File]:
    """The valid files of the conformance suite, as they were assembled."""
    cases = [case for module in make_fixtures.VALID for case in module.cases()]
    return [case.file for case in cases if case.file is not None and len(case.data) < MOST_NBYTES]


class Mutated:
    """Makes mutated files from those of the suite and from random ones."""

    def __init__(self, seed: int) -> None:
        self._seed, self._epoch = seed, -1
        self._random: list[File] = []

    def __call__(self, number: int) -> bytes | None:
        """None for one that cannot be written."""
        if number // EPOCH != self._epoch:
            self._epoch = number // EPOCH
            made = (random_file(np.random.default_rng([self._seed, self._epoch, i])) for i in range(PER_EPOCH))
            self._random = [model for model in made if len(model.build()) < MOST_NBYTES]
        rng = np.random.default_rng([self._seed, number, 1])
        bases = self._random if rng.integers(3) else suite()
        return mutate(bases[int(rng.integers(len(bases)))], suite(), rng)


class Campaign:
    """Workers, and what they have found so far."""

    def __init__(self, workers: list[Worker], keep: Path | None, *, out: Callable[[str], None] | None = None) -> None:
        self.workers, self.keep, self._out = workers, keep, out or partial(print, flush=True)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []
        self._began_s = time.process_time()
        self._kinds: collections.Counter[str] = collections.Counter()

    def handle(self, name: str, data: bytes, expected: Found | None = None) -> list[str]:
        """Decode a file in all ways; what is wrong."""
        found: dict[str, Found] = {}
        faults: list[str] = []
        for worker in self.workers:
            outcomes, its_faults = worker.decode(data)
            found |= outcomes
            faults += its_faults
        in_order = frozenset().union(*(worker.decoder.sequential for worker in self.workers))
        faults += disagreements(found, in_order, expected)
        self.outcomes[label(found)] += 1
        for fault in faults:
            kind = re.sub(r"'.*?'|\d+", "#", fault)[:200]
            self._kinds[kind] += 1
            if self._kinds[kind] <= MOST_LINES:
                self._out(f"FINDING {name}: {fault}"[:1500])
        if faults:
            self.findings.append(name)
            if self.keep is not None:
                self.keep.mkdir(parents=True, exist_ok=True)
                (self.keep / f"{name}.vqm").write_bytes(data)
                (self.keep / f"{name}.txt").write_text("\n".join(faults) + "\n")
        return faults

    def report(self, seconds: float) -> None:
        n = sum(self.outcomes.values())
        self._out(f"{n} files, {n / max(seconds, 1e-9):.1f} a second, {len(self.findings)} with findings")
        for worker in self.workers:
            self._out(f"  {worker.name:12} {worker.n_executions:8} executions, {worker.cpu_s:7.1f} s of CPU time")
        own_s = time.process_time() - self._began_s
        all_s = own_s + sum(worker.cpu_s for worker in self.workers)
        per_minute = 60 * n / max(all_s, 1e-9)
        self._out(f"  {per_minute:.0f} files a minute of CPU time; {own_s:.1f} s of it made and compared them")
        shown = ", ".join(f"{count} {what}" for what, count in self.outcomes.most_common(12))
        self._out(f"  outcomes ({len(self.outcomes)} kinds): {shown}")


def numbers(count: int | None, minutes: float | None) -> Iterator[int]:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    number = 0
    while (count is None or number < count) and (end is None or time.monotonic() < end):
        yield number
        number += 1


def run(campaign: Campaign, kind: str, seed: int, which: Iterator[int]) -> None:
    mutated = Mutated(seed) if kind == "mutated" else None
    for number in which:
        name = f"{kind}-{seed}-{number}"
        if mutated is None:
            campaign.handle(name, *valid(seed, number))
        elif (data := mutated(number)) is not None:
            campaign.handle(name, data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so many minutes (1, without --count)")
    parser.add_argument("--count", type=int, metavar="N", help="stop after so many files")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--kind", choices=["valid", "mutated"], default="valid")
    parser.add_argument("--sanitized", action="store_true", help="compile the decoder in C with ASan and UBSan")
    parser.add_argument("--only", default="reference,mini,c,javascript", metavar="NAMES", help="decoders, with commas")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files with findings")
    parser.add_argument("--number", type=int, metavar="N", help="only the file of this number")
    parser.add_argument("file", nargs="*", type=Path, metavar="FILE", help="only these files")
    args = parser.parse_args()
    minutes = args.minutes if args.minutes is not None or args.count is not None else 1.0
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        in_turn = args.kind == "valid" and args.number is None and not args.file
        found = decoders(Path(folder), sanitized=args.sanitized, in_turn=in_turn)
        workers = [Worker(name, found[name]) for name in args.only.split(",") if name in found]
        campaign = Campaign(workers, args.keep)
        began = time.monotonic()
        try:
            if args.file:
                for path in args.file:
                    campaign.handle(path.stem, path.read_bytes())
            else:
                which = numbers(args.count, minutes) if args.number is None else iter([args.number])
                run(campaign, args.kind, args.seed, which)
        finally:
            for worker in workers:
                worker.close()
        campaign.report(time.monotonic() - began)
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
