"""Queues in memory: the implementation of `LocalQueue` and `SimulatedQueue`. For tests; production code never uses it.

`refusals` has what both refuse; the rest is SimulatedQueue's: `service` (botocore's model of SQS), `requests` (what SQS
refuses beyond that), `clock`, `lines` (which message is next) and `store` (the messages of one queue).
"""
