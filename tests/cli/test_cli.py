"""The command line as its users meet it: a subprocess, against a real SQS server. The worker has a file of its own."""

import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support import DEADLINE_SECONDS, ENVIRONMENT, ServerTestCase, endpoint, free_port, stop
from tests.support.commands import Command, command, offline, online, read, run
from tests.support.faults import Faulty

COMMANDS = ("worker", "run", "ps", "stop", "submit", "status", "dead", "redrive", "purge", "doctor", "demo")


class CommandTestCase(ServerTestCase):
    def assert_refused(self, finished, code, *texts):
        """The command ended with the code, one sentence that has the texts, and no traceback."""
        self.assertEqual(code, finished.returncode, finished.stderr)
        self.assertEqual("", finished.stdout)
        sentence = finished.stderr.strip().splitlines()[-1]
        for text in texts:
            self.assertIn(text, sentence)
        self.assertNotIn("Traceback", finished.stderr)


class TestHelp(unittest.TestCase):
    def test_help_ends_with_commands_to_copy_and_the_table_of_exit_codes(self):
        shown = run("--help", environ=offline())
        self.assertEqual(0, shown.returncode, shown.stderr)
        for name in COMMANDS:
            self.assertIn(f"\n    {name}", shown.stdout)
        examples, codes = shown.stdout.split("examples:\n")[1].split("exit codes:\n")
        self.assertIn("  sqstaskmaster worker ", examples)
        self.assertEqual("0", codes.split()[0])
        self.assertIn("\n  130 ", codes)

    def test_the_help_of_each_command_ends_with_commands_to_copy(self):
        for name in COMMANDS:
            with self.subTest(name):
                shown = run(name, "--help", environ=offline())
                self.assertEqual(0, shown.returncode, shown.stderr)
                self.assertIn(f"\n  sqstaskmaster {name}", shown.stdout.split("examples:")[1])

    def test_help_fits_a_terminal_of_80_columns_but_for_commands_to_copy(self):
        for name in ("", *COMMANDS):
            with self.subTest(name):
                shown = run(*name.split(), "--help", environ=offline(COLUMNS="80")).stdout
                long = [line for line in shown.splitlines() if len(line) > 80]
                self.assertEqual([], [line for line in long if not line.startswith("  sqstaskmaster ")])

    def test_every_exit_code_has_a_meaning(self):
        from sqstaskmaster._service.exit_codes import MEANINGS, Exit

        self.assertEqual(set(Exit), set(MEANINGS))

    def test_the_version_is_the_packages(self):
        from sqstaskmaster import __version__

        self.assertEqual(f"sqstaskmaster {__version__}\n", run("--version", environ=offline()).stdout)

    def test_help_loads_neither_boto3_nor_the_library_for_tables(self):
        code = "import sys; from sqstaskmaster._cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        code += "print(sorted({'boto3', 'botocore', 'rich', 'asyncio'} & set(sys.modules)))"
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=offline(), timeout=DEADLINE_SECONDS
        )
        self.assertEqual("[]", shown.stdout.splitlines()[-1], shown.stderr)

    def test_a_shell_can_complete_commands_and_options(self):
        if importlib.util.find_spec("argcomplete") is None:
            self.skipTest("argcomplete is not installed: pip install -e '.[cli]'")
        for line, answer in (("sqstaskmaster wo", "worker"), ("sqstaskmaster demo --que", "--queue-url")):
            with self.subTest(line), tempfile.NamedTemporaryFile("r") as answers:
                shell = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
                run(environ=offline(**shell, _ARGCOMPLETE_STDOUT_FILENAME=answers.name))
                self.assertIn(answer, answers.read())

    def test_no_command_is_a_usage_error(self):
        self.assertEqual(2, run(environ=offline()).returncode)


