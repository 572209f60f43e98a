"""The claim as a state machine: what is due when, and what an answer meant. No clock but numbers, no requests."""

import math
import unittest

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqstaskmaster._claim.claim import Answer, Claim, Request
from sqstaskmaster.errors import ClaimLapsed, NoAnswer
from tests.support.handling import BEYOND_TOTAL, NO_ANSWERS, client_error

TWELVE_HOURS = 43200
LOST = client_error("MessageNotInflight")


def held(asked_at=100.0, answered_at=None, seconds=30, sqs_timeout=30, alarm_timeout=10.0):
    """A claim just received."""
    claim = Claim(sqs_timeout, alarm_timeout, asked_at=asked_at)
    claim.received(asked_at if answered_at is None else answered_at, seconds)
    return claim


def extend(claim, sent_at, answered_at=None):
    request = claim.begin_extension(sent_at)
    claim.extended(request, sent_at if answered_at is None else answered_at)
    return request


class ReceivedTest(unittest.TestCase):
    def test_a_claim_of_which_nothing_is_known_is_to_be_extended_at_once_and_never_lapses(self):
        claim = Claim(30, 10, asked_at=100.0, task="T")
        self.assertEqual((0, False, 100, "T"), (claim.left(100), claim.is_fresh(100), claim.due(100), claim.task))
        self.assertFalse(claim.lapsed(100 + TWELVE_HOURS))

    def test_it_ends_no_earlier_than_counted_from_the_request_and_no_later_than_from_the_answer(self):
        claim = held(100, 118, 20)
        self.assertEqual((120, 138), (claim.earliest_end, claim.latest_end))

    def test_a_receive_whose_answer_came_at_once_is_fresh_and_one_that_came_late_is_not(self):
        self.assertTrue(held(100, 101).is_fresh(101))
        self.assertFalse(held(100, 101.1).is_fresh(101.1))
        self.assertFalse(held(100, 100, seconds=29).is_fresh(100.1))
        self.assertTrue(held(100, 110, seconds=3600).is_fresh(110))

    def test_the_first_extension_is_due_an_alarm_after_the_request_and_sooner_where_the_claim_is_shorter(self):
        self.assertEqual(110, held(100).due(100))
        self.assertEqual(110, held(100, seconds=3600).due(100))
        self.assertEqual(105, held(100, seconds=15).due(100))

    def test_what_is_overdue_is_due_now(self):
        self.assertEqual(115, held(100).due(115))


