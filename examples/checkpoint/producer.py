"""Submits a training of many steps: python producer.py QUEUE_URL"""

import argparse

from sqstaskmaster import TaskManager


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1, help="that a step takes (%(default)s)")
    parser.add_argument("--path", default=".", help="folder for the state (%(default)s)")
    arguments = parser.parse_args()
    TaskManager(arguments.queue_url, sender_name="producer").submit(
        "train", steps=arguments.steps, seconds=arguments.seconds, path=arguments.path
    )


if __name__ == "__main__":
    main()
