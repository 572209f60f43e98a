"""What this process has open."""

import gc
import os


def open_descriptors():
    """Their numbers; neither that with which this is read, nor what other tests have left to the collector."""
    gc.collect()
    return {number for number in map(int, os.listdir("/proc/self/fd")) if os.path.lexists(f"/proc/self/fd/{number}")}


def left_open(before):
    """Those that are new since `before`. Of the older ones a thread of an earlier test may close some meanwhile."""
    return open_descriptors() - before
