"""Attacks on the promise "nothing lost, nothing twice, nothing hung", each on its own worker, as a table.

    python -m benchmarks.attacks [--only PART OF A NAME] [--mode slots|warm|spawned|worker|process|plain]

Each row is a worker process with its own queue, on a real SQS server over HTTP: a task (or a message) attacks, another
runs beside it if there are slots, and two come after it. In each row this must hold:

- the attack ended with one of the expected outcomes, at most a second after its limit and grace;
- the others were done, once each;
- its message was deleted if it was done, and is still there if not;
- the worker was alive, and SIGTERM ended it;
- nothing that the task had started was left;
- no line of the log began with text from a message.

Attacks on the network, the supervisor and the time need more than a task: those rows are tests, run one by one after
the others. benchmarks/chaos.py has random attacks. Exits with 1 if a row did not hold. Linux only, and as root for two
of the rows, which otherwise fail at once.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3

from benchmarks import attack_kinds as kinds
from benchmarks.servers import END_SECONDS, fast_server
from sqstaskmaster import TaskManager
from sqstaskmaster._service.running import CALLBACK_SECONDS

TESTS_SECONDS = 300
EVENT_SECONDS = 20  # for all outcomes of a row to arrive
END_OF_WORKER_SECONDS = 10
SWEPT_SECONDS = 3
LATE_SECONDS = kinds.GRACE_SECONDS + 1  # after the limit
LOOK_SECONDS = 0.05
AT_ONCE = 4  # rows: each mostly waits
MARK = "ATTACK_EVENTS"
FORGED = "2026-01-01 a forged line"

FAILED, LIMITED, DONE = {"failed"}, {"timed out"}, {"done"}
REFUSED = set()  # it never ran, and its message is still there
ISOLATED = ("process", "slots")
EVERYWHERE = ("plain", *ISOLATED)
# Modes of a Worker: a process for each task, processes that stay, fresh interpreters, and its own process.
SLOTTED = ("slots", "warm", "spawned")
WORKERS = (*SLOTTED, "worker")


@dataclasses.dataclass
class Attack:
    """`kind` is a function of attack_kinds; `body` the message in its place."""

    kind: str
    expected: set[str]
    modes: tuple[str, ...] = ISOLATED
    body: str | None = None
    unread_log: bool = False
    closed: bool = False  # standard input and output
    seconds: float = EVENT_SECONDS  # for all its outcomes to arrive


def body_of(task, **kwargs):
    return json.dumps({"task": task, "kwargs": kwargs})


ATTACKS = (
    # Attacks that once broke it.
    Attack("fork_falls_out_then_killed", FAILED),
    Attack("fork_falls_out_then_exits", FAILED),
    Attack("fork_falls_out_then_raises", FAILED, EVERYWHERE),
    Attack("fork_leaves_by_exit", DONE, EVERYWHERE),
    Attack("coroutine", FAILED, EVERYWHERE),
    Attack("hangs_in_an_exit_stack", LIMITED, EVERYWHERE),
    Attack("limits_from_the_producer", REFUSED, ("slots",), body_of("TakesOptions", term_grace=3600)),
    Attack("stops_its_keeper_in_a_loop", LIMITED),
    Attack("kills_its_keeper", FAILED),
    Attack("kills_its_keeper_below_a_daemon", FAILED),
    Attack("fails_with_much_to_log", FAILED, WORKERS, unread_log=True),
    Attack("is_preferred_by_the_oom_killer", DONE),
    Attack("newline_in_the_name", REFUSED, ("slots",), body_of(f"T\n{FORGED}")),
    # Attacks that it survived.
    Attack("storm_of_forks", LIMITED),
    Attack("chain_of_forks", DONE),
    Attack("garbage_into_every_descriptor", FAILED),
    Attack("closes_every_descriptor", LIMITED),
    Attack("changes_its_user", LIMITED | FAILED),
    Attack("changes_its_root", LIMITED | FAILED),
    Attack("stops_itself", LIMITED),
    Attack("kills_its_group", FAILED),
    Attack("stops_its_group", LIMITED),
    Attack("floods_with_progress", LIMITED),
    Attack("floods_with_large_progress", LIMITED),
    Attack("reports_nesting_too_deep", FAILED | DONE),
    Attack("raises_nesting_too_deep", FAILED, EVERYWHERE),
    Attack("recurses_for_ever", FAILED, EVERYWHERE),
    Attack("body_nested_too_deep", REFUSED, EVERYWHERE, '{"task": "Attack", "kwargs": ' + "[" * 100_000),
    Attack("body_that_is_no_json", REFUSED, EVERYWHERE, "\ud7ff not json"),
    # Attacks that once took other slots down with them.
    Attack("sets_no_limit", REFUSED, SLOTTED),
    Attack("sets_no_limit", REFUSED, ("worker",)),
    Attack("sets_dead_letters_as_a_list", REFUSED, SLOTTED),
    Attack("sets_dead_letters_as_a_list", DONE, ("worker",)),
    Attack("sets_its_memory_as_text", REFUSED, SLOTTED),
    Attack("forgets_its_super", REFUSED, WORKERS),
    Attack("running_gives_an_array", FAILED, WORKERS),
    Attack("continues_with_no_mapping", FAILED, WORKERS),
    Attack("stops_its_template", FAILED, ("slots", "warm")),
    Attack("has_300_children", DONE | LIMITED, SLOTTED),  # its forks may take longer than its limit
    Attack("notify_hangs", FAILED, WORKERS, seconds=CALLBACK_SECONDS + EVENT_SECONDS),
    Attack("retry_delay_hangs", FAILED, WORKERS, seconds=CALLBACK_SECONDS + EVENT_SECONDS),
    # A fresh interpreter imports the module too, so its thread would be the task's own.
    Attack("leaves_a_thread", DONE, ("slots", "warm", "worker")),
    Attack("hangs_at_exit", DONE, ("slots", "warm", "worker")),
    Attack("opens_a_file", DONE, WORKERS, closed=True),
)

#: What is attacked, and the tests that attack it. They run as in the suite.
TESTED = {
    "an answer to a receive that came late": (
        "tests.test_message_handler.LapseTest.test_a_receive_whose_answer_came_late_is_extended_on_entering",
    ),
    "a worker frozen for longer than its claim": (
        "tests.test_message_handler.LapseTest"
        ".test_a_worker_that_was_stopped_for_longer_than_its_claim_finds_it_lost_whatever_sqs_says",
        "tests.service.test_slots.ClaimsTest"
        ".test_a_claim_that_lapsed_by_the_worker_s_own_clock_is_lost_whatever_sqs_says",
        "tests.signals.test_scripts.ScriptsTest"
        ".test_a_worker_that_was_stopped_for_longer_than_its_claim_leaves_the_message_to_who_has_it_now",
    ),
    "an answer that is no text": (
        "tests.test_message_handler.ExtensionTest.test_whatever_an_extension_raises_is_a_failed_call_and_tried_again",
        "tests.test_message_handler.DeleteTest.test_whatever_a_delete_raises_is_a_failed_call_and_tried_again",
    ),
    "a decorator without parentheses": (
        "tests.test_worker.ArgumentsTest.test_the_decorator_without_its_parentheses_is_refused",
    ),
    "a worker without tasks": (
        "tests.test_worker.ArgumentsTest.test_a_worker_without_tasks_is_refused_when_it_is_run",
    ),
    "a running() that hangs": (
        "tests.test_process_handler.StoppingTest"
        ".test_neither_heartbeat_nor_limit_waits_for_running_and_one_that_hangs_is_warned_of_once",
        "tests.service.test_slots.VerdictsTest.test_what_the_user_runs_in_the_worker_may_hang_and_holds_up_nobody",
    ),
    "an exception that is no plain data": (
        "tests.isolation.test_carried.CarriedTest"
        ".test_one_that_would_run_code_or_is_not_plain_or_would_end_the_worker_arrives_as_text",
    ),
    "a daemon where there is no /proc": (
        "tests.isolation.test_task.KeeperTest.test_without_proc_a_daemon_does_not_hold_the_worker",
    ),
    "a foreign timer that expires on entering": (
        "tests.test_message_handler.ForeignAlarmTest"
        ".test_a_foreign_timer_that_expires_while_the_block_is_entered_goes_off_once",
    ),
    "a dead worker's socket that is held": (
        "tests.service.test_supervisor.TestSupervisor"
        ".test_a_socket_that_outlives_its_process_costs_no_time_and_no_descriptor",
    ),
    "a task that exits with any code": (
        "tests.service.test_supervisor.TestSupervisor.test_an_exit_code_alone_is_never_fatal",
    ),
    "a log that nobody reads, and SIGTERM": (
        "tests.cli.test_cli_worker.TestStalledLog.test_sigterm_stops_the_worker_all_the_same",
    ),
    "a log that nobody reads, and a dead supervisor": (
        "tests.cli.test_cli_worker.TestStalledLog.test_when_the_supervisor_is_killed_its_processes_end_all_the_same",
    ),
    "no descriptor left for a restart": (
        "tests.service.test_supervisor.TestSupervisor"
        ".test_what_cannot_be_started_for_now_is_tried_again_and_leaks_nothing",
    ),
    "no process left for a keeper": (
        "tests.isolation.test_slot.ShortOfProcessesTest"
        ".test_a_keeper_that_cannot_be_forked_is_an_error_with_the_system_s_words",
    ),
    "a queue that raises SystemExit": (
        "tests.sending.test_producing.SystemExitTest"
        ".test_a_queue_that_raises_system_exit_in_a_sender_is_a_failure_and_hangs_nobody",
    ),
    "an ECS agent that hangs": (
        "tests.service.test_ecs.ScaleInProtectionTest.test_work_does_not_wait_for_an_agent_that_does_not_answer",
    ),
    "a doctor at a server that checks nothing": (
        "tests.cli.test_doctor.TestGather.test_a_server_that_is_not_aws_is_never_asked_for_a_message",
    ),
    "credentials that are answered as nonsense, once": (
        "tests.service.test_slots_weather.PollsTest"
        ".test_what_a_provider_of_credentials_answers_once_is_a_failed_poll_and_the_running_task_goes_on",
    ),
    "no thread left": (
        "tests.service.test_slots_weather.NeighboursTest"
        ".test_where_no_thread_can_be_started_the_worker_waits_until_there_is_one",
    ),
    "a poll that is refused after good ones": (
        "tests.service.test_slots_weather.PollsTest"
        ".test_a_poll_that_is_refused_after_good_ones_stops_no_running_task",
    ),
    "a keeper that is stopped": (
        "tests.service.test_slots_weather.StartsTest"
        ".test_a_keeper_that_is_stopped_counts_as_dead_and_its_message_is_given_back",
    ),
    "an extension that hangs": (
        "tests.service.test_slots.ClaimsTest" ".test_an_extension_that_hangs_delays_no_other_claim",
    ),
    "a queue that does not answer, before another": (
        "tests.service.test_slots_weather.PollsTest"
        ".test_a_poll_that_does_not_answer_holds_back_no_other_queue_and_what_it_brings_late_is_run",
    ),
    "a measure of memory that takes long": (
        "tests.service.test_slots_weather.NeighboursTest"
        ".test_a_measure_of_memory_that_takes_long_holds_up_neither_limit_nor_claim_of_a_neighbour",
    ),
    "a log that nobody reads, and python service.py": (
        "tests.cli.test_cli_worker.TestStalledLog" ".test_a_program_that_runs_its_worker_itself_ends_too",
        "tests.cli.test_cli_worker.TestStalledLog" ".test_tasks_in_the_workers_own_process_go_on_and_their_limit_holds",
    ),
    "a callback that hangs": (
        "tests.service.test_slots_weather.CallbacksTest"
        ".test_a_callback_that_hangs_is_given_up_named_in_the_log_and_needed_by_nothing",
    ),
    "tasks that cannot be started": (
        "tests.service.test_slots_weather.StartsTest"
        ".test_tasks_that_cannot_be_started_are_given_back_with_a_delay_and_end_the_worker_after_eight",
    ),
    "a spare that dies before it has its task": (
        "tests.service.test_slots_weather.StartsTest"
        ".test_a_spare_that_dies_before_it_has_its_task_is_a_failed_start_and_not_forked_again_and_again",
    ),
    "a notify that hangs, and SIGTERM or a burst": (
        "tests.service.test_slots_weather.CallbacksTest" ".test_a_notify_that_hangs_ends_neither_stop_nor_burst",
    ),
    "a burst over two queues, one of them refused": (
        "tests.service.test_slots_weather.PollsTest"
        ".test_a_burst_over_two_queues_of_which_one_is_refused_ends_with_that_ones_refusal",
    ),
    "SQS that never answers, and SIGTERM": (
        "tests.service.test_slots_troubles.GivingBackTest"
        ".test_an_answer_that_does_not_come_is_not_waited_for_for_ever",
    ),
    "its own copy, while its task runs": (
        "tests.service.test_slots_weather.OwnCopyTest"
        ".test_a_task_that_runs_and_was_not_told_to_stop_takes_the_new_claim_and_is_settled_by_it",
    ),
    "its own copy, while its task is being stopped": (
        "tests.service.test_slots_weather.OwnCopyTest"
        ".test_a_task_that_is_being_stopped_ends_first_and_the_message_starts_in_its_slot",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of an attack's name")
    parser.add_argument("--mode", choices=sorted({*EVERYWHERE, *WORKERS}))
    arguments = parser.parse_args()
    rows = [
        (attack, mode)
        for attack in ATTACKS
        for mode in attack.modes
        if arguments.only in attack.kind and arguments.mode in (None, mode)
    ]
    broken = 0
    print(f"{'attack':<36} {'handler':<8} {'must be':<19} {'held':<5} {'seconds':>7}")
    with fast_server(), ThreadPoolExecutor(AT_ONCE) as pool:
        for (attack, mode), (problems, took) in zip(rows, pool.map(lambda row: timed(*row), rows)):
            broken += bool(problems)
            must = " or ".join(sorted(attack.expected)) or "left, unstarted"
            held = "no" if problems else "yes"
            print(f"{attack.kind:<36} {mode:<8} {must:<19} {held:<5} {took:>7.1f}  {'; '.join(problems)}", flush=True)
    tested = [] if arguments.mode else [name for name in TESTED if arguments.only in name]
    for name in tested:
        problems, took = run_tests(TESTED[name])
        broken += bool(problems)
        held = "no" if problems else "yes"
        print(f"{name:<49} {'tests':<15} {held:<5} {took:>7.1f}  {problems}", flush=True)
    print(f"{len(rows) + len(tested) - broken} of {len(rows) + len(tested)} held")
    sys.exit(1 if broken else 0)


def run_tests(names):
    """The first error they report, if any; and the seconds they took."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "unittest", *names], capture_output=True, text=True, timeout=TESTS_SECONDS
    )
    failed = [line for line in ended.stderr.splitlines() if line.startswith(("FAIL: ", "ERROR: "))]
    problem = "".join(failed[:1]) or f"ended with {ended.returncode}" if ended.returncode else ""
    return problem, time.monotonic() - began


