"""How much memory this process had at most."""
import re
import resource
import sys
from pathlib import Path


def peak():
    "In bytes. On Linux `ru_maxrss` would begin with that of the process which started this one."
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)
