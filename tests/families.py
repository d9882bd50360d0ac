"""The families of image encoders that people deploy: how each is named, its geometry, and how a model of it is made with random weights.

A reduced model is the library's own configuration with 3 blocks, 64 channels and a small image. Everything else, such as pooling,
activation, layer scale, registers, rotation or a stem of convolutions, comes from the library. `FAMILIES` is also the table of
docs/models.md (`families_page.py`): a family is added here, and nowhere else.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prtool.trainer.models.dual_encoder import DualEncoder, load_model

DEPTH, WIDTH, EMBED = 3, 64, 32
_NAMED = ("mean", "std", "interpolation", "resize_mode")
_FIXED_WIDTH = ("vit_base_mci_224",)
"""Trunks whose convolutions in front of the blocks fix the width."""
_TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Made:
    """A model of a family, as `load_model` gives it, and the library's own image encoder with the same weights.

    Attributes:
        model: what prtool loaded.
        encode: pixels (batch, 3, height, width) -> embedding (batch, E), not normalised, by the library alone.
    """

    model: DualEncoder
    encode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """What is known of a real architecture, without asking its library.

    Attributes:
        side, patch: in pixels; images and patches are square.
        prefix: tokens before the patches.
        pooling: `CLASS`, `AVERAGE` or `ATTENTION`.
        activation: class name of the activation in the blocks.
        parameters: of the image tower, in millions.
        rotary: whether queries and keys are rotated.
    """

    side: int
    patch: int
    prefix: int
    pooling: str
    activation: str
    parameters: float
    rotary: bool = False


@dataclass(frozen=True)
class Family(ABC):
    """One family.

    Attributes:
        name: as people call it.
        architecture: as the library calls it.
        pretrained: a tag of published weights.
        geometry: of the real architecture.
        not_merging: words of the error where tokens cannot merge; "" where they can.
        usual: whether its bundle is made without `-m slow`: one family of each kind.
        int8, real_size: whether those tests, most of which are slow, were run for it; the table says so.
        grid: patches a side of the reduced model.
    """

    name: str
    architecture: str
    pretrained: str
    geometry: Geometry
    not_merging: str = ""
    usual: bool = False
    int8: bool = False
    real_size: bool = False
    grid: int = 4

    @property
    @abstractmethod
    def command(self) -> str:
        """The options that name it on the command line."""

    @abstractmethod
    def make(self, folder: Path, *, reduced: bool = True) -> Made:
        """Writes a model with random weights into a folder, in the form that the library publishes, and loads it from there."""

    @abstractmethod
    def outline(self) -> nn.Module:
        """The image tower of the real architecture, by its real name and without values."""

    def side_of(self, *, reduced: bool) -> int:
        """Pixels a side of a model's images."""
        return self.grid * self.geometry.patch if reduced else self.geometry.side


