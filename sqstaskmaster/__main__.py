"""`python -m sqstaskmaster`."""

from __future__ import annotations

import argparse
import sys

from sqstaskmaster import demo


def main() -> int:
    parser = argparse.ArgumentParser(prog="sqstaskmaster")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = commands.add_parser("demo", help="what becomes of tasks of every kind, live, on one time axis")
    demo.add_arguments(shown)
    shown.set_defaults(run=demo.run)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
