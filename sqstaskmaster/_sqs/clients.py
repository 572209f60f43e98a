"""What is asked of a client that the library makes itself, beside its configuration.

Through botocore's events: they hold for the client's resources, and for whatever is asked of it later.
"""

from __future__ import annotations

import time
from typing import Any

from botocore.exceptions import ClientError

from sqstaskmaster._sqs.confirmation import check_done, is_foreign, text_of_foreign

# In the context that botocore keeps of a request: when the first try began, and what the last one met.
_SENDING = "sqstaskmaster_sending"


def prepare(client: Any, send_timeout: float) -> None:
    """Have a client of boto3's for SQS believe SQS only, and bound what a SendMessage takes.

    :param send_timeout: seconds, the client's own tries included.
    """
    _believe_sqs_only(client)
    _bound_sends(client, send_timeout)


def _believe_sqs_only(client: Any) -> None:
    """An answer that came from no SQS is none, also where there is nothing to be said: to a poll, to a delete."""
    endpoint = client.meta.endpoint_url

    def look(parsed: Any, model: Any, http_response: Any, **_: Any) -> None:
        if http_response.status_code < 300:
            check_done(model.name, parsed, endpoint)
        elif is_foreign(parsed):
            parsed["Error"]["Message"] = text_of_foreign(parsed, model.name, endpoint)

    client.meta.events.register("after-call.sqs.*", look)


def _bound_sends(client: Any, seconds: float) -> None:
    """Have the client begin no further try of a SendMessage that could end later than `seconds` after the first began.

    A try is bounded by the client's timeouts, which count for each anew, and how often a client tries is the user's
    configuration. A client gives up with what the last try met.
    """
    longest = client.meta.config.read_timeout

    def give_up_in_time(context: dict[str, Any]) -> None:
        began, met = context[_SENDING]
        if met is not None and time.monotonic() - began + longest > seconds:
            raise met

    def begin(request: Any, **_: Any) -> None:
        """Before each try: the pause after the last may have taken long."""
        request.context.setdefault(_SENDING, (time.monotonic(), None))
        give_up_in_time(request.context)

    def look(request_dict: dict[str, Any], response: Any, caught_exception: Any, operation: Any, **_: Any) -> None:
        """After each try, whatever came of it."""
        context, met = request_dict["context"], caught_exception
        if met is None and response[0].status_code >= 300:
            met = ClientError(response[1], operation.name)
        context[_SENDING] = (context[_SENDING][0], met)
        give_up_in_time(context)

    client.meta.events.register_first("request-created.sqs.SendMessage", begin)
    client.meta.events.register_first("needs-retry.sqs.SendMessage", look)