class ExtensionTest(unittest.TestCase):
    def test_an_extension_is_counted_from_its_sending_and_from_its_answer(self):
        claim = held(100)
        extend(claim, 110, 113)
        self.assertEqual((140, 143, 120), (claim.earliest_end, claim.latest_end, claim.due(113)))

    def test_it_may_be_sent_early_to_join_others(self):
        claim = held(100)
        self.assertEqual([False, True], [claim.extension_is_due(105, slack) for slack in (4, 5)])
        extend(claim, 105)
        self.assertEqual(135, claim.earliest_end)

    def test_one_without_an_answer_yet_is_followed_by_another_while_several_fit_into_what_is_left(self):
        claim = held(100)
        first = claim.begin_extension(110)
        self.assertEqual(115, claim.due(110))
        claim.unanswered(first, 111)
        self.assertEqual(115, claim.due(111))
        second = claim.begin_extension(115)
        claim.extended(first, 116)  # late, and it counts all the same
        self.assertEqual((140, 146), (claim.earliest_end, claim.latest_end))
        self.assertEqual((Request(30, 110), Request(30, 115)), (first, second))

    def test_the_late_failure_of_an_old_one_does_not_put_off_the_next(self):
        claim = held(100)
        old = claim.begin_extension(110)
        claim.unanswered(old, 112)
        claim.begin_extension(115)
        due = claim.due(115)
        claim.failed(old, NoAnswer("cut off, long after it was given up"), due - 0.1)
        self.assertEqual(due, claim.due(115))

    def test_of_two_that_crossed_either_may_have_been_the_last(self):
        claim = held(100)
        longer, shorter = claim.begin_extension(110), claim.begin_extension(112, 20)
        claim.extended(shorter, 113)
        self.assertEqual((132, 133), (claim.earliest_end, claim.latest_end))
        claim.extended(longer, 114)
        self.assertEqual((132, 144), (claim.earliest_end, claim.latest_end))
        extend(claim, 120)
        self.assertEqual((150, 150), (claim.earliest_end, claim.latest_end))

    def test_failures_are_tried_again_sooner_and_sooner_but_no_storm(self):
        for error in (*NO_ANSWERS, client_error("RequestThrottled"), UnicodeDecodeError("utf-8", b"", 0, 1, "")):
            claim, now, tries = held(100), 110.0, 0
            while now < claim.latest_end:
                self.assertIs(Answer.RETRY, claim.failed(claim.begin_extension(now), error, now))
                pause = claim.due(now) - now
                self.assertTrue(0 < pause <= max(0.5, claim.left(now) / 4))
                now, tries = now + pause, tries + 1
            self.assertTrue(5 <= tries <= 20, tries)

    def test_while_nothing_is_known_failures_are_tried_again_at_each_alarm(self):
        claim = Claim(30, 10, asked_at=100.0)
        claim.failed(claim.begin_extension(100), NO_ANSWERS[0], 100)
        self.assertEqual(110, claim.due(100))

    def test_a_shorter_extension_than_usual_is_followed_the_sooner(self):
        claim = held(100)
        claim.extended(claim.begin_extension(110, 15), 110)
        self.assertEqual(115, claim.due(110))


class LostTest(unittest.TestCase):
    def test_what_sqs_says_of_the_claim_ends_it_and_nothing_is_extended_any_more(self):
        claim = held(100)
        request, other = claim.begin_extension(110), claim.begin_extension(111)
        self.assertIs(Answer.LOST, claim.failed(request, LOST, 111))
        claim.extended(other, 112)
        self.assertEqual(130, claim.earliest_end)
        self.assertIs(Answer.LOST, claim.failed(other, NO_ANSWERS[0], 112))
        self.assertIs(LOST, claim.lost)
        self.assertEqual((None, math.inf, 0), (claim.begin_extension(120), claim.due(120), claim.left(120)))
        self.assertFalse(claim.extension_is_due(200))

    def test_a_claim_that_had_ended_by_the_latest_is_lost_and_says_for_how_long(self):
        claim = held(100, 105)
        self.assertFalse(claim.lapsed(135))
        self.assertTrue(claim.lapsed(137.5))
        self.assertIsInstance(claim.lost, ClaimLapsed)
        self.assertEqual(2.5, claim.lost.seconds)
        self.assertIn("2.5 seconds ago", str(claim.lost))
        self.assertTrue(claim.lapsed(150))
        self.assertEqual(2.5, claim.lost.seconds)
        self.assertEqual((None, math.inf), (claim.begin_extension(150), claim.due(150)))

    def test_an_extension_is_not_begun_on_a_claim_that_has_lapsed(self):
        claim = held(100)
        self.assertIsNone(claim.begin_extension(130.1))
        self.assertIsInstance(claim.lost, ClaimLapsed)

    def test_the_lapse_is_due_where_no_extension_is_waited_for(self):
        claim = held(100)
        for now in (110, 115, 120, 125, 128, 129, 129.7):
            claim.failed(claim.begin_extension(now), NO_ANSWERS[0], now)
        self.assertEqual(130, claim.due(129.7))

    def test_an_answer_that_was_read_after_the_process_was_stopped_does_not_revive_the_claim(self):
        claim = held(100)
        request = claim.begin_extension(110)
        claim.extended(request, 500)  # granted at 110 or later, and at 130 at the latest
        self.assertEqual(160, claim.latest_end)
        self.assertTrue(claim.lapsed(500))

    def test_an_answer_that_crossed_the_end_may_have_saved_the_claim(self):
        claim = held(100)
        request = claim.begin_extension(129)
        claim.extended(request, 131)
        self.assertFalse(claim.lapsed(131))
        self.assertEqual((159, 160), (claim.earliest_end, claim.latest_end))


