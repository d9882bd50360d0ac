"""The optional parts of the package (its extras), and the command that installs one."""

from typing import Literal

Extra = Literal["train", "export", "int8", "text", "parquet", "tensorrt", "tensorrt-rtx", "openvino", "gpu", "hf", "all-cpu"]
"""Names of pyproject.toml's optional dependencies; a test compares the two."""
INSTALL_GPU = "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"
"""ONNX Runtime for GPUs fills the same folder as the package for CPUs, so that one must go, also behind `pip install '.[gpu]'`."""
_COMMAND = "pip install '.[{extra}]' in the checkout"


def install_hint(extra: Extra) -> str:
    """The command that installs an extra, for error messages. The package is on no index, so it names the source folder."""
    return _COMMAND.format(extra=extra)
