"""`submit_many`: many messages in batches, through several threads, each accounted for.

Belongs here: batching, retry and concurrency of sending. Not here: what a message holds. Knows `_sqs`, the errors and
the results. Re-exported: nothing; `TaskManager.submit_many` is the door.
"""
