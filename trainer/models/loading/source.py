"""Where a model comes from: names, tags and files, resolved to a validated configuration and a weights file."""

import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prtool.errors import ModelError
from prtool.text_safety import printable
from prtool.trainer.models.loading.config import (
    CHECKPOINT_CONFIG,
    CHECKPOINT_FILES,
    CONFIG_NAME,
    PLAIN_NAME,
    check_model,
    check_preprocess,
    read_config,
)
from prtool.trainer.models.loading.libraries import foreign

LOCAL, _HUB, HUGGING_FACE, TIMM = "local-dir:", "hf-hub:", "hf:", "timm:"
FOLDER_PREFIXES = (LOCAL, HUGGING_FACE)
"""Of names that may be followed by the path of a folder."""
_QUICK = "-quickgelu"
_TIMM_NAME = re.compile(r"timm:[a-z0-9_]+(\.[a-z0-9_]+)?", re.ASCII)
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")
_READ_FROM_TAGS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
# Of a model folder; the first that exists is taken, in open_clip's order.
_WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model before its weights are read.

    Attributes:
        name: as `canonical_name` gives it.
        pretrained: the tag or file; "" where the name brings the weights, or there are none.
        config: a checked `model_cfg`.
        preprocess: a checked `preprocess_cfg`; what it leaves out is OpenAI's.
        weights: the weights file; None gives random weights. With a family, the folder of the checkpoint.
        tokenizer: folder or repository of a Hugging Face tokenizer; "" takes CLIP's byte pairs.
        is_file: the weights are a file that the user named, next to an architecture.
        notes: assumptions about what the files do not say, by subject.
        family: "" for models of open_clip; else what transformers calls the kind of model, such as "clip".
    """

    name: str
    pretrained: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None = None
    tokenizer: str = ""
    is_file: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    family: str = ""

    @property
    def has_text(self) -> bool:
        """Whether there is a text side."""
        return "text_cfg" in self.config


def canonical_name(name: str) -> str:
    """A model's name in one spelling: an architecture of open_clip, "hf-hub:ORG/REPO", "hf:ORG/REPO", or "local-dir:" or
    "hf:" and an absolute path, or "timm:ARCHITECTURE" with or without ".TAG".

    "ViT-B/32", "~" in paths, and the folder of a model or checkpoint without its prefix are understood.

    Raises:
        ModelError: there is no such model.
    """
    if name.startswith(_HUB):
        if not PLAIN_NAME.fullmatch(name.removeprefix(_HUB)):
            raise ModelError(f"{printable(name)!r} is no repository of the Hugging Face Hub; give 'hf-hub:ORG/REPO'")
        return name
    if name.startswith(TIMM):
        if not _TIMM_NAME.fullmatch(name):
            raise ModelError(f"{printable(name)!r} is no name of timm; give 'timm:ARCHITECTURE' or 'timm:ARCHITECTURE.TAG'")
        return name
    if name.startswith(HUGGING_FACE):
        return _checkpoint_name(name.removeprefix(HUGGING_FACE))
    known = architectures()
    if not name.startswith(LOCAL) and name.replace("/", "-") in known:
        return name.replace("/", "-")
    folder = _user_path(name.removeprefix(LOCAL))
    if _is_file(folder / CONFIG_NAME) and name != LOCAL:
        return f"{LOCAL}{folder.resolve()}"
    is_checkpoint = _is_file(folder / CHECKPOINT_CONFIG)
    if name.startswith(LOCAL):
        other = f"; for the checkpoint of transformers that it is, give 'hf:{printable(folder)}'" if is_checkpoint else ""
        raise ModelError(f"{printable(folder)} holds no {CONFIG_NAME}; give 'local-dir:' and a folder in open_clip's format{other}")
    if is_checkpoint:
        return f"{HUGGING_FACE}{folder.resolve()}"
    near = ", ".join(_near(name.replace("/", "-"), known, 0.4)) or "none"
    raise ModelError(f"unknown model {printable(name)!r}; near names: {near}; or give 'hf:ORG/REPO', 'hf-hub:ORG/REPO' or 'local-dir:PATH'")


def _checkpoint_name(place: str) -> str:
    """The name of a checkpoint of transformers, a folder or a repository."""
    folder = _user_path(place)
    if place and _is_file(folder / CHECKPOINT_CONFIG):
        return f"{HUGGING_FACE}{folder.resolve()}"
    if PLAIN_NAME.fullmatch(place) and not folder.is_dir():
        return f"{HUGGING_FACE}{place}"
    raise ModelError(f"{printable(place)!r} is no folder with a {CHECKPOINT_CONFIG}; give 'hf:ORG/REPO', or 'hf:FOLDER' of transformers")


def architectures() -> list[str]:
    """The architectures of open_clip; where it is not imported yet, which takes seconds, the names of its configuration files.

    Raises:
        ModuleNotFoundError: open_clip is not installed.
    """
    imported = sys.modules.get("open_clip")
    if imported is not None:
        return list(imported.list_models())  # with those that the program has added
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    return sorted(path.stem for path in (Path(found.origin).parent / "model_configs").glob("*.json"))


def check_pretrained(name: str, pretrained: str) -> None:
    """The checks of `canonical_pretrained` that need no import of open_clip.

    Raises:
        ModelError: what looks like a file does not exist, or the name brings its own weights.
    """
    if pretrained and name.startswith((LOCAL, _HUB, HUGGING_FACE)):
        raise ModelError(f"pretrained = {printable(pretrained)!r}, but {name!r} brings its own weights; leave pretrained out")
    looks_like_file = Path(pretrained).suffix in _WEIGHT_SUFFIXES or "/" in pretrained
    if looks_like_file and not _is_file(_user_path(pretrained)):
        raise ModelError(f"pretrained = {printable(pretrained)!r}, but there is no such file; give a checkpoint file or a tag of open_clip")


def canonical_pretrained(name: str, pretrained: str) -> str:
    """Weights of a canonical name in one spelling: a tag of open_clip (taken before a file of that name), an absolute path of a file, or "".

    Raises:
        ModelError: there is no such tag or file, or the name brings its own weights.
    """
    import open_clip

    check_pretrained(name, pretrained)
    if not pretrained:
        return ""
    tags = open_clip.list_pretrained_tags_by_model(name) if not name.startswith(TIMM) else []
    tag = pretrained.lower().replace("-", "_")
    if tag in tags:
        return tag
    if _is_file(_user_path(pretrained)):
        return str(_user_path(pretrained).resolve())
    near = ", ".join(_near(pretrained, tags, 0.3) or tags) or "none"
    raise ModelError(f"unknown pretrained tag {printable(pretrained)!r} for {name}, and no such file; known tags: {near}")


def resolve(name: str, pretrained: str = "") -> ModelSource:
    """Finds a model's configuration and weights, in any spelling of their names; downloads them where the name or tag says so.

    Raises:
        ModelError: unknown name or tag, a configuration that is not understood, or a download that failed.
    """
    import open_clip
    from open_clip.factory import download_pretrained_from_hf

    name = canonical_name(name)
    weights = canonical_pretrained(name, pretrained)
    if name.startswith(HUGGING_FACE):
        return read_checkpoint(name)
    config, preprocess = model_config(name)
    tokenizer = config["text_cfg"].get("hf_tokenizer_name") or ""
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        return ModelSource(name, "", config, preprocess, weights_in(folder), str(folder) if tokenizer else "")
    if name.startswith(_HUB):
        path = foreign(f"model {name!r} cannot be downloaded", lambda: download_pretrained_from_hf(name.removeprefix(_HUB)))
        return ModelSource(name, "", config, preprocess, Path(path), tokenizer)
    source = ModelSource(name, weights, config, preprocess, tokenizer=tokenizer)
    if not weights:
        return source
    return _with_tag(source) if weights in open_clip.list_pretrained_tags_by_model(name) else _with_file(source)


def model_config(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checked `model_cfg` and `preprocess_cfg` of a canonical name, without its weights.

    Raises:
        ModelError: it is not understood, or cannot be downloaded.
    """
    import open_clip
    from open_clip.factory import download_pretrained_from_hf

    if name.startswith(LOCAL):
        return read_config(Path(name.removeprefix(LOCAL)) / CONFIG_NAME)
    if name.startswith(_HUB):
        failed, repository = f"model {name!r} cannot be downloaded", name.removeprefix(_HUB)
        return read_config(Path(foreign(failed, lambda: download_pretrained_from_hf(repository, filename=CONFIG_NAME))))
    return check_model(open_clip.get_model_config(name), f"open_clip's {name}"), _agreed_preprocess(name) or {}


