"""The service under Ray Serve: the same application in as many processes as asked for.

serve run fastscnn.service.replicas:app replicas=2 weights=camvid size=512x1024
"""

from __future__ import annotations

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported

from fastapi import FastAPI
from ray import serve

from fastscnn.arguments import positive, size
from fastscnn.service.app import create_app
from fastscnn.service.limits import Limits
from fastscnn.service.workers import Workers

KNOWN = {"replicas": "1", "weights": "camvid", "device": "", "threads": "1", "size": "", "gpus": ""}


def app(options: dict[str, str]) -> serve.Application:
    """What `serve run` starts; raises ValueError for an option that is not in `KNOWN`.

    A replica is one worker on `threads` cores, or on one GPU where `gpus` names one per replica
    (a fraction shares it).
    """
    wrong = sorted(set(options) - set(KNOWN))
    if wrong:
        raise ValueError(f"{wrong[0]}={options[wrong[0]]}: expected one of {', '.join(KNOWN)}")
    given = {**KNOWN, **options}
    threads, limits = positive(given["threads"]), Limits()

    def build() -> FastAPI:  # in the replica: a model stays where it was loaded
        workers = Workers(
            given["weights"],
            device=given["device"] or None,
            threads=threads,
            size=size(given["size"]) if given["size"] else None,
            count=1,
            max_pixels=limits.pixels,
        )
        return create_app(workers, limits=limits)

    @serve.ingress(build)
    class FastSCNN:
        """The application is all of it."""

    gpus = {"num_gpus": float(given["gpus"])} if given["gpus"] else {}
    deployment = serve.deployment(
        FastSCNN,
        name="fastscnn",
        num_replicas=positive(given["replicas"]),
        max_ongoing_requests=limits.waiting,
        ray_actor_options={"num_cpus": threads, **gpus},
    )
    return deployment.bind()
