import os
import signal

import pytest

from benchmarks.worker import Worker, WorkerError

GENERATOR = "benchmarks.load:Generator"


def test_what_fails_in_a_worker_is_told_with_its_traceback_and_leaves_no_process():
    with Worker(GENERATOR) as worker:
        pid = worker.pid
        with pytest.raises(WorkerError, match="AttributeError"):
            worker.call("nothing")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_dies_is_an_error_and_not_a_wait():
    with Worker(GENERATOR) as worker:
        worker.begin("run")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError):
            worker.result(timeout_s=10)


def test_a_worker_that_takes_too_long_is_ended():
    with Worker("benchmarks.ceiling:Responder", 0, 1) as worker:
        worker.begin("serve", 30)
        with pytest.raises(WorkerError, match=r"within 0\.1 s"):
            worker.result(timeout_s=0.1)


def test_a_factory_that_fails_is_told():
    with pytest.raises(WorkerError, match="no_such_module"), Worker("benchmarks.no_such_module:X"):
        pass