class TwelveHoursTest(unittest.TestCase):
    def test_an_extension_is_cut_to_the_whole_seconds_left_of_the_12_hours(self):
        claim = Claim(30, 10, asked_at=100.0)
        cuts = [claim.cut(30, 100 + TWELVE_HOURS - left) for left in (40, 30, 29.9, 0.5, 0, -5)]
        self.assertEqual([30, 30, 29, 0, 0, 0], cuts)

    def test_a_claim_that_reaches_to_its_end_is_final_and_only_its_lapse_is_due(self):
        claim = held(100)
        claim.received(100, TWELVE_HOURS - 25)
        self.assertFalse(claim.is_final())
        extend(claim, 100 + TWELVE_HOURS - 25.5)
        self.assertTrue(claim.is_final())
        now = 100 + TWELVE_HOURS - 20
        self.assertIsNone(claim.begin_extension(now))
        self.assertEqual(claim.latest_end, claim.due(now))

    def test_a_claim_of_12_hours_from_the_receive_is_brought_down_to_what_the_handler_wants(self):
        claim = held(100, seconds=TWELVE_HOURS)
        self.assertEqual(110, claim.due(100))
        self.assertEqual(30, claim.begin_extension(110).seconds)

    def test_a_refusal_makes_what_is_held_the_end_and_never_moves_it_out(self):
        claim = held(100)
        self.assertIs(Answer.BEYOND_TOTAL, claim.failed(claim.begin_extension(110), BEYOND_TOTAL, 110))
        self.assertEqual((130, None, 130), (claim.ends, claim.lost, claim.due(110)))
        self.assertIsNone(claim.begin_extension(120))
        claim.ends = 90.0
        claim.failed(Request(30, 110), BEYOND_TOTAL, 111)
        self.assertEqual(90, claim.ends)

    def test_a_zero_that_would_give_the_message_back_is_never_asked_for(self):
        claim = Claim(30, 10, asked_at=100.0)
        self.assertIsNone(claim.begin_extension(100 + TWELVE_HOURS - 0.5))
        self.assertEqual(math.inf, claim.due(100 + TWELVE_HOURS))


class World:
    """SQS as it is, a network that delays, and a driver that is late: with it, what the claim believes is compared."""

    def __init__(self, sqs_timeout, alarm_timeout, ask_delay, answer_delay):
        self.now = 1000.0
        self.claim = Claim(sqs_timeout, alarm_timeout, asked_at=self.now)
        self.end = self.now + ask_delay + sqs_timeout
        self.total = self.now + ask_delay + TWELVE_HOURS
        self.had_lapsed = False
        self.unheard = False  # whether the last extension that was carried out is one of which no answer comes
        self.under_way = []  # (carried out at, answered at, request, how); of several the earliest first
        self.now += ask_delay + answer_delay
        self.claim.received(self.now, sqs_timeout)

    def begin(self, there, back, how):
        request = self.claim.begin_extension(self.now)
        if request is not None:
            self.under_way.append([self.now + there, self.now + there + back, request, how])

    def move(self, seconds):
        """Let time pass, and what happens in it; the driver hears of each answer when it comes."""
        until = self.now + seconds
        while True:
            events = [(event[0], 0, event) for event in self.under_way if event[0] is not None]
            events += [(event[1], 1, event) for event in self.under_way if event[0] is None]
            at, kind, event = min(events, key=lambda each: each[:2], default=(math.inf, 0, None))
            if at > until:
                break
            self.now = at
            self.had_lapsed = self.had_lapsed or self.now > self.end
            if kind == 0:
                event[0] = None
                self.carry_out(event)
            else:
                self.under_way.remove(event)
                self.answer(*event[2:])
        self.now = until
        self.had_lapsed = self.had_lapsed or self.now > self.end

    def carry_out(self, event):
        request, how = event[2:]
        if how == "lost on the way":
            return
        if self.now + request.seconds > self.total:
            event[3] = "beyond"
        elif how == "gone":
            self.had_lapsed = True
        else:
            self.end = self.now + request.seconds
            self.unheard = how != "granted"

    def all_heard(self):
        """Whether the driver has heard of all that was carried out."""
        return not self.unheard and not any(event[0] is None for event in self.under_way)

    def answer(self, request, how):
        if how == "granted":
            self.claim.extended(request, self.now)
        else:
            errors = {"beyond": BEYOND_TOTAL, "gone": LOST}
            self.claim.failed(request, errors.get(how, NO_ANSWERS[0]), self.now)


