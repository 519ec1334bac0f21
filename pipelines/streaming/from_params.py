"""What a stream is told by the parameters of a recipe."""

from dataclasses import replace

from pipelines.params.data import Stream as Settings
from pipelines.streaming.options import Batching, Mixing, Parts, Text
from pipelines.streaming.order import Ordering
from storage.manifest import Manifest


def parts_of_train(settings: Settings, manifest: Manifest) -> Parts:
    """The order and the batches of a training. Only whole documents are sorted by length, and `seq_len` is of tokens
    alone: other data knows neither."""
    return Parts(
        order=Ordering(
            lanes=settings.lanes,
            window=settings.window,
            first_window=settings.first_window,
            keep_lanes=settings.keep_lanes,
        ),
        batching=Batching(
            batch_ramp=settings.batch_ramp,
            bucket_batches=settings.bucket_batches if settings.samples == "documents" else 1,
        ),
        text=Text(
            seq_len=settings.seq_len if manifest.header["kind"] == "tokens" else None,
            samples=settings.samples,
            document_mask=settings.document_mask,
            pad_multiple=settings.pad_multiple,
        ),
        mixing=Mixing(mixture=settings.mixture),
    )


def parts_of_val(settings: Settings, manifest: Manifest, domain: str | None = None) -> Parts:
    """The stored order, of one domain only where it is named."""
    train = parts_of_train(settings, manifest)
    return train | Parts(
        order=replace(train["order"], shuffle=False),
        batching=replace(train["batching"], batch_ramp=None),
        mixing=Mixing(domain=domain),
    )
