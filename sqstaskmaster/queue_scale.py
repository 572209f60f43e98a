"""Provisioner: turns ECS services on while their queue has work, and off when it has none.

Run it every minute or so, as a scheduled task:

    depth of the queue (visible + not visible + delayed) > 0   ->  desiredCount = active_size
                                                           0   ->  desiredCount = 0
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError, NoRegionError

from sqstaskmaster._logging import get_logger
from sqstaskmaster._sqs.confirmation import attributes_in
from sqstaskmaster._sqs.regions import region_of
from sqstaskmaster.errors import ConfigurationError, NoAnswer

logger: logging.Logger = get_logger(__name__)

#: How to scale one service: a dictionary with the four keys that `Provisioner` names.
Rule = Mapping[str, Any]


class ServiceState(enum.Enum):
    """The state of an ECS service; only an ACTIVE one is scaled."""

    #: Not ready yet: left as it is.
    STARTING = "starting"
    #: Scaled by the depth of its queue.
    ACTIVE = "active"
    #: About to go: left as it is.
    STOPPING = "stopping"
    #: There is something wrong with it: left as it is.
    FAILING = "failing"


class Provisioner:
    """Scales each rule's ECS service by the depth of the rule's queue.

    ::

        Provisioner([{
            Provisioner.QUEUE_NAME: "https://sqs.eu-west-1.amazonaws.com/123456789012/train",
            Provisioner.SERVICE_NAME: "train",
            Provisioner.CLUSTER_NAME: "workers",
            Provisioner.ACTIVE_SIZE: 4,
        }]).run()

    :param rules: dictionaries with the four keys. The queue name is the queue's URL; the size is the desired count of
        tasks while there is work, a whole number of 0 or more (None stands for 0).
    :param notify: called as `notify(exception, context=rule)` with an error from AWS.
    :raises TypeError: for rules that are not iterable, and for a rule that is not a dictionary.
    :raises KeyError: for a rule that lacks a key.
    :raises ValueError: for a rule with an invalid value.
    :raises ConfigurationError: (a ValueError) if no region is configured.

    It takes the region of queue and service from the queue's URL, whichever region is configured.

    Permissions: `sqs:GetQueueAttributes` on the queues, `ecs:UpdateService` (and `ecs:DescribeServices`,
    `ecs:ListTagsForResource` where `get_description` and `get_tags` are used) on the services.
    """

    #: The key of the queue's URL.
    QUEUE_NAME = "queue_name"
    #: The key of the ECS service's name.
    SERVICE_NAME = "service_name"
    #: The key of the ECS cluster's name.
    CLUSTER_NAME = "cluster_name"
    #: The key of the desired count while there is work: a whole number, 0 or more.
    ACTIVE_SIZE = "active_size"

    #: The names that `log_queue_depth` uses for SQS's counts.
    QUEUE_DEPTH_ATTRIBUTES = {
        "pending_jobs": "ApproximateNumberOfMessages",
        "running_jobs": "ApproximateNumberOfMessagesNotVisible",
        "scheduled_jobs": "ApproximateNumberOfMessagesDelayed",
    }

    def __init__(self, rules: Iterable[Rule], notify: Callable[..., Any] | None = None) -> None:
        if notify is not None and not callable(notify):
            raise TypeError(f"notify must be callable as notify(exception, context=...), not {notify!r}")
        self.rules: list[Rule] = _checked(rules)
        self._notify = notify
        self._clients: dict[str, Any] = {}
        named = next(filter(None, (region_of(rule[self.QUEUE_NAME]) for rule in self.rules)), None)
        self.sqs: Any
        self.ecs: Any
        try:
            self.sqs, self.ecs = boto3.resource("sqs"), boto3.client("ecs")
        except NoRegionError as error:
            if named is None:
                raise ConfigurationError(
                    "No AWS region is configured: set AWS_DEFAULT_REGION, or a region in the profile you use, to the "
                    "one where the services and their queues are"
                ) from error
            self.sqs, self.ecs = boto3.resource("sqs", region_name=named), boto3.client("ecs", region_name=named)

    def run(self) -> list[Rule]:
        """Apply every rule once, and return those that failed: `sys.exit(1 if provisioner.run() else 0)`.

        After an error from AWS (ClientError), or an answer that is not SQS's (NoAnswer), it logs that, calls `notify`,
        and goes on with the next rule.
        """
        failed = []
        for rule in self.rules:
            try:
                self._apply(rule)
            except (ClientError, NoAnswer) as error:
                logger.exception("Could not apply rule: %s", rule, extra={"action": "rule_failed"})
                self.notify(error, context=rule)
                failed.append(rule)
        return failed

    def _apply(self, rule: Rule) -> None:
        depth = self.log_queue_depth(rule)
        state = self.service_state(rule)
        if state is not ServiceState.ACTIVE:
            logger.info("Service %s is %s, left as it is", rule[self.SERVICE_NAME], state.value)
            return
        size = (rule[self.ACTIVE_SIZE] or 0) if depth else 0
        self._ecs_in(region_of(rule[self.QUEUE_NAME])).update_service(
            cluster=rule[self.CLUSTER_NAME], service=rule[self.SERVICE_NAME], desiredCount=size
        )
        logger.info("Service %s set to %d for %d messages", rule[self.SERVICE_NAME], size, depth)

    def log_queue_depth(self, rule: Rule) -> int:
        """Log the three counts of the rule's queue, and return their sum. The counts of SQS are approximate.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        url = rule[self.QUEUE_NAME]
        attributes = self._sqs_in(region_of(url)).Queue(url).attributes
        if attributes is None:
            attributes = attributes_in({})
        depths = {name: int(attributes[key]) for name, key in self.QUEUE_DEPTH_ATTRIBUTES.items()}
        logger.info("Queue %s: %s", rule[self.QUEUE_NAME], depths, extra={"action": "queue_depth", **depths})
        return sum(depths.values())

    def service_state(self, rule: Rule) -> ServiceState:
        """For overriding: whether the service of `rule` may be scaled now. Default: ACTIVE."""
        return ServiceState.ACTIVE

    def get_description(self, rule: Rule) -> dict[str, Any]:
        """ECS's description of the rule's service, with tags; `{}` if ECS knows no such service.

        https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeServices.html
        """
        answer = self._ecs_in(region_of(rule[self.QUEUE_NAME])).describe_services(
            cluster=rule[self.CLUSTER_NAME], services=[rule[self.SERVICE_NAME]], include=["TAGS"]
        )
        failures, services = answer.get("failures"), answer.get("services")
        if failures or not services:
            logger.error("No description of service %s: %s", rule[self.SERVICE_NAME], failures)
            return {}
        description: dict[str, Any] = services[0]
        return description

    def get_tags(self, arn: str) -> list[dict[str, str]]:
        """The tags of the ECS resource with that `arn`, as ECS gives them: `[{"key": ..., "value": ...}]`.

        https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ListTagsForResource.html
        """
        region = (str(arn).split(":") + [""] * 4)[3]  # arn:aws:ecs:eu-west-1:...
        tags: list[dict[str, str]] = self._ecs_in(region).list_tags_for_resource(resourceArn=arn).get("tags", [])
        return tags

    def _sqs_in(self, region: str | None) -> Any:
        """`sqs`, or one like it in a queue's region: SQS refuses requests signed for another region."""
        if not _differs(region, lambda: self.sqs.meta.client.meta.region_name):
            return self.sqs
        if f"sqs {region}" not in self._clients:
            self._clients[f"sqs {region}"] = boto3.resource("sqs", region_name=region)
        return self._clients[f"sqs {region}"]

    def _ecs_in(self, region: str | None) -> Any:
        """`ecs`, or one like it in that region: a queue's service is where the queue is."""
        if not _differs(region, lambda: self.ecs.meta.region_name):
            return self.ecs
        if f"ecs {region}" not in self._clients:
            self._clients[f"ecs {region}"] = boto3.client("ecs", region_name=region)
        return self._clients[f"ecs {region}"]

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Call the `notify` given to the constructor, if any, as `notify(exception, context=context)`.

        If it raises, that is logged and goes no further.
        """
        if self._notify is None:
            return
        try:
            self._notify(exception, context=context)
        except Exception:
            logger.exception("notify failed for rule: %s", context, extra={"action": "notify_failed"})


def _differs(region: str | None, own: Callable[[], Any]) -> bool:
    """Whether that region needs a client of its own. A substitute for ours that names no region is used as it is."""
    if not region:
        return False
    try:
        found = own()
    except AttributeError:
        return False
    return isinstance(found, str) and found != region


def _checked(rules: Any) -> list[Rule]:
    """The rules as a list, so that the check does not use up an iterator."""
    try:
        iterator = iter(rules)
    except TypeError:
        raise TypeError(f"Rules must be iterable: {rules}") from None
    # Outside the `try`: a TypeError from the caller's own generator does not mean that it is not iterable.
    checked = list(iterator)
    keys = (Provisioner.QUEUE_NAME, Provisioner.SERVICE_NAME, Provisioner.CLUSTER_NAME, Provisioner.ACTIVE_SIZE)
    for rule in checked:
        if not isinstance(rule, dict):
            raise TypeError(f"Each rule must be a dictionary: {rule}")
        for key in keys:
            if key not in rule:
                raise KeyError(f"Rules must specify the {key}")
        for key in keys[:-1]:
            if not isinstance(rule[key], str) or not rule[key]:
                raise ValueError(f"The {key} of a rule must be a non-empty string, not {rule[key]!r}")
        size = rule[Provisioner.ACTIVE_SIZE]
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(f"The active_size of a rule must be a whole number of tasks, 0 or more, not {size!r}")
    return checked