def checkpoint_folder(name: str) -> Path:
    """The folder of a canonical "hf:" name, downloaded where it is a repository.

    Raises:
        ModelError: it cannot be downloaded.
    """
    place = name.removeprefix(HUGGING_FACE)
    if Path(place).is_absolute():
        return Path(place)
    from huggingface_hub import snapshot_download

    def download(*patterns: str) -> Path:
        return Path(foreign(f"model {name!r} cannot be downloaded", lambda: snapshot_download(place, allow_patterns=list(patterns))))

    folder = download(*CHECKPOINT_FILES)
    return folder if any(folder.glob("*.safetensors")) else download(*CHECKPOINT_FILES, "pytorch_model*")


def read_checkpoint(name: str) -> ModelSource:
    """The source of a canonical "hf:" name; its folder is downloaded where it is a repository.

    Raises:
        ModelError: it cannot be downloaded, or is not supported.
    """
    from prtool.trainer.models.loading.hugging_face import read_folder

    folder = checkpoint_folder(name)
    found = read_folder(folder)
    tokenizer = str(folder) if "text_cfg" in found.config else ""
    return ModelSource(name, "", found.config, found.preprocess, folder, tokenizer, notes=found.notes, family=found.family)


def weights_in(folder: Path) -> Path:
    """The weights file of a model folder.

    Raises:
        ModelError: there is none, or several that could be meant.
    """
    for name in _WEIGHTS:
        if _is_file(folder / name):
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    if len(others) != 1:
        found = f"several weights files ({', '.join(printable(path.name) for path in others[:4])})" if others else "no weights file"
        raise ModelError(f"{folder} holds {found}; keep one, named {_WEIGHTS[0]}")
    return others[0]


