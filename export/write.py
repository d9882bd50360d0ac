"""From a model in memory to a bundle on disk, which appears only once it is proved equal to PyTorch."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save as save_tensors
from torch import Tensor

from prtool.bundle import BUNDLE, Bundle, seal
from prtool.errors import ConfigError
from prtool.export import text
from prtool.export.checks import MIN_IMAGES
from prtool.export.graphs import compose
from prtool.export.graphs.modules import TextGraph
from prtool.export.graphs.onnx import to_onnx
from prtool.export.graphs.weights import WeightsFile
from prtool.export.precision.build import PRECISIONS, Int8Request, at_precision, stages
from prtool.export.precision.int8 import Int8Options
from prtool.export.signature import signatures, stage_roles
from prtool.export.source import ExportSource
from prtool.export.validation.decisions import Unpruned
from prtool.export.validation.parity import HeldOut, prove
from prtool.export.validation.probe import Probe, keep_counts
from prtool.files import new_directory, write_bytes, write_json
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.manifest import SCHEMA, FileDigest, GraphSpec, Manifest, ModelInfo, TextInfo
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.verify import PROBE_NAME
from prtool.spec import Keep

PARITY_NAME = "parity.json"
_LIBRARIES = ("prtool", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "open_clip_torch", "timm")


@dataclass(frozen=True, slots=True, eq=False)
class ExportOptions:
    """How a bundle is made.

    Attributes:
        keep: what a call keeps that names nothing.
        precisions: of `PRECISIONS`; fp32 is always written, for it is the reference and holds the text side.
        pixels: (images, 3, height, width) float32, prepared, for the comparison with PyTorch; None takes seeded noise.
        calibration: the same form, for int8's scales; at least 16.
        held_out: the same form, on which the reduced precisions must agree with PyTorch; None leaves that to the few of `pixels`.
        labels: the class of each of `held_out` among the source's, or -1; () for none known.
        int8: how int8's scales are chosen.
    """

    keep: Keep
    precisions: tuple[str, ...] = ("fp32",)
    pixels: Tensor | None = None
    calibration: Tensor | None = None
    held_out: Tensor | None = None
    labels: tuple[int, ...] = ()
    int8: Int8Options = field(default_factory=Int8Options)

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in PRECISIONS:
                near = difflib.get_close_matches(precision, PRECISIONS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"precision = {precision!r}, but it must be one of {', '.join(PRECISIONS)}{hint}")

    def check_images(self) -> None:
        """Raises ConfigError where int8 is asked for and there are too few images to choose its scales from."""
        images = 0 if self.calibration is None else len(self.calibration)
        if "int8" in self.precisions and images < MIN_IMAGES:
            raise ConfigError(f"int8 takes its scales from real images, and there are {images}; give at least {MIN_IMAGES} with --data")

    def written(self) -> tuple[str, ...]:
        """The precisions of the bundle, fp32 first, each once."""
        return tuple(dict.fromkeys(("fp32", *self.precisions)))


def export_bundle(source: ExportSource, out: Path, options: ExportOptions, progress: Progress | None = None) -> Manifest:
    """Exports every graph, proves it and puts the bundle at `out`; takes about a minute for ViT-B/16.

    Args:
        source: the model and its pruned encoder.
        out: the bundle's directory; a bundle that stands there is replaced only once the new one is proved, and nothing else is.
        options: default keep, precisions, images.
        progress: hears one step a graph, then one a comparison.

    Returns:
        The manifest as written.

    Raises:
        KeepError: the default keep is out of range.
        ConfigError: int8 is asked for without images, or something else than a bundle stands at `out`.
        ModelError: a graph cannot be exported.
        ParityError: a graph disagrees with PyTorch; nothing was written.
        StorageError: the disk is full or may not be written to.
    """
    told = progress or SilentProgress()
    default = options.keep.resolve(source.spec.patches)
    options.check_images()
    probe = Probe.choose(source, options.pixels, default)
    held_out = None if options.held_out is None else HeldOut(options.held_out, Unpruned.of(source, options.held_out, options.labels))
    with new_directory(out, BUNDLE) as root:
        digests = _write_graphs(source, root, options, default, told)
        classes = text.write_classes(source, root)
        tokenizer = text.tokenizer_of(source)
        if tokenizer is not None:
            text.write_tokenizer(tokenizer, root / text.TOKENIZER_NAME)
        # save_file would make a file that only its owner may read.
        write_bytes(root / PROBE_NAME, save_tensors(probe.tensors(source)))
        info = TextInfo(source.model.context_length, text.vocabulary(source), "" if tokenizer is None else text.TOKENIZER_NAME)
        unproved = seal(root, replace(_manifest(source, default, options.written()), text=info, classes=classes), digests)
        report = prove(source, Bundle.open(root, verify=False), probe, held_out, told)
        write_json(root / PARITY_NAME, report.to_json())
        return seal(root, replace(unproved, parity=report.summary()), unproved.files)


def _write_graphs(source: ExportSource, root: Path, options: ExportOptions, default_keep: int, progress: Progress) -> dict[str, FileDigest]:
    """Writes the graphs of every precision; returns the digests of their weights files."""
    precisions, chain = options.written(), stage_roles(source.spec)
    digests: dict[str, FileDigest] = {}
    with stage(progress, "exporting graphs", (len(chain) + 2) * len(precisions) + 1):
        plain = stages(source)
        request = Int8Request(options.calibration, keep_counts(default_keep, source.spec.patches)[:2], options.int8)
        for precision in precisions:
            specs = signatures(source, precision)
            graphs = at_precision(source, plain, precision, request)
            parts = [graphs[role] for role in chain]
            graphs["fused"] = compose.fused(parts, source.spec, specs["fused"])
            if "full" not in graphs:
                graphs["full"] = compose.full(parts, specs["full"])
            if "text" in specs:
                graphs["text"] = to_onnx(TextGraph(source.model.text), specs["text"])
            folder = (root / specs["full"].file).parent
            folder.mkdir(exist_ok=True)
            with WeightsFile(folder) as weights:
                for role, model in graphs.items():
                    weights.save(model, Path(specs[role].file).name)
                    progress.advance()
            digests[(folder / WEIGHTS_NAME).relative_to(root).as_posix()] = weights.digest
    return digests


def _without_folders(name: str) -> str:
    """A model's or weights' name without the path on this machine: a bundle travels, and `weights_sha256` identifies the model."""
    prefix = "local-dir:" if name.startswith("local-dir:") else ""
    path = Path(name.removeprefix(prefix))
    return prefix + path.name if path.is_absolute() else name


def _manifest(source: ExportSource, default_keep: int, precisions: Sequence[str]) -> Manifest:
    model = source.model
    graphs: dict[str, dict[str, GraphSpec]] = {precision: signatures(source, precision) for precision in precisions}
    return Manifest(
        schema=SCHEMA,
        model=ModelInfo(
            name=_without_folders(model.name),
            pretrained=_without_folders(model.pretrained),
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
        versions={name: version(name) for name in (*_LIBRARIES, *(("nncf",) if "int8" in precisions else ()))},
    )
