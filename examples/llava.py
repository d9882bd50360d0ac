"""A LLaVA that reads the tokens of the kept patches: a shorter encoder, and a shorter prompt.

python examples/llava.py FOLDER [KEEP]

Makes a small LLaVA of transformers with random weights (336 pixels, 576 patches), prunes its image tower, and prints tokens of the prompt
and milliseconds of one image, with every patch and with KEEP of them (0.4). With weights that mean something, train the run on your images
first (docs/patch-tokens.md).
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import prtool

LAYER = -2
"""Of LLaVA: the output of the last block but one."""
_PROMPT = torch.arange(5, 45)[None]
_ROUNDS = 7


def make_llava(side: int = 336, width: int = 256, blocks: int = 8) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights, whose image tower reads patches of 14 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=14,
        projection_dim=width,
    )
    text = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, vocab_size=1000
    )
    patches = (side // 14) ** 2
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=999, vision_feature_layer=LAYER, image_seq_length=patches)
    return LlavaForConditionalGeneration(config).eval()


def export_tower(llava: LlavaForConditionalGeneration, folder: Path, keep: float) -> Path:
    """Saves the image tower as a checkpoint, prunes it and writes a bundle that gives patch tokens; returns the bundle's folder."""
    tower = CLIPVisionModelWithProjection(llava.config.vision_config)
    tower.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    side = llava.config.vision_config.image_size
    tower.save_pretrained(folder / "tower")
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder / "tower")
    run = prtool.train(model=f"hf:{folder / 'tower'}", phase="none", location=3, output=folder / "run").run
    return prtool.export_bundle(run, folder / "bundle", keep=keep, patch_tokens=LAYER).bundle


@torch.no_grad()
def read_tokens(llava: LlavaForConditionalGeneration, tokens: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The language model's logits (batch, k + length, vocabulary) of patch tokens (batch, k, width) in front of a prompt (batch, length)."""
    image = llava.model.multi_modal_projector(tokens)
    text = llava.get_input_embeddings()(prompt)
    return llava(inputs_embeds=torch.cat((image, text), dim=1)).logits


def main(folder: Path, keep: float) -> None:
    """Prints the prompt's length and the time of encoder and language model."""
    llava = make_llava()
    with prtool.Encoder.load(export_tower(llava, folder, keep)) as encoder:
        pixels = torch.rand(1, 3, *encoder.preprocess.size).numpy()
        print("patches  prompt  encoder ms  (theoretical)  language model ms")
        for ratio in (1.0, keep):
            tokens = torch.from_numpy(encoder.encode_tokens(pixels, ratio).tokens)
            encoding = _milliseconds(lambda ratio=ratio: encoder.encode_tokens(pixels, ratio))
            reading = _milliseconds(lambda tokens=tokens: read_tokens(llava, tokens, _PROMPT))
            patches, bound = tokens.shape[1], encoder.manifest.theoretical_speedup(tokens.shape[1])
            print(f"{patches:7}  {patches + _PROMPT.shape[1]:6}  {encoding:10.1f}  {f'{bound:.2f}x':>13}  {reading:17.1f}")


def _milliseconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.4)
