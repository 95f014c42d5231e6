"""The load of a certificate: products of matrices on one board, or on the CPU.

`python -m joulesweep.certify.load cuda|cpu` prints a line when it is ready. Each line of its input,
{seconds, period_s}, starts a load of that length; with a period, it works for half of each turn. It answers with the
begin, the end (on the monotonic clock) and the number of products. Lines are JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time

import torch

from joulesweep.certify.blocks import turns

SIZE = {"cuda": 4096, "cpu": 512}  # rows of the square matrices
CHUNK_S = 0.002  # length of a group of products to wait for: a board would idle between single ones
TIMED = 20  # products timed at the start


class Products:
    """Products of two matrices of random numbers (zeros would draw less power).

    Args:
        accelerator: "cuda" or "cpu".
    """

    def __init__(self, accelerator: str) -> None:
        self.cuda = accelerator == "cuda"
        size, dtype = SIZE[accelerator], torch.float16 if self.cuda else torch.float32
        self.a, self.b = (torch.randn(size, size, device=accelerator, dtype=dtype) for _ in range(2))
        self.out, self.chunk = torch.empty_like(self.a), 1
        self._multiply(TIMED)
        self._wait()
        began_s = time.monotonic()
        self._multiply(TIMED)
        self._wait()
        self.product_s = (time.monotonic() - began_s) / TIMED
        self.chunk = max(1, round(CHUNK_S / self.product_s))

    def described(self) -> dict[str, object]:
        """The device and the product that it computes."""
        board = torch.cuda.get_device_properties(0) if self.cuda else None
        return {
            "torch": torch.__version__,
            "uuid": None if board is None else str(getattr(board, "uuid", "")) or None,
            "product": f"{len(self.a)} × {len(self.a)} {str(self.a.dtype).removeprefix('torch.')}",
            "product_s": self.product_s,
            "threads": torch.get_num_threads(),
        }

    def work(self, seconds: float, period_s: float | None) -> dict[str, object]:
        """Do products for some seconds: {began_s, ended_s, num_products}."""
        began_s = time.monotonic()
        number = 0
        for from_s, until_s in [(0.0, seconds)] if period_s is None else turns(seconds, period_s, random.Random()):
            time.sleep(max(0.0, began_s + from_s - time.monotonic()))
            number += self._until(began_s + until_s)
        time.sleep(max(0.0, began_s + seconds - time.monotonic()))
        return {"began_s": began_s, "ended_s": time.monotonic(), "num_products": number}

    def _until(self, until_s: float) -> int:
        """Do products until a time, one chunk ahead of the one being waited for; return their number."""
        number, before = 0, None
        while time.monotonic() < until_s:
            self._multiply(self.chunk)
            number += self.chunk
            if self.cuda:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                if before is not None:
                    before.synchronize()
                before = event
        self._wait()
        return number

    def _multiply(self, times: int) -> None:
        for _ in range(times):
            torch.mm(self.a, self.b, out=self.out)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def main(argv: list[str]) -> int:
    """Do what each line of the input asks for, until the input ends."""
    try:
        products = Products(argv[1])
    except (RuntimeError, AssertionError) as error:  # the latter: a build without CUDA
        _say({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        return 1
    _say(products.described())
    for line in sys.stdin:
        asked = json.loads(line)
        _say(products.work(asked["seconds"], asked["period_s"]))
    return 0


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
