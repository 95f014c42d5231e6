"""Labels and ids of runs and cells."""

# changes no number: the spec itself is part of what a run is compared by
from __future__ import annotations

import functools
import re
from dataclasses import fields
from typing import Any

from joulesweep import methods
from joulesweep.axes.strategy import spread
from joulesweep.core.spec import OMISSION, RunSpec, short_hash, strip


def label(spec: RunSpec) -> str:
    """The label of a cell in progress lines and charts: `ddp2 bf16-mixed bs32`, without the repeat."""
    size = f"bs{spec.batch_size}" + ("/device" if spec.batch_size_scope == "per_device" else "")
    # For every method, so that parameters that are not a mapping are refused here.
    method = method_label(spec.method, spec.method_params)
    shown = [] if spec.method == OMISSION["method"] else [method]
    return " ".join([*shown, spread(spec.strategy, spec.devices, spec.nodes), spec.precision, size])


def method_label(method: str, params: dict[str, Any]) -> str:
    """A method with its parameters: `greentrainer(rho=0.7)`."""
    words = ",".join(parameter_words(method, params))
    return method + (f"({words})" if words else "")


def parameter_words(method: str, params: dict[str, Any]) -> list[str]:
    """A method's parameters as `name=value`: always the first one, others if they differ from the default."""
    defaults = _defaults(method)
    first = next(iter(defaults), None)
    values = dict(params.items())
    kept = (name for name in defaults if name in values and (name == first or values[name] != defaults[name]))
    return [f"{name}={values[name]}" for name in kept]


@functools.cache
def _defaults(method: str) -> dict[str, Any]:
    """The parameters of a method with their defaults; looking for its file takes longer than reading a record."""
    return {field.name: field.default for field in fields(methods.load(method).Params)}


def cell_id(spec: RunSpec) -> str:
    """Id of the run's cell: the spec without its repeat."""
    stripped = strip(spec)
    del stripped["repeat"]
    return f"{_slug(spec)}-{short_hash(stripped)}"


def run_id(spec: RunSpec) -> str:
    """Id of the run: a readable slug and a short hash of the stripped spec."""
    return f"{_slug(spec)}-r{spec.repeat}-{short_hash(strip(spec))}"


def _slug(spec: RunSpec) -> str:
    words = f"{spec.model}-{spec.dataset}-{label(spec)}".lower().replace("/device", "d").replace("×", "x")
    return re.sub(r"[^a-z0-9._-]+", "-", words)
