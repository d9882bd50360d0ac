"""CLIP_benchmark's evaluations of a run: its command line with one more type of model.

pip install clip-benchmark "numpy<2.4"
python examples/harness.py RUN KEEP eval --model_type prtool --model ViT-B-16 --pretrained openai --dataset cifar10 --output pruned.json

MODEL and PRETRAINED are those that the run was trained for; other weights are an error. With `--model_type open_clip` the same command
gives the unpruned figures.
"""

import sys
from typing import Any

import clip_benchmark.models as types
import torch
from clip_benchmark.cli import main

import prtool

RUN, KEEP = sys.argv[1], float(sys.argv[2])


def load_pruned(model_name: str, pretrained: str, cache_dir: str | None, device: str | torch.device) -> tuple[Any, Any, Any]:
    """The model with the run's encoder behind `encode_image`, its transform and tokenizer."""
    model, transform, tokenizer = types.load_open_clip(model_name, pretrained, cache_dir, device)
    return prtool.apply(model, RUN, keep=KEEP), transform, tokenizer


types.TYPE2FUNC["prtool"] = load_pruned
types.MODEL_TYPES.append("prtool")
sys.argv[1:] = sys.argv[3:]
sys.exit(main())
