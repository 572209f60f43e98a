"""An HTTP proxy before the SQS server of the tests: what networks and services do to a client, done on purpose."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Raw(NamedTuple):
    """An answer that is sent as it is."""

    status: int
    content: bytes
    headers: dict[str, str]


class Cut(Exception):
    """Raised by a rule: the connection ends without an answer."""


class Request:
    """One request on its way. `number` counts from 1; `content` is its JSON; `operation` is SendMessageBatch, say."""

    def __init__(self, number, headers, body, upstream):
        self.number = number
        self.headers = headers
        self.content = json.loads(body)
        self.operation = headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.size = len(self.content.get("Entries", ()))
        self._upstream = upstream

    @property
    def bodies(self):
        return [json.loads(entry["MessageBody"]) for entry in self.content["Entries"]]

    def forward(self):
        """(status, JSON) as the server answers."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            body = json.dumps(self.content).encode()
            dropped = ("content-length", "connection", "transfer-encoding", "expect", "host")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            connection.request("POST", "/", body, {**headers, "Host": self._upstream})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def forward_all_but(self, refused, code="InternalError", sender_fault=False):
        """Forward the entries for whose body `refused(task, kwargs)` is false, and answer Failed for the others."""
        entries = self.content["Entries"]
        chosen = [entry["Id"] for entry, body in zip(entries, self.bodies) if refused(body["task"], body["kwargs"])]
        self.content["Entries"] = [entry for entry in entries if entry["Id"] not in chosen]
        status, answer = self.forward() if self.content["Entries"] else (200, {"Successful": []})
        failed = [{"Id": each, "Code": code, "Message": "forced", "SenderFault": sender_fault} for each in chosen]
        return status, {**answer, "Failed": failed}


def error(status, code):
    """The answer with which SQS refuses a request."""
    return status, {"__type": f"com.amazonaws.sqs#{code}", "message": "forced"}


class Proxy:
    """`rule(request)` gives (status, JSON) or a Raw answer, or raises Cut; the default forwards.

    `requests`: what came in, in order.
    """

    def __init__(self, test, upstream, rule=Request.forward):
        self.rule = rule
        self.requests = []
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                proxy._handle(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        test.addCleanup(thread.join)
        test.addCleanup(self._server.server_close)
        test.addCleanup(self._server.shutdown)

    def _handle(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self._lock:
            request = Request(len(self.requests) + 1, handler.headers, body, self._upstream)
            self.requests.append(request)
        try:
            answer = self.rule(request)
            if not isinstance(answer, Raw):
                status, content = answer
                answer = Raw(status, json.dumps(content).encode(), {"Content-Type": "application/x-amz-json-1.0"})
            handler.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.content))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(answer.content)
        except Cut:
            handler.close_connection = True
        except OSError:
            handler.close_connection = True  # the client has gone
