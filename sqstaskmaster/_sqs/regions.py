"""The AWS region that a queue URL names."""

from __future__ import annotations

import functools
import re
from urllib.parse import urlsplit

# The oldest form names no region, but implies one.
_REGION_OF_HOST = {"queue.amazonaws.com": "us-east-1", "sqs.amazonaws.com": "us-east-1"}


def region_of(url: str) -> str | None:
    """The AWS region in a queue URL of AWS, None for any other URL.

    Requests are signed for a region, and SQS refuses any signed for a region other than the queue's.
    """
    host = _host(url)
    found = _region_in_host().search(host)
    return (found["region"] or found["legacy"]) if found else _REGION_OF_HOST.get(host)


def is_of_aws(url: str) -> bool:
    """Whether the host of a URL is in a domain of AWS, in any of its partitions."""
    return f".{_host(url)}".endswith(tuple(f".{domain}" for domain in _domains()))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


@functools.cache
def _region_in_host() -> re.Pattern[str]:
    # sqs.eu-west-1.amazonaws.com, sqs.cn-north-1.amazonaws.com.cn, sqs-fips.us-east-1.api.aws,
    # vpce-0123-abcd.sqs.us-east-1.vpce.amazonaws.com, and the legacy eu-west-1.queue.amazonaws.com.
    return re.compile(
        r"(?:^|\.)(?:sqs(?:-fips)?\.(?P<region>[a-z0-9-]+)(?:\.vpce)?|(?P<legacy>[a-z0-9-]+)\.queue)"
        rf"\.(?:{'|'.join(map(re.escape, _domains()))})$"
    )


@functools.cache
def _domains() -> tuple[str, ...]:
    """The domains of AWS's partitions, dual stack included, as far as the installed botocore knows them."""
    from botocore.loaders import create_loader  # loaded here, so that users of a LocalQueue need not wait for it

    outputs = [partition["outputs"] for partition in create_loader().load_data("partitions")["partitions"]]
    return tuple({each[name] for each in outputs for name in ("dnsSuffix", "dualStackDnsSuffix") if each.get(name)})
