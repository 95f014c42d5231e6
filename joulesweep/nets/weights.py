"""Whether a model's weights are those of its files: all loaded, in the shapes of its config, and none left over.

transformers begins at random what it does not find, and says so in a log. Here that is a refusal, unless the config
names the part that has to be new.
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

#: What a task may need new: the output layer, and the attention between two halves that both were encoders.
PARTS = ("head", "cross_attention")
#: What nothing of a language model reads: an encoder's output for whole texts.
UNREAD = re.compile(r"(^|\.)pooler\.")
CROSS_ATTENTION = re.compile(r"cross_?att")
MAX_NAMES = 3  #: in one line


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model's files fit it.

    Attributes:
        missing: weights that begin at random, by name, each with what it belongs to: one of `PARTS`, or None.
        misshapen: weights of another shape in the files than by the config: name, the one and the other.
        surplus: weights of layers that the model does not have.
        wrapper: what the files put before the names, as wrappers of a module do, or "".
    """

    missing: Mapping[str, str | None]
    misshapen: tuple[tuple[str, list[int], list[int]], ...] = ()
    surplus: tuple[str, ...] = ()
    wrapper: str = ""

    @classmethod
    def of(cls, model: torch.nn.Module, info: Mapping[str, Any]) -> Fit:
        """Read what transformers says of a loading (`output_loading_info`)."""
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
        """Of the halves of an encoder-decoder."""
        halves = {"encoder": encoder, "decoder": decoder}
        return cls(
            missing={f"{half}.{name}": part for half, fit in halves.items() for name, part in fit.missing.items()},
            misshapen=tuple((f"{half}.{name}", a, b) for half, fit in halves.items() for name, a, b in fit.misshapen),
            surplus=tuple(f"{half}.{name}" for half, fit in halves.items() for name in fit.surplus),
            wrapper=encoder.wrapper or decoder.wrapper,
        )

    @property
    def num_unfit(self) -> int:
        """How many weights are not those of the files, or not those of the model."""
        return len(self.missing) + len(self.misshapen) + len(self.surplus)

    def refusal(self, new_weights: Collection[str]) -> str | None:
        """Say why this is not the model of the files, or None if it is but for the parts that may be new."""
        if self.misshapen:
            name, found, wanted = self.misshapen[0]
            more = f", and {len(self.misshapen) - 1} more" if len(self.misshapen) > 1 else ""
            return f"{name} has shape {found} in the files and {wanted} by config.json{more}"
        lacking = {name: part for name, part in self.missing.items() if part not in new_weights}
        if lacking:
            remedy = ""
            if self.wrapper:
                remedy = f"; the files have names that begin with {self.wrapper!r}: save the model without its wrapper"
            elif all(lacking.values()):
                parts = ", ".join(part for part in PARTS if part in {*self.missing.values()})
                remedy = f"; if they shall begin at random, say new_weights: [{parts}] beside the model's source"
            return f"not in the files: {some(lacking)}{remedy}"
        if self.surplus:
            return f"the files have layers that config.json leaves out: {some(self.surplus)}"
        return None


def some(names: Collection[str]) -> str:
    """The first names, and how many there are."""
    shown = ", ".join([*names][:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, … ({len(names)} weights)"


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _part(model: torch.nn.Module, name: str) -> str | None:
    """Which of `PARTS` a weight belongs to, or None."""
    if CROSS_ATTENTION.search(name):
        return "cross_attention"
    base = str(getattr(model, "base_model_prefix", ""))
    if base and hasattr(model, base):
        return None if name.startswith(f"{base}.") else "head"
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    owners = (owner for owner, module in model.named_modules() if module is output)
    return "head" if output is not None and name.startswith(f"{next(owners, '')}.") else None


def load_imagined(folder: Path, known: Any, config: Any) -> tuple[Any, Fit]:  # noqa: ANN401 - of any family
    """Load a model from the names and shapes of a folder's weights alone: it takes neither memory nor time.

    Args:
        folder: with *.safetensors, of which the headers are read.
        known: the model's class.
        config: the model's.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        try:
            with mode, _in_one_thread():
                one = torch.zeros(())
                model, info = known.from_pretrained(
                    None,
                    config=config,
                    state_dict={name: one.expand(shape) for name, shape in _shapes(folder).items()},
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except Exception:  # some families look at the numbers that they draw for what is missing
            if isinstance(mode, nullcontext):
                raise
        else:
            break
    return model, Fit.of(model, info)


def _shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    whole = folder / "model.safetensors"  # what transformers takes where there are shards too
    found: dict[str, list[int]] = {}
    for path in [whole] if whole.is_file() else sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as opened:
            found |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Transformers loads in threads, which know nothing of a mode of this one."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
