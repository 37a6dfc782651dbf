"""`fastscnn serve`."""

from __future__ import annotations

import argparse
from typing import Any

from fastscnn.arguments import add_model_options, positive


def add_serve_parser(commands: Any) -> None:
    """Adds `serve`; its `run(args)` returns the exit code."""
    p = commands.add_parser("serve", help="a page and an HTTP service: pictures in, labels out")
    p.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    p.add_argument("--port", type=_port, default=8000, help="0 takes any free one")
    p.add_argument("--workers", type=positive, help="pictures at once (default: cores / --threads)")
    p.add_argument("--max-mib", type=positive, default=16, help="of one body")
    p.add_argument("--max-megapixels", type=positive, default=50, help="of one picture")
    p.add_argument("--max-waiting", type=_count, default=64, help="requests at once; then 503")
    p.add_argument("--max-per-client", type=_count, default=32, help="of one address; then 429")
    p.add_argument(
        "--wait", type=positive, default=30, metavar="SECONDS", help="for a worker, or for the end"
    )
    add_model_options(p)
    p.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    try:
        from fastscnn.service import app, server
    except ImportError as error:
        if (error.name or "").startswith("fastscnn."):
            raise
        raise ImportError(f"serving needs {error.name}: pip install 'fastscnn[serve]'") from None
    from fastscnn.service.limits import Limits
    from fastscnn.service.workers import Workers

    limits = Limits(
        body_bytes=args.max_mib * 2**20,
        pixels=args.max_megapixels * 10**6,
        waiting=args.max_waiting,
        per_client=args.max_per_client,
        wait_seconds=args.wait,
    )
    with server.bind(args.host, args.port) as sock:
        workers = Workers(
            args.weights,
            device=args.device,
            threads=args.threads,
            size=args.size,
            count=args.workers,
            max_pixels=limits.pixels,
        )
        sock.listen(2048)
        host, port = sock.getsockname()[:2]
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(
            f"{args.weights} on {workers.device}, {workers.count} workers: {where} is the page, "
            f"{where}/docs how to call it; Ctrl-C ends",
            flush=True,
        )
        application = app.create_app(workers, limits=limits, opacity=args.opacity)
        server.run(application, sock, stop_seconds=args.wait)
    print("ended")
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 100000")
    return int(text)
