"""Damaged and hostile files: one clear error, never a wrong value, a hang or a wild allocation."""

from __future__ import annotations

import errno
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st
from vqmbuilder import file, layr
from vqmtensors import Codebook, Layout, LowRank, Scale, raw, tensor
from vqmtrellis import Freq, Trellis

import vqformat
from vqformat import FormatError, LimitError, TruncatedError, VqmError, safe_open
from vqformat.cli import main
from vqformat.converters import open_source
from vqformat.format.container import FOOTER_NBYTES, pack_footer, pack_header


def small_file() -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    tied = rng.standard_normal((20, 16)).astype(np.float32)
    model = {
        "fc.weight": tied,
        "fc.bias": rng.standard_normal(20).astype(np.float32),
        "tied": tied,
        "step": np.array(7),
        "mask": np.array([True, False, True]),
        "none": np.zeros((0, 3)),
        "big": rng.standard_normal((40, 60)).astype(np.float32),
    }
    data = vqformat.save(model, {"name": "small"}, recipe={"big": "svd:rank=2+pq:dim=2,entries=8", "fc.bias": "raw"})
    return data, vqformat.load(data)


DATA, EXPECTED = small_file()


def by_index(data: bytes) -> dict[str, Any]:
    with safe_open(io.BytesIO(data)) as f:
        f.metadata()
        return {name: f[name] for name in f}


# By default each fifth place is damaged
PARTS = pytest.mark.parametrize("part", some_of(range(5), [0]))
READERS = [pytest.param(vqformat.load, id="sequential"), pytest.param(by_index, id="by index")]


@pytest.mark.parametrize(("name", "error"), [
    ("", FormatError), ("a\0b", FormatError), ("n" * 1025, LimitError), ("é" * 513, LimitError), ("é" * 512, None),
    ("n" * 1024, None),
])  # fmt: skip
def test_a_name_is_checked_though_the_tensor_before_differs_in_its_name_only(
    name: str, error: type[FormatError] | None
) -> None:
    data = file(layr("", raw("a", "u8", [1], b"1"), raw(name, "u8", [1], b"2"))).build()
    if error is None:
        assert vqformat.load(data)[name] == ord("2")
        return
    with pytest.raises(error) as caught:
        vqformat.load(data)
    assert type(caught.value) is error
    assert caught.value.clause == "TEN-001"


@PARTS
@pytest.mark.parametrize("read", READERS)
def test_each_truncation_is_refused(read: Any, part: int) -> None:
    for n in range(part, len(DATA), 5):
        with pytest.raises(VqmError):
            read(DATA[:n])


