"""Training methods, which choose the parameters that train: one file per method, loaded by its name.

A method is a module `joulesweep/methods/<name>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line describes it;
* `Params`: a frozen dataclass of its parameters (raise ValueError in `__post_init__` for a bad value);
* `apply(model, params)`: changes the model in place or returns another one, before it is wrapped;
* optionally `importances(rating, params, parameters)`: a number for each tensor that may train. The method then
  chooses tensors every few epochs, see `joulesweep.train.adaptive.choosing`; `Rating` gives it facts about the run;
* optionally `cached_layers(model)`: the lowest layers, all frozen, whose output is computed once per text; `Params`
  then has `max_gib`, see `joulesweep.train.caching`;
* optionally `merge(model)`: removes what `apply` added, before the trained model is saved; or, if that is impossible,
  `save(model, state, folder)`: saves the model with these weights;
* optionally `describe(model)`: facts for the record of each phase of the training, such as the frozen layers;
* optionally `incompatible_reason(spec)`: why the method does not fit the rest of a spec, in one line, or None;
* optionally `unsupported_reason(accelerator)`: what a machine lacks for it, in one line, or None;
* optionally `CAUTION`: what to know before choosing it, a sentence that `check` and `plan` say.

Every parameter has a default: the conformance test trains each method with the defaults, on a decoder if the method
does not support an encoder.

A method file does not import torch at module level: a config is validated without it. No other file needs a change.
"""

# changes no number: how a method is loaded; its file enters the digest itself
from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.errors import UserError, one_of

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec

#: Types of value that a parameter of a plain type accepts; YAML reads a float without a dot as int.
KINDS: dict[type, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,)}


class Rating(Protocol):
    """Facts about the run that a method can use when it rates tensors before an epoch.

    Attributes:
        learning_rate: at the begin of the epoch.
        weight_decay: of the run's AdamW.
    """

    @property
    def learning_rate(self) -> float:  # noqa: D102 - see above
        ...

    @property
    def weight_decay(self) -> float:  # noqa: D102 - see above
        ...

    def gradients(self, parameters: Mapping[str, torch.nn.Parameter], num_steps: int) -> dict[str, torch.Tensor]:
        """Compute gradients of the loss on the epoch's first texts: float32, summed over ranks, without dropout.

        Args:
            parameters: of which gradients are computed, by name.
            num_steps: number of optimizer steps whose texts are used.
        """

    def generator(self, name: str) -> torch.Generator:
        """Return a generator for one use, seeded by run and epoch: the same on every rank and machine."""


class Method(Protocol):
    """Interface of a method's module; everything but `Params` and `apply` is optional.

    Attributes:
        Params: a frozen dataclass of its parameters.
    """

    Params: type[Any]

    def apply(self, model: torch.nn.Module, params: Any) -> torch.nn.Module:  # noqa: ANN401 - its own `Params`
        """Change the model in place or return another one, before it is wrapped."""

    def importances(
        self,
        rating: Rating,
        params: Any,  # noqa: ANN401 - as above
        parameters: Mapping[str, torch.nn.Parameter],
    ) -> Sequence[float]:
        """Rate each tensor that may train by a number: the method then chooses tensors every few epochs."""

    def cached_layers(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the lowest layers, all frozen, whose output is computed once per text and kept."""

    def merge(self, model: torch.nn.Module) -> None:
        """Remove what `apply` added, before the trained model is saved."""

    def save(self, model: torch.nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the model with these weights, if it cannot be merged."""

    def describe(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return facts for the record of each phase of the training."""

    def incompatible_reason(self, spec: RunSpec) -> str | None:
        """Return why the method does not fit the rest of a spec, in one line, or None."""

    def unsupported_reason(self, accelerator: str) -> str | None:
        """Return what this machine lacks for the method, in one line, or None."""


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def path(name: str) -> Path:
    """Return the file of a method."""
    return Path(__file__).parent / f"{name.replace('-', '_')}.py"


def load(name: str) -> ModuleType:
    """Import one method's module.

    Raises:
        UserError: the method does not exist.
    """
    if name not in names():
        raise UserError(one_of("method", name, names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def chooses(name: str) -> bool:
    """Whether a method chooses tensors while it trains."""
    return hasattr(load(name), "importances")


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why a run's method does not fit the rest of its spec, or None."""
    method = load(spec.method)
    if hasattr(method, "incompatible_reason"):
        reason: str | None = method.incompatible_reason(spec)
        return reason
    if not chooses(spec.method):
        return None
    if STRATEGIES[spec.strategy].shards_state:
        *others, last = (name for name, row in STRATEGIES.items() if not row.shards_state)
        whole = f"{', '.join(others)} or {last}"
        return f"method {spec.method}: {spec.strategy} shards tensors that train together; use {whole}"
    if spec.engine != "eager":
        return f"method {spec.method}: each choice of tensors is another step to prepare; use engine: [eager]"
    return None


def unsupported_reason(name: str, accelerator: str) -> str | None:
    """Return what this machine lacks for a method, or None.

    Args:
        name: of the method.
        accelerator: "cpu" or "cuda".
    """
    reason: str | None = getattr(load(name), "unsupported_reason", lambda accelerator: None)(accelerator)
    return reason


def cautions(names: Iterable[str]) -> list[str]:
    """Return what to know of some methods before choosing them, a line each."""
    told = {name: getattr(load(name), "CAUTION", None) for name in names}
    return [f"method {name}: {text}" for name, text in told.items() if text]


def describe(name: str, model: torch.nn.Module) -> dict[str, object]:
    """Return the facts about a method, applied to a model, for the record."""
    facts: dict[str, object] = getattr(load(name), "describe", lambda model: {})(model)
    return facts


def parameters(name: str, values: dict[str, Any]) -> Any:  # noqa: ANN401 - each method has its own dataclass
    """Build a method's `Params` from a mapping.

    Raises:
        UserError: the method or a parameter is unknown, or a value is missing or invalid.
    """
    return built(f"method {name}", load(name).Params, values)


def built(what: str, params: type[Any], values: Mapping[str, object]) -> Any:  # noqa: ANN401 - of the given class
    """Build a dataclass of parameters from a mapping.

    Args:
        what: whose parameters they are, for errors.
        params: the dataclass.
        values: by name.

    Raises:
        UserError: a parameter is unknown, or a value is missing or invalid.
    """
    allowed = {field.name: field for field in dataclasses.fields(params)}
    for key in values:
        if key not in allowed:
            raise UserError(one_of(f"parameter of {what}", key, allowed))
    absent = (dataclasses.MISSING, dataclasses.MISSING)
    for name, item in allowed.items():
        if (item.default, item.default_factory) == absent and name not in values:
            raise UserError(f"{what} needs the parameter {name}")
    for key, kind in get_type_hints(params).items():
        if kind in KINDS and key in values and type(values[key]) not in KINDS[kind]:
            raise UserError(f"parameter {key} of {what}: must be of type {kind.__name__}, got {values[key]!r}")
    try:
        return params(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None
