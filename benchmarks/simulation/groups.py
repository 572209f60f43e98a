"""The laws of FIFO queues: in a group, tasks run one after the other, in the order in which they were sent."""


class Groups:
    """The messages of each group."""

    def __init__(self, ledger, run):
        self._ledger = ledger
        self._run = run
        self._records = {}

    def sent(self, record):
        url, name = record.group
        if url.endswith(".fifo"):
            self._records.setdefault((url, name), []).append(record)

    def check(self, record, process):
        """A task may start only after all earlier tasks of its group, and beside none of them."""
        group = self._records.get(record.group)
        if group is None:
            return
        ledger = self._ledger
        before = group[: group.index(record)]
        there = {message.message_id for message in self._run.queues[record.group[0]]._home.store._messages.values()}
        for other in before:
            if other.message_id in there:
                ledger.violated(f"{process.name} starts before {ledger.name_of(other)}, which comes first in its group")
            for live in other.live:
                if not live.world.dead:
                    wrong = self._wrong(other, live.handle)
                    if wrong:
                        ledger.violated(f"{process.name} runs beside {live.name} of its group, {wrong}")

    def _wrong(self, other, handle):
        """What is wrong with a task that runs though its message is gone; "" if its claim has lapsed."""
        if handle.replaced is not None:
            return handle.wrong
        if self._run.events.now < other.granted_until and not other.deleted:
            return "whose claim is held"
        return self._ledger.why_replaced(other, handle)[1]
