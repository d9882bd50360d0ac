"""The golden ranking beside a plain forward over as many sequences of the same lengths, from tokens that are ready."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from on_gpu.clock import Clock
from on_gpu.record import Record
from on_gpu.towers import LOCATION, make_encoder, pixels_for
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch

BATCHES = (64, 128, 256, 512)


def measure_ranking(record: Record, models: Sequence[str], clock: Clock, images: int) -> None:
    """One entry a model and precision: images and sequences a second."""
    precisions = ("bf16", "fp32") if clock.device.type == "cuda" else ("fp32",)
    for model in models:
        for precision in precisions:
            record.measure("ranking", f"{model} {precision}", lambda m=model, p=precision: ranking(m, p, clock, images))


@torch.no_grad()
def ranking(model: str, precision: str, clock: Clock, images: int) -> dict[str, Any]:
    """Times of ranking `images` images, and of the plain forward at the batch size that is fastest here."""
    encoder = make_encoder(model, "fp32", clock.device)
    # The search needs the tower alone, unless it scores by class.
    search = GoldenSearch(cast(DualEncoder, SimpleNamespace(tower=encoder.tower)), LOCATION, GoldenConfig(precision=precision))
    tokens = encoder.tower.run_pre(pixels_for(encoder, images, clock.device), LOCATION)
    whole = tokens.shape[1]
    lengths = Counter([whole, *(whole - size for size in search.members.sum(1).tolist())])
    most = lengths.most_common(1)[0][0]
    ready = {batch: _ready(tokens, batch, most) for batch in BATCHES if batch <= max(64, images * sum(lengths.values()))}
    probed = clock.interleaved({str(batch): lambda part=part: search.tail.embed(part) for batch, part in ready.items()})
    best = min(ready, key=lambda batch: median(probed[str(batch)]) / batch)

    def plain() -> None:
        for length, count in lengths.items():
            missing = count * images
            while missing > 0:
                part = ready[best][: min(best, missing), :length] if length <= most else _ready(tokens, min(best, missing), length)
                search.tail.embed(part.contiguous())
                missing -= len(part)

    times = clock.interleaved({"ranking": lambda: search.rank(tokens), "plain": plain})
    seconds = median(times["ranking"]) / 1e3
    sequences = images * sum(lengths.values())
    return {
        "images": images,
        "sequences_per_image": sum(lengths.values()),
        "images_per_s": images / seconds,
        "sequences_per_s": sequences / seconds,
        "plain_batch": best,
        "share_of_plain": median(b / a for a, b in zip(times["ranking"], times["plain"], strict=True)),
        "rounds": len(times["ranking"]),
    }


def _ready(tokens: Tensor, batch: int, length: int) -> Tensor:
    return tokens.repeat(-(-batch // len(tokens)), 1, 1)[:batch, :length].contiguous()
