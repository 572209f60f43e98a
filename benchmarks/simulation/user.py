"""The user's code: tasks, handlers and callbacks, which may hang and raise."""

from sqstaskmaster._service import registry as tasks
from sqstaskmaster._service.function_handler import FunctionHandler


class User:
    def __init__(self, run):
        self._run = run

    def notify(self, exception, context):
        if self._run.chance.happens(self._run.weather.callback_raises):
            self._run.counts["callback raises"] += 1
            raise KeyError("notify")

    def on_finish(self, finished):
        if self._run.chance.happens(self._run.weather.callback_raises):
            self._run.counts["callback raises"] += 1
            raise KeyError("on_finish")

    def _retry_delay(self, exception, receive_count):
        chance = self._run.chance
        if chance.happens(self._run.weather.callback_raises):
            self._run.counts["callback raises"] += 1
            raise KeyError("retry_delay")
        return None if chance.happens(0.3) else chance.whole(0, 20)

    def registry(self):
        made = tasks.Registry()
        settings = {
            "sqs_timeout": self._run.sqs_timeout,
            "alarm_timeout": self._run.alarm_timeout,
            "hard_timeout": self._run.hard_timeout,
            "term_grace": self._run.term_grace,
            "start_method": None,
            "max_memory": None,
            "dead_letter": (),
            "max_continuations": 1000,
            "retry_delay": self._retry_delay,
        }
        asking = {**settings, "max_memory": self._run.max_memory}
        entry = tasks.of_function("Task", _task, settings)
        for name, kind, quick in (("Task", _Handler, True), ("Class", _Asking, False)):
            given = settings if quick else asking
            made.add(name, entry._replace(make=self._maker(kind, given), quick=quick))
        return made

    def _maker(self, kind, settings):
        def make(message, kwargs, notify):
            if kind is _Asking and self._run.chance.happens(self._run.weather.callback_raises / 4):
                raise KeyError("constructor")
            handler = kind(message, _task, kwargs, notify=notify, **settings)
            handler.simulation = self._run
            return handler

        return make


def _task(n, step=0):
    raise AssertionError("it runs nowhere")


class _Handler(FunctionHandler):
    def claim_lost(self, exception):
        run = self.simulation
        if run.chance.happens(run.weather.callback_raises):
            raise KeyError("claim_lost")


class _Asking(_Handler):
    def running(self):
        run = self.simulation
        if run.chance.happens(run.weather.callback_raises):
            raise KeyError("running")
        return not run.chance.happens(run.weather.callback_hangs)