@dataclass(frozen=True)
class OpenClip(Family):
    """A dual encoder of open_clip, named by architecture and tag; its text side is always reduced."""

    @property
    def command(self) -> str:
        return f"--model {self.architecture} --pretrained {self.pretrained}"

    def config(self) -> dict[str, Any]:
        """open_clip's configuration of the architecture, with the activation of the weights."""
        import open_clip

        config = open_clip.get_model_config(self.architecture)
        quick = config.get("quick_gelu") or open_clip.get_pretrained_cfg(self.architecture, self.pretrained).get("quick_gelu")
        return {**config, "quick_gelu": bool(quick)}

    def outline(self) -> nn.Module:
        from open_clip.model import _build_vision_tower

        config = self.config()
        with torch.device("meta"):
            return _build_vision_tower(config["embed_dim"], config["vision_cfg"], config["quick_gelu"]).eval()

    def make(self, folder: Path, *, reduced: bool = True) -> Made:
        import open_clip
        from hugging_face_models import write_tokenizer
        from safetensors.torch import save_file

        config = self._with_small_text(self._reduced(self.config()) if reduced else self.config())
        tag = open_clip.get_pretrained_cfg(self.architecture, self.pretrained)
        preprocess = {key: tag[key] for key in _NAMED if tag.get(key)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
        if "hf_tokenizer_name" in config["text_cfg"]:
            write_tokenizer(folder, "siglip")
        save_file({}, folder / "open_clip_model.safetensors")  # open_clip wants one to be there
        host = randomised(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
        save_file({name: tensor.contiguous() for name, tensor in host.state_dict().items()}, folder / "open_clip_model.safetensors")
        return Made(load_model(f"local-dir:{folder}"), lambda pixels: host.encode_image(pixels, normalize=False))

    def _reduced(self, config: dict[str, Any]) -> dict[str, Any]:
        vision, side = {**config["vision_cfg"], "image_size": self.side_of(reduced=True)}, self.side_of(reduced=True)
        if trunk := vision.get("timm_model_name"):
            vision["timm_model_name"] = reduced_trunk(trunk, side)
        else:
            vision |= {"layers": DEPTH, "width": WIDTH, "head_width": WIDTH // 2}
        # Without a projection the embedding has the width of the trunk.
        return {**config, "vision_cfg": vision, "embed_dim": WIDTH if vision.get("timm_proj") == "none" else EMBED}

    def _with_small_text(self, config: dict[str, Any]) -> dict[str, Any]:
        # In place of the tokenizers of SigLIP and CLIPA there is a small one.
        own: dict[str, Any] = {"vocab_size": 300, "tokenizer_kwargs": {}} if "hf_tokenizer_name" in config["text_cfg"] else {}
        small = {key: {**config[key], **_TEXT, **own} for key in ("text_cfg", "multimodal_cfg") if key in config}
        return {**config, **small}


@dataclass(frozen=True)
class Timm(Family):
    """An image tower of timm without a text side."""

    @property
    def command(self) -> str:
        return f"--model timm:{self.architecture}.{self.pretrained}"

    def outline(self) -> nn.Module:
        from prtool.trainer.models.loading.image_only import build_trunk

        with torch.device("meta"):
            return build_trunk(f"timm:{self.architecture}").eval()

    def make(self, folder: Path, *, reduced: bool = True) -> Made:
        import timm

        name = reduced_trunk(self.architecture, self.side_of(reduced=True)) if reduced else self.architecture
        host = randomised(timm.create_model(name, num_classes=0))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(host.state_dict(), folder / "weights.pt")
        return Made(load_model(f"timm:{name}", str(folder / "weights.pt")), host)


@dataclass(frozen=True)
class Transformers(Family):
    """A checkpoint of transformers; `architecture` is its model type, and its text side is always reduced.

    Attributes:
        vision: what the published configuration changes of the class's own defaults.
    """

    vision: tuple[tuple[str, int | str], ...] = ()

    @property
    def command(self) -> str:
        return f"--model hf:{self.pretrained}"

    def outline(self) -> nn.Module:
        import hugging_face_models

        from prtool.trainer.models.loading.hugging_face import build_visual, model_config

        with torch.device("meta"):
            host = hugging_face_models.make_model(self.architecture, self._vision(reduced=False))
            return build_visual(model_config(host)).eval()

    def make(self, folder: Path, *, reduced: bool = True) -> Made:
        import hugging_face_models

        host = randomised(hugging_face_models.make_model(self.architecture, self._vision(reduced=reduced)))
        hugging_face_models.write_folder(folder, self.architecture, host)

        def encode(pixels: Tensor) -> Tensor:
            found = host.get_image_features(pixels)
            return getattr(found, "pooler_output", found)  # a tensor in transformers 4

        return Made(load_model(f"hf:{folder}"), encode)

    def _vision(self, *, reduced: bool) -> dict[str, int | str]:
        own = {"patch_size": self.geometry.patch, "image_size": self.side_of(reduced=reduced), **dict(self.vision)}
        small = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
        return {**own, **small} if reduced else own


def reduced_trunk(architecture: str, side: int) -> str:
    """The name, in timm's registry, of an architecture of timm with few blocks, a narrow width and images of `side` pixels."""
    import timm
    from timm.models import model_entrypoint, register_model

    name = f"{architecture}_reduced_{side}"
    if timm.is_model(name):
        return name
    whole = model_entrypoint(architecture)
    small = {"img_size": side, "depth": DEPTH} | ({} if architecture in _FIXED_WIDTH else {"embed_dim": WIDTH, "num_heads": 2})

    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        return whole(pretrained=False, **{**options, **small})

    make.__name__, make.__module__ = name, __name__
    register_model(make)
    return name


def randomised(model: nn.Module) -> nn.Module:
    """Gives every tensor a seeded random value: many start at zero or one, where a forgotten one would not show."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            noise = torch.randn(tensor.shape, generator=draw)
            if tensor.dim() > 1:
                # Large enough that a block, and so a missing patch, shows in the embedding.
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            elif name.endswith("gamma"):
                tensor.copy_(0.5 + 0.1 * noise)  # layer scale, which starts near 0
            elif tensor.is_floating_point() and tensor.dim():
                tensor.add_(0.1 * noise.abs())  # a variance stays positive
    return model.eval().requires_grad_(False)


CLASS, AVERAGE, ATTENTION = "class token", "average", "attention"
QUICK, GELU, TANH, SILU = "QuickGELU", "GELU", "GELUTanh", "SiLU"
POOLS, HIDES, TURNS = "pools over all tokens", "keys are not accessible", "rotates queries and keys"
_HUGE = (("hidden_size", 1280), ("num_hidden_layers", 32), ("num_attention_heads", 16), ("intermediate_size", 5120))
FAMILIES: tuple[Family, ...] = (
    OpenClip("CLIP ViT-B/32", "ViT-B-32", "openai", Geometry(224, 32, 1, CLASS, QUICK, 87.8), real_size=True),
    OpenClip("CLIP ViT-B/16", "ViT-B-16", "openai", Geometry(224, 16, 1, CLASS, QUICK, 86.2), usual=True, int8=True, real_size=True),
    OpenClip("CLIP ViT-L/14", "ViT-L-14", "openai", Geometry(224, 14, 1, CLASS, QUICK, 304.0)),
    OpenClip("CLIP ViT-L/14, 336 px", "ViT-L-14-336", "openai", Geometry(336, 14, 1, CLASS, QUICK, 304.3), grid=6),
    OpenClip("SigLIP", "ViT-B-16-SigLIP", "webli", Geometry(224, 16, 0, ATTENTION, GELU, 92.9), POOLS, usual=True, int8=True, real_size=True),
    OpenClip("SigLIP 2, fixed size", "ViT-B-16-SigLIP2", "webli", Geometry(224, 16, 0, ATTENTION, GELU, 92.9), POOLS),
    OpenClip("CoCa", "coca_ViT-B-32", "laion2b_s13b_b90k", Geometry(224, 32, 1, ATTENTION, GELU, 89.2), POOLS, int8=True, real_size=True),
    OpenClip("CLIPA", "ViT-L-14-CLIPA", "datacomp1b", Geometry(224, 14, 1, AVERAGE, GELU, 304.0), POOLS, int8=True),
    OpenClip("EVA-01", "EVA01-g-14", "laion400m_s11b_b41k", Geometry(224, 14, 1, CLASS, GELU, 1012.6), HIDES),
    OpenClip(
        "EVA-02",
        "EVA02-B-16",
        "merged2b_s8b_b131k",
        Geometry(224, 16, 1, CLASS, SILU, 86.3, rotary=True),
        TURNS,
        usual=True,
        int8=True,
        real_size=True,
    ),
    OpenClip(
        "PE-Core", "PE-Core-B-16", "meta", Geometry(224, 16, 1, ATTENTION, GELU, 93.7, rotary=True), TURNS, usual=True, int8=True, real_size=True
    ),
    OpenClip("MobileCLIP2-B", "MobileCLIP2-B", "dfndr2b", Geometry(224, 16, 1, CLASS, GELU, 86.3), usual=True, int8=True, real_size=True),
    Timm("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", "lvd142m", Geometry(518, 14, 5, CLASS, GELU, 22.1), usual=True, int8=True),
    Timm(
        "DINOv3",
        "vit_small_patch16_dinov3",
        "lvd1689m",
        Geometry(256, 16, 5, AVERAGE, GELU, 21.6, rotary=True),
        TURNS,
        usual=True,
        int8=True,
        real_size=True,
    ),
    Transformers("CLIP of transformers", "clip", "openai/clip-vit-base-patch32", Geometry(224, 32, 1, CLASS, QUICK, 87.5)),
    Transformers("SigLIP of transformers", "siglip", "google/siglip-base-patch16-224", Geometry(224, 16, 0, ATTENTION, TANH, 92.9), POOLS),
    Transformers("MetaCLIP 2", "metaclip_2", "facebook/metaclip-2-worldwide-huge-quickgelu", Geometry(224, 14, 1, CLASS, QUICK, 630.8), vision=_HUGE),
)
