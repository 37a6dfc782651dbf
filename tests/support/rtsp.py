"""A camera's RTSP in fifty lines: hands on to one client what ffmpeg sends as RTP."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path


class RtspServer:
    """Serves rtsp://127.0.0.1:`port`/cam over TCP: RTP packets arrive by UDP from ffmpeg, whose
    SDP is the description, and leave in the same connection as the answers (RFC 2326, 10.12)."""

    def __init__(self, ffmpeg: str, source: str, folder: Path) -> None:
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self._rtp.settimeout(60)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests: list[str] = []
        sdp = folder / "cam.sdp"
        self._ffmpeg = subprocess.Popen(
            [
                *(ffmpeg, "-v", "quiet", "-re", "-f", "lavfi", "-i", source),
                *("-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-bsf:v", "dump_extra"),
                *("-f", "rtp", "-sdp_file", str(sdp)),
                f"rtp://127.0.0.1:{self._rtp.getsockname()[1]}",
            ]
        )
        self._rtp.recv(65536)  # the description is there before the first packet
        lines = sdp.read_text().splitlines()
        self._sdp = "\r\n".join(x for x in lines if not x.startswith("SDP")) + "\r\n"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._ffmpeg.kill()
        self._ffmpeg.wait()
        self._listener.close()
        self._rtp.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, client.makefile("rb") as lines:
            while request := lines.readline().decode().strip():
                method, fields = request.split()[0], {}
                while line := lines.readline().decode().strip():
                    name, _, value = line.partition(":")
                    fields[name.lower()] = value.strip()
                self.requests.append(f"{method} {fields.get('transport', '')}".strip())
                extra, body = self._answer(method)
                head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\nSession: 1\r\n{extra}"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                if method == "PLAY":
                    self._relay(client)
                    return

    def _answer(self, method: str) -> tuple[str, str]:
        """Header lines and body."""
        if method == "DESCRIBE":
            return "Content-Type: application/sdp\r\n", self._sdp
        if method == "SETUP":
            return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
        return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""

    def _relay(self, client: socket.socket) -> None:
        try:
            while packet := self._rtp.recv(65536):
                client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
        except OSError:  # either side is done
            return
