"""Signals, timers and calls that may not take for ever: borrowed, bounded, and put back.

Belongs here: all code that uses `signal.signal` or `setitimer`, and calls whose wait is bounded. Not here: what a
signal means for a task. Knows the errors. Re-exported: nothing.
"""
