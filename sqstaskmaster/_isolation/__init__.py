"""A task in a process of its own, and the processes that watch over it. Nothing but the standard library.

Belongs here: starting, watching, stopping and sweeping processes. Not here: queues, messages, claims. Whoever forks,
kills or reaps a task is in this room. Knows `_signals` and the errors. Re-exported: nothing.
"""
