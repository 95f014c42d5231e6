"""Pack several texts into rows of a fixed length."""

from __future__ import annotations

import collections

import torch


def round_up(number: int, multiple: int = 1) -> int:
    """Round a size up to one of eight between two powers of two, because oneDNN and CUDA graphs prepare each shape.

    Args:
        number: size to round up; grows by at most an eighth, apart from rounding to a multiple.
        multiple: of which the result is a positive multiple.
    """
    step = max(multiple, (1 << max(number - 1, 0).bit_length()) // 16)
    return max(step, -(-number // step) * step)


def pack(lengths: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Put texts into rows: the longest first, each into the fullest row that still has room (best fit decreasing).

    Args:
        lengths: int64 [texts], none above the capacity.
        capacity: tokens per row.

    Returns:
        Row and first column of each text, both int64 [texts].
    """
    texts = lengths.argsort(descending=True, stable=True)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    num_rows = 0
    rows: list[int] = []
    columns: list[int] = []
    for size, left in sorted(collections.Counter(lengths.tolist()).items(), reverse=True):
        while left:
            room = next((room for room in range(size, capacity) if rows_by_room[room]), capacity)
            # While a row has room for another text of this size it stays the fullest one, so fill it completely.
            each = room // size if size else left
            num_needed = -(-left // each)
            if room == capacity:
                taken, num_rows = list(range(num_rows, num_rows + num_needed)), num_rows + num_needed
            else:
                taken = rows_by_room[room][: -num_needed - 1 : -1]
                del rows_by_room[room][-num_needed:]
            placed = min(left, each * len(taken))
            rows += [row for row in taken for _ in range(each)][:placed]
            columns += ([capacity - room + size * i for i in range(each)] * len(taken))[:placed]
            rows_by_room[room - size * each] += taken[:-1]
            rows_by_room[room - size * (placed - each * (len(taken) - 1))].append(taken[-1])
            left -= placed
    row, column = torch.empty_like(lengths), torch.empty_like(lengths)
    row[texts], column[texts] = torch.tensor(rows), torch.tensor(columns)
    return row, column
