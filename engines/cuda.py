"""Arrays on a CUDA device for engines that bring none of their own: PyTorch's, else CuPy's."""

from prtool.engines.base import ArrayLibrary
from prtool.errors import EngineUnavailable


def cuda_arrays(device: int) -> ArrayLibrary:
    """The array library of one CUDA device; the same object in each call.

    PyTorch's is taken where PyTorch finds the device, else CuPy's.

    Args:
        device: number of the GPU, from 0.

    Raises:
        EngineUnavailable: neither library can be imported and finds the device; the message has both reasons and both pip lines.
    """
    reasons = []
    for attempt in (_torch, _cupy):
        found = attempt(device)
        if not isinstance(found, str):
            return found
        reasons.append(found)
    raise EngineUnavailable(
        f"arrays on cuda:{device} need PyTorch or CuPy, but {reasons[0]}, and {reasons[1]}; pip install torch, or pip install cupy-cuda13x "
        "(cupy-cuda12x for a driver of CUDA 12)"
    )


def _torch(device: int) -> ArrayLibrary | str:
    """PyTorch's arrays, or why there are none."""
    try:
        import torch

        from prtool.engines.pytorch.arrays import torch_arrays
    except ImportError as cause:
        return f"torch cannot be imported ({cause})"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch_arrays(f"cuda:{device}") if device < count else f"torch {torch.__version__} finds {count} CUDA devices"


def _cupy(device: int) -> ArrayLibrary | str:
    """CuPy's arrays, or why there are none."""
    try:
        from prtool.engines.cupy_arrays import cupy_arrays, device_count
    except ImportError as cause:
        return f"cupy cannot be imported ({cause})"
    count = device_count()
    return cupy_arrays(device) if device < count else f"cupy finds {count} CUDA devices"
