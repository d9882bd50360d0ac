"""Few-shot parts of a training set, drawn as CoOp draws them."""

import random
from collections import defaultdict

from prtool.errors import ConfigError, DataError
from prtool.trainer.data.images import ImageSet

SHOTS = (1, 2, 4, 8, 16)
"""Images a class in the paper's and CoOp's experiments; any other number works too."""


def few_shot(images: ImageSet, shots: int, seed: int) -> ImageSet:
    """`shots` images of each class, kept in order.

    Classes are taken in the order of their first image, and each gives `random.sample` of one generator seeded by
    `seed`: for a training part in the order of CoOp's split file, these are the images that CoOp draws with the same
    seed. Where CoOp repeats images of a class that has too few, this is an error.

    Args:
        images: the training part.
        shots: images a class; 0 takes the whole set.
        seed: another seed draws other images.

    Raises:
        ConfigError: `shots` is below 0.
        DataError: an image has no label, or a class has fewer than `shots` images, or none.
    """
    if shots < 0:
        raise ConfigError(f"shots = {shots}, but it must be 0 (all images) or more; usual are {', '.join(map(str, SHOTS))}")
    if shots == 0:
        return images
    images.require_labels("few-shot sampling (tokens.shots; 0 takes all images and needs none)")
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(images.labels):
        by_label[label].append(index)
    _check(images, by_label, shots)
    generator = random.Random(seed)
    return images.subset(sorted(index for found in by_label.values() for index in generator.sample(found, shots)))


def _check(images: ImageSet, by_label: dict[int, list[int]], shots: int) -> None:
    counts = {label: len(by_label[label]) if label in by_label else 0 for label in range(len(images.classnames))}
    label = min(counts, key=lambda item: counts[item])
    fewest, name, where = counts[label], images.classnames[label], images.origin or images.root
    if fewest == 0:
        empty = sum(count == 0 for count in counts.values())
        raise DataError(
            f"class {name!r} has no image in {where}, and so have {empty - 1} others of {len(counts)}; every class needs {shots} for {shots} shots"
        )
    if fewest < shots:
        few = sum(count < shots for count in counts.values())
        raise DataError(
            f"class {name!r} has {fewest} training images in {where}, but {shots} a class were asked for "
            f"({few} of {len(counts)} classes have fewer); at most {fewest} shots are possible"
        )
