"""How the peers' samples become batches: the least that their users have to do. PyTorch and the shared decoder only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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


def decoded_batch(samples: Sequence[Sample]) -> dict[str, Any]:
    """Images uint8 [n, 224, 224, 3], decoded into the batch, and labels int64 [n]."""
    images = np.empty((len(samples), *IMAGE), np.uint8)
    for place, sample in enumerate(samples):
        decode(sample["blob"], images[place])
    return {"image": torch.from_numpy(images), "label": _labels(samples)}


def decode(jpeg: Any, out: Any) -> None:
    """The fastest that simplejpeg and Pillow offer, and what Shardline does as well: scaled down while it is decoded,
    to the smallest size that is not below `out`'s, then resized."""
    import simplejpeg
    from PIL import Image

    height, width, _ = out.shape
    pixels = simplejpeg.decode_jpeg(jpeg, min_height=height, min_width=width)
    out[...] = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _labels(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)


COLLATE = {"tokens": token_batch, "rows": row_batch, "blobs": blob_batch, "jpegs": decoded_batch}
