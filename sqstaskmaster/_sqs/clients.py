"""What the library sets up on a client that it makes itself, beyond the client's configuration.

Through botocore's events: they apply to the client's resources, and to every later request.
"""

from __future__ import annotations

import time
from typing import Any

from botocore.exceptions import ClientError

from sqstaskmaster._sqs.confirmation import check_done, is_foreign, text_of_foreign

# Key in botocore's context of a request: when the first try began, and the error of the last one.
_SENDING = "sqstaskmaster_sending"


def prepare(client: Any, send_timeout: float) -> None:
    """Make a boto3 client for SQS believe only SQS, and bound how long a SendMessage takes.

    :param send_timeout: seconds, the client's own retries included.
    """
    _believe_sqs_only(client)
    _bound_sends(client, send_timeout)


def _believe_sqs_only(client: Any) -> None:
    """Reject an answer that is not SQS's, even if it need not say anything: to a poll, to a delete."""
    endpoint = client.meta.endpoint_url

    def look(parsed: Any, model: Any, http_response: Any, **_: Any) -> None:
        if http_response.status_code < 300:
            check_done(model.name, parsed, endpoint)
        elif is_foreign(parsed):
            parsed["Error"]["Message"] = text_of_foreign(parsed, model.name, endpoint)

    client.meta.events.register("after-call.sqs.*", look)


def _bound_sends(client: Any, seconds: float) -> None:
    """Keep the client from beginning a try of a SendMessage that could end over `seconds` after the first try began.

    Each try is bounded by the client's timeouts, and the user configures how often a client tries. A client that gives
    up raises the error of the last try.
    """
    longest = client.meta.config.read_timeout

    def give_up_in_time(context: dict[str, Any]) -> None:
        began, met = context[_SENDING]
        if met is not None and time.monotonic() - began + longest > seconds:
            raise met

    def begin(request: Any, **_: Any) -> None:
        """Before each try: the pause after the last one may have been long."""
        request.context.setdefault(_SENDING, (time.monotonic(), None))
        give_up_in_time(request.context)

    def look(request_dict: dict[str, Any], response: Any, caught_exception: Any, operation: Any, **_: Any) -> None:
        """After each try, whatever its result."""
        context, met = request_dict["context"], caught_exception
        if met is None and response[0].status_code >= 300:
            met = ClientError(response[1], operation.name)
        context[_SENDING] = (context[_SENDING][0], met)
        give_up_in_time(context)

    client.meta.events.register_first("request-created.sqs.SendMessage", begin)
    client.meta.events.register_first("needs-retry.sqs.SendMessage", look)
