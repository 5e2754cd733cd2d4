"""Load, malformed requests and a kill for `simclr serve`; it starts the service itself.

    python tools/serve_load.py --artefact=encoder.onnx --index=features.parquet --images=/my/photos

1. Clients post images; every answer is compared with the answer to the same image alone.
2. Malformed requests: every one must be refused with 4xx or be cut off, and the memory stays as it is.
3. kill -9 under load: what was answered is right, and no client misses more than the request in flight.

Needs a network to itself (127.0.0.1) and httpx; prints one table, exit code 1 if something was lost.
"""

import argparse
import itertools
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HEADERS = {"content-type": "application/octet-stream"}
URL = "/embed?top=10"


class Service:
    """`simclr serve` in a process of its own."""

    def __init__(self, words: list[str]):
        command = [sys.executable, "-m", "simclr_jax.serve", *words, "--port=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = self.process.stdout.readline().split()[-1].rstrip("/")
        self.address = ("127.0.0.1", int(self.url.rpartition(":")[2]))
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name)))

    def send(self, data: bytes, then: str = "") -> int:
        """The code of the answer to some bytes; 0: cut off without one.

        Args:
          then: "zeros" follow without end, or the connection has its "end".
        """
        with socket.create_connection(self.address, timeout=30) as connection:
            try:
                connection.sendall(data)
                while then == "zeros":
                    connection.sendall(bytes(1 << 20))
            except OSError:
                pass
            try:
                if then == "end":
                    connection.shutdown(socket.SHUT_WR)
                found = connection.recv(1 << 16)
            except OSError:
                found = b""
        return int(found.split()[1]) if found.startswith(b"HTTP/1.1 ") else 0


def same(one: list[dict], other: list[dict]) -> bool:
    """Whether two answers are the same but for float32's rounding in another batch."""
    scale = max(abs(x) for x in other[0]["embedding"]) or 1.0
    near = max(abs(a - b) for a, b in zip(one[0]["embedding"], other[0]["embedding"], strict=True))
    best = [
        abs(a["similarity"] - b["similarity"])
        for a, b in zip(*(x[0].get("neighbours", []) for x in (one, other)), strict=True)
    ]
    return near <= 1e-4 * scale and max(best, default=0.0) <= 1e-4


def load(service: Service, images: list[bytes], right: list[list[dict]], requests: int, clients: int) -> dict:
    """{what became of requests: how many, "seconds": of each, "wall": of all}."""
    jobs, found, seconds, lock = iter(range(requests)), Counter(), [], threading.Lock()

    def client() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as http:
            while True:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                i, begin = job % len(images), time.perf_counter()
                try:
                    answer = http.post(URL, content=images[i], headers=HEADERS)
                    what = str(answer.status_code)
                    if what == "200":
                        what = "right" if same(answer.json()["results"], right[i]) else "wrong"
                except httpx.TransportError:
                    what = "no answer"
                with lock:
                    found[what] += 1
                    seconds.append(time.perf_counter() - begin)
                if what == "no answer":
                    return

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {**found, "seconds": sorted(seconds), "wall": time.perf_counter() - begin}


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def posted(
    body: bytes, kind: str = "image/png", length: int | None = None, more: str = "", url: str = URL
) -> bytes:
    """A request, as bytes."""
    size = len(body) if length is None else length
    lines = [
        f"POST {url} HTTP/1.1",
        "host: localhost",
        f"content-type: {kind}",
        f"content-length: {size}",
        "connection: close",
    ]
    return "\r\n".join([*lines, *([more] if more else []), "", ""]).encode() + body


def parts(count: int, data: bytes, end: bytes = b"--x--\r\n") -> bytes:
    """The body of a form with files."""
    head = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return (head + data + b"\r\n") * count + end


