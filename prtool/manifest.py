"""The manifest of a bundle: what its files are, as typed values that read from and write to JSON."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prtool.errors import BundleError, ConfigError, KeepError
from prtool.files import FileDigest
from prtool.graphs.signature import EncoderShape, GraphSpec, TensorSpec, graph_signatures
from prtool.records import check_value, from_plain, to_plain
from prtool.spec import RANK, Cost, Keep, Preprocess, PruneSpec, plain_number
from prtool.strict import JSON_INTEGER
from prtool.text_safety import printable

__all__ = ["SCHEMA", "ClassInfo", "FileDigest", "GraphSpec", "Manifest", "ModelInfo", "PatchTokensInfo", "TensorSpec", "TextInfo"]

SCHEMA = 1
MAX_WIDTH = 65_536
"""Largest width of a token or an embedding, and largest number of token ids in a prompt."""
MAX_CLASSES = 1_000_000
MAX_FILES = 10_000
MAX_METADATA, METADATA_BYTES = 1000, 64 << 10
TOKENIZER_BYTES = 64 << 20
_NAME_BYTES, _PATH_BYTES = 255, 1024
_RESERVED = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The encoder that was exported.

    Attributes:
        name, pretrained: as `prtool train` takes them; of local paths the last part only.
        weights_sha256: digest of the image tower's tensors.
        embed_dim: width E of an embedding.
        logit_scale, logit_bias: class logits are scale x cosine + bias.
        scorer: architecture of the patch scorer.
        scorer_trained: False for a freshly initialised scorer, whose choice of patches means nothing.
    """

    name: str
    pretrained: str
    weights_sha256: str
    embed_dim: int
    logit_scale: float
    logit_bias: float
    scorer: str
    scorer_trained: bool


