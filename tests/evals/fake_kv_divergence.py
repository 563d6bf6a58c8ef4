"""Stands in for llama-kv-divergence: prints the lines of a file beside it, then ends, crashes or hangs.

``script`` holds what it prints; a line ``!exit N``, ``!kill`` or ``!hang`` is done, a line ``!log TEXT`` goes
to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

for line in Path(__file__).with_name("script").read_text().splitlines():
    word, _, rest = line.partition(" ")
    if word == "!exit":
        sys.exit(int(rest))
    elif word == "!kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "!hang":
        time.sleep(600)
    elif word == "!log":
        print(rest, file=sys.stderr, flush=True)
    else:
        print(line, flush=True)
