"""One weights file for all graphs of a precision: ONNX external data in which equal tensors are stored once."""

import hashlib
from pathlib import Path
from typing import Self

import onnx_ir as ir

from prtool.files import FileDigest
from prtool.graphs.signature import WEIGHTS_ALIGNMENT, WEIGHTS_NAME

MIN_EXTERNAL_BYTES = 1024
"""Tensors with fewer bytes stay inside their graph."""


class WeightsFile:
    """Writes graphs into one folder, and their large tensors into one file next to them.

    Tensors are written one at a time in the order of the graphs, so the file is a function of the graphs and memory
    holds one tensor more than the caller's.
    """

    def __init__(self, folder: Path, min_bytes: int = MIN_EXTERNAL_BYTES) -> None:
        """Creates the file.

        Args:
            folder: an existing folder without a weights file.
            min_bytes: smaller tensors stay inside their graph.
        """
        self._min_bytes = min_bytes
        self._folder = folder
        self._stream = (folder / WEIGHTS_NAME).open("xb")
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._offsets: dict[tuple[int, bytes], int] = {}
        # The graphs of one model share their tensors; holding them keeps their ids unique.
        self._written: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._written.clear()
        self._stream.close()

    @property
    def digest(self) -> FileDigest:
        """Size and SHA-256 of what was written."""
        return FileDigest(self._size, self._sha256.hexdigest())

    def save(self, model: ir.Model, name: str) -> None:
        """Writes one graph.

        Args:
            model: the graph; its large tensors are read from the weights file from now on.
            name: the file's name in the folder.
        """
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= self._min_bytes:
                value.const_value = self._external(tensor)
        self._stream.flush()
        ir.save(model, self._folder / name)

    def _external(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        if id(tensor) not in self._written:
            content = tensor.tobytes()
            key = (len(content), hashlib.sha256(content).digest())
            if key not in self._offsets:
                self._write(bytes(-self._size % WEIGHTS_ALIGNMENT))
                self._offsets[key] = self._size
                self._write(content)
            place, shape, name = self._offsets[key], ir.Shape(tensor.shape), str(tensor.name)
            made = ir.ExternalTensor(WEIGHTS_NAME, place, len(content), ir.DataType(tensor.dtype), shape=shape, name=name, base_dir=self._folder)
            self._written[id(tensor)] = (tensor, made)
        return self._written[id(tensor)][1]

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._sha256.update(content)
        self._size += len(content)
