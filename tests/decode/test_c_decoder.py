"""The decoder in C (vqformat/native/vqm.c), by its program vqmcat: the fixtures in every way of reading."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKPOINT, FIXTURES, ROOT
from index_faults import BY_INDEX, OTHER_DIGEST, index_faults
from vqmbuilder import file, layr
from vqmtensors import alias, raw

import vqformat
from vqformat.cli import main

MANIFEST: list[dict[str, Any]] = json.loads((FIXTURES / "manifest.json").read_text())
FILES = [case["file"] for case in MANIFEST]
SOURCE = ROOT / "vqformat" / "native"
PROGRAM = FIXTURES / "decoders" / "c" / "vqmcat.c"
WARNINGS = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZERS = ["-g", "-O1", "-DVQM_TEST_ARENA", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
USE_OF_ZSTD = "#include <zstd.h>\nint main(void) { return !ZSTD_versionNumber(); }"
# From a stream, in pieces, from memory; with an arena of just the size that vqm_need tells
IN_SEQUENCE = [(), ("-p", "1"), ("-p", "7", "-e"), ("-m",), ("-m", "-e")]
WITH_INDEX = [("-i",), ("-i", "-e"), ("-r", "-e")]


def build(target: Path, program: Path, *options: str, libraries: tuple[str, ...] = ("-lzstd",)) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler (cc)")
    if libraries and not _compiles(compiler, USE_OF_ZSTD, target):
        pytest.skip("there is no zstd.h, or no libzstd to link with: on Debian they are in libzstd-dev")
    command = [compiler, *WARNINGS, *options, f"-I{SOURCE}", SOURCE / "vqm.c", program, *libraries, "-o", target]
    subprocess.run(command, check=True)
    return target


def _compiles(compiler: str, program: str, target: Path) -> bool:
    command = [compiler, "-x", "c", "-", "-x", "none", "-lzstd", "-o", str(target)]
    return subprocess.run(command, input=program.encode(), capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def vqmcat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("c") / "vqmcat", PROGRAM, "-O2")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("c") / "vqmcat", PROGRAM, *SANITIZERS)


def said(vqmcat: Path, *arguments: str) -> list[dict[str, Any]]:
    """What it says of each fixture, in one process."""
    run = subprocess.run([vqmcat, *arguments, *FILES], cwd=FIXTURES, capture_output=True, check=False)
    assert run.stderr == b""
    assert run.returncode == 1  # some are refused
    return [json.loads(line) for line in run.stdout.decode().splitlines()]


def check(vqmcat: Path, *arguments: str, by_index: bool = False) -> None:
    found = said(vqmcat, *arguments)

    assert len(found) == len(MANIFEST)
    for case, result in zip(MANIFEST, found, strict=True):
        if "error" not in case:
            assert result == {key: case[key] for key in ("generator", "metadata", "layers", "tensors")}, case["file"]
        elif not by_index:  # a reader by the index meets faults in another order, or not at all
            assert result.get("error") == case["error"], (case["file"], result)


@pytest.mark.parametrize("arguments", IN_SEQUENCE)
def test_fixtures_in_sequence(vqmcat: Path, arguments: tuple[str, ...]) -> None:
    check(vqmcat, *arguments)


@pytest.mark.parametrize("arguments", WITH_INDEX)
def test_fixtures_by_the_index(vqmcat: Path, arguments: tuple[str, ...]) -> None:
    check(vqmcat, *arguments, by_index=True)


@pytest.mark.parametrize("arguments", [("-p", "7"), ("-m",), ("-i",), ("-r",)])
def test_wrong_fields_of_the_index(vqmcat: Path, arguments: tuple[str, ...], tmp_path: Path) -> None:
    faults = dict(index_faults())
    for fault, data in faults.items():
        (tmp_path / fault).write_bytes(data)

    run = subprocess.run([vqmcat, *arguments, *faults], cwd=tmp_path, capture_output=True, check=False)

    found = [json.loads(line).get("error") for line in run.stdout.splitlines()]
    for fault, error in zip(faults, found, strict=True):
        if arguments in (("-i",), ("-r",)):
            assert error == BY_INDEX.get(fault, "format") or BY_INDEX.get(fault, "") is None, fault
        else:
            assert error == ("checksum" if fault == OTHER_DIGEST else "format"), fault


@pytest.mark.exhaustive
@pytest.mark.parametrize("arguments", IN_SEQUENCE + WITH_INDEX)
def test_fixtures_under_the_sanitizers(sanitized: Path, arguments: tuple[str, ...]) -> None:
    check(sanitized, "-a", "600", *arguments, by_index=arguments in WITH_INDEX)


def test_stdin_and_exit_status(vqmcat: Path) -> None:
    def status(name: str) -> tuple[int, dict[str, Any]]:
        run = subprocess.run([vqmcat], input=(FIXTURES / name).read_bytes(), capture_output=True, check=False)
        return run.returncode, json.loads(run.stdout)

    code, result = status("valid/worked-codebook.vqm")
    assert code == 0 and [tensor["name"] for tensor in result["tensors"]] == ["net.w"]
    code, result = status("invalid/sec-001-crc.vqm")
    assert code == 1 and (result["error"], result["rule"]) == ("checksum", "SEC-001")


def test_a_small_arena_is_refused_and_the_size_that_is_needed_is_enough(vqmcat: Path) -> None:
    name = FIXTURES / "valid" / "book-entries-limit.vqm"
    refused = subprocess.run([vqmcat, "-a", "0", name], capture_output=True, check=False)
    assert (refused.returncode, json.loads(refused.stdout)["error"]) == (1, "limit")
    assert subprocess.run([vqmcat, "-e", name], capture_output=True, check=False).returncode == 0


def test_the_size_that_is_needed_is_enough_by_the_index_for_aliases_of_many_axes(vqmcat: Path, tmp_path: Path) -> None:
    target = raw("a", "u8", [1] * 32, b"\7")
    path = tmp_path / "aliases.vqm"
    path.write_bytes(file(layr("", target, *(alias(f"b{i}", target) for i in range(9)))).build())

    for arguments in WITH_INDEX:
        run = subprocess.run([vqmcat, *arguments, path], capture_output=True, check=False)
        assert run.returncode == 0, (arguments, run.stdout)
        assert {tuple(tensor["shape"]) for tensor in json.loads(run.stdout)["tensors"]} == {(1,) * 32}


def test_without_zstd_its_files_are_unsupported_and_all_others_decode(tmp_path: Path) -> None:
    vqmcat = build(tmp_path / "vqmcat", PROGRAM, "-DVQM_NO_ZSTD", libraries=())

    found = said(vqmcat)

    refused = [case["file"] for case, result in zip(MANIFEST, found, strict=True)
               if "error" not in case and result.get("error") == "unsupported"]  # fmt: skip
    others = [case for case, result in zip(MANIFEST, found, strict=True) if "error" not in case and "error" in result
              and case["file"] not in refused]  # fmt: skip
    assert not others
    assert "valid/zstd-blocks.vqm" in refused and len(refused) < 50


@pytest.mark.parametrize("preset", ["default", pytest.param("small", marks=pytest.mark.exhaustive)])
def test_a_model_gives_the_same_bytes_as_with_python(vqmcat: Path, tmp_path: Path, preset: str) -> None:
    path = tmp_path / "lenet.vqm"
    assert main(["convert", str(CHECKPOINT), "-o", str(path), "--preset", preset, "-q"]) == 0
    expected = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in vqformat.load_file(path).items()}
    for arguments in [*IN_SEQUENCE, *WITH_INDEX]:
        run = subprocess.run([vqmcat, *arguments, path], capture_output=True, check=True)
        assert {tensor["name"]: tensor["sha256"] for tensor in json.loads(run.stdout)["tensors"]} == expected


@pytest.mark.exhaustive
def test_nothing_worse_than_a_refusal_comes_of_cut_and_changed_files(tmp_path: Path) -> None:
    unsafe = "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION"
    fuzzer = ROOT / "tests" / "fuzz" / "c_fuzzer.c"
    mutate = build(tmp_path / "mutate", fuzzer, *SANITIZERS, unsafe, "-DWITHOUT_LIBFUZZER")

    run = subprocess.run([mutate, *FILES], cwd=FIXTURES, capture_output=True, check=False, timeout=1200)

    assert run.returncode == 0, run.stderr.decode()[-3000:]
    n_read, n_tried = map(int, run.stdout.split()[::2])
    assert 0 < n_read < n_tried
