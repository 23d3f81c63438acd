"""New files: none is lost in a race, and a process that is killed leaves none behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqformat import written
from vqformat.files import NewFile


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
