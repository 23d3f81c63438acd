"""The command ``vqm``: its text, its usage, and how it fails."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import vqm_attacks
from cli_runs import HOSTILE, HOSTILE_ESCAPED, Run, vqm

import vqformat
import vqformat.cli.inspect as verbs
import vqformat.cli.verify
from vqformat import ConversionError
from vqformat.cli import main
from vqformat.cli.progress import progress_line
from vqformat.cli.text import to_json
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.encode.progress import TensorProgress
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.limits import available_memory
from vqformat.text import escape, shape_text, table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("conv1.weight", "conv1.weight"),
        ("层.重み é", "层.重み é"),
        (HOSTILE, HOSTILE_ESCAPED),
        ("\x9b31m\x7f\ufeff\u2066\udc80", r"\x9b31m\x7f\ufeff\u2066\udc80"),
        ("\\x1b", r"\\x1b"),
    ],
)
def test_names_are_escaped_without_ambiguity(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_table_aligns_wide_characters() -> None:
    assert table([("name", "n"), ("层", "10"), ("ab", "2")], "<>") == ["name   n", "层    10", "ab     2"]


def test_a_long_name_does_not_widen_its_column() -> None:
    lines = table([("name", "n"), ("x" * 300, "1"), ("y", "2")], "<>")
    assert lines == ["name" + " " * 58 + "n", "x" * 300 + "  1", "y" + " " * 61 + "2"]


def test_shape_of_a_scalar_has_a_word() -> None:
    assert [shape_text(shape) for shape in [(), (3,), (2, 0)]] == ["scalar", "3", "2x0"]


def test_json_has_no_nan_and_is_ascii() -> None:
    text = to_json({"a": math.inf, "b": [math.nan, 1.5], "c": b"\x00", "d": "\x7f\u202eé"})
    assert text.isascii()
    assert "\x7f" not in text
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"base64": "AA=="}, "d": "\x7f\u202eé"}


# Usage


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("vqm 0.")
    assert "format version 1.2" in result.out


@pytest.mark.parametrize(
    "args",
    [
        ["compress", "x.pt"],
        ["convert"],
        ["convert", "x.pt", "--bits", "0"],
        ["convert", "x.pt", "--bits", "inf"],
        ["convert", "x.pt", "--ratio", "ten"],
        ["convert", "x.pt", "--bits", "2", "--lossless"],
        ["convert", "x.pt", "--seed", "-1"],
        ["convert", "x.pt", "--layer", "fc*"],
        ["convert", "x.pt", "--layer", "fc*=pg"],
        ["convert", "x.pt", "--method", "pq:entires=16"],
        ["convert", "x.pt", "--lossless", "--method", "raw"],
        ["convert", "-"],
        ["convert", "x.vqm"],
        ["info"],
        ["info", "x.vqm", "-q", "-v"],
        ["verify"],
        ["extract", "x.vqm"],
        ["extract", "x.vqm", "-o", "out.tflite"],
        ["extract", "x.vqm", "-o", "-"],
        ["extract", "x.vqm", "-o", "-", "--format", "tflite"],
        ["extract", "x.vqm", "-o", "out.npz", "--format", "npz"],
        ["convert", "x.pt", "a.vqm", "-o", "out.vqm"],
        ["convert", "x.pt", "x.vqm", "-o", "./"],
        ["convert", "x.pt", "-"],
        ["help", "compress"],
        ["x.pt"],
        ["diff", "a.vqm"],
        ["diff", "-", "-"],
        ["info", "x.vqm", "--max-memory", "0.0001kB"],
        ["info", "x.vqm", "--max-memory", "1" + 308 * "0" + "kB"],
    ],
)
def test_wrong_usage_exits_with_2(run: Run, args: list[str], archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive.parent)
    for name in ("x.pt", "x.vqm", "a.vqm"):
        shutil.copy(archive, name)
    result = run(*args)
    assert (result.code, result.out) == (2, "")
    error, see = result.err.splitlines()
    assert error.startswith("vqm: error: ")
    assert see.startswith("see vqm ") and see.endswith(" --help")


def test_usage_error_names_the_near_method(run: Run, archive: Path) -> None:
    assert "did you mean 'kmeans'?" in run("convert", archive, "--method", "kmean").err


def test_help_tells_the_methods(run: Run) -> None:
    result = run("convert", "--help")
    assert result.code == 0
    for word in ("--layer PATTERN=METHOD", "kmeans", "svd:rank=8+kmeans:entries=4"):
        assert word in result.out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "not enough memory"),
        (
            ImportError("needs torch; run: pip install 'vqformat[torch]'"),
            "needs torch; run: pip install 'vqformat[torch]'",
        ),
        (OSError(28, "No space left on device", "x.vqm"), "'x.vqm': no space left on device"),
        (OSError(5, "Input/output error"), "input/output error"),
        (OSError("odd"), "odd"),
        (ConversionError("two\nlines \x1b[31m"), "FILE: two lines \\x1b[31m"),
        (ZeroDivisionError("oops"), "unexpected ZeroDivisionError: oops (VQM_TRACEBACK=1 shows where)"),
    ],
)
def test_errors_are_one_line(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(stream: object) -> None:
        raise error

    monkeypatch.setattr(verbs, "Contents", fail)
    result = run("info", model)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"vqm: error: {line.replace('FILE', str(model))}\n"


@pytest.mark.parametrize(
    ("error", "code", "text"), [(KeyboardInterrupt, 130, "vqm: interrupted\n"), (BrokenPipeError, 141, "")]
)
def test_interruptions(model: Path, monkeypatch: pytest.MonkeyPatch, error: type, code: int, text: str) -> None:
    def fail(stream: object) -> None:
        raise error

    stderr = io.StringIO()
    monkeypatch.setattr(verbs, "Contents", fail)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert (main(["info", str(model)]), stderr.getvalue()) == (code, text)


def test_traceback_on_request(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stream: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(verbs, "Contents", fail)
    monkeypatch.setenv("VQM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("info", model)


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    script = f"'{sys.executable}' -m vqformat info --json '{model}' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert done.returncode in (0, 141)  # 0 if all fitted into the pipe
    assert done.stderr == b""


def test_an_ascii_terminal_shows_every_name(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    with ChunkWriter(path) as writer:
        writer.add_layer("", [assemble_raw("层", "u8", np.zeros(1, np.uint8), 0)])
    done = vqm("info", path, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert rb"\u5c42" in done.stdout


SIGNALLED = """
import os, signal, sys
from vqformat import files, written
from vqformat.cli import main

