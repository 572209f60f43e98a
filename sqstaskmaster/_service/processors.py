"""How many processors this container may use: what `slots="auto"` means."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

# The agent is on the same machine.
_METADATA_SECONDS = 2.0


def available(ecs_metadata_uri: str | None = None, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The CPU limit of the ECS task where there is one, else the cgroup's quota, else the affinity; at least 1.

    :param ecs_metadata_uri: what ECS puts into ECS_CONTAINER_METADATA_URI_V4.

    https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4-response.html
    """
    limits = [_affinity()]
    for limit in (_of_ecs_task(ecs_metadata_uri), _of_cgroup(cgroup)):
        if limit is not None:
            limits.append(max(1, math.floor(limit)))
    return min(limits)


def _of_ecs_task(uri: str | None) -> float | None:
    if not uri:
        return None
    # Loaded here: only workers on ECS need it. The address is link-local: no proxy leads there.
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with opener.open(f"{uri.rstrip('/')}/task", timeout=_METADATA_SECONDS) as response:
            return float(json.loads(response.read())["Limits"]["CPU"]) or None
    return None


def _of_cgroup(folder: Path) -> float | None:
    """The quota of cgroup v2, or of v1, in processors; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        return quota_us / int((folder / "cpu" / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
