"""Several processes that come to the same error: one of them says it."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta

WAIT = 1.0  # seconds before a silent process ends: a launcher kills the others then, and one may be about to speak


def first_to_say(text: str, *, unless_any: bool = False) -> bool:
    """Whether no other process of this run has said `text`, or with `unless_any` anything at all, by this function.

    The store is the one at which the processes meet. True as well where it cannot be reached: what is said twice is
    better than what is never said.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]  # as its page has it

    said = f"limbeck/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/"
    try:
        where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(where, port, is_master=False, timeout=timedelta(seconds=5))
        first = store.add(said + hashlib.sha256(text.encode()).hexdigest(), 1) == 1
        first = first and (store.add(said + "any", 1) == 1 or not unless_any)
    except (KeyError, ValueError, RuntimeError):
        return True
    if not first:
        time.sleep(WAIT)
    return first