def test_truncation_says_so() -> None:
    for n in (0, 7, 30, len(DATA) // 2, len(DATA) - 1):
        with pytest.raises(TruncatedError):
            vqformat.load(DATA[:n])
        with pytest.raises(TruncatedError):
            by_index(DATA[:n])


@PARTS
@pytest.mark.parametrize("read", READERS)
def test_each_flipped_bit_is_refused_or_changes_nothing(read: Any, part: int) -> None:
    """By index, bytes that belong to no tensor are not read; all that is returned must be right."""
    for at in range(part, len(DATA), 5):
        damaged = bytearray(DATA)
        damaged[at] ^= 1 << at % 8
        try:
            found = read(bytes(damaged))
        except VqmError:
            continue
        assert read is by_index
        assert list(found) == list(EXPECTED)
        for name, array in EXPECTED.items():
            assert found[name].tobytes() == array.tobytes()


@PARTS
def test_verify_refuses_each_flipped_byte(part: int) -> None:
    for at in range(part, len(DATA), 5):
        damaged = bytearray(DATA)
        damaged[at] ^= 0xFF
        with pytest.raises(VqmError):
            vqformat.verify(io.BytesIO(damaged))


@given(st.binary(max_size=400), st.integers(0, len(DATA)), st.integers(0, 300))
@examples(300)
def test_bytes_put_anywhere_are_refused_or_change_nothing(new: bytes, at: int, cut: int) -> None:
    damaged = DATA[:at] + new + DATA[at + cut :]
    for read in (vqformat.load, by_index):
        try:
            found = read(damaged)
        except VqmError:
            continue
        assert {name: a.tobytes() for name, a in found.items()} == {name: a.tobytes() for name, a in EXPECTED.items()}


@given(st.binary(max_size=2000))
def test_noise_is_refused(noise: bytes) -> None:
    for start in (b"", pack_header(0)):
        for end in (b"", DATA[-FOOTER_NBYTES:]):
            for read in (vqformat.load, by_index):
                with pytest.raises(VqmError):
                    read(start + noise + end)


def test_trailing_bytes_are_refused() -> None:
    for read in (vqformat.load, by_index):
        with pytest.raises(VqmError):
            read(DATA + b"\0")


@pytest.mark.parametrize(
    "start", [b"PK\x03\x04", b"GGUF", b"\x89HDF\r\n\x1a\n", b"\x80\x02}", b"\x93NUMPY", b"\x10\0\0\0\0\0\0\0{"]
)
def test_files_of_other_formats_are_named(start: bytes) -> None:
    with pytest.raises(VqmError, match=r"no \.vqm file: it begins like"):
        vqformat.load(start.ljust(200, b"\0"))


def test_damage_by_text_mode_is_named() -> None:
    with pytest.raises(VqmError, match="text mode"):
        vqformat.load(DATA.replace(b"\r\n", b"\n"))


def test_damage_by_text_mode_is_named_however_the_format_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.vqm"
    path.write_bytes(DATA.replace(b"\r\n", b"\n"))

    for read in (vqformat.content_digest, open_source):
        with pytest.raises(FormatError, match="text mode"):
            read(path)
    assert main(["info", str(path)]) == 1
    assert "text mode" in capsys.readouterr().err


def test_a_short_file_never_causes_a_large_allocation() -> None:
    """Lengths are believed only as far as there are bytes (REA-002)."""
    import struct
    import zlib

    def chunk_head(type: bytes, flags: int, stored: int, plain: int, n_sections: int) -> bytes:
        fixed = struct.pack("<4sIIII", type, flags, stored, plain, n_sections)
        return fixed + struct.pack("<I", zlib.crc32(fixed))

    for head in (
        chunk_head(b"META", 0, 1 << 24, 1 << 24, 0),
        chunk_head(b"META", 0, 10, 10, 1 << 22),
        chunk_head(b"INDX", 1, 1 << 20, 1 << 28, 0),
        chunk_head(b"LAYR", 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    ):
        tracemalloc.start()
        with pytest.raises(VqmError):
            vqformat.load(pack_header(0) + head + bytes(100))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5 << 20


def peak_of(data: bytes, **bounds: int) -> int:
    """Peak memory of a refused load."""
    tracemalloc.start()
    try:
        with pytest.raises(VqmError):
            vqformat.load(data, **bounds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_step_for_each_element_makes_no_table_of_all_entries() -> None:
    """65,536 entries for each of 4,096 elements would be 1 GiB."""
    import vqmbuilder

    steps = vqmbuilder.section(np.ones(4096, "<f4").tobytes())
    codes = vqmbuilder.section(bytes(2 * 4096))
    record = ["w", 11, [64, 64], [None, 1, 0, 0, 0], [[1, 1, 65536, [1, 0], 0, 1, 1, None, []]]]
    chunk = vqmbuilder.chunk(b"LAYR", ["", [record]], [steps, codes])
    data = vqmbuilder.file(chunk).build()
    tracemalloc.start()
    with pytest.raises(VqmError, match="index"):  # the builder's index does not know the tensor
        vqformat.load(data)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_tables_count_against_the_callers_bound() -> None:
    import vqmbuilder

    table = vqmbuilder.libzstd_section(bytes(4 << 26))
    codes = vqmbuilder.section(bytes(8))
    record = ["w", 11, [4, 4096], [None, 1, 0, 0, 0], [[1, 1024, 65536, [0, 11], 0, 0, 0, None, []]]]
    chunk = vqmbuilder.chunk(b"LAYR", ["", [record]], [table, codes])

    assert peak_of(vqmbuilder.file(chunk).build(), max_total_bytes=1 << 24) < 4 << 20


def test_an_index_of_many_names_is_refused_before_they_are_split() -> None:
    import vqmbuilder

    data = vqmbuilder.file(index={4: b"a\0" * (1 << 21)}).build()

    tracemalloc.start()
    with pytest.raises(VqmError):
        by_index(data)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_threads_may_share_an_open_file() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = {f"layer{i}.w": np.full(3, i, np.int32) for i in range(200)}
    with safe_open(io.BytesIO(vqformat.save(model))) as f, ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for name, found in zip(model, pool.map(f.get_tensor, model), strict=True):
                assert np.array_equal(found, model[name])


def test_a_file_that_gives_less_than_asked_is_read_on() -> None:
    class Short(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            return super().read(n if n is None or n < 2 else (n + 1) // 2)

    with safe_open(Short(DATA)) as f:
        assert {name: f[name].tobytes() for name in f} == {name: a.tobytes() for name, a in EXPECTED.items()}


def test_a_callers_floating_point_traps_do_not_reach_decoding() -> None:
    data = vqformat.save({"w": np.linspace(-1e-4, 1e-4, 4096, dtype=np.float16).reshape(64, 64)}, bits=3)
    with np.errstate(all="raise"):
        vqformat.load(data)


def test_no_temporary_file_is_left_by_metadata_that_is_too_large(tmp_path: Any) -> None:
    with pytest.raises(vqformat.EncodeError):
        vqformat.save_file({}, tmp_path / "x.vqm", {"k": "x" * (17 << 20)})

    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_said_to_be_the_whole_file_is_not_read_whole(tmp_path: Path) -> None:
    header = pack_header(0)
    with open(tmp_path / "a.vqm", "wb") as stream:
        stream.write(header)
        stream.seek(1 << 28)  # nothing is stored
        stream.write(pack_footer(header, 16))
    tracemalloc.start()
    try:
        with pytest.raises(VqmError):
            safe_open(tmp_path / "a.vqm")
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def of_layers(byte: int) -> bytes:
    """A file of three layers with a tensor each."""
    import vqmbuilder
    import vqmtensors

    return vqmbuilder.file(*(vqmbuilder.layr(name, vqmtensors.raw(name, "u8", [4], bytes([byte] * 4)))
                             for name in "abc")).build()  # fmt: skip


def test_a_file_that_is_overwritten_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.vqm"
    path.write_bytes(of_layers(1))
    with safe_open(path) as f:
        assert f["a"].tolist() == [1] * 4
        with open(path, "r+b") as stream:
            stream.write(of_layers(2))
        os.utime(path, ns=(0, 0))  # the clock of a file system may be too coarse for a test

        for name in ("b", "c", "b"):
            with pytest.raises(vqformat.FormatError, match="overwritten"):
                f[name]


def test_a_copy_that_restores_the_modification_time_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "a.vqm"
    path.write_bytes(of_layers(1))
    with safe_open(path) as f:
        times = os.stat(path)
        os.chmod(path, 0o600)
        os.rename(path, tmp_path / "b.vqm")
        assert f["a"].tolist() == [1] * 4
        with open(tmp_path / "b.vqm", "r+b") as stream:
            stream.write(of_layers(2))
        os.utime(tmp_path / "b.vqm", ns=(times.st_atime_ns, times.st_mtime_ns))

        for name in ("b", "c"):
            with pytest.raises(vqformat.FormatError, match="overwritten"):
                f[name]


@pytest.mark.parametrize("n", [0, 100, -1])
def test_a_file_that_is_cut_while_it_is_open_is_refused(n: int, tmp_path: Path) -> None:
    path = tmp_path / "a.vqm"
    path.write_bytes(of_layers(1))
    with safe_open(path) as f:
        os.truncate(path, n % os.path.getsize(path))

        for name in f:
            with pytest.raises(VqmError):
                f[name]


def test_an_error_of_the_disk_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vqm"
    path.write_bytes(of_layers(1))
    with safe_open(path) as f:
        pread = os.pread

        def fails(*_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fails)
        f._reader._input._held.clear()
        with pytest.raises(OSError, match="Input/output error"):
            f["b"]
        monkeypatch.setattr(os, "pread", pread)
        assert f["b"].tolist() == [1] * 4


def test_a_file_that_is_replaced_while_it_is_open_is_read_on(tmp_path: Path) -> None:
    path, new = tmp_path / "a.vqm", tmp_path / "b.vqm"
    path.write_bytes(of_layers(1))
    new.write_bytes(of_layers(2))
    with safe_open(path) as f:
        os.replace(new, path)

        assert [f[name].tolist() for name in f] == [[1] * 4] * 3


ZERO = np.zeros(1, np.float32)
CODES = np.zeros((1, 1), np.intp)
WITH_AN_INFINITE_BOUND = {
    "codebook": Codebook(CODES, steps=np.full(1, 3e38, np.float32), zero=2, entries=2, scale=Scale(ZERO)),
    "low rank": LowRank(CODES, CODES, 4, 4, row_scales=np.full(1, 3e38, np.float32), column_scales=ZERO),
    "trellis": Trellis(CODES, Freq(1, (b"\1",)), (1, 1), step=3e38, zero=2, scale=Scale(ZERO)),
}


@pytest.mark.parametrize("stage", WITH_AN_INFINITE_BOUND)
def test_an_infinite_bound_times_a_scale_of_zero_is_refused_without_a_warning(stage: str) -> None:
    with np.errstate(all="ignore"):
        item = tensor("w", "f32", (1, 1), WITH_AN_INFINITE_BOUND[stage], layout=Layout(None, 1))
    data = file(Freq(1, (b"\1",)).chunk(), layr("", item)).build()

    with pytest.raises(FormatError, match="values up to nan are possible"):
        vqformat.load(data)
