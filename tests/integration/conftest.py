import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """Both ends of the link run on uvloop in production; the standard loop is what their types promise."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
