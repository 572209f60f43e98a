"""A task in a process of its own, and the processes that watch over it. Needs only the standard library.

Belongs here: starting, watching, stopping and sweeping processes. Not here: queues, messages, claims. All code that
forks, kills or reaps a task is in this room. Knows `_signals` and the errors. Re-exported: nothing.
"""
