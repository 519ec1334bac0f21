"""A training loop in JAX over a Shardline stream: batches are NumPy arrays, which JAX takes by DLPack without a copy.

    .venv-peers/bin/python -m benchmarks.examples.with_jax

Logistic regression on samples of two classes that a plane separates. Its state, with the stream's, is saved half-way,
and the run goes on from there: the second half is the same, to the bit. Raises AssertionError where that doesn't hold.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pipelines.streaming import Stream
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples

FEATURES, STEPS = 16, 200


def make_shards(zone: Zone) -> Manifest:
    """4 shards of 1,024 samples: x float32 [16], and label 1 where x lies above a plane."""
    rng, records = np.random.default_rng(0), []
    plane = rng.normal(size=FEATURES)
    for shard in range(4):
        x = rng.normal(size=(1024, FEATURES)).astype(np.float32)
        columns: dict[str, Any] = {"x": x, "label": (x @ plane > 0).astype(np.int64)}
        stored = zone.publish(encode_samples(columns, [f"{shard}-{row}" for row in range(len(x))]), ".arrow")
        records.append({**vars(stored), "rows": len(x), "key": "", "split": "train", "tokens": 0, "stats": None})
    inputs = {"x": {"dtype": "float32", "shape": [FEATURES]}}
    spec = {"inputs": inputs, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


def train(weights: jax.Array, x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of gradient descent: the new weights, and the loss before it."""

    def loss(weights: jax.Array) -> jax.Array:
        logits = x @ weights
        return jnp.mean(jnp.logaddexp(0, logits) - label * logits)

    value, gradient = jax.value_and_grad(loss)(weights)
    return weights - 0.5 * gradient, value


compiled = jax.jit(train)


def run(stream: Stream, weights: jax.Array, steps: int) -> tuple[jax.Array, list[float]]:
    """`steps` steps: the weights after them, and the losses."""
    losses = []
    for _ in range(steps):
        batch: dict[str, Any] = next(stream)
        x, label = (jnp.from_dlpack(batch[name]) for name in ("x", "label"))
        weights, loss = compiled(weights, x, label)
        losses.append(float(loss))
    return weights, losses


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        zone = Zone(Path(folder))
        manifest = make_shards(zone)
        settings: dict[str, Any] = {"split": "train", "batch_size": 64, "seed": 1}
        with Stream(zone, manifest, **settings) as stream:
            weights, first = run(stream, jnp.zeros(FEATURES), STEPS // 2)
            saved = stream.state_dict(), np.asarray(weights)
            _, second = run(stream, weights, STEPS // 2)
        with Stream(zone, manifest, **settings) as stream:
            stream.load_state_dict(saved[0])
            _, again = run(stream, jnp.asarray(saved[1]), STEPS // 2)
    print(f"loss {first[0]:.3f} → {second[-1]:.3f} in {STEPS} steps; resumed at {STEPS // 2}: {again[-1]:.3f}")
    assert second[-1] < 0.3 * first[0]
    assert again == second


if __name__ == "__main__":
    main()
