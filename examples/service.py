"""A service's core: one encoder for all threads, the keep rate chosen for each request.

python examples/service.py BUNDLE PHOTO...
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prtool import Encoder


def main(bundle: str, photos: list[str]) -> None:
    """Encodes every photograph with the most patches that the bundle allows and with its default, and prints how near the two are."""
    with Encoder.load(bundle) as encoder, ThreadPoolExecutor(4) as pool:
        most, default = encoder.manifest.keep_range[1], encoder.manifest.default_keep
        careful = list(pool.map(lambda photo: encoder.encode_images([photo], keep=most)[0], photos))
        usual = list(pool.map(lambda photo: encoder.encode_images([photo], keep=None)[0], photos))
    for photo, a, b in zip(photos, careful, usual, strict=True):
        print(f"{photo}: cosine between {most} and {default} patches is {float(np.dot(a, b)):.4f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
