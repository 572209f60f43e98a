"""Signals, timers and calls that may not take for ever: borrowed, bounded, and put back.

Belongs here: whoever names `signal.signal` or `setitimer`, and the calls that are waited for only so long. Not here:
what a signal means for a task. Knows the errors. Re-exported: nothing.
"""
