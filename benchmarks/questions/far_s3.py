"""cold-s3 as it is with a store that is far away: each answer comes 30 ms late, and a connection gives 60 MB/s at most.

Of S3, Amazon names 85 to 90 MB/s a connection and 100 to 200 ms to the first byte. A proxy on this machine makes the
server such a one for everybody, and takes its share of the processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.outcome import Outcome
from benchmarks.parts.pace import slowed
from benchmarks.parts.servers import Env, s3
from benchmarks.questions.cold_s3 import measure
from benchmarks.setting import Setting

RATE = 60e6  # bytes/s of a connection
DELAY = 0.03  # seconds


def ask(setting: Setting) -> Outcome:
    return measure("far-s3", setting, _far)


@contextmanager
def _far(setting: Setting) -> Iterator[Env]:
    with s3(setting) as env, slowed(env["AWS_ENDPOINT_URL"], RATE, DELAY) as url:
        yield {**env, "AWS_ENDPOINT_URL": url}
