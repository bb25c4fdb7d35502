"""A registry of images on this machine, so that an engine really pulls: OCI distribution, only what a pull asks for."""

import contextlib
import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

from tests.engine import image_archive

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image(name: str) -> tuple[bytes, dict[str, bytes]]:
    """The manifest of an image with busybox that no other is the same as, and its blobs by digest."""
    layer = image_archive()
    packed = gzip.compress(layer, 1, mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sleep", "1000"], "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        }
    ).encode()
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST}
    parts = {"config": (CONFIG, config), "layer": (LAYER, packed)}
    said = {
        key: {"mediaType": kind, "size": len(data), "digest": digest_of(data)} for key, (kind, data) in parts.items()
    }
    manifest |= {"config": said["config"], "layers": [said["layer"]]}
    return json.dumps(manifest).encode(), {digest_of(data): data for _, data in parts.values()}


class Handler(http.server.BaseHTTPRequestHandler):
    """/v2/NAME/manifests/TAG and /v2/NAME/blobs/DIGEST of any name."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = self.path.split("/")
        if len(parts) < 5:
            return self._answer(200, b"{}", "application/json")
        manifest, blobs = image(parts[2])
        if parts[3] == "manifests":
            return self._answer(200, manifest, MANIFEST)
        if (data := blobs.get(parts[4])) is not None:
            return self._answer(200, data, "application/octet-stream")
        return self._answer(404, b"{}", "application/json")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest_of(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextlib.contextmanager
def registry() -> Iterator[str]:
    """Its HOST:PORT; engines believe one on the loopback without TLS."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
