"""Provisioner on a real ECS and SQS API: services really go up, and to zero."""

import copy
import os
import unittest
import uuid
from unittest import mock

import boto3
from botocore.exceptions import ClientError

from sqstaskmaster.errors import ConfigurationError, NoAnswer
from sqstaskmaster.queue_scale import Provisioner, ServiceState
from tests.support import ServerTestCase, client, endpoint, environment, lacks, session
from tests.support.faults import Faulty

RULE = {
    "queue_name": "https://sqs.us-east-1.amazonaws.com/1/q",
    "service_name": "s",
    "cluster_name": "c",
    "active_size": 2,
}


class EcsTestCase(ServerTestCase):
    def setUp(self):
        super().setUp()
        self.ecs = client("ecs")
        self.addCleanup(self.ecs.close)
        self.cluster = f"cluster-{uuid.uuid4().hex}"
        try:
            self.ecs.create_cluster(clusterName=self.cluster)
        except ClientError as error:
            lacks(f"ECS: {error}")
        self.addCleanup(self.ecs.delete_cluster, cluster=self.cluster)
        self.ecs.register_task_definition(
            family="worker", containerDefinitions=[{"name": "worker", "image": "worker", "memory": 128}]
        )

    def rule(self, size=2, desired=0, **queue):
        """A rule with a queue and a service of its own."""
        service = f"service-{uuid.uuid4().hex}"
        self.ecs.create_service(
            cluster=self.cluster,
            serviceName=service,
            taskDefinition="worker",
            desiredCount=desired,
            tags=[{"key": "team", "value": "models"}],
        )
        self.addCleanup(self.ecs.delete_service, cluster=self.cluster, service=service, force=True)
        return {
            Provisioner.QUEUE_NAME: self.create_queue(**queue),
            Provisioner.SERVICE_NAME: service,
            Provisioner.CLUSTER_NAME: self.cluster,
            Provisioner.ACTIVE_SIZE: size,
        }

    def desired(self, rule):
        answer = self.ecs.describe_services(cluster=self.cluster, services=[rule["service_name"]])
        return answer["services"][0]["desiredCount"]

    def send(self, rule, **options):
        self.sqs.send_message(QueueUrl=rule["queue_name"], MessageBody="{}", **options)


class RegionTest(unittest.TestCase):
    RULE = {**RULE, "queue_name": "https://sqs.eu-west-1.amazonaws.com/1/q"}

    def setUp(self):
        super().setUp()
        environ = mock.patch.dict(os.environ, {**environment(), "AWS_DEFAULT_REGION": "us-east-1"}, clear=True)
        environ.start()
        self.addCleanup(environ.stop)
        boto3.DEFAULT_SESSION = session()
        self.addCleanup(setattr, boto3, "DEFAULT_SESSION", None)

    def test_the_region_is_the_queue_urls_whatever_is_configured(self):
        provisioner = Provisioner([self.RULE, RULE])
        regions = [provisioner._sqs_in("eu-west-1").meta.client, provisioner._ecs_in("eu-west-1")]
        self.assertEqual(["eu-west-1"] * 2, [client.meta.region_name for client in regions])
        self.assertIs(provisioner.sqs, provisioner._sqs_in("us-east-1"))
        self.assertIs(provisioner.ecs, provisioner._ecs_in(None))
        self.assertIs(provisioner._ecs_in("eu-west-1"), provisioner._ecs_in("eu-west-1"))

    def test_a_rule_is_looked_at_and_applied_in_its_queues_region(self):
        provisioner = Provisioner([self.RULE])
        sqs, ecs = mock.Mock(), mock.Mock()
        sqs.Queue.return_value.attributes = dict.fromkeys(Provisioner.QUEUE_DEPTH_ATTRIBUTES.values(), "1")
        provisioner._clients = {"sqs eu-west-1": sqs, "ecs eu-west-1": ecs}
        self.assertEqual([], provisioner.run())
        ecs.update_service.assert_called_once_with(cluster="c", service="s", desiredCount=2)

    def test_without_a_configured_region_the_queue_urls_is_enough(self):
        del os.environ["AWS_DEFAULT_REGION"]
        self.assertEqual("eu-west-1", Provisioner([self.RULE]).ecs.meta.region_name)

    def test_clients_that_a_test_put_in_place_are_used(self):
        provisioner = Provisioner([self.RULE])
        provisioner.sqs, provisioner.ecs = mock.Mock(), mock.Mock()
        attributes = dict.fromkeys(Provisioner.QUEUE_DEPTH_ATTRIBUTES.values(), "0")
        provisioner.sqs.Queue.return_value.attributes = attributes
        provisioner.run()
        provisioner.ecs.update_service.assert_called_once_with(cluster="c", service="s", desiredCount=0)


