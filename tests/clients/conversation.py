"""Two clients of Python's websockets talk in a room.

usage: conversation.py URL offer|plain EXTENSION|none [CA]
"""

import asyncio
import json
import ssl
import sys

from websockets.asyncio.client import connect

URL, OFFER, EXTENSION, *CA = sys.argv[1:]
# Shorter than what is compressed, longer, and longer than a TLS record.
SIZES = [1, 400, 5_000, 30_000]


async def expect(socket, kind):
    while True:
        event = json.loads(await socket.recv())
        if event["type"] == kind:
            return event


async def enter():
    options = {"compression": "deflate" if OFFER == "offer" else None}
    if CA:
        options["ssl"] = ssl.create_default_context(cafile=CA[0])
    socket = await connect(URL, **options)
    names = [extension.name for extension in socket.protocol.extensions]
    assert names == ([] if EXTENSION == "none" else [EXTENSION]), names
    await expect(socket, "connection_established")
    await socket.send(json.dumps({"type": "join_room", "roomId": "table"}))
    await expect(socket, "room_joined")
    return socket


async def main():
    ann, bob = await enter(), await enter()
    for speaker, listener in [(ann, bob), (bob, ann)]:
        for size in SIZES:
            data = "ünï " * (size // 4 + 1)
            message = {"type": "room_message", "roomId": "table", "data": data}
            await speaker.send(json.dumps(message, ensure_ascii=False))
            assert (await expect(listener, "room_message"))["data"] == data
    await (await ann.ping())
    await ann.close(1000, "bye")
    assert ann.close_code == 1000, ann.close_code
    await bob.close()
    print("done")


asyncio.run(asyncio.wait_for(main(), 15))
