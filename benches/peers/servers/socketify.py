"""Text rooms on uWebSockets through PyPI's socketify: python socketify.py PORT"""

import sys

# This file has the library's name, and its directory would be searched first.
del sys.path[0]
from socketify import App, CompressOptions  # noqa: E402


def upgrade(response, request, context):
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        {"room": request.get_query("room")},
    )


def joined(ws):
    room = ws.get_user_data()["room"]
    if room:
        ws.subscribe(room)


def publish(ws, message, opcode):
    ws.publish(ws.get_user_data()["room"], message, opcode)


app = App()
app.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 64 * 1024,
        "max_backpressure": 4 * 1024 * 1024,
        "idle_timeout": 120,
        "upgrade": upgrade,
        "open": joined,
        "message": publish,
    },
)
app.listen({"port": int(sys.argv[1]), "host": "127.0.0.1"}, lambda config: None)
app.run()
