"""Threads that read and decode: as many as are asked for, and the same values and errors with any number."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from arrays import same, weights
from streamed_files import written

import vqformat
from vqformat import VqmError, safe_open, stream
from vqformat.decode.workers import Workers
from vqformat.forks import cached_property
from vqformat.read import indexed

PRESETS = ("fast", "default", "small")


class Slow(io.BytesIO):
    """A file that others may use between seek and read."""

    def seek(self, *args: int) -> int:
        at = super().seek(*args)
        time.sleep(0.001)
        return at


def test_threads_that_read_one_file_get_what_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "HELD_NBYTES", 1000)  # nothing of a layer is held
    data = written({f"{i}.weight": weights(200, 300, seed=i) for i in range(6)}, preset="fast")
    expected = vqformat.load(data)

    with safe_open(Slow(data)) as file, ThreadPoolExecutor(6) as pool:
        names = list(file) * 5
        assert all(same(found, expected[name]) for name, found in zip(names, pool.map(file.get_tensor, names),
                                                                      strict=True))  # fmt: skip


@cache
def two_tensors(preset: str) -> bytes:
    """A file of two tensors that have several blocks each."""
    return vqformat.save({"a": weights(1200, 900), "b": weights(300, 2000, seed=1)}, preset=preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_threads_changes_nothing(preset: str) -> None:
    data = two_tensors(preset)
    expected = vqformat.load(data, threads=1)

    for threads in (2, 5, None):
        assert all(same(array, expected[name]) for name, array in vqformat.load(data, threads=threads).items())
        with safe_open(io.BytesIO(data), threads=threads) as file:
            assert all(same(file[name], expected[name]) for name in expected)
        for layer in stream(io.BytesIO(data), threads=threads):
            assert all(same(layer[name], expected[name]) for name in layer)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_a_number_of_threads_is_a_whole_number(threads: Any) -> None:
    data = vqformat.save({})
    for read in (vqformat.load_file, safe_open, stream):
        with pytest.raises(ValueError, match=r"threads is .*; None and whole numbers from 1 are allowed"):
            read(io.BytesIO(data), threads=threads)  # type: ignore[operator]


@pytest.mark.parametrize("preset", PRESETS)
def test_of_two_faults_the_first_is_told_whatever_the_threads(preset: str) -> None:
    data = bytearray(two_tensors(preset))
    with safe_open(io.BytesIO(bytes(data))) as file:
        for name, block in (("a", 3), ("b", 0)):
            record, layer, first = file._reader._locate(file._reader.entry(name))
            n_resident = sum(map(len, record.resident_nbytes()))
            start, end = layer.spans[first + n_resident + block]
            data[(start + end) // 2] ^= 1

    def error(read: Callable[[], Any]) -> str:
        with pytest.raises(VqmError) as caught:
            read()
        return str(caught.value)

    errors = {error(lambda threads=threads: vqformat.load(bytes(data), threads=threads)) for threads in (1, 2, 5)}
    assert len(errors) == 1
    assert "block 3 of tensor 'a'" in errors.pop()


def test_errors_of_workers_come_in_the_order_of_their_jobs() -> None:
    second_failed = threading.Event()

    def first() -> None:
        second_failed.wait()
        raise ValueError("first")

    def second() -> None:
        second_failed.set()
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"), Workers(2) as workers:
        workers.run(first)
        workers.run(second)
        raise ValueError("third")


def test_the_caller_works_too_once_two_jobs_wait_for_each_other_thread() -> None:
    goes_on, begun = threading.Event(), threading.Event()
    by_caller = []

    def job(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            by_caller.append(number)
            return
        begun.set()
        goes_on.wait()

    with Workers(2) as workers:
        for i in range(5):
            workers.run(job, i)
            begun.wait()  # the other thread has the first job until all have been handed in
        assert by_caller == [1, 2]
        goes_on.set()


def test_no_job_begins_after_an_interrupt() -> None:
    goes_on, begun = threading.Event(), threading.Event()
    done = []

    def first() -> None:
        begun.set()
        goes_on.wait()

    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        workers.run(first)
        begun.wait()
        workers.run(done.append, 1)
        threading.Timer(0.05, goes_on.set).start()
        raise KeyboardInterrupt
    assert not done


def test_threads_that_compute_a_property_together_get_one_value() -> None:
    both = threading.Barrier(2)

    class Owner:
        @cached_property
        def value(self) -> object:
            both.wait()
            return object()

    owner = Owner()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: owner.value, range(2))
    assert first is second is owner.value  # addresses in it may be in use
