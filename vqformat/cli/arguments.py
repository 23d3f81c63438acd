"""The command line of ``vqm``: verbs and arguments. It imports nothing that is slow to import."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from typing import Any

from .. import __version__, native
from ..encode.options import PRESETS
from ..encode.recipe import METHODS
from ..format.container import MAJOR, MINOR

_METHOD_HELP = """\
METHOD is a method and its options, such as pq:dim=4,entries=256, or a sum of them, each further one coding
what those before left: svd:rank=8+kmeans:entries=4. Without one the encoder chooses. PATTERN is a tensor's
name; *, ? and [abc] are wildcards. A pattern that is the very name counts before all others, else the first
that matches. Quote wildcards, or the shell takes them: --layer 'fc*=pq:dim=4'

methods:
"""

_DIFF_HELP = """\
SQNR, RMS error and cosine take A as the original. "same contents": all tensors are equal to the bit, so that
vqm info --digest shows the same digest for both. exit code: 0 if both have the same tensors (names, shapes
and dtypes), however much their values differ; 1 if they do not, or if a file cannot be read
"""

_VERIFY_HELP = """\
Of a damaged file, other than stdin, all damage is listed by tensor and byte; -v lists the whole tensors, too
"""

_SIGN_HELP = """\
OpenSSL makes the two keys:
  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout -out pub.pem
vqm verify FILE --key pub.pem checks the signature
"""

_RECOVER_HELP = """\
Tensors whose every byte is right are copied as they are stored. What is left out is told on stderr: damaged
tensors, aliases of them, and ancillary chunks. All tensors of a layer are left out if the head of its chunk is damaged,
or that of a codebook or frequency table which one of them uses. exit code: 0 if a tensor is whole, else 1
"""

_CONFORMANCE_HELP = """\
For a valid file a decoder prints what fixtures/README.md says, as JSON, and exits with status 0. For an invalid one it
prints {"error": class} or the class alone, and exits with status 1. It gets every file twice: by its name, and on
stdin in pieces. exit code: 0 if all is right, 1 if not, or if a clause of the page has no fixture
"""


class UsageError(Exception):
    """Wrong arguments that were found after parsing. The exit code is 2."""


class _VerbParser(argparse.ArgumentParser):
    """Allows options between positional arguments: ``vqm extract FILE -o OUT NAME``."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_intermixing:  # called by parse_known_intermixed_args
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


