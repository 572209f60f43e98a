import contextlib
import importlib.util
import io
import unittest

from sqstaskmaster._cli import tables
from sqstaskmaster._cli.tables import Table, plain


class TestPlain(unittest.TestCase):
    def test_columns_are_aligned_and_lines_have_no_trailing_space(self):
        table = Table(("name", "count"), [["a", "1"], ["longer", "200"]])
        self.assertEqual("name    count\na       1\nlonger  200", plain(table))

    def test_numbers_stand_to_the_right(self):
        table = Table(("name", "count"), [["a", "1"], ["longer", "2000000"]], numbers=("count",))
        self.assertEqual("name      count\na             1\nlonger  2000000", plain(table))

    def test_on_80_columns_an_id_is_whole_no_word_is_torn_and_long_columns_are_cut(self):
        ids = [f"4f0c4c1e-6a0b-4f6c-9d3a-0d5f3a1b2c3{number}" for number in range(2)]
        columns = ("worker", "slot", "task", "message_id", "seconds", "limit", "memory", "CPU", "claim", "progress")
        rows = [
            ["4711", "0", "Train" * 20, each, "12.5", "3600", "1024.5 MiB", "12.1", "3.0", "a" * 90] for each in ids
        ]
        table = Table(columns, rows, (), ("worker",), ("task", "progress"), ("message_id", "progress"))
        lines = plain(table, 80).splitlines()
        self.assertEqual(1 + 3 * len(rows), len(lines))
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertEqual(["worker", "slot", "task", "seconds", "limit", "memory", "CPU", "claim"], lines[0].split())
        self.assertEqual([f"    message_id {each}" for each in ids], lines[2::3])
        self.assertRegex(lines[3], r"^    progress a+\.\.\.$")
        self.assertRegex(lines[1], r"^  4711  0     Train.*\.\.\.  12.5 ")

    def test_where_all_fits_nothing_stands_below_and_in_a_pipe_nothing_is_cut(self):
        table = Table(("a", "b"), [["1" * 50, "2" * 50]], long=("a",), below=("b",))
        self.assertEqual(2, len(plain(table, 102).splitlines()))
        self.assertEqual(2, len(plain(table).splitlines()))
        self.assertIn("1" * 50, plain(table))

    def test_as_json_it_is_one_line_whose_numbers_are_numbers(self):
        table = Table(("name", "count"), [["a\n", "1"], ["2", "?"]], numbers=("count",))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            tables.show_json(table)
        self.assertEqual('[{"name": "a\\n", "count": 1}, {"name": "2", "count": null}]\n', output.getvalue())

    def test_a_table_without_rows_is_its_header(self):
        self.assertEqual("name  count", plain(Table(("name", "count"), [])))

    def test_a_table_in_a_pipe_is_plain(self):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            tables.show(Table(("name",), [["[bold]a"]], ("red",)))
        self.assertEqual("name\n[bold]a\n", output.getvalue())


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestWatch(unittest.TestCase):
    def watched(self, output):
        """What is shown of a table that changes, until Ctrl-C."""
        numbers = iter("123")

        def ask():
            for number in numbers:
                return Table(("number",), [[number]])
            raise KeyboardInterrupt

        with contextlib.redirect_stdout(output):
            tables.watch(ask, 0)
        return output.getvalue()

    def test_a_table_is_shown_again_and_again_until_it_is_interrupted(self):
        shown = self.watched(io.StringIO()).splitlines()
        self.assertEqual(["number"] * 3, shown[1::3])
        self.assertEqual(["1", "2", "3"], shown[2::3])

    @unittest.skipUnless(importlib.util.find_spec("rich"), "rich is not installed")
    def test_on_a_terminal_one_table_is_drawn_over(self):
        shown = self.watched(Terminal())
        self.assertIn("\x1b[?1049h", shown, "the alternate screen, so that what was there before comes back")
        self.assertIn("\x1b[?1049l", shown)
        self.assertLess(shown.rindex("1 "), shown.rindex("3 "))


class TestProgress(unittest.TestCase):
    @unittest.skipUnless(importlib.util.find_spec("rich"), "rich is not installed")
    def test_progress_on_a_terminal_is_a_bar(self):
        with contextlib.redirect_stderr(Terminal()) as output:
            with tables.progress("Sent", 3_000) as update:
                update(3_000, 3_000)
        self.assertIn("100%", output.getvalue())

    def test_progress_in_a_pipe_is_a_line_every_few_seconds(self):
        now = 0.0
        with contextlib.redirect_stderr(io.StringIO()) as output:
            with tables.progress("Sent", 3_000, clock=lambda: now) as update:
                update(1_000, 3_000)
                now = 5.0
                update(2_000, 3_000)
                update(2_500, 3_000)
                now = 10.0
                update(3_000, None)
        self.assertEqual("Sent: 2,000 of 3,000\nSent: 3,000\n", output.getvalue())
