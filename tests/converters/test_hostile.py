"""Checkpoints that attack whoever opens them are refused in one clear error; their harmless siblings are converted."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")

from hostile import CASES, EITHER, GOOD, HARMLESS, REFUSED, SECRET, VICTIM, Case  # noqa: E402

import vqformat  # noqa: E402
from vqformat.converters import convert, hdf5, open_source  # noqa: E402
from vqformat.errors import ConversionError, VqmError  # noqa: E402

MEMORY_BOUND_MIB = 256
HANG_S = 0.25  # of silence, where a hang is a refusal like others
CONVERTED: set[tuple[str, bytes]] = set()
LONGEST_TEXT = 900

pytestmark = pytest.mark.usefixtures("forked_libhdf5")


@pytest.fixture(autouse=True)
def ends_a_hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is no hang is not taken for one on a busy machine; a hang in this process ends the tests."""
    monkeypatch.setattr(hdf5, "SILENCE_S", 300.0)
    faulthandler.dump_traceback_later(1200, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def params(cases: Iterable[Case]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def write(case: Case, folder: Path, is_hostile: bool) -> Path:
    if case.package != "h5py":
        pytest.importorskip(case.package)
    path = folder / f"x{case.suffix}"
    case.write(path, is_hostile)
    for file in (folder / "secret").glob("*"):
        os.utime(file, (0, file.stat().st_mtime))  # older than the last change: the next read is recorded
    return path


def load_all(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: np.array(tensor.load()) for tensor in source.tensors}


def has(arrays: dict[str, Any], wanted: Any) -> bool:
    return any(array.size == wanted.size and np.array_equal(array.ravel(), wanted.ravel()) for array in arrays.values())


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*"))


def secrets_read(folder: Path) -> list[str]:
    return [file.name for file in (folder / "secret").glob("*") if file.stat().st_atime]


def check_text(case: Case, path: Path, error: BaseException) -> None:
    text = str(error)
    assert path.name in text
    assert "\n" not in text and text.isprintable() and len(text) <= LONGEST_TEXT
    assert "Errno" not in text and not re.search("0x[0-9a-f]{6}", text)  # an address
    rest = text.replace(str(path), "")
    assert re.search(case.text, rest, re.IGNORECASE), f"{text!r} has nothing of {case.text!r}"


@params(case for case in CASES if case.outcome == REFUSED)
def test_it_is_refused_in_one_clear_error(tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(case, tmp_path, is_hostile=True)
    before = listing(tmp_path)
    if case.hangs:
        monkeypatch.setattr(hdf5, "SILENCE_S", HANG_S)

    with pytest.raises(ConversionError) as caught:
        convert(path, tmp_path / "out.vqm")

    check_text(case, path, caught.value)
    assert listing(tmp_path) == before
    assert not secrets_read(tmp_path)


@params(case for case in CASES if case.outcome == EITHER)
def test_it_is_refused_or_opened_without_the_odd_part(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path, is_hostile=True)
    before = listing(tmp_path)

    try:
        arrays = load_all(path)
    except ConversionError as err:
        check_text(case, path, err)
        assert listing(tmp_path) == before
    else:
        assert has(arrays, GOOD) and not has(arrays, SECRET)
        assert listing(tmp_path) == before
        convert(path, tmp_path / "out.vqm", lossless=True)
        assert has(vqformat.load_file(tmp_path / "out.vqm"), GOOD)
    assert not (tmp_path / "ran").exists() and not secrets_read(tmp_path)


@params(case for case in CASES if case.outcome == HARMLESS)
def test_what_is_odd_but_harmless_is_converted(tmp_path: Path, case: Case) -> None:
    check_converted(write(case, tmp_path, is_hostile=True))


@params(CASES)
def test_the_sibling_without_the_fault_is_converted(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path, is_hostile=False)
    content = path.suffix, b"".join(file.read_bytes() for file in sorted(tmp_path.glob("*")) if file.is_file())
    if content not in CONVERTED:  # many siblings are the same file
        check_converted(path)
        CONVERTED.add(content)


def check_converted(path: Path) -> None:
    before = listing(path.parent)

    convert(path, path.parent / "out.vqm", lossless=True)

    stored = vqformat.load_file(path.parent / "out.vqm")
    assert has(stored, GOOD) and has(stored, VICTIM) and not has(stored, SECRET)
    assert sorted({file for file, _ in listing(path.parent)} - {file for file, _ in before}) == ["out.vqm"]


def test_a_read_of_a_secret_would_be_seen(tmp_path: Path) -> None:
    """The guard of the tests above: where the system records no reads, they rest on the values alone."""
    case = next(case for case in CASES if case.name == "external_link-tree")
    path = write(case, tmp_path, is_hostile=True)

    with h5py.File(path) as file:
        assert file["dense/bias"][:].tolist() == SECRET.tolist()

    if not secrets_read(tmp_path):
        pytest.skip("this file system records no reads")


def test_two_links_to_one_dataset_are_tied_tensors(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "hard_link_twice-tree")

    convert(write(case, tmp_path, is_hostile=True), tmp_path / "out.vqm")

    with vqformat.safe_open(tmp_path / "out.vqm") as file:
        assert len([name for name in file if file.info(name).alias_of]) == 1


def test_empty_tensors_keep_their_shape(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "zero_size-tree")

    arrays = load_all(write(case, tmp_path, is_hostile=True))

    assert [array.shape for array in arrays.values() if not array.size] == [(0, 5), (0, 5)]


def test_what_was_never_written_is_zero_or_refused(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "partly_written-tree")
    path = write(case, tmp_path, is_hostile=True)

    try:
        arrays = load_all(path)
    except ConversionError:
        return
    assert has(arrays, np.array([100, 101, 102, 103] + [0] * 8, np.float32))


# Damage

BASES = {
    case.name: case
    for case in CASES
    if case.name in ("filter_gzip_and_shuffle-tree", "weight_names_in_parts", "hard_link_twice-keras",
                     "newest_structures")
}


def opens_or_is_refused(path: Path, data: bytes) -> bool:
    """Whether it opens; another exception than ours is the test's failure."""
    path.write_bytes(data)
    try:
        load_all(path)
    except ConversionError as err:
        assert path.name in str(err) and "\n" not in str(err)
        return False
    except VqmError as err:
        pytest.fail(f"{type(err).__name__}: {err}")
    return True


@pytest.fixture
def _hangs_end_soon(ends_a_hang: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SILENCE_S", HANG_S)


@pytest.mark.usefixtures("_hangs_end_soon")
@params(BASES.values())
def test_a_truncated_file_is_refused(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path, is_hostile=True)
    data = path.read_bytes()
    before = listing(tmp_path)
    lengths = sorted({*range(0, 100, 33), *np.linspace(100, len(data) - 1, 12, dtype=int).tolist(), len(data) - 1})

    opened = [length for length in lengths if opens_or_is_refused(path, data[:length])]

    assert opened == []
    path.write_bytes(data)
    assert listing(tmp_path) == before


@pytest.mark.usefixtures("_hangs_end_soon")
@params(BASES.values())
def test_a_file_with_zeroed_bytes_opens_or_is_refused(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path, is_hostile=True)
    data = path.read_bytes()
    step = max(16, len(data) // 24 // 8 * 8)

    opened = [at for at in range(0, len(data), step)
              if opens_or_is_refused(path, data[:at] + bytes(step) + data[at + step :])]  # fmt: skip

    assert 0 not in opened


# Code and memory

MEASURE = """
import faulthandler, json, sys, warnings
warnings.simplefilter("ignore")
import hdf5_server
from vqformat.converters import convert, hdf5
hdf5.SILENCE_S = float(sys.argv[1])
if hdf5_server.IS_POSSIBLE:
    hdf5.subprocess = hdf5_server.Server()

def high_water():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) >> 10

def reset():
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")

def measure(path):
    faulthandler.dump_traceback_later(600, exit=True)
    print(path, file=sys.stderr, flush=True)
    reset()
    base = high_water()
    try:
        convert(path, path + ".vqm", lossless=True)
        outcome = "converted"
    except Exception as err:
        outcome = type(err).__name__
    return [high_water() - base, outcome]

names = json.load(sys.stdin)
for warm in names["siblings"]:
    measure(warm)
found = {path: measure(path) for path in names["hostile"]}
print(json.dumps({"found": found, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
def test_no_hostile_file_takes_memory_or_runs_code(tmp_path: Path) -> None:
    files: dict[str, list[str]] = {"hostile": [], "siblings": []}
    for case in CASES:
        if case.package == "torch" or case.name.endswith(("-legacy", "-keras")):
            continue  # its import is slow and takes memory; the same faults elsewhere
        folder = tmp_path / case.name
        folder.mkdir()
        files["hostile"].append(str(write(case, folder, is_hostile=True)))
    for case in BASES.values():
        folder = tmp_path / f"sibling {case.name}"
        folder.mkdir()
        files["siblings"].append(str(write(case, folder, is_hostile=False)))

    done = subprocess.run([sys.executable, "-c", MEASURE, str(HANG_S)], input=json.dumps(files), capture_output=True,
                          text=True, cwd=Path(__file__).resolve().parent.parent, check=False)  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    greedy = {Path(path).parent.name: mib for path, (mib, _) in report["found"].items() if mib > MEMORY_BOUND_MIB}
    assert greedy == {}
    others = {Path(path).parent.name: kind for path, (_, kind) in report["found"].items()
              if kind not in ("converted", "ConversionError")}  # fmt: skip
    assert others == {}
    assert not {"keras", "tensorflow", "torch"} & set(report["modules"])
    assert not list(tmp_path.glob("*/ran"))


def test_each_file_says_what_it_abuses() -> None:
    assert [case.name for case in CASES if not case.abuse.endswith(".")] == []
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_builders_attack(tmp_path: Path) -> None:
    """The files are what they say: a careless reader falls for them."""
    by_name = {case.name: case for case in CASES}
    for name, key in (("external_storage-tree", "dense/bias"), ("virtual_dataset-tree", "dense/bias"),
                      ("soft_link_to_external_link-tree", "dense/bias")):  # fmt: skip
        (tmp_path / name).mkdir()
        with h5py.File(write(by_name[name], tmp_path / name, is_hostile=True)) as file:
            assert file[key][:].tolist() == SECRET.tolist()
    (tmp_path / "a").mkdir()
    with h5py.File(write(by_name["overlapping_chunks-tree"], tmp_path / "a", is_hostile=True)) as file:
        dataset = file["dense/bias"]
        assert dataset.nbytes == 4000 << 20 and not dataset[-1000:].any()
        addresses = {dataset.id.get_chunk_info(i).byte_offset for i in range(0, 4000, 500)}
        assert len(addresses) == 1
    with zipfile.ZipFile(write(by_name["member_twice"], tmp_path, is_hostile=True)) as archive:
        assert archive.namelist().count("model.weights.h5") == 2
