"""The exit codes of the command line and of its worker processes: a table, and what each of them means."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit codes of `sqstaskmaster`. Scripts and orchestrators read them: a number never gets a new meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    MODULE = 3
    QUEUE = 4
    UNREACHABLE = 5
    CRASHING = 6
    NOT_ALL_SENT = 7
    WARNINGS = 8
    ERRORS = 9
    KILLED = 10
    NOT_READY = 11
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done; for a worker: an orderly stop, nothing is left running",
    Exit.FAILED: "another error, named on standard error",
    Exit.USAGE: "the command line itself is wrong, nothing was done",
    Exit.MODULE: "MODULE:WORKER cannot be imported, or is not a Worker",
    Exit.QUEUE: "the queue, the region or the credentials are wrong: trying again does not help",
    Exit.UNREACHABLE: "SQS did not answer, or was too busy: trying again may help",
    Exit.CRASHING: "worker processes kept dying before their first poll",
    Exit.NOT_ALL_SENT: "submit --file: some lines were not sent, each is named",
    Exit.WARNINGS: "doctor: the worst finding is a warning",
    Exit.ERRORS: "doctor: the worst finding is an error",
    Exit.KILLED: "a worker process had to be killed; its message comes back after its visibility timeout",
    Exit.NOT_READY: "the worker's initializer failed three times in a row in every slot: nothing was received",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}
