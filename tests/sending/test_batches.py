"""The pure parts of submit_many: what waits, what leaves together, how many threads, which ids."""

import unittest
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from sqstaskmaster._sending.batches import Entry, GroupedLine, Line
from sqstaskmaster._sending.concurrency import Concurrency
from sqstaskmaster._sqs.limits import MAX_BATCH_BYTES
from sqstaskmaster.results import MessageIds

SIZES = st.lists(st.integers(1, MAX_BATCH_BYTES) | st.integers(1, 1000) | st.just(MAX_BATCH_BYTES))


def entries(sizes, groups=None):
    return [
        Entry(index, "T", {}, {"MessageGroupId": groups[index]} if groups else {}, size)
        for index, size in enumerate(sizes)
    ]


class LineTest(unittest.TestCase):
    @settings(deadline=None, max_examples=50)
    @given(SIZES, st.integers(1, 10))
    def test_all_leave_in_order_within_the_limits_and_as_full_as_may_be(self, sizes, most):
        line, taken = Line(most), []
        for entry in entries(sizes):
            line.add(entry)
        self.assertEqual((len(sizes), sum(sizes)), (len(line), line.bytes))
        while len(line):
            whole = line.has_whole()
            batch = line.take()
            size = sum(entry.size for entry in batch)
            self.assertTrue(1 <= len(batch) <= most and size <= MAX_BATCH_BYTES)
            taken += [entry.index for entry in batch]
            full = len(batch) == most or (len(line) and size + sizes[len(taken)] > MAX_BATCH_BYTES)
            self.assertEqual(whole, bool(full))
        self.assertEqual(list(range(len(sizes))), taken)
        self.assertEqual((0, [], False), (line.bytes, line.take(), line.has_whole()))

    def test_clear_takes_what_waits(self):
        for line in (Line(), GroupedLine()):
            for entry in entries([5, 6, 7], "aab"):
                line.add(entry)
            self.assertEqual([0, 1, 2], [entry.index for entry in line.clear()])
            self.assertEqual((0, 0, []), (len(line), line.bytes, line.take()))


class GroupedLineTest(unittest.TestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.integers(1, MAX_BATCH_BYTES))), st.randoms())
    def test_a_group_leaves_in_order_one_at_a_time(self, given_entries, random):
        waiting = entries([size for _, size in given_entries], [group for group, _ in given_entries])
        line, left, flying, taken = GroupedLine(), list(waiting), [], []
        while left or flying or len(line):
            if left and random.random() < 0.7:
                line.add(left.pop(0))
            batch = line.take()
            if batch:
                flying.append(batch)
                taken += batch
            groups = [entry.group for batch in flying for entry in batch]
            self.assertEqual(len(groups), len(set(groups)))
            self.assertTrue(all(sum(entry.size for entry in batch) <= MAX_BATCH_BYTES for batch in flying))
            if flying and (random.random() < 0.5 or not left):
                line.done(flying.pop(random.randrange(len(flying))))
        self.assertEqual(0, line.bytes)
        for group in set(entry.group for entry in waiting):
            self.assertEqual(
                [entry.index for entry in waiting if entry.group == group],
                [entry.index for entry in taken if entry.group == group],
            )
        self.assertEqual(({}, {}, set()), (line._groups, line._free, line._busy))

    def test_a_dropped_group_has_nothing_left_and_others_go_on(self):
        line = GroupedLine()
        for entry in entries([1] * 5, "abaab"):
            line.add(entry)
        first = line.take()
        self.assertEqual([2, 3], [entry.index for entry in line.drop("a")])
        line.done(first)
        self.assertEqual([4], [entry.index for entry in line.take()])
        self.assertEqual((0, 0), (len(line), line.bytes))


class PaceTest(unittest.TestCase):
    def wanted(self, threads, wall, computing, most=8, requests=40):
        pace = Concurrency(most)
        for _ in range(requests):
            threads = pace.wanted(threads, wall, computing)
        return threads

    def test_a_thread_that_mostly_computes_is_left_alone(self):
        self.assertEqual(1, self.wanted(1, wall=0.0012, computing=0.0009))

    def test_threads_are_added_while_the_network_is_waited_for(self):
        self.assertEqual(8, self.wanted(1, wall=0.016, computing=0.001))
        self.assertEqual(3, self.wanted(1, wall=0.003, computing=0.001))
        self.assertEqual(4, self.wanted(1, wall=0.016, computing=0.0, most=4))

    def test_threads_that_wait_for_each_other_are_no_reason_for_more(self):
        # Four that compute for 1 ms each take turns: 4 ms for each of them.
        self.assertEqual(4, self.wanted(4, wall=0.004, computing=0.001))

    def test_the_first_request_makes_the_connection_and_does_not_count(self):
        pace = Concurrency(8)
        self.assertEqual(1, pace.wanted(1, 5.0, 0.01))
        self.assertEqual([1] * 6, [pace.wanted(1, 0.001, 0.0009) for _ in range(6)])


class MessageIdsTest(unittest.TestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.dictionaries(st.integers(0, 10_000), st.uuids().map(str) | st.text() | st.none()))
    def test_every_id_comes_back_as_it_was(self, ids):
        kept = MessageIds()
        for index, message_id in ids.items():
            kept.put(index, message_id)
        self.assertEqual(max(ids, default=-1) + 1, len(kept))
        self.assertEqual([ids.get(index) for index in range(len(kept))], list(kept))

    def test_it_is_a_sequence(self):
        kept = MessageIds()
        one = str(uuid.uuid4())
        kept.put(2, one)
        kept.grow(4)
        self.assertEqual(([None, None, one, None], one, [one]), (list(kept), kept[-2], kept[2:3]))
        self.assertRaises(IndexError, lambda: kept[4])
        self.assertRaises(IndexError, lambda: kept[-5])


if __name__ == "__main__":
    unittest.main()
