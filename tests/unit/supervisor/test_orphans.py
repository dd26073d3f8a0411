"""Who is left to the first process of a container is buried by it."""

import subprocess
import sys
import textwrap

CODE = """
import os, time
from supervisor.orphans import Orphans

def dead():
    pid = os.fork()
    if not pid:
        os._exit(3)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
    return pid

orphans = Orphans()
orphans.look()
first, second = dead(), dead()
orphans.look()
assert os.path.exists(f"/proc/{first}") and os.path.exists(f"/proc/{second}"), "who waits for it may do so"
orphans.look()
orphans.look()
assert not os.path.exists(f"/proc/{first}") and not os.path.exists(f"/proc/{second}")
orphans.look()
"""


def test_who_is_dead_at_two_looks_is_buried_and_nobody_before():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
