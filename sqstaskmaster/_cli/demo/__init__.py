"""`python -m sqstaskmaster demo`: what happens to every kind of task, drawn live on one time axis.

worker process  --events-->  this process  --picture-->  terminal (redrawn in place) or pipe (line by line)
"""

from __future__ import annotations

import argparse

from sqstaskmaster._cli.demo import screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's own options."""
    parser.add_argument(
        "--queue-url",
        metavar="URL",
        help="run on this SQS queue instead of in memory. Only what the demo sends is consumed, and it is deleted in "
        "the end; a message of somebody else's is received once, set aside while the demo runs, and given back",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. The exit code: 0 if everything ended as it should, 1 if something did not, 2 if the queue cannot be
    used, 130 after Ctrl-C.
    """
    return screen.show(arguments.queue_url)
