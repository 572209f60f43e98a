"""An SQS server that answers as networks, proxies and bad days do: the tests' own one, behind a proxy with a fault.

::

    proxy = Faulty(self, endpoint(), "SendMessage", "page", times=1)
    os.environ["AWS_ENDPOINT_URL"] = proxy.url

What other operations ask for, and what comes after `times` requests, goes through as it is.
"""

from __future__ import annotations

import copy
import json
import threading

from tests.support.proxy import Cut, Proxy, Raw, Request, error

PAGE = "<!DOCTYPE HTML><html><title>Sign in</title><body>Please accept the terms of this network</body></html>"


def _page(request, proxy):
    return Raw(200, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})


def _no_page(request, proxy):
    return Raw(404, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})


def _object(request, proxy):
    return Raw(200, b"{}", {"Content-Type": "application/json"})


def _null(request, proxy):
    return Raw(200, b"null", {"Content-Type": "application/json"})


def _nothing(request, proxy):
    return Raw(200, b"", {})


def _half(request, proxy):
    """Carried out, and half of the answer comes: as if that were all."""
    status, answer = request.forward()
    content = json.dumps(answer).encode()
    return Raw(status, content[: len(content) // 2], {"Content-Type": "application/x-amz-json-1.0"})


def _wrong_md5(request, proxy):
    """Carried out, with a body that is not the one which was sent."""
    status, answer = request.forward()
    for entry in [answer, *answer.get("Successful", ())]:
        if "MD5OfMessageBody" in entry:
            entry["MD5OfMessageBody"] = "0" * 32
    return status, answer


def _lacks(request, proxy):
    return _with_lists(request, lambda entries: entries[1:])


def _repeats(request, proxy):
    return _with_lists(request, lambda entries: entries + entries[:1])


def _invents(request, proxy):
    """An id that was never sent stands in the place of one that was."""
    return _with_lists(request, lambda entries: [{**entries[0], "Id": "invented"}, *entries[1:]])


def _with_lists(request, change):
    """Carried out, with a list of what has succeeded that is not right."""
    status, answer = request.forward()
    return status, {**answer, "Successful": change(copy.deepcopy(answer.get("Successful", [])))}


def _unavailable(request, proxy):
    return error(503, "ServiceUnavailable")


def _throttled(request, proxy):
    return error(400, "RequestThrottled")


def _lost(request, proxy):
    """Carried out, and the connection ends before the answer."""
    request.forward()
    raise Cut


def _silence(request, proxy):
    proxy.over.wait()
    raise Cut


#: What may come in the place of SQS's answer.
FAULTS = {
    "a page": _page,
    "a page, 404": _no_page,
    "{}": _object,
    "null": _null,
    "nothing": _nothing,
    "half an answer": _half,
    "a wrong MD5": _wrong_md5,
    "lists that lack": _lacks,
    "lists that repeat": _repeats,
    "lists that invent": _invents,
    "503": _unavailable,
    "throttled": _throttled,
    "a lost answer": _lost,
    "silence": _silence,
}

#: These change the lists of a batch's answer, and nothing of another's.
OF_BATCHES = {"lists that lack", "lists that repeat", "lists that invent"}

#: After these the request has been carried out.
CARRIED_OUT = {"half an answer", "a wrong MD5", "a lost answer"} | OF_BATCHES


class Faulty(Proxy):
    """`operation` is answered with the fault, `times` times or for ever; `met` counts how often it was."""

    def __init__(self, test, upstream, operation, fault, times=None):
        self.over = threading.Event()
        self.met = 0
        self._operation, self._fault, self._left = operation, FAULTS[fault], times
        self._counting = threading.Lock()
        super().__init__(test, upstream, self._answer)
        test.addCleanup(self.over.set)

    def _answer(self, request):
        with self._counting:
            faulty = request.operation == self._operation and self._left != 0
            if faulty:
                self.met += 1
                self._left = None if self._left is None else self._left - 1
        return self._fault(request, self) if faulty else Request.forward(request)
