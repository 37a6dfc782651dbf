"""Load on `fastscnn serve` over the loopback, beside the bare engine on the same pictures.

    python bench/service_load.py [--seconds 10] [--clients 8] [--rounds 3]

Both decode the same 512x1024 JPEGs and run the network at 512x1024, with as many threads as there
are cores; the service also speaks HTTP and encodes the label maps. The client runs on the same
cores: its CPU time, divided by them, is taken off the wall time in the second rate.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image

import fastscnn
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import decode_image
from fastscnn.service.workers import cores

SIZE = (512, 1024)


def jpegs(count: int = 8) -> list[bytes]:
    made = []
    for seed in range(count):
        file = io.BytesIO()
        Image.fromarray(street_scene(*SIZE, seed=seed)).save(file, "JPEG", quality=92)
        made.append(file.getvalue())
    return made


def bare(seconds: float, pictures: list[bytes]) -> None:
    """Prints frames per second of decode and network alone, one thread per core."""
    models = [fastscnn.load(device="cpu") for _ in range(cores())]
    end = 0.0
    counts = [0] * len(models)

    def work(i: int) -> None:
        while time.perf_counter() < end:
            frame, _ = decode_image(io.BytesIO(pictures[counts[i] % len(pictures)]), "a picture")
            models[i].segment(frame, size=SIZE, threads=1)  # type: ignore[attr-defined]
            counts[i] += 1

    for seconds_now in (1.0, seconds):
        counts[:] = [0] * len(models)
        start = time.perf_counter()
        end = start + seconds_now
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(sum(counts) / (time.perf_counter() - start))


def client(port: int, clients: int, seconds: float, pictures: list[bytes], output: str) -> None:
    """Prints requests, wall time, this process's CPU time, p50 and p99 in seconds."""
    latencies: list[float] = []
    head = f"POST /v1/segment?output={output} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    requests = [f"{head}Content-Length: {len(p)}\r\n\r\n".encode() + p for p in pictures]

    def work(i: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while time.perf_counter() < end:
                begun = time.perf_counter()
                connection.sendall(requests[(i + len(latencies)) % len(requests)])
                data = connection.recv(1 << 20)
                head, _, body = data.partition(b"\r\n\r\n")
                assert b" 200 " in head, data
                left = int(re.findall(rb"content-length: (\d+)", head)[0]) - len(body)
                while left > 0:
                    left -= len(connection.recv(1 << 20))
                latencies.append(time.perf_counter() - begun)

    for seconds_now in (1.0, seconds):
        latencies.clear()
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        end = start + seconds_now
        threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p50, p99 = np.percentile(latencies, (50, 99))
    print(len(latencies), time.perf_counter() - start, cpu, p50, p99)


def child(*options: str) -> list[float]:
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="labels")
    parser.add_argument("--role", choices=("bare", "client"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "bare":
        return bare(args.seconds, jpegs())
    if args.role == "client":
        return client(args.port, args.clients, args.seconds, jpegs(), args.output)
    size = f"{SIZE[0]}x{SIZE[1]}"
    command = [sys.executable, "-m", "fastscnn", "serve", "--port", "0", "--device", "cpu"]
    options = {"--size": size, "--max-waiting": args.clients, "--max-per-client": args.clients}
    command += [str(word) for option in options.items() for word in option]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = re.findall(r":(\d+) ", server.stdout.readline())[0]
        same = ["--seconds", str(args.seconds), "--clients", str(args.clients)]
        ratios = []
        for _ in range(args.rounds):
            (engine,) = child("--role", "bare", *same)
            n, wall, cpu, p50, p99 = child(
                "--role", "client", "--port", port, "--output", args.output, *same
            )
            net = n / (wall - cpu / cores())
            ratios.append(net / engine)
            print(
                f"bare {engine:.1f}/s | service {n / wall:.1f}/s, without the client's {cpu:.1f} s "
                f"CPU {net:.1f}/s ({100 * net / engine:.0f} %) | p50 {1e3 * p50:.0f} ms, "
                f"p99 {1e3 * p99:.0f} ms, {args.clients} clients, {cores()} cores",
                flush=True,
            )
        print(f"median {100 * statistics.median(ratios):.0f} % of the bare engine")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