@dataclass(frozen=True, slots=True)
class TextInfo:
    """The text side.

    Attributes:
        context_length: token ids a prompt.
        vocab_size: each is from 0 to `vocab_size` - 1.
        tokenizer: a file, or "" when none could be written.
    """

    context_length: int
    vocab_size: int
    tokenizer: str


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """Class names in label order, the prompt templates, and the file that holds the class embeddings."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    file: str


@dataclass(frozen=True, slots=True)
class RecoveryInfo:
    """Corrections in the weights of the shortened encoder; FULL and the text side have none.

    Attributes:
        rank: of each matrix's correction.
        first: 1-based block from which on they are.
        scale: of all of them.
        images, copies: that they were learned from: images, and cropped copies of each besides itself.
        keeps: patches kept at which validation images judged.
        before, after: their mean cosines to the unpruned embedding without and with corrections, one a keep.
    """

    rank: int
    first: int
    scale: float
    images: int
    copies: int
    keeps: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PatchTokensInfo:
    """What the graph TOKENS gives in addition to the embedding: the kept patches' tokens.

    Attributes:
        block: 1-based, whose output they are, without a norm behind it.
        width: of each.
    """

    block: int
    width: int


def allowed_keeps(spec: PruneSpec, recovery: RecoveryInfo | None) -> tuple[int, int]:
    """Least and most patches that a call may keep: those that the recovery was trained for, or else all that the method can leave."""
    return (recovery.keeps[0], recovery.keeps[-1]) if recovery else (spec.least_keep, spec.patches)


def check_keep(keep: Keep, spec: PruneSpec, recovery: RecoveryInfo | None) -> int:
    """The number of patches of a keep.

    Raises:
        KeepError: it is out of the method's reach, or the corrections were not learned for it.
    """
    k, (low, high) = keep.resolve(spec.patches), allowed_keeps(spec, recovery)
    spec.counts(k)
    if not low <= k <= high:
        raise KeepError(
            f"keep = {k} of {spec.patches} patches, but the recovery was trained for {low} to {high}; "
            "give such a keep, or train it with other recover.macs_low and recover.macs_high"
        )
    return k


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader needs to run the bundle; docs/bundle-format.md is normative.

    Attributes:
        preprocess: of the pixels that the pruned encoder reads.
        native_size: height and width of the pixels that the unpruned encoder (FULL) reads.
        default_keep: patches kept when a call names none.
        keep_range: least and most patches a call may keep.
        graphs: precision -> role -> graph; roles are those of `prtool.graphs.signature.graph_signatures`.
        parity: the worst figures of the comparison with PyTorch at export; parity.json has them all.
        versions: libraries that made the bundle.
        recovery: corrections in the weights, where there are some.
        patch_tokens: of the graph TOKENS, where there is one.
        metadata: annotations of others, which readers keep and otherwise ignore.
        files: every other file of the bundle.
    """

    schema: int
    model: ModelInfo
    prune: PruneSpec
    cost: Cost
    preprocess: Preprocess
    native_size: tuple[int, int]
    default_keep: int
    keep_range: tuple[int, int]
    graphs: dict[str, dict[str, GraphSpec]]
    parity: dict[str, float]
    versions: dict[str, str]
    text: TextInfo | None = None
    classes: ClassInfo | None = None
    recovery: RecoveryInfo | None = None
    patch_tokens: PatchTokensInfo | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileDigest] = field(default_factory=dict)

    def resolve(self, keep: Keep | None) -> int:
        """The number of patches k for one call; None means the default.

        Raises:
            KeepError: k is outside `keep_range`.
        """
        return self.default_keep if keep is None else self._in_range(keep.resolve(self.prune.patches))

    def counts(self, keep: Keep | Sequence[int] | None) -> tuple[int, ...]:
        """Patches kept at each location for one call.

        Args:
            keep: patches left behind the last location; a count for each location; or None for the default.

        Raises:
            KeepError: k is outside `keep_range`, or the counts are too many or too few, rise or are no whole numbers.
        """
        if keep is None or isinstance(keep, Keep):
            return self.prune.counts(self.resolve(keep))
        numbers = tuple(map(plain_number, keep))
        counts = tuple(k for k in numbers if isinstance(k, int))
        if len(counts) != len(numbers):
            raise KeepError(f"keep counts {printable(list(keep))}, but they must be whole numbers, such as {list(self.counts(None))}")
        self.prune.check_counts(counts)
        if counts:
            self._in_range(counts[-1])
        return counts

    def usual_keeps(self, ratios: Sequence[float]) -> tuple[Keep, ...]:
        """Those of some ratios that this bundle allows, or its default where it allows none."""
        (low, high), patches = self.keep_range, self.prune.patches
        allowed = tuple(keep for keep in map(Keep.ratio, ratios) if low <= keep.resolve(patches) <= high)
        return allowed or (Keep.count(self.default_keep),)

    def preprocess_for(self, mode: str) -> Preprocess:
        """How an image becomes the pixels of a mode: "full", the unpruned encoder, may read larger ones."""
        return replace(self.preprocess, size=self.native_size) if mode == "full" else self.preprocess

    def patches_kept(self, mode: str, counts: tuple[int, ...]) -> int:
        """Patches that an embedding of a mode is made of at last, with `counts` at each location; of all images of mode "full"."""
        if mode == "full" and self.cost.native_tokens:
            return self.cost.native_tokens - self.prune.prefix_tokens
        return counts[-1] if counts and mode != "full" else self.prune.patches

    def _in_range(self, k: int) -> int:
        low, high = self.keep_range
        if not low <= k <= high:
            self.prune.counts(k)  # where the method allows no such number either, that is the reason
            raise KeepError(f"k = {k} patches, but this bundle allows {low} to {high}; give such a number, or export a run that allows others")
        return k

    def theoretical_speedup(self, k: int) -> float:
        """The MAC ratio of the unpruned encoder to the one that keeps k patches."""
        return self.cost.theoretical_speedup(self.prune, self.prune.counts(k))

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, value: object) -> "Manifest":
        """Reads and checks plain JSON values.

        Raises:
            BundleError: unknown schema, a field missing, unknown, of the wrong kind or outside its limits, or two that contradict each other.
        """
        if not isinstance(value, Mapping):
            raise BundleError("the manifest is not a JSON object; export the bundle again")
        if value.get("schema") != SCHEMA:
            raise BundleError(
                f"the bundle has schema {printable(repr(value.get('schema')))}, but this prtool reads schema {SCHEMA}; "
                "make a new one with 'prtool export'"
            )
        try:
            manifest: Manifest = from_plain(cls, value, "manifest")
            _check(manifest)
        except ConfigError as cause:
            raise BundleError(f"the manifest is damaged or was edited: {cause}; export the bundle again") from cause
        return manifest


