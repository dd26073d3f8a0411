"""What a router hears of its supervisor, and when no more."""

import asyncio

from router.main import _on_loop


def test_what_the_supervisor_says_when_the_loop_has_ended_is_no_error():
    loop, heard = asyncio.new_event_loop(), []
    hear = _on_loop(loop, heard.append)
    hear("a table")
    loop.run_until_complete(asyncio.sleep(0))
    assert heard == ["a table"]
    loop.close()
    hear("another")
    assert heard == ["a table"]
