"""How far half precision is from float32 at each keep: with the patches that it keeps itself, and with those that float32 keeps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.record import Record
from benchmarks.gpu.towers import make_encoder, pixels_for
from prtool.engines.pytorch.arrays import torch_arrays


def measure_agreement(
    record: Record, models: Sequence[str], precisions: Sequence[str], keeps: Sequence[float], device: torch.device, images: int
) -> None:
    """One entry for each model and half precision. Weights and images are random, which is harder than trained ones: their scores lie close."""
    for model in models:
        for precision in precisions:
            if precision != "fp32":
                record.measure("agreement", f"{model} {precision}", lambda m=model, p=precision: agreement(m, p, keeps, device, images))


@torch.no_grad()
def agreement(model: str, precision: str, keeps: Sequence[float], device: torch.device, images: int) -> dict[str, Any]:
    """Cosines of embeddings to float32's, and the share of patches that both keep."""
    exact, half = make_encoder(model, "fp32", device), make_encoder(model, precision, device)
    arrays, prefix = torch_arrays(str(device)), exact.prune.prefix_tokens
    pixels = pixels_for(exact, images, device)
    (tokens, scores), (half_tokens, half_scores) = exact.pre(pixels), half.pre(pixels)
    rows = [{"keep": None, "k": exact.prune.patches, "cosine": _cosines(exact.full(pixels), half.full(pixels))}]
    for keep in keeps:
        k = exact.count(keep)
        chosen, half_chosen = arrays.select(scores, k), arrays.select(half_scores, k)
        wanted = exact.post(arrays.gather(tokens, chosen, prefix, 0))
        rows.append(
            {
                "keep": keep,
                "k": k,
                "cosine": _cosines(wanted, half.post(arrays.gather(half_tokens, half_chosen, prefix, 0))),
                "cosine_same_patches": _cosines(wanted, half.post(arrays.gather(half_tokens, chosen, prefix, 0))),
                "same_patches": float((chosen[:, :, None] == half_chosen[:, None]).any(2).float().mean()),
            }
        )
    return {"images": images, "rows": rows}


def _cosines(a: Tensor, b: Tensor) -> dict[str, float]:
    found = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
    return {"mean": float(found.mean()), "least": float(found.min())}
