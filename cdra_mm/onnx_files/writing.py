"""A module as an ONNX message: without the exporter's noise and its notes on this machine."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import nn

from cdra_mm.errors import ConfigError

__all__ = ['add_metadata', 'first_line', 'onnx_message', 'refuse_large', 'runtime']

LARGEST = 2**31  # bytes; an ONNX file is one message of protobuf
# Where the exporter notes for each operator the lines of source that it comes from.
NOTES = ('doc_string', 'metadata_props')


def runtime() -> Any:
    """onnxruntime; torch.onnx imports the others itself.

    Raises:
        ConfigError: If one of the packages of the extra ``export`` is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'{error.name} is not installed: pip install "cdra-mm[export]" (onnx, onnxscript, '
            'onnxruntime)'
        ) from None
    return onnxruntime


def refuse_large(model: nn.Module) -> None:
    """Refuses a model that no ONNX file holds.

    Raises:
        ConfigError: If it has 2 GiB of weights or more.
    """
    weight = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if weight >= LARGEST:
        raise ConfigError(
            f'the model has {weight / 2**30:.1f} GiB of weights: an ONNX file holds less than 2 GiB'
        )


def onnx_message(
    module: nn.Module,
    given: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Any,
    *,
    what: str,
    hint: str,
) -> Any:
    """A module as a message of protobuf.

    Args:
        module: The module.
        given: What it is called with.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        dynamic: What torch takes as ``dynamic_shapes``.
        what: What is exported, for the message.
        hint: What else to do, for the message.

    Raises:
        ConfigError: If torch cannot trace the module.
    """
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                tuple(given),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic,
                dynamo=True,
            )
    except Exception as error:  # the exporter meets code that it cannot trace
        raise ConfigError(
            f'torch cannot export {what} to ONNX ({first_line(error)}): its code does something '
            f'that cannot be traced; {hint}'
        ) from error
    proto = program.model_proto
    _remove_notes(proto)
    return proto


def add_metadata(proto: Any, texts: Mapping[str, str]) -> None:
    """Keeps texts in a message, by name."""
    for key, value in texts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def first_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    text = str(error).strip().partition('\n')[0]
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def _remove_notes(message: Any) -> None:
    """Takes the exporter's notes off a message of protobuf and all that it holds.

    They name files of this machine, user and folders included: nothing that whoever gets the file
    should learn, and nothing that a runtime reads.
    """
    for field, value in message.ListFields():
        if field.name in NOTES:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, 'ListFields') else value:
                _remove_notes(part)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps and of its own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)
