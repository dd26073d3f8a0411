import asyncio

import pytest

from emb_model_provider.errors import DeadlineError
from router.time_limit import TimeLimit


@pytest.mark.parametrize("limits_s", [(), (None, 0), (60.0,)])
async def test_a_timeout_that_is_not_of_this_limit_stays_what_it_is(limits_s):
    with pytest.raises(TimeoutError, match="of something else"):
        async with TimeLimit(1, *limits_s):
            raise TimeoutError("of something else")


@pytest.mark.parametrize(("inputs", "advice"), [(1, "Ask again"), (2, "Send fewer inputs at once, or ask again")])
async def test_the_shortest_limit_ends_what_runs_and_fewer_inputs_are_advised_where_there_are_several(inputs, advice):
    async def run() -> None:
        async with TimeLimit(inputs, 60, None, 0, 0.001) as deadline_s:
            assert deadline_s is not None
            assert deadline_s <= asyncio.get_running_loop().time() + 0.001
            await asyncio.sleep(5)

    with pytest.raises(DeadlineError, match=rf"within 0\.001 s, so this request was taken back\. {advice}"):
        await run()
