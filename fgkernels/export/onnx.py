# SPDX-License-Identifier: Apache-2.0
"""ONNX files: a model without our operators, and the same with int8 weights.

Needs the packages onnx, onnxscript and onnxruntime, `pip install 'fgkernels[edge]'`, imported on the first call.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import decompositions

__all__ = ["export", "load", "quantize"]

# What holds nearly all weights of a network; int8 kernels exist for these in every runtime.
QUANTIZED = ("Conv", "MatMul", "Gemm")


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"onnx export needs the package {error.name}: pip install 'fgkernels[edge]'", name=error.name
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences remarks about packages that aren't there and pre-processing that was done."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "root", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    dynamic_shapes: Any | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """Write `model` as the ONNX file `path`, our operators replaced by their plain definition.

    Args:
        model: the module; exported in evaluation mode and without gradients, its mode is put back afterwards.
        args: example inputs, a tuple.
        path: file to write, ending in .onnx; overwritten.
        dynamic_shapes: sizes that stay free, as `torch.export.export` takes them.
        input_names, output_names: names in the file; by default those of `forward`'s arguments and of the graph.

    Returns:
        `path` as a Path.

    Raises:
        ValueError: if `path` doesn't end in .onnx.
        ModuleNotFoundError: if onnx or onnxscript is missing.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected a name that ends in .onnx, got {path.name!r}")
    _require("onnx")
    _require("onnxscript")
    training = model.training
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(model.eval(), args, dynamic_shapes=dynamic_shapes)
            program = program.run_decompositions(decompositions())
            written = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=input_names, output_names=output_names
            )
    finally:
        model.train(training)
    written.save(str(path))
    return path


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    calibration: Iterable[tuple[Tensor, ...]],
) -> Path:
    """Write the ONNX file `target`: `source` with int8 weights, one scale per output channel, and uint8 activations.

    Convolutions and matrix products take int8 weights and, by the ranges seen on the calibration inputs, uint8
    activations, in the QuantizeLinear/DequantizeLinear form that every runtime reads; the rest stays in float.

    Args:
        source: a float ONNX file.
        target: file to write; overwritten.
        calibration: typical inputs, each a tuple in the order of the graph's inputs; a few batches do.

    Returns:
        `target` as a Path.

    Raises:
        ValueError: if `calibration` is empty.
        ModuleNotFoundError: if onnxruntime is missing.
    """
    quantization = _require("onnxruntime.quantization")
    batches = [tuple(tensor.detach().cpu().numpy() for tensor in batch) for batch in calibration]
    if not batches:
        raise ValueError("calibration: expected at least one batch of inputs, got none")
    names = [entry.name for entry in _require("onnx").load(str(source)).graph.input]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([dict(zip(names, batch, strict=True)) for batch in batches])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with _quiet():
        quantization.quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED),
        )
    return Path(target)


def load(path: str | os.PathLike[str], threads: int | None = None) -> Callable[..., Any]:
    """The ONNX file `path` as a callable on CPU tensors: one output comes as a tensor, several as a tuple.

    `threads` defaults to torch's. An ONNX file is data, not code; onnxruntime checks it. Raises FileNotFoundError if
    there is no such file, ModuleNotFoundError if onnxruntime is missing.
    """
    runtime = _require("onnxruntime")
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no such ONNX file: {path}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*args: Tensor) -> Any:
        feeds = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, args, strict=True)}
        outputs = tuple(torch.from_numpy(output) for output in session.run(None, feeds))
        return outputs[0] if len(outputs) == 1 else outputs

    return call