seconds = st.floats(0, 40, allow_nan=False).map(lambda value: round(value, 2))
short = st.floats(0, 2, allow_nan=False).map(lambda value: round(value, 2))
steps = st.tuples(
    short, st.one_of(short, seconds), st.sampled_from(["granted"] * 5 + ["no answer", "lost on the way", "gone"]), short
)


NOW = (0.0, 0.0, "granted", 0.0)


class WalkTest(unittest.TestCase):
    @settings(deadline=None, max_examples=300)
    @given(st.integers(3, 60), st.floats(0.05, 0.9), seconds, seconds, st.lists(steps, max_size=40), st.booleans())
    @example(52, 0.5, 0.0, 0.0, [NOW, NOW, NOW, (0.0, 11.0, "granted", 0.0), (0.0, 0.0, "no answer", 0.0), NOW], True)
    def test_whatever_the_answers_and_delays_the_claim_is_believed_held_only_where_it_is(
        self, sqs_timeout, fraction, ask_delay, answer_delay, walk, near_the_end
    ):
        alarm_timeout = round(fraction * (sqs_timeout - 1), 2)
        world = World(sqs_timeout, alarm_timeout, ask_delay, answer_delay)
        if near_the_end:
            world.total = world.now + sqs_timeout * 2
            world.claim.ends = world.total - ask_delay
        claim = world.claim
        for there, back, how, late in walk:
            due = claim.due(world.now)
            if claim.lost is not None:
                self.assertEqual((math.inf, None), (due, claim.begin_extension(world.now)))
                return
            held = claim.earliest_end > world.now
            # Never later than at the next alarm or the end of the claim: none that is live stays without an extension.
            self.assertLessEqual(due, claim.latest_end)
            if held and not claim.is_final():
                self.assertLess(due, max(world.now + 0.51, claim.earliest_end))
                self.assertLessEqual(due, world.now + alarm_timeout)
            world.move(min(due, world.now + 100) - world.now + late)
            if claim.lapsed(world.now):
                self.assertTrue(world.had_lapsed or not world.all_heard(), "lost only where it was")
                continue
            if claim.lost is None and not world.had_lapsed:
                # Cut to whole seconds, a request of which no answer has come may have shortened it by less than one.
                cut = 1.0 if near_the_end and not world.all_heard() else 0.0
                self.assertLessEqual(claim.earliest_end, world.end + cut + 1e-6)
                if world.all_heard():
                    self.assertLessEqual(world.end, claim.latest_end + 1e-6)
            world.begin(there, back, how)

    @settings(deadline=None, max_examples=200)
    @given(st.integers(3, 60), st.floats(0.05, 0.9), st.lists(st.tuples(short, seconds), max_size=30))
    def test_a_driver_that_was_stopped_for_longer_than_the_claim_always_finds_it_lost(self, sqs_timeout, part, walk):
        alarm_timeout = part * (sqs_timeout - 1)
        world = World(sqs_timeout, alarm_timeout, 0.0, 0.1)
        for back, stopped in walk:
            request = world.claim.begin_extension(world.now)
            if request is None:
                break
            world.now += back
            world.claim.extended(request, world.now)
            before = world.claim.latest_end
            world.now += stopped
            self.assertEqual(world.now > before, world.claim.lapsed(world.now))


if __name__ == "__main__":
    unittest.main()
