"""The doctor: what is wrong with a queue, the access to it, and a worker's timeouts on it.

    gather (asks AWS) -> Facts -> examine (pure) -> [Finding(name, level, text, remedy), ...]

None of it receives, sends or deletes a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from sqstaskmaster._claim.destinations import dead_letter_url
from sqstaskmaster._service import processors
from sqstaskmaster._sqs.answers import SQS_ERRORS, code_of
from sqstaskmaster._sqs.confirmation import attributes_in
from sqstaskmaster._sqs.explained import Explained
from sqstaskmaster._sqs.limits import MAX_MESSAGE_BYTES
from sqstaskmaster._sqs.regions import is_of_aws, region_of

if TYPE_CHECKING:
    from sqstaskmaster.worker import Worker

# A receipt handle that no message has: SQS checks the permission first, then finds no such handle.
_NO_HANDLE = "sqstaskmaster-doctor-asks-only-whether-this-is-allowed"

# A delay that SQS refuses: 900 is the longest.
_NO_DELAY = 86400

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}

# The longest that a killed worker should keep its message hidden; longer means a long wait after a deploy.
_LONG_VISIBILITY_SECONDS = 15 * 60

# A shorter retention loses tasks that merely wait.
_SHORT_RETENTION_SECONDS = 3600

# A request may take this long without anything being wrong; the claim has to outlast it.
_SLOW_REQUEST_SECONDS = 10

# How long ECS and Kubernetes give a container to stop by default, and the most that ECS allows on Fargate. A task is
# stopped after `shutdown_grace`, and then has `term_grace` (5 s by default) and a moment more.
_STOP_SECONDS, _LONGEST_STOP_SECONDS = 30, 120
_AFTER_GRACE_SECONDS = 6

# Fewer receives dead-letter a task that merely met a deploy; more keep repeating one that always fails, all day.
_FEWEST_RECEIVES, _MOST_RECEIVES = 3, 100


class Level(enum.IntEnum):
    OK = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()


class Finding(NamedTuple):
    """The result of one check. `remedy` is empty if nothing needs to be done."""

    name: str
    level: Level
    text: str
    remedy: str = ""


@dataclasses.dataclass
class Facts:
    """What is known. `unreachable` is a sentence that says why nothing more is."""

    url: str
    url_region: str | None = None
    region: str | None = None
    configured_region: str | None = None
    endpoint: str = ""
    credentials: str | None = None
    unreachable: str | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    denied: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    not_tried: Sequence[str] = ()
    dead_letters: Mapping[str, str] | None = None
    dead_letters_unreachable: str | None = None
    dead_letters_denied: str | None = None
    dead_letters_not_tried: bool = False
    worker: WorkerTimes | None = None
    one_group: bool = False


class WorkerTimes(NamedTuple):
    """The timeouts of a worker, in seconds, and the queues it polls. `hard_timeouts` are those of its tasks, by name.

    `dead_letters`: whether it is set to send failed messages to the dead-letter queue itself. `without_max_memory`:
    its tasks that are known to have no max_memory.
    """

    urls: Sequence[str]
    sqs_timeout: int
    alarm_timeout: float
    shutdown_grace: float
    hard_timeouts: Mapping[str, float]
    dead_letters: bool = False
    without_max_memory: Sequence[str] = ()

    @property
    def longest(self) -> tuple[str, float]:
        """The task that may run longest, and for how long."""
        return max(self.hard_timeouts.items(), key=lambda item: item[1], default=("", 0.0))


# -- the checks: pure -------------------------------------------------------------------------------------------------


def examine(facts: Facts) -> list[Finding]:
    """All findings about the facts, in the order of the checks."""
    checks = _ALWAYS if facts.unreachable else _ALWAYS + _WITH_ATTRIBUTES
    findings = [finding for check in checks for finding in check(facts)]
    return findings


def worst(findings: list[Finding]) -> Level:
    """The worst level among the findings."""
    return max((finding.level for finding in findings), default=Level.OK)


def _region(facts: Facts) -> Iterator[Finding]:
    if facts.url_region is None:
        host = urlsplit(facts.url).hostname
        text = f"the URL names no region (host {host}); requests are signed for {facts.region}"
        yield Finding("region", Level.OK, text)
    elif facts.configured_region and facts.configured_region != facts.url_region:
        text = f"{facts.url_region}, from the URL; the configured default is {facts.configured_region}"
        remedy = "nothing for this package; other tools need AWS_DEFAULT_REGION to be the queue's"
        yield Finding("region", Level.WARNING, text, remedy)
    else:
        yield Finding("region", Level.OK, f"{facts.url_region}, from the URL")


def _endpoint(facts: Facts) -> Iterator[Finding]:
    named = urlsplit(facts.url).hostname or ""
    if facts.url_region and not is_of_aws(facts.endpoint):
        text = f"the URL is one of AWS's ({named}), but requests go to {facts.endpoint}"
        # The endpoint may be intended, and the URL copied from somewhere.
        remedy = (
            "if you mean AWS, unset AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_SQS, and endpoint_url in the profile; if "
            "you mean that server, use the queue URL that it returns, such as "
            f"{facts.endpoint.rstrip('/')}{urlsplit(facts.url).path}"
        )
        if facts.unreachable:
            yield Finding("endpoint", Level.ERROR, text, remedy)
        else:
            yield Finding("endpoint", Level.WARNING, f"{text}, which has such a queue", remedy)
    elif not facts.url_region and is_of_aws(facts.endpoint):
        text = f"the URL is not AWS's ({named}), but requests go to {facts.endpoint}"
        yield Finding("endpoint", Level.ERROR, text, "set AWS_ENDPOINT_URL_SQS to that server's address")
    else:
        yield Finding("endpoint", Level.OK, facts.endpoint)


def _credentials(facts: Facts) -> Iterator[Finding]:
    if facts.credentials is None:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an IAM role"
        yield Finding("credentials", Level.ERROR, "none found", remedy)
    else:
        yield Finding("credentials", Level.OK, facts.credentials)


def _reachable(facts: Facts) -> Iterator[Finding]:
    if facts.unreachable:
        text, _, remedy = facts.unreachable.rpartition(": ")
        yield Finding("queue", Level.ERROR, text or facts.unreachable, remedy)
    else:
        kind = "FIFO" if facts.url.endswith(".fifo") else "standard"
        waiting = facts.attributes.get("ApproximateNumberOfMessages", "?")
        yield Finding("queue", Level.OK, f"answers; {kind}, visible messages: {waiting}")


def _permissions(facts: Facts) -> Iterator[Finding]:
    for action, said in facts.denied.items():
        if said is None:
            yield Finding(action, Level.OK, "allowed")
        else:
            yield Finding(action, Level.ERROR, said, f"allow sqs:{action} on the queue to this role")
    for action in facts.not_tried:
        yield Finding(action, Level.OK, "not tried: only AWS is certain to refuse the test request")


def _redrive_policy(facts: Facts) -> Iterator[Finding]:
    name = "redrive policy"
    policy = _policy(facts.attributes)
    if not policy:
        text = "none: a task that always fails is run again and again until its retention period ends"
        yield Finding(name, Level.WARNING, text, "make a dead-letter queue and set RedrivePolicy on this queue")
        return
    receives = int(policy.get("maxReceiveCount", 0))
    text = f"to {_name_of(policy)} after {receives} receive{'s' * (receives != 1)}"
    if receives < _FEWEST_RECEIVES:
        text += ": a deploy or a lost worker costs a receive too, and after the last a healthy task is dead-lettered"
        remedy = f"raise maxReceiveCount to {_FEWEST_RECEIVES} or more; a task that raises Continue costs none"
        yield Finding(name, Level.WARNING, text, remedy)
    elif receives > _MOST_RECEIVES:
        remedy = f"lower maxReceiveCount to {_MOST_RECEIVES} or less: a task that always fails is run that often"
        yield Finding(name, Level.WARNING, text, remedy)
    else:
        yield Finding(name, Level.OK, text)


def _dead_letters(facts: Facts) -> Iterator[Finding]:
    name = "dead-letter queue"
    if facts.dead_letters_unreachable:
        text, _, remedy = facts.dead_letters_unreachable.rpartition(": ")
        yield Finding(name, Level.WARNING, text, remedy)
    elif facts.dead_letters is not None:
        waiting = int(facts.dead_letters.get("ApproximateNumberOfMessages", 0))
        if not _takes_from(facts.dead_letters, facts.attributes.get("QueueArn")):
            text = "its RedriveAllowPolicy does not let this queue's messages in: they may never leave this queue"
            yield Finding(name, Level.ERROR, text, "allow this queue's ARN there, among the sourceQueueArns")
        elif waiting:
            remedy = "find out why, then move them back with: sqstaskmaster redrive DLQ_URL"
            yield Finding(name, Level.WARNING, f"messages in it: {waiting}", remedy)
        elif not facts.url.endswith(".fifo") and _retention(facts.dead_letters) <= _retention(facts.attributes):
            # On FIFO queues the retention starts anew when a message is moved.
            text = f"keeps messages {_days(_retention(facts.dead_letters))}, counted from when they were first sent"
            yield Finding(
                name, Level.WARNING, text, "raise its MessageRetentionPeriod above this queue's (14 days at most)"
            )
        else:
            yield Finding(name, Level.OK, "empty")


def _sent_dead_letters(facts: Facts) -> Iterator[Finding]:
    """Check what a worker needs to send failed messages, with the reason, to the dead-letter queue."""
    name = "dead letters"
    if facts.worker is None or not facts.worker.dead_letters:
        return
    if not _policy(facts.attributes):
        text = "the worker should send failed messages to the dead-letter queue, but there is none: they fail as usual"
        yield Finding(name, Level.ERROR, text, "make a dead-letter queue and set RedrivePolicy on this queue")
    elif facts.dead_letters_denied is not None:
        remedy = f"allow sqs:SendMessage on {_name_of(_policy(facts.attributes))} to this role"
        yield Finding(name, Level.ERROR, facts.dead_letters_denied, remedy)
    elif facts.dead_letters_not_tried:
        text = "SendMessage to it not tried: only AWS is certain to refuse the test request"
        yield Finding(name, Level.OK, text)
    else:
        yield Finding(name, Level.OK, "the worker may send failed messages there")


def _retention_period(facts: Facts) -> Iterator[Finding]:
    name, retention = "retention", _retention(facts.attributes)
    text = f"messages live {_days(retention)}"
    receives = int(_policy(facts.attributes).get("maxReceiveCount", 1))
    task, longest = facts.worker.longest if facts.worker else ("", 0.0)
    if facts.worker and retention <= longest:
        text += f", and task {task!r} may run {longest:g} s: its message is gone before it can be retried"
        remedy = "raise MessageRetentionPeriod well above the hard timeout (14 days at most)"
        yield Finding(name, Level.ERROR, text, remedy)
    elif facts.worker and retention <= receives * longest:
        text += f", fewer than {receives} receives of task {task!r}, {longest:g} s each"
        remedy = "raise MessageRetentionPeriod, or a task may vanish before it reaches the dead-letter queue"
        yield Finding(name, Level.WARNING, text, remedy)
    elif retention < _SHORT_RETENTION_SECONDS:
        text += ": a task that waits or runs for longer is lost"
        yield Finding(name, Level.WARNING, text, "raise MessageRetentionPeriod (4 days by default, 14 at most)")
    else:
        yield Finding(name, Level.OK, text)


def _delay(facts: Facts) -> Iterator[Finding]:
    seconds = int(facts.attributes.get("DelaySeconds", 0))
    if seconds:
        text = f"every message waits {seconds} s before a worker can see it"
        yield Finding(
            "delay", Level.WARNING, text, "set DelaySeconds to 0 on the queue, and delay single tasks instead"
        )


def _message_size(facts: Facts) -> Iterator[Finding]:
    size = int(facts.attributes.get("MaximumMessageSize", MAX_MESSAGE_BYTES))
    if size < MAX_MESSAGE_BYTES:
        text = f"the queue takes {size:,} bytes, SQS up to {MAX_MESSAGE_BYTES:,}"
        yield Finding("message size", Level.WARNING, text, "raise MaximumMessageSize, unless tasks are all smaller")


def _encryption(facts: Facts) -> Iterator[Finding]:
    key = facts.attributes.get("KmsMasterKeyId")
    if key:
        text = f"by the KMS key {key}: workers need kms:Decrypt, producers also kms:GenerateDataKey"
        yield Finding("encryption", Level.OK, text)


def _worker(facts: Facts) -> Iterator[Finding]:
    worker = facts.worker
    if worker is None:
        return
    if facts.url not in worker.urls:
        text = f"it polls {', '.join(worker.urls)}"
        yield Finding(
            "worker's queue", Level.ERROR, text, "give doctor the URL that the worker polls, or correct the worker"
        )
    if not worker.hard_timeouts:
        remedy = 'give Worker its handlers, or register functions with @worker.task("Name")'
        yield Finding("worker's tasks", Level.ERROR, "it has none, and would refuse every message", remedy)
    yield from _visibility(worker, int(facts.attributes.get("VisibilityTimeout", 30)))
    yield from _shutdown(worker)
    if facts.one_group:
        yield from _memory(worker)


def _memory(worker: WorkerTimes) -> Iterator[Finding]:
    text = "the kernel kills all processes of this container if one takes too much (memory.oom.group)"
    if worker.without_max_memory:
        text += f", and no max_memory ends {', '.join(map(repr, worker.without_max_memory))} before"
        remedy = "give each task a max_memory, all slots together well below the container's limit"
        yield Finding("memory", Level.WARNING, text, remedy)
    else:
        yield Finding("memory", Level.OK, text)


def _visibility(worker: WorkerTimes, default: int) -> Iterator[Finding]:
    name, text = "visibility", f"the worker claims {worker.sqs_timeout} s at a time"
    if worker.sqs_timeout > _LONG_VISIBILITY_SECONDS:
        text += "; after a kill the message stays hidden for as long"
        remedy = (
            f"lower sqs_timeout to {_LONG_VISIBILITY_SECONDS} s or less: it is extended for as long as the task runs"
        )
        yield Finding(name, Level.WARNING, text, remedy)
    elif worker.sqs_timeout < worker.alarm_timeout + _SLOW_REQUEST_SECONDS:
        text += f" and extends after {worker.alarm_timeout:g} s: one slow request loses the claim"
        least = math.ceil(worker.alarm_timeout + _SLOW_REQUEST_SECONDS)
        yield Finding(name, Level.WARNING, text, f"raise sqs_timeout to {least} s or more, or lower alarm_timeout")
    elif default > _LONG_VISIBILITY_SECONDS:
        text += f"; the queue's own default is {default} s, which other consumers get"
        yield Finding(
            name, Level.WARNING, text, "lower VisibilityTimeout on the queue, where there are other consumers"
        )
    else:
        yield Finding(name, Level.OK, text)


def _shutdown(worker: WorkerTimes) -> Iterator[Finding]:
    needs = worker.shutdown_grace + _AFTER_GRACE_SECONDS
    text = f"a task gets {worker.shutdown_grace:g} s after SIGTERM"
    if needs > _STOP_SECONDS:
        text += f"; a container is killed after {_STOP_SECONDS} s by default"
        remedy = f"give the container a stop timeout over {needs:g} s"
        if needs > _LONGEST_STOP_SECONDS:
            remedy = f"lower shutdown_grace: Fargate gives {_LONGEST_STOP_SECONDS} s at most (elsewhere, {remedy})"
        yield Finding("shutdown", Level.WARNING, text, remedy)
    else:
        yield Finding("shutdown", Level.OK, text)


_Check = Callable[[Facts], Iterator[Finding]]
_ALWAYS: tuple[_Check, ...] = (_region, _endpoint, _credentials, _reachable)
_WITH_ATTRIBUTES: tuple[_Check, ...] = (
    _permissions,
    _redrive_policy,
    _dead_letters,
    _sent_dead_letters,
    _retention_period,
    _delay,
    _message_size,
    _encryption,
    _worker,
)


def _policy(attributes: Mapping[str, str]) -> dict[str, Any]:
    policy: dict[str, Any] = json.loads(attributes.get("RedrivePolicy") or "{}")
    return policy


def _takes_from(dead_letters: Mapping[str, str], arn: str | None) -> bool:
    """Whether a dead-letter queue accepts messages from the queue with that ARN.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-configure-dead-letter-queue.html
    """
    allowed = json.loads(dead_letters.get("RedriveAllowPolicy") or "{}")
    permission = allowed.get("redrivePermission", "allowAll")
    return permission == "allowAll" or (permission == "byQueue" and arn in allowed.get("sourceQueueArns", ()))


def _name_of(policy: Mapping[str, Any]) -> str:
    return str(policy.get("deadLetterTargetArn", "")).rpartition(":")[2]


def _retention(attributes: Mapping[str, str]) -> int:
    return int(attributes.get("MessageRetentionPeriod", 345600))


def _days(seconds: int) -> str:
    return f"{seconds / 86400:g} days" if seconds >= 86400 else f"{seconds} s"


def times_of(worker: Worker) -> WorkerTimes:
    """What the doctor checks of a worker. Timeouts that a handler class sets for itself are not known here."""
    return WorkerTimes(
        [manager.url for manager in worker.managers],
        worker.sqs_timeout,
        worker.alarm_timeout,
        worker.shutdown_grace,
        worker.hard_timeouts,
        worker.sends_dead_letters,
        worker.tasks_without_max_memory,
    )


# -- gathering: asks AWS ----------------------------------------------------------------------------------------------


def gather(
    url: str, client: Any, explain: Callable[[BaseException, str], str], worker: WorkerTimes | None = None
) -> Facts:
    """Ask SQS for everything `examine` looks at.

    :param explain: `explain(error, url)` turns a queue's error into a sentence.
    """
    facts = Facts(url=url, url_region=region_of(url), region=client.meta.region_name, endpoint=client.meta.endpoint_url)
    facts.worker, facts.one_group = worker, is_one_group()
    facts.configured_region, facts.credentials = _configuration()
    try:
        facts.attributes = _attributes(client, url)
    except SQS_ERRORS as error:
        facts.unreachable = explain(error, url)
        return facts
    facts.denied = {"GetQueueAttributes": None, **_denied(client, url)}
    if "ReceiveMessage" not in facts.denied:
        facts.not_tried = ["ReceiveMessage"]
    policy = _policy(facts.attributes)
    if policy:
        dead_letters = dead_letter_url(url, policy["deadLetterTargetArn"])
        try:
            facts.dead_letters = _attributes(client, dead_letters)
        except SQS_ERRORS as error:
            facts.dead_letters_unreachable = explain(error, dead_letters)
        if worker is not None and worker.dead_letters:
            facts.dead_letters_not_tried = not is_of_aws(client.meta.endpoint_url)
            if not facts.dead_letters_not_tried:
                # Wrong in two ways, so that nothing is sent: the delay is over the limit, the body is not valid text.
                facts.dead_letters_denied = _refusal(
                    lambda: client.send_message(QueueUrl=dead_letters, MessageBody="\0", DelaySeconds=_NO_DELAY)
                )
    return facts


def is_one_group(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> bool:
    """Whether the kernel's OOM killer kills this container or service, or a group that contains it, as a whole.

    Kubernetes sets this up, and so does systemd's OOMPolicy=kill. Cgroup v2 only.

    https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    for folder in processors.own_cgroups(cgroup, own=own):
        with contextlib.suppress(OSError):
            if (folder / "memory.oom.group").read_text().strip() == "1":
                return True
    return False


