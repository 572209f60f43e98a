"""Loops that a signal interrupts, and whose block is to have what its handler raises."""

import time


class Stop(Exception):
    pass


class Block:
    """Notes that its `__exit__` was called, with what."""

    def __enter__(self):
        self.error = None
        return self

    def __exit__(self, kind, error, traceback):
        self.error = error
        return True


class Loops:
    """Loops that are the last of their block, and of one function with it: no call between it and the handler.

    The jump back of some is not in the range of the block: which of them, versions of Python from 3.12 on differ in.
    """

    def while_busy(block, busy, many):
        with block:
            while busy:
                pass

    def while_true_without_end(block, busy, many):
        with block:
            while True:
                if not busy:
                    break

    def while_it_counts(block, busy, many):
        count = 1
        with block:
            while count:
                count += 1

    def while_it_calls(block, busy, many):
        with block:
            while time.monotonic() > 0:
                pass

    def for_each_of_many(block, busy, many):
        with block:
            for each in many:
                if each < 0:
                    busy += each

    def of_two_blocks_the_inner_one(block, busy, many):
        with Block(), block:
            while busy:
                pass

    def in_a_try_in_the_block(block, busy, many):
        with block:
            try:
                while busy:
                    pass
            except Stop:
                raise

    def with_a_long_body(block, busy, many):
        one = two = three = 1
        with block:
            while busy:
                if not one:
                    one, two, three = two + one, three + two, one + three
                    one, two, three = [one, two, three], [two, three, one], [three, one, two]
                    one, two, three = {one: two}, {two: three}, {three: one}
                    one, two, three = one or two or three, two or three or one, three or one or two
                    one, two, three = one and two and three, two and three and one, three and one and two
                    one, two, three = two + one, three + two, one + three
                    one, two, three = [one, two, three], [two, three, one], [three, one, two]
                    one, two, three = {one: two}, {two: three}, {three: one}
                    one, two, three = one or two or three, two or three or one, three or one or two
                    one, two, three = one and two and three, two and three and one, three and one and two


#: By their names: functions of a block, of what keeps them busy, and of many numbers.
LOOPS = {name: loop for name, loop in vars(Loops).items() if not name.startswith("_")}
