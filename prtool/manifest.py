"""The manifest of a bundle: what its files are, as typed values that read from and write to JSON."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

from prtool.errors import BundleError, ConfigError, KeepError
from prtool.spec import Cost, Keep, Preprocess, PruneSpec

SCHEMA = 3
ROLES = ("full", "pre", "post", "fused", "text")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One graph input or output: name, numpy dtype name, and axes (a size, or the name of a dynamic axis)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file of the bundle and its signature."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The encoder that was exported.

    Attributes:
        name, pretrained: as open_clip takes them.
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
    """The text side: `context_length` token ids a prompt; `tokenizer` is a file, or "" when none could be written."""

    context_length: int
    tokenizer: str


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """Class names in label order, the prompt templates, and the file that holds the class embeddings."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    file: str


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader needs to run the bundle; docs/bundle-format.md is normative.

    Attributes:
        default_keep: patches kept when a call names none.
        keep_range: least and most patches a call may keep.
        graphs: precision -> role -> graph; roles are `ROLES` and "mid_1", "mid_2", ... with several locations.
        parity: the worst figures of the comparison with PyTorch at export; parity.json has them all.
        versions: libraries that made the bundle.
        files: every other file of the bundle.
    """

    schema: int
    model: ModelInfo
    prune: PruneSpec
    cost: Cost
    preprocess: Preprocess
    default_keep: int
    keep_range: tuple[int, int]
    graphs: dict[str, dict[str, GraphSpec]]
    parity: dict[str, float]
    versions: dict[str, str]
    text: TextInfo | None = None
    classes: ClassInfo | None = None
    files: dict[str, FileDigest] = field(default_factory=dict)

    def resolve(self, keep: Keep | None) -> int:
        """The number of patches k for one call; None means the default.

        Raises:
            KeepError: k is outside `keep_range`.
        """
        if keep is None:
            return self.default_keep
        k = keep.resolve(self.prune.patches)
        low, high = self.keep_range
        if not low <= k <= high:
            raise KeepError(f"k = {k} patches (keep {keep}), but this bundle allows {low} to {high}; export it again for other counts")
        return k

    def counts(self, keep: Keep | Sequence[int] | None) -> tuple[int, ...]:
        """Patches kept at each location for one call.

        Args:
            keep: patches left behind the last location; a count for each location; or None for the default.

        Raises:
            KeepError: k is outside `keep_range`, or the counts are too many or too few, rise or are no whole numbers.
        """
        if keep is None or isinstance(keep, Keep):
            return self.prune.counts(Keep.count(self.resolve(keep)))
        counts, places = tuple(keep), self.prune.locations
        whole = all(isinstance(k, int) and not isinstance(k, bool) for k in counts)
        if (
            len(counts) != len(places)
            or not whole
            or any(after > before for before, after in zip((self.prune.patches, *counts), counts, strict=False))
        ):
            raise KeepError(
                f"keep counts {list(counts)}, but the locations {', '.join(map(str, places))} take {len(places)} whole numbers that do not rise, "
                f"from at most {self.prune.patches} patches on, such as {list(self.prune.counts(Keep.count(self.default_keep)))}"
            )
        self.resolve(Keep.count(counts[-1]))
        return counts

    def bound(self, k: int) -> float:
        """Upper bound of the speed-up with k patches kept, from MACs."""
        return self.cost.bound(self.prune, Keep.count(k))

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "Manifest":
        """Reads and checks plain JSON values.

        Raises:
            BundleError: unknown schema, or a field missing, unknown or of the wrong kind.
        """
        if not isinstance(value, Mapping):
            raise BundleError("the manifest is not a JSON object; export the bundle again")
        if value.get("schema") != SCHEMA:
            raise BundleError(
                f"the bundle has schema {value.get('schema')!r}, but this prtool reads schema {SCHEMA}; make a new one with 'prtool export'"
            )
        try:
            manifest: Manifest = _read(cls, value, "manifest")
        except ConfigError as cause:
            raise BundleError(f"the manifest holds values that do not fit together: {cause}") from cause
        return manifest


def _read(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - the type is the argument
    """Builds a value of the annotated type `kind` from JSON, strictly."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return _read_union(arguments, value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, Mapping), where, "an object", value)
        return {str(key): _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)
        return float(value)
    _expect(type(value) is kind, where, kind.__name__, value)
    return value


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    _expect(isinstance(value, Mapping), where, "an object", value)
    hints = get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    _expect(not unknown, where, f"no field named {', '.join(unknown)}", unknown)
    required = {item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING}
    missing = sorted(required - set(value))
    _expect(not missing, where, f"the field {', '.join(missing)}", None)
    return kind(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _read_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    if value is None and type(None) in arguments:
        return None
    plain = [kind for kind in arguments if kind is not type(None)]
    exact = [kind for kind in plain if type(value) is kind]
    return _read(exact[0] if exact else plain[0], value, where)


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    _expect(isinstance(value, (list, tuple)), where, "a list", value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(arguments), where, f"{len(arguments)} items", value)
    return tuple(_read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True)))


def _expect(holds: bool, where: str, what: str, value: object) -> None:
    if not holds:
        raise BundleError(f"{where} should be {what}, but it is {value!r}; the manifest is damaged or was edited, export the bundle again")