def _attributes(client: Any, url: str) -> Mapping[str, str]:
    with Explained(url, client):
        answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        return attributes_in(answer)


def _configuration() -> tuple[str | None, str | None]:
    """The default region and, without any secret, where the credentials come from."""
    import botocore.session

    session = botocore.session.get_session()
    credentials = session.get_credentials()
    region = session.get_config_variable("region")
    if credentials is None:
        return region, None
    return region, f"access key ...{credentials.access_key[-4:]}, from {credentials.method}"


def _denied(client: Any, url: str) -> dict[str, str | None]:
    """For each action of a worker, SQS's refusal, or None.

    No request has any effect: SQS checks the permission, then refuses the parameters. Other servers may not check
    the parameters, and would return a message to a receive, so they get no such request.
    """
    requests: dict[str, Callable[[], Any]] = {
        "ChangeMessageVisibility": lambda: client.change_message_visibility(
            QueueUrl=url, ReceiptHandle=_NO_HANDLE, VisibilityTimeout=0
        ),
        "DeleteMessage": lambda: client.delete_message(QueueUrl=url, ReceiptHandle=_NO_HANDLE),
    }
    if is_of_aws(client.meta.endpoint_url):
        requests["ReceiveMessage"] = lambda: client.receive_message(
            QueueUrl=url, MaxNumberOfMessages=0, WaitTimeSeconds=0
        )
    return {action: _refusal(request) for action, request in requests.items()}


def _refusal(request: Callable[[], Any]) -> str | None:
    """SQS's error text if it does not allow the request, else None."""
    try:
        request()
    except SQS_ERRORS as error:
        if code_of(error) in _DENIED:
            return " ".join(str(error).split())
    return None
