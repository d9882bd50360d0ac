"""The golden ranking: patches ordered by what happens to the image's embedding when they are left out."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, DataError, ModelError, ShapeError
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.tower import VisionTower, resolve_precision
from prtool.trainer.settings import GoldenConfig

Score = Callable[[Tensor, Tensor], Tensor]
# A CPU is fastest with batches of this size: with ViT-S/14 and ViT-B/16 at 193 tokens, 16 sequences run 15-20 %
# faster a sequence than 32 and 60 % faster than 64, where the activations of a block have left the caches.
_CPU_BATCH_TOKENS = 3200
_HEAD_WIDTH = 64


class Tail:
    """A frozen tower from the 1-based block `location` to its embedding, on any number of tokens; `precision` is the one that runs.

    In "bf16" the attention and MLP of each block run as a bfloat16 copy, made once; norms, the residual stream and
    the head stay in float32. That is the arithmetic of autocast (equal in every bit with ViT-S/14 on a CPU) without
    converting every frozen weight again in each forward. A block that is bfloat16 throughout is a tenth faster, but it
    rounds the residual stream, and its ranking agreed less with float32 on five of six photographs.

    Raises:
        ConfigError: the tower has no such block.
    """

    def __init__(self, tower: VisionTower, location: int, precision: str = "auto") -> None:
        tower.check_location(location)
        self.tower = tower
        self.device = tower.device
        self.precision = resolve_precision(precision, self.device)
        blocks = list(tower.blocks)[location - 1 :]
        self.blocks = [_half(block) for block in blocks] if self.precision == "bf16" else blocks

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, D) float32 that enter the location -> embedding (batch, E) float32, L2-normalised."""
        return functional.normalize(self.tower.head(self.tower.through(self.blocks, tokens)).float(), dim=-1)

    def sequence_bytes(self, tokens: int) -> int:
        """Memory of one sequence of `tokens` inside a block, in bytes: an estimate, for budgets."""
        item = 2 if self.precision == "bf16" else 4
        # Three float32 copies of the stream (before, norm, after), eight of its width inside (query, key, value; MLP
        # before and after its activation), and two attention maps for each head.
        stream = tokens * self.tower.width * (3 * 4 + 8 * item)
        return stream + 2 * item * tokens * tokens * max(1, self.tower.width // _HEAD_WIDTH)


def _half(block: nn.Module) -> nn.Module:
    """A copy of a block whose parts with matrices compute in bfloat16."""
    twin = copy.deepcopy(block)
    for part in twin.children():
        if any(parameter.dim() >= 2 for parameter in part.parameters()):
            part.to(torch.bfloat16)
            part.register_forward_pre_hook(_enter_half)
    return twin


def _enter_half(_part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Query, key and value are one tensor and must stay one: only then PyTorch takes its fused attention, ten times
    # as fast in bfloat16 on a CPU as the way it takes for three tensors.
    converted = {id(tensor): tensor.to(torch.bfloat16) for tensor in inputs}
    return tuple(converted[id(tensor)] for tensor in inputs)


class GoldenSearch:
    """The greedy search for one model and configuration, made once and used for any number of images.

    Args:
        location: 1-based block on entry to which candidates are left out.
        classes: (classes, E) float32, L2-normalised; needed by the scores "label" and "confidence".

    Attributes:
        tail: what every candidate runs through; it knows the precision that "auto" became.

    Raises:
        ConfigError: the location, group or floor does not fit the encoder, or classes are missing.
    """

    def __init__(self, model: DualEncoder, location: int, config: GoldenConfig, classes: Tensor | None = None) -> None:
        tower = model.tower
        if config.score != "feature" and classes is None:
            raise ConfigError(f"golden score {config.score!r} needs class embeddings; give classes, or choose the score 'feature'")
        if config.group >= max(tower.grid):
            raise ConfigError(f"golden group = {config.group}, but one group would cover the {tower.grid} grid; give 1 to {max(tower.grid) - 1}")
        if config.floor >= tower.patches:
            raise ConfigError(f"golden floor = {config.floor}, but the encoder has {tower.patches} patches; give fewer")
        self.model = model
        self.location = location
        self.config = config
        self.tail = Tail(tower, location, config.precision)
        self.classes = None if classes is None or config.score == "feature" else classes.to(self.tail.device, torch.float32)
        self.members = _members(tower.grid, config.group).to(self.tail.device)

    @torch.no_grad()
    def rank(self, tokens: Tensor, labels: Tensor | None = None, whole: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ranks the patches of a batch of images.

        Args:
            tokens: (batch, prefix + N, D) float32 that enter the location; tokens behind the patches are always kept.
            labels: (batch,) int64, the true classes; needed by the score "label".
            whole: (batch, E) float32, L2-normalised embeddings of the unpruned encoder; needed by the score "feature" where the encoder
                reads smaller images than its native ones.

        Returns:
            The ranking (batch, N) int64, most to least important: patches that were never dropped, then those dropped in later steps
            before those dropped earlier, each part by rising last score, ties by index. And the last score of each patch (batch, N)
            float32; high = prune first.

        Raises:
            ConfigError: the score needs labels or embeddings that are missing, or the memory is too small for one sequence.
            DataError: a label has no class.
            ModelError: a score is not finite.
            ShapeError: the tokens are not those of this encoder.
        """
        tower = self.model.tower
        least = tower.prefix_tokens + tower.patches
        if tokens.dim() != 3 or tokens.shape[1] < least or tokens.shape[2] != tower.token_width:
            shape = f"(batch, {least}, {tower.token_width})"
            raise ShapeError(f"tokens have the shape {tuple(tokens.shape)}, but this encoder's are {shape}; use run_pre")
        state = _State(len(tokens), self.members)
        score = self._feature(tokens, whole) if self.classes is None else self._by_class(self.classes, tokens, labels)
        # A last group alone is not scored again: there is nothing to compare it with, and no patch would be left.
        while bool((searched := state.searched(self.config.floor)).any()):
            images, groups = searched.nonzero(as_tuple=True)
            state.scores[images, groups] = self._scores_without(tokens, state.present, images, groups, score)
            if self.config.step == 0:
                break
            state.drop(_highest(state.scores, searched, self.config.step))
        return state.ranking()

    def _scores_without(self, tokens: Tensor, present: Tensor, images: Tensor, groups: Tensor, score: Score) -> Tensor:
        """The score of each candidate: `images` and `groups` (candidates,) are the image and the group that it leaves out."""
        length = tokens.shape[1]
        before = self.model.tower.prefix_tokens
        kept = ((present.float() @ self.members.float()) > 0)[images] & ~self.members[groups]
        kept = functional.pad(kept, (before, length - before - kept.shape[1]), value=True)
        rows = tokens.flatten(0, 1)
        found = torch.empty(len(images), device=tokens.device)
        lengths = kept.sum(1)
        # Groups at the edge of the grid may be smaller, so candidates of one step may differ in length.
        for left in sorted(set(lengths.tolist())):
            for part in _parts((lengths == left).nonzero().squeeze(1), self._batch(left)):
                places = kept[part].nonzero()[:, 1].view(len(part), left) + images[part, None] * length
                shorter = rows.index_select(0, places.flatten()).view(len(part), left, -1)
                found[part] = score(self.tail.embed(shorter), images[part])
        if not bool(found.isfinite().all()):
            raise ModelError(f"the {self.config.score} score of a patch is not a finite number; choose the precision fp32, or check the weights")
        return found

    def _feature(self, tokens: Tensor, whole: Tensor | None) -> Score:
        """The cosine of embeddings (candidates, E) to the unpruned ones of the images that each belongs to."""
        if whole is None:
            if self.model.native is not self.model.tower:
                raise ConfigError("golden score 'feature' at a smaller image size needs the embeddings of the native encoder; give whole")
            whole = torch.cat([self.tail.embed(part) for part in _parts(tokens, self._batch(tokens.shape[1]))])
        wanted = whole.to(tokens.device)
        return lambda embeddings, images: (embeddings * wanted[images]).sum(-1)

    def _by_class(self, classes: Tensor, tokens: Tensor, labels: Tensor | None) -> Score:
        """The score "label" or "confidence": of embeddings (candidates, E), and the image that each belongs to."""
        if self.config.score == "confidence":
            return lambda embeddings, _: self.model.logits(embeddings, classes).softmax(-1).amax(-1)
        if labels is None:
            raise ConfigError("golden score 'label' needs the true labels; give labels, or choose 'feature' or 'confidence'")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            found, known = f"{int(labels.min())} to {int(labels.max())}", len(classes)
            raise DataError(f"labels {found}, but there are {known} class embeddings; give one for each class")
        truth = labels.to(tokens.device)
        return lambda embeddings, images: self.model.logits(embeddings, classes).softmax(-1).gather(1, truth[images, None]).squeeze(1)

    def _batch(self, tokens: int) -> int:
        """Sequences of this length that run at once."""
        needed = self.tail.sequence_bytes(tokens)
        affordable = (self.config.memory_mb << 20) // needed
        if affordable < 1:
            mebibytes = math.ceil(needed / (1 << 20))
            raise ConfigError(f"golden memory_mb = {self.config.memory_mb}, but a sequence of {tokens} tokens needs about {mebibytes} MiB; give more")
        return max(1, min(affordable, _CPU_BATCH_TOKENS // tokens)) if self.tail.device.type == "cpu" else affordable


class _State:
    """One batch in the search: (batch, groups) tensors, and which patches a group has (groups, N)."""

    def __init__(self, batch: int, members: Tensor) -> None:
        shape, device = (batch, len(members)), members.device
        self.members, self.step = members, 0
        self.scores = torch.zeros(shape, device=device)
        self.present = torch.ones(shape, dtype=torch.bool, device=device)
        self.dropped_in = torch.full(shape, torch.iinfo(torch.int64).max, device=device)

    def searched(self, floor: int) -> Tensor:
        """Groups to score: those present in images that are above the floor and have two groups at least."""
        patches = self.present.float() @ self.members.sum(1).float()
        return self.present & ((patches > floor) & (self.present.sum(1) > 1))[:, None]

    def drop(self, chosen: Tensor) -> None:
        self.present = self.present & ~chosen
        self.dropped_in[chosen] = self.step
        self.step += 1

    def ranking(self) -> tuple[Tensor, Tensor]:
        group_of = self.members.int().argmax(0)
        scores, dropped_in = self.scores[:, group_of], self.dropped_in[:, group_of]
        by_score = scores.argsort(dim=1, stable=True)
        latest_first = dropped_in.gather(1, by_score).argsort(dim=1, descending=True, stable=True)
        return by_score.gather(1, latest_first), scores


def _highest(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """A mask of the `count` highest allowed scores in each row; of equal ones the higher index goes first."""
    last = scores.masked_fill(~allowed, -math.inf).argsort(dim=1, stable=True)[:, -count:]
    return torch.zeros_like(allowed).scatter_(1, last, value=True) & allowed


def _members(grid: tuple[int, int], side: int) -> Tensor:
    """Which patches each group has: (groups, N) bool, groups and patches row by row."""
    rows, columns = torch.arange(grid[0]) // side, torch.arange(grid[1]) // side
    group_of = (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()
    return group_of == torch.arange(int(group_of[-1]) + 1)[:, None]


def _parts(items: Tensor, most: int) -> Sequence[Tensor]:
    """Splits along the first axis into parts of nearly equal size, `most` at most: no small batch is left at the end."""
    return items.tensor_split(max(1, math.ceil(len(items) / most)))
