"""Image search by text with a bundle alone: no PyTorch is loaded.

python examples/search.py BUNDLE "a photo of a dog." PHOTO...
"""

import sys

from prtool import Encoder


def main(bundle: str, prompt: str, photos: list[str]) -> None:
    """Prints the photographs, those nearest to the prompt first."""
    with Encoder.load(bundle) as encoder:
        similarity = encoder.encode_images(photos) @ encoder.encode_text([prompt])[0]
    for score, photo in sorted(zip(similarity, photos, strict=True), reverse=True):
        print(f"{score:.3f}  {photo}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
