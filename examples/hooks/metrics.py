"""Prometheus: how many tasks ended how, and how long they took. Told by the worker, so killed tasks count too.

worker = Worker(manager, on_start=lambda: metrics.serve(9000), on_finish=metrics.count)
"""

from prometheus_client import Counter, Histogram, start_http_server

SECONDS = (0.1, 1, 10, 60, 600, 3600, 4 * 3600, 12 * 3600)

finished = Counter("tasks_finished", "Tasks that have ended", ["task", "outcome"])
ran = Histogram("task_seconds", "Seconds that tasks ran", ["task"], buckets=SECONDS)
queued = Histogram("task_queued_seconds", "Seconds from the send to the start", ["task"], buckets=SECONDS)
cpu = Counter("task_cpu_seconds", "CPU seconds that tasks used", ["task"])
memory = Histogram("task_peak_bytes", "Peak memory of tasks", ["task"], buckets=[2**power for power in range(24, 38)])


def serve(port):
    """For `Worker(on_start=...)`: in the worker's own process. One port for each worker of a machine."""
    return start_http_server(port)


def count(task):
    """For `Worker(on_finish=...)`. `task` is a Finished."""
    finished.labels(task.task, task.outcome).inc()
    ran.labels(task.task).observe(task.elapsed)
    if task.queued is not None:
        queued.labels(task.task).observe(task.queued)
    if task.cpu_seconds is not None:
        cpu.labels(task.task).inc(task.cpu_seconds)
    if task.peak_memory is not None:
        memory.labels(task.task).observe(task.peak_memory)
