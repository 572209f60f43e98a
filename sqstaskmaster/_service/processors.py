"""How many processors this container may use: what `slots="auto"` means."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

# The agent is on the same machine.
_METADATA_SECONDS = 2.0


def available(
    ecs_metadata_uri: str | None = None,
    cgroup: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """The least of the ECS task's CPU limit, the control groups' quotas, and the affinity; at least 1.

    :param ecs_metadata_uri: the value of ECS_CONTAINER_METADATA_URI_V4.

    https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4-response.html
    """
    limits = [_affinity()]
    for limit in (_of_ecs_task(ecs_metadata_uri), _of_cgroups(cgroup, own)):
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


def own_cgroups(
    root: Path = Path("/sys/fs/cgroup"), controller: str = "", own: Path = Path("/proc/self/cgroup")
) -> list[Path]:
    """The folders of this process's control group and of all above it, which limit it too; at least the root.

    In a container the root usually is its own group; not in a systemd service, or a container that shares the host's.

    :param controller: one of cgroup v1, which has a hierarchy for each; "" for v2.

    https://man7.org/linux/man-pages/man7/cgroups.7.html
    """
    root = root / controller
    path = ""
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, found = line.split(":", 2)
            if controller in controllers.split(","):
                path = found
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _of_cgroups(root: Path, own: Path) -> float | None:
    """The least quota of cgroup v2, or of v1, in processors; None if there is none."""
    newer = [_quota(folder / "cpu.max") for folder in own_cgroups(root, "", own)]
    older = [
        _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us") for folder in own_cgroups(root, "cpu", own)
    ]
    return min((quota for quota in (*newer, *older) if quota is not None), default=None)


def _quota(*files: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = " ".join(file.read_text() for file in files).split()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    return None


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
