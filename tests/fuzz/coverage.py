"""Fuzzing of the reader or of one converter, guided by coverage; a command that needs atheris (pip install atheris).

    python tests/fuzz/coverage.py reader [-max_total_time=SECONDS] [-seed=S] [-artifact_prefix=FOLDER/] …
    python tests/fuzz/coverage.py a.gguf …                any file of one part that fuzz/checkpoints.py makes
    python tests/fuzz/coverage.py list

The options are those of libFuzzer. Anything but VqmError, ImportError or a file that loads stops it, and leaves the
file.
The reader lets a false CRC-32 pass here, so that changes get beyond it.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "converters"))  # for fuzz.checkpoints
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["vqformat"]):
    import vqformat
    import vqformat.converters
    from vqformat.format import container, crc, sections

from fuzz.checkpoints import small_files
from fuzz.converters import GOOD, handle, read_once

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MOST_NBYTES = 1 << 20


def read(data: bytes) -> None:
    """In one pass, and by the index."""
    for way in (lambda stream: vqformat.load_file(stream, max_total_bytes=MOST_NBYTES), by_index):
        with contextlib.suppress(vqformat.VqmError):
            way(io.BytesIO(data))


def by_index(stream: io.BytesIO) -> None:
    with vqformat.safe_open(stream, max_total_bytes=MOST_NBYTES) as file:
        for name in file:
            file.get_tensor(name)


def pass_every_crc() -> None:
    """Any CRC-32 is right."""
    for module in (container, crc, sections):
        for name in ("check_crc", "compare_crc"):
            if hasattr(module, name):
                setattr(module, name, lambda *_: None)


def main() -> int:
    target, *options = sys.argv[1:] or ["list"]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        seeds, work = Path(folder) / "seeds", Path(folder) / "work"
        seeds.mkdir()
        work.mkdir()
        if target == "reader":
            pass_every_crc()
            for path in (FIXTURES / "valid").glob("*.vqm"):
                (seeds / path.name).write_bytes(path.read_bytes())
            test = read
        else:
            with atheris.instrument_imports(include=["vqformat"]):
                read_once()
                bases = {name: files for name, files in small_files(work).items() if len(files) == 1}
            if target not in bases:
                print(*bases, sep="\n")
                return 0 if target == "list" else 2
            name, data = next(iter(bases[target].items()))
            (seeds / "seed").write_bytes(data)

            def test(data: bytes) -> None:
                (work / name).write_bytes(data)
                kind, text = handle(work / name)
                if kind not in GOOD and not kind.startswith("child"):
                    raise RuntimeError(f"{kind}: {text}")

        atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=4096", *options, str(seeds)], test)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