def _check(manifest: Manifest) -> None:
    """Raises ConfigError where a value is outside its limits, or two do not fit together."""
    model, (low, high), patches = manifest.model, manifest.keep_range, manifest.prune.patches
    check_value("model.embed_dim", model.embed_dim, minimum=1, maximum=MAX_WIDTH)
    least, default = manifest.prune.least_keep, manifest.default_keep
    if not least <= low <= default <= high <= patches:
        raise ConfigError(f"keep_range = [{low}, {high}] and default_keep = {default} of {patches} patches, but these must rise from {least}")
    full, own = manifest.preprocess_for("full").size, manifest.preprocess.size
    if full[0] < own[0] or full[1] < own[1]:
        raise ConfigError(f"native_size = {list(manifest.native_size)}, but the pruned encoder reads larger images, {list(own)}")
    if manifest.text is not None:
        check_value("text.context_length", manifest.text.context_length, minimum=1, maximum=MAX_WIDTH)
        check_value("text.vocab_size", manifest.text.vocab_size, minimum=1, maximum=2**31 - 1)
    if manifest.classes is not None:
        check_value("the number of class names", len(manifest.classes.names), minimum=1, maximum=MAX_CLASSES)
    if manifest.recovery is not None:
        _check_recovery(manifest.recovery)
    if manifest.patch_tokens is not None:
        check_value("patch_tokens.width", manifest.patch_tokens.width, minimum=1, maximum=MAX_WIDTH)
        check_value("patch_tokens.block", manifest.patch_tokens.block, minimum=1)
        manifest.prune.patch_tokens_block(manifest.patch_tokens.block)
    for name, macs in dataclasses.asdict(manifest.cost).items():
        check_value(f"cost.{name}", macs, minimum=0)
    check_value("cost.attention_token_macs", manifest.cost.attention_token_macs, maximum=manifest.cost.token_macs)
    cheapest = manifest.cost.pruned_gmacs(manifest.prune, manifest.prune.counts(low))
    if not min(cheapest, manifest.cost.full_gmacs(manifest.prune)) > 0:
        raise ConfigError(f"{printable(manifest.cost)}, but an image must cost something")
    _check_metadata(manifest.metadata)
    _check_files(manifest)
    _check_graphs(manifest)
    native, least = manifest.cost.native_tokens, manifest.prune.prefix_tokens + patches + 1
    if not (native >= least if full != own else native == 0):
        wanted = f"at least {least} for images larger than {list(own)}" if full != own else f"0 where all images are of {list(own)}"
        raise ConfigError(f"cost.native_tokens = {native} with native_size = {list(full)}, but it must be {wanted}")