def without_name(*_):
    raise OSError

written._open_unnamed = without_name
files.NewFile.complete = lambda self: os.kill(os.getpid(), int(sys.argv[1]))
signal.signal(int(sys.argv[1]), signal.SIG_DFL)  # nohup, under which tests may run, ignores SIGHUP
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_file(number: int, archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), "convert", archive]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (128 + number, b"")
    assert os.listdir(tmp_path) == ["net.npz"]


@pytest.mark.parametrize(("is_terminal", "shows"), [(True, True), (False, False)])
def test_progress_only_on_a_terminal(
    run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shows: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    result = run("convert", archive)
    assert result.code == 0
    assert ("%  pass 1, gathering statistics: " in result.err) == shows
    assert (result.err == "") != shows
    assert run("convert", archive, "-f", "-q").err == ""
    assert ("%  " in run("verify", archive.with_suffix(".vqm")).err) == shows


class Terminal(io.StringIO):
    """A terminal, and a clock in seconds."""

    now = 0.0

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr("vqformat.cli.progress.sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setattr("vqformat.cli.progress.time", SimpleNamespace(monotonic=lambda: terminal.now))
    return terminal


def test_the_line_has_the_pass_the_tensor_the_share_and_the_time_left(terminal: Terminal) -> None:
    with progress_line(quiet=False) as show:
        assert show is not None
        for now, (name, share) in enumerate([("a", 0.0), ("b\x1b", 0.0101), ("c", 0.995), ("long" * 50, 0.999)]):
            terminal.now = 40.0 * now
            show(TensorProgress(name, "encoding", 3, share), 5, 10)
            show(TensorProgress("at the same time", "encoding", 3, share), 6, 10)
        terminal.now += 9000
        show(TensorProgress("d", "writing", 4, 0.5), 5, 10)
        terminal.now += 1
        show(TensorProgress("e", "writing", 4, None), 5, 10)

    lines = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert lines[:4] == ["", "  0 %  pass 3, encoding: a", r"  1 %  1:05:20 left  pass 3, encoding: b\x1b",
                         " 99 %  0:00 left  pass 3, encoding: c"]  # fmt: skip
    assert lines[4].startswith(" 99 %  0:00 left  pass 3, encoding: longlong") and lines[4].endswith("…")
    assert len(lines[4]) == 79
    assert lines[5:] == [" 50 %  2:32:00 left  pass 4, writing: d", "pass 4, writing: e", "", ""]


def test_each_line_covers_the_one_before_and_the_last_is_removed(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), progress_line(quiet=False) as show:
        assert show is not None
        show("层层层层", 1, 2)
        terminal.now = 0.5
        show("b", 1, 2)
        raise KeyboardInterrupt

    assert terminal.getvalue() == "\r 50 %  层层层层\r 50 %  b" + 7 * " " + "\r" + 8 * " " + "\r"


@pytest.mark.parametrize("arguments", [["convert", "", "-o", "x.vqm"], ["convert", "x.pt", "-o", ""],
                                       ["convert", "x.pt", "--method", ""], ["info", ""]])  # fmt: skip
def test_an_empty_argument_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from vqformat.cli import main

    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "empty" in capsys.readouterr().err


SCRIPT = "from vqformat.cli import main; raise SystemExit(main())"


@pytest.mark.parametrize("start", [["-m", "vqformat"], ["-c", SCRIPT]], ids=["module", "script"])
@pytest.mark.parametrize("module", ["argparse", "threading", "numpy"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(
    module: str, start: list[str], tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")

    assert interrupted(start, tmp_path) == (130, "vqm: interrupted\n")


def test_an_interrupt_while_numpy_imports_datetime_in_c_is_none_of_numpy(tmp_path: Path) -> None:
    """NumPy takes any exception there for a broken installation."""
    (tmp_path / "numpy.py").write_text("import sys\nassert 'datetime' in sys.modules\nraise KeyboardInterrupt")

    assert interrupted(["-c", SCRIPT], tmp_path) == (130, "vqm: interrupted\n")


def interrupted(start: list[str], stubs: Path) -> tuple[int, str]:
    """Exit code and stderr of a run in which modules of a folder come before others."""
    done = subprocess.run([sys.executable, *start, "info", "a.vqm"], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(stubs), *sys.path])})  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [["extract", "-o", "a.npz"], ["diff", "a.vqm"]], ids=str)
def test_a_bound_on_memory_refuses_what_is_larger(
    command: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vqformat.save_file({"w": np.arange(1000, dtype=np.float32)}, "a.vqm")

    refused = run(*command, "a.vqm", "--max-memory", "3.9999kB")
    accepted = run(*command, "a.vqm", "--max-memory", "4kB")

    assert refused.code == 1 and "4000 bytes; 3999 are available" in refused.err
    assert accepted.code == 0
    assert available_memory() > 4000  # the bound was that of the run


def test_a_bound_is_no_damage_that_is_looked_at(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.vqm").write_bytes(vqm_attacks.large_tables(1))
    monkeypatch.setattr(vqformat.cli.verify, "survey", lambda stream: pytest.fail("it does what the bound forbids"))

    result = run("verify", tmp_path / "a.vqm", "--max-memory", "100MB")

    assert (result.code, "100000000 are available" in result.err) == (1, True)