def timed(attack, mode):
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        problems = run(attack, mode, folder)
    return problems, time.monotonic() - began


def run(attack, mode, folder):
    """Run one row. Returns what did not hold."""
    sqs = boto3.session.Session().client("sqs")  # threads must not share the default session
    url = sqs.create_queue(QueueName=f"attack-{uuid.uuid4().hex}", Attributes={"VisibilityTimeout": "60"})["QueueUrl"]
    manager = TaskManager(url)
    healthy = {"After": 2}
    if mode in SLOTTED:
        healthy["Beside"] = 1
        manager.submit("Beside")
    sqs.send_message(QueueUrl=url, MessageBody=attack.body or body_of("Attack"))
    for _ in range(healthy["After"]):
        manager.submit("After")
    events = os.path.join(folder, "events")
    worker = start(attack, mode, folder, url, events)
    try:
        expected = sum(healthy.values()) + bool(attack.expected)
        deadline = time.monotonic() + attack.seconds + kinds.limit(mode)
        while len(read(events)) < expected and time.monotonic() < deadline and worker.poll() is None:
            time.sleep(LOOK_SECONDS)
        problems = [*judge(attack, mode, read(events), healthy)]
        if worker.poll() is not None:
            problems.append(f"the worker ended with {worker.returncode}")
        problems += end(worker)
        problems += left_over(events)
        problems += forged_lines(folder)
        problems += message_of(sqs, url, read(events), attack)
    finally:
        worker.kill()
        worker.wait(END_SECONDS)
        if worker.stderr:
            worker.stderr.close()
    return problems


