"""Few-shot parts of a training set, drawn as CoOp draws them."""

import random
from collections import defaultdict

from prtool.errors import ConfigError, DataError
from prtool.trainer.data.images import ImageSet

SHOTS = (1, 2, 4, 8, 16)
"""Images per class in the paper's and CoOp's experiments; any other number works too."""


def few_shot(images: ImageSet, shots: int, seed: int) -> ImageSet:
    """Draws `shots` images of each class and keeps their order.

    Classes are taken in the order of their first image, and each gives `random.sample` of one generator with the seed. On a
    training part in the order of CoOp's split file, these are the images that CoOp draws with the same seed. CoOp repeats
    images of a class that has too few; here that is an error.

    Args:
        images: the training part.
        shots: images per class; 0 takes the whole set.
        seed: seed of the generator.

    Raises:
        ConfigError: `shots` is below 0.
        DataError: an image has no label, or a class has fewer than `shots` images.
    """
    if shots < 0:
        raise ConfigError(f"shots = {shots}, but it must be 0 (all images) or more; usual are {', '.join(map(str, SHOTS))}")
    if shots == 0:
        return images
    images.require_labels("few-shot sampling (tokens.shots; 0 takes all images and needs none)")
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(images.labels):
        by_label[label].append(index)
    counts = [len(by_label.get(label, ())) for label in range(len(images.classnames))]
    fewest = min(counts)
    if fewest < shots:
        raise DataError(
            f"class {images.classnames[counts.index(fewest)]!r} has {fewest} training images in {images.origin or images.root}, but shots = {shots} "
            f"({sum(count < shots for count in counts)} of {len(counts)} classes have fewer); at most {fewest} shots are possible"
        )
    generator = random.Random(seed)
    return images.subset(sorted(index for found in by_label.values() for index in generator.sample(found, shots)))
