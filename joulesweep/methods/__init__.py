"""Which parameters train, and how: one file per method, found by its name.

A method is a module `joulesweep/methods/<name>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line describes it;
* `Params`: a frozen dataclass of its parameters (raise ValueError in `__post_init__` for a bad value);
* `apply(model, params)`: changes the model in place or returns another one, before it is wrapped;
* perhaps `importances(rating, params, parameters)`: a number for each tensor that may train. The method then chooses
  tensors every few epochs, see `joulesweep.train.adaptive.choosing`; `Rating` is what it may ask about the run;
* perhaps `merge(model)`: takes out again what `apply` added, before the trained model is saved; or, where that cannot
  be, `save(model, state, folder)`: saves it with these weights;
* perhaps `described(model)`: what a record says of it in each phase of the training, such as its frozen layers;
* perhaps `impossible(spec)`: why the method does not fit the rest of a spec, in one line, or None.

Every parameter has a default: the conformance test trains each method with them, on a decoder if no encoder will do.

No method file imports torch at module level: a config is validated without it. Nothing else needs to be edited.
"""

# changes no number: how a method is found; its own file counts
from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.errors import UserError, one_of

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec

#: What a parameter of a plain type may be given as; YAML writes a whole float without its dot.
KINDS: dict[type, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,)}


class Rating(Protocol):
    """What a method may ask about the run whose tensors it rates, before an epoch.

    Attributes:
        learning_rate: with which the epoch begins.
        weight_decay: of the run's AdamW.
    """

    @property
    def learning_rate(self) -> float:  # noqa: D102 - see above
        ...

    @property
    def weight_decay(self) -> float:  # noqa: D102 - see above
        ...

    def gradients(self, parameters: Mapping[str, torch.nn.Parameter], num_steps: int) -> dict[str, torch.Tensor]:
        """Gradients of the loss on the epoch's first texts, float32, summed over ranks, without dropout.

        Args:
            parameters: of which, by name.
            num_steps: how many optimizer steps' worth of texts.
        """

    def generator(self, name: str) -> torch.Generator:
        """Random numbers for one use, from the run's seed and the epoch: the same on every rank and machine."""


class Method(Protocol):
    """What the module of a method has; all but `Params` and `apply` may be missing.

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
        """A number for each tensor that may train: the method then chooses tensors every few epochs."""

    def merge(self, model: torch.nn.Module) -> None:
        """Take out again what `apply` added, before the trained model is saved."""

    def save(self, model: torch.nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the model with these weights, where nothing can be merged."""

    def described(self, model: torch.nn.Module) -> dict[str, Any]:
        """What a record says of it in each phase of the training."""

    def impossible(self, spec: RunSpec) -> str | None:
        """Why the method does not fit the rest of a spec, in one line, or None."""


def names() -> list[str]:
    """Every method there is, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def path(name: str) -> Path:
    """The file of a method."""
    return Path(__file__).parent / f"{name.replace('-', '_')}.py"


def load(name: str) -> ModuleType:
    """Import one method's module.

    Raises:
        UserError: no such method.
    """
    if name not in names():
        raise UserError(one_of("method", name, names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def chooses(name: str) -> bool:
    """Whether a method chooses tensors while it trains."""
    return hasattr(load(name), "importances")


def impossible(spec: RunSpec) -> str | None:
    """Say why a run's method cannot be combined with the rest of its spec, or None if it can."""
    method = load(spec.method)
    if hasattr(method, "impossible"):
        reason: str | None = method.impossible(spec)
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


def described(name: str, model: torch.nn.Module) -> dict[str, object]:
    """What a record says of a method, applied to a model."""
    found: dict[str, object] = getattr(load(name), "described", lambda model: {})(model)
    return found


def parameters(name: str, given: dict[str, Any]) -> Any:  # noqa: ANN401 - each method has its own dataclass
    """Build a method's `Params` from a mapping.

    Raises:
        UserError: unknown method, unknown parameter, a missing or a refused value.
    """
    params = load(name).Params
    allowed = {field.name: field for field in dataclasses.fields(params)}
    for key in given:
        if key not in allowed:
            raise UserError(one_of(f"parameter of method {name}", key, allowed))
    for key, kind in get_type_hints(params).items():
        if kind in KINDS and key in given and type(given[key]) not in KINDS[kind]:
            raise UserError(f"parameter {key} of method {name}: must be of type {kind.__name__}, got {given[key]!r}")
    try:
        return params(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"method {name}: {error}") from None
