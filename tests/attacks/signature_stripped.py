"""The signature of a file is removed together with what it would show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .common import vqm

RULE = "vqm verify --key refuses a file without a signature"


def others(folder: Path) -> dict[str, str]:
    return {"pickle, safetensors, npz": "have no signatures"}


def ours(folder: Path) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    import vqformat

    key = Ed25519PrivateKey.generate().public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "pub.pem").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    vqformat.save_file({"w": np.ones(3)}, folder / "model.vqm")
    code, text = vqm("verify", folder / "model.vqm", "--key", folder / "pub.pem")
    return f"refuses it: {text.strip().replace(str(folder), '')}" if code == 1 else "opens it"
