"""How far a precision may be from fp32 when the same is trained in both: a row needs no entry of its own."""

from __future__ import annotations

from joulesweep.precision import PRECISIONS

#: By the dtype that matrix products compute in: the loss of a step, relative; each tensor's gradient, relative to its
#: largest element. The rounding of each format over two steps.
BY_DTYPE = {"float32": (1e-6, 1e-5), "float16": (5e-4, 0.05), "bfloat16": (2e-3, 0.1)}
#: Of what no dtype tells: other dtypes, and modules that a converter puts in. A default for a format of eight bits.
UNKNOWN = (2e-2, 0.5)
#: Of a precision for which the rule is too strict or too loose: {name: (loss, gradients)}.
OWN: dict[str, tuple[float, float]] = {}


def of(name: str) -> tuple[float, float]:
    """Tolerances of the loss and of the gradients."""
    row = PRECISIONS[name]
    if name in OWN or row.convert is not None:
        return OWN.get(name, UNKNOWN)
    loss, gradients = BY_DTYPE.get(row.autocast or row.weights, UNKNOWN)
    return loss, gradients * (2 if row.weights != "float32" else 1)  # then the gradients themselves are rounded
