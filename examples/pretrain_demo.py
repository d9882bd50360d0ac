"""Trains the demonstration's tiny CLIP from nothing: `python examples/pretrain_demo.py --out weights.safetensors`.

A vision transformer that starts from nothing learns the colours of the scenes in seconds and then, told only the class, nothing
about shape for a long time. Four things end that after about a hundred steps: the patch embedding starts as a cosine transform
and the positions as sines; two helper heads, dropped afterwards, have early tokens predict the object's outline inside their
patch and late ones the shape they lie on; the matrices of the blocks are stepped by Muon; and only some patches enter a step,
which is faster (Li et al., "Scaling Language-Image Pre-training via Masking", CVPR 2023) and keeps the model at home with pruned sequences.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prtool.cli.console import BarProgress
from prtool.errors import ConfigError
from prtool.files import check_output
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.images.preprocess import prepare_batch
from prtool.studies.demo.model import COMPACT_WEIGHTS, MODEL_CONFIG, TEMPLATE, save_weights, write_model
from prtool.studies.demo.scenes import CLASS_NAMES, IMAGE_SIZE, SHAPES, Scene, draw_scene
from prtool.trainer.models.dual_encoder import DualEncoder, load_model
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.pruned import gather, select

TEMPLATES = (TEMPLATE, "a picture of a {}.", "a drawing of a {}.", "an image of one {}.", "a {} on clutter.", "a {}.", "{}")
_CELL_PIXELS = 4
_CELLS_A_SIDE = 2  # 4-pixel cells along an 8-pixel patch
_OUTLINE_BLOCK, _SHAPE_BLOCK = 2, 7  # after which tokens predict the outline and the shape
_WARMUP_STEPS = 40
_ADAMW_RATE, _MUON_RATE, _WEIGHT_DECAY = 1e-3, 3e-3, 0.05
_SEEDS_A_POOL = 1 << 20
_FRESH_SEED = 1 << 40  # above the seeds of every pool


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        steps: optimiser steps.
        batch: images of a step.
        rounds: scenes of each class that are drawn once and trained on again and again.
    """

    seed: int = 0
    steps: int = 1200
    batch: int = 96
    rounds: int = 300

    def __post_init__(self) -> None:
        if not (0 <= self.seed < _SEEDS_A_POOL and 1 <= self.rounds <= _SEEDS_A_POOL and self.steps >= 1 and self.batch >= 1):
            raise ConfigError(f"{self}: seed goes from 0, rounds from 1 to {_SEEDS_A_POOL}; steps and batch start at 1")


@dataclass(frozen=True, slots=True)
class ScenePool:
    """Drawn scenes as tensors.

    Attributes:
        pixels: (n, 3, height, width) uint8, RGB.
        cells: (n, height / 4, width / 4) float32, the share of each cell that the object covers.
        labels: (n,) int64.
    """

    pixels: Tensor
    cells: Tensor
    labels: Tensor

    def batch(self, chosen: Tensor, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels in [-1, 1], cells by patch (batch, N, 4) and labels of some scenes, all of them mirrored or none."""
        pixels, cells = self.pixels[chosen], self.cells[chosen]
        if mirrored:
            pixels, cells = pixels.flip(3), cells.flip(2)
        inside = (_CELLS_A_SIDE, _CELLS_A_SIDE)
        patches = functional.unfold(cells[:, None], inside, stride=inside).transpose(1, 2)
        return pixels.float().div(127.5).sub(1.0), patches, self.labels[chosen]


class Pupil(nn.Module):
    """The CLIP in training, with the two helper heads that are dropped afterwards."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = cast(Any, clip)
        self.tower = tower_of(self.clip.visual)
        self.outline = nn.Linear(self.tower.width, _CELLS_A_SIDE**2)
        self.shape = nn.Linear(self.tower.width, len(SHAPES) + 1)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor], kept: Tensor, captions: Tensor) -> Tensor:
        """Cross-entropy over all captions plus the two helper losses.

        Args:
            batch: as ScenePool.batch gives it.
            kept: (batch, k) int64, the patches that enter the tower.
            captions: (classes, context) token ids, one caption of each class.
        """
        pixels, cells, labels = batch
        cells = torch.gather(cells, 1, kept[..., None].expand(-1, -1, cells.shape[2]))
        with torch.autocast("cpu", torch.bfloat16):
            early = self.tower.run_blocks(gather(self.tower.embed(pixels), kept, 1), 1, _OUTLINE_BLOCK)
            late = self.tower.run_blocks(early, _OUTLINE_BLOCK + 1, _SHAPE_BLOCK)
            images = self.tower.run_post(late, _SHAPE_BLOCK + 1)
            texts = self.clip.encode_text(captions, normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=100.0)
        logits = scale * functional.normalize(images.float(), dim=-1) @ texts.float().T
        outline = functional.binary_cross_entropy_with_logits(self.outline(early[:, 1:].float()), cells)
        shape = functional.cross_entropy(self.shape(late[:, 1:].float()).flatten(0, 1), _shape_targets(cells, labels).flatten(), ignore_index=-1)
        return functional.cross_entropy(logits, labels) + 3.0 * outline + shape


