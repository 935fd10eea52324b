"""An adb server of our own with phones that are folders: the host protocol, shell v2 and sync, as adb's documents describe them
(SERVICES.TXT, SYNC.TXT, shell_protocol.h). It stands in for what cannot be had here; a phone's shell is this machine's."""

from __future__ import annotations

import socket
import socketserver
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

PHONE_FOLDER = "/data/local/tmp"


@dataclass
class Phones:
    """Serial numbers with their states, and the folder that stands for a phone's `/data/local/tmp`."""

    folder: Path
    states: dict[str, str] = field(default_factory=lambda: {"emulator-1": "device"})
    thermal_status: int = 0
    refuse_bytes: int | None = None
    free_bytes: int | None = None
    shell: tuple[str, ...] = ("sh", "-c")
    """What runs a command: a phone of another architecture needs a shell of its own."""
    server: socketserver.ThreadingTCPServer | None = None

    @property
    def port(self) -> int:
        """On loopback."""
        assert self.server is not None
        return int(self.server.server_address[1])

    def start(self) -> None:
        """Serve."""
        phones = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                Session(self.request, phones).serve()

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End it."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    def real(self, text: str) -> str:
        """A path or command as it is on this machine."""
        return text.replace(PHONE_FOLDER, str(self.folder))


class Session:
    """One connection of a client."""

    def __init__(self, connection: socket.socket, phones: Phones) -> None:
        self.connection, self.phones = connection, phones

    def serve(self) -> None:
        """Requests until the client leaves."""
        while size := self._read(4):
            request = self._read(int(size, 16)).decode()
            if not self._answer(request):
                return

    def _answer(self, request: str) -> bool:
        """Whether the connection goes on."""
        if request.startswith("host:tport:serial:"):
            if self.phones.states.get(request.rpartition(":")[2]) != "device":
                return self._fail("device offline")
            self._send(b"OKAY" + bytes(8))
            return True
        if request.startswith("shell,v2:"):
            self._send(b"OKAY")
            self._shell(self.phones.real(request.removeprefix("shell,v2:")))
        elif request == "sync:":
            self._send(b"OKAY")
            self._sync()
        elif request == "host:version":
            self._say("0029")
        elif request in ("host:devices", "host:devices-l"):
            self._say("".join(f"{serial}\t{state}\n" for serial, state in self.phones.states.items()))
        elif request.endswith(":features"):
            self._say("shell_v2,cmd,stat_v2")
        else:
            return self._fail(f"unknown service {request}")
        return False

    def _shell(self, command: str) -> None:
        if command.startswith("dumpsys thermalservice"):
            command = f"echo 'Thermal Status: {self.phones.thermal_status}'"
        if command.startswith("df ") and self.phones.free_bytes is not None:
            command = f"echo 'fs 1 1 {self.phones.free_bytes // 1024} 99% /data'"
        done = subprocess.run([*self.phones.shell, command], capture_output=True, check=False)
        for number, data in ((1, done.stdout), (2, done.stderr)):
            for at in range(0, len(data), 1 << 16):
                piece = data[at : at + (1 << 16)]
                self._send(struct.pack("<BI", number, len(piece)) + piece)
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        self._send(struct.pack("<BIB", 3, 1, status))

    def _sync(self) -> None:
        while head := self._read(8):
            kind, size = head[:4], struct.unpack("<I", head[4:])[0]
            if kind == b"QUIT":
                return
            text = self._read(size).decode()
            if kind == b"STAT":
                path = Path(self.phones.real(text))
                facts = (path.stat().st_mode, path.stat().st_size, 0) if path.exists() else (0, 0, 0)
                self._send(b"STAT" + struct.pack("<III", *facts))
            elif kind == b"SEND":
                self._receive(Path(self.phones.real(text.rpartition(",")[0])))
            elif kind == b"RECV":
                data = Path(self.phones.real(text)).read_bytes()
                for at in range(0, len(data), 1 << 16):
                    piece = data[at : at + (1 << 16)]
                    self._send(b"DATA" + struct.pack("<I", len(piece)) + piece)
                self._send(b"DONE" + bytes(4))

    def _receive(self, path: Path) -> None:
        data = bytearray()
        while (head := self._read(8))[:4] == b"DATA":
            data += self._read(struct.unpack("<I", head[4:])[0])
        if self.phones.refuse_bytes is not None and len(data) > self.phones.refuse_bytes:
            message = b"couldn't write: No space left on device"
            self._send(b"FAIL" + struct.pack("<I", len(message)) + message)
            return
        path.write_bytes(data)
        self._send(b"OKAY" + bytes(4))

    def _say(self, text: str) -> None:
        self._send(b"OKAY" + f"{len(text):04x}{text}".encode())

    def _fail(self, text: str) -> bool:
        self._send(b"FAIL" + f"{len(text):04x}{text}".encode())
        return False

    def _send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := self.connection.recv(size - len(data))):
            data += piece
        return data
