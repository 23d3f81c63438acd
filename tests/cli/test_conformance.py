"""``vqm conformance``: the scores of right and faulty decoders, and the page of clauses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runs import Run, vqm
from conftest import FIXTURES, ROOT
from examples import some_of
from fixture_cases.known import STANDS_FOR
from fixture_cases.levels import FULL_CLAUSES, level_of

from vqformat.cli.conformance_cases import find_fixtures, load_cases
from vqformat.cli.conformance_page import REASONS

MORE = ["valid/worked-*", "valid/sparse-base.vqm", "invalid/sec-001-*", "invalid/trl-001-*"]
FEW = ["valid/worked-*", "invalid/sec-001-crc.vqm", "invalid/trl-001-rows.vqm"]  # both levels, valid and not
REFERENCE = FIXTURES / "decoders" / "python" / "vqmcat.py"
MINI = ROOT / "tests" / "minidecoder.py"

# What a faulty decoder does before it answers as the mini decoder does
FAULTS = {
    "crash": "sys.exit('broken')",
    "hang": "time.sleep(60)",
    "memory": "memory = b'x' * (400 << 20) if 'spa-004' in sys.argv[1] else b''",
    "whole stdin": "sys.stdin = io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.raw.read(1 << 20)))",
    "no json": "print('no JSON'), sys.exit(0)",
    "accepts": "print('{\"tensors\": []}'), sys.exit(0)",
    "wrong class": "print('limit'), sys.exit(1)",
}


def command(script: Path) -> str:
    return shlex.join([sys.executable, str(script)])


def faulty(folder: Path, fault: str) -> str:
    script = folder / "decoder.py"
    script.write_text(f"import io, runpy, sys, time\nsys.path.insert(0, {str(MINI.parent)!r})\n{FAULTS[fault]}\n"
                      f"runpy.run_path({str(MINI)!r}, run_name='__main__')\n")  # fmt: skip
    return command(script)


@pytest.mark.parametrize("files", some_of([FEW, MORE], [FEW]), ids=len)
def test_the_reference_has_the_full_score(run: Run, files: list[str]) -> None:
    result = run("conformance", "--decoder", command(REFERENCE), *files)

    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["core", "full"]
    assert lines[1][0] == "valid"
    assert not [line for line in lines[1:] for cell in line if "/" in cell and len(set(cell.split("/"))) > 1]
    assert "failure" not in result.out


def test_the_scores_as_json(run: Run) -> None:
    result = run("conformance", "--decoder", command(MINI), "--json", "valid/worked-*", "invalid/sec-001-*")

    scores = result.json["scores"]
    assert result.code == 0
    assert scores["valid"]["full"] == {"right": 1, "all": 1}
    assert scores["invalid"]["core"]["right"] == scores["invalid"]["core"]["all"] > 0
    assert result.json["clauses"]["SEC-001"]["right"] > 0
    assert result.json["failures"] == []


@pytest.mark.parametrize("fault, problem", [
    ("crash", "exit status 1, and the output is no JSON object"),
    ("no json", "exit status 0, and the output is no JSON object"),
    ("accepts", "the names of the tensors are wrong"), ("wrong class", "refused as limit"),
])  # fmt: skip
def test_what_is_wrong_with_a_valid_file(run: Run, tmp_path: Path, fault: str, problem: str) -> None:
    result = run("conformance", "--decoder", faulty(tmp_path, fault), "--by", "name", "valid/worked-trellis.vqm")

    assert result.code == 1
    assert "1 failure:" in result.out
    assert f"valid/worked-trellis.vqm: {problem}" in result.out
    assert re.search(r"^TRL-00\d +0/1$", result.out, re.MULTILINE)


@pytest.mark.parametrize("fault, problem", [
    ("accepts", "it was read; it is to be refused as checksum"), ("wrong class", "refused as limit, not as checksum"),
])  # fmt: skip
def test_what_is_wrong_with_an_invalid_file(run: Run, tmp_path: Path, fault: str, problem: str) -> None:
    result = run("conformance", "--decoder", faulty(tmp_path, fault), "--by", "name", "invalid/sec-001-crc.vqm")

    assert result.code == 1
    assert f"invalid/sec-001-crc.vqm: {problem} [SEC-001]" in result.out


def test_a_decoder_that_does_not_end(run: Run, tmp_path: Path) -> None:
    options = ["--by", "name", "--timeout", "0.5", "valid/worked-trellis.vqm"]
    result = run("conformance", "--decoder", faulty(tmp_path, "hang"), *options)

    assert result.code == 1
    assert "it took too long and was ended" in result.out


def test_a_decoder_that_reads_stdin_only(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "decoder.py"
    script.write_text("import runpy, sys\nassert len(sys.argv) == 1\nsys.argv.append('-')\n"
                      f"runpy.run_path({str(MINI)!r}, run_name='__main__')\n")  # fmt: skip

    result = run("conformance", "--decoder", command(script), "--by", "stdin", "valid/worked-*")

    assert result.code == 0
    assert re.search(r"^valid +1/1 +1/1$", result.out, re.MULTILINE)


def test_a_decoder_that_takes_one_read_for_the_whole_file(run: Run, tmp_path: Path) -> None:
    result = run("conformance", "--decoder", faulty(tmp_path, "whole stdin"), "--json", "valid/worked-trellis.vqm")

    assert result.code == 1
    assert [failure["way"] for failure in result.json["failures"]] == ["pieces"]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the platform does not tell the memory of a process")
def test_a_decoder_that_takes_too_much_memory(tmp_path: Path) -> None:
    options = ["--by", "name", "invalid/spa-004-fewer.vqm", "valid/sparse-base.vqm"]
    # In a process of its own, since the memory of this one counts
    result = vqm("conformance", "--decoder", faulty(tmp_path, "memory"), *options)

    assert result.returncode == 1
    assert re.search(r"invalid/spa-004-fewer.vqm: it took \d+ MiB; the file may cost 192 MiB", result.stdout.decode())


def test_the_manifest_tells_the_level_of_each_file_and_what_it_stands_for() -> None:
    manifest = {entry["file"]: entry for entry in json.loads((FIXTURES / "manifest.json").read_text())}

    for file, entry in manifest.items():
        assert entry["level"] == level_of((FIXTURES / file).read_bytes(), entry["clauses"])
        if any(clause.startswith(FULL_CLAUSES) for clause in entry["clauses"]):
            assert entry["level"] == "full"
    assert {file: entry["stands_for"] for file, entry in manifest.items() if "stands_for" in entry} == STANDS_FOR


def test_core_leaves_out_what_needs_more_than_fixed_width_codes() -> None:
    levels = {case.file: case.level for case in load_cases(FIXTURES, [], ["core", "full"])}

    assert levels["valid/worked-codebook.vqm"] == levels["invalid/sec-001-crc.vqm"] == "core"
    assert levels["valid/worked-trellis.vqm"] == levels["valid/sparse-base.vqm"] == "full"
    assert levels["invalid/low-001-rank-0.vqm"] == "full"
    assert all(levels[f"valid/{name}.vqm"] == "core" for name in ("aliases", "zstd-blocks", "empty-model"))


def test_core_alone(run: Run) -> None:
    result = run("conformance", "--decoder", command(MINI), "--level", "core", "--by", "name", *FEW)

    assert result.code == 0
    assert re.search(r"^valid +1/1 +-$", result.out, re.MULTILINE)


def test_the_page_has_a_line_and_fixtures_for_each_clause(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "clauses.md"

    assert run("conformance", "--page", page).code == 0

    rows = dict(re.findall(r"^\| ([A-Z]{3}-\d{3}) \| (.*) \|$", page.read_text(), re.MULTILINE))
    assert set(rows) == set(re.findall(r"\*\*\[([A-Z]{3}-\d{3})\]\*\*", (ROOT / "SPEC.md").read_text()))
    where = re.match(r"`(vqformat/\S+):(\d+)` \| .*`invalid/sec-003-padding`", rows["SEC-003"])
    assert where is not None
    assert "SEC-003" in (ROOT / where[1]).read_text().splitlines()[int(where[2]) - 1]
    run("conformance", "--page", page).failed_with("exists; -f replaces it")


def test_a_clause_without_a_fixture(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "fixtures"
    folder.mkdir()
    (folder / "manifest.json").write_text((FIXTURES / "manifest.json").read_text())
    (tmp_path / "SPEC.md").write_text(f"{(ROOT / 'SPEC.md').read_text()}\n- **[NEW-001]** A new rule.\n")

    page = tmp_path / "page.md"

    result = run("conformance", "--page", page, "--fixtures", folder)

    assert (result.code, result.out, result.err) == (1, "", "vqm: note: NEW-001 has no fixture\n")
    assert run("conformance", "--page", page, "-f", "--fixtures", folder, "--json").json == {"missing": ["NEW-001"]}


def test_reasons_are_given_for_clauses_without_a_fixture() -> None:
    clauses = set(re.findall(r"\*\*\[([A-Z]{3}-\d{3})\]\*\*", (ROOT / "SPEC.md").read_text("utf-8")))
    with_fixture = {clause for entry in json.loads((FIXTURES / "manifest.json").read_text("utf-8"))
                    for clause in entry["clauses"]}  # fmt: skip

    assert REASONS.keys() == clauses - with_fixture


def test_the_page_and_the_scores_are_one_json_document(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "clauses.md"
    result = run("conformance", "--page", page, "--decoder", command(MINI), "--json", "valid/worked-codebook.vqm")

    assert (result.code, result.err) == (0, "")
    assert (result.json["missing"], result.json["failures"]) == ([], [])


def test_the_page_is_replaced_when_it_is_complete(run: Run, tmp_path: Path) -> None:
    page, before = tmp_path / "clauses.md", tmp_path / "before.md"
    page.write_text("old")
    os.link(page, before)  # another name of the old file, which would change if the page were written into it

    assert run("conformance", "--page", page, "-f").code == 0

    assert page.read_text("utf-8").startswith("# Clauses")
    assert before.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="the platform has no SIGTERM that a program can catch")
def test_a_signal_ends_the_running_decoders(tmp_path: Path) -> None:
    script, pids = tmp_path / "decoder.py", tmp_path / "pids"
    pids.mkdir()
    script.write_text(f"import os, time\nopen(os.path.join({str(pids)!r}, str(os.getpid())), 'x')\ntime.sleep(600)\n")
    words = ["conformance", "--decoder", command(script), "--jobs", "2", "--timeout", "600", *FEW]
    process = subprocess.Popen([sys.executable, "-m", "vqformat", *words])
    try:
        while len(list(pids.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        left = []
        for path in pids.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
                left.append(path.name)
    assert (left, len(list(pids.iterdir()))) == ([], 2)


def test_a_damaged_copy_is_not_taken_for_a_fault_of_the_decoder(run: Run, tmp_path: Path) -> None:
    entry = next(entry for entry in json.loads((FIXTURES / "manifest.json").read_text()) if "error" not in entry)
    (tmp_path / "valid").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    (tmp_path / entry["file"]).write_bytes(b"")

    run("conformance", "--decoder", "x", "--fixtures", tmp_path).failed_with("damaged copy")


@pytest.mark.parametrize("args, words", [
    ([], "--decoder, --page or both"), (["--decoder", "x", "nothing*"], "no fixture"),
    (["--decoder", "x", "--fixtures", "nowhere"], "no manifest.json"),
    (["--decoder", "x", "--jobs", "0"], "not an integer above 0"),
])  # fmt: skip
def test_wrong_usage(run: Run, args: list[str], words: str) -> None:
    result = run("conformance", *args)

    assert result.code == 2
    assert words in result.err


def test_a_command_that_does_not_exist(run: Run) -> None:
    run("conformance", "--decoder", "/nowhere/decoder", "valid/worked-trellis.vqm").failed_with("cannot be run")


def test_the_fixtures_of_the_checkout_are_found() -> None:
    assert find_fixtures(None) == FIXTURES
