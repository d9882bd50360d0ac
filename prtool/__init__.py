"""prtool: a frozen CLIP image encoder, made faster by pruning patches.

Usage::

    import prtool

    run = prtool.train(model="ViT-B-16", pretrained="openai", data="photos").run
    prtool.export_bundle(run, "bundle", keep=0.6)
    with prtool.Encoder.load("bundle") as encoder:
        embeddings = encoder.encode_images(["cat.jpg", "dog.jpg"])  # (2, E) float32, L2-normalised

A public name is imported when it is first used, so `import prtool` takes milliseconds and loads neither NumPy nor PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from prtool.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    EngineUnavailable,
    ImageError,
    InputWarning,
    KeepError,
    ModelError,
    ParityError,
    PrtoolError,
    ShapeError,
    StorageError,
)
from prtool.telemetry import switch_off
from prtool.version import __version__

if TYPE_CHECKING:
    from prtool.api import (
        ExportReport,
        TrainReport,
        VerifyResult,
        apply,
        benchmark,
        build,
        evaluate,
        export_bundle,
        train,
        tune,
        verify,
        write_layout,
    )
    from prtool.bundle import Bundle
    from prtool.engines.base import BuildOptions, EngineInfo, EngineOptions
    from prtool.engines.registry import EngineStatus, list_engines
    from prtool.export.layouts.report import LayoutReport
    from prtool.manifest import Manifest
    from prtool.progress import Progress
    from prtool.runtime.bench import BenchReport
    from prtool.runtime.build import BuildReport
    from prtool.runtime.classes import Prediction
    from prtool.runtime.encoder import Encoder
    from prtool.runtime.patch_tokens import PatchTokens
    from prtool.spec import Keep
    from prtool.studies.tune.report import TuneReport
    from prtool.trainer.config import TrainConfig
    from prtool.trainer.evaluation.report import EvalReport

__all__ = ["apply", "benchmark", "build", "evaluate", "export_bundle", "list_engines", "train", "tune", "verify", "write_layout"]
__all__ += ["BuildOptions", "Bundle", "Encoder", "EngineInfo", "EngineOptions", "EngineStatus", "Keep", "Manifest", "Prediction"]
__all__ += ["PatchTokens", "Progress", "TrainConfig"]
__all__ += ["BenchReport", "BuildReport", "EvalReport", "ExportReport", "LayoutReport", "TrainReport", "TuneReport", "VerifyResult"]
__all__ += ["BundleError", "CheckpointError", "ConfigError", "DataError", "ImageError", "KeepError", "ModelError", "PrtoolError", "ShapeError"]
__all__ += ["EngineError", "EngineUnavailable", "InputWarning", "ParityError", "StorageError", "__version__"]

_HOMES = {
    "prtool.api": (
        "ExportReport",
        "TrainReport",
        "VerifyResult",
        "apply",
        "benchmark",
        "build",
        "evaluate",
        "export_bundle",
        "train",
        "tune",
        "verify",
        "write_layout",
    ),
    "prtool.bundle": ("Bundle",),
    "prtool.engines.base": ("BuildOptions", "EngineInfo", "EngineOptions"),
    "prtool.engines.registry": ("EngineStatus", "list_engines"),
    "prtool.export.layouts.report": ("LayoutReport",),
    "prtool.manifest": ("Manifest",),
    "prtool.progress": ("Progress",),
    "prtool.runtime.bench": ("BenchReport",),
    "prtool.runtime.build": ("BuildReport",),
    "prtool.runtime.classes": ("Prediction",),
    "prtool.runtime.encoder": ("Encoder",),
    "prtool.runtime.patch_tokens": ("PatchTokens",),
    "prtool.spec": ("Keep",),
    "prtool.studies.tune.report": ("TuneReport",),
    "prtool.trainer.config": ("TrainConfig",),
    "prtool.trainer.evaluation.report": ("EvalReport",),
}


# Here, because whatever imports a library for prtool imports this first.
switch_off()


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'prtool' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
