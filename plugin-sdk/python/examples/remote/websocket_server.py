"""A remote plugin over WebSocket: ``{id, method, params}`` in, ``{id, result}`` or
``{id, error}`` out.

    pip install websockets
    python websocket_server.py 8082
"""

import json
import sys

import service
from websockets.sync.server import serve


def check(connection, request):
    """Refuses a connection that is not signed."""
    if not service.signed(request.headers.get):
        return connection.respond(401, "the signature is missing or wrong\n")
    return None


def talk(socket):
    """One connection."""
    for message in socket:
        frame = json.loads(message)
        method = frame["method"].replace("_", "-")
        try:
            result = (
                service.OFFER if method == "describe" else service.answer(method, frame["params"])
            )
            reply = {"id": frame.get("id"), "result": result}
        except Exception as error:
            told = {"type": type(error).__name__, "message": str(error)}
            reply = {"id": frame.get("id"), "error": told}
        # What has no id wants no answer.
        if "id" in frame:
            socket.send(json.dumps(reply))


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8082
    with serve(talk, "127.0.0.1", port, process_request=check) as server:
        server.serve_forever()
