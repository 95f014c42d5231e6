"""Check that a model's weights are those of its files: all loaded, in the shapes of its config, and none left over.

transformers initialises missing weights at random and only logs it. Here that is an error, unless the config names the
part that is new.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

#: Parts that a task may need to initialise: the output layer, and the attention between two former encoders.
PARTS = ("head", "cross_attention")
#: Weights that a language model never reads: an encoder's output for whole texts.
UNREAD = re.compile(r"(^|\.)pooler\.")
CROSS_ATTENTION = re.compile(r"cross_?att")
MAX_NAMES = 3  #: in an error


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Differences between a model and its files.

    Attributes:
        missing: weights that are initialised at random, by name, each with its part: one of `PARTS`, or None.
        misshapen: weights whose shapes differ: name, shape in the files, shape by the config.
        surplus: weights of layers that the model does not have.
        wrapper: prefix of the names in the files, left by a wrapper of the module, or "".
    """

    missing: Mapping[str, str | None]
    misshapen: tuple[tuple[str, list[int], list[int]], ...] = ()
    surplus: tuple[str, ...] = ()
    wrapper: str = ""

    @classmethod
    def of(cls, model: torch.nn.Module, info: Mapping[str, Any]) -> Fit:
        """Build from what transformers reports about loading (`output_loading_info`)."""
        missing = {name: _part(model, name) for name in sorted(info["missing_keys"]) if not UNREAD.search(name)}
        unexpected = sorted(info["unexpected_keys"])
        wrappers = (key.removesuffix(name) for key in unexpected for name in missing if key.endswith(f".{name}"))
        kinds = {_numberless(name) for name in model.state_dict()}
        shapes = [(str(name), list(a), list(b)) for name, a, b in sorted(info["mismatched_keys"])]
        return cls(
            missing=missing,
            misshapen=tuple(shapes),
            surplus=tuple(key for key in unexpected if _numberless(key) in kinds and key != _numberless(key)),
            wrapper=next(wrappers, ""),
        )

    @classmethod
    def both(cls, encoder: Fit, decoder: Fit) -> Fit:
        """Combine the fits of the halves of an encoder-decoder."""
        halves = {"encoder": encoder, "decoder": decoder}
        return cls(
            missing={f"{half}.{name}": part for half, fit in halves.items() for name, part in fit.missing.items()},
            misshapen=tuple((f"{half}.{name}", a, b) for half, fit in halves.items() for name, a, b in fit.misshapen),
            surplus=tuple(f"{half}.{name}" for half, fit in halves.items() for name in fit.surplus),
            wrapper=encoder.wrapper or decoder.wrapper,
        )

    @property
    def num_unfit(self) -> int:
        """Number of weights that differ between the files and the model."""
        return len(self.missing) + len(self.misshapen) + len(self.surplus)

    def refusal(self, new_weights: Collection[str]) -> str | None:
        """Return the reason why the model is not that of the files, apart from parts that may be new, or None."""
        if self.misshapen:
            name, in_files, by_config = self.misshapen[0]
            more = f", and {len(self.misshapen) - 1} more" if len(self.misshapen) > 1 else ""
            return f"{name} has shape {in_files} in the files and {by_config} by config.json{more}"
        lacking = {name: part for name, part in self.missing.items() if part not in new_weights}
        if lacking:
            remedy = ""
            if self.wrapper:
                remedy = f"; the files have names that begin with {self.wrapper!r}: save the model without its wrapper"
            elif all(lacking.values()):
                parts = ", ".join(part for part in PARTS if part in {*self.missing.values()})
                remedy = f"; to initialise them at random, add new_weights: [{parts}] beside the model's source"
            return f"not in the files: {some(lacking)}{remedy}"
        if self.surplus:
            return f"the files have layers that config.json leaves out: {some(self.surplus)}"
        return None


def some(names: Collection[str]) -> str:
    """Return the first names, and how many there are."""
    shown = ", ".join([*names][:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, … ({len(names)} weights)"


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _part(model: torch.nn.Module, name: str) -> str | None:
    """Return which of `PARTS` a weight belongs to, or None."""
    if CROSS_ATTENTION.search(name):
        return "cross_attention"
    base = str(getattr(model, "base_model_prefix", ""))
    if base and hasattr(model, base):
        return None if name.startswith(f"{base}.") else "head"
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    owners = (owner for owner, module in model.named_modules() if module is output)
    return "head" if output is not None and name.startswith(f"{next(owners, '')}.") else None


def load_imagined(folder: Path, known: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """Load a model from the names and shapes of a folder's weights alone, which takes neither memory nor time.

    Args:
        folder: with *.safetensors, whose headers are read.
        known: the model's class.
        config: the model's config.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        try:
            with mode, _in_one_thread():
                zero = torch.zeros(())
                model, info = known.from_pretrained(
                    None,
                    config=config,
                    state_dict={name: zero.expand(shape) for name, shape in _shapes(folder).items()},
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except Exception:  # some families read the random numbers that they draw for missing weights
            if isinstance(mode, nullcontext):
                raise
        else:
            break
    return model, Fit.of(model, info)


def _shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    whole = folder / "model.safetensors"  # transformers prefers it to shards
    shapes: dict[str, list[int]] = {}
    for path in [whole] if whole.is_file() else sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as opened:
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
    return shapes


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Let transformers load in this thread: other threads do not inherit its modes."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