class TestErrors(CommandTestCase):
    def test_no_credentials_is_one_sentence_with_the_remedy(self):
        environ = offline(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
        )
        for name in (["status"], ["submit"], ["purge", "--yes"], ["redrive"]):
            with self.subTest(name):
                url = "http://127.0.0.1/123456789012/tasks"
                task = ["Task"] if name == ["submit"] else []
                finished = run(*name, url, *task, environ=environ)
                self.assert_refused(finished, 4, "No AWS credentials found", "AWS_PROFILE")

    def test_no_region_is_one_sentence_with_the_remedy(self):
        finished = run("status", "http://127.0.0.1/123456789012/tasks", environ=offline())
        self.assert_refused(finished, 4, "No AWS region", "AWS_DEFAULT_REGION")

    def test_a_url_that_is_none_is_a_usage_error(self):
        for url in ("tasks", "local://tasks"):
            finished = run("status", url, environ=offline(**ENVIRONMENT))
            self.assert_refused(finished, 2, f"'{url}' is not a queue URL")
            self.assertNotIn("LocalQueue", finished.stderr)

    def test_a_queue_that_is_not_there_is_one_sentence_with_the_remedy(self):
        finished = run("status", self.create_queue() + "-not")
        self.assert_refused(finished, 4, "GetQueueAttributes", "check the queue's URL")

    def test_a_server_that_does_not_answer_is_one_sentence_with_the_remedy(self):
        endpoint = f"http://127.0.0.1:{free_port()}"
        environ = offline(**ENVIRONMENT, AWS_ENDPOINT_URL=endpoint, AWS_MAX_ATTEMPTS="1")
        finished = run("status", f"{endpoint}/123456789012/tasks", environ=environ)
        self.assert_refused(finished, 5, endpoint, "check the network")

    def test_debug_shows_the_traceback_too(self):
        finished = run("status", "tasks", "--debug", environ=offline(**ENVIRONMENT))
        self.assertEqual(2, finished.returncode)
        self.assertIn("Traceback", finished.stderr)

    def test_an_endpoint_that_is_none_and_a_missing_region_have_one_code_from_every_command(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        with open(os.path.join(folder.name, "tasks.py"), "w") as module:
            module.write("from sqstaskmaster import TaskManager, Worker\n")
            module.write("worker = Worker(TaskManager('http://127.0.0.1/123456789012/tasks'))\n")
        url = "http://127.0.0.1/123456789012/tasks"
        for environ, text in (
            (offline(**ENVIRONMENT, AWS_ENDPOINT_URL_SQS="garbage"), "AWS_ENDPOINT_URL_SQS"),
            (offline(), "AWS_DEFAULT_REGION"),
        ):
            for arguments in (
                ["status", url],
                ["submit", url, "Task"],
                ["purge", url, "--yes"],
                ["redrive", url],
                ["doctor", url],
                ["worker", "tasks:worker", "--log-level", "ERROR"],
            ):
                with self.subTest(arguments, text=text):
                    finished = run(*arguments, environ=environ, cwd=folder.name)
                    self.assert_refused(finished, 4, text)
                    self.assertEqual(1, len(finished.stderr.splitlines()), finished.stderr)

    def test_what_sqs_refused_names_the_queue(self):
        url = self.create_queue() + "-not"
        finished = run("status", url)
        self.assert_refused(finished, 4, url)
        self.assertNotIn(".:", finished.stderr)


class TestSubmit(CommandTestCase):
    def bodies(self, url):
        return [json.loads(message["Body"]) for message in self.receive(url)]

    def test_values_are_json_where_they_parse_and_strings_elsewhere(self):
        url = self.create_queue()
        finished = run("submit", url, "Train", "epochs=3", "model=large", "layers=[64, 64]", "eq=a=b", "nan=NaN", "e=")
        self.assertEqual(0, finished.returncode, finished.stderr)
        kwargs = {"epochs": 3, "model": "large", "layers": [64, 64], "eq": "a=b", "nan": "NaN", "e": ""}
        message = self.receive(url)[0]
        self.assertEqual({"task": "Train", "kwargs": kwargs}, json.loads(message["Body"]))
        self.assertEqual(message["MessageId"], finished.stdout.strip())

    def test_one_json_object_brings_all_arguments(self):
        url = self.create_queue()
        finished = run("submit", url, "Train", "--json", '{"model": "large"}', "epochs=3", "--sender", "me")
        self.assertEqual(0, finished.returncode, finished.stderr)
        message = self.receive(url)[0]
        self.assertEqual({"model": "large", "epochs": 3}, json.loads(message["Body"])["kwargs"])
        self.assertEqual("me", message["MessageAttributes"]["service_name"]["StringValue"])

    def test_bad_arguments_are_refused_and_nothing_is_sent(self):
        url = self.create_queue()
        for arguments, text in (
            ([], "Nothing to submit"),
            (["Train", "epochs"], "'epochs' is not key=value"),
            (["Train", "=3"], "'=3' is not key=value"),
            (["epochs=3"], "'epochs=3' stands where the TASK name belongs"),
            (["Train", "--json", "{"], "--json is not JSON"),
            (["Train", "--json", "[1]"], "--json must be an object"),
            (["Train", "--json", '{"x": NaN}'], "--json is not JSON"),
            (["Train", "x=1", "--file", os.devnull], "leave out key=value"),
            (["--file", "no such file"], "Cannot read 'no such file'"),
        ):
            with self.subTest(arguments):
                self.assert_refused(run("submit", url, *arguments), 2, text)
        self.assertEqual((0, 0, 0), self.counts(url))

    def test_arguments_may_have_any_name(self):
        url = self.create_queue()
        finished = run("submit", url, "Train", "task=1", "self=2", "url=3", "kwargs=4")
        self.assertEqual(0, finished.returncode, finished.stderr)
        self.assertEqual({"task": 1, "self": 2, "url": 3, "kwargs": 4}, self.bodies(url)[0]["kwargs"])

    def test_two_values_for_one_name_are_refused(self):
        url = self.create_queue()
        for arguments in (
            ["x=1", "x=2"],
            ["--json", '{"x": 1}', "x=2"],
            ["--json", '{"x": 1, "x": 2}'],
            ['y={"x": 1, "x": 2}'],
        ):
            with self.subTest(arguments):
                self.assert_refused(run("submit", url, "Train", *arguments), 2, "wo values for 'x'")
        self.assertEqual((0, 0, 0), self.counts(url))

    def test_a_fifo_queue_names_the_options_that_it_needs(self):
        url = self.create_queue(FifoQueue="true")
        self.assert_refused(run("submit", url, "Train"), 2, "--group", "--deduplication-id")
        refused = run("submit", url, "Train", "--group", "a")
        if refused.returncode:
            self.assert_refused(refused, 4, "--deduplication-id")


class TestSubmitFile(CommandTestCase):
    def file(self, *lines):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "tasks.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return path

    def sent(self, url):
        found = []
        while messages := self.receive(url):
            found += [json.loads(message["Body"]) for message in messages]
        return sorted((body["task"], body["kwargs"].get("x")) for body in found)

    def test_each_line_is_a_task(self):
        url = self.create_queue()
        path = self.file(
            *(json.dumps({"task": "Train", "kwargs": {"x": x}}) for x in range(25)), "", '{"task": "Bare"}'
        )
        finished = run("submit", url, "--file", path)
        self.assertEqual((0, "26 sent, 0 not\n"), (finished.returncode, finished.stdout), finished.stderr)
        self.assertEqual([("Bare", None), *(("Train", x) for x in range(25))], self.sent(url))

    def test_with_a_task_each_line_is_its_kwargs(self):
        url = self.create_queue()
        finished = run("submit", url, "Train", "--file", self.file('{"x": 1}', '{"x": 2}'))
        self.assertEqual(0, finished.returncode, finished.stderr)
        self.assertEqual([("Train", 1), ("Train", 2)], self.sent(url))

    def test_standard_input_is_a_file_too(self):
        url = self.create_queue()
        finished = run("submit", url, "Train", "--file", "-", stdin=None, input='{"x": 1}\n{"x": 2}\n')
        self.assertEqual((0, "2 sent, 0 not\n"), (finished.returncode, finished.stdout), finished.stderr)

    def test_a_line_that_is_no_utf8_is_named_by_its_number_from_a_file_and_from_standard_input(self):
        lines = b'{"x": 1}\n{"x": "\xff"}\n{"x": 1, "x": 2}\n{"x": 3}\n'
        path = self.file()
        with open(path, "wb") as file:
            file.write(lines)
        for source in (path, "-"):
            with self.subTest(source), open(path, "rb") as file:
                url = self.create_queue()
                finished = run("submit", url, "Train", "--file", source, stdin=file)
                self.assertEqual((7, "2 sent, 2 not\n"), (finished.returncode, finished.stdout), finished.stderr)
                first, second = finished.stderr.splitlines()
                self.assertRegex(first, "^line 2: not UTF-8")
                self.assertEqual("line 3: two values for 'x'", second)
                self.assertEqual([("Train", 1), ("Train", 3)], self.sent(url))

    def test_ctrl_c_is_one_summary_and_where_it_stopped(self):
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        path = self.file("no JSON", *('{"x": 1}' for _ in range(10_000)))
        sending = Command(
            self, "submit", f"{endpoint}/1/tasks", "Train", "--file", path, cwd=None, AWS_ENDPOINT_URL=endpoint
        )
        connection, _ = silent.accept()  # a request is under way, and is never answered
        self.addCleanup(connection.close)
        self.assertEqual(130, sending.stop(signal.SIGINT), sending.lines())
        said = [line for line in sending.lines() if not line.startswith("Sent:")]
        self.assertEqual(4, len(said), said)
        self.assertRegex(said[0], "^line 1: not JSON")
        self.assertRegex(said[1], r"^interrupted: of the lines 2 to \d+, \d+ were not sent, or perhaps$")
        self.assertRegex(said[2], r"^the lines after \d+ were not tried$")
        self.assertRegex(said[3], r"^0 sent, \d+ not$")

    def test_every_line_that_failed_is_named_by_its_number_and_the_others_are_sent(self):
        url = self.create_queue()
        path = self.file(
            '{"task": "Train", "kwargs": {"x": 1}}',
            "no JSON",
            "",
            "[1]",
            '{"task": "Train", "kwargs": [1]}',
            '{"task": "", "kwargs": {}}',
            json.dumps({"task": "Train", "kwargs": {"x": "y" * 1024 * 1024}}),
            '{"task": "Train", "kwargs": {"x": 2}}',
        )
        finished = run("submit", url, "--file", path)
        self.assertEqual((7, "2 sent, 5 not\n"), (finished.returncode, finished.stdout), finished.stderr)
        self.assertEqual(
            ["line 2", "line 4", "line 5", "line 6", "line 7"],
            [line.partition(":")[0] for line in finished.stderr.splitlines()],
        )
        self.assertIn("1,048,", finished.stderr.splitlines()[-1])
        self.assertEqual([("Train", 1), ("Train", 2)], self.sent(url))

    def test_a_fifo_queue_gets_its_group_and_an_option_that_cannot_be_is_refused(self):
        url = self.create_queue(FifoQueue="true", ContentBasedDeduplication="true")
        finished = run("submit", url, "Train", "--group", "a")
        self.assertEqual(0, finished.returncode, finished.stderr)
        self.assertEqual("a", self.receive(url)[0]["Attributes"]["MessageGroupId"])
        self.assert_refused(run("submit", self.create_queue(), "Train", "--delay", "901"), 2, "901")

    def test_a_delay_holds_a_task_back(self):
        url = self.create_queue()
        self.assertEqual(0, run("submit", url, "Train", "--delay", "900").returncode)
        self.assertEqual((0, 0, 1), self.counts(url))


class TestStatus(CommandTestCase):
    def test_status_counts_the_queue_and_its_dead_letters(self):
        url = self.create_queue(max_receive_count=1)
        for _ in range(3):
            self.sqs.send_message(QueueUrl=url, MessageBody="{}")
        self.sqs.send_message(QueueUrl=url, MessageBody="{}", DelaySeconds=900)
        self.sqs.send_message(QueueUrl=self.dead_letters, MessageBody="{}")
        self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=1)
        finished = run("status", url)
        self.assertEqual(0, finished.returncode, finished.stderr)
        _, queue, dead_letters = finished.stdout.splitlines()
        self.assertEqual(["queue", url.rpartition("/")[2], "2", "1", "1"], queue.split())
        self.assertEqual(["dead", "letters", self.dead_letters.rpartition("/")[2], "1", "0", "0"], dead_letters.split())

    def test_a_dead_letter_queue_that_does_not_answer_hides_nothing_of_the_queue_and_is_named(self):
        url = self.create_queue(max_receive_count=1)
        self.sqs.delete_queue(QueueUrl=self.dead_letters)
        for arguments in ([], ["--json"]):
            finished = run("status", url, *arguments)
            self.assertEqual(4, finished.returncode, finished.stderr)
            self.assertIn(url.rpartition("/")[2], finished.stdout)
            self.assertIn(self.dead_letters, finished.stderr)

    def test_a_server_that_is_not_sqs_is_told_as_that(self):
        for fault in ("a page", "a page, 404", "{}", "nothing"):
            proxy = Faulty(self, endpoint(), "GetQueueAttributes", fault)
            for action in ("status", "dead", "purge"):
                with self.subTest(fault, action=action):
                    finished = run(action, f"{proxy.url}/1/tasks", environ=online(AWS_ENDPOINT_URL=proxy.url))
                    self.assert_refused(finished, 5, proxy.url, "AWS_ENDPOINT_URL_SQS", "SQS")
                    self.assertNotIn("<", finished.stderr)
            finished = run("doctor", f"{proxy.url}/1/tasks", environ=online(AWS_ENDPOINT_URL=proxy.url))
            self.assertEqual(9, finished.returncode, finished.stderr)
            self.assertNotIn("<", finished.stdout)
            self.assertIn("AWS_ENDPOINT_URL_SQS", finished.stdout)

    def test_status_and_doctor_have_json_for_programs(self):
        url = self.create_queue()
        self.sqs.send_message(QueueUrl=url, MessageBody="{}")
        shown = run("status", url, "--json")
        counts = {"visible": 1, "in flight": 0, "delayed": 0}
        self.assertEqual([{"role": "queue", "queue": url.rpartition("/")[2], **counts}], json.loads(shown.stdout))
        found = run("doctor", url, "--json")
        self.assertEqual(8, found.returncode, found.stderr)
        levels = {finding["check"]: finding["level"] for finding in json.loads(found.stdout)}
        self.assertEqual("warning", levels["redrive policy"])

    def test_a_number_after_watch_is_an_error_that_names_every(self):
        for words in (["status", "http://127.0.0.1:1/1/a", "--watch", "2"], ["ps", "--watch", "0.5"]):
            with self.subTest(words):
                self.assert_refused(run(*words, environ=offline()), 2, f"--watch --every {words[-1]}")

    def test_watch_shows_the_counts_again_until_ctrl_c(self):
        url = self.create_queue()
        watching = Command(self, "status", url, "--watch", "--every", "0.1", cwd=None)
        watching.wait_for(" 0  ")
        self.assertRegex(watching.lines()[0], r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$")
        self.sqs.send_message(QueueUrl=url, MessageBody="{}")
        watching.wait_for(" 1  ")
        self.assertEqual(0, watching.stop(signal.SIGINT))

    def on_a_terminal(self, *arguments, **environ):
        """What the command writes on a terminal."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        process = subprocess.Popen(
            [*command(), *arguments],
            stdout=theirs,
            stderr=theirs,
            stdin=subprocess.DEVNULL,
            env=online(TERM="xterm", **environ),
        )
        self.addCleanup(stop, process)
        os.close(theirs)
        written = read(ours)
        self.assertEqual(0, process.wait(DEADLINE_SECONDS), written)
        return written

    def test_a_terminal_gets_plain_text_where_the_library_for_tables_is_missing(self):
        url = self.create_queue()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # What `find_spec` sees where a package is not installed.
        with open(os.path.join(folder.name, "sitecustomize.py"), "w") as hook:
            hook.write("import sys\nsys.modules['rich'] = None\n")
        path = os.pathsep.join([folder.name, *sys.path])
        written = self.on_a_terminal("status", url, PYTHONPATH=path)
        self.assertIn("queue", written)
        self.assertTrue(written.isascii(), written)

    def test_a_terminal_gets_a_table_in_colour_where_the_library_is_there(self):
        try:
            import rich  # noqa: F401
        except ImportError:
            self.skipTest("rich is not installed: pip install -e '.[cli]'")
        self.assertIn("\x1b[1mrole", self.on_a_terminal("status", self.create_queue()))


class TestPurge(CommandTestCase):
    def test_purge_deletes_nothing_until_it_is_meant(self):
        url = self.create_queue()
        self.sqs.send_message(QueueUrl=url, MessageBody="{}")
        self.assert_refused(run("purge", url), 2, "add --yes")
        self.assertEqual((1, 0, 0), self.counts(url))
        finished = run("purge", url, "--yes")
        self.assertEqual(0, finished.returncode, finished.stderr)
        self.assertEqual((0, 0, 0), self.counts(url))


class TestDoctor(CommandTestCase):
    def test_the_doctor_says_the_worst_by_its_exit_code_and_takes_no_message(self):
        url = self.create_queue()
        self.sqs.send_message(QueueUrl=url, MessageBody="{}")
        finished = run("doctor", url)
        self.assertEqual(8, finished.returncode, finished.stderr)
        self.assertIn("set RedrivePolicy", finished.stdout)
        message = self.receive(url)[0]
        self.assertEqual("1", message["Attributes"]["ApproximateReceiveCount"])

    def test_a_healthy_queue_is_ok(self):
        url = self.create_queue(max_receive_count=5, MessageRetentionPeriod="86400", MaximumMessageSize="1048576")
        finished = run("doctor", url)
        self.assertEqual(0, finished.returncode, finished.stdout + finished.stderr)

    def test_a_queue_that_is_not_there_is_an_error(self):
        finished = run("doctor", self.create_queue() + "-not")
        self.assertEqual(9, finished.returncode, finished.stderr)
        self.assertRegex(finished.stdout, r"(?m)^error    queue: SQS refused GetQueueAttributes")

    def test_no_credentials_is_an_error(self):
        environ = offline(AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")
        finished = run("doctor", "http://127.0.0.1/123456789012/tasks", environ=environ)
        self.assertEqual(9, finished.returncode, finished.stderr)
        self.assertRegex(finished.stdout, r"(?m)^error    credentials: none found\n         set AWS_ACCESS_KEY_ID")


class MoveServer(BaseHTTPRequestHandler):
    """The part of SQS that no server for tests has, StartMessageMoveTask and its family, by the JSON protocol."""

    def do_POST(self):
        action = self.headers["X-Amz-Target"].rpartition(".")[2]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((action, asked))
        answer = self.server.answers[action]
        answer = answer.pop(0) if isinstance(answer, list) and len(answer) > 1 else answer
        answer = answer[0] if isinstance(answer, list) else answer
        if callable(answer):
            answer = answer(asked)
        body = json.dumps(answer).encode()
        self.send_response(answer.get("__status", 400 if "__type" in answer else 200))
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # the client was interrupted

    def log_message(self, *arguments):
        pass


def queue_attributes(asked):
    return {"Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:1:" + asked["QueueUrl"].rpartition("/")[2]}}


def move(status, moved, **more):
    return {"Results": [{"Status": status, "ApproximateNumberOfMessagesMoved": moved, **more}]}


class TestRedrive(CommandTestCase):
    def setUp(self):
        super().setUp()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), MoveServer)
        self.server.requests = []
        self.server.answers = {
            "GetQueueAttributes": queue_attributes,
            "ListDeadLetterSourceQueues": lambda asked: {"queueUrls": [f"{self.endpoint}/1/tasks"]},
            "StartMessageMoveTask": {"TaskHandle": "handle"},
            "ListMessageMoveTasks": [
                move("RUNNING", 1, ApproximateNumberOfMessagesToMove=3, TaskHandle="handle"),
                move("COMPLETED", 3, ApproximateNumberOfMessagesToMove=3),
            ],
            "CancelMessageMoveTask": {"ApproximateNumberOfMessagesMoved": 2},
        }
        serving = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        serving.start()
        self.addCleanup(serving.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.environ = offline(**ENVIRONMENT, AWS_ENDPOINT_URL=self.endpoint)

    def asked(self, action):
        return [asked for name, asked in self.server.requests if name == action]

    def test_redrive_asks_sqs_to_move_and_waits_until_it_has(self):
        finished = run("redrive", f"{self.endpoint}/1/dead", environ=self.environ)
        self.assertEqual(0, finished.returncode, finished.stderr)
        self.assertIn("3", finished.stdout)
        asked = {"SourceArn": "arn:aws:sqs:us-east-1:1:dead", "DestinationArn": "arn:aws:sqs:us-east-1:1:tasks"}
        self.assertEqual([asked], self.asked("StartMessageMoveTask"), "the one source is named")
        self.assertEqual(2, len(self.asked("ListMessageMoveTasks")))

    def test_redrive_goes_where_and_as_fast_as_it_is_told(self):
        dead, tasks = f"{self.endpoint}/1/dead", f"{self.endpoint}/1/tasks"
        finished = run("redrive", dead, "--to", tasks, "--rate", "10", environ=self.environ)
        self.assertEqual(0, finished.returncode, finished.stderr)
        asked = {
            "SourceArn": "arn:aws:sqs:us-east-1:1:dead",
            "DestinationArn": "arn:aws:sqs:us-east-1:1:tasks",
            "MaxNumberOfMessagesPerSecond": 10,
        }
        self.assertEqual([asked], self.asked("StartMessageMoveTask"))

    def test_where_the_source_is_not_exactly_one_the_destination_has_to_be_given(self):
        dead = f"{self.endpoint}/1/dead"
        for sources, text in (
            ([], "No queue has"),
            ([f"{self.endpoint}/1/{name}" for name in "ab"], f"{self.endpoint}/1/a, {self.endpoint}/1/b"),
        ):
            self.server.answers["ListDeadLetterSourceQueues"] = {"queueUrls": sources}
            with self.subTest(text):
                self.assert_refused(run("redrive", dead, environ=self.environ), 4, text, "--to URL")
        self.assertEqual([], self.asked("StartMessageMoveTask"))

    def test_a_rate_that_sqs_does_not_take_is_refused_before_anything_is_sent(self):
        finished = run("redrive", f"{self.endpoint}/1/dead", "--rate", "501", environ=self.environ)
        self.assert_refused(finished, 2, "501", "1 to 500")
        self.assertEqual([], self.server.requests)

    def test_a_move_that_failed_says_why(self):
        self.server.answers["ListMessageMoveTasks"] = move("FAILED", 1, FailureReason="AWS.KMS.Denied")
        finished = run("redrive", f"{self.endpoint}/1/dead", environ=self.environ)
        self.assert_refused(finished, 4, "FAILED", "AWS.KMS.Denied")

    def test_a_queue_that_is_no_dead_letter_queue_is_one_sentence(self):
        self.server.answers["StartMessageMoveTask"] = {
            "__type": "com.amazonaws.sqs#InvalidParameterValue",
            "message": "Source queue must be configured as a Dead Letter Queue.",
        }
        finished = run("redrive", f"{self.endpoint}/1/dead", environ=self.environ)
        self.assert_refused(finished, 4, "must be configured as a Dead Letter Queue")

    def test_a_server_that_has_no_such_move_gets_a_remedy_that_helps(self):
        """moto answers with a page and 500, others say that they do not know the action."""
        url = self.create_queue(max_receive_count=3)
        self.sqs.send_message(QueueUrl=self.dead_letters, MessageBody="{}")
        finished = run("redrive", self.dead_letters, "--to", url)
        if finished.returncode == 0:
            return  # the server that was given has it
        self.assert_refused(finished, 4, "does not know StartMessageMoveTask", "--limit")
        self.assertNotIn("<", finished.stderr)
        self.assertEqual(0, run("redrive", self.dead_letters, "--to", url, "--limit", "10").returncode)
        self.server.answers["StartMessageMoveTask"] = {"__type": "InvalidAction", "message": "no"}
        finished = run("redrive", f"{self.endpoint}/1/dead", environ=self.environ)
        self.assert_refused(finished, 4, "does not know StartMessageMoveTask", "--limit")
        self.server.answers["ListDeadLetterSourceQueues"] = {"__type": "InvalidAction", "message": "no"}
        finished = run("redrive", f"{self.endpoint}/1/dead", environ=self.environ)
        self.assert_refused(finished, 4, "does not know ListDeadLetterSourceQueues", "--to URL")

    def test_whoever_waits_at_a_terminal_waits_for_three_tries_unless_told_otherwise(self):
        self.server.answers["GetQueueAttributes"] = {"__status": 503, "__type": "ServiceUnavailable"}
        # The mode that botocore had by default for long: five tries.
        finished = run("status", f"{self.endpoint}/1/tasks", environ={**self.environ, "AWS_RETRY_MODE": "legacy"})
        self.assert_refused(finished, 5, "try again later")
        self.assertEqual(3, len(self.server.requests))
        finished = run("status", f"{self.endpoint}/1/tasks", environ={**self.environ, "AWS_MAX_ATTEMPTS": "1"})
        self.assert_refused(finished, 5, "try again later")
        self.assertEqual(4, len(self.server.requests))

    def test_ctrl_c_cancels_the_move(self):
        process = None

        def interrupt(asked):
            process.send_signal(2)
            return move("RUNNING", 1)

        self.server.answers["ListMessageMoveTasks"] = interrupt
        process = subprocess.Popen(
            [*command(), "redrive", f"{self.endpoint}/1/dead"], stderr=subprocess.PIPE, env=self.environ
        )
        self.addCleanup(process.stderr.close)
        self.addCleanup(stop, process)
        said = read(process.stderr.fileno())
        self.assertEqual(130, process.wait(DEADLINE_SECONDS), said)
        self.assertEqual([{"TaskHandle": "handle"}], self.asked("CancelMessageMoveTask"))
        self.assertIn("2 messages", said)
