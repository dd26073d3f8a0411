"""Tests here take a ``device``: the CPU, so that they are known to work, and a card where there is one.

Those of what only a card has are skipped without one.
"""

import pytest

from tests.support.cards import NO_CARD


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=NO_CARD)])
def device(request):
    return request.param
