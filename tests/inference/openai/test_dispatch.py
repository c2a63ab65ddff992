"""What runs beside the caller comes to a clean end."""

import asyncio
import gc
import warnings

import anyio

from axolotl_sdft.inference.openai.servers import cancel_all


def test_a_connection_that_was_just_begun_is_cancelled_without_a_trace():
    ended = []

    async def connect():
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("inner")

    async def request():
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(connect)
        finally:
            ended.append("outer")

    async def session():
        asking = asyncio.create_task(request())
        await asyncio.sleep(0)  # its own task for the connection is made now, and has not taken a step
        await cancel_all(asyncio.all_tasks() - {asyncio.current_task()})
        assert asking.cancelled()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(session())
        gc.collect()
    assert ended == ["inner", "outer"]
    assert [str(warning.message) for warning in told if "never awaited" in str(warning.message)] == []


def test_a_task_that_shrugs_a_cancellation_off_is_told_again():
    async def stubborn():
        for _ in range(2):
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(600)

    async def session():
        task = asyncio.create_task(stubborn())
        await cancel_all([task])
        assert task.cancelled()

    asyncio.run(session())
