"""4,096 JPEG files of about 100 KB and 500 × 375 pixels, decoded to batches of 64 images of 224 × 224 × 3 uint8 (and a
label), shuffled, warm and local.

The peers decode as their documentations say: by Pillow, Grain by OpenCV, SPDL by FFmpeg where its libraries are
installed. Beside them stand the same peers with Shardline's decoder in place of that, which no documentation says: what
is left between them and Shardline then is the loader alone. The limit is that decoder in one thread, times the cores.
"""

from ctypes.util import find_library

from benchmarks.outcome import Outcome
from benchmarks.race import race
from benchmarks.rounds import PEERS, Entrant
from benchmarks.setting import Setting
from pipelines.runtime.cores import cores


def ask(setting: Setting) -> Outcome:
    peers = [Entrant(peer.name, peer.module, workers=peer.workers, check=False) for peer in PEERS]
    if all(find_library(name) for name in ("avcodec", "avformat", "avfilter", "avdevice", "swscale")):
        peers.append(Entrant("SPDL", "with_spdl", "own", (2, 4), check=False))
    given = [
        Entrant(f"{peer.name}, our decoder", peer.module, workers=(0, 2), job={"decoder": "ours"}) for peer in PEERS
    ]
    given.append(Entrant("SPDL, our decoder", "with_spdl", "simplejpeg", (2, 4)))
    return race(
        "stream-jpeg", "jpegs", setting,
        limit="decode", limit_threads=cores(), limit_wanted=0.85, wanted={"the best peer": 1.3},
        peers=peers, beside={"peers_given_our_decoder": given},
    )  # fmt: skip