def draw_pool(rounds: int, seed: int, progress: Progress | None = None) -> ScenePool:
    """Draws `rounds` scenes of each class."""
    watch = progress or SilentProgress()
    total = rounds * len(CLASS_NAMES)
    pixels = np.empty((total, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    cells = np.empty((total, IMAGE_SIZE // _CELL_PIXELS, IMAGE_SIZE // _CELL_PIXELS), dtype=np.float32)
    with stage(watch, "drawing scenes", total):
        for i in range(total):
            scene = draw_scene(seed * _SEEDS_A_POOL + i // len(CLASS_NAMES), i % len(CLASS_NAMES))
            pixels[i] = np.asarray(scene.image)
            side = cells.shape[1]
            cells[i] = scene.mask.reshape(side, _CELL_PIXELS, side, _CELL_PIXELS).mean(axis=(1, 3))
            watch.advance()
    labels = torch.arange(total) % len(CLASS_NAMES)
    return ScenePool(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(cells), labels)


def new_clip(seed: int) -> nn.Module:
    """An untrained open_clip model of the demo's geometry, started in a way that makes training short."""
    from open_clip.model import CLIP
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = cast(Any, CLIP(**cast(Any, MODEL_CONFIG)["model_cfg"]))
    visual = clip.visual
    with torch.no_grad():
        visual.positional_embedding.copy_(0.3 * torch.from_numpy(get_2d_sincos_pos_embed(96, visual.grid_size[0], cls_token=True)))
        visual.conv1.weight.copy_(0.5 * cosine_filters(visual.conv1.kernel_size[0], visual.conv1.out_channels))
    return cast(nn.Module, clip)


def cosine_filters(size: int, count: int) -> Tensor:
    """The `count` lowest orthonormal filters (count, 3, size, size) of a two-dimensional cosine transform, in three opponent colours."""
    order = torch.arange(float(size))
    waves = torch.cos(math.pi / size * (order[None, :] + 0.5) * order[:, None]) * math.sqrt(2.0 / size)
    waves[0] /= math.sqrt(2.0)
    lowest = sorted(((u, v) for u in range(size) for v in range(size)), key=lambda pair: (sum(pair), pair))
    colours = functional.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]), dim=1)
    planes = torch.stack([torch.outer(waves[u], waves[v]) for u, v in lowest[: count // 3]])
    return torch.einsum("ci,phw->cpihw", colours, planes).reshape(-1, 3, size, size)


def train_clip(recipe: Recipe, progress: Progress | None = None) -> nn.Module:
    """Trains a new model; the same recipe gives the same weights on the same machine with the same number of threads."""
    watch = progress or SilentProgress()
    pool = draw_pool(recipe.rounds, recipe.seed, watch)
    captions = _captions()
    random = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        pupil = Pupil(new_clip(recipe.seed)).train()
    optimizers = _optimizers(pupil)
    # PyTorch's fused attention takes three times as long as plain products in the backward pass on a CPU at this size.
    with stage(watch, "training, in steps", recipe.steps), sdpa_kernel(SDPBackend.MATH):
        for step in range(recipe.steps):
            chosen = torch.randint(len(pool.labels), (recipe.batch,), generator=random)
            batch = pool.batch(chosen, mirrored=bool(torch.rand((), generator=random) < 0.5))
            kept = _kept_patches(batch[1], step / recipe.steps, random)
            template = int(torch.randint(len(TEMPLATES), (), generator=random))
            _step(pupil, pupil.loss(batch, kept, captions[template]), optimizers, _rate(step, recipe.steps))
            watch.advance()
    return cast(nn.Module, pupil.clip.eval())


@torch.inference_mode()
def zero_shot_accuracy(model: DualEncoder, scenes: Sequence[Scene], batch: int = 128) -> float:
    """The share of scenes, 0 to 1, that the model names rightly when asked with TEMPLATE."""
    classes = model.class_embeddings(CLASS_NAMES, [TEMPLATE])
    right = 0
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        pixels = torch.from_numpy(prepare_batch([np.asarray(scene.image) for scene in part], model.preprocess))
        found = model.logits(functional.normalize(model.tower(pixels), dim=-1), classes).argmax(dim=1)
        right += int((found == torch.tensor([scene.label for scene in part])).sum())
    return right / len(scenes)


def fresh_scenes(rounds: int) -> list[Scene]:
    """`rounds` scenes of each class that no training pool holds."""
    return [draw_scene(_FRESH_SEED + i, label) for i in range(rounds) for label in range(len(CLASS_NAMES))]


def save_clip(path: Path, clip: nn.Module, facts: dict[str, str]) -> None:
    """Writes a trained model compactly (model.save_weights), with the token rows that TEMPLATES and CLASS_NAMES use.

    Raises:
        StorageError: the file cannot be written.
    """
    state = {name: value.detach().float().numpy() for name, value in clip.state_dict().items()}
    save_weights(path, state, sorted(set(torch.cat(_captions()).flatten().tolist())), facts)


def _captions() -> list[Tensor]:
    """Token ids (classes, context) for each of TEMPLATES."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=cast(Any, MODEL_CONFIG)["model_cfg"]["text_cfg"]["context_length"])
    return [tokenizer([template.format(name) for name in CLASS_NAMES]) for template in TEMPLATES]


def _shape_targets(cells: Tensor, labels: Tensor) -> Tensor:
    """(batch, k) int64: the shape on a patch of mostly object, one past the shapes on background, -1 (no loss) at the edge of both."""
    covered = cells.mean(dim=2)
    shapes = (labels % len(SHAPES))[:, None].expand_as(covered)
    edge = torch.where(covered > 0.0, -1, len(SHAPES))
    return torch.where(covered > 0.2, shapes, edge)


def _kept_patches(cells: Tensor, progress: float, random: torch.Generator) -> Tensor:
    """(batch, k) int64: patches that enter the tower, drawn with a preference for the object that differs from image to image.

    A third of them at first, half or more in the last quarter, so that the finished model knows long and short sequences.
    """
    images, patches = cells.shape[:2]
    choices = (patches // 3,) if progress < 0.75 else (patches // 2, patches * 3 // 4, patches)
    k = choices[int(torch.randint(len(choices), (), generator=random))]
    on_object = (cells.sum(dim=2) > 0.0).float()
    preference = torch.rand(images, 1, generator=random)
    return select(torch.rand(images, patches, generator=random) + preference * on_object, k)


def _optimizers(pupil: Pupil) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the image blocks, AdamW for the rest; neither decays vectors and tables."""
    blocks = [weight for block in pupil.tower.blocks for weight in block.parameters() if weight.ndim == 2]
    taken = {id(weight) for weight in blocks}
    others = [(name, weight) for name, weight in pupil.named_parameters() if id(weight) not in taken]
    free = [weight for name, weight in others if weight.ndim < 2 or "embedding" in name]
    decayed = [weight for name, weight in others if weight.ndim >= 2 and "embedding" not in name]
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=_ADAMW_RATE, betas=(0.9, 0.98), fused=True)
    return [adamw, torch.optim.Muon(blocks, lr=_MUON_RATE, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")]


def _rate(step: int, steps: int) -> float:
    """The learning rate's factor: a short linear start, then half a cosine to zero."""
    return min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _step(pupil: Pupil, loss: Tensor, optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
    for optimizer, rate in zip(optimizers, (_ADAMW_RATE, _MUON_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()


def _steps_for(minutes: float, recipe: Recipe) -> int:
    """How many steps the recipe could do here in that many minutes, from a short trial."""
    trial = replace(recipe, steps=12, rounds=4)
    train_clip(replace(trial, steps=1))
    start = time.perf_counter()
    train_clip(trial)
    return max(1, int(60.0 * minutes * trial.steps / (time.perf_counter() - start)))


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The weights file to write (safetensors).")
@click.option("--steps", default=1200, show_default=True, help="Optimiser steps.")
@click.option("--minutes", type=float, help="In place of --steps: as many steps as fit into about this many minutes here.")
@click.option("--batch", default=96, show_default=True, help="Images of a step.")
@click.option("--rounds", default=300, show_default=True, help="Training scenes of each class.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights, scenes and order.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def main(out: Path, minutes: float | None, threads: int, **choices: int) -> None:
    """Trains the demo's tiny CLIP, writes it compactly and prints its accuracy on unseen scenes."""
    check_output(out, COMPACT_WEIGHTS)
    torch.set_num_threads(threads)
    recipe = Recipe(**choices)
    if minutes is not None:
        recipe = replace(recipe, steps=_steps_for(minutes, recipe))
    click.echo(f"{recipe}", err=True)
    start = time.perf_counter()
    clip = train_clip(recipe, BarProgress())
    facts = {**{name: str(value) for name, value in asdict(recipe).items()}, "torch": torch.__version__}
    save_clip(out, clip, facts)
    scenes = fresh_scenes(5)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", out)
        accuracy = zero_shot_accuracy(load_model(f"local-dir:{folder}/model"), scenes)
    minutes_used = (time.perf_counter() - start) / 60.0
    click.echo(f"{out}: {out.stat().st_size} bytes, {minutes_used:.1f} minutes")
    click.echo(f"zero-shot accuracy {accuracy:.3f} on {len(scenes)} unseen scenes")


if __name__ == "__main__":
    main()
