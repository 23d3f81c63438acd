"""Shows which fixture notices a fault: they are decoded by tests/minidecoder.py with one change.

    python tests/mutate_minidecoder.py               run every mutant; fail if one survives that is not in the list
    python tests/mutate_minidecoder.py --refusals    list the invalid fixtures that no change of one check accepts

A mutant is noticed when a fixture gives another class of error, another result, or an exception of Python. Those that
no fixture can notice are in surviving_mutants.json, each with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import queue
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mutants import HELPERS, NAMES, Mutant, mutants

TESTS = Path(__file__).resolve().parent
FIXTURES = TESTS.parent / "fixtures"
SURVIVORS: dict[str, str] = json.loads((TESTS / "surviving_mutants.json").read_text())

MEMORY_NBYTES = 3 << 30  # a mutant without a limit may ask for any amount
COUNTING = ("n_value", "MAX_VALUES", "Meta.__init__")
SLOW = ("met-007-values.vqm", "met-007-most.vqm")  # they take seconds, and only show MAX_VALUES

Report = Callable[[str, Any], Any]


class TookTooLong(BaseException):
    """A mutant that does not end."""


def _alarm(*_: object) -> None:
    raise TookTooLong


def outcome(names: dict[str, Any], data: bytes, seconds: float) -> str:
    """What a decoder makes of a file: "valid" and a digest of what it holds, a class of error, or a fault."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        model = names["decode"](io.BytesIO(data))
        held = repr((model.generator, model.metadata, model.layers, [
            (name, dtype, shape, hashlib.sha256(values).hexdigest(), layer)
            for name, (dtype, shape, values, layer) in model.tensors.items()
        ]))  # fmt: skip
        return "valid " + hashlib.sha256(held.encode("utf-8", "surrogatepass")).hexdigest()
    except TookTooLong:
        return "too slow"
    except Exception as err:
        if isinstance(err, names["Refused"]):
            return str(err.error_class)
        return f"exception {type(err).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Suite:
    """The fixtures, with what the decoder as it is makes of them."""

    def __init__(self, source: str) -> None:
        self.source, self.code = source, compile(source, "minidecoder", "exec")
        NAMES.update({helper.__name__: helper for helper in HELPERS})
        exec(self.code, NAMES)
        self.data = {path.name: path.read_bytes() for path in sorted(FIXTURES.glob("*valid/*.vqm"))}
        self.expected, self.seconds = dict[str, str](), dict[str, float]()
        self.reached = dict[str, set[int]]()  # the functions that a file needs, by their first lines
        for name, data in self.data.items():
            if name in SLOW:
                continue
            start = time.process_time()
            self.expected[name] = outcome(NAMES, data, 60)
            self.seconds[name] = time.process_time() - start
            lines = self.reached[name] = {0}
            sys.settrace(lambda frame, *_, add=lines.add: add(frame.f_code.co_firstlineno))  # of each call
            outcome(NAMES, data, 60)
            sys.settrace(None)
        for entry in json.loads((FIXTURES / "manifest.json").read_text()):
            if (name := Path(entry["file"]).name) in SLOW:
                self.expected[name], self.seconds[name], self.reached[name] = entry["error"], 1, set()
        self.solved = set[str]()  # invalid fixtures that some mutant accepts
        self.orders = dict[int, list[str]]()  # for each function what to decode, in this order

    def order(self, line: int) -> list[str]:
        """The fixtures that reach a function: first those that noticed a fault of it."""
        if line not in self.orders:
            reached = [name for name in self.data if line in self.reached[name]]
            # A file that needs few functions tells more about them
            reached.sort(key=lambda name: len(self.reached[name]))
            self.orders[line] = reached
        return self.orders[line]

    def notices(self, mutant: Mutant) -> str | None:
        """The first fixture that gives another outcome, and what it gives."""
        try:
            names = self._names(mutant)
        except Exception as err:
            return f"(import) exception {type(err).__name__}"
        order = self.order(mutant.line)
        for name in (*order, *(SLOW if any(word in mutant.name for word in COUNTING) else ())):
            found = outcome(names, self.data[name], 0.5 + 20 * self.seconds[name])
            if found != self.expected[name]:
                if name not in SLOW:  # what noticed one mutant is likely to notice the next
                    order.remove(name)
                    order.insert(0, name)
                return f"{name}: {found}"
        return None

    def accepted(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """The invalid fixtures that a decoder without a check accepts, and those for which it gives another class."""
        if not mutant.is_check:
            return [], []
        try:
            names = self._names(mutant)
        except Exception:
            return [], []
        accepted, noticed = [], []
        for name in self.order(mutant.line):
            if not self.expected[name].startswith("valid") and name not in self.solved:
                found = outcome(names, self.data[name], 0.5 + 20 * self.seconds[name])
                if found.startswith("valid"):
                    accepted.append(name)
                    self.solved.add(name)
                elif found != self.expected[name]:
                    noticed.append(name)
        return accepted, noticed

    def _names(self, mutant: Mutant) -> dict[str, Any]:
        names = {helper.__name__: helper for helper in HELPERS}
        exec(self.code, names)
        exec(mutant.compile(), names)
        return names


def _worker(suite: Suite, what: str, wanted: Callable[[int, str], bool], send: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_NBYTES, MEMORY_NBYTES))
    signal.signal(signal.SIGPROF, _alarm)
    for i, mutant in enumerate(mutants(suite.source)):
        if wanted(i, mutant.name):
            send.put((i, mutant.name, getattr(suite, what)(mutant)))
    send.put(None)


