"""What differs by task, batching and head is said in their rows."""

from __future__ import annotations

import pytest
import transformers

from joulesweep.axes.layout import BATCHINGS, HEADS
from joulesweep.axes.task import TASKS
from joulesweep.core.spec import OMISSION


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_one_of_three_kinds_with_a_class_of_transformers(name):
    row = TASKS[name]
    assert row.about
    assert [row.hides, row.causal, row.encoder_decoder].count(True) == 1
    assert hasattr(transformers, row.auto_class)
    assert set(row.unused) <= set(OMISSION)
    assert ("mask" in row.special_tokens) == row.hides == ("mask_probability" not in row.unused)


def test_a_row_is_packed_or_padded_to_one_length_or_comes_in_many_shapes():
    assert all(row.about and not (row.packs and row.pads_fully) for row in BATCHINGS.values())
    assert {name for name, row in BATCHINGS.items() if not row.few_shapes} == {"dynamic"}
    assert {name: row.everywhere for name, row in HEADS.items()} == {"masked": False, "dense": True}
