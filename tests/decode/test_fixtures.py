"""The fixtures, read by the reference decoder and by the decoder that was written from SPEC.md alone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from typing import Any

import minidecoder
import numpy as np
import pytest
from conftest import FIXTURES, ROOT

import vqformat
from vqformat import VqmError, safe_open
from vqformat.format import zstd_frame
from vqformat.format.bits import pack_nibbles
from vqformat.format.dtypes import of_array

MANIFEST: list[dict[str, Any]] = json.loads((FIXTURES / "manifest.json").read_text())
VALID = [pytest.param(case, id=case["file"]) for case in MANIFEST if "error" not in case]
INVALID = [pytest.param(case, id=case["file"]) for case in MANIFEST if "error" in case]
# A million values take the mini decoder ten seconds
SLOW = {"invalid/met-007-most.vqm", "invalid/met-007-values.vqm"}
FOR_THE_MINI_DECODER = [
    pytest.param(case, id=case["file"], marks=[pytest.mark.exhaustive] * (case["file"] in SLOW))
    for case in MANIFEST if "error" in case
]  # fmt: skip
# These need a section of 4 KiB.
LARGE = {"valid/section-aligned.vqm", "valid/section-aligned-by-chance.vqm", "valid/zstd-4096-not-aligned.vqm",
         "valid/ancillary-aligned.vqm", "invalid/sec-002-no-padding.vqm", "invalid/sec-003-padding.vqm",
         "invalid/sec-003-padding-ancillary.vqm"}  # fmt: skip


def data_of(case: dict[str, Any]) -> bytes:
    return (FIXTURES / case["file"]).read_bytes()


def decoded_sha256(array: np.ndarray[Any, Any]) -> str:
    data = pack_nibbles(array.reshape(-1).view(np.uint8)) if of_array(array, "").bits == 4 else array.tobytes()
    return hashlib.sha256(data).hexdigest()


def described(tensors: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": of_array(array, name).name, "shape": tagged(list(array.shape)),
         "sha256": decoded_sha256(array)}
        for name, array in tensors.items()
    ]  # fmt: skip


def without_layers(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in tensor.items() if key != "layer"} for tensor in case["tensors"]]


def tagged(value: Any) -> Any:
    """A value as the manifest has it."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    return {"int": str(value)} if isinstance(value, int) and abs(value) > 2**53 else value


def test_files_are_those_of_the_manifest() -> None:
    assert [case["file"] for case in MANIFEST if hashlib.sha256(data_of(case)).hexdigest() != case["sha256"]] == []


@pytest.mark.parametrize("case", VALID)
def test_valid_files_decode_to_the_expected_bytes(case: dict[str, Any]) -> None:
    data = data_of(case)
    with vqformat.stream(io.BytesIO(data)) as layers:
        found = [(layer.name, sorted([*layer, *layer.aliases])) for layer in layers]

    assert described(vqformat.load(data)) == without_layers(case)
    assert found == [
        (name, sorted(tensor["name"] for tensor in case["tensors"] if tensor["layer"] == i))
        for i, name in enumerate(case["layers"])
    ]
    vqformat.verify(io.BytesIO(data))


@pytest.mark.parametrize("case", VALID)
def test_valid_files_decode_by_the_index_too(case: dict[str, Any]) -> None:
    with safe_open(io.BytesIO(data_of(case))) as f:
        tensors = dict(f)
        assert tagged(f.metadata()) == case["metadata"]
        assert described(tensors) == without_layers(case)
        layers = [f.info(name).layer for name in f]
        for name, whole in tensors.items():
            for index in (slice(1, None), slice(0, 1), slice(None, None, -2)):
                if whole.ndim:
                    assert f.get_slice(name)[index].tobytes() == whole[index].tobytes()
    assert layers == [case["layers"][tensor["layer"]] for tensor in case["tensors"]]


@pytest.mark.parametrize("case", VALID)
def test_the_mini_decoder_agrees(case: dict[str, Any]) -> None:
    found = minidecoder.described(minidecoder.decode(io.BytesIO(data_of(case))))

    assert found == {key: case[key] for key in ("generator", "metadata", "layers", "tensors")}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_files_are_refused_with_the_expected_class(case: dict[str, Any]) -> None:
    data = data_of(case)
    with pytest.raises(VqmError) as caught:
        vqformat.verify(io.BytesIO(data))
    assert caught.value.error_class == case["error"], caught.value
    # A reader by index need not see all faults, but nothing else than a VqmError may come of them
    with contextlib.suppress(VqmError), safe_open(io.BytesIO(data)) as f:
        for name in f:
            f[name]