class ResultTest(EcsTestCase):
    def test_run_gives_the_rules_that_failed(self):
        good, bad = self.rule(), self.rule()
        bad["service_name"] = "no-such-service"
        with self.assertLogs("sqstaskmaster.queue_scale", "ERROR"):
            self.assertEqual([bad], Provisioner([good, bad, good]).run())
        self.assertEqual([], Provisioner([good]).run())


class ScaleTest(EcsTestCase):
    def test_a_service_goes_up_while_its_queue_has_work_and_to_zero_when_it_has_none(self):
        rule = self.rule(size=3)
        provisioner = Provisioner([rule])
        provisioner.run()
        self.assertEqual(0, self.desired(rule))
        self.send(rule)
        provisioner.run()
        self.assertEqual(3, self.desired(rule))
        [message] = self.receive(rule["queue_name"], wait=20, visibility=600)
        provisioner.run()
        self.assertEqual(3, self.desired(rule), "a message in flight is work")
        self.sqs.delete_message(QueueUrl=rule["queue_name"], ReceiptHandle=message["ReceiptHandle"])
        provisioner.run()
        self.assertEqual(0, self.desired(rule))

    def test_a_delayed_message_is_work(self):
        rule = self.rule()
        self.send(rule, DelaySeconds=900)
        self.assertEqual((0, 0, 1), self.counts(rule["queue_name"]))
        Provisioner([rule]).run()
        self.assertEqual(2, self.desired(rule))

    def test_a_size_of_none_or_nought_is_zero(self):
        for size in (None, 0):
            rule = self.rule(size=size, desired=1)
            self.send(rule)
            Provisioner([rule]).run()
            self.assertEqual(0, self.desired(rule))

    def test_each_rule_looks_at_its_own_queue(self):
        idle, busy = self.rule(desired=1), self.rule(size=4)
        self.send(busy)
        Provisioner([idle, busy]).run()
        self.assertEqual((0, 4), (self.desired(idle), self.desired(busy)))

    def test_an_iterator_of_rules_is_good_for_every_run(self):
        """Defect 14: checking the rules used the iterator up, and run() did nothing."""
        rule = self.rule()
        self.send(rule)
        provisioner = Provisioner(iter([rule]))
        provisioner.run()
        self.assertEqual(2, self.desired(rule))
        self.ecs.update_service(cluster=self.cluster, service=rule["service_name"], desiredCount=0)
        provisioner.run()
        self.assertEqual(2, self.desired(rule))

    def test_a_service_in_any_other_state_than_active_is_left_as_it_is(self):
        rule = self.rule(desired=1)
        for state in ServiceState:
            if state is not ServiceState.ACTIVE:

                class Own(Provisioner):
                    def service_state(self, rule, state=state):
                        return state

                with self.assertLogs("sqstaskmaster.queue_scale", "INFO") as logs:
                    Own([rule]).run()
                self.assertIn(state.value, logs.output[-1])
                self.assertEqual(1, self.desired(rule))

    def test_the_depths_are_logged_under_their_names(self):
        rule = self.rule()
        self.send(rule)
        self.send(rule)
        self.send(rule, DelaySeconds=900)
        self.assertEqual(1, len(self.sqs.receive_message(QueueUrl=rule["queue_name"])["Messages"]))
        with self.assertLogs("sqstaskmaster.queue_scale", "INFO") as logs:
            self.assertEqual(3, Provisioner([rule]).log_queue_depth(rule))
        [record] = logs.records
        self.assertEqual((1, 1, 1), (record.pending_jobs, record.running_jobs, record.scheduled_jobs))
        self.assertEqual({"pending_jobs", "running_jobs", "scheduled_jobs"}, set(Provisioner.QUEUE_DEPTH_ATTRIBUTES))

    def test_the_description_is_the_services_with_its_tags(self):
        rule = self.rule(desired=1)
        description = Provisioner([rule]).get_description(rule)
        self.assertEqual((rule["service_name"], 1), (description["serviceName"], description["desiredCount"]))
        tags = [{"key": "team", "value": "models"}]
        self.assertEqual(tags, description["tags"])
        self.assertEqual(tags, Provisioner([rule]).get_tags(description["serviceArn"]))

    def test_a_service_that_is_not_there_has_an_empty_description(self):
        rule = {**self.rule(), "service_name": "nobody"}
        with self.assertLogs("sqstaskmaster.queue_scale", "ERROR"):
            self.assertEqual({}, Provisioner([rule]).get_description(rule))


