"""bench.first_call measures the check of fuse beside a forward, and the steps after it."""

import pytest

from bench import first_call
from bench.records.rows import LEVELS, new

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_batch_has_a_forward_and_a_check():
    record = new()
    first_call.first_call(record, first_call.RESNET20, [1, 3], 2)
    first_call.steps(record, 2, 2)
    assert [row.batch_size for row in record.rows] == [1, 1, 3, 3, 2, 2]
    assert all(row.level in LEVELS and row.seconds and row.n == 2 for row in record.rows)
    forwards = [row.more["forwards"] for row in record.rows if row.provider == first_call.CHECK]
    assert len(forwards) == 2 and min(forwards) > 0
