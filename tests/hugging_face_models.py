"""Small random checkpoints of transformers, written by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch

SIDE, PATCH, CONTEXT = 48, 12, 24
_TOWER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
VISION = {**_TOWER, "intermediate_size": 70, "image_size": SIDE, "patch_size": PATCH}
TEXT = {**_TOWER, "intermediate_size": 50, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
FAMILIES = ("clip", "clip of 2022", "metaclip_2", "siglip")


def make_model(family: str, vision: dict[str, Any], text: dict[str, Any] | None = None) -> Any:
    """A model with transformers' own first values, whose image side has its class's own configuration but for `vision`."""
    import transformers

    words = TEXT | (text or {})
    if family == "siglip":
        own = transformers.SiglipVisionConfig(**vision)
        words |= {"vocab_size": 300, "projection_size": own.hidden_size}
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=own.to_dict()))
    if family == "metaclip_2":
        return transformers.MetaClip2Model(transformers.MetaClip2Config(text_config=words, vision_config=vision, projection_dim=24))
    old = {"eos_token_id": 2} if family == "clip of 2022" else {}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config={**words, **old}, vision_config=vision, projection_dim=24))


def make_checkpoint(family: str, seed: int = 0, **changes: dict[str, Any]) -> Any:
    """The model, in evaluation mode; `vision` and `text` change its configuration. All its tensors are random, gains and biases too."""
    torch.manual_seed(seed)
    model = randomise(make_model(family, VISION | changes.get("vision", {}), changes.get("text")))
    with torch.no_grad():
        if family == "siglip":
            model.logit_bias.fill_(-7.0)
    return model


@torch.no_grad()
def randomise(model: Any) -> Any:
    """Gives every tensor random values, as many start at zero or one, and puts the model in evaluation mode."""
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1:
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        elif float(tensor.abs().sum()) == 0.0 or name.endswith(("cls_token", "register_tokens")):
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    if hasattr(model, "logit_scale"):
        model.logit_scale.fill_(2.5)
    return model.eval()


def processor_of(family: str, side: int = SIDE) -> Any:
    """The settings of its images."""
    import transformers

    if family == "siglip":
        return transformers.SiglipImageProcessor(size={"height": side, "width": side}, resample=2)
    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def write_tokenizer(folder: Path, family: str) -> None:
    """CLIP's own byte pairs; for SigLIP single characters, in lower case."""
    import transformers
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Tokenizer, models, normalizers

    if family == "siglip":
        letters = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
        plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
        plain.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")])
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
        made.save_pretrained(folder)
        return
    clip = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({names.get(word, word): number for word, number in clip.encoder.items()}))
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    transformers.CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)


def write_checkpoint(folder: Path, family: str = "clip", seed: int = 0, **changes: dict[str, Any]) -> str:
    """Writes a model, its image processor and tokenizer as a user would; returns the name for `load_model`."""
    return write_folder(folder, family, make_checkpoint(family, seed, **changes))


def write_folder(folder: Path, family: str, model: Any) -> str:
    """The same for a model that there is already."""
    model.save_pretrained(folder)
    processor_of(family, model.config.vision_config.image_size).save_pretrained(folder)
    write_tokenizer(folder, family)
    return f"hf:{folder}"


def edit(folder: Path, file: str = "config.json", **values: object) -> None:
    """Changes top-level values of one of its JSON files."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
