"""What this machine can run: libraries, engines, processor, and the run and bundle of the current folder."""

import importlib.metadata
import platform
import shutil
from pathlib import Path

from prtool.bundle import Bundle
from prtool.engines.registry import EngineStatus, list_engines
from prtool.errors import PrtoolError
from prtool.runtime.machine import cpu_flags, this_machine

_LIBRARIES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "onnx", "onnxscript", "onnxruntime"),
    *("openvino", "nncf", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu"),
    *("transformers", "tokenizers", "pyarrow", "matplotlib", "pillow", "numpy"),
)
_NOTABLE_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


def examine(folder: Path) -> dict[str, object]:
    """Facts for a bug report, as plain JSON values; `runs/latest` and `bundle/` of the project folder are looked at."""
    machine = this_machine()
    return {
        "prtool": importlib.metadata.version("prtool"),
        "python": platform.python_version(),
        "system": machine.system,
        "processor": f"{machine.cpu} ({' '.join(flag for flag in _NOTABLE_FLAGS if flag in cpu_flags())})",
        "cpus_granted": machine.threads_granted,
        "disk_free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "engines": {engine.name: _engine(engine) for engine in list_engines()},
        "run": _state(folder / "runs" / "latest", "prtool train"),
        "bundle": _bundle(folder / "bundle"),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _engine(status: EngineStatus) -> str:
    return status.reason if status.info is None else f"{status.info.name} {status.info.version} on {status.info.device}"


def _state(path: Path, command: str) -> str:
    return str(path.resolve()) if path.exists() else f"none; '{command}' makes one"


def _bundle(path: Path) -> str:
    if not path.exists():
        return "none; 'prtool export' makes one"
    try:
        manifest = Bundle.open(path).manifest
    except PrtoolError as cause:
        return f"not usable: {cause}"
    return f"{manifest.model.name}, keep {manifest.default_keep} of {manifest.prune.patches}, {', '.join(manifest.graphs)}"
