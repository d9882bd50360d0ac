"""From a bundle to the folder of a layout, which appears only once its graphs were compared with the bundle's. Needs no PyTorch."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from prtool.bundle import Bundle, holds_only_listed
from prtool.engines.base import Array, GraphOptions
from prtool.engines.registry import open_engine
from prtool.errors import ParityError
from prtool.export.layouts import hf, immich, triton
from prtool.export.layouts.graphs import image_graph, load_graph, save_graph, text_graph
from prtool.export.layouts.plan import Contents, LayoutOptions, Plan
from prtool.export.layouts.report import LayoutCase, LayoutReport
from prtool.export.layouts.tokenizer import TokenizerFile
from prtool.files import FileDigest, OutputKind, new_directory, write_bytes, write_json
from prtool.manifest import GraphSpec, TensorSpec
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.verify import Tensors, read_probe
from prtool.spec import Preprocess

MARKER_NAME = "prtool-layout.json"
"""Lists the files of a layout, and what they were made from."""
LAYOUT = OutputKind("a folder of --layout, with nothing else in it", partial(holds_only_listed, manifest_name=MARKER_NAME), is_folder=True)
_SCHEMA = 1
# Same graph, same engine: what is left is the order of sums where a constant count lets it fuse more. A step of int8 is larger.
_LIMITS = {"fp32": 1e-5, "fp16": 1e-3, "int8": 1e-3}
_PLANS: Mapping[str, Callable[[Contents], Plan]] = MappingProxyType({"hf": hf.plan, "immich": immich.plan, "triton": triton.plan})


def write_layout(bundle: Bundle, out: Path, options: LayoutOptions) -> LayoutReport:
    """Writes a bundle's encoder in a layout.

    Args:
        bundle: an opened bundle, of any method.
        out: the folder; it may hold an earlier layout, which is replaced, and nothing else.
        options: layout, keep, precision, pixels.

    Raises:
        KeepError: the keep is out of the bundle's range.
        ConfigError: the layout cannot express something of the bundle, the bundle lacks the precision, or something else is at `out`.
        BundleError: the bundle changed, or its probe or tokenizer is damaged.
        ParityError: a graph disagrees with the bundle's; nothing was written.
        StorageError: the disk is full or read-only.
    """
    manifest = bundle.manifest
    counts = manifest.counts(options.keep)
    bundle.graph("fused", options.precision)
    with new_directory(out, LAYOUT, (bundle.path,)) as root:
        contents = Contents(manifest, TokenizerFile.of(bundle), options)
        plan = _PLANS[options.layout](contents)
        for name, content in plan.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(root / name, _encoded(content))
        save_graph(image_graph(load_graph(bundle, "fused", options.precision), plan.image, counts, manifest.preprocess), root / plan.image.file)
        if plan.text is not None and manifest.text is not None:
            save_graph(text_graph(load_graph(bundle, "text"), plan.text, manifest.text.context_length, plan.pad_id), root / plan.text.file)
        cases = tuple(_compared(bundle, root, plan, contents, counts))
        kept = manifest.patches_kept("fused", counts)
        write_json(root / MARKER_NAME, _marker(bundle, root, options, kept))
    return LayoutReport(out, options.layout, options.precision, options.pixels, kept, cases, plan.notes)


def _encoded(content: object) -> bytes:
    if isinstance(content, str):
        return content.encode()
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _marker(bundle: Bundle, root: Path, options: LayoutOptions, kept: int) -> dict[str, object]:
    model = bundle.manifest.model
    files = {str(path.relative_to(root).as_posix()): asdict(FileDigest.of(path)) for path in sorted(root.rglob("*")) if path.is_file()}
    facts = {"layout": options.layout, "precision": options.precision, "pixels": options.pixels, "keep": kept}
    source = {"model": model.name, "pretrained": model.pretrained, "weights_sha256": model.weights_sha256}
    return {"schema": _SCHEMA, **facts, **source, "logit_scale": model.logit_scale, "logit_bias": model.logit_bias, "files": files}


def _compared(bundle: Bundle, root: Path, plan: Plan, contents: Contents, counts: tuple[int, ...]) -> Iterator[LayoutCase]:
    """Runs the probe through the written graphs and the bundle's, at two batch sizes."""
    probe, options = read_probe(bundle), contents.options
    pixels, given = _pixels(probe, options, bundle.manifest.preprocess)
    feeds = {"pixels": pixels, **({"k": np.array(counts, np.int64)} if counts else {})}
    fused = bundle.graph("fused", options.precision)
    yield from _cases(root, plan.image, given, _run(bundle.file(fused.file), fused, feeds), _LIMITS[options.precision])
    if plan.text is not None:
        tokens, text = probe["text_tokens"], bundle.graph("text")
        wanted = _run(bundle.file(text.file), text, {"tokens": tokens})
        given = _prompts(tokens, plan.text.inputs[0], plan.pad_id, contents.tokenizer)
        yield from _cases(root, plan.text, given, wanted, _LIMITS["fp32"])


def _cases(root: Path, spec: GraphSpec, given: Array, wanted: Array, limit: float) -> Iterator[LayoutCase]:
    for batch in sorted({1, len(given)}):
        found = _run(root / spec.file, spec, {spec.inputs[0].name: given[:batch]})
        error = float(np.abs(found - wanted[:batch]).max())
        if not error <= limit:
            raise ParityError(
                f"{spec.file} disagrees with the bundle at batch {batch}: largest error {error:.3g}, but it must be at most {limit:g}; "
                "report the model's name"
            )
        yield LayoutCase(spec.file, batch, error)


def _run(path: Path, spec: GraphSpec, feeds: Mapping[str, Array]) -> Array:
    engine = open_engine("ort", path, spec.inputs, GraphOptions(spinning=False))
    try:
        (found,) = engine.run(feeds).values()
    finally:
        engine.close()
    return found


def _pixels(probe: Tensors, options: LayoutOptions, spec: Preprocess) -> tuple[Array, Array]:
    """What the bundle's graph reads, and the layout's, of the same images."""
    pixels = probe["pixels"]
    if options.pixels == "float32":
        return pixels, pixels
    mean, std = (np.array(each)[:, None, None] for each in (spec.mean, spec.std))
    images = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return prepare_batch(list(images), spec), images


def _prompts(tokens: Array, wanted: TensorSpec, pad_id: int, tokenizer: TokenizerFile | None) -> Array:
    """Token ids as the layout's text graph reads them: where prompts may be short, as long as the longest, and with the layout's padding."""
    if tokenizer is None or isinstance(wanted.shape[1], int):
        return tokens.astype(wanted.dtype)
    filled = np.logical_and.accumulate(tokens[:, ::-1] == tokenizer.prompts.pad_id, axis=1)[:, ::-1]
    longest = max(1, int((~filled).sum(axis=1).max()))
    return np.where(filled, pad_id, tokens)[:, :longest].astype(wanted.dtype)
