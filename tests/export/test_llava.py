"""Patch tokens of a bundle in a LLaVA of transformers, next to its own forward pass."""

import importlib.util
from pathlib import Path

import pytest
import torch

import prtool

pytest.importorskip("transformers", reason="transformers has LLaVA: pip install '.[hf]'")
EXAMPLE = Path(__file__).parents[2] / "examples" / "llava.py"
PROMPT = torch.arange(5, 12)[None]


def test_every_patch_gives_llavas_own_logits_and_fewer_a_shorter_prompt(tmp_path):
    spec = importlib.util.spec_from_file_location("llava", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    llava = example.make_llava(side=56, width=64, blocks=4)
    bundle = example.export_tower(llava, tmp_path, 0.5)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    placeholders = torch.full((1, 16), llava.config.image_token_index)
    with torch.no_grad():
        wanted = llava(input_ids=torch.cat((placeholders, PROMPT), dim=1), pixel_values=pixels).logits
    with prtool.Encoder.load(bundle) as encoder:
        everything, half = (torch.from_numpy(encoder.encode_tokens(pixels.numpy(), keep).tokens) for keep in (1.0, 0.5))
    assert torch.allclose(example.read_tokens(llava, everything, PROMPT), wanted, atol=1e-4)
    assert example.read_tokens(llava, half, PROMPT).shape[1] == 8 + PROMPT.shape[1]
