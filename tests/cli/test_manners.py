"""Manners of the command ``vqm``: help, short errors, sizes, several files, pipes, terminals."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run, as_stdin, vqm

import vqformat
from vqformat.encode.options import Options
from vqformat.errors import missing_package, near_names
from vqformat.sizes import parse_size

# Help and errors


@pytest.mark.parametrize("args", [[], ["help"], ["--help"], ["help", "help"]])
def test_without_a_verb_there_is_help(run: Run, args: list[str]) -> None:
    result = run(*args)

    assert (result.code, result.err) == (0, "")
    for words in ("usage: vqm", "convert", "examples:", "exit codes:"):
        assert words in result.out


def test_help_of_a_verb(run: Run) -> None:
    result = run("help", "convert")

    assert (result.code, result.out) == (0, run("convert", "--help").out)
    assert "usage: vqm convert" in result.out


def test_help_fits_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")

    for verb in ("convert", "calibrate", "search", "info", "conformance", "verify"):
        assert max(map(len, run("help", verb).out.partition("\n\n")[2].splitlines())) <= 70


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["inof"], "there is no verb 'inof'; did you mean 'info'?"),
        (["zzz"], "there is no verb 'zzz'; the verbs are convert, calibrate, search, info, "),
        (["help", "convrt"], "there is no verb 'convrt'; did you mean 'convert'?"),
        (["net.npz"], "there is no verb 'net.npz'; to look into the file: vqm info net.npz"),
        (["in\x1bfo"], "there is no verb 'in\\x1bfo'; did you mean 'info'?"),
    ],
)
def test_a_verb_that_there_is_not(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch, args: list[str],
                                  error: str) -> None:  # fmt: skip
    monkeypatch.chdir(archive.parent)

    result = run(*args)

    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert lines[0].startswith(f"vqm: error: {error}")
    assert lines[1:] == ["see vqm --help"]


def test_wrong_usage_is_two_lines(run: Run) -> None:
    result = run("convert", "--bits", "none", "x.pt")

    assert result.err == "vqm: error: argument --bits: 'none' is not a number above 0\nsee vqm convert --help\n"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["convert", "x.pt", "--rato=3"], "there is no option --rato; did you mean --ratio?"),
        (["convert", "x.pt", "--zzz", "3"], "there is no option --zzz"),
        (["diff", "a", "b", "c"], "'c' is one argument too many"),
    ],
)
def test_an_argument_that_there_is_not(run: Run, args: list[str], error: str) -> None:
    assert run(*args).err == f"vqm: error: {error}\nsee vqm {args[0]} --help\n"


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "absent.pt", "--layer", "fc*=pg"],
        ["convert", "absent.pt", "--calibration", "also.npz"],
        ["convert", "absent.pt", "-o", "no/x.vqm"],
        ["convert", "absent.pt", "-o", "x.npz"],
        ["convert", "net.npz", "absent.pt"],
        ["extract", "absent.pt", "-o", "x.tflite"],
        ["extract", "absent.pt", "-o", "-"],
        ["recover", "absent.pt", "-o", "-"],
        ["sign", "absent.pt", "--key", "no.pem"],
        ["diff", "net.npz", "absent.pt"],
        ["info", "absent.pt", "name"],
        ["info", "-q", "absent.pt"],
        ["verify", "absent.pt"],
    ],
)
def test_a_missing_file_is_the_first_error(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch,
                                           args: list[str]) -> None:  # fmt: skip
    monkeypatch.chdir(archive.parent)

    run(*args).failed_with("'absent.pt': no such file or directory")

    assert os.listdir() == ["net.npz"]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("fc1.wieght", "; near matches: 'fc1.weight'"),
        ("FC1.Bias", "; near matches: 'fc1.bias'"),
        ("conv*", "; near matches: 'block.conv1.kernel'"),
        ("*.kernle", "; near matches: 'block.conv1.kernel'"),
        ("zzz", "; there are 'fc1.weight', 'fc1.bias', 'block.conv1.kernel' and 1 more"),
    ],
)
def test_what_matches_nothing_has_near_names(pattern: str, hint: str) -> None:
    names = ["fc1.weight", "fc1.bias", "block.conv1.kernel", "x"]

    assert near_names(pattern, names) == hint
    assert near_names(pattern, []) == "; there are no tensors"
    with pytest.raises(vqformat.EncodeError, match=f"{hint}$"):
        vqformat.save({name: np.zeros(2) for name in names}, recipe={pattern: "raw"})


@pytest.mark.parametrize("verb", [["info"], ["extract", "-o", "out.npz"]])
def test_a_name_of_no_tensor_has_near_names(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch,
                                            verb: list[str]) -> None:  # fmt: skip
    monkeypatch.chdir(model.parent)

    run(*verb, "model.vqm", "bais*").failed_with("no tensor 'bais*'; near matches: 'fc1.bias'")


@pytest.mark.parametrize(
    ("err", "text"),
    [
        (ModuleNotFoundError("", name="gguf.constants"), "GGUF files need gguf; run: pip install gguf"),
        (ModuleNotFoundError("", name="google.protobuf"), "GGUF files need gguf and protobuf; run: pip install"
         " protobuf"),
        (ImportError("no libc"), "GGUF files need gguf, which is installed but cannot be imported: no libc"),
    ],
)
def test_a_missing_package_is_the_one_to_install(err: ImportError, text: str) -> None:
    assert str(missing_package("GGUF files need", "gguf", err)) == text


def test_no_error_names_an_extra_of_this_package() -> None:
    root = Path(vqformat.__file__).parent
    converters = Path(sys.modules["vqformat.converters"].__file__ or "").parent
    sources = [*root.rglob("*.py"), *converters.rglob("*.py")]

    assert [path.name for path in sources if "vqformat[" in path.read_text(encoding="utf-8")] == []


def test_a_missing_package_of_the_core_is_named(model: Path) -> None:
    code = "import sys; sys.modules['zstandard'] = None; from vqformat.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "info", model], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.endswith("; run: pip install zstandard\n") and done.stderr.count("\n") == 1


# Sizes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("300", 300), ("1e5", 100_000), ("1.5MB", 1_500_000), ("2K", 2000), ("2KB", 2000), ("2kB", 2000), ("2KiB", 2048),
     ("2Ki", 2048), ("1M", 10**6), ("1MiB", 1 << 20), ("1GB", 10**9), ("1.5 GiB", 3 << 29), ("2TB", 2 * 10**12),
     (".5k", 500), ("7b", 7), (8, 8), (1e5, 100_000)],
)  # fmt: skip
def test_sizes(text: str | float, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "1XB", "-1", "0", "nan", "inf", "1.2.3", ".", "1e999", "1_0", "0.1", True])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number of bytes, such as 300000, 1\.5MB or 300KiB"):
        parse_size(text)


def test_sizes_are_the_same_in_python(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)}
    path = tmp_path / "w.vqm"

    vqformat.save_file(weights, path, size="12KB")
    assert 11_880 <= path.stat().st_size <= 12_000
    assert list(vqformat.load_file(path, max_tensor_bytes="120KB", max_total_bytes="1MiB")) == ["w"]
    with pytest.raises(vqformat.LimitError, match="max_tensor_bytes is 119000"):
        vqformat.load_file(path, max_tensor_bytes="119K")
    for load in (vqformat.load_file, vqformat.verify, vqformat.stream, vqformat.safe_open):
        with pytest.raises(ValueError, match="'much' is not a number of bytes"):
            load(path, max_total_bytes="much")
    with vqformat.safe_open(path, max_total_bytes="119KB") as file, pytest.raises(vqformat.LimitError):
        file["w"]
    with pytest.raises(vqformat.EncodeError, match="size: 'much' is not a number of bytes"):
        Options(size="much")
    with vqformat.writer(path, size="12KB") as writer:
        writer.add_layer("", weights)
    assert 11_880 <= path.stat().st_size <= 12_000


# Several files


def test_convert_of_several(run: Run, archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path / "other.npz")

    result = run("convert", archive, tmp_path / "other.npz", "-o", f"{tmp_path / 'out'}/", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert sorted(os.listdir(tmp_path / "out")) == ["net.vqm", "other.vqm"]

    documents = run("convert", archive, tmp_path / "other.npz", "--json").json
    assert [document["output"] for document in documents] == [str(tmp_path / "net.vqm"), str(tmp_path / "other.vqm")]

    result = run("convert", archive, "-o", tmp_path / "out", "-f")
    assert result.out.splitlines()[-1].startswith(f"{tmp_path / 'out' / 'net.vqm'}: ")


def test_convert_of_several_of_which_one_fails(run: Run, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_text("no model")

    result = run("convert", tmp_path / "bad.pt", archive)

    assert result.code == 1
    assert result.err.startswith(f"vqm: error: '{tmp_path / 'bad.pt'}' is a text file")
    assert f"{tmp_path / 'net.vqm'}: 12,552 bytes of tensors in" in result.out


def test_outputs_that_would_be_the_same(run: Run, archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path / "net.pt")

    result = run("convert", archive, tmp_path / "net.pt")

    assert result.code == 2
    assert "net.npz' and " in result.err and "would become " in result.err
    assert not (tmp_path / "net.vqm").exists()


def test_several_sources_are_not_one_output(run: Run, archive: Path) -> None:
    result = run("convert", archive, archive, "-o", "x.vqm")

    assert result.code == 2
    assert "-o 'x.vqm' is one file, and there are 2 sources; -o DIR/ names a folder" in result.err


def test_info_goes_on_after_a_bad_file(run: Run, model: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.vqm").write_bytes(b"\x89VQM nonsense")
    args = ("info", model, tmp_path / "absent.vqm", tmp_path / "bad.vqm", archive)

    result = run(*args)
    assert result.code == 1
    errors = result.err.splitlines()
    assert errors[0] == f"vqm: error: '{tmp_path / 'absent.vqm'}': no such file or directory"
    assert errors[1].startswith(f"vqm: error: {tmp_path / 'bad.vqm'}: ") and len(errors) == 2
    assert f"file      {model}" in result.out and f"file      {archive}" in result.out

    documents = run(*args, "--json").json
    assert [("error" in document, document["file"]) for document in documents] == [
        (False, str(model)), (True, str(args[2])), (True, str(args[3])), (False, str(archive))]  # fmt: skip


# Pipes and terminals


def test_extract_to_stdout(archive: Path, tmp_path: Path) -> None:
    done = vqm("extract", archive, "-o", "-", "--format", "npz", "fc1.*")

    assert done.returncode == 0
    (tmp_path / "out.npz").write_bytes(done.stdout)
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays.files == ["fc1.weight", "fc1.bias"]
    assert done.stderr == f"stdout: 2 tensors, {len(done.stdout):,} bytes\n".encode()


def test_extract_to_stdout_needs_a_format(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "-o - needs --format" in run("extract", archive, "-o", "-").err
    assert "--format is for -o - only" in run("extract", archive, "-o", "x.npz", "--format", "npz").err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "not for a terminal" in run("extract", archive, "-o", "-", "--format", "npz").err


# Modules are imported once; a command begins and ends as in a process of its own
EACH_IN_A_FORK = """if True:
    import os, sys
    from vqformat.cli import command, convert, diff, inspect, main, verify
    for words in sys.argv[1:]:
        if not os.fork():
            sys.exit(main(words.split()))
        if os.wait()[1]:
            sys.exit(words)
