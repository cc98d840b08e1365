"""What fuzzing came to, from run to run and as the table has it."""

from tests.fuzz.record import Result, markdown, remember, results

GGUF = Result("gguf", {"taken": 3, "refused": 1200, "fault": 1, "memory": 2}, 160.4, 7, "abc", "2026-01-02")
KILL = Result("kill", {"was done": 1, "gone on with": 30, "begun again": 19}, 500.0, 7, "abc", "2026-01-02")


def test_a_later_result_takes_an_earlier_ones_place(tmp_path):
    file, again = tmp_path / "build" / "fuzz.json", Result("gguf", {"taken": 1}, 1.0, 8, "def", "2026-01-03")
    for result in (GGUF, KILL, again):
        remember(file, result)
    assert results(file) == [again, KILL] and results(tmp_path / "absent.json") == []


def test_the_table_counts_what_held():
    lines = markdown([KILL, GGUF]).splitlines()
    assert "| gguf | 1,206 | 3 | 1,200 | 2 | 1,205 | 160 |" in lines
    assert "| kill | 50 | 1 | 30 | 19 | 0 | 50 | 500 |" in lines
    assert lines[-1] == "Run for 11 minutes on 2026-01-02 at `abc`. Seeds from 7."
