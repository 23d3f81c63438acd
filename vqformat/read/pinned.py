"""The version of a file on a web server: all that is read of a file must be of the version that was opened."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError


@dataclass(frozen=True)
class _Version:
    """What an answer of a server says about the file. Each may be missing.

    Attributes:
        etag: Its ETag, which is another one for each version (RFC 9110, 8.8.3).
        modified: Its Last-Modified.
        nbytes: Bytes of the whole file.
    """

    etag: str | None
    modified: str | None
    nbytes: int | None

    @classmethod
    def of(cls, response: Any) -> _Version:
        headers = response.headers
        nbytes = re.fullmatch(r"bytes [^/]*/(\d+)", headers.get("Content-Range", ""))
        return cls(headers.get("ETag"), headers.get("Last-Modified"), int(nbytes[1]) if nbytes else None)

    def difference(self, other: _Version) -> str | None:
        """In words, what tells that the other version is another one. A Last-Modified counts where an ETag is missing.

        Servers that share their work often disagree about Last-Modified.
        """
        pairs = [("ETag", self.etag, other.etag), ("length", self.nbytes, other.nbytes)]
        if self.etag is None or other.etag is None:
            pairs.append(("Last-Modified", self.modified, other.modified))
        for what, here, there in pairs:
            if here is not None and there is not None and here != there:
                return f"its {what} was {here!r:.100} and is {there!r:.100}"
        return None


class Pinned:
    """The session of an HTTP file of fsspec, which compares the version in each answer with that in the first one.

    No further request is made, and nothing is asked of the server that it might ignore.

    Args:
        stream: The file. Its session is replaced until ``release`` is called.
        like: The version that is expected is that of this one, as in a process that was forked.
    """

    def __init__(self, stream: Any, like: Pinned | None = None) -> None:
        self._stream, self._session = stream, stream.session
        self._version: _Version | None = like._version if like is not None else None
        self._is_active = True
        stream.session = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """Answer of the server to a GET.

        Raises:
            FormatError: It is of another version.
        """
        response = await self._session.get(*args, **kwargs)
        if self._is_active and response.status in (200, 206):
            found = _Version.of(response)
            if self._version is None:
                self._version = found
            difference = self._version.difference(found)
            if difference is not None:
                response.close()
                raise FormatError(f"the file was changed on its server while it was open: {difference}")
        return response

    def release(self) -> None:
        """Compare no more."""
        self._is_active = False
        if self._stream.session is self:
            self._stream.session = self._session


def pinned(stream: object, like: Pinned | None = None) -> Pinned | None:
    """Pin a file to its version, if it is an HTTP file of fsspec; else None."""
    http = sys.modules.get("fsspec.implementations.http")
    return Pinned(stream, like) if http is not None and isinstance(stream, http.HTTPFile) else None
