"""OpenTelemetry: the span of a task is the child of the span that sent it, across the queue and the processes.

worker = Worker(manager, around=tracing.traced)          tracing.submit(manager, "Train", model="large")
"""

import contextlib

from opentelemetry import propagate, trace

tracer = trace.get_tracer("sqstaskmaster")


def submit(manager, task, **kwargs):
    """`manager.submit`, in a span; what leads to it travels in message attributes."""
    attributes = {
        "messaging.system": "aws_sqs",
        "messaging.operation.type": "send",
        "messaging.destination.name": manager.url.rpartition("/")[2],
    }
    with tracer.start_as_current_span(f"send {task}", kind=trace.SpanKind.PRODUCER, attributes=attributes) as span:
        carrier = {}
        propagate.inject(carrier)
        answer = manager.options(message_attributes=carrier).submit(task, **kwargs)
        span.set_attribute("messaging.message.id", answer["MessageId"])
        return answer


@contextlib.contextmanager
def traced(task):
    """For `Worker(around=...)`: entered in the task's process.

    Its exporter must send at once, as a SimpleSpanProcessor does: a BatchSpanProcessor has a thread, which a process
    that was forked does not have. A task that is killed cannot end its span: count those with metrics.py.
    """
    carrier = {name: value["StringValue"] for name, value in task.message_attributes.items() if "StringValue" in value}
    attributes = {
        "messaging.system": "aws_sqs",
        "messaging.operation.type": "process",
        "messaging.message.id": task.message_id or "",
        "sqstaskmaster.task": task.name,
        "sqstaskmaster.receive_count": task.receive_count or 0,
        "sqstaskmaster.continuation": task.continuation,
    }
    with tracer.start_as_current_span(
        f"process {task.name}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    ):
        yield
