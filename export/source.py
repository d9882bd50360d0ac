"""What an export starts from: a model, its pruned encoder, and the classes to carry along."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prtool.errors import ConfigError, ShapeError
from prtool.export.graphs.last_block import kv_token_macs, num_query_tokens
from prtool.graphs.signature import EncoderShape, GraphSpec, graph_signatures
from prtool.manifest import PatchTokensInfo, RecoveryInfo, allowed_keeps, check_keep
from prtool.spec import Cost, Keep, PruneSpec
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.reduced import ReducedEncoder


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The same images, prepared for the reduced encoder and for the unpruned one.

    Attributes:
        own: (images, 3, height, width) float32, of the size that the reduced encoder reads.
        native: (images, 3, height, width) float32, of the native size; None where the sizes are the same.
    """

    own: Tensor
    native: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.own) != len(self.full):
            raise ShapeError(f"{len(self.own)} images for the reduced encoder and {len(self.full)} for the unpruned one; give the same ones")

    @property
    def full(self) -> Tensor:
        """What the unpruned encoder reads."""
        return self.own if self.native is None else self.native

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, images: slice | Tensor) -> "Pixels":
        return Pixels(self.own[images], None if self.native is None else self.native[images])

    def split(self, batch: int) -> Iterator["Pixels"]:
        """The images in batches."""
        return (self[start : start + batch] for start in range(0, len(self), batch))


@dataclass(frozen=True, slots=True, eq=False)
class ExportSource:
    """A reduced encoder in memory, on the CPU in float32 and evaluation mode.

    Attributes:
        model: the dual encoder; its text encoder goes into the bundle too.
        pruned: its image tower with its reducer; the reference of every comparison.
        scorer_name: architecture of the patch scorer, for the manifest; "" where no patches are ranked.
        scorer_trained: False for a freshly initialised scorer.
        scorer_macs: multiply-accumulates of the scorers of all locations on one image.
        classnames: in label order; empty for a bundle without classes.
        templates: prompt templates with one `{}` each.
        class_embeddings: (classes, E) float32, L2-normalised, of a tuned context; None takes the model's of the templates.
        recovery: of the corrections in the weights of `pruned`; None where it has none.
        tokens_block: the 1-based block whose patch tokens are given out as well; 0 for none.
    """

    model: DualEncoder
    pruned: ReducedEncoder
    scorer_name: str
    scorer_trained: bool
    scorer_macs: int
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    class_embeddings: Tensor | None = None
    recovery: RecoveryInfo | None = None
    tokens_block: int = 0

    @property
    def keep_range(self) -> tuple[int, int]:
        """Least and most patches that a call may keep."""
        return allowed_keeps(self.spec, self.recovery)

    def check_keep(self, keep: Keep) -> int:
        """As the function of that name."""
        return check_keep(keep, self.spec, self.recovery)

    def __post_init__(self) -> None:
        if bool(self.classnames) != bool(self.templates):
            raise ConfigError(f"{len(self.classnames)} class names with {len(self.templates)} prompt templates; give both or neither")
        tuned, wanted = self.class_embeddings, (len(self.classnames), self.model.tower.embed_dim)
        if tuned is not None and (tuple(tuned.shape) != wanted or tuned.dtype != torch.float32):
            raise ConfigError(f"class embeddings have shape {tuple(tuned.shape)} and dtype {tuned.dtype}, but they must be {wanted} of float32")
        other = {f"{p.dtype} on {p.device}" for p in self.pruned.parameters() if p.dtype != torch.float32 or p.device.type != "cpu"}
        if other:
            found = ", ".join(sorted(other))
            raise ConfigError(f"the encoder has tensors in {found}, but an export takes float32 on the CPU; load it with device='cpu'")

    @property
    def spec(self) -> PruneSpec:
        """Where tokens drop."""
        return self.pruned.spec

    def signatures(self, precision: str = "fp32") -> dict[str, GraphSpec]:
        """Role -> file, inputs and outputs of the graphs at one precision; see `graph_signatures`."""
        tower = self.pruned.tower
        sizes = tower.image_size, self.model.native.image_size
        width = self.patch_tokens.width if self.patch_tokens else 0
        shape = EncoderShape(*sizes, self.spec, tower.token_width, tower.embed_dim, self.model.context_length, width)
        return graph_signatures(shape, precision)

    @property
    def patch_tokens(self) -> PatchTokensInfo | None:
        """What TOKENS gives; None where there is none."""
        return PatchTokensInfo(self.tokens_block, self.pruned.tower.width) if self.tokens_block else None

    def classes(self) -> Tensor | None:
        """Class embeddings (classes, E) float32, L2-normalised; None without classes."""
        if not self.classnames:
            return None
        if self.class_embeddings is not None:
            return self.class_embeddings.detach()
        return self.model.class_embeddings(self.classnames, self.templates)

    def cost(self) -> Cost:
        """MACs of the exported tower and its scorers."""
        tower, queries = self.pruned.tower, num_query_tokens(self.pruned.tower)
        kv_macs = kv_token_macs(tower) if queries else 0
        return replace(tower.cost(), scorer_macs=self.scorer_macs, last_block_queries=queries, kv_token_macs=kv_macs)