class FailureTest(EcsTestCase):
    def run_two(self, wrong, notify):
        """Runs the wrong rule and a right one after it, which must have been applied all the same."""
        right = self.rule()
        self.send(right)
        with self.assertLogs("sqstaskmaster.queue_scale", "ERROR") as logs:
            Provisioner([wrong, right], notify).run()
        self.assertEqual(2, self.desired(right))
        return logs.records

    def test_an_error_of_ecs_or_sqs_is_notified_and_logged_and_the_next_rule_goes_on(self):
        rule = self.rule()
        for wrong in ({**rule, "service_name": "nobody"}, {**rule, "queue_name": rule["queue_name"] + "-gone"}):
            notify = mock.Mock()
            [record] = self.run_two(wrong, notify)
            [(arguments, named)] = notify.call_args_list
            self.assertIsInstance(arguments[0], ClientError)
            self.assertEqual({"context": wrong}, named)
            self.assertIs(arguments[0], record.exc_info[1])

    def test_an_answer_that_is_none_of_sqss_is_one_too(self):
        proxy = Faulty(self, endpoint(), "GetQueueAttributes", "a page", times=1)
        notify = mock.Mock()
        with mock.patch.dict(os.environ, AWS_ENDPOINT_URL_SQS=proxy.url):
            self.run_two(self.rule(), notify)
        [(arguments, _)] = notify.call_args_list
        self.assertIsInstance(arguments[0], NoAnswer)

    def test_without_a_notify_it_is_logged(self):
        self.assertEqual(1, len(self.run_two({**self.rule(), "service_name": "nobody"}, None)))

    def test_a_notify_that_raises_is_logged_and_the_next_rule_goes_on(self):
        """Defect 10, on this side."""
        records = self.run_two({**self.rule(), "service_name": "nobody"}, mock.Mock(side_effect=OSError("down")))
        self.assertEqual(["rule_failed", "notify_failed"], [record.action for record in records])

    def test_an_error_of_our_own_code_is_not_swallowed(self):
        class Own(Provisioner):
            def service_state(self, rule):
                raise KeyError("a bug")

        with self.assertRaises(KeyError):
            Own([self.rule()]).run()


