"""The claim on one message: what is due when, what an answer of SQS meant, and how the claim ends.

Belongs here: decisions about one claim, and the requests that end it. Not here: where messages come from, how a task
runs, signals. Knows `_sqs`, `_signals` (to bound a call) and the errors. Re-exported: nothing.
"""
