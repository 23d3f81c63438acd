"""``vqm sign`` and ``vqm verify --key``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from cli_runs import Run

pytest.importorskip("cryptography", exc_type=ImportError)

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from vqformat.read.sequential import SequentialReader

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo
PLAIN = serialization.NoEncryption()


def write_keys(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, PKCS8, PLAIN))
    public.write_bytes(key.public_key().public_bytes(PEM, PUBLIC))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key", 1)


def test_a_signed_file_is_verified(run: Run, model: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signed = run("sign", model, "--key", private)
    assert (signed.code, signed.out, signed.err) == (0, f"{model}.sig: signature of {model}\n", "")
    result = run("verify", model, "--key", public)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{model}: ok ")
    assert result.out.endswith(", signature right\n")
    assert run("verify", model, "--key", public, "--json").json[0]["signature_ok"] is True


def test_the_signature_is_that_of_the_spec(run: Run, model: Path, keys: tuple[Path, Path]) -> None:
    run("sign", model, "--key", keys[0])
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    message = b"vqm file signature 1\n" + hashlib.sha256(model.read_bytes()).digest()
    assert Path(f"{model}.sig").read_bytes() == key.sign(message)


def test_any_changed_byte_is_refused_before_anything_is_read(
    run: Run, model: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("sign", model, "--key", keys[0])
    monkeypatch.setattr(SequentialReader, "__init__", lambda *args, **options: pytest.fail("the file is parsed"))
    whole = model.read_bytes()
    for at in (0, 20, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        model.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        run("verify", model, "--key", keys[1]).failed_with(f"{model}: the signature in {model}.sig is wrong")


def test_the_key_must_be_that_of_the_signer(run: Run, model: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    run("sign", model, "--key", keys[0])
    run("verify", model, "--key", write_keys(tmp_path, "other", 2)[1]).failed_with("is wrong")


@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(65)])
def test_a_malformed_signature_is_wrong(run: Run, model: Path, keys: tuple[Path, Path], signature: bytes) -> None:
    Path(f"{model}.sig").write_bytes(signature)
    run("verify", model, "--key", keys[1]).failed_with("is wrong")


def test_a_missing_signature_is_an_error(run: Run, model: Path, keys: tuple[Path, Path]) -> None:
    run("verify", model, "--key", keys[1]).failed_with(f"the file is not signed: there is no {model}.sig")


def test_a_signature_is_replaced_only_by_force(run: Run, model: Path, keys: tuple[Path, Path]) -> None:
    run("sign", model, "--key", keys[0])
    run("sign", model, "--key", keys[0]).failed_with("exists; -f replaces it")
    assert run("sign", model, "--key", keys[0], "-f").code == 0


def test_other_keys_are_refused(run: Run, model: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    run("sign", model, "--key", public).failed_with("no private key in PEM form")
    run("verify", model, "--key", private).failed_with("no public key in PEM form")
    run("sign", model, "--key", tmp_path / "absent.pem").failed_with("absent.pem", "no such file")
    other = tmp_path / "ec.pem"
    other.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(PEM, PKCS8, PLAIN))
    run("sign", model, "--key", other).failed_with("no Ed25519 key")
    key = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"word")))
    run("sign", model, "--key", other).failed_with("it is encrypted")


def test_stdin_has_no_signature(run: Run, keys: tuple[Path, Path]) -> None:
    assert run("verify", "-", "--key", keys[1]).code == 2
    assert run("sign", "-", "--key", keys[0]).code == 2


@pytest.mark.parametrize("verb", ["sign", "verify"])
def test_the_missing_package_is_named(
    run: Run, model: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    run(verb, model, "--key", keys[0]).failed_with("cryptography", "pip install cryptography")
