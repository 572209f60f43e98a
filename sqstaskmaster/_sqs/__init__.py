"""Amazon SQS as it is: its limits, its errors and what they mean, what a message looks like, how values are written.

Belongs here: facts and pure functions. Not here: requests, threads, loops. Knows the errors. Re-exported: nothing.
"""
