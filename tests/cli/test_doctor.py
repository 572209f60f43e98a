import json
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

from botocore.exceptions import ClientError

from sqstaskmaster import LocalQueue, TaskManager, Worker
from sqstaskmaster._claim.destinations import dead_letter_url
from sqstaskmaster._cli import doctor
from sqstaskmaster._cli.doctor import Facts, Level, WorkerTimes, examine, is_one_group, times_of, worst

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/tasks"
POLICY = '{"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:123456789012:dead", "maxReceiveCount": %d}'


def healthy(worker=None, **attributes):
    return Facts(
        url=URL,
        url_region="eu-west-1",
        region="eu-west-1",
        configured_region="eu-west-1",
        endpoint="https://sqs.eu-west-1.amazonaws.com",
        credentials="access key ...ABCD, from env",
        attributes={
            "MessageRetentionPeriod": "345600",
            "VisibilityTimeout": "30",
            "DelaySeconds": "0",
            "MaximumMessageSize": "1048576",
            "RedrivePolicy": POLICY % 5,
            **attributes,
        },
        denied={"GetQueueAttributes": None, "ReceiveMessage": None},
        dead_letters={"MessageRetentionPeriod": "1209600", "ApproximateNumberOfMessages": "0"},
        worker=worker or times(),
    )


def times(url=URL, sqs_timeout=30, alarm_timeout=10, shutdown_grace=20, **hard_timeouts):
    return WorkerTimes([url], sqs_timeout, alarm_timeout, shutdown_grace, hard_timeouts or {"Train": 14400})


