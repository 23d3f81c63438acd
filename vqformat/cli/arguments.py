"""The command line of ``vqm``: verbs and arguments. It imports nothing that is slow to import."""

from __future__ import annotations

import argparse

from .. import __version__, native
from ..encode.options import PRESETS
from ..encode.recipe import METHODS
from ..format.container import MAJOR, MINOR
from .parsers import HelpFormatter, Parser, VerbParser, given, nbytes, place, positive, positive_integer, seed

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

_CONVERT_HELP = """
Each source becomes a file: model.pt becomes model.vqm beside it, or DIR/model.vqm with -o DIR/. If one of several
fails, the others are still converted, and the exit code is 1
"""

_RUNS_CODE = """
FILE.py:NAME is a function in a Python file of yours. The file is run, as python FILE.py runs it, and may import other
files beside it. SRC is never run: it gives the weights only.
"""

_CALIBRATE_HELP = """\
  --model FILE.py:NAME   takes nothing and returns the torch.nn.Module to fill with the weights
  --inputs FILE.py:NAME  takes nothing and returns an iterable of inputs, without labels: a tensor, a tuple of arguments
                         or a dict of keyword arguments each; arrays by input names for ONNX
An ONNX model needs no --model. Some hundreds of inputs like those in use are enough
""" + _RUNS_CODE  # fmt: skip

_SEARCH_HELP = """\
  --model FILE.py:NAME   takes nothing and returns the torch.nn.Module to fill with the weights
  --metric FILE.py:NAME  takes the model, filled from a file and in evaluation mode, and returns a number that is higher
                         for better models, such as the accuracy on held-out data
  --inputs FILE.py:NAME  as for vqm calibrate: the file is smaller still, and biases and normalizations are corrected
""" + _RUNS_CODE  # fmt: skip

_INFO_HELP = """\
A further argument is a FILE if there is a file of this name, or if it ends like one (.vqm, .pt), and else a NAME.
Repeated layers share a row: layers.0-11.weight, 12 alike. With -v or --all, or for a NAME, each tensor has its own row.
exit code: 1 if a file cannot be read; the others are shown
"""

_COMPLETION_HELP = """\
  bash  eval "$(vqm completion bash)" in ~/.bashrc
  zsh   eval "$(vqm completion zsh)" in ~/.zshrc
  fish  vqm completion fish > ~/.config/fish/completions/vqm.fish
"""

_EPILOG = """\
examples:
  vqm convert model.pt                writes model.vqm, 4 to 8 times smaller
  vqm convert model.pt --ratio 16     or as much smaller as you say; --size 5MB, --bits 3, --lossless
  vqm info model.vqm                  shows what is in it
  vqm extract model.vqm -o back.pt    writes the framework's file again

vqm help VERB, or vqm VERB --help, tells more. Sizes are bytes, with or without a unit: 300000, 1.5MB, 300KiB.
An error is one line on stderr. NO_COLOR=1 turns colours off, VQM_TRACEBACK=1 shows where an error came from.

exit codes:
  0  fine
  1  a bad file, or failed work; of several files the worst code
  2  wrong usage
"""

_REPORT_HELP = """\
The page is one file, without scripts and without anything from the network. Its charts are drawn by
matplotlib: pip install matplotlib
"""

_CONFORMANCE_HELP = """\
For a valid file a decoder prints what fixtures/README.md says, as JSON, and exits with status 0. For an invalid one it
prints {"error": class} or the class alone, and exits with status 1. It gets every file twice: by its name, and on
stdin in pieces. exit code: 0 if all is right, 1 if not, or if a clause of the page has no fixture
"""

_WEIGHTS = "the weights, a file or folder of any format that convert reads"


