"""Shards: datasets in the form that training reads. See `storage.shards.schema` for the format."""

from storage.shards.blobs import Blobs
from storage.shards.reader import Shard
from storage.shards.schema import SUFFIX, Column
from storage.shards.writer import encode_samples, encode_tokens

__all__ = ["SUFFIX", "Blobs", "Column", "Shard", "encode_samples", "encode_tokens"]
