"""The page on reliability names a test for each of the 47 cases, and the test is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| (\d+) \|.*\| `(test_\w+\.py)` \|$", re.MULTILINE)


@pytest.mark.parametrize("page", ["docs/reliability.md", "docs/zh/reliability.md"])
def test_every_case_has_a_row_and_its_test_exists(page):
    rows = _ROW.findall((ROOT / page).read_text("utf-8"))
    assert [int(number) for number, _ in rows] == list(range(1, 48))
    missing = [
        (number, file)
        for number, file in rows
        if f"test_case_{number}_" not in (ROOT / "tests/faults" / file).read_text("utf-8")
    ]
    assert missing == []
