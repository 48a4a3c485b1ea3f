"""Files of a step, written and read: an ONNX model, or a program of `torch.export`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from palimpsest.agents.export.operators import translations
from palimpsest.agents.export.step import Signature, Step
from palimpsest.agents.files.archive import one_line

METADATA = "palimpsest-step.json"
"""Name of the signature in a file's metadata: a key of ONNX's `metadata_props`, an extra file of `torch.export`."""


class NotExported(RuntimeError):
    """A step that cannot be written in a format, or whose file does not compute what the agent does."""


class Loaded(NamedTuple):
    """A file that acts."""

    signature: Signature
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    """From the inputs to the outputs, in the signature's order."""


def write(step: Step, file: Path, kind: str) -> None:
    """Write a step in a format of `config.FORMATS`.

    Raises:
        NotExported: an operation has no form there.
        ValueError: the packages of the format are not installed.
    """
    (write_onnx if kind == "onnx" else write_torch)(step, file)


def read(file: Path, kind: str) -> Loaded:
    """Read what `write` wrote."""
    return (read_onnx if kind == "onnx" else read_torch)(file)


def write_torch(step: Step, file: Path) -> None:
    """Write a program, which `torch.export.load` reads."""
    program = recorded(step)
    with quiet():  # it warns of names that do not end in .pt2
        torch.export.save(program, file, extra_files={METADATA: step.signature.to_json()})


def read_torch(file: Path) -> Loaded:
    """Read a program, to run it by torch."""
    extra = {METADATA: ""}
    with quiet():
        module: Any = torch.export.load(file, extra_files=extra).module()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [each.numpy() for each in module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))]

    return Loaded(Signature.from_json(extra[METADATA]), run)


def write_onnx(step: Step, file: Path) -> None:
    """Write an ONNX model, its weights included."""
    need("onnx", "onnxscript", "onnxruntime")
    inputs, outputs = ([port.name for port in ports] for ports in (step.signature.inputs(), step.signature.outputs()))
    program = recorded(step)
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise NotExported(f"the agent has no ONNX form: {one_line(_cause(error))}; use format torch") from error
    assert made is not None
    strip_origins(made.model)
    made.model.metadata_props[METADATA] = step.signature.to_json()
    made.save(file)


def strip_origins(model: Any) -> None:
    """Take out of an ONNX model what says from which lines of which files its operations come."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


def read_onnx(file: Path) -> Loaded:
    """Read an ONNX model, to run it by onnxruntime."""
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each code
        raise NotExported(f"onnxruntime cannot run the file: {one_line(error)}") from error
    signature = Signature.from_json(session.get_modelmeta().custom_metadata_map[METADATA])
    inputs, outputs = ([port.name for port in ports] for ports in (signature.inputs(), signature.outputs()))

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return session.run(outputs, dict(zip(inputs, arrays, strict=True)))

    return Loaded(signature, run)


def recorded(step: Step) -> torch.export.ExportedProgram:
    """A step's operations for any batch size.

    Raises:
        NotExported: what they are depends on numbers.
    """
    example = step.example(3)
    sizes = {"inputs": tuple({0: torch.export.Dim.DYNAMIC} for _ in example)}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(step, example, dynamic_shapes=sizes, strict=False)
    except Exception as error:  # torch raises what it meets
        raise NotExported(f"the agent's operations cannot be recorded: {one_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of files of this machine
    return program


def need(*packages: str) -> None:
    """Refuse to go on where a package of the extra "export" is not installed."""
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise ValueError(
                f"ONNX files need {package}; install it with: pip install 'palimpsest-rl[export]', or use format torch"
            ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings of its own making, and without checks of numbers, which no recording can hold."""
    checks = torch.distributions.Distribution._validate_args
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checks)
        logging.disable(before)


def _cause(error: BaseException) -> Exception:
    """The innermost error, which names the operation."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))
