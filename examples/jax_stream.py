"""Softmax regression in JAX on a stream: `python examples/jax_stream.py FOLDER` (a shards zone with `x` and `label`).

Shardline doesn't depend on JAX: install it beside. Batches reach JAX by DLPack, on the CPU without a copy.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from pipelines.streaming import Stream
from storage.lake import Zone


def loss(params, x, y):  # type: ignore[no-untyped-def]
    logits = x @ params["w"] + params["b"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()


@jax.jit
def step(params, x, y):  # type: ignore[no-untyped-def]
    x = x.reshape(len(x), -1).astype(jnp.float32) / 16
    value, gradient = jax.value_and_grad(loss)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), value


def train(folder: Path, epochs: int = 5, batch_size: int = 32) -> list[float]:
    """The mean loss of each epoch."""
    zone = Zone(folder)
    manifest = zone.manifest()
    spec = manifest.header["spec"]
    features = 1
    for length in spec["inputs"]["x"]["shape"]:
        features *= length
    classes = len(spec["classes"])
    params = {"w": jnp.zeros((features, classes)), "b": jnp.zeros(classes)}
    losses: list[list[float]] = [[] for _ in range(epochs)]
    with Stream(zone, manifest, split="train", batch_size=batch_size, seed=1, epochs=epochs, last="drop") as stream:
        for batch in stream:
            x, y = (jax.dlpack.from_dlpack(batch[name]) for name in ("x", "label"))
            params, value = step(params, x, y)
            losses[batch.epoch].append(float(value))  # waits for the step, which reads the batch's memory
    return [sum(part) / len(part) for part in losses]


if __name__ == "__main__":
    for epoch, value in enumerate(train(Path(sys.argv[1]))):
        print(f"epoch {epoch}  loss {value:.4f}")
