"""The command `sqstaskmaster`: its arguments, and which module does the work. Nothing imports this module.

Each command's module is imported when the command runs, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqstaskmaster._cli.exits import CommandError, explain, report
from sqstaskmaster._cli.logs import LEVELS
from sqstaskmaster._isolation import pipes
from sqstaskmaster._service.exit_codes import MEANINGS, Exit
from sqstaskmaster.version import __version__

_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/tasks"

# botocore tries five times with long pauses: right for a worker, too long for a person at a terminal.
_ATTEMPTS_AT_A_TERMINAL = "3"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    pipes.reserve_standard()
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    if arguments.command != "worker":
        os.environ.setdefault("AWS_MAX_ATTEMPTS", _ATTEMPTS_AT_A_TERMINAL)
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:
        # The pipe's reader (head, less) is gone. What is still buffered must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.OK
    except (Exception, KeyboardInterrupt) as error:
        return report(error, arguments.debug, getattr(arguments, "url", "the queue"))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser(argv)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("submit", "run"):
        # argparse ends a list of words at the first option; `Train --json {} epochs=3` goes on after it.
        arguments.words += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    watched = [word for before, word in zip(argv, argv[1:]) if before == "--watch" and word in rest]
    if watched:
        parser.error(f"--watch takes no number: write --watch --every {watched[0]}")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


# -- the commands -----------------------------------------------------------------------------------------------------


def _worker(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli import logs
    from sqstaskmaster._cli.worker_process import Options
    from sqstaskmaster._service.supervisor import Supervisor

    logs.configure(arguments.log_level, arguments.log_json)
    alive_file = arguments.alive_file
    if alive_file is not None and not os.access(alive_file.parent, os.W_OK):
        raise CommandError(Exit.USAGE, f"--alive-file {alive_file}: its folder cannot be written to; give another")
    with contextlib.ExitStack() as stack:
        # On ECS, the processes coordinate their one scale-in protection through a nameless file.
        on_ecs = "ECS_AGENT_URI" in os.environ
        lock = stack.enter_context(tempfile.TemporaryFile()).fileno() if on_ecs else None
        options = Options(
            arguments.worker,
            arguments.burst,
            arguments.log_level,
            arguments.log_json,
            arguments.debug,
            lock,
            arguments.slots,
        )
        return Supervisor(
            options.command(),
            arguments.processes,
            burst=arguments.burst,
            alive_file=alive_file,
            shared=() if lock is None else (lock,),
        ).run()


def _doctor(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli import doctor, tables
    from sqstaskmaster.task_manager import TaskManager

    client = TaskManager(arguments.url).queue.meta.client
    worker = None
    if arguments.worker is not None:
        from sqstaskmaster._cli.worker_process import load

        worker = doctor.times_of(load(arguments.worker))
    facts = doctor.gather(arguments.url, client, lambda error, url: explain(error, url)[1], worker)
    findings = doctor.examine(facts)
    rows = [[finding.name, str(finding.level), finding.text, finding.remedy] for finding in findings]
    if arguments.json:
        tables.show_json(tables.Table(("check", "level", "found", "remedy"), rows))
    else:
        tables.show_findings(rows)
    return (Exit.OK, Exit.WARNINGS, Exit.ERRORS)[doctor.worst(findings)]


def _operation(name: str) -> Callable[[argparse.Namespace], Exit]:
    def run(arguments: argparse.Namespace) -> Exit:
        from sqstaskmaster._cli import operations

        function: Callable[[argparse.Namespace], Exit] = getattr(operations, name)
        return function(arguments)

    return run


def _run(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli.run import run

    return run(arguments)


def _dead(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli.dead import dead

    return dead(arguments)


def _ps(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli.ps import ps

    return ps(arguments)


def _stop(arguments: argparse.Namespace) -> Exit:
    from sqstaskmaster._cli.stop import stop

    return stop(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from sqstaskmaster._cli import demo

    code: int = demo.run(arguments)
    return Exit.QUEUE if code == 2 else code  # 2 is a wrong command line here


# -- the arguments ----------------------------------------------------------------------------------------------------


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqstaskmaster",
        description="Long, CPU-heavy, uncooperative tasks on Amazon SQS.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(
            "sqstaskmaster demo",
            "sqstaskmaster worker tasks:worker --slots 4",
            f"sqstaskmaster submit {_URL} Train model=large epochs=3",
            f"sqstaskmaster status {_URL} --watch",
            f"sqstaskmaster doctor {_URL} --worker tasks:worker",
        )
        + "\n\nexit codes:\n"
        + "\n".join(_filled(meaning, f"  {code.value:<4}") for code, meaning in MEANINGS.items()),
    )
    parser.add_argument("--version", action="version", version=f"sqstaskmaster {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str, more: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=_filled(f"{text[0].upper()}{text[1:]}. {more}".strip()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_epilog(*examples),
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
        return command

    _add_worker(add)
    _add_run(add)
    _add_ps(add)
    _add_stop(add)
    _add_submit(add)
    _add_status(add)
    _add_dead(add)
    _add_redrive(add)
    _add_purge(add)
    _add_doctor(add)
    demo = add("demo", _demo, "show what happens to tasks, live", "sqstaskmaster demo")
    # The demo's module is loaded for its arguments only when they are needed.
    if "demo" in argv[:1] or _is_completing():
        from sqstaskmaster._cli.demo import add_arguments

        add_arguments(demo)
    _complete(parser)
    return parser


def _filled(text: str, before: str = "") -> str:
    """Wrapped for the terminal, as argparse wraps the rest. `before` precedes the first line; others are indented."""
    width = max(40, min(100, shutil.get_terminal_size().columns - 2))
    return textwrap.fill(text, width, initial_indent=before, subsequent_indent=" " * len(before))


def _add_worker(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "worker",
        _worker,
        "run tasks until stopped, as many at once as there are slots",
        "sqstaskmaster worker tasks:worker",
        "sqstaskmaster worker tasks:worker --slots 4 --log-json --alive-file /tmp/alive",
        "sqstaskmaster worker tasks:worker --burst",
        more="On SIGTERM or Ctrl-C the worker takes no more tasks, lets running ones go on for its shutdown_grace, "
        "then stops them and gives their messages back. A second signal stops it at once. A process that dies "
        "is restarted, with backoff.",
    )
    _add_worker_name(command)
    command.add_argument(
        "--slots",
        type=_slots,
        metavar="N|auto",
        help="how many tasks at once, each in a process of its own; auto: the processors this container may use "
        "(default: the worker's own slots)",
    )
    command.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="how many whole interpreters, each with its own imports and its own poll (default: 1)",
    )
    command.add_argument("--burst", action="store_true", help="end when the queue is empty")
    _add_log(command)
    command.add_argument(
        "--alive-file",
        type=Path,
        metavar="PATH",
        help="touched once a second while every process has polled within 90 s or runs a task; for health checks",
    )


def _add_run(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "run",
        _run,
        "run one task here and now, without a queue",
        "sqstaskmaster run tasks:worker Train model=large epochs=3",
        'sqstaskmaster run tasks:worker Train --json \'{"model": "large"}\'',
        "sqstaskmaster run tasks:worker --body message.json",
        more="The task runs as in the worker, under the same limits of time and memory, and ends with the same "
        "line. The log shows where it hung or crashed. Continuations run too. Exits with 0 only when the task "
        "is done.",
    )
    _add_worker_name(command)
    command.add_argument(
        "words",
        nargs="*",
        metavar="TASK key=value",
        help="the task's name and its arguments; a value is JSON where it parses, else a string",
    )
    command.add_argument("--json", metavar="OBJECT", help="arguments as one JSON object")
    command.add_argument("--body", metavar="FILE", help="a message's body, or what dead --json printed; - is stdin")
    _add_log(command)


def _add_ps(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "ps",
        _ps,
        "show what the workers of this machine run",
        "sqstaskmaster ps",
        "sqstaskmaster ps --watch",
        "sqstaskmaster ps --stacks",
        more="It sees this user's workers on this machine, or in this container; as root, everybody's. It does not "
        "show the loop of a script, and a worker whose plain MessageHandler holds the interpreter in C code "
        "does not answer. To take the stack of an isolated task, --stacks sends it a signal, which interrupts "
        "a sleep or a wait in C code that does not try again.",
    )
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--stacks", action="store_true", help="also where each task is, C calls included, without stopping it"
    )
    _add_watch(either)
    _add_every(command)
    _add_json(command)


def _add_stop(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "stop",
        _stop,
        "stop a task that a worker of this machine runs",
        "sqstaskmaster stop 4f0c4c1e-6a0b-4f6c-9d3a-0d5f3a1b2c3d",
        "sqstaskmaster stop 4f0c4c1e-6a0b-4f6c-9d3a-0d5f3a1b2c3d --retry --reason 'wrong model'",
        more="It sees this user's workers on this machine, or in this container; as root, everybody's. The task is "
        "stopped as at its limit (SIGTERM, term_grace, SIGKILL), and its message is deleted. The command "
        "waits until that is done, and prints how the task ended. Exits with 1 if no worker here runs that "
        "message, or if its task ended in another way first. To stop a task from another machine, delete its "
        "message.",
    )
    command.add_argument("message_id", metavar="MESSAGE_ID", help="the message's id, as ps and the log show it")
    command.add_argument(
        "--retry", action="store_true", help="give the message back, so that another worker runs the task again"
    )
    command.add_argument("--reason", default="", metavar="TEXT", help="for the worker's log: at most 500 characters")


def _add_submit(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "submit",
        _operation("submit"),
        "send one task, or a file of tasks",
        f"sqstaskmaster submit {_URL} Train model=large epochs=3 'layers=[64, 64]'",
        f'sqstaskmaster submit {_URL} Train --json \'{{"model": "large"}}\'',
        f"sqstaskmaster submit {_URL} --file tasks.jsonl",
        more='A line of a file is {"task": "Train", "kwargs": {"model": "large"}}; with TASK, the kwargs alone.',
    )
    _add_url(command)
    command.add_argument(
        "words",
        nargs="*",
        metavar="TASK key=value",
        help="the task's name and its arguments; a value is JSON where it parses, else a string",
    )
    command.add_argument("--json", metavar="OBJECT", help="arguments as one JSON object")
    command.add_argument("--file", metavar="TASKS.jsonl", help="one task a line; - is standard input")
    command.add_argument("--sender", metavar="NAME", help="the message attribute service_name")
    command.add_argument(
        "--delay", type=int, metavar="SECONDS", help="the delay until it can be received: 0 to 900 seconds"
    )
    command.add_argument("--group", metavar="ID", help="the message group: required on a FIFO queue")
    command.add_argument("--deduplication-id", metavar="ID", help="FIFO queues only")


def _add_status(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "status",
        _operation("status"),
        "show how many messages a queue and its dead-letter queue hold",
        f"sqstaskmaster status {_URL}",
        f"sqstaskmaster status {_URL} --watch",
        more="The counts of SQS are approximate.",
    )
    _add_url(command)
    _add_watch(command)
    _add_every(command)
    _add_json(command)


def _add_redrive(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "redrive",
        _operation("redrive"),
        "move the messages of a dead-letter queue back",
        f"sqstaskmaster redrive {_URL}-dead",
        f"sqstaskmaster redrive {_URL}-dead --to {_URL} --rate 10",
        f"sqstaskmaster redrive {_URL}-dead --task Train --limit 5",
        more="SQS itself moves the messages; Ctrl-C stops the move. With --task, --id or --limit this command moves "
        "them: it sends each one, then deletes it. Messages that do not match count one more receive.",
    )
    _add_url(command, "the dead-letter queue's URL", "DLQ_URL")
    command.add_argument(
        "--to", metavar="URL", help="the queue they go to (default: the one whose dead-letter queue it is)"
    )
    command.add_argument("--rate", type=_rate, metavar="N", help="at most this many messages a second: 1 to 500")
    _add_filter(command)
    command.add_argument("--limit", type=_messages, metavar="N", help="at most so many messages")


def _add_dead(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "dead",
        _dead,
        "show what is in a dead-letter queue, and why",
        f"sqstaskmaster dead {_URL}-dead",
        f"sqstaskmaster dead {_URL}-dead --task Train --json",
        f"sqstaskmaster dead {_URL}-dead --id ID --json | sqstaskmaster run tasks:worker --body -",
        more="Each message is received and given back at once, which SQS counts as one more receive. So the "
        "command refuses a queue that has a redrive policy itself. The reason is known if a worker gave it "
        "(DeadLetter, or Worker(dead_letter_reasons=True)). The age counts from then, or else from when the "
        "message was sent.",
    )
    _add_url(command, "the dead-letter queue's URL", "DLQ_URL")
    _add_filter(command)
    command.add_argument(
        "--limit", type=_messages, default=1000, metavar="N", help="at most this many messages (default: 1000)"
    )
    command.add_argument("--json", action="store_true", help="one JSON object a message and line, with its whole body")


def _add_filter(command: argparse.ArgumentParser) -> None:
    command.add_argument("--task", metavar="NAME", help="only those of this task")
    command.add_argument("--id", action="append", metavar="ID", help="only this message; may be repeated")


def _add_purge(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "purge",
        _operation("purge"),
        "delete every message of a queue",
        f"sqstaskmaster purge {_URL} --yes",
        more="Messages in flight are deleted too: workers stop their tasks at the next extension of the claim.",
    )
    _add_url(command)
    command.add_argument("--yes", action="store_true", help="do it; without this nothing is deleted")


def _add_doctor(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "doctor",
        _doctor,
        "check that a queue, the permissions on it, and a worker's timeouts fit together",
        f"sqstaskmaster doctor {_URL}",
        f"sqstaskmaster doctor {_URL} --worker tasks:worker",
        more="It receives, sends and deletes no message. The exit code is that of the worst finding: 0, 8 for a "
        "warning, 9 for an error.",
    )
    _add_url(command)
    command.add_argument("--worker", type=_module_and_name, metavar="MODULE:WORKER", help="also check its timeouts")
    _add_json(command)


def _add_worker_name(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "worker", type=_module_and_name, metavar="MODULE:WORKER", help="the Worker, importable from here: tasks:worker"
    )


def _add_log(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log-level",
        choices=LEVELS,
        default="INFO",
        type=str.upper,
        help="the lowest level that is logged (default: INFO)",
    )
    command.add_argument("--log-json", action="store_true", help="log one JSON object a line")


def _add_url(command: argparse.ArgumentParser, text: str = "the queue's URL", metavar: str = "URL") -> None:
    command.add_argument("url", metavar=metavar, help=text)


def _add_watch(command: Any) -> None:
    command.add_argument("--watch", action="store_true", help="show them again and again, until Ctrl-C")


def _add_every(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="how often --watch shows them (default: 2)"
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="as one line of JSON, for programs")


def _epilog(*examples: str) -> str:
    return "examples:\n" + "\n".join(f"  {example}" for example in examples)


def _is_completing() -> bool:
    return "_ARGCOMPLETE" in os.environ


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's request for completions (argcomplete, in the extra `cli`)."""
    if _is_completing():
        try:
            import argcomplete
        except ImportError:
            return
        argcomplete.autocomplete(parser)


# -- the types of arguments -------------------------------------------------------------------------------------------


def _module_and_name(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (colon and module and name) or "/" in module or module.endswith(".py"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODULE:WORKER: write tasks:worker for the Worker named 'worker' in tasks.py"
        )
    return text


def _number_in(text: str, make: Callable[[str], Any], least: float, most: float, what: str) -> Any:
    try:
        value = make(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} from {least:g} to {most:g}")
    return value


def _count(text: str) -> Any:
    return _number_in(text, int, 1, 1000, "number of processes")


def _slots(text: str) -> Any:
    return text if text == "auto" else _number_in(text, int, 1, 1000, "number of slots, and not 'auto',")


def _rate(text: str) -> Any:
    return _number_in(text, int, 1, 500, "number of messages a second")


def _messages(text: str) -> Any:
    return _number_in(text, int, 1, 10_000_000, "number of messages")


def _seconds(text: str) -> Any:
    return _number_in(text, float, 0.1, 3600, "number of seconds")
