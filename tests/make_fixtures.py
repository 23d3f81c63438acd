"""Writes fixtures/: the conformance suite of SPEC.md, from the cases in fixture_cases/.

    python tests/make_fixtures.py              write what is missing; never change a file that is there
    python tests/make_fixtures.py --overwrite  write everything, or after it only the files that are named
    python tests/make_fixtures.py --check      write nothing; fail if what the suite expects would change

Fixtures are frozen. A few hold frames made by libzstd, whose bytes may differ with another version of it: a file
that would be rebuilt with other bytes is only named, while the expected results (the manifest without ``sha256`` of
the files) must agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgpack
from fixture_cases import (
    Case,
    bad_containers,
    bad_exact,
    bad_floats,
    bad_freqs,
    bad_metadata,
    bad_orders,
    bad_payloads,
    bad_records,
    bad_sections,
    bad_sparse,
    bad_stages,
    bad_sums,
    bad_tensors,
    bad_transforms,
    bad_trellises,
    bases,
    codebooks,
    containers,
    edges,
    exact,
    floats,
    freqs,
    raws,
    sparses,
    sums,
    tiles,
    transforms,
    trellises,
    views,
    worked,
)
from fixture_cases.known import STANDS_FOR
from fixture_cases.levels import level_of
from vqmbuilder import File

VALID = (bases, containers, exact, raws, sparses, codebooks, floats, views, sums, edges, freqs, trellises, tiles,
         transforms, worked)
INVALID = (bad_containers, bad_sections, bad_metadata, bad_exact, bad_tensors, bad_records, bad_stages, bad_sparse,
           bad_floats, bad_sums, bad_freqs, bad_trellises, bad_payloads, bad_transforms, bad_orders)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def tagged(value: Any) -> Any:
    """A metadata value for JSON: bins as {"bin": hex}, integers that binary64 may not hold as {"int": decimal}."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, int) and abs(value) > 2**53:
        return {"int": str(value)}
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tagged(item) for item in value]
    return value


def manifest_entry(case: Case) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": case.path, "comment": case.comment, "clauses": sorted(case.clauses)}
    entry["level"] = level_of(case.data, case.clauses)
    if case.path in STANDS_FOR:
        entry["stands_for"] = STANDS_FOR[case.path]
    entry["sha256"] = hashlib.sha256(case.data).hexdigest()
    if case.file is None:
        entry["error"] = case.error
        return entry
    return entry | contents(case.file)


def contents(file: File) -> dict[str, Any]:
    """What a decoder must find in a valid file."""
    generator, metadata = msgpack.unpackb(file.chunks[0].meta, raw=False)
    layers = [chunk for chunk in file.chunks if chunk.type == b"LAYR"]
    tensors = [
        {
            "name": tensor.name,
            "layer": i,
            "dtype": tensor.dtype,
            "shape": tagged(list(tensor.shape)),
            "sha256": hashlib.sha256(tensor.expected).hexdigest(),
        }
        for i, chunk in enumerate(layers)
        for tensor in chunk.tensors
    ]
    names = [msgpack.unpackb(chunk.meta, raw=False)[0] for chunk in layers]
    return {"generator": generator, "metadata": tagged(metadata), "layers": names, "tensors": tensors}


def dumps(manifest: list[dict[str, Any]]) -> str:
    """JSON with a line for each field, and for each tensor."""
    lines = []
    for entry in manifest:
        fields = []
        for key, value in entry.items():
            if key == "tensors" and value:
                rows = ",\n".join(f"      {json.dumps(tensor)}" for tensor in value)
                fields.append(f'    "tensors": [\n{rows}\n    ]')
            else:
                fields.append(f'    "{key}": {json.dumps(value)}')
        lines.append("  {\n" + ",\n".join(fields) + "\n  }")
    return "[\n" + ",\n".join(lines) + "\n]\n"


def load_cases() -> list[Case]:
    cases = [case for module in (*VALID, *INVALID) for case in module.cases()]
    cases.sort(key=lambda case: (case.error is not None, case.path))
    assert len({case.path for case in cases}) == len(cases), "two cases of one name"
    return cases


def write(cases: list[Case], *, overwrite: list[str] | None) -> int:
    kept, manifest = [], []
    for case in cases:
        path, entry = FIXTURES / case.path, manifest_entry(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite == [] or case.path in (overwrite or ()) or not path.exists():
            path.write_bytes(case.data)
        elif path.read_bytes() != case.data:
            kept.append(case.path)
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.append(entry)
    (FIXTURES / "manifest.json").write_text(dumps(manifest))
    for name in kept:
        print(f"kept {name}: would be rebuilt with other bytes (--overwrite to replace)")
    stray = _stray(cases)
    for name in stray:
        print(f"not of the suite: {name}")
    print(f"{len(cases)} files, {sum(len(case.data) for case in cases)} bytes")
    return 1 if stray else 0


def check(cases: list[Case]) -> int:
    frozen = {entry["file"]: entry for entry in json.loads((FIXTURES / "manifest.json").read_text())}
    failures = [f"not of the suite: {name}" for name in _stray(cases)]
    failures += [f"in the manifest only: {name}" for name in sorted(set(frozen) - {case.path for case in cases})]
    for case in cases:
        new, old = manifest_entry(case), frozen.get(case.path)
        path = FIXTURES / case.path
        if old is None or not path.exists():
            failures.append(f"missing: {case.path}")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != old["sha256"]:
            failures.append(f"{case.path}: not the file of the manifest")
        if {**old, "sha256": ""} != {**new, "sha256": ""}:
            failures.append(f"{case.path}: the expectation would change")
        if path.read_bytes() != case.data:
            print(f"note: {case.path} would be rebuilt with other bytes")
    for line in failures:
        print(line)
    return 1 if failures else 0


def _stray(cases: list[Case]) -> list[str]:
    known = {case.path for case in cases}
    names = [f"{folder}/{path.name}" for folder in ("valid", "invalid") for path in (FIXTURES / folder).glob("*")]
    return sorted(name for name in names if name not in known)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the conformance fixtures.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="write nothing; fail if an expectation would change")
    mode.add_argument("--overwrite", nargs="*", metavar="FILE", help="replace files that are there, or those named")
    arguments = parser.parse_args()
    cases = load_cases()
    return check(cases) if arguments.check else write(cases, overwrite=arguments.overwrite)


if __name__ == "__main__":
    sys.exit(main())
