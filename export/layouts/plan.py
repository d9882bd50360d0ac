"""What a layout consists of: the graphs that it wants, and the files next to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prtool.errors import ConfigError
from prtool.export.layouts.tokenizer import TokenizerFile
from prtool.graphs.signature import BATCH, GraphSpec, TensorSpec
from prtool.manifest import Manifest
from prtool.records import check_value
from prtool.spec import Keep

PRECISIONS = ("fp32", "fp16", "int8")
"""What ONNX Runtime, which every layout is compared on, runs on a CPU."""
PIXELS = ("float32", "uint8")
_PIXELS_OF = {"hf": ("float32",), "immich": ("float32",), "triton": PIXELS}
"""Layout -> what its image graph may read."""
LAYOUTS = tuple(_PIXELS_OF)
SEQUENCE = "sequence"
"""The axis of prompts of any length."""
_ROUNDED_CROP = (
    "software that reads this layout rounds the place of the crop down, and this model's own preprocessing to nearest: of images whose longer "
    "side leaves an odd number of pixels over, every second is cropped a pixel further to the left or the top"
)


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What is written.

    Attributes:
        layout: of `LAYOUTS`.
        keep: patches that the image graph keeps; None takes the bundle's default.
        precision: of the image graph, of `PRECISIONS`; the text graph is fp32.
        pixels: what the image graph reads: "float32", normalised, (batch, 3, height, width); or "uint8", RGB, (batch, height, width, 3),
            normalised inside.
    """

    layout: str
    keep: Keep | None = None
    precision: str = "fp32"
    pixels: str = "float32"

    def __post_init__(self) -> None:
        check_value("layout", self.layout, choices=LAYOUTS)
        check_value("precision of a layout", self.precision, choices=PRECISIONS)
        check_value("pixels", self.pixels, choices=PIXELS)
        if self.pixels not in _PIXELS_OF[self.layout]:
            others = ", ".join(name for name, known in _PIXELS_OF.items() if self.pixels in known)
            raise ConfigError(
                f"pixels = {self.pixels!r}, but software that reads layout {self.layout} gives {_PIXELS_OF[self.layout][0]}; "
                f"leave it out, or take layout {others}"
            )


@dataclass(frozen=True, slots=True)
class Contents:
    """What a layout is made of: the bundle's manifest, its tokenizer file where it has one, and the options."""

    manifest: Manifest
    tokenizer: TokenizerFile | None
    options: LayoutOptions

    def image(self, file: str, reads: str, gives: str) -> GraphSpec:
        """The image graph, with a layout's names for its file, its input and its output."""
        height, width = self.manifest.preprocess.size
        shape = (BATCH, height, width, 3) if self.options.pixels == "uint8" else (BATCH, 3, height, width)
        return GraphSpec(file, (TensorSpec(reads, self.options.pixels, shape),), (self._embedding(gives),))

    def text(self, file: str, tokens: TensorSpec, gives: str) -> GraphSpec:
        """The text graph, with a layout's names for its file and its output, and what it reads."""
        return GraphSpec(file, (tokens,), (self._embedding(gives),))

    def needed_tokenizer(self) -> TokenizerFile:
        """The tokenizer; raises ConfigError where the bundle's text side has no tokenizer file."""
        if self.tokenizer is None:
            raise ConfigError(
                f"layout = {self.options.layout!r} needs a tokenizer file, and the tokenizer of {self.manifest.model.name} could not be written as "
                "one; take layout triton, which reads token ids"
            )
        return self.tokenizer

    def square_side(self) -> int:
        """The side of the square images, in pixels, that a layout's resize and crop lead to.

        Raises:
            ConfigError: images are padded, or not square, which the settings of the layout have no words for.
        """
        spec, layout = self.manifest.preprocess, self.options.layout
        height, width = spec.size
        if spec.resize_mode == "longest" or height != width:
            found = f"resize_mode {spec.resize_mode!r} to {height} x {width}"
            raise ConfigError(f"layout {layout} cannot express {found}, but only 'shortest' and 'squash' to a square; take layout triton")
        return height

    def crop_notes(self) -> tuple[str, ...]:
        """A note where the crop of a layout can be a pixel off."""
        spec = self.manifest.preprocess
        return (_ROUNDED_CROP,) if spec.resize_mode == "shortest" and spec.crop_rounding == "nearest" else ()

    def _embedding(self, name: str) -> TensorSpec:
        return TensorSpec(name, "float32", (BATCH, self.manifest.model.embed_dim))


@dataclass(frozen=True, slots=True)
class Plan:
    """The folder of a layout.

    Attributes:
        image: the image graph.
        text: the text graph; None without a text side.
        files: name -> content of every other file: text, or a value for JSON.
        pad_id: the token id that fills up shorter prompts; of no effect without a text side.
        notes: what a user of the folder should know, in sentences.
    """

    image: GraphSpec
    text: GraphSpec | None
    files: Mapping[str, Any] = field(default_factory=dict)
    pad_id: int = 0
    notes: tuple[str, ...] = ()
