"""Time and memory that a start costs, and what it must not import. Imports nothing that would be in its own figures."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, median, noise, print_table, write_json

HEAVY = ("torch", "h5py", "hypothesis", "safetensors", "matplotlib", "faiss", "zipnn", "tqdm")
MAKE = """
import sys, numpy, vqformat
rng = numpy.random.default_rng(0)
tensors = {f"fc{i}.weight": rng.standard_normal((300, 300), numpy.float32) for i in range(3)}
vqformat.save_file(tensors, sys.argv[1])
"""
LIST = f"; import sys; print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", help="a .vqm for vqm info; else a small one is made")
    parser.add_argument("--repeats", type=int, default=15, help="runs of which the median is taken (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = args.file or str(Path(folder, "small.vqm"))
        if not args.file:
            subprocess.run([sys.executable, "-c", MAKE, file], check=True, env=environment())
        commands = {
            "python -c pass": ["-c", "pass"],
            "import numpy": ["-c", "import numpy"],
            "import vqformat": ["-c", "import vqformat"],
            "vqm info FILE": ["-m", "vqformat", "info", file],
        }
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
        for i in range(args.repeats + 1):
            for name, command in commands.items():
                run = measure([sys.executable, *command])
                if i:  # the first round fills the caches
                    runs[name].append(run)
        check_imports("import vqformat", "import vqformat" + LIST)
        check_imports("vqm info", f"from vqformat.cli import main; assert main(['info', {file!r}]) == 0" + LIST)
    rows = {name: (median([s for s, _ in of]), median([n for _, n in of])) for name, of in runs.items()}
    base = rows["python -c pass"][0]
    print_table(
        ("start", "ms", "above python", "peak MB"),
        [(name, f"{1e3 * s:.0f}", f"{1e3 * (s - base):.0f}", f"{n / 1e6:.1f}") for name, (s, n) in rows.items()],
    )
    print(f"neither import vqformat nor vqm info imports any of {', '.join(HEAVY)}")
    print(noise("python -c pass", [s for s, _ in runs["python -c pass"]]))
    write_json(args.json, {name: {"seconds": s, "peak_nbytes": n} for name, (s, n) in rows.items()})


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return elapsed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_imports(what: str, code: str) -> None:
    """Exit with 1 if a fresh interpreter that runs this code has imported something heavy."""
    output = subprocess.run([sys.executable, "-c", code], check=True, env=environment(), capture_output=True, text=True)
    imported = output.stdout.splitlines()[-1].removeprefix("imported:").split()
    if imported:
        raise SystemExit(f"{what} imports {', '.join(imported)}")


if __name__ == "__main__":
    main()