class TestExamine(unittest.TestCase):
    def assert_finding(self, facts, name, level, text):
        found = [finding for finding in examine(facts) if finding.name == name and finding.level == level]
        self.assertEqual(1, len(found), examine(facts))
        self.assertIn(text, found[0].text)
        if level != Level.OK:
            self.assertTrue(found[0].remedy, found[0])
        self.assertEqual(level, worst(examine(facts)))
        return found[0]

    def test_a_healthy_queue_has_nothing_to_mend(self):
        findings = examine(healthy())
        self.assertEqual([], [finding for finding in findings if finding.level != Level.OK or finding.remedy])
        self.assertEqual(Level.OK, worst(findings))

    def test_an_endpoint_of_dual_stack_is_one_of_aws(self):
        facts = healthy()
        facts.endpoint = "https://sqs.eu-west-1.api.aws"
        self.assert_finding(facts, "endpoint", Level.OK, "api.aws")
        facts.endpoint = "https://amazonaws.com.example.org"
        self.assert_finding(facts, "endpoint", Level.WARNING, "requests go to")

    def test_another_default_region_than_the_urls_is_a_warning(self):
        facts = healthy()
        facts.configured_region = "us-east-1"
        self.assert_finding(facts, "region", Level.WARNING, "us-east-1")

    def test_a_url_of_aws_asked_elsewhere_is_an_error(self):
        facts = healthy()
        facts.endpoint = "http://127.0.0.1:5000"
        facts.unreachable = "the queue: no answer: start it"
        remedy = self.assert_finding(facts, "endpoint", Level.ERROR, "http://127.0.0.1:5000").remedy
        self.assertIn("if you mean AWS, unset AWS_ENDPOINT_URL", remedy)
        self.assertRegex(remedy, "the queue URL that it returns, such as http://127.0.0.1:5000/")

    def test_a_url_of_aws_that_another_server_answers_for_is_a_warning(self):
        facts = healthy()
        facts.endpoint = "http://127.0.0.1:5000"
        self.assert_finding(facts, "endpoint", Level.WARNING, "which has such a queue")

    def test_a_url_of_another_server_asked_at_aws_is_an_error(self):
        facts = healthy(times("http://127.0.0.1:5000/1/tasks"))
        facts.url, facts.url_region = "http://127.0.0.1:5000/1/tasks", None
        self.assert_finding(facts, "endpoint", Level.ERROR, "127.0.0.1")

    def test_no_credentials_is_an_error(self):
        facts = healthy()
        facts.credentials = None
        self.assert_finding(facts, "credentials", Level.ERROR, "none found")

    def test_a_queue_that_does_not_answer_is_an_error_and_ends_the_examination(self):
        facts = healthy()
        facts.unreachable = "SQS refused GetQueueAttributes: no such queue: check the URL"
        self.assert_finding(facts, "queue", Level.ERROR, "no such queue")
        self.assertEqual("check the URL", examine(facts)[-1].remedy)

    def test_a_permission_that_is_lacking_is_an_error_that_names_it(self):
        facts = healthy()
        facts.denied = {"ReceiveMessage": None, "DeleteMessage": "not authorized"}
        self.assert_finding(facts, "DeleteMessage", Level.ERROR, "not authorized")

    def test_no_redrive_policy_is_a_warning(self):
        facts = healthy(RedrivePolicy="")
        facts.dead_letters = None
        self.assert_finding(facts, "redrive policy", Level.WARNING, "none")

    def test_a_max_receive_count_that_is_not_sane_is_a_warning(self):
        self.assert_finding(healthy(RedrivePolicy=POLICY % 1), "redrive policy", Level.WARNING, "after 1 receive")
        many = healthy(times(Train=60), RedrivePolicy=POLICY % 1000)
        self.assert_finding(many, "redrive policy", Level.WARNING, "after 1000 receives")

    def test_few_receives_are_spent_by_deploys_and_the_remedies_are_named(self):
        facts = healthy(RedrivePolicy=POLICY % 2)
        self.assert_finding(facts, "redrive policy", Level.WARNING, "after the last a healthy task is dead-lettered")
        [finding] = [finding for finding in examine(facts) if finding.name == "redrive policy"]
        self.assertIn("Continue", finding.remedy)

    def test_a_worker_that_may_not_send_to_the_dead_letter_queue_it_is_to_send_to_is_an_error(self):
        facts = healthy(times()._replace(dead_letters=True))
        self.assertEqual(Level.OK, worst(examine(facts)))
        facts.dead_letters_denied = "not authorized"
        self.assert_finding(facts, "dead letters", Level.ERROR, "not authorized")
        [finding] = [finding for finding in examine(facts) if finding.name == "dead letters"]
        self.assertEqual("allow sqs:SendMessage on dead to this role", finding.remedy)

    def test_a_worker_that_is_to_send_to_a_dead_letter_queue_that_is_not_there_is_an_error(self):
        facts = healthy(times()._replace(dead_letters=True), RedrivePolicy="")
        facts.dead_letters = None
        self.assert_finding(facts, "dead letters", Level.ERROR, "there is none")

    def test_nothing_is_said_of_sending_there_where_the_worker_does_not_ask_for_it(self):
        facts = healthy()
        facts.dead_letters_denied = "not authorized"
        self.assertNotIn("dead letters", [finding.name for finding in examine(facts)])

    def test_dead_letters_are_a_warning(self):
        facts = healthy()
        facts.dead_letters["ApproximateNumberOfMessages"] = "7"
        self.assert_finding(facts, "dead-letter queue", Level.WARNING, "7")

    def test_a_dead_letter_queue_that_forgets_sooner_is_a_warning(self):
        facts = healthy()
        facts.dead_letters["MessageRetentionPeriod"] = "345600"
        self.assert_finding(facts, "dead-letter queue", Level.WARNING, "4 days")

    def test_a_dead_letter_queue_that_cannot_be_read_is_a_warning(self):
        facts = healthy()
        facts.dead_letters, facts.dead_letters_unreachable = None, "denied: allow it"
        self.assert_finding(facts, "dead-letter queue", Level.WARNING, "denied")

    def test_a_retention_not_longer_than_the_hard_timeout_is_an_error(self):
        self.assert_finding(healthy(MessageRetentionPeriod="14400"), "retention", Level.ERROR, "14400 s")

    def test_a_retention_shorter_than_all_receives_is_a_warning(self):
        self.assert_finding(healthy(MessageRetentionPeriod="20000"), "retention", Level.WARNING, "5 receives")

    def test_the_retention_is_held_against_the_task_that_may_run_longest(self):
        facts = healthy(times(Short=60, Long=43200), MessageRetentionPeriod="18000")
        self.assert_finding(facts, "retention", Level.ERROR, "task 'Long' may run 43200 s")

    def test_a_retention_of_minutes_is_a_warning_without_a_worker_too(self):
        facts = healthy(MessageRetentionPeriod="600")
        facts.worker = None
        self.assert_finding(facts, "retention", Level.WARNING, "600 s")

    def test_a_grace_longer_than_a_containers_stop_is_a_warning(self):
        self.assert_finding(healthy(times(shutdown_grace=60)), "shutdown", Level.WARNING, "killed after 30 s")
        findings = examine(healthy(times(shutdown_grace=600)))
        self.assertIn("120 s at most", next(f.remedy for f in findings if f.name == "shutdown"))

    def test_a_visibility_timeout_that_one_slow_request_would_lose_is_a_warning(self):
        self.assert_finding(healthy(times(sqs_timeout=15)), "visibility", Level.WARNING, "one slow request")

    def test_a_container_that_the_kernel_ends_as_one_is_a_warning_where_a_task_has_no_max_memory(self):
        facts = healthy(times()._replace(without_max_memory=["Train"]))
        self.assertNotIn("memory", [finding.name for finding in examine(facts)])
        facts.one_group = True
        self.assert_finding(facts, "memory", Level.WARNING, "no max_memory ends 'Train' before")
        facts.worker = times()
        self.assert_finding(facts, "memory", Level.OK, "memory.oom.group")

    def test_a_function_without_max_memory_is_known_to_have_none(self):
        worker = Worker(TaskManager(URL))
        worker.task("Train")(lambda: None)
        worker.task("Small", max_memory=2**30)(lambda: None)
        self.assertEqual(["Train"], times_of(worker).without_max_memory)

    def test_the_cgroup_says_whether_the_kernel_ends_a_container_as_one(self):
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder, "own")
            own.write_text("0::/system.slice/w.service\n")
            service = Path(folder, "system.slice", "w.service")
            service.mkdir(parents=True)
            self.assertFalse(is_one_group(Path(folder), own))
            # Its own group, that of the slice it is in, and the root: any of them is ended as a whole.
            for place in (service, service.parent, Path(folder)):
                for said, expected in (("0", False), ("1", True)):
                    Path(place, "memory.oom.group").write_text(f"{said}\n")
                    self.assertEqual(expected, is_one_group(Path(folder), own))
                Path(place, "memory.oom.group").unlink()

    def test_a_worker_without_tasks_is_an_error(self):
        worker = times()._replace(hard_timeouts={})
        self.assert_finding(healthy(worker), "worker's tasks", Level.ERROR, "it has none")

    def test_a_delay_of_the_whole_queue_is_a_warning(self):
        self.assert_finding(healthy(DelaySeconds="60"), "delay", Level.WARNING, "60 s")

    def test_a_smaller_message_limit_is_a_warning(self):
        self.assert_finding(healthy(MaximumMessageSize="262144"), "message size", Level.WARNING, "262,144")

    def test_an_encrypted_queue_says_what_it_needs(self):
        self.assert_finding(healthy(KmsMasterKeyId="alias/tasks"), "encryption", Level.OK, "kms:Decrypt")

    def test_a_worker_that_claims_for_long_is_a_warning(self):
        self.assert_finding(healthy(times(sqs_timeout=7200)), "visibility", Level.WARNING, "7200 s")

    def test_a_queue_whose_own_visibility_is_long_is_a_warning(self):
        self.assert_finding(healthy(VisibilityTimeout="43200"), "visibility", Level.WARNING, "43200 s")

    def test_a_worker_of_another_queue_is_an_error(self):
        other = times(URL + "-other")
        self.assert_finding(healthy(other), "worker's queue", Level.ERROR, "tasks-other")

    def test_each_queue_of_a_worker_is_its_queue(self):
        worker = Worker([TaskManager(url, queue_constructor=LocalQueue) for url in (URL + "-urgent", URL)])
        worker.task("Train")(lambda: None)
        self.assertNotIn("worker's queue", [finding.name for finding in examine(healthy(times_of(worker)))])

    def test_without_a_worker_nothing_is_said_of_its_timeouts(self):
        facts = healthy()
        facts.worker = None
        names = {finding.name for finding in examine(facts)}
        self.assertEqual(set(), names & {"visibility", "worker's queue"})

    def test_a_fifo_queues_dead_letters_live_anew_from_their_move_on(self):
        for url, level in ((URL, Level.WARNING), (URL + ".fifo", Level.OK)):
            facts = healthy(times(url))
            facts.url, facts.dead_letters = url, {"MessageRetentionPeriod": "60"}
            self.assert_finding(facts, "dead-letter queue", level, "")

    def test_a_dead_letter_queue_that_does_not_take_this_queues_messages_is_an_error(self):
        arn = "arn:aws:sqs:eu-west-1:1:tasks"
        for policy, level in (
            ({"redrivePermission": "denyAll"}, Level.ERROR),
            ({"redrivePermission": "byQueue", "sourceQueueArns": [arn + "-not"]}, Level.ERROR),
            ({"redrivePermission": "byQueue", "sourceQueueArns": [arn]}, Level.OK),
            ({"redrivePermission": "allowAll"}, Level.OK),
        ):
            with self.subTest(policy):
                facts = healthy(QueueArn=arn)
                facts.dead_letters = {**facts.dead_letters, "RedriveAllowPolicy": json.dumps(policy)}
                self.assert_finding(facts, "dead-letter queue", level, "")


