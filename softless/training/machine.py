"""What this machine gives a process: cores, threads to compute with, and processes that load
images.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from softless.data.cores import cores

# nothing is written there by us; through which loading processes hand over their batches
SHARED = Path("/dev/shm")  # noqa: S108
MOST_LOADERS = 8
SMALL_SET = 256  # images: fewer are decoded and kept before other processes have started
IN_MEMORY = frozenset({"digits", "npz"})  # sources whose images need no decoding


def ranks_here(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of this run on this machine."""
    count = environment.get("LOCAL_WORLD_SIZE") or environment.get("WORLD_SIZE") or "1"
    return max(int(count), 1) if count.isdecimal() else 1


def threads(environment: Mapping[str, str] = os.environ) -> int:
    """Threads that each process of a run computes with: OMP_NUM_THREADS, or this process's share of
    the cores.

    torchrun sets OMP_NUM_THREADS=1 for several processes where nobody set it: that 1 is nobody's
    wish and is passed over.
    """
    requested, ranks = (
        environment.get("OMP_NUM_THREADS", "").split(",")[0].strip(),
        ranks_here(environment),
    )
    torchruns = requested == "1" and ranks > 1 and "TORCHELASTIC_RUN_ID" in environment
    if requested.isdecimal() and int(requested) > 0 and not torchruns:
        return int(requested)
    return max(cores() // ranks, 1)


def loaders(*, source: str, images: int, batch_bytes: int, on_cpu: bool) -> int:
    """Processes that load images beside each process that trains; the images are the same whatever
    their number.

    None for images that lie in memory, for few images, and where shared memory has no room for
    batches. On a CPU a quarter of the cores, so none on two or three: there they would take turns
    with the training itself. Beside a GPU all cores but one.

    Args:
        source: the recipe's `data.source`.
        images: of the training split.
        batch_bytes: of one batch of this process.
        on_cpu: whether training itself needs the cores.
    """
    if source in IN_MEMORY or images < SMALL_SET:
        return 0
    mine = cores() // ranks_here()
    wished = min(mine // 4 if on_cpu else mine - 1, MOST_LOADERS)
    if SHARED.is_dir():  # 64 MB in many containers; two batches a process wait there
        wished = min(
            wished, shutil.disk_usage(SHARED).free // 2 // ranks_here() // max(2 * batch_bytes, 1)
        )
    return max(wished, 0)