class RulesTest(unittest.TestCase):
    """Nothing is asked of AWS before the rules are right."""

    def test_rules_that_are_none_are_refused_with_the_classic_texts(self):
        for rules, text in ((55, "Rules must be iterable: 55"), (None, "Rules must be iterable: None")):
            with self.assertRaises(TypeError) as refusal:
                Provisioner(rules)
            self.assertEqual(text, str(refusal.exception))
        for rules in (["foo"], [RULE, "foo"], iter(["foo"])):
            with self.assertRaises(TypeError) as refusal:
                Provisioner(rules)
            self.assertEqual("Each rule must be a dictionary: foo", str(refusal.exception))

    def test_the_first_key_that_lacks_is_named_in_the_order_queue_service_cluster_size(self):
        rule = {}
        for key in ("queue_name", "service_name", "cluster_name", "active_size"):
            with self.assertRaises(KeyError) as refusal:
                Provisioner([RULE, rule])
            self.assertEqual((f"Rules must specify the {key}",), refusal.exception.args)
            rule[key] = RULE[key]
        names = (Provisioner.QUEUE_NAME, Provisioner.SERVICE_NAME, Provisioner.CLUSTER_NAME, Provisioner.ACTIVE_SIZE)
        self.assertEqual(tuple(RULE), names)

    def test_a_value_that_is_none_is_refused_by_name(self):
        for key in ("queue_name", "service_name", "cluster_name"):
            for value in ("", None, 5):
                with self.subTest(key=key), self.assertRaisesRegex(ValueError, f"{key} of a rule must be .*{value!r}"):
                    Provisioner([{**RULE, key: value}])
        for size in (-1, 1.5, "2", True):
            with self.subTest(size=size), self.assertRaisesRegex(ValueError, f"active_size of a rule .*{size!r}"):
                Provisioner([{**RULE, "active_size": size}])

    def test_a_type_error_of_the_callers_own_generator_is_the_callers(self):
        def rules():
            yield RULE
            raise TypeError("theirs")

        with self.assertRaisesRegex(TypeError, "^theirs$"):
            Provisioner(rules())

    def test_a_notify_that_cannot_be_called_is_refused(self):
        with self.assertRaisesRegex(TypeError, "notify must be callable.*'email'"):
            Provisioner([RULE], "email")

    def test_a_missing_region_is_one_clear_sentence(self):
        nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        with mock.patch.dict(os.environ, nothing, clear=True), mock.patch.object(boto3, "DEFAULT_SESSION", None):
            with self.assertRaisesRegex(ConfigurationError, "^No AWS region is configured: set AWS_DEFAULT_REGION"):
                Provisioner([{**RULE, "queue_name": "http://127.0.0.1:5000/1/q"}])


class DescriptionTest(unittest.TestCase):
    """What no server here answers."""

    def setUp(self):
        with mock.patch.dict(os.environ, environment()), mock.patch.object(boto3, "DEFAULT_SESSION", session()):
            self.provisioner = Provisioner([copy.copy(RULE)])
        self.provisioner.ecs = mock.Mock()

    def description_of(self, answer):
        self.provisioner.ecs.describe_services.return_value = answer
        return self.provisioner.get_description(RULE)

    def test_neither_services_nor_failures_is_an_empty_description(self):
        """Defect 14: this was an IndexError."""
        for answer in ({"services": [], "failures": []}, {}):
            with self.assertLogs("sqstaskmaster.queue_scale", "ERROR"):
                self.assertEqual({}, self.description_of(answer))

    def test_failures_are_an_empty_description_though_a_service_is_told_too(self):
        with self.assertLogs("sqstaskmaster.queue_scale", "ERROR"):
            self.assertEqual({}, self.description_of({"services": [{"a": 1}], "failures": [{"reason": "MISSING"}]}))

    def test_it_asks_for_the_first_service_with_its_tags(self):
        self.assertEqual({"a": 1}, self.description_of({"services": [{"a": 1}, {"b": 2}], "failures": []}))
        self.provisioner.ecs.describe_services.assert_called_once_with(cluster="c", services=["s"], include=["TAGS"])

    def test_the_default_state_is_active(self):
        self.assertIs(ServiceState.ACTIVE, self.provisioner.service_state(RULE))


if __name__ == "__main__":
    unittest.main()
