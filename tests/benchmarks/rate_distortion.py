"""Size against squared error of our presets and of peers from the package index, on weights of trained networks."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    DATA,
    REFERENCE_NBYTES,
    Memcpy,
    checkpoints,
    load_checkpoint,
    median,
    print_markdown,
    print_table,
    seconds,
    sqnr,
    time_together,
    write_json,
)
from peers import DB_A_BIT, NNCodec, NNCodecCurve, Point, families, interpolate, nncodec, versions

import vqformat

RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
QUICK_RATES = (1.0, 2.0, 4.0)
# name -> (checkpoint, tensors stacked along the rows, rows kept); a row is an output, or one of the embedding table
TRAINED: dict[str, tuple[str, list[str], int | None]] = {
    "minilm-ffn": ("minilm", [f"encoder.layer.{i}.intermediate.dense.weight" for i in range(6)], None),
    "minilm-embedding": ("minilm", ["embeddings.word_embeddings.weight"], 8192),
    "crepe-conv6": ("crepe", ["conv6.weight"], 256),
    "alexsmall-fc1": ("alexsmall", ["fc1.weight"], None),
    "caffe-ip1": ("caffe-lenet", ["ip1.weight"], None),
}
CONTROLS = ("gauss", "laplace", "t5")  # independent samples; t5: Student's t of 5 degrees of freedom
QUICK = ("gauss", "minilm-ffn")

Print = Callable[[Any, Any], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of checkpoints; VQFORMAT_DATA sets its default")
    parser.add_argument("--matrices", nargs="+", metavar="NAME", help=f"some of {' '.join((*CONTROLS, *TRAINED))}")
    parser.add_argument("--quick", action="store_true", help="two matrices, three rates, 1 M weights of each at most")
    parser.add_argument("--only", choices=("rates", "speed"), help="sizes at equal quality, or times")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    show = print_markdown if args.markdown else print_table
    print(f"{datetime.date.today().isoformat()}: {versions()}\n")
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "versions": versions()}
    memcpy = Memcpy()
    codec = nncodec()
    wanted = args.matrices or (QUICK if args.quick else (*CONTROLS, *TRAINED))
    matrices = dict(matrices_of(args.data, wanted, 1 << 20 if args.quick else 1 << 62))
    if not matrices:
        parser.error("no matrices to measure on")
    if args.only in (None, "rates"):
        result["rates"] = rates_of(matrices, codec, QUICK_RATES if args.quick else RATES, show)
    if args.only in (None, "speed"):
        name = "minilm-ffn" if "minilm-ffn" in matrices else next(iter(matrices))
        result["speed"] = speed((name, matrices[name]), codec, memcpy, args.repeats, show)
    print(f"\n{memcpy.noise()}")
    write_json(args.json, result)


def matrices_of(data: Path, wanted: tuple[str, ...], n_weights: int) -> Iterator[tuple[str, np.ndarray]]:
    """Matrices by name, as far as their checkpoints are there and so many weights of each at most."""
    random = np.random.default_rng(0)
    for name in CONTROLS:
        shape = (1024, 4096)
        match name:
            case "gauss":
                w = random.standard_normal(shape)
            case "laplace":
                w = random.laplace(size=shape)
            case "t5":
                w = random.standard_t(5, size=shape)
        if name in wanted:
            yield name, w.astype(np.float32)[: max(1, n_weights // w.shape[1])]
    paths = checkpoints(data)
    for name, (checkpoint, tensors, n_rows) in TRAINED.items():
        path = paths[checkpoint]
        if name not in wanted:
            continue
        if path is None or not path.exists():
            print(f"{name}: {checkpoint} not found, left out")
            continue
        state = load_checkpoint(path)
        w = np.concatenate([state[tensor].reshape(len(state[tensor]), -1) for tensor in tensors])
        yield name, np.ascontiguousarray(w[:n_rows][: max(1, n_weights // w.shape[1])])


class Preset:
    """What one of our presets makes of a matrix; whole files, decoded again."""

    def __init__(self, name: str, w: np.ndarray) -> None:
        self._name, self._w = name, w
        self.points: list[Point] = []

    def encode(self, **goal: float) -> Point:
        file = io.BytesIO()
        vqformat.save_file({"w": self._w}, file, preset=self._name, **goal)
        setting = ", ".join(f"{key} {value:.2f}" for key, value in goal.items())
        point = Point(setting, file.getbuffer().nbytes, sqnr(self._w, decode(file.getvalue())))
        self.points.append(point)
        return point

    def bits(self, point: Point) -> float:
        return 8 * point.nbytes / self._w.size

    def at_rate(self, rate: float, start_db: float) -> Point:
        """A file of a rate, within about 1 %, made for an SQNR: only then squared error is all that counts."""
        goal, tried = start_db, []
        for _ in range(5):
            tried.append(self.encode(sqnr=max(goal, 0.3)))
            if abs(self.bits(tried[-1]) / rate - 1) < 0.01:
                break
            slope = DB_A_BIT
            if len(tried) > 1 and self.bits(tried[-1]) != self.bits(tried[-2]):
                slope = (tried[-1].sqnr_db - tried[-2].sqnr_db) / (self.bits(tried[-1]) - self.bits(tried[-2]))
            goal = tried[-1].sqnr_db - 0.03 + (rate - self.bits(tried[-1])) * min(max(slope, 3.0), 30.0)
        return min(tried, key=lambda point: abs(self.bits(point) - rate))

    def size_at(self, sqnr_db: float) -> float | None:
        """Bytes at an SQNR; None if it cannot be reached.

        Between two files less than 7 dB apart, where size is as good as linear in dB; else of a file made for it, less
        what it is better by.
        """
        worse = max((p for p in self.points if p.sqnr_db <= sqnr_db), key=lambda p: p.sqnr_db, default=None)
        better = min((p for p in self.points if p.sqnr_db > sqnr_db), key=lambda p: p.sqnr_db, default=None)
        if worse and better and better.sqnr_db - worse.sqnr_db < 7:
            share = (sqnr_db - worse.sqnr_db) / (better.sqnr_db - worse.sqnr_db)
            return worse.nbytes * (1 - share) + better.nbytes * share
        try:
            point = self.encode(sqnr=sqnr_db)
        except vqformat.EncodeError:
            return None
        return point.nbytes - (point.sqnr_db - sqnr_db) / DB_A_BIT * self._w.size / 8


def decode(file: bytes) -> np.ndarray:
    return vqformat.load_file(io.BytesIO(file))["w"]


def rates_of(
    matrices: dict[str, np.ndarray], codec: NNCodec | None, rates: tuple[float, ...], show: Print
) -> dict[str, Any]:
    """The tables of all matrices: a row a rate, then the peers that have rates of their own."""
    peers = dict(families())
    results = {}
    for name, w in matrices.items():
        print(f"\n{name}, {w.shape[0]} x {w.shape[1]} weights; of peers: the size at small's SQNR, over small's size")
        row: dict[str, Any] = {"shape": w.shape}
        presets = {preset: Preset(preset, w) for preset in ("small", "default", "fast")}
        row["seconds"] = seconds(lambda: row.update(measure(w, presets, codec, peers, rates)))  # noqa: B023
        results[name] = row
        curves = row["curves"]
        show(
            ("bits/weight", "small dB", *(["to Shannon"] if name == "gauss" else []), "default dB", "fast dB",
             *curves),
            [(f"{r['rate']:g}", f"{r['small_db']:.2f}",
              *([f"{r['small_bits'] * DB_A_BIT - r['small_file_db']:.2f}"] if name == "gauss" else []),
              f"{r['default_db']:.2f}", f"{r['fast_db']:.2f}" if r["fast_db"] else "-",
              *(f"{r['ratios'][curve]:.3f}" if r["ratios"][curve] else "-" for curve in curves))
             for r in row["rates"]],
        )  # fmt: skip
        for r in row["rates"]:
            if r["nncodec_setting"]:
                print(f"  NNCodec at {r['rate']:g}: {r['nncodec_setting']}")
    kinds = list(dict.fromkeys(kind for row in results.values() for kind in row["fixed"]))
    if kinds:
        print("\npeers of a rate of their own: bits a weight, and how many times larger than small at the same SQNR")
        show(
            ("", *matrices),
            [(kind, *(fixed_cell(row["fixed"].get(kind)) for row in results.values())) for kind in kinds],
        )
    return results


def fixed_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['bits']:.3f}: {found['ratio']:.3f}" if found["ratio"] else f"{found['bits']:.3f}: -"


def measure(
    w: np.ndarray,
    presets: dict[str, Preset],
    codec: NNCodec | None,
    peers: dict[str, Callable[[np.ndarray], Any]],
    rates: tuple[float, ...],
) -> dict[str, Any]:
    """Everything of one matrix. Sizes of peers are taken at SQNRs of files of ours: no curve is put through these."""
    files: dict[str, dict[float, Point]] = {"small": {}, "default": {}}
    for preset, found in files.items():
        gap = 0.6 if preset == "small" else 2.0
        for rate in sorted(rates, reverse=True):
            found[rate] = presets[preset].at_rate(rate, rate * DB_A_BIT - gap)
            gap = presets[preset].bits(found[rate]) * DB_A_BIT - found[rate].sqnr_db
    for width in (1, 2, 4, 8):
        presets["fast"].encode(bits=width + 0.05 + 4e4 / w.size)
    measured = {name: find(w) for name, find in peers.items()}
    curves: dict[str, list[Point]] = {**measured.get("palette", {}), **measured.get("faiss", {})}
    scalar = curves.pop("faiss scalar", [])
    points: dict[str, list[Point]] = {**curves, "faiss scalar": scalar}
    fixed = dict(measured.get("gguf", {}))
    if measured.get("nf4"):
        points["nf4"] = measured["nf4"]
        fixed["nf4"] = min(measured["nf4"], key=lambda point: point.waste(w.size))
    fixed |= {f"faiss {point.setting}": point for point in scalar}
    fixed |= {f"our fast, {round(presets['fast'].bits(point))} bits": point for point in presets["fast"].points}
    rows = []
    theirs = NNCodecCurve(codec, w) if codec else None
    if theirs:
        theirs.choose_variant(files["small"][min(rates, key=lambda rate: abs(rate - 2))].sqnr_db)
    for rate in sorted(rates, reverse=True):
        file = files["small"][rate]
        sizes: dict[str, float | None] = {}
        setting = ""
        if theirs:
            sizes["NNCodec"], setting = theirs.size(file.sqnr_db)
            sizes["its defaults"] = theirs.size_as_it_comes(file.sqnr_db)
        sizes |= {name: interpolate(curve, file.sqnr_db) for name, curve in curves.items()}
        at = {name: found[rate].sqnr_db + (rate - presets[name].bits(found[rate])) * DB_A_BIT
              for name, found in files.items()}  # fmt: skip
        fast = [point for point in presets["fast"].points if abs(presets["fast"].bits(point) / rate - 1) < 0.015]
        rows.append({
            "rate": rate, "small_bits": presets["small"].bits(file), "small_file_db": file.sqnr_db,
            "small_db": at["small"], "default_db": at["default"], "fast_db": fast[0].sqnr_db if fast else None,
            "ratios": {name: size / file.nbytes if size else None for name, size in sizes.items()},
            "nncodec_setting": setting,
        })  # fmt: skip
    against = {}
    for name, point in fixed.items():
        ours = presets["small"].size_at(point.sqnr_db)
        against[name] = {"bits": 8 * point.nbytes / w.size, "sqnr_db": point.sqnr_db, "setting": point.setting,
                         "ratio": point.nbytes / ours if ours else None}  # fmt: skip
    if theirs:
        points["NNCodec"] = theirs.points
    points |= {f"our {name}": preset.points for name, preset in presets.items()}
    return {
        "rates": rows[::-1],
        "curves": list(rows[0]["ratios"]),
        "fixed": against,
        "points": {name: [dataclasses.asdict(point) for point in found] for name, found in points.items()},
    }


def speed(
    matrix: tuple[str, np.ndarray], codec: NNCodec | None, memcpy: Memcpy, repeats: int, show: Print
) -> list[dict[str, Any]]:
    """Millions of weights a second, at about the quality that small has at 2 and at 4 bits a weight."""
    name, w = matrix
    results = []
    for goal_db in (11.6, 23.6):
        files: dict[str, Any] = {}  # as each decoder wants them
        works: dict[str, Callable[[], Any]] = {"memcpy": memcpy}
        for preset in ("fast", "default", "small"):
            works |= our_works(w, preset, goal_db, files)
        if codec:
            for scale in (0.0, 0.5):
                works |= their_works(w, codec, scale, goal_db, files)
        times = time_together(works, repeats)
        for who, file in files.items():
            row = {verb: w.size / median(times[f"{verb} {who}"]) / 1e6 if f"{verb} {who}" in times else None
                   for verb in ("encode", "search", "decode")}  # fmt: skip
            decoded = codec.decode(file) if codec and isinstance(file, bytearray) else decode(file)
            results.append({"goal_db": goal_db, "who": who, "bits": 8 * len(file) / w.size,
                            "sqnr_db": sqnr(w, decoded), **row})  # fmt: skip
    print(f"\nspeed on {name}, millions of weights a second; memcpy copies"
          f" {REFERENCE_NBYTES / 4e6 / median(memcpy.times):.0f}")  # fmt: skip
    show(
        ("goal dB", "who", "bits/weight", "SQNR dB", "encode to a step", "to the goal", "decode"),
        [(r["goal_db"], r["who"], f"{r['bits']:.2f}", f"{r['sqnr_db']:.2f}", f"{r['encode']:.2f}",
          f"{r['search']:.2f}" if r["search"] else "-", f"{r['decode']:.1f}") for r in results],
    )  # fmt: skip
    return results


def our_works(w: np.ndarray, preset: str, goal_db: float, files: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Encoding once, with a step that leads to about the goal; encoding until the goal is met; decoding of this."""

    def encode(**goal: float) -> None:
        file = io.BytesIO()
        vqformat.save_file({"w": w}, file, preset=preset, **goal)
        files[preset] = file.getvalue()

    step = 2.0 ** ((10.8 - goal_db - (3.6 if preset == "small" else 0.0)) / DB_A_BIT)
    return {
        f"encode {preset}": lambda: encode(step=step),
        f"search {preset}": lambda: encode(sqnr=goal_db),
        f"decode {preset}": lambda: decode(files[preset]),
    }


def their_works(
    w: np.ndarray, codec: NNCodec, scale: float, goal_db: float, files: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Encoding with the step that comes nearest to the goal; decoding."""
    name = f"NNCodec, lambda {scale:g}"
    qp = codec.first_qp(w, goal_db)
    qp += round((sqnr(w, codec.decode(codec.encode(w, qp, scale))) - goal_db) / 1.5)

    def encode() -> None:
        files[name] = codec.encode(w, qp, scale)

    return {f"encode {name}": encode, f"decode {name}": lambda: codec.decode(files[name])}


if __name__ == "__main__":
    main()