def build_parser() -> argparse.ArgumentParser:
    """The parser. ``args.module`` and ``args.function`` are the names of the module and function that run the verb."""
    parser = argparse.ArgumentParser(
        prog="vqm",
        description="Compressed model files (.vqm): write, inspect, check.",
        epilog="exit codes: 0 fine, 1 a bad file or failed work, 2 wrong usage",
    )
    version = f"vqm {__version__}, format version {MAJOR}.{MINOR}, backend {native.backend()}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_VerbParser)

    def add(verb: str, module: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(verb, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        sub.set_defaults(module=module, function=f"run_{verb}", parser=sub)
        return sub

    convert = add("convert", "convert", "compress a checkpoint to a .vqm file", _METHOD_HELP + _methods())
    kinds = ("PyTorch checkpoint or safetensors (a file, or the index or folder of a sharded model), Keras .keras,"
             " .weights.h5 or .h5, HDF5, TorchScript, torch.export, TensorFlow (SavedModel, checkpoint, TensorFlow.js,"
             " .tflite), Flax .msgpack, ONNX, GGUF, .npz, .npy, .vqm: the content tells; - is stdin")
    convert.add_argument("source", metavar="SRC", type=_given, help=kinds)
    _add_output(convert, "FILE.vqm", "default: beside SRC, its suffix replaced by .vqm; - is stdout, and the table goes"
                " to stderr", required=False)  # fmt: skip
    size = convert.add_mutually_exclusive_group()
    size.add_argument("--bits", type=_positive, metavar="B", help="bits per weight, on average over the model")
    size.add_argument("--ratio", type=_positive, metavar="R", help="make the file R times smaller than the tensors")
    size.add_argument("--size", type=_nbytes, metavar="N", help="bytes of the file at most; 5MB, 300kB and 2GiB are"
                      " understood")  # fmt: skip
    size.add_argument("--sqnr", type=_positive, metavar="DB", help="signal-to-quantization-noise ratio in dB, in place"
                      " of a size")  # fmt: skip
    size.add_argument("--lossless", action="store_true", help="keep every bit")
    convert.add_argument("--preset", choices=PRESETS,
                         help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()))  # fmt: skip
    convert.add_argument("--calibration", type=_given, metavar="FILE", help="what a calibration of the model found, as"
                         " Calibration.save wrote it; the preset is then small")  # fmt: skip
    convert.add_argument("--layer", action="append", default=[], metavar="PATTERN=METHOD",
                         help="how to encode the tensors that match; may be given often")  # fmt: skip
    convert.add_argument("--method", type=_given, metavar="METHOD", help="how to encode the others")
    convert.add_argument("--include-optimizer", action="store_true", help="keep the state of training beside the"
                         " weights, such as the optimizer's, exactly (default: left out)")  # fmt: skip
    convert.add_argument("--seed", type=_seed, default=0, metavar="N", help="of random choices; the same input, options"
                         " and seed give the same bytes (default: 0)")  # fmt: skip
    _add_common(convert)

    info = add("info", "inspect", "show what is in a .vqm, or in any file that convert reads")
    info.add_argument("file", type=_given, metavar="FILE", help="- is stdin; more files may follow")
    _add_names(info)
    info.add_argument("--digest", action="store_true", help="show the content digest, a SHA-256 of all tensors, the"
                      " same in every format. It reads all weights")  # fmt: skip
    _add_memory(info)
    _add_common(info)

    verify = add("verify", "verify", "read .vqm files completely and check every byte, CRC-32 and SHA-256",
                 _VERIFY_HELP)  # fmt: skip
    verify.add_argument("files", type=_given, metavar="FILE", nargs="+", help="- is stdin")
    verify.add_argument("--key", type=_given, metavar="PUB.pem", help="public key: check the signature FILE.sig before"
                        " anything else is read of FILE")  # fmt: skip
    _add_memory(verify)
    _add_common(verify)

    sign = add("sign", "signature", "write an Ed25519 signature of a file to FILE.sig", _SIGN_HELP)
    sign.add_argument("file", type=_given, metavar="FILE", help="any file")
    sign.add_argument("--key", type=_given, metavar="KEY.pem", required=True, help="private key, without a password")
    sign.add_argument("-f", "--force", action="store_true", help="replace FILE.sig if it exists")
    _add_common(sign)

    recover = add("recover", "recover", "write what is whole in a damaged or truncated .vqm to a new one",
                  _RECOVER_HELP)  # fmt: skip
    recover.add_argument("file", type=_given, metavar="FILE", help="- is stdin")
    _add_output(recover, "WHOLE.vqm", "the new file", required=True)
    _add_common(recover)

    extract = add("extract", "convert", "write the tensors of a .vqm, or of any file that convert reads, in another"
                  " format")  # fmt: skip
    extract.add_argument("file", type=_given, metavar="FILE", help="- is stdin")
    _add_names(extract)
    _add_output(extract, "OUT", "its suffix tells the format: .pt (.pth, .bin), .safetensors,"
                " .npz, .keras, .weights.h5, .h5 (.hdf5) or .onnx", required=True)
    _add_memory(extract)
    _add_common(extract)

    diff = add("diff", "diff", "compare the tensors of two files of any kind that convert reads", _DIFF_HELP)
    diff.add_argument("original", type=_given, metavar="A", help="- is stdin")
    diff.add_argument("other", type=_given, metavar="B", help="- is stdin")
    _add_memory(diff)
    _add_common(diff)

    conformance = add("conformance", "conformance", "score a decoder in any language by the fixtures",
                      _CONFORMANCE_HELP)  # fmt: skip
    conformance.add_argument("--decoder", type=_given, metavar="COMMAND", help="the command; {} stands for the file,"
                             " which comes last if there is no {}")  # fmt: skip
    conformance.add_argument("names", metavar="NAME", nargs="*", help="only these fixtures; wildcards *, ? and [abc]")
    conformance.add_argument("--fixtures", type=_given, metavar="DIR", help="default: those of the checkout")
    conformance.add_argument("--level", choices=("core", "full"), default="full", help="core: raw and codebook stages;"
                             " full: low-rank, trellis and sparse raw stages too (default)")  # fmt: skip
    conformance.add_argument("--by", choices=("both", "name", "stdin"), default="both", help="how it gets a file:"
                             " by its name, on stdin without an argument, or both (default: both)")  # fmt: skip
    conformance.add_argument("--timeout", type=_positive, metavar="S", default=60.0, help="seconds for a file"
                             " (default: 60)")  # fmt: skip
    conformance.add_argument("--jobs", type=_count, metavar="N", help="runs at the same time (default: one per core)")
    conformance.add_argument("--page", type=_given, metavar="FILE", help="write a markdown page: the fixtures of each"
                             " clause of SPEC.md, and the line that enforces it")  # fmt: skip
    conformance.add_argument("-f", "--force", action="store_true", help="replace the page if it exists")
    _add_common(conformance)
    return parser


def _methods() -> str:
    lines = (f"{name:10}{help}" for name, help in METHODS.items())
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 12) for line in lines)


def _add_output(parser: argparse.ArgumentParser, metavar: str, help: str, *, required: bool) -> None:
    parser.add_argument("-o", "--output", type=_given, metavar=metavar, required=required, help=help)
    parser.add_argument("-f", "--force", action="store_true", help="replace the output if it exists")


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*",
                        help="only these tensors; wildcards *, ? and [abc] (default: all)")  # fmt: skip


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-memory", type=_nbytes, metavar="SIZE", help="bytes that tensors and tables of a .vqm may"
                        " have at once, such as 500MB (default: the memory that is available)")  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print less")
    amount.add_argument("-v", "--verbose", action="store_true", help="print more")


def _given(text: str) -> str:
    """Accept any text that is not empty, as an unset shell variable is."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _nbytes(text: str) -> int:
    """Parse a number of bytes, with or without a unit. A fraction of a byte is dropped."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(?:([kMG])(i?))?[bB]?\s*", text)
    try:
        value = float(match.group(1)) if match else math.nan
    except ValueError:
        value = math.nan
    if match is not None and math.isfinite(value):
        base = 1024 if match.group(3) else 1000
        value *= base ** " kMG".index(match.group(2) or " ")
    if not (math.isfinite(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 300000, 300kB or 2.5MiB")
    return int(value)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 4294967295")
    return int(text)
