"""The file of vqformat.writer: whole under its name, or not there."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layered_models import model

import vqformat
from vqformat import EncodeError


def test_a_path_gets_its_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(b"an earlier one")

    with vqformat.writer(path, {"a": 1}) as w:
        w.add_layer("", {"x": np.ones((3, 3), np.float32)})
        assert path.read_bytes() == b"an earlier one"

    assert os.listdir(tmp_path) == ["model.vqm"]
    with vqformat.safe_open(path) as file:
        assert file.metadata() == {"a": 1}


def test_a_file_that_exists_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(b"an earlier one")

    with pytest.raises(FileExistsError):
        vqformat.writer(path, overwrite=False)

    assert os.listdir(tmp_path) == ["model.vqm"]
    assert path.read_bytes() == b"an earlier one"


@pytest.mark.parametrize("options", [{}, {"ratio": 4}], ids=str)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_nothing_is_left(
    tmp_path: Path, error: type[BaseException], options: dict[str, Any]
) -> None:
    path = tmp_path / "model.vqm"

    with pytest.raises(error), vqformat.writer(path, **options) as w:
        w.add_layer("", model()["layers.0"])
        raise error

    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="ended by an error: there is no file"):
        w.add_layer("", model()["layers.1"])
    with pytest.raises(ValueError, match="ended by an error"):
        w.close()


@pytest.mark.parametrize("options", [{}, {"ratio": 4}], ids=str)
def test_a_writer_that_is_forgotten_leaves_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    w = vqformat.writer(tmp_path / "model.vqm", **options)
    w.add_layer("", model()["layers.0"])

    del w
    gc.collect()

    assert os.listdir(tmp_path) == []


def test_a_program_that_ends_too_early_leaves_nothing(tmp_path: Path) -> None:
    code = ("import sys, numpy, vqformat; w = vqformat.writer('model.vqm');"
            "w.add_layer('', {'x': numpy.ones((9, 9), 'f4')}); sys.exit(1)")  # fmt: skip

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert os.listdir(tmp_path) == []


def test_a_budget_that_cannot_be_met_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="a file of 100 bytes was asked for"):  # noqa: SIM117
        with vqformat.writer(tmp_path / "model.vqm", size=100) as w:
            w.add_layer("", model()["layers.0"])

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"bits": 3, "ratio": 4}, {"preset": "tiny"}, {"sqnr": -1}], ids=str)
def test_options_that_are_none_are_refused_before_anything_is_made(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(EncodeError):
        vqformat.writer(tmp_path / "model.vqm", **options)

    assert os.listdir(tmp_path) == []


def open_temporary_files() -> list[str]:
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are told by /proc, which is Linux's")
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists() or link.is_symlink()]
    targets = [os.readlink(link) for link in links if link.is_symlink()]
    return [target for target in targets if target.endswith("(deleted)") and "/model" in target]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_what_has_waited_is_let_go(error: type[Exception] | None, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    large = np.random.default_rng(0).standard_normal((2048, 2100), np.float32)  # 17 MB
    with contextlib.suppress(RuntimeError), vqformat.writer(tmp_path / "models" / "a.vqm", ratio=4) as w:
        w.add_layer("a", {"a.weight": large, "a.tied": large})
        reference = weakref.ref(large)
        del large
        gc.collect()
        assert reference() is None
        assert len(open_temporary_files()) in (1, 2)  # that of the layer; the new file, too, if it has no name yet
        if error is not None:
            raise error

    assert open_temporary_files() == []


def test_a_file_system_without_permissions_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "model.vqm").write_bytes(b"an earlier one")
    monkeypatch.setattr(os, "chmod", refuse)

    vqformat.save_file(model()["layers.0"], tmp_path / "model.vqm")

    assert list(vqformat.load_file(tmp_path / "model.vqm")) == list(model()["layers.0"])


def test_names_may_be_as_long_as_the_system_has_them(tmp_path: Path) -> None:
    path = tmp_path / ("模" * 80 + ".vqm")  # 244 bytes

    vqformat.save_file(model()["layers.0"], path)

    assert path.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no such folder: '.*nowhere'"):
        vqformat.writer(tmp_path / "nowhere" / "model.vqm")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_leaves_the_file_alone(tmp_path: Path) -> None:
    code = """if True:
        import os, sys, numpy, vqformat
        w = vqformat.writer("model.vqm")
        w.add_layer("", {"x": numpy.ones((9, 9), "f4")})
        if not os.fork():
            sys.exit(0)
        os.wait()
        w.close()
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)

    assert os.listdir(tmp_path) == ["model.vqm"]
    assert list(vqformat.load_file(tmp_path / "model.vqm")) == ["x"]