def build_parser() -> Parser:
    """The parser. ``args.module`` and ``args.function`` are the names of the module and function that run the verb."""
    parser = Parser(
        prog="vqm",
        description="Compressed model files (.vqm): write, inspect, check.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    version = f"vqm {__version__}, format version {MAJOR}.{MINOR}, backend {native.backend()}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=VerbParser)

    def add(verb: str, module: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(verb, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog,
                               formatter_class=HelpFormatter)  # fmt: skip
        sub.set_defaults(module=module, function=f"run_{verb}", parser=sub)
        return sub

    convert = add("convert", "convert", "compress checkpoints to .vqm files", _METHOD_HELP + _methods() + _CONVERT_HELP)
    kinds = ("PyTorch checkpoint or safetensors (a file, or the index or folder of a sharded model), Keras .keras,"
             " .weights.h5 or .h5, HDF5, TorchScript, torch.export, TensorFlow (SavedModel, checkpoint, TensorFlow.js,"
             " .tflite), Flax .msgpack, ONNX, GGUF, .npz, .npy, .pkl, .vqm: the content tells; - is stdin")
    convert.add_argument("sources", metavar="SRC", type=given, nargs="+", help=kinds)
    _add_output(convert, "FILE.vqm|DIR/", "default: beside SRC, its suffix replaced by .vqm; - is stdout, and the table"
                " goes to stderr. If SRC is a model folder of Hugging Face and this does not end in .vqm, it is a new"
                " folder: configuration, tokenizer and the rest are copied, and model.vqm takes the place of the"
                " weights", required=False)  # fmt: skip
    size = convert.add_mutually_exclusive_group()
    size.add_argument("--bits", type=positive, metavar="B", help="bits per weight, on average over the model")
    size.add_argument("--ratio", type=positive, metavar="R", help="make the file R times smaller than the tensors")
    size.add_argument("--size", type=nbytes, metavar="N", help="bytes of the file at most, such as 5MB or"
                      " 300KiB")  # fmt: skip
    size.add_argument("--sqnr", type=positive, metavar="DB", help="signal-to-quantization-noise ratio in dB, in place"
                      " of a size")  # fmt: skip
    size.add_argument("--lossless", action="store_true", help="keep every bit")
    convert.add_argument("--max-shard-size", type=nbytes, metavar="N", help="most bytes of a file, such as 5GB: a"
                         " larger model becomes FILE-00001-of-00003.vqm, … and FILE.vqm.index.json, as on the Hugging"
                         " Face Hub")  # fmt: skip
    convert.add_argument("--preset", choices=PRESETS,
                         help="; ".join(f"{name}: {text}" for name, text in PRESETS.items()))  # fmt: skip
    convert.add_argument("--calibration", type=given, metavar="FILE", help="what a calibration of the model found, as"
                         " Calibration.save wrote it; the preset is then small")  # fmt: skip
    convert.add_argument("--layer", action="append", default=[], metavar="PATTERN=METHOD",
                         help="how to encode the tensors that match; may be given often")  # fmt: skip
    convert.add_argument("--method", type=given, metavar="METHOD", help="how to encode the others")
    convert.add_argument("--include-optimizer", action="store_true", help="keep the state of training beside the"
                         " weights, such as the optimizer's, exactly (default: left out)")  # fmt: skip
    convert.add_argument("--seed", type=seed, default=0, metavar="N", help="of random choices; the same input, options"
                         " and seed give the same bytes (default: 0)")  # fmt: skip
    workers = convert.add_mutually_exclusive_group()
    workers.add_argument("--workers", type=positive_integer, metavar="N", help="encode N tensors at the same time, in N"
                         " processes (default: 1)")  # fmt: skip
    workers.add_argument("--dask", type=given, metavar="ADDRESS", help="encode tensors by the workers of a Dask"
                         " cluster, such as tcp://host:8786")  # fmt: skip
    convert.add_argument("--resume", action="store_true", help="continue a conversion that was stopped, from the"
                         " tensors in FILE.vqm.part; the options must be the same")  # fmt: skip
    _add_all(convert)
    _add_common(convert)

    calibrate = add("calibrate", "calibrate", "run a model on inputs, for smaller files by vqm convert --calibration",
                    _CALIBRATE_HELP)  # fmt: skip
    calibrate.add_argument("file", type=given, metavar="SRC", help=_WEIGHTS)
    _add_model(calibrate)
    calibrate.add_argument("--inputs", type=place, metavar="FILE.py:NAME", help="the inputs")
    _add_text(calibrate)
    _add_output(calibrate, "CALIBRATION.npz", "where the statistics go", required=True)
    _add_common(calibrate)

    search = add("search", "search", "find the smallest file with which a model is still good enough", _SEARCH_HELP)
    search.add_argument("file", type=given, metavar="SRC", help=_WEIGHTS)
    _add_model(search)
    search.add_argument("--metric", type=place, metavar="FILE.py:NAME", help="how good a model is")
    search.add_argument("--max-drop", type=positive, metavar="D", help="how far the metric may drop, in its units"
                        " (default: 0.01)")  # fmt: skip
    search.add_argument("--preset", choices=PRESETS, default="small", help="of the files (default: small)")
    calibrated = search.add_mutually_exclusive_group()
    calibrated.add_argument("--inputs", type=place, metavar="FILE.py:NAME", help="inputs to calibrate with")
    calibrated.add_argument("--calibration", type=given, metavar="FILE", help="what vqm calibrate wrote")
    _add_text(search)
    search.add_argument("--max-divergence", type=positive, metavar="D", help="with --text: how far predictions may"
                        " diverge from the original's: a mean KL divergence in nats (default: 0.01)")  # fmt: skip
    search.add_argument("--trials", type=positive_integer, metavar="N", default=10, help="most files to try"
                        " (default: 10)")  # fmt: skip
    _add_output(search, "FILE.vqm", "default: beside SRC, its suffix replaced by .vqm; - is stdout", required=False)
    _add_all(search)
    _add_common(search)

    info = add("info", "inspect", "show what is in .vqm files, or in any that convert reads", _INFO_HELP)
    info.usage = "vqm info [options] FILE [FILE ...] [NAME ...]\n       vqm info --legend"
    info.add_argument("file", type=given, metavar="FILE", nargs="?", help="- is stdin; more files may follow")
    _add_names(info)
    info.add_argument("--digest", action="store_true", help="show the content digest, a SHA-256 of all tensors, the"
                      " same in every format. It reads all weights")  # fmt: skip
    info.add_argument("--legend", action="store_true", help="explain the words of the table, below it or without FILE")
    _add_all(info)
    _add_memory(info)
    _add_common(info)

    verify = add("verify", "verify", "read .vqm files completely and check every byte, CRC-32 and SHA-256",
                 _VERIFY_HELP)  # fmt: skip
    verify.add_argument("files", type=given, metavar="FILE", nargs="+", help="- is stdin")
    verify.add_argument("--key", type=given, metavar="PUB.pem", help="public key: check the signature FILE.sig before"
                        " anything else is read of FILE")  # fmt: skip
    _add_memory(verify)
    _add_common(verify)

    sign = add("sign", "signature", "write an Ed25519 signature of a file to FILE.sig", _SIGN_HELP)
    sign.add_argument("file", type=given, metavar="FILE", help="any file")
    sign.add_argument("--key", type=given, metavar="KEY.pem", required=True, help="private key, without a password")
    sign.add_argument("-f", "--force", action="store_true", help="replace FILE.sig if it exists")
    _add_common(sign)

    recover = add("recover", "recover", "write what is whole in a damaged or truncated .vqm to a new one",
                  _RECOVER_HELP)  # fmt: skip
    recover.add_argument("file", type=given, metavar="FILE", help="- is stdin")
    _add_output(recover, "WHOLE.vqm", "the new file", required=True)
    _add_common(recover)

    extract = add("extract", "convert", "write the tensors of a .vqm, or of any file that convert reads, in another"
                  " format")  # fmt: skip
    extract.add_argument("file", type=given, metavar="FILE", help="- is stdin")
    _add_names(extract)
    _add_output(extract, "OUT", "its suffix tells the format: .pt (.pth, .bin), .safetensors,"
                " .npz, .keras, .weights.h5, .h5 (.hdf5), .onnx or .gguf; - is stdout. If FILE is a model folder that"
                " convert made: a new folder, in the format that it came from", required=True)  # fmt: skip
    extract.add_argument("--format", type=given, metavar="SUFFIX", help="format of what -o - writes, such as npz")
    _add_memory(extract)
    _add_common(extract)

    diff = add("diff", "diff", "compare the tensors of two files of any kind that convert reads", _DIFF_HELP)
    diff.add_argument("original", type=given, metavar="A", help="- is stdin")
    diff.add_argument("other", type=given, metavar="B", help="- is stdin")
    _add_all(diff)
    _add_memory(diff)
    _add_common(diff)

    report = add("report", "report", "write a page on .vqm files: where bytes and errors are, and what to do next",
                 _REPORT_HELP)  # fmt: skip
    report.add_argument("files", metavar="FILE", type=given, nargs="+", help="a .vqm, or several to be compared; one"
                        " FILE may be the source, of any kind that convert reads; - is stdin")  # fmt: skip
    report.add_argument("--source", type=given, metavar="SRC", help="what the files were made from, for errors; it may"
                        " be a .vqm")  # fmt: skip
    report.add_argument("--calibration", type=given, metavar="FILE", help="what a calibration of the model found, as"
                        " Calibration.save wrote it, for the expected loss")  # fmt: skip
    _add_output(report, "PAGE.html", "the page; - is stdout", required=True)
    _add_memory(report)
    _add_common(report)

    conformance = add("conformance", "conformance", "score a decoder in any language by the fixtures",
                      _CONFORMANCE_HELP)  # fmt: skip
    conformance.add_argument("--decoder", type=given, metavar="COMMAND", help="the command; {} stands for the file,"
                             " which comes last if there is no {}")  # fmt: skip
    conformance.add_argument("names", metavar="NAME", nargs="*", help="only these fixtures; wildcards *, ? and [abc]")
    conformance.add_argument("--fixtures", type=given, metavar="DIR", help="default: those of the checkout")
    conformance.add_argument("--level", choices=("core", "full"), default="full", help="core: raw and codebook stages;"
                             " full: low-rank, trellis and sparse raw stages too (default)")  # fmt: skip
    conformance.add_argument("--by", choices=("both", "name", "stdin"), default="both", help="how it gets a file:"
                             " by its name, on stdin without an argument, or both (default: both)")  # fmt: skip
    conformance.add_argument("--timeout", type=positive, metavar="S", default=60.0, help="seconds for a file"
                             " (default: 60)")  # fmt: skip
    conformance.add_argument("--jobs", type=positive_integer, metavar="N", help="runs at the same time"
                             " (default: one per core)")  # fmt: skip
    conformance.add_argument("--page", type=given, metavar="FILE", help="write a markdown page: the fixtures of each"
                             " clause of SPEC.md, and the line that enforces it")  # fmt: skip
    conformance.add_argument("-f", "--force", action="store_true", help="replace the page if it exists")
    _add_common(conformance)

    completion = add("completion", "completion", "print a script with which a shell completes verbs and options",
                     _COMPLETION_HELP)  # fmt: skip
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def verbs_of(parser: Parser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the verbs."""
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(actions).choices)


def _methods() -> str:
    return "\n".join(f"  {name:10}{help}" for name, help in METHODS.items()) + "\n"


def _add_output(parser: argparse.ArgumentParser, metavar: str, help: str, *, required: bool) -> None:
    parser.add_argument("-o", "--output", type=given, metavar=metavar, required=required, help=help)
    parser.add_argument("-f", "--force", action="store_true", help="replace the output if it exists")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=place, metavar="FILE.py:NAME", help="the model that has the weights")
    parser.add_argument("--device", type=given, default="cpu", metavar="NAME", help="where it runs, such as cuda"
                        " (default: cpu)")  # fmt: skip


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=given, metavar="FILE.txt", help="in place of --model: SRC is a folder of Hugging"
                        " Face, of a model that predicts text, such as this one; needs transformers")  # fmt: skip
    parser.add_argument("--batches", type=positive_integer, default=64, metavar="N", help="most batches of the inputs,"
                        " or windows of 512 tokens of the text (default: 64)")  # fmt: skip
    parser.add_argument("--loss", choices=("values", "logits"), help="which errors matter: of all outputs (default), or"
                        " of classes of which the outputs are logits (default with --text)")  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of random choices (default: 0)")


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*",
                        help="only these tensors; wildcards *, ? and [abc] (default: all)")  # fmt: skip


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="show each tensor of repeated layers in a row of its own")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-memory", type=nbytes, metavar="SIZE", help="bytes that tensors and tables of a .vqm may"
                        " have at once, such as 500MB (default: the memory that is available)")  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print less")
    amount.add_argument("-v", "--verbose", action="store_true", help="print more")
