"""A shard whose thread has failed ends as a process, with its reason in the log."""

import subprocess
import sys


def test_a_thread_that_fails_ends_the_process_with_a_code_of_its_own_and_a_traceback():
    program = """
import threading
from emb_model_provider.logs import configure_child_logs
from shard import main
from shard.batching.lane import Lane

configure_child_logs("shard", "INFO", "plain")
threading.excepthook = main._end_process

def fail():
    raise RuntimeError("device-side assert")

Lane().begin(fail)
threading.Event().wait(20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 70
    assert "thread_failed thread=lane" in done.stderr
    assert "RuntimeError: device-side assert" in done.stderr
