"""Checkpoint: what a training run leaves behind, a directory of checkpoint.json and the safetensors files that it names, never pickle."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from prtool.errors import CheckpointError
from prtool.exchange import alone
from prtool.files import FileDigest, storage_errors, write_bytes
from prtool.records import to_plain
from prtool.spec import MERGE, RANK, PruneSpec
from prtool.store import write_sealed
from prtool.trainer.models.dual_encoder import DualEncoder, load_model
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.predictor import CheckerboardScorer, PatchScorer, later_config, make_scorer
from prtool.trainer.models.prompts import TextContext, VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PlainEncoder, PrunedEncoder
from prtool.trainer.models.recovery import Recovery
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.runs.record import RECORD_NAME, SEEN, TENSORS, Record, read_file, read_record, remove_others

_VISUAL, _CONTEXT, _RECOVERY = "visual.values", "context.values", "recovery."


@dataclass(frozen=True, slots=True)
class Checkpoint(Record):
    """A run's outcome.

    Attributes:
        tensors: the scorers' (names begin with the number of the location, from 0), the corrections, and the learnable tokens.
        seen: which images it has seen, as `Seen.to_bytes` gives it; empty where it was not trained.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    seen: bytes = field(default=b"", repr=False, compare=False)

    def save(self, folder: str | Path) -> "Checkpoint":
        """Writes the checkpoint and returns it with its files' digests. Stopped at any moment, an earlier one stands whole: its files go last.

        Raises:
            StorageError: it cannot be written; an earlier checkpoint stands.
        """
        home = Path(folder)
        tensors = save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.tensors.items())})
        kinds = {TENSORS: tensors, SEEN: self.seen} if self.seen else {TENSORS: tensors}
        contents = {f"{kind}-{FileDigest.of(content).sha256[:16]}.safetensors": content for kind, content in kinds.items()}
        written = dataclasses.replace(self, files={name: FileDigest.of(content) for name, content in contents.items()})
        with storage_errors(home):
            home.mkdir(parents=True, exist_ok=True)
        with alone(home):
            for name, content in contents.items():
                write_bytes(home / name, content)
            write_sealed(home / RECORD_NAME, {item.name: to_plain(getattr(written, item.name)) for item in dataclasses.fields(Record)})
            remove_others(home, written.files)
        return written

    @classmethod
    def load(cls, folder: str | Path) -> "Checkpoint":
        """Reads and checks a checkpoint; nothing in it is run.

        Raises:
            CheckpointError: there is none, its schema is unknown, or a file is missing, damaged or changed.
        """
        home = Path(folder)
        # Another process may save between the two readings, and then removes the tensors of the record that was read.
        with alone(home):
            record = read_record(home)
            content, seen = read_file(home, record.files, TENSORS), read_file(home, record.files, SEEN)
        try:
            tensors = load(content)
        except SafetensorError as cause:
            raise CheckpointError(f"the tensors of {home} cannot be read ({cause}); run 'prtool train' again") from cause
        checkpoint = cls(**{item.name: getattr(record, item.name) for item in dataclasses.fields(Record)}, tensors=tensors, seen=seen)
        checkpoint.scorers()
        checkpoint.visual()
        checkpoint.context()
        return checkpoint

    @staticmethod
    def tidy(folder: str | Path) -> None:
        """Removes files of earlier checkpoints from a finished run: a process that was killed while it saved leaves them.

        Raises:
            CheckpointError: there is no finished run.
            StorageError: a file cannot be removed.
        """
        home = Path(folder)
        with alone(home):
            remove_others(home, read_record(home).files)

    def scorer(self, index: int = 0) -> PatchScorer:
        """The scorer of one location, in evaluation mode; numbers above 0 only where the run is `rescored`.

        Raises:
            CheckpointError: the tensors are not those of the record's scorer.
        """
        config = self.scorer_config if index == 0 else later_config(self.scorer_config)
        scorer = make_scorer(config, self.width, self.prune.patches, self.prune.prefix_tokens)
        prefix = f"{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        try:
            scorer.load_state_dict(own)
        except RuntimeError as cause:
            raise CheckpointError(f"the predictor's tensors are not those of a {config.arch} scorer ({cause}); run 'prtool train' again") from cause
        return scorer.eval()

    def scorers(self) -> list[nn.Module]:
        """What selects patches at each location: the first scorer with its checkerboard bonus, then scorers of their own or the first's order.

        [] where no patches are ranked.

        Raises:
            CheckpointError: the tensors are not those of the record's scorers.
        """
        if self.prune.method != RANK:
            return []
        later = range(1, len(self.prune.locations))
        own: list[nn.Module] = [self.scorer(index) if self.rescored else FirstOrder(self.prune.prefix_tokens) for index in later]
        return [CheckerboardScorer(self.scorer(), self.prune.grid, self.scorer_config.checkerboard).eval(), *own]

    def visual(self) -> VisualTokens | None:
        """The learnable visual tokens; None where the run has none.

        Raises:
            CheckpointError: the tensors are not those of the record.
        """
        if not self.tokens.visual:
            return None
        values = self._tensor(_VISUAL, (self.tokens.layers, self.tokens.visual, self.width))
        return VisualTokens(values, self.tokens.first).requires_grad_(False)

    def context(self) -> TextContext | None:
        """The learned context of the prompts; None where the run has none.

        Raises:
            CheckpointError: the tensors are not those of the record.
        """
        if not self.tokens.text:
            return None
        values = self._tensor(_CONTEXT, (self.tokens.text, -1))
        return TextContext(values, self.tokens.words).requires_grad_(False)

    def recovered(self, tower: VisionTower) -> VisionTower:
        """A tower of `load_model` with the run's corrections in its weights; itself where the run has none.

        Raises:
            CheckpointError: the tensors are not those of the record.
        """
        kept = self.recovery.kept
        if kept is None:
            return tower
        recovery = Recovery(tower, kept.first, kept.rank)
        recovery.load({name.removeprefix(_RECOVERY): tensor for name, tensor in self.tensors.items() if name.startswith(_RECOVERY)})
        recovery.scale = kept.scale
        return recovery.folded(tower)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape, -1 for any size."""
        found = self.tensors.get(name)
        if found is None or found.dim() != len(shape) or any(want not in (-1, size) for want, size in zip(shape, found.shape, strict=True)):
            seen = "none" if found is None else str(tuple(found.shape))
            raise CheckpointError(f"the tensor {name} should have shape {shape}, but the run has {seen}; run 'prtool train' again")
        return found.clone()

    def load_model(self, device: str = "cpu") -> DualEncoder:
        """Loads the model that the run was made with, at its image size, and checks that its weights are the same.

        Raises:
            ModelError: it cannot be loaded.
            CheckpointError: its weights have changed.
        """
        model = load_seeded(self.model, self.pretrained, self.model_seed, device, self.image_size)
        if model.weights_sha256 != self.weights_sha256:
            raise CheckpointError(
                f"the weights of {self.model} {self.pretrained} have SHA-256 {model.weights_sha256[:12]}, but the run was made with "
                f"{self.weights_sha256[:12]}; bring back the old weights, or run 'prtool train' again"
            )
        return model

    def pruned_encoder(self, tower: VisionTower, *, with_tokens: bool = True) -> ReducedEncoder:
        """The encoder of this checkpoint around the image tower of `load_model`'s model, on its device and in evaluation mode, with the
        run's corrections and, where `with_tokens` says so, its learnable tokens.

        Raises:
            ModelError: the tower cannot merge.
        """
        if self.prune.method == RANK:
            return self.ranking_encoder(tower, with_tokens=with_tokens)
        return (MergedEncoder if self.prune.method == MERGE else PlainEncoder)(self.recovered(tower), self.prune).eval()

    def ranking_encoder(self, tower: VisionTower, *, with_tokens: bool = True) -> PrunedEncoder:
        """`pruned_encoder` of a checkpoint whose method ranks."""
        visual = self.visual() if with_tokens else None
        spec = self.prune if with_tokens else without_tokens(self.prune)
        return PrunedEncoder(self.recovered(tower), self.scorers(), spec, visual).to(tower.device).eval()

    def class_embeddings(self, model: DualEncoder, classnames: Sequence[str] = (), *, with_tokens: bool = True) -> Tensor:
        """Class embeddings (classes, E) float32, L2-normalised, in label order; those of the run's classes where no names are given.

        The learned context takes part where the run has one and `with_tokens` says so.
        """
        names, context = tuple(classnames) or self.classnames, self.context() if with_tokens else None
        if context is None:
            return model.class_embeddings(names, self.templates)
        with torch.no_grad():
            return context.to(model.tower.device).class_embeddings(model, names, self.templates[0])


def scorer_tensors(scorers: Sequence[PatchScorer]) -> dict[str, Tensor]:
    """The tensors of one scorer a location, as a Checkpoint names them."""
    return {f"{index}.{name}": tensor for index, scorer in enumerate(scorers) for name, tensor in scorer.state_dict().items()}


def recovery_tensors(recovery: Recovery | None) -> dict[str, Tensor]:
    """The corrections, as a Checkpoint names them."""
    return {} if recovery is None else {_RECOVERY + name: tensor for name, tensor in recovery.tensors().items()}


def token_tensors(visual: VisualTokens | None, context: TextContext | None) -> dict[str, Tensor]:
    """The learnable tokens, as a Checkpoint names them."""
    found = {_VISUAL: visual, _CONTEXT: context}
    return {name: part.values.detach() for name, part in found.items() if part is not None}


def without_tokens(prune: PruneSpec) -> PruneSpec:
    """The same pruning without learnable tokens."""
    return dataclasses.replace(prune, learnable_tokens=0, learnable_from_block=1)


def load_seeded(name: str, pretrained: str, seed: int, device: str = "cpu", image_size: int = 0) -> DualEncoder:
    """`load_model` under a seed that decides random weights; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(name, pretrained, device, image_size)
