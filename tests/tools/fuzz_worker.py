"""A worker of the fuzzer that answers, dies or hangs as the number it is sent says."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time

for line in sys.stdin:
    seed = int(line)
    if seed == 1:
        os.kill(os.getpid(), signal.SIGFPE)
    elif seed == 2:
        time.sleep(60)
    elif seed == 3:
        resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
        while True:
            pass
    print(json.dumps({"seed": seed, "outcome": "ran"}), flush=True)