class TestGather(unittest.TestCase):
    def asked(self, endpoint, worker=None, attributes=None, answer=None):
        """What a client that does not look at parameters is asked for."""
        client = mock.Mock()
        client.meta.endpoint_url, client.meta.region_name = endpoint, "eu-west-1"
        client.get_queue_attributes.return_value = {"Attributes": attributes or {}}
        client.send_message.side_effect = answer
        facts = doctor.gather(URL, client, lambda error, url: f"{url}: {error}", worker)
        return client, facts

    def test_aws_is_asked_whether_a_message_may_be_sent_with_one_that_it_refuses_for_its_parameters(self):
        for code, denied in (("AccessDenied", True), ("InvalidParameterValue", False)):
            with self.subTest(code):
                error = ClientError({"Error": {"Code": code, "Message": "no"}}, "SendMessage")
                worker = times()._replace(dead_letters=True)
                attributes = {"RedrivePolicy": POLICY % 5}
                client, facts = self.asked("https://sqs.eu-west-1.amazonaws.com", worker, attributes, error)
                [call] = client.send_message.call_args_list
                self.assertEqual(URL.replace("tasks", "dead"), call.kwargs["QueueUrl"])
                self.assertGreater(call.kwargs["DelaySeconds"], 900)
                self.assertEqual(denied, facts.dead_letters_denied is not None)

    def test_nobody_is_asked_to_send_where_the_worker_does_not_ask_for_it_or_the_server_is_not_aws(self):
        attributes = {"RedrivePolicy": POLICY % 5}
        client, _ = self.asked("https://sqs.eu-west-1.amazonaws.com", times(), attributes)
        client.send_message.assert_not_called()
        client, facts = self.asked("http://127.0.0.1:5000", times()._replace(dead_letters=True), attributes)
        client.send_message.assert_not_called()
        [finding] = [finding for finding in examine(facts) if finding.name == "dead letters"]
        self.assertIn("not tried", finding.text)

    def test_an_error_names_the_queue_that_was_asked(self):
        client = mock.Mock()
        client.meta.endpoint_url, client.meta.region_name = "http://127.0.0.1:1", "eu-west-1"
        refused = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetQueueAttributes")
        client.get_queue_attributes.side_effect = [{"Attributes": {"RedrivePolicy": POLICY % 5}}, refused]
        facts = doctor.gather(URL, client, lambda error, url: f"{url}: {error}")
        self.assertIn(URL.replace("tasks", "dead"), facts.dead_letters_unreachable)

    def test_an_answer_that_is_none_of_sqss_is_an_error_that_says_so(self):
        meta = types.SimpleNamespace(endpoint_url="http://127.0.0.1:1", region_name="eu-west-1")
        client = mock.Mock(meta=meta)
        client.get_queue_attributes.return_value = {"ResponseMetadata": {"HTTPStatusCode": 200}}
        facts = doctor.gather(URL, client, lambda error, url: str(error))
        self.assertRegex(facts.unreachable, "http://127.0.0.1:1: .*not SQS.s.*AWS_ENDPOINT_URL_SQS")

    def test_a_worker_asks_for_it_by_its_setting_or_by_a_task_that_names_exceptions_without_retry(self):
        manager = TaskManager("memory:doctor", queue_constructor=LocalQueue)
        self.assertFalse(doctor.times_of(Worker(manager)).dead_letters)
        self.assertTrue(doctor.times_of(Worker(manager, dead_letter_reasons=True)).dead_letters)
        worker = Worker(manager)
        worker.task("T", dead_letter=(KeyError,))(lambda: None)
        self.assertTrue(doctor.times_of(worker).dead_letters)

    def test_a_server_that_is_not_aws_is_never_asked_for_a_message(self):
        for endpoint in ("http://127.0.0.1:4566", "http://localhost:4566", "https://amazonaws.com.example.org"):
            with self.subTest(endpoint):
                client, facts = self.asked(endpoint)
                client.receive_message.assert_not_called()
                said = [finding for finding in examine(facts) if finding.name == "ReceiveMessage"]
                self.assertEqual(1, len(said))
                self.assertIn("not tried", said[0].text)

    def test_aws_is_asked_for_no_messages_at_all_which_it_refuses(self):
        for host in ("sqs.eu-west-1.amazonaws.com", "sqs.cn-north-1.amazonaws.com.cn"):
            with self.subTest(host):
                client, _ = self.asked(f"https://{host}")
                self.assertEqual(0, client.receive_message.call_args.kwargs["MaxNumberOfMessages"])


class TestDeadLetterUrl(unittest.TestCase):
    def test_a_dead_letter_queue_is_the_queues_neighbour(self):
        arn = "arn:aws:sqs:eu-west-1:123456789012:dead"
        self.assertEqual(URL.replace("tasks", "dead"), dead_letter_url(URL, arn))
