"""One weights file for all graphs of a precision: ONNX external data in which equal tensors are stored once."""

import hashlib
from pathlib import Path
from typing import Self

import onnx_ir as ir

from prtool.files import FileDigest
from prtool.graphs.signature import WEIGHTS_ALIGNMENT

MIN_EXTERNAL_BYTES = 1024
"""Tensors with fewer bytes stay inside their graph."""


class WeightsFile:
    """Writes graphs, and their large tensors into one file next to them.

    Tensors are written one at a time in the order of the graphs, so the file is a function of the graphs and memory
    holds one tensor more than the caller's.
    """

    def __init__(self, path: Path) -> None:
        """Creates the file at `path`, in an existing folder."""
        self._path = path
        self._stream = path.open("xb")
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

    def save(self, model: ir.Model, path: Path) -> None:
        """Writes one graph.

        Args:
            model: the graph; its large tensors are read from the weights file from now on.
            path: the ONNX file, in the same folder.
        """
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= MIN_EXTERNAL_BYTES:
                value.const_value = self._external(tensor)
        self._stream.flush()
        ir.save(model, path)

    def _external(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        if id(tensor) not in self._written:
            content = tensor.tobytes()
            key = (len(content), hashlib.sha256(content).digest())
            if key not in self._offsets:
                self._write(bytes(-self._size % WEIGHTS_ALIGNMENT))
                self._offsets[key] = self._size
                self._write(content)
            place, shape, name = self._offsets[key], ir.Shape(tensor.shape.numpy()), str(tensor.name)
            folder, file = self._path.parent, self._path.name
            made = ir.ExternalTensor(file, place, len(content), ir.DataType(tensor.dtype), shape=shape, name=name, base_dir=folder)
            self._written[id(tensor)] = (tensor, made)
        return self._written[id(tensor)][1]

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._sha256.update(content)
        self._size += len(content)
