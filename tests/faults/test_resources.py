"""Case 45 of the list of faults, in short: restarts under load, and nothing grows. ``make soak`` is the long form."""

from __future__ import annotations

import pytest

from tests.chaos.soak import judge, soak
from tests.chaos.watch import growth


@pytest.mark.timeout(200)
def test_case_45_restarts_under_load_leave_memory_descriptors_and_threads_as_they_were(tmp_path):
    ledger, watch, exit_code = soak(minutes=0.5, every_s=4.0, directory=tmp_path)
    assert ledger.is_clean(), ledger.notes
    assert ledger.blamed == 0, ledger.notes
    assert ledger.answered > 200
    assert exit_code == 0
    restarts = len([1 for role, _ in watch.samples if role in ("shard", "router")]) - 3
    assert restarts >= 4, "too little happened for this to show anything"
    assert judge(watch)[1] == []
    supervisor = watch.longest("supervisor")
    assert growth(supervisor, "files") <= 3
    assert growth(supervisor, "threads") <= 1
    assert growth(supervisor, "resident_mb") < 4
