"""From a model in memory to a bundle on disk, which appears only once its graphs were compared with PyTorch."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save as save_tensors

from prtool.bundle import BUNDLE, Bundle, seal
from prtool.errors import ConfigError
from prtool.export import text
from prtool.export.checks import MIN_IMAGES, PRECISIONS
from prtool.export.graphs.modules import TextGraph
from prtool.export.graphs.onnx import to_onnx
from prtool.export.graphs.weights import WeightsFile
from prtool.export.precision.build import at_precision, calibration_samples, joined, stages
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.parity import compare
from prtool.export.validation.probe import Probe, keep_counts
from prtool.files import FileDigest, new_directory, write_bytes, write_json
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.manifest import SCHEMA, Manifest, ModelInfo
from prtool.progress import Progress, SilentProgress, stage
from prtool.records import check_value
from prtool.runtime.verify import PROBE_NAME
from prtool.spec import Keep
from prtool.trainer.models.loading.source import FOLDER_PREFIXES

PARITY_NAME = "parity.json"
_LIBRARIES = ("prtool", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "open_clip_torch", "timm")


@dataclass(frozen=True, slots=True, eq=False)
class ExportOptions:
    """How a bundle is made.

    Attributes:
        keep: what a call keeps that names nothing.
        precisions: of `PRECISIONS`; fp32 is always written, because it is the reference and has the text encoder.
        pixels: images for the comparison with PyTorch; None takes seeded noise.
        calibration: images for int8's scales; at least 16.
        held_out: images on which the reduced precisions must agree with PyTorch; None leaves that to the few of `pixels`.
        labels: the class of each of `held_out` among the source's, or -1; () for none known.
        patch_tokens: the block whose patch tokens the bundle also gives, 1-based, or negative from the end (-1 the last); None for none.
    """

    keep: Keep
    precisions: tuple[str, ...] = ("fp32",)
    pixels: Pixels | None = None
    calibration: Pixels | None = None
    held_out: Pixels | None = None
    labels: tuple[int, ...] = ()
    patch_tokens: int | None = None

    def __post_init__(self) -> None:
        for precision in self.precisions:
            check_value("precision", precision, choices=PRECISIONS)

    def check_images(self) -> None:
        """Raises ConfigError where int8 is requested with too few images to choose its scales from."""
        images = 0 if self.calibration is None else len(self.calibration)
        if "int8" in self.precisions and images < MIN_IMAGES:
            raise ConfigError(f"int8 takes its scales from real images, and there are {images}; give at least {MIN_IMAGES} with --data")

    def written(self) -> tuple[str, ...]:
        """The precisions of the bundle, fp32 first, each once."""
        return tuple(dict.fromkeys(("fp32", *self.precisions)))


def write_bundle(source: ExportSource, out: Path, options: ExportOptions, progress: Progress | None = None) -> Manifest:
    """Exports every graph, compares it with PyTorch and puts the bundle at `out`; takes about a minute for ViT-B/16.

    Args:
        source: the model and its pruned encoder.
        out: the bundle's directory; it may hold an earlier bundle, which is replaced after the comparison, and nothing else.
        options: default keep, precisions, images.
        progress: advanced once per graph, then once per comparison.

    Returns:
        The manifest as written.

    Raises:
        KeepError: the default keep is out of range.
        ConfigError: int8 is requested without images, no such patch tokens can be given, or something other than a bundle is at `out`.
        ModelError: a graph cannot be exported.
        ParityError: a graph disagrees with PyTorch; nothing was written.
        StorageError: the disk is full or read-only.
    """
    shown = progress or SilentProgress()
    default = source.check_keep(options.keep)
    options.check_images()
    if options.patch_tokens is not None:
        source = replace(source, tokens_block=source.spec.patch_tokens_block(options.patch_tokens))
    probe = Probe.choose(source, options.pixels, default)
    with new_directory(out, BUNDLE) as root:
        digests = _write_graphs(source, root, options, default, shown)
        classes = text.write_classes(source, root)
        info = text.write_side(source, root)
        # save_file would make a file that only its owner may read.
        write_bytes(root / PROBE_NAME, save_tensors(probe.tensors(source)))
        sealed = seal(root, replace(_manifest(source, default, options), text=info, classes=classes), digests)
        report = compare(source, Bundle.open(root, verify=False), probe, options.held_out, options.labels, shown)
        write_json(root / PARITY_NAME, report.to_json())
        return seal(root, replace(sealed, parity=report.summary()), sealed.files)


def _write_graphs(source: ExportSource, root: Path, options: ExportOptions, default_keep: int, progress: Progress) -> dict[str, FileDigest]:
    """Writes the graphs of every precision; returns the digests of their weights files."""
    precisions = options.written()
    digests: dict[str, FileDigest] = {}
    with stage(progress, "exporting graphs", sum(len(source.signatures(precision)) for precision in precisions)):
        plain, samples = stages(source), None
        if options.calibration is not None and "int8" in precisions:
            samples = calibration_samples(source, options.calibration, keep_counts(default_keep, source.keep_range)[:2])
        for precision in precisions:
            specs = source.signatures(precision)
            graphs = joined(source, at_precision(source, plain, precision, samples), precision)
            if "text" in specs:
                graphs["text"] = to_onnx(TextGraph(source.model.text), specs["text"])
            weights_path = (root / specs["full"].file).with_name(WEIGHTS_NAME)
            weights_path.parent.mkdir(exist_ok=True)
            with WeightsFile(weights_path) as weights:
                for role, model in graphs.items():
                    weights.save(model, root / specs[role].file)
                    progress.advance()
            digests[weights_path.relative_to(root).as_posix()] = weights.digest
    return digests


def _without_folders(name: str) -> str:
    """A model's or weights' name without the path on this machine: a bundle travels, and `weights_sha256` identifies the model."""
    prefix = next((prefix for prefix in FOLDER_PREFIXES if name.startswith(prefix)), "")
    path = Path(name.removeprefix(prefix))
    return prefix + path.name if path.is_absolute() else name


def _manifest(source: ExportSource, default_keep: int, options: ExportOptions) -> Manifest:
    model, precisions = source.model, options.written()
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
        native_size=model.native.image_size,
        default_keep=default_keep,
        keep_range=source.keep_range,
        graphs={precision: source.signatures(precision) for precision in precisions},
        parity={},
        recovery=source.recovery,
        patch_tokens=source.patch_tokens,
        versions={name: version(name) for name in (*_LIBRARIES, *(("nncf",) if "int8" in precisions else ()))},
    )
