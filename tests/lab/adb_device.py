"""A device for a real adb client: `adb_device.py ROOT ADDRESS PORT` serves adb's protocol, its shell in an arm64 root.

It knows what `adb connect` and `adb shell` need (CNXN, OPEN, WRTE, OKAY, CLSE, and shell_v2 inside), and neither
authentication nor Android: it tests how edgekit drives adb, not phones.

Source: the protocol as AOSP documents it, packages/modules/adb/protocol.txt and shell_service.h.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

VERSION, MOST = 0x01000001, 256 * 1024
BANNER = b"device::ro.product.name=edgekit;ro.product.model=edgekit lab;ro.product.device=lab;features=shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Connection:
    """One client: messages in, and a thread for every stream that it opened."""

    def __init__(self, client: socket.socket, root: str) -> None:
        self.root, self._client, self._lock = root, client, threading.Lock()
        self._reader = client.makefile("rb")
        self.streams: dict[int, Stream] = {}

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        word = int.from_bytes(command, "little")
        head = struct.pack("<6I", word, first, second, len(data), sum(data) & 0xFFFFFFFF, word ^ 0xFFFFFFFF)
        with self._lock, contextlib.suppress(OSError):
            self._client.sendall(head + data)

    def serve(self) -> None:
        for command, theirs, ours, data in self._messages():
            stream = self.streams.get(ours)
            if command == b"CNXN":
                self.send(b"CNXN", VERSION, MOST, BANNER)
            elif command == b"OPEN":
                number = len(self.streams) + 1
                self.streams[number] = Stream(self, number, theirs, data.rstrip(b"\0").decode())
                self.send(b"OKAY", number, theirs)
                threading.Thread(target=self.streams[number].run, daemon=True).start()
            elif command == b"WRTE" and stream:
                stream.feed(data)
                self.send(b"OKAY", ours, theirs)
            elif command == b"OKAY" and stream:
                stream.written.release()
            elif command == b"CLSE" and stream:
                stream.hang_up()
                self.send(b"CLSE", ours, theirs)
        for stream in self.streams.values():
            stream.hang_up()

    def _messages(self) -> Iterator[tuple[bytes, int, int, bytes]]:
        with contextlib.suppress(OSError):
            while len(head := self._reader.read(24)) == 24:
                _, first, second, size, _, _ = struct.unpack("<6I", head)
                yield head[:4], first, second, self._reader.read(size)


class Stream:
    """One shell: packets of a kind, a length and bytes, in both directions."""

    def __init__(self, connection: Connection, ours: int, theirs: int, service: str) -> None:
        self._connection, self._ours, self._theirs, self._service = connection, ours, theirs, service
        self.written, self._lock = threading.Semaphore(0), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._started = threading.Event()

    def run(self) -> None:
        kind, _, script = self._service.partition(":")
        if kind.split(",")[:2] != ["shell", "v2"]:
            self._connection.send(b"CLSE", 0, self._theirs)
            return
        command = ["chroot", "--userspec=1000:1000", self._connection.root, "/bin/sh", "-c", script]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._started.set()
        errors = threading.Thread(target=self._pump, args=(STDERR, self._process.stderr), daemon=True)
        errors.start()
        self._pump(STDOUT, self._process.stdout)
        errors.join()
        self._write(EXIT, bytes([self._process.wait() & 255]))
        self._connection.send(b"CLSE", self._ours, self._theirs)

    def feed(self, data: bytes) -> None:
        """Take what the client sent; packets may lie across messages."""
        self._started.wait()
        self._pending += data
        while len(self._pending) >= 5:
            kind, size = struct.unpack("<BI", self._pending[:5])
            if len(self._pending) < 5 + size:
                return
            content, self._pending = self._pending[5 : 5 + size], self._pending[5 + size :]
            stdin = self._process.stdin if self._process else None
            if stdin and not stdin.closed:
                with contextlib.suppress(BrokenPipeError):
                    if kind == STDIN:
                        stdin.write(content)
                        stdin.flush()
                    elif kind == CLOSE_STDIN:
                        stdin.close()

    def hang_up(self) -> None:
        """The client is gone: the shell's input ends, as on a device."""
        self.written.release(1 << 20)
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _pump(self, kind: int, source: object) -> None:
        while data := os.read(source.fileno(), 32768):  # type: ignore[attr-defined]
            self._write(kind, data)

    def _write(self, kind: int, data: bytes) -> None:
        with self._lock:
            self._connection.send(b"WRTE", self._ours, self._theirs, struct.pack("<BI", kind, len(data)) + data)
            self.written.acquire()


def main(root: str, address: str, port: str) -> None:
    os.environ.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    with socket.create_server((address, int(port))) as server:
        print("Server listening", flush=True)
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Connection(client, root).serve, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