"""


@pytest.mark.skipif(os.name != "posix", reason="redirections of a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(archive: Path, closed: str) -> None:
    commands = ["convert net.npz -f", "info net.vqm", "verify net.vqm", "diff net.npz net.vqm"]
    words = shlex.join([sys.executable, "-c", EACH_IN_A_FORK, *commands])
    done = subprocess.run(f"{words} {closed}", shell=True, cwd=archive.parent, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_same_source_twice_is_one_output(run: Run, archive: Path) -> None:
    assert "would become " in run("convert", archive, archive).err


def test_stdin_is_one_source(run: Run, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_stdin(monkeypatch, archive.read_bytes())

    result = run("convert", "-", archive)

    assert result.code == 2
    assert "stdin cannot be one of several sources" in result.err


@pytest.mark.parametrize(
    ("is_terminal", "settings", "has_colours"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colours_only_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool,
                                    settings: dict[str, str], has_colours: bool) -> None:  # fmt: skip
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)

    error = run("info", "absent").err

    plain = "vqm: error: 'absent': no such file or directory\n"
    assert error == (plain.replace("error:", "\x1b[1;31merror:\x1b[0m") if has_colours else plain)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_verbs_options_and_values(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "vqm.bash"
    script.write_text(run("completion", "bash").out)

    def completed(*words: str) -> list[str]:
        line = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _vqm"
        done = subprocess.run(["bash", "-c", f'{line}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True,
                              check=True)  # fmt: skip
        return done.stdout.split()

    assert completed("vqm", "co") == ["convert", "conformance", "completion"]
    assert completed("vqm", "convert", "--l") == ["--lossless", "--layer"]
    assert completed("vqm", "convert", "--preset", "''") == ["fast", "default", "small"]
    assert completed("vqm", "info", "mod") == []  # bash completes files


def test_other_shells_have_completions(run: Run) -> None:
    assert "bashcompinit" in run("completion", "zsh").out
    assert "complete -c vqm -n '__fish_seen_subcommand_from convert' -l ratio" in run("completion", "fish").out
