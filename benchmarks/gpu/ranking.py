"""Speed of the golden ranking on the device, next to a plain forward; see `benchmarks.golden_ranking`."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks.clock import Clock
from benchmarks.golden_ranking import measure
from benchmarks.gpu.record import Record
from benchmarks.gpu.towers import LOCATION, make_encoder, pixels_for
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch


def measure_ranking(record: Record, models: Sequence[str], clock: Clock, images: int) -> None:
    """One entry a model and precision: images and sequences a second."""
    for model in models:
        for precision in ("bf16", "fp32") if clock.device.type == "cuda" else ("fp32",):
            record.measure("ranking", f"{model} {precision}", lambda m=model, p=precision: ranking(m, p, clock, images))


@torch.no_grad()
def ranking(model: str, precision: str, clock: Clock, images: int) -> dict[str, Any]:
    """Rates of ranking `images` images of noise."""
    encoder = make_encoder(model, "fp32", clock.device)
    # The search needs the tower alone, unless it scores by class.
    search = GoldenSearch(cast(DualEncoder, SimpleNamespace(tower=encoder.tower, native=encoder.tower)), LOCATION, GoldenConfig(precision=precision))
    return measure(search, encoder.tower.run_pre(pixels_for(encoder, images, clock.device), LOCATION), clock)
