"""New files: none is lost in a race, and a process that is killed leaves none behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from processes import begin, end, needs_fork

from vqformat import written
from vqformat.files import NewFile
from vqformat.leftovers import remove_leftovers, temporary_folder, temporary_name


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_at_the_last_moment_is_not_replaced(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.vqm"
    new = NewFile(path, overwrite=False)
    new.stream.write(b"new")
    new.complete()
    path.write_bytes(b"another")  # by another process
    monkeypatch.setattr(NewFile, "_check_absent", lambda self: None)  # it came after the check
    if not has_links:
        monkeypatch.setattr(os, "link", _no_links)

    with pytest.raises(FileExistsError, match="not replaced"):
        new.rename()

    assert path.read_bytes() == b"another"
    assert list(tmp_path.iterdir()) == [path]


def _no_links(*_: object, **__: object) -> None:
    raise OSError("no links")


@pytest.mark.parametrize("has_unnamed", [True, False])
@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_new_file_needs_neither_links_nor_files_without_a_name(
    has_unnamed: bool, has_links: bool, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_unnamed:
        monkeypatch.setattr(written, "_open_unnamed", _no_links)
    if not has_links:
        monkeypatch.setattr(os, "link", _no_links)

    with NewFile(tmp_path / "a.vqm", overwrite=overwrite) as stream:
        stream.write(b"new")

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.vqm", b"new")]


def test_a_folder_need_not_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_descriptor = os.open

    def open_what_is_readable(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR) and Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "this folder can only be written to")
        return open_descriptor(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_what_is_readable)

    with NewFile(tmp_path / "a.vqm", overwrite=False) as stream:
        stream.write(b"new")

    assert (tmp_path / "a.vqm").read_bytes() == b"new"


KILLED = """
import os, signal, sys
from vqformat.files import NewFile
file = NewFile(sys.argv[1], overwrite=True)
file.stream.write(b"half")
file.stream.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without a name")
def test_a_process_that_is_killed_leaves_no_file(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("this file system has no files without a name")

    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.vqm"], check=False)

    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


# Leftovers

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="this system has no flock")
WRITES = """
import sys
from vqformat import written
from vqformat.files import NewFile
from vqformat.leftovers import temporary_folder
def no_unnamed(*_): raise OSError
if sys.argv[2] == "named": written._open_unnamed = no_unnamed
print("begins", flush=True)
with temporary_folder() as folder:
    (folder / "part").write_bytes(b"half")
    while True:
        with NewFile(sys.argv[1], overwrite=True) as stream:
            stream.write(b"whole" * 1000)
"""


def killed(path: Path, kind: str, after_s: float, number: int) -> None:
    """A process that writes a file again and again, and is killed."""
    environment = {**os.environ, "TMPDIR": str(path.parent / "system")}
    command = [sys.executable, "-c", WRITES, path, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(number)


def check_what_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is whole or absent, and the next run removes all that is not the file."""
    assert not path.exists() or path.read_bytes() == b"whole" * 1000
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent / "system"))
    with temporary_folder() as folder, NewFile(path, overwrite=True) as stream:
        stream.write(b"new")
        assert list((path.parent / "system").iterdir()) == [folder]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.vqm", "system"]
    assert list((path.parent / "system").iterdir()) == []
    path.unlink()


@needs_locks
@pytest.mark.parametrize("kind", ["named", "unnamed"])
def test_the_next_run_removes_what_a_killed_one_left(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    killed(tmp_path / "a.vqm", kind, 0.02, signal.SIGKILL)

    assert list((tmp_path / "system").iterdir()) != []
    check_what_is_left(tmp_path / "a.vqm", monkeypatch)


@pytest.mark.exhaustive
@needs_locks
@pytest.mark.parametrize("kind", ["named", "unnamed"])
def test_nothing_stays_of_runs_that_are_killed_at_any_moment(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    moments = random.Random(0)
    for i in range(30):
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)[i % 3]
        killed(tmp_path / "a.vqm", kind, moments.uniform(0, 0.05), number)
        check_what_is_left(tmp_path / "a.vqm", monkeypatch)


@needs_locks
@pytest.mark.parametrize("has_unnamed", [True, False])
@pytest.mark.parametrize("has_links", [True, False])
def test_the_file_of_a_live_writer_stays(
    has_unnamed: bool, has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_unnamed:
        monkeypatch.setattr(written, "_open_unnamed", _no_links)
    if not has_links:
        monkeypatch.setattr(os, "link", _no_links)
    file = NewFile(tmp_path / "a.vqm", overwrite=False)
    file.stream.write(b"new")

    remove_leftovers(tmp_path)
    file.complete()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    file.rename()

    assert (tmp_path / "a.vqm").read_bytes() == b"new"
    with open(tmp_path / "a.vqm", "rb") as stream:
        assert written.lock(stream.fileno())  # nothing holds it any more


@needs_locks
def test_only_files_that_are_named_as_ours_are_removed(tmp_path: Path) -> None:
    left, other_host = temporary_name(), f".{'0' * 8}{temporary_name()[9:]}"
    names = [left, other_host, left[1:], f"{left}x", ".vqm.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    link = temporary_name()
    (tmp_path / link).symlink_to(tmp_path / other_host)
    folder = temporary_name()
    (tmp_path / folder).mkdir()
    pipe = temporary_name()
    os.mkfifo(tmp_path / pipe)

    remove_leftovers(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], link, folder, pipe}


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = written.lock

    def lock_late(descriptor: int, *, waits: bool = False) -> bool:
        monkeypatch.setattr(written, "lock", locked)
        remove_leftovers(tmp_path)
        return locked(descriptor, waits=waits)

    monkeypatch.setattr(written, "_open_unnamed", _no_links)
    monkeypatch.setattr(written, "lock", lock_late)
    with NewFile(tmp_path / "a.vqm", overwrite=False) as stream:
        stream.write(b"new")

    assert (tmp_path / "a.vqm").read_bytes() == b"new"


@needs_fork
@needs_locks
def test_two_writers_of_one_name_both_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_open_unnamed", _no_links)
    end(*(begin("fork", write_often, tmp_path / "a.vqm", text) for text in (b"one", b"two")))

    assert [path.name for path in tmp_path.iterdir()] == ["a.vqm"]
    assert (tmp_path / "a.vqm").read_bytes() in (b"one", b"two")


def write_often(path: Path, text: bytes) -> None:
    for _ in range(30):
        with NewFile(path, overwrite=True) as stream:
            stream.write(text)


@needs_fork
@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_writers_that_overwrite_nothing_one_wins(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NewFile, "_check_absent", lambda self: None)  # all of them come at the same time
    if not has_links:
        monkeypatch.setattr(os, "link", _no_links)
    won = multiprocessing.get_context("fork").Value("i", 0)

    def write(number: int) -> None:
        try:
            with NewFile(tmp_path / "a.vqm", overwrite=False) as stream:
                stream.write(b"%d" % number)
        except FileExistsError:
            return
        with won.get_lock():
            won.value += 1

    end(*(begin("fork", write, number) for number in range(6)))

    assert won.value == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.vqm"]
