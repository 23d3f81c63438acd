"""The nearest of 256 codebook entries: vqformat against faiss, one thread, CPU time. Start it with one BLAS thread."""

from __future__ import annotations

import argparse
import statistics
import time

import faiss
import numpy as np
from common import print_table

import vqformat
from vqformat.encode.methods.nearest import nearest

DIMS = (1, 2, 4, 8, 16)
N_WEIGHTS, N_ENTRIES = 1_200_000, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each in turn, of which the median counts")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.RandomState(0)
    rows = []
    for dim in DIMS:
        vectors = random.standard_normal((N_WEIGHTS // dim, dim)).astype(np.float32)
        book = random.standard_normal((N_ENTRIES, dim)).astype(np.float32)
        index = faiss.IndexFlatL2(dim)
        index.add(book)
        ours, theirs, ratios = [], [], []
        for _ in range(args.rounds):
            start = time.process_time()
            codes = nearest(vectors, book)
            middle = time.process_time()
            found = index.search(vectors, 1)[1][:, 0]
            end = time.process_time()
            ours.append(middle - start)
            theirs.append(end - middle)
            ratios.append(theirs[-1] / ours[-1])
        speeds = (f"{len(vectors) / statistics.median(seconds) / 1e6:.3g}" for seconds in (ours, theirs))
        rows.append((str(dim), *speeds, f"{statistics.median(ratios):.2f}", f"{(codes == found).mean():.5f}"))
    print_table(("dim", "vqformat", "faiss", "faster", "same codes"), rows)
    print(f"million vectors a second; {vqformat.backend()}, faiss {faiss.__version__}")


if __name__ == "__main__":
    main()
