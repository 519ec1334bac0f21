"""How the peers' samples become batches: the least that their users have to do.

Images are decoded twice over: as each peer's documentation says (`sample["image"]` is what its own decoding gives),
and, as a contender of its own, by the decoder that Shardline has (`decoder: "ours"` in the job).
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.parts.works import Work
from storage.images import decode_image

Sample = dict[str, Any]
IMAGE = (224, 224, 3)  # height, width, channels of decoded images


def token_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """Tokens uint16 [n, 2048], stacked by NumPy (faster than torch.stack of single tensors)."""
    return {"tokens": torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))}


def row_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """Rows float32 [n, 100] and labels int64 [n]."""
    return {"x": torch.from_numpy(np.stack([sample["x"] for sample in samples])), "label": _labels(samples)}


def blob_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """The blobs as they come, in a list (nothing is copied together), and labels int64 [n]."""
    return {"blob": [sample["blob"] for sample in samples], "label": _labels(samples)}


def image_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """Images uint8 [n, 224, 224, 3] of Pillow's images, which it decodes whole, converts and resizes, as the peers'
    documentations have it, and labels int64 [n]. Bilinear, as torchvision's `Resize` is (Pillow's own default, bicubic,
    takes longer)."""
    from PIL import Image

    images = np.empty((len(samples), *IMAGE), np.uint8)
    for place, sample in enumerate(samples):
        small = sample["image"].convert("RGB").resize(IMAGE[1::-1], Image.Resampling.BILINEAR)
        images[place] = np.asarray(small)
    return {"image": torch.from_numpy(images), "label": _labels(samples)}


def opened_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """`image_batch` of files, opened by Pillow."""
    from PIL import Image

    return image_batch([{**sample, "image": Image.open(io.BytesIO(sample["blob"]))} for sample in samples])


def decoded_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """Images uint8 [n, 224, 224, 3], decoded into the batch by Shardline's decoder, and labels int64 [n]."""
    images = np.empty((len(samples), *IMAGE), np.uint8)
    for place, sample in enumerate(samples):
        decode_image(sample["blob"], images[place])
    return {"image": torch.from_numpy(images), "label": _labels(samples)}


def _labels(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)


COLLATE = {"tokens": token_batch, "rows": row_batch, "blobs": blob_batch, "jpegs": opened_batch}


def collate(work: Work) -> Callable[[Sequence[Sample]], dict[str, Any]]:
    """What makes batches of the work's samples."""
    return decoded_batch if has_our_decoder(work) else COLLATE[work.name]


def has_our_decoder(work: Work) -> bool:
    """Whether this contender was given Shardline's decoder in place of what its documentation says."""
    return work.job.get("decoder") == "ours"
