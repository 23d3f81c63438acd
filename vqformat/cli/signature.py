"""``vqm sign``, and the check of a signature by ``vqm verify --key`` (SPEC section 19)."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import VqmError, missing_package
from ..files import NewFile
from ..read.shards import index_of
from .files import STDIO, check_output, check_source, label
from .parsers import UsageError
from .text import to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_TAG = b"vqm file signature 1\n"  # so that a signature made for another purpose is not one of a file
_NBYTES = 64  # of an Ed25519 signature
_PIECE_NBYTES = 1 << 22
_KEY_NBYTES = 1 << 16  # more than any PEM file of a key has


class SignatureError(VqmError):
    """A key cannot be used, or a signature is missing or wrong."""


def run_sign(args: argparse.Namespace) -> int:
    """Run ``vqm sign``: write the signature of a file beside it."""
    if args.file == STDIO:
        raise UsageError("sign needs a file, beside which the signature is written")
    check_source(args.file)
    index = index_of(args.file)
    file = args.file if index is None else str(index)  # the index has the digests of the shards
    output = Path(signature_path(file))
    check_output(output, file, force=args.force)
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as err:
        raise missing_package("signatures need", "cryptography", err) from err
    pem = _read_key(args.key)
    try:
        key = load_pem_private_key(pem, None)
    except Exception as err:  # of several classes
        hint = "encrypted, or " if isinstance(err, TypeError) else ""
        raise SignatureError(f"{label(args.key)}: it is {hint}no private key in PEM form") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{label(args.key)}: it is no Ed25519 key")
    with open(file, "rb") as stream:
        signature = key.sign(_message(stream))
    with NewFile(output, overwrite=args.force) as target:
        target.write(signature)
    if args.json:
        print(to_json({"file": file, "signature": str(output)}))
    elif not args.quiet:
        print(f"{label(str(output))}: signature of {label(file)}")
    return 0


def signature_path(file: str) -> str:
    """The path of the signature of a file."""
    return f"{file}.sig"


def load_public_key(path: str) -> Ed25519PublicKey:
    """Read the public key of signatures.

    Raises:
        SignatureError: The file has no Ed25519 public key in PEM form.
        ImportError: cryptography is not installed.
        OSError: The file cannot be read.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as err:
        raise missing_package("signatures need", "cryptography", err) from err
    pem = _read_key(path)
    try:
        key = load_pem_public_key(pem)
    except Exception as err:  # of several classes
        raise SignatureError(f"{label(path)}: it is no public key in PEM form") from err
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{label(path)}: it is no Ed25519 key")
    return key


def check_signature(file: str, stream: BinaryIO, key: Ed25519PublicKey) -> None:
    """Check the signature of a file, or of the index of shards.

    Its bytes are hashed; nothing of it is parsed. Then the stream is at its start.

    Raises:
        SignatureError: The signature is missing or wrong.
    """
    from cryptography.exceptions import InvalidSignature

    path = signature_path(file)
    try:
        with open(path, "rb") as signature_stream:
            signature = signature_stream.read(_NBYTES + 1)
    except FileNotFoundError as err:
        raise SignatureError(f"the file is not signed: there is no {label(path)}") from err
    try:
        key.verify(signature, _message(stream))
    except InvalidSignature as err:
        raise SignatureError(f"the signature in {label(path)} is wrong: the file has changed since, or another key"
                             " signed it") from err  # fmt: skip
    stream.seek(0)


def _message(stream: BinaryIO) -> bytes:
    """What is signed: a tag and the SHA-256 of all bytes of the file."""
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE_NBYTES):
        digest.update(piece)
    return _TAG + digest.digest()


def _read_key(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(_KEY_NBYTES)
