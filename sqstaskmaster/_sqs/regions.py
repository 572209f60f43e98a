"""The AWS region that a queue URL names."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# sqs.eu-west-1.amazonaws.com, sqs.cn-north-1.amazonaws.com.cn, sqs-fips.us-east-1.amazonaws.com,
# vpce-0123-abcd.sqs.us-east-1.vpce.amazonaws.com, and the legacy eu-west-1.queue.amazonaws.com.
_REGION_IN_HOST = re.compile(
    r"(?:^|\.)(?:sqs(?:-fips)?\.(?P<region>[a-z0-9-]+)(?:\.vpce)?|(?P<legacy>[a-z0-9-]+)\.queue)"
    r"\.amazonaws\.com(?:\.cn)?$"
)
# The oldest form of all names no region and means one.
_REGION_OF_HOST = {"queue.amazonaws.com": "us-east-1", "sqs.amazonaws.com": "us-east-1"}


def region_of(url: str) -> str | None:
    """The AWS region in a queue URL of amazonaws.com, None for any other URL.

    Requests are signed for a region, and SQS refuses those signed for another than the queue's.
    """
    host = urlsplit(url).hostname or ""
    found = _REGION_IN_HOST.search(host)
    return (found["region"] or found["legacy"]) if found else _REGION_OF_HOST.get(host)
