"""Fill rows of a fixed length with several texts."""

from __future__ import annotations

import collections

import torch


def round_up(number: int, multiple: int = 1) -> int:
    """Round a size up to one of few, eight between a power of two and the next: each shape is prepared apart.

    By oneDNN, for one, and by CUDA graphs.

    Args:
        number: that is needed; at most an eighth is added, apart from what makes it a multiple.
        multiple: of which the result is one, and not none.
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
            # While a row has room for another text of this size it stays the fullest one: it takes as many as go in.
            each = room // size if size else left
            wanted = -(-left // each)
            if room == capacity:
                taken, num_rows = list(range(num_rows, num_rows + wanted)), num_rows + wanted
            else:
                taken = rows_by_room[room][: -wanted - 1 : -1]
                del rows_by_room[room][-wanted:]
            placed = min(left, each * len(taken))
            rows += [row for row in taken for _ in range(each)][:placed]
            columns += ([capacity - room + size * i for i in range(each)] * len(taken))[:placed]
            rows_by_room[room - size * each] += taken[:-1]
            rows_by_room[room - size * (placed - each * (len(taken) - 1))].append(taken[-1])
            left -= placed
    row, column = torch.empty_like(lengths), torch.empty_like(lengths)
    row[texts], column[texts] = torch.tensor(rows), torch.tensor(columns)
    return row, column
