"""A row that crashes or hangs is told as such, and the rows after it are looked at all the same."""

import os
import time

from benchmarks.models.record import Outcome, Record
from benchmarks.models.workers import run_rows


def look(name: str) -> Record:
    if name == "dies":
        os._exit(3)
    if name == "hangs":
        time.sleep(600)
    return Record(name, unbuilt=os.environ["OMP_NUM_THREADS"])


def test_every_row_comes_back_whatever_the_others_do():
    records = {}
    names = ["one", "dies", "two", "hangs", "three"]
    run_rows(names, 2, look, lambda record: records.setdefault(record.name, record), limit_s=20.0)
    assert set(records) == set(names)
    assert all(records[name] == Record(name, unbuilt="1") for name in ("one", "two", "three"))
    for name, error in (("dies", "the process died with status 3"), ("hangs", "not done in 20 s")):
        (way,) = records[name].ways
        assert (way.outcome, way.error) == (Outcome.FAULT, error)


def test_fewer_rows_than_workers():
    records = []
    run_rows(["one"], 4, look, records.append)
    assert [record.name for record in records] == ["one"]
