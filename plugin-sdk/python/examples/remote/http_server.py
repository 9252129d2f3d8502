"""A remote plugin over HTTP, with nothing but the standard library.

python http_server.py 8081
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import service


class Handler(BaseHTTPRequestHandler):
    """``GET /describe``; ``POST /run-tool``, ``/evaluate-condition``, …"""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Says what there is."""
        if self.path == "/describe":
            self.reply(200, service.OFFER)
        else:
            self.reply(404, {"error": "not found"})

    def do_POST(self):
        """Answers a request."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not service.signed(self.headers.get, body):
            self.reply(401, {"error": "the signature is missing or wrong"})
            return
        try:
            self.reply(200, service.answer(self.path.strip("/"), json.loads(body)))
        except Exception as error:
            self.reply(200, {"error": str(error), "error_type": type(error).__name__})

    def reply(self, status, value):
        """Sends JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8081
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