def _check_recovery(recovery: RecoveryInfo) -> None:
    for name, least in (("rank", 1), ("first", 1), ("images", 1), ("copies", 0)):
        check_value(f"recovery.{name}", getattr(recovery, name), minimum=least, maximum=JSON_INTEGER)
    check_value("recovery.keeps", recovery.keeps, minimum=1, maximum=JSON_INTEGER)
    if not len(recovery.keeps) == len(recovery.before) == len(recovery.after) > 0:
        counts = f"{len(recovery.keeps)} keeps, {len(recovery.before)} cosines before and {len(recovery.after)} after"
        raise ConfigError(f"recovery has {counts}, but it must have one of each for every keep")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    check_value("the number of metadata entries", len(metadata), minimum=0, maximum=MAX_METADATA)
    for key, value in metadata.items():
        check_value(f"the bytes of the metadata key {printable(repr(key))}", len(key.encode(errors="replace")), minimum=1, maximum=_NAME_BYTES)
        check_value(f"the bytes of metadata.{printable(key)}", len(value.encode(errors="replace")), minimum=0, maximum=METADATA_BYTES)


def _check_files(manifest: Manifest) -> None:
    check_value("the number of files", len(manifest.files), minimum=0, maximum=MAX_FILES)
    for name, digest in manifest.files.items():
        _check_name(name)
        check_value(f"files.{printable(name)}.size", digest.size, minimum=0, maximum=JSON_INTEGER)
    named = [graph.file for roles in manifest.graphs.values() for graph in roles.values()]
    named += [manifest.classes.file] if manifest.classes else []
    named += [manifest.text.tokenizer] if manifest.text and manifest.text.tokenizer else []
    for name in named:
        if name not in manifest.files:
            raise ConfigError(f"{printable(repr(name))} is named, but it is not among the bundle's files")
    if manifest.text and manifest.text.tokenizer:
        check_value("the size of the tokenizer file", manifest.files[manifest.text.tokenizer].size, minimum=0, maximum=TOKENIZER_BYTES)


def _check_name(name: str) -> None:
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        parts = []
    plain = parts and all(0 < len(part) <= _NAME_BYTES and part not in (b".", b"..") for part in parts)
    if not plain or len(name.encode()) > _PATH_BYTES or _RESERVED.search(name):
        raise ConfigError(f"files names {printable(repr(name))}, which is not a plain relative path inside the bundle; do not use this bundle")


def _check_graphs(manifest: Manifest) -> None:
    """Every precision has the graphs of docs/bundle-format.md, section 3, each with its inputs and outputs."""
    if "fp32" not in manifest.graphs:
        raise ConfigError("graphs has no fp32")
    shape = EncoderShape(
        manifest.preprocess.size,
        manifest.native_size,
        manifest.prune,
        _token_width(manifest) if manifest.prune.method == RANK else 0,
        manifest.model.embed_dim,
        manifest.text.context_length if manifest.text else 0,
        manifest.patch_tokens.width if manifest.patch_tokens else 0,
    )
    for precision, roles in manifest.graphs.items():
        wanted = graph_signatures(shape, precision)
        if set(roles) != set(wanted):
            raise ConfigError(f"graphs.{printable(precision)} has {printable(', '.join(roles))}, but it must have {printable(', '.join(wanted))}")
        for role, graph in roles.items():
            for kind, found, due in (("inputs", graph.inputs, wanted[role].inputs), ("outputs", graph.outputs, wanted[role].outputs)):
                if found != due:
                    held, fitting = ("; ".join(map(str, specs)) for specs in (found, due))
                    raise ConfigError(
                        f"graphs.{printable(precision)}.{role}.{kind} = {printable(held, 200)}, but it must be {printable(fitting, 200)}"
                    )
            if not graph.file.endswith(".onnx"):
                raise ConfigError(f"graphs.{printable(precision)}.{role}.file = {printable(repr(graph.file))}, but it must end in .onnx")


def _token_width(manifest: Manifest) -> int:
    """D, the last axis of POST's input."""
    post = manifest.graphs["fp32"].get("post")
    width = post.inputs[0].shape[-1] if post and post.inputs and post.inputs[0].shape else None
    if not isinstance(width, int):
        raise ConfigError("graphs.fp32.post has no input of a known width")
    check_value("the width of a token", width, minimum=1, maximum=MAX_WIDTH)
    return width