def run(
    what: str, *, every: int = 1, only: str = "", n_processes: int = 2, report: Report | None = None
) -> dict[str, Any]:
    """The mutants and what ``Suite.notices`` or ``Suite.accepted`` says of each.

    Args:
        what: The method.
        every: Run one mutant out of so many.
        only: Run those whose name has this in it, a regular expression.
        n_processes: How many run at once.
        report: Is told each result when it comes.
    """
    def wanted(part: int) -> Callable[[int, str], bool]:
        return lambda i, name: i // every % n_processes == part and i % every == 0 and bool(re.search(only, name))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    signal.signal(signal.SIGPROF, _alarm)
    suite = Suite((TESTS / "minidecoder.py").read_text())
    workers = [
        context.Process(target=_worker, args=(suite, what, wanted(part), results))
        for part in range(n_processes)
    ]
    for worker in workers:
        worker.start()
    found, left = [], n_processes
    while left:
        try:
            item = results.get(timeout=60)
        except queue.Empty:
            assert all(worker.exitcode in (None, 0) for worker in workers), "a process was killed"
            continue
        left -= item is None
        if item is not None:
            found.append(item)
            if report is not None:
                report(item[1], item[2])
    for worker in workers:
        worker.join()
    return {name: result for _, name, result in sorted(found, key=lambda item: item[0])}


def unlisted(found: dict[str, str | None]) -> list[str]:
    """The mutants that survive and are not in the list."""
    return [name for name, notice in found.items() if notice is None and name not in SURVIVORS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show which fixture notices a fault of a decoder.")
    parser.add_argument("--refusals", action="store_true", help="list the files that no lack of a check lets pass")
    parser.add_argument("--only", default="", metavar="REGEX", help="run those whose name matches")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run one mutant out of N")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    if options.refusals:
        only = options.only or "^(?!need:|integer: .*rule|kind_of:)"  # without what turns off many checks at once
        results = run("accepted", every=options.every, only=only, n_processes=options.processes)
        accepted = {name for names, _ in results.values() for name in names}
        noticed = {name for _, names in results.values() for name in names}
        for path in sorted((FIXTURES / "invalid").glob("*.vqm")):
            if path.name not in accepted:
                print(f"{'another class only' if path.name in noticed else 'always refused alike'}: {path.name}")
        return 0
    found = run("notices", every=options.every, only=options.only, n_processes=options.processes,
                report=lambda name, notice: print(f"{notice or 'SURVIVES'}\t{name}"))  # fmt: skip
    survivors = [name for name, notice in found.items() if notice is None]
    for name in unlisted(found):
        print(f"unlisted survivor: {name}")
    is_part = options.only or options.every > 1
    gone = [name for name in SURVIVORS if name not in survivors and (name in found or not is_part)]
    for name in gone:
        print(f"listed, but noticed or gone: {name}")
    print(f"{len(found)} mutants, {len(survivors)} survive, {time.perf_counter() - start:.0f} s")
    return 1 if unlisted(found) or gone else 0


if __name__ == "__main__":
    sys.exit(main())