@pytest.mark.parametrize("case", FOR_THE_MINI_DECODER)
def test_the_mini_decoder_refuses_them_alike(case: dict[str, Any]) -> None:
    with pytest.raises(minidecoder.Refused) as caught:
        minidecoder.decode(io.BytesIO(data_of(case)))
    assert caught.value.error_class == case["error"], caught.value


def test_fixtures_are_small() -> None:
    sizes = {case["file"]: (FIXTURES / case["file"]).stat().st_size for case in MANIFEST}

    assert sum(sizes.values()) <= 375_000
    assert {name for name, size in sizes.items() if size > 2048} <= LARGE


def test_every_file_is_in_the_manifest() -> None:
    found = {f"{path.parent.name}/{path.name}" for path in FIXTURES.glob("*valid/*.vqm")}

    assert found == {case["file"] for case in MANIFEST}


@pytest.mark.parametrize("name, n_bytes", [("empty-model", 164), ("worked-codebook", 108), ("worked-trellis", 14)])
def test_the_worked_examples_of_the_spec_are_bytes_of_the_fixtures(name: str, n_bytes: int) -> None:
    text = (ROOT / "SPEC.md").read_text().split("## 21. Worked examples")[1]
    block = text[text.index(f"`fixtures/valid/{name}.vqm`") :].split("\n```\n")
    dump = next(part for part in block if re.match("[0-9a-f]{4}  ", part))
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", dump, re.MULTILINE)
    data = (FIXTURES / "valid" / f"{name}.vqm").read_bytes()

    position = first = int(lines[0][0], 16)
    for offset, shown in lines:
        assert int(offset, 16) == position
        assert bytes.fromhex(shown) == data[position : position + len(bytes.fromhex(shown))]
        position += len(bytes.fromhex(shown))
    assert position - first == n_bytes


def test_the_steps_of_the_worked_trellis_payload() -> None:
    """Each row of the table of SPEC 21.3 follows from the rows above it by the formulas of SPEC 12.2 and 12.3."""
    text = (ROOT / "SPEC.md").read_text().split("### 21.3")[1]
    lines = [line for line in text.splitlines() if re.match(r"\| \d, \d \|", line)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    frequencies, starts = ((240, 15, 1), (15, 239, 2)), ((0, 240, 255), (0, 15, 254))
    xs, states = [0x91AAF9, 0x123541], [0, 0]
    assert len(rows) == 6
    for row in rows:
        tile, s, q, x, slot, code = int(row[1]), int(row[2]), int(row[3]), int(row[4], 16), int(row[5]), int(row[6])
        assert (s, q, x, slot) == (states[tile], s & 1, xs[tile], x % 256)
        assert starts[q][code] <= slot < starts[q][code] + frequencies[q][code]
        x = frequencies[q][code] * (x >> 8) + slot - starts[q][code]
        assert x == int(row[7].split("= ")[1], 16)
        if x < 1 << 16:
            x = x << 16 | 0x80FF
            assert x == int(row[8], 16)
        xs[tile], states[tile] = x, s >> 1 ^ q * 5 ^ (code & 1) * 2
        assert (2 * (code - 1) + q) * 0.5 == float(row[-1].replace("−", "-"))
    assert xs == [1 << 16, 1 << 16]


def test_the_worked_frame_of_the_spec_is_one() -> None:
    lines = re.search(r"its header in bits:\n\n```\n(.*?)```", (ROOT / "SPEC.md").read_text(), re.DOTALL)
    assert lines is not None
    frame = "".join(re.findall(r"^((?:[0-9A-F]{2} ?)+) ", lines[1], re.MULTILINE))

    assert zstd_frame.decompress(bytes.fromhex(frame), 64, "the example") == bytes(64)


def test_every_rule_of_the_spec_is_enforced_in_code_and_shown_by_a_test() -> None:
    clauses = set(re.findall(r"\*\*\[([A-Z]{3}-\d{3})\]\*\*", (ROOT / "SPEC.md").read_text()))
    sources = "\n".join(path.read_text() for path in (ROOT / "vqformat").rglob("*.py") if path.parent.name != "cli")
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    shown = {clause for case in MANIFEST for clause in case["clauses"]}

    # Definitions, promises about future versions, advice
    statements = {c for c in clauses if c.startswith(("CNV", "EXT"))} | {"WRI-003", "REA-004", "REA-006"}
    assert sorted(c for c in clauses - statements if c not in sources and not _in_range(c, sources)) == []
    assert sorted(c for c in clauses - statements if c not in shown and c not in tests) == []


def _in_range(clause: str, text: str) -> bool:
    """Whether a text names the clause as part of a range, such as SEC-005..010."""
    prefix, number = clause.split("-")
    ranges = re.findall(rf"{prefix}-(\d{{3}})\.\.(\d{{3}})", text)
    return any(int(low) <= int(number) <= int(high) for low, high in ranges)
