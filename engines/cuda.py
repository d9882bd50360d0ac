"""Tensors on a CUDA device, for the engines that bring none of their own: PyTorch's, and what a native library must know of one."""

from typing import TYPE_CHECKING, Any

import numpy as np

from prtool.engines.base import Array, DeviceArray
from prtool.errors import EngineUnavailable, ShapeError

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import CudaTorchArrays


def cuda_arrays(device: int, *, records: bool = True) -> "CudaTorchArrays":
    """PyTorch's arrays on one CUDA device, the same object in each call; EngineUnavailable where PyTorch or the device is missing.

    `records` says whether the engine's work can be recorded as a CUDA graph.
    """
    try:
        import torch

        from prtool.engines.pytorch.arrays import cuda_torch_arrays
    except ImportError as cause:
        raise EngineUnavailable(f"arrays on cuda:{device} are PyTorch's, but torch cannot be imported ({cause}); pip install torch") from cause
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device >= count:
        raise EngineUnavailable(
            f"arrays on cuda:{device} are PyTorch's, but torch {torch.__version__} finds {count} CUDA devices; "
            "pip install a torch that is built for CUDA, and check the driver with nvidia-smi"
        )
    return cuda_torch_arrays(device, records)


def address(array: DeviceArray) -> int:
    """The address of a tensor's memory."""
    return int(array.data_ptr())


def described(name: str, array: DeviceArray) -> Array:
    """A host array of a tensor's shape and dtype, without memory of its own, to be checked in its place; numpy shape inputs are returned as they are.

    ShapeError where the array is no tensor, not contiguous, or of a dtype that no graph takes.
    """
    if not hasattr(array, "data_ptr"):
        if isinstance(array, np.ndarray) and array.dtype.kind == "i":
            return array
        raise ShapeError(f"{name} is a {type(array).__name__}, but run_device takes torch tensors; convert it with `arrays.to_device`")
    if not array.is_contiguous():
        raise ShapeError(f"{name} is not contiguous in memory; use .contiguous() or `arrays.to_device`")
    return np.broadcast_to(np.zeros((), _dtype(name, array)), tuple(array.shape))


def _dtype(name: str, array: DeviceArray) -> np.dtype[Any]:
    """numpy's dtype; PyTorch has the same names behind "torch."."""
    try:
        return np.dtype(str(array.dtype).removeprefix("torch."))
    except TypeError as cause:
        raise ShapeError(f"{name} has dtype {array.dtype}, which no graph takes in any precision; give float32 or int64") from cause
