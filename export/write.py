"""From a model in memory to a bundle on disk, which appears only once it is proved equal to PyTorch."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
from safetensors.torch import save as save_tensors
from torch import Tensor

from prtool.bundle import Bundle, seal
from prtool.errors import ConfigError
from prtool.export import compose, text
from prtool.export.graphs import PostGraph, PreGraph, TextGraph
from prtool.export.onnx import INLINE_LIMIT_BYTES, save, to_onnx
from prtool.export.parity import prove
from prtool.export.probe import Probe
from prtool.export.signature import signatures
from prtool.export.source import ExportSource
from prtool.files import new_directory, write_bytes, write_json
from prtool.manifest import SCHEMA, GraphSpec, Manifest, ModelInfo, TextInfo
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.verify import PROBE_NAME
from prtool.spec import Keep

PRECISIONS = ("fp32",)
PARITY_NAME = "parity.json"
_LIBRARIES = ("prtool", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "open_clip_torch", "timm")


@dataclass(frozen=True, slots=True, eq=False)
class ExportOptions:
    """How a bundle is made.

    Attributes:
        keep: what a call keeps that names nothing.
        precision: "fp32".
        pixels: (images, 3, height, width) float32, prepared, for the comparison with PyTorch; None takes seeded noise.
        inline_limit_bytes: a graph with more bytes of weights keeps them in a file of their own.
    """

    keep: Keep
    precision: str = "fp32"
    pixels: Tensor | None = None
    inline_limit_bytes: int = INLINE_LIMIT_BYTES

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision = {self.precision!r}, but this version exports {', '.join(PRECISIONS)} only; give --precision fp32")


def export_bundle(source: ExportSource, out: Path, options: ExportOptions, progress: Progress | None = None) -> Manifest:
    """Exports every graph, proves it and puts the bundle at `out`; takes about a minute for ViT-B/16.

    Args:
        source: the model and its pruned encoder.
        out: the bundle's directory; a bundle that stands there is replaced only once the new one is proved.
        options: default keep, precision, images.
        progress: hears one step a graph, then one a comparison.

    Returns:
        The manifest as written.

    Raises:
        KeepError: the default keep is out of range.
        ModelError: a graph cannot be exported.
        ParityError: a graph disagrees with PyTorch; nothing was written.
        StorageError: the disk is full or may not be written to.
    """
    told = progress or SilentProgress()
    default = options.keep.resolve(source.spec.patches)
    probe = Probe.choose(source, options.pixels, default)
    with new_directory(out) as root:
        _write_graphs(source, root, options.inline_limit_bytes, told)
        classes = text.write_classes(source, root)
        tokenizer = text.tokenizer_of(source)
        if tokenizer is not None:
            text.write_tokenizer(tokenizer, root / text.TOKENIZER_NAME)
        # save_file would make a file that only its owner may read.
        write_bytes(root / PROBE_NAME, save_tensors(probe.tensors(source)))
        info = TextInfo(source.model.context_length, "" if tokenizer is None else text.TOKENIZER_NAME)
        unproved = seal(root, replace(_manifest(source, default), text=info, classes=classes))
        report = prove(source, Bundle(root, unproved), probe, told)
        write_json(root / PARITY_NAME, report.to_json())
        return seal(root, replace(unproved, parity=report.summary()))


def _write_graphs(source: ExportSource, root: Path, limit: int, progress: Progress) -> None:
    specs = signatures(source)

    def write(role: str, model: ir.Model) -> ir.Model:
        save(model, root / specs[role].file, limit)
        progress.advance()
        return model

    with stage(progress, "exporting graphs", len(specs)):
        stages = [
            write("pre", to_onnx(PreGraph(source.pruned), specs["pre"])),
            write("post", to_onnx(PostGraph(source.pruned), specs["post"])),
        ]
        write("fused", compose.fused(stages, source.spec, specs["fused"]))
        write("full", compose.full(stages, specs["full"]))
        write("text", to_onnx(TextGraph(source.model.text), specs["text"]))


def _manifest(source: ExportSource, default_keep: int) -> Manifest:
    model = source.model
    graphs: dict[str, dict[str, GraphSpec]] = {"fp32": signatures(source)}
    return Manifest(
        schema=SCHEMA,
        model=ModelInfo(
            name=model.name,
            pretrained=model.pretrained,
            weights_sha256=model.weights_sha256,
            embed_dim=model.tower.embed_dim,
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            scorer=source.scorer_name,
            scorer_trained=source.scorer_trained,
        ),
        prune=source.spec,
        cost=source.cost(),
        preprocess=model.preprocess,
        default_keep=default_keep,
        keep_range=(1, source.spec.patches),
        graphs=graphs,
        parity={},
        versions={name: version(name) for name in _LIBRARIES},
    )
