"""Remote files in several processes: each has a connection of its own."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from processes import begin, end, needs_fork
from remote_files import Server, assert_same, file, local

from vqformat import safe_open

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def check(f: Any, times: int = 1) -> None:
    for _ in range(times):
        assert_same(dict(f.items()), local("default"))


@needs_fork
def test_processes_that_are_forked_read_the_same_remote_file(server: Server, remote: Any) -> None:
    with remote(file("default")) as stream, safe_open(stream) as f:
        check(f)
        children = [begin("fork", check, f, 2) for _ in range(2)]
        check(f, 2)
        end(*children)
        check(f)


@needs_fork
def test_a_forked_process_may_be_the_first_that_reads_tensors(server: Server, remote: Any) -> None:
    with remote(file("default")) as stream, safe_open(stream) as f:
        end(begin("fork", check, f))


def test_a_pickled_remote_file_is_opened_again(server: Server, remote: Any) -> None:
    with remote(file("default")) as stream, safe_open(stream) as f:
        end(begin("spawn", check, f))
        with pickle.loads(pickle.dumps(f)) as again:
            check(again)
