"""What the benchmarks say of the tests holds."""

import unittest

from benchmarks import attacks


class AttacksTest(unittest.TestCase):
    def test_every_test_that_the_table_of_attacks_runs_is_there(self):
        for attack, names in attacks.TESTED.items():
            for name in names:
                with self.subTest(attack=attack, name=name):
                    module, case, method = name.rsplit(".", 2)
                    loaded = getattr(__import__(module, fromlist=["_"]), case)
                    self.assertTrue(callable(getattr(loaded, method)))


if __name__ == "__main__":
    unittest.main()
