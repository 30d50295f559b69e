"""Plugs, a broker and an instrument as small real servers on the loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
import tty
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Plug:
    """An HTTP device: ``answer(path, query)`` gives a status and a document, text or bytes."""

    def __init__(self, answer, *, digest="", basic=""):
        self.asked, self.nonces = [], 0
        plug = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                plug.asked.append((self.path, self.headers.get("Authorization", "")))
                if parts.path != "/shelly" and not plug.allowed(self, digest, basic):
                    return
                status, body = answer(parts.path, query)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.reply(status, data)

            def reply(self, status, data=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def allowed(self, handler, digest, basic):
        given = handler.headers.get("Authorization", "")
        if basic:
            if given == "Basic " + base64.b64encode(basic.encode()).decode():
                return True
            handler.reply(401, WWW_Authenticate='Basic realm="shelly"')
            return False
        if digest:
            if digest_right(given, digest, handler.path):
                return True
            challenge = 'Digest qop="auth", realm="shellyplugs", nonce="60a7c1d4", algorithm=SHA-256'
            handler.reply(401, WWW_Authenticate=challenge)
            return False
        return True

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def digest_right(given, password, uri):
    """RFC 7616, section 3.4."""
    if not given.startswith("Digest "):
        return False
    parts = dict(part.strip().split("=", 1) for part in given[7:].split(","))
    parts = {key: value.strip('"') for key, value in parts.items()}

    def hashed(text):
        return hashlib.sha256(text.encode()).hexdigest()

    first, second = hashed(f"admin:{parts['realm']}:{password}"), hashed(f"GET:{uri}")
    wanted = hashed(f"{first}:{parts['nonce']}:{parts['nc']}:{parts['cnonce']}:{parts['qop']}:{second}")
    return parts["response"] == wanted and parts["uri"] == uri


class Broker:
    """As much of an MQTT 3.1.1 broker as one subscriber needs (OASIS standard, sections 3.1 to 3.9)."""

    def __init__(self, password=""):
        self.password, self.clients, self.topics = password, [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError, struct.error, IndexError):
            stream = client.makefile("rb")
            while head := stream.read(1):
                body = stream.read(self.length(stream))
                kind = head[0] >> 4
                if kind == 1:
                    right = not self.password or body.endswith(self.password.encode())
                    client.sendall(bytes([0x20, 2, 0, 0 if right else 5]))
                elif kind == 8:
                    size = struct.unpack(">H", body[2:4])[0]
                    self.topics.append(body[4 : 4 + size].decode())
                    client.sendall(bytes([0x90, 3]) + body[:2] + b"\0")
                    self.clients.append(client)
                elif kind == 12:
                    client.sendall(b"\xd0\0")

    @staticmethod
    def length(stream):
        total, shift = 0, 0
        while True:
            byte = stream.read(1)[0]
            total |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return total

    def publish(self, topic, payload, retain=False):
        body = struct.pack(">H", len(topic)) + topic.encode() + payload
        assert len(body) < 128
        for client in self.clients:
            client.sendall(bytes([0x31 if retain else 0x30, len(body)]) + body)

    def close(self):
        self.listener.close()
        for client in self.clients:
            client.close()


class Instrument:
    """Answers each line by ``answer(line)``; None is silence, b"" ends the connection."""

    def __init__(self, answer):
        self.answer, self.clients = answer, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                self.clients.append(self.listener.accept()[0])
                threading.Thread(target=self.serve, args=(self.clients[-1],), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError):
            for line in client.makefile("rb"):
                said = self.answer(line.decode().strip())
                if said == b"":
                    client.shutdown(socket.SHUT_RDWR)
                    break
                client.sendall(said or b"")

    def close(self):
        self.listener.close()
        for client in self.clients:
            client.close()


class Serial:
    """The far end of a serial device, a pseudo-terminal; ``path`` is the device."""

    def __init__(self):
        self.far, self.near = os.openpty()
        tty.setraw(self.far)
        self.path = os.ttyname(self.near)

    def say(self, data):
        os.write(self.far, data)

    def close(self):
        os.close(self.far)
        os.close(self.near)
