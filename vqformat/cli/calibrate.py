"""``vqm calibrate``: statistics of a model, gathered by running it on inputs of the user."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqformat.converters.detect import detect_format

from ..text import count, counted, one_line
from .files import STDIO, check_output, check_source, label, local_path
from .parsers import UsageError
from .progress import progress_line
from .text import message, to_json
from .user_code import Batches, given_batches, running

if TYPE_CHECKING:
    from ..encode.calibration import Calibration
    from .text_model import TextModel
    from .torch_model import FilledModel

_FEW = 10  # batches: with fewer, corrections have too little to be judged by


def run_calibrate(args: argparse.Namespace) -> int:
    """Run ``vqm calibrate``: gather the statistics that ``vqm convert --calibration`` takes."""
    check_source(args.file)
    check_model(args)
    if args.text is None and args.inputs is None:
        raise UsageError("--inputs FILE.py:NAME tells the inputs to calibrate with")
    if args.output == STDIO:
        raise UsageError("-o names a file: a calibration is not written to stdout")
    check_output(Path(args.output), args.file, force=args.force)
    with local_path(args.file) as path:
        if args.text is None and args.model is None:
            calibration, n_batches = _of_onnx(args, path)
        else:
            model, text = opened_model(args, path)
            windows = [] if text is None else text.windows(args.text, args.batches)
            calibration, n_batches = calibrated(args, model, windows)
    calibration.save(args.output, overwrite=args.force)
    if args.json:
        print(to_json({"file": args.file, "output": args.output, "batches": n_batches, "loss": calibration.loss,
                       "tensors": {name: {"importance": each.importance, "inputs_seen": each.n_observed}
                                   for name, each in calibration.tensors.items()}}))  # fmt: skip
    elif not args.quiet:
        n_known = sum(each.moments is not None for each in calibration.tensors.values())
        print(f"{label(args.output)}: {_batches(n_batches)}, {counted(len(calibration.tensors), 'tensor')},"
              f" {count(n_known)} of them with their inputs, {count(os.path.getsize(args.output))} bytes")  # fmt: skip
        print(f"next: vqm convert {label(args.file)} --calibration {label(args.output)} --ratio 20")
    return 0


def check_model(args: argparse.Namespace) -> None:
    """Check that what tells the model and its inputs goes together.

    Raises:
        UsageError: It does not.
        FileNotFoundError: The text does not exist.
    """
    if args.text is None:
        return
    if args.model is not None or args.inputs is not None:
        raise UsageError("--text is for a folder of Hugging Face, which tells its model; --model and --inputs are for"
                         " other models")  # fmt: skip
    if not os.path.isdir(args.file):
        raise UsageError(f"--text is for a folder of Hugging Face, and {args.file!r} is no folder")
    check_source(args.text)


def opened_model(args: argparse.Namespace, path: Path) -> tuple[FilledModel, TextModel | None]:
    """The model of the command line, with the weights of the file; and the same as a language model if it is one."""
    device = _device(args.device)
    if args.text is not None:
        from .text_model import TextModel

        text = TextModel(args.file, device)
        return text.filled, text
    from .torch_model import FilledModel, made_model

    return FilledModel(made_model(args.model), args.file, path, device), None


def calibrated(args: argparse.Namespace, model: FilledModel, windows: list[Any]) -> tuple[Calibration, int]:
    """The calibration of a model with windows of a text, or with what the function of the user gives.

    Returns:
        The calibration, and the number of batches.

    Raises:
        FileError: The batches are not such as the model takes.
        UserCodeError: The model or the function raises an error.
    """
    if args.text is not None:
        batches = Batches(windows, args.batches, model.moved)
    else:
        batches = given_batches(args.inputs, args.batches, model.moved)
    with progress_line(quiet=args.quiet) as progress:
        calibration = model.calibrate(batches, args.inputs or args.text, loss=_loss(args), seed=args.seed,
                                      progress=progress)  # fmt: skip
    if batches.n_seen < _FEW:
        message("note", f"{_batches(batches.n_seen)}: ten or more are better, some hundreds of inputs in all")
    return calibration, batches.n_seen


def _of_onnx(args: argparse.Namespace, path: Path) -> tuple[Calibration, int]:
    """The calibration of an ONNX model, and the number of batches."""
    kind, file = detect_format(path)
    if kind != "onnx":
        raise UsageError(f"--model FILE.py:NAME tells the model that has the weights of {args.file!r}; only an ONNX"
                         " file has the model in it")  # fmt: skip
    if args.device != "cpu":
        raise UsageError("--device is for models of PyTorch; onnxruntime runs on the CPU")
    from ..onnx import calibrate

    batches = given_batches(args.inputs, args.batches)
    with running(f"the model, with inputs of {args.inputs},"), progress_line(quiet=args.quiet) as progress:
        calibration = calibrate(file, batches, loss=_loss(args), seed=args.seed, progress=progress)
    return calibration, batches.n_seen


def _loss(args: argparse.Namespace) -> Any:
    """The loss. What a language model gives are logits."""
    return args.loss or ("values" if args.text is None else "logits")


def _device(name: str) -> str:
    """The name of a device that there is.

    Raises:
        UsageError: There is none of this name.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:  # the second: PyTorch was built without it
        raise UsageError(f"--device {name}: {one_line(str(err).partition(chr(10))[0])}") from err
    return name


def _batches(n: int) -> str:
    return "1 batch" if n == 1 else f"{count(n)} batches"
