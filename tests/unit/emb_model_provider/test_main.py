import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import os, signal, sys, time, types
from emb_model_provider.main import main

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    return 5

signal.signal(signal.SIGINT, {before})
sys.modules["supervisor.cli"] = types.SimpleNamespace(main=interrupted)
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("before", "code"),
    [("signal.default_int_handler", -signal.SIGINT), ("signal.SIG_IGN", 5)],
    ids=["usual", "ignored"],
)
def test_ctrl_c_before_anything_has_been_made_ends_without_a_traceback(before, code):
    command = [sys.executable, "-c", _PROGRAM.format(before=before)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, "")