def _with_tag(source: ModelSource) -> ModelSource:
    from open_clip import factory, get_pretrained_cfg

    tag: dict[str, Any] = get_pretrained_cfg(source.name, source.pretrained)
    failed = f"the weights {source.pretrained!r} of {source.name} cannot be downloaded"
    path = Path(foreign(failed, lambda: factory.download_pretrained(tag)))
    own, named, notes = bool(source.config.get("quick_gelu")), bool(tag.get("quick_gelu")), source.notes
    if own and not named and not source.name.endswith(_QUICK):
        # A tag without the entry leaves it open; its weights were trained with the architecture's own activation.
        notes = {"activation": f"the tag {source.pretrained!r} does not name its activation; QuickGELU is used, as {source.name} says"}
    config = {**source.config, "quick_gelu": own or named}
    return replace(source, config=config, preprocess=_tag_preprocess(source.name, tag), weights=path, notes=notes)


def _with_file(source: ModelSource) -> ModelSource:
    """The weights are a file, which names neither its activation nor its preprocessing; a configuration next to it may."""
    path = Path(source.pretrained)
    found = replace(source, weights=path, is_file=True)
    if _is_file(path.parent / CONFIG_NAME):
        config, preprocess = read_config(path.parent / CONFIG_NAME)
        if _towers(config) == _towers(source.config):
            return replace(found, config={**found.config, "quick_gelu": bool(config.get("quick_gelu"))}, preprocess=preprocess)
    quick, notes = _file_activation(source)
    if _agreed_preprocess(source.name) is None:
        notes["preprocessing"] = (
            f"{printable(path.name)} does not name its preprocessing; OpenAI's mean and standard deviation, bicubic and a centre crop are "
            f"used; put an {CONFIG_NAME} with its preprocess_cfg next to it if it was trained otherwise"
        )
    return replace(found, config={**found.config, "quick_gelu": quick}, notes=notes)


def _file_activation(source: ModelSource) -> tuple[bool, dict[str, str]]:
    """Whether a file's weights need QuickGELU, and a note where that is assumed."""
    own, sibling = bool(source.config.get("quick_gelu")), source.name + _QUICK
    published = {own or bool(tag.get("quick_gelu")) for tag in _tags(source.name)}
    if source.name.endswith(_QUICK) or (published <= {own} and sibling not in architectures()):
        return own, {}
    quick = own or published == {True}
    if quick:
        why = f"QuickGELU is used, as all published weights of {source.name} need it; give a model folder if these were trained with GELU"
    else:
        why = f"GELU is used, as {source.name} says; weights of OpenAI, MetaCLIP and DFN need --model {sibling}"
    return quick, {"activation": f"{printable(Path(source.pretrained).name)} does not name its activation; {why}"}


def _towers(config: Mapping[str, Any]) -> tuple[object, ...]:
    """What decides the shapes of a configuration's weights, to compare."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])


def _tags(name: str) -> list[dict[str, Any]]:
    """The entries of all tags of an architecture, with those of its form with the other activation."""
    import open_clip

    plain = name.removesuffix(_QUICK)
    return [open_clip.get_pretrained_cfg(each, tag) for each in (plain, plain + _QUICK) for tag in open_clip.list_pretrained_tags_by_model(each)]


def _tag_preprocess(name: str, tag: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in tag.items() if key in _READ_FROM_TAGS}
    return check_preprocess(plain, f"open_clip's tag of {name}")


def _agreed_preprocess(name: str) -> dict[str, Any] | None:
    """The preprocessing that all tags of an architecture have in common; None where they differ or there are none."""
    found = [_tag_preprocess(name, tag) for tag in _tags(name)]
    return found[0] if found and all(each == found[0] for each in found) else None


def _near(name: str, known: list[str], cutoff: float) -> list[str]:
    """At most four known names near a misspelt one, whatever their case."""
    lower = {each.lower(): each for each in known}
    return [lower[each] for each in difflib.get_close_matches(name.lower(), list(lower), n=4, cutoff=cutoff)]


def _user_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise ModelError(f"{printable(text)!r}: {cause}; give the path without '~'") from cause


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
