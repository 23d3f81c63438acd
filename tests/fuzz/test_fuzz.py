"""A slice of the fuzzing: some files with fixed seeds, and the oracle itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minidecoder
import numpy as np
import pytest
from examples import some_of
from vqm_attacks import many_tensors
from vqmbuilder import column, file, layr
from vqmtensors import DTYPES, alias, raw

from fuzz import decoders
from fuzz.comparison import disagreements, steps_of
from fuzz.frames import odd_frame
from fuzz.valid_files import random_file
from fuzz.workers import Worker
from vqformat.format import zstd_frame

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="time and memory are read in /proc")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[decoders.Campaign]:
    found = decoders.decoders(tmp_path_factory.mktemp("fuzz"))
    workers = [Worker(name, decoder) for name, decoder in found.items()]
    yield decoders.Campaign(workers, None)
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("kind, count", some_of([("valid", 10), ("mutated", 40), ("valid", 30), ("mutated", 120)],
                                                [("valid", 10), ("mutated", 40)]))  # fmt: skip
def test_all_decoders_agree(campaign: decoders.Campaign, kind: str, count: int) -> None:
    decoders.run(campaign, kind, 0, iter(range(count)))

    assert campaign.findings == []


def with_index(field: int, values: list[int]) -> bytes:
    first = raw("a", "u8", [1], b"\7")
    return file(layr("", first, alias("b", first)), index={field: column(values)}).build()


# Files of which a decoder once gave more than a refusal, or less
FOUND = {
    "a target in the index of 2^63": with_index(9, [0, 2**63]),
    "a chunk in the index of 2^63": with_index(8, [1, 2**63]),
    "a size in the index of 2^63": with_index(7, [2**63, 1]),
    "a layer of many tensors": many_tensors(5000, rank=1, in_layer=5000),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_mended(campaign: decoders.Campaign, name: str) -> None:
    assert campaign.handle(name, FOUND[name]) == []


def test_a_file_follows_from_its_seed_and_number() -> None:
    assert decoders.valid(3, 5) == decoders.valid(3, 5)
    assert decoders.Mutated(3)(1000) == decoders.Mutated(3)(1000)


def test_random_files_have_all_stages_dtypes_and_layouts() -> None:
    seen: set[Any] = set()
    for i in range(150):
        for chunk in random_file(np.random.default_rng([1, i])).chunks:
            seen.add(chunk.type if chunk.type.isupper() else "ancillary")
            for item in chunk.tensors:
                seen |= {item.dtype, ("rank", len(item.shape)), ("empty", 0 in item.shape)}
                if len(item.record) == 2:
                    seen.add("alias")
                    continue
                *_, layout, stages = item.record
                seen |= {("stage", stage[0]) for stage in stages} | {("stages", min(len(stages), 3))}
                seen |= {("codebook source", stage[3][0]) for stage in stages if stage[0] == 1}
                seen |= {("trellis source", stage[1][0]) for stage in stages if stage[0] == 4}
                seen |= {("frame", section.is_zstd) for section in item.sections}
                if layout is not None:
                    axes, _, order, rows, columns = layout
                    seen |= {("axes", axes is None), ("order", order), ("blocks", rows > 0, columns > 0)}

    wanted = {b"META", b"BOOK", b"FREQ", b"LAYR", "ancillary", "alias", ("rank", 0), ("rank", 32), ("empty", True),
              ("axes", False), ("blocks", True, False), ("blocks", True, True), ("frame", True), *DTYPES,
              *(("stage", i) for i in (0, 1, 2, 4, 5)), *(("codebook source", i) for i in (0, 1, 2, 4)),
              *(("trellis source", i) for i in (0, 1, 5)), *(("order", i) for i in range(4)),
              *(("stages", i) for i in range(4))}  # fmt: skip
    assert wanted - seen == set()


@pytest.mark.parametrize("seed", range(40))
def test_odd_frames_are_valid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytes(rng.integers(0, 3, int(rng.integers(0, 3000))).astype(np.uint8)) + bytes(int(rng.integers(400)))

    assert zstd_frame.decompress(odd_frame(data, rng), len(data), "a section") == data


def test_random_files_hold_what_is_expected() -> None:
    """Without workers: this runs everywhere."""
    data, expected = decoders.valid(7, 7)

    assert minidecoder.described(minidecoder.decode(io.BytesIO(data))) == expected


def test_refusals_of_one_step_are_alike_and_others_are_not() -> None:
    def of(clause: str, error: str) -> dict[str, Any]:
        return {"error": error, "clause": clause}

    both = frozenset({"a", "b"})
    assert "11" in steps_of("TEN-003") and "11" in steps_of("TRL-005") and "sections" in steps_of("TRL-004")
    assert not disagreements({"a": of("TEN-003", "limit"), "b": of("MET-008", "format")}, both)
    assert disagreements({"a": of("CHK-007", "checksum"), "b": of("MET-008", "format")}, both)
    assert disagreements({"a": of("MET-008", "format"), "b": {"tensors": []}}, both)


def test_a_worker_that_dies_is_a_finding_and_is_started_again() -> None:
    import sys

    from fuzz.workers import Decoder

    program = "import sys; n = sys.stdin.buffer.read(5)[4]; n or sys.exit(3); print('{}', flush=True); sys.stdin.read()"
    worker = Worker("a", Decoder((sys.executable, "-c", program), ("a",), frozenset({"a"})))
    try:
        assert worker.decode(b"\1") == ({"a": {}}, [])
        worker.close()
        worker._start()
        found, faults = worker.decode(b"\0")
        assert not found and faults[0].startswith("a died: exit status 3")
        assert worker.decode(b"\1") == ({"a": {}}, [])
    finally:
        worker.close()
