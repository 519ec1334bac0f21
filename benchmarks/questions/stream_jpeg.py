"""4,096 JPEG files of about 100 KB and 500 × 375 pixels, decoded to batches of 64 images of 224 × 224 × 3 uint8 (and a
label), shuffled, warm and local.

Everybody scales down while decoding and resizes what remains, by simplejpeg and Pillow; SPDL also by its own decoder,
where the FFmpeg libraries that it needs are installed. The limit is that decoder alone in one thread, times the cores.
"""

from ctypes.util import find_library

from benchmarks.outcome import Outcome
from benchmarks.questions.race import race
from benchmarks.rounds import PEERS, Entrant
from benchmarks.setting import Setting
from pipelines.streaming.decode import cores


def ask(setting: Setting) -> Outcome:
    peers = [*PEERS, Entrant("SPDL, simplejpeg", "with_spdl", "simplejpeg", (2, 4))]
    if all(find_library(name) for name in ("avcodec", "avformat", "avfilter", "avdevice", "swscale")):
        peers.append(Entrant("SPDL, FFmpeg", "with_spdl", "own", (2, 4), check=False))
    wanted = {"the best peer": 1.3}
    return race(
        "stream-jpeg", "jpegs", setting,
        limit="decode", limit_threads=cores(), wanted=wanted, limit_wanted=0.85, peers=peers,
    )  # fmt: skip
