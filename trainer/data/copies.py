"""Randomly cropped and mirrored copies of training images, the same ones for every seed: what a teacher makes of them is computed once."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

_ASPECT = math.log(4 / 3)
"""Of the largest ratio of a crop's sides."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Numbers the copies of a set of images: item i is image i % images, as it is where i < images.

    Attributes:
        images: how many there are.
        copies: cropped and mirrored ones of each, besides itself.
        least_area: share of an image that a crop shows at least.
    """

    images: int
    copies: int
    least_area: float

    def __len__(self) -> int:
        return self.images * (1 + self.copies)

    def image(self, item: int) -> int:
        """The index of an item's image."""
        return item % self.images

    def view(self, image: Image.Image, item: int) -> Image.Image:
        """The image as an item shows it: a crop of random area, aspect ratio and place, mirrored every second time."""
        if item < self.images:
            return image
        draw = np.random.default_rng(item)
        area = draw.uniform(self.least_area, 1.0) * image.width * image.height
        aspect = math.exp(draw.uniform(-_ASPECT, _ASPECT))
        width = min(image.width, max(1, round(math.sqrt(area * aspect))))
        height = min(image.height, max(1, round(math.sqrt(area / aspect))))
        left, top = (int(draw.integers(0, whole - part + 1)) for whole, part in ((image.width, width), (image.height, height)))
        cropped = image.crop((left, top, left + width, top + height))
        return ImageOps.mirror(cropped) if draw.random() < 0.5 else cropped
