import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from router.heartbeat import beat


async def test_a_loop_that_was_held_up_says_how_late_it_is():
    loop = asyncio.get_running_loop()
    beats = asyncio.Queue()
    pool = ThreadPoolExecutor(1)
    beating = asyncio.create_task(
        beat(
            lambda heartbeat: pool.submit(loop.call_soon_threadsafe, beats.put_nowait, heartbeat),
            lambda: 3,
            lambda: 2,
            0.02,
        )
    )
    first = await beats.get()
    assert (first.requests_in_flight, first.quarantined) == (3, 2)
    time.sleep(0.5)  # noqa: ASYNC251 - the loop is held up
    late = [await beats.get() for _ in range(3)]
    beating.cancel()
    pool.shutdown()
    assert max(heartbeat.lag_s for heartbeat in late) > 0.4
