"""Clusters of Dask that encode tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor

from ..errors import missing_package

_TIMEOUT_S = 10  # until the scheduler must have answered
_LARGE_TASK = "1TB"  # tasks may hold the array of a tensor; Dask warns of large ones


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[tuple[Executor | None, int]]:
    """Context with an executor of a cluster, and how many tensors it encodes at the same time.

    Args:
        address: Address of the scheduler, such as ``tcp://host:8786``; None for no cluster.

    Raises:
        ImportError: The package distributed is not installed.
        OSError: No scheduler answers.
    """
    if address is None:
        yield None, 1
        return
    try:
        import dask
        import distributed
    except ImportError as err:
        raise missing_package("--dask needs", "distributed", err) from err
    threshold = {"distributed.admin.large-graph-warning-threshold": _LARGE_TASK}
    with dask.config.set(threshold), distributed.Client(address, timeout=_TIMEOUT_S) as client:
        yield client.get_executor(), max(sum(client.nthreads().values()), 1)
