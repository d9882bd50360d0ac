"""A service's core: one encoder for all threads, the keep rate chosen for each request.

python examples/service.py BUNDLE PHOTO...
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prtool import Encoder


def main(bundle: str, photos: list[str]) -> None:
    """Encodes every photograph twice at once, whole and at the bundle's default keep, and prints how near the two embeddings are."""
    with Encoder.load(bundle) as encoder, ThreadPoolExecutor(4) as pool:
        whole = list(pool.map(lambda photo: encoder.encode_images([photo], keep=1.0)[0], photos))
        pruned = list(pool.map(lambda photo: encoder.encode_images([photo], keep=None)[0], photos))
        default = encoder.manifest.default_keep
    for photo, a, b in zip(photos, whole, pruned, strict=True):
        print(f"{photo}: cosine between every patch and {default} patches is {float(np.dot(a, b)):.4f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