def start(attack, mode, folder, url, events):
    command = [sys.executable, "-m", "benchmarks.attack_kinds", mode]
    if mode in WORKERS:
        command = [sys.executable, "-m", "sqstaskmaster", "worker", "benchmarks.attack_kinds:worker"]
    if attack.closed:
        command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *command]
    environ = {**os.environ, "ATTACK": attack.kind, "ATTACK_MODE": mode, "ATTACK_URL": url, MARK: events}
    with open(os.path.join(folder, "log"), "wb") as log:
        stderr = subprocess.PIPE if attack.unread_log else log
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=stderr)


def read(events):
    try:
        with open(events) as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []


def judge(attack, mode, found, healthy):
    """What is wrong with the outcomes."""
    counts = collections.Counter(event["task"] for event in found if event["outcome"] == "done")
    for name, number in healthy.items():
        if counts[name] != number:
            yield f"{name} was done {counts[name]} times and not {number}"
    outcomes = [event for event in found if event["task"] not in healthy]
    if not attack.expected and outcomes and outcomes[0]["outcome"] == "done" or attack.expected and not outcomes:
        yield f"outcomes: {outcomes}"
    for event in outcomes if attack.expected else ():
        if event["outcome"] not in attack.expected:
            yield f"it came to {event['outcome']!r}"
        if event["seconds"] > kinds.limit(mode) + LATE_SECONDS:
            yield f"it was over after {event['seconds']} s"
    if len(outcomes) > 1:
        yield "it ran again"


def end(worker):
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(END_OF_WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"SIGTERM did not end the worker in {END_OF_WORKER_SECONDS} s"]
    return []


def left_over(events):
    deadline = time.monotonic() + SWEPT_SECONDS
    while left := marked(events):
        if time.monotonic() > deadline:
            return [f"{len(left)} processes left"]
        time.sleep(LOOK_SECONDS)
    return []


def forged_lines(folder):
    with open(os.path.join(folder, "log"), errors="replace") as log:
        return ["a line of the log is forged"] if any(line.startswith(FORGED) for line in log) else []


def marked(events):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as environ:
                    if f"{MARK}={events}".encode() in environ.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                pass
    return found


def message_of(sqs, url, found, attack):
    """Check that only finished work was deleted."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    there = sum(int(counts[name]) for name in names)
    done = any(event["outcome"] == "done" for event in found if event["task"] == "Attack")
    return [] if there == (0 if done else 1) else [f"{there} messages are in the queue"]


if __name__ == "__main__":
    main()