def malformed(image: bytes, rng: random.Random) -> Iterator[tuple[str, bytes, str]]:
    """(kind, bytes to send, what follows) of requests that must be refused."""
    form, cut = "multipart/form-data; boundary=x", rng.randrange(20, len(image) - 20)
    noise, size = rng.randbytes(rng.randrange(1, 100_000)), rng.randrange(10_000, 60_000)
    chunked = posted(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    yield "truncated", posted(image[:cut]), ""
    yield "less than it says", posted(image[:cut], length=len(image)), "end"
    yield "noise", posted(noise, rng.choice(["image/jpeg", "image/png", "image/webp"])), ""
    yield "noise behind a head", posted(image[:16] + noise), ""
    yield "bomb", posted(bomb(size, size)), ""
    yield "bomb in a form", posted(parts(2, bomb(size, size)), form), ""
    yield "GIF bomb", posted(b"GIF89a" + struct.pack("<HH", 65535, 65535) + noise, "image/gif"), ""
    yield "10 GB", posted(b"", length=10**10), "zeros"
    yield "endless chunks", chunked + b"ffffffff\r\n", "zeros"
    yield "wrong type", posted(image, rng.choice(["text/html", "application/json", "video/mp4"])), ""
    yield "JSON", posted(b'{"image": "' + image.hex().encode() + b'"}', "application/json"), ""
    yield "no boundary", posted(parts(1, image), "multipart/form-data"), ""
    yield "other boundary", posted(parts(1, image), "multipart/form-data; boundary=y"), ""
    yield "form without end", posted(parts(1, image, b"")[:-cut], form), ""
    yield "a thousand files", posted(parts(1000, b"x"), form), ""
    yield "noise as a form", posted(noise, form), ""
    yield "huge headers", posted(b"", more="x: " + "a" * 200_000), ""
    yield "no HTTP", noise[:1000] + b"\r\n\r\n", ""
    yield "two lengths", posted(b"", more="content-length: 7"), ""
    yield "top", posted(image, url="/embed?top=" + rng.choice(["x", "-1", "1e9", "%00"])), ""


def refusals(service: Service, image: bytes, count: int) -> tuple[Counter, list[str]]:
    """({code: how many}, kinds that were not refused)."""
    rng, codes, bad = random.Random(0), Counter(), []
    cases = itertools.chain.from_iterable(malformed(image, rng) for _ in itertools.count())
    for kind, data, then in itertools.islice(cases, count):
        code = service.send(data, then)
        codes[code] += 1
        if not (code == 0 or 400 <= code < 500):
            bad.append(f"{kind}: {code}")
    return codes, bad


def main() -> None:
    """Prints what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--artefact", required=True)
    add("--index", required=True)
    add("--images", required=True, help="folder of images that clients post")
    add("--requests", type=int, default=5000)
    add("--clients", type=int, default=16)
    add("--malformed", type=int, default=200)
    args, rest = parser.parse_known_args()
    files = sorted(p for p in Path(args.images).rglob("*") if p.suffix.lower() in SUFFIXES)[:200]
    if not files:
        parser.error(f"--images={args.images}: no image file there ({', '.join(SUFFIXES)})")
    images = [path.read_bytes() for path in files]
    service = Service([f"--artefact={args.artefact}", f"--index={args.index}", *rest])
    try:
        with httpx.Client(base_url=service.url, timeout=60) as http:
            right = [http.post(URL, content=data, headers=HEADERS).json()["results"] for data in images]
        names = ("simclr_batch_images_sum", "simclr_batch_images_count")
        before = [service.metric(name) for name in names]
        told = load(service, images, right, args.requests, args.clients)
        seconds, wall = told.pop("seconds"), told.pop("wall")
        total, count = (service.metric(name) - was for name, was in zip(names, before, strict=True))
        share = [seconds[int(q * (len(seconds) - 1))] * 1000 for q in (0.5, 0.99)]
        print(
            f"{args.requests} requests, {args.clients} clients: {json.dumps(told)}, "
            f"{args.requests / wall:.0f}/s, p50 {share[0]:.1f} ms, p99 {share[1]:.1f} ms, "
            f"{total / count:.1f} images a batch",
            flush=True,
        )
        refusals(service, images[0], 40)
        memory = service.metric("process_resident_memory_bytes")
        codes, bad = refusals(service, images[0], args.malformed)
        grown = (service.metric("process_resident_memory_bytes") - memory) / 2**20
        print(
            f"{args.malformed} malformed: {dict(codes)}, not refused: {bad}, "
            f"memory {memory / 2**20:.0f} MB {grown:+.0f} MB",
            flush=True,
        )
        bomber = threading.Timer(3.0, service.process.kill)
        bomber.start()
        killed = load(service, images, right, 10**9, args.clients)
        killed.pop("seconds"), killed.pop("wall")
        print(f"kill -9 under load: {json.dumps(killed)}")
    finally:
        service.process.kill()
    lost = (
        told != {"right": args.requests}
        or bad
        or set(killed) != {"right", "no answer"}
        or killed["no answer"] > args.clients
    )
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
