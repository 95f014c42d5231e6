"""What was put off is there when it is called for, and is the real thing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny_run
import torch

from joulesweep.core import late_imports
from joulesweep.nets.build import build


@pytest.fixture
def heavy(tmp_path, monkeypatch):
    """A module that says that it was imported, and one that wants two things of it."""
    (tmp_path / "heavy_thing.py").write_text(
        "import sys\nsys.heavy_imports += 1\nLIMIT = 7\ndef twice(x): return 2 * x\n"
    )
    (tmp_path / "wants_a_function.py").write_text("from heavy_thing import twice\n")
    (tmp_path / "wants_a_number.py").write_text("from heavy_thing import LIMIT, twice\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "heavy_imports", 0, raising=False)
    yield
    for name in ("heavy_thing", "wants_a_function", "wants_a_number"):
        sys.modules.pop(name, None)


def test_a_function_that_is_put_off_imports_its_module_when_it_is_called(heavy):
    with late_imports.defer_import("heavy_thing", "twice"):
        import wants_a_function
    assert sys.heavy_imports == 0
    assert "heavy_thing" not in sys.modules
    assert wants_a_function.twice(4) == 8
    assert wants_a_function.twice(x=5) == 10
    assert sys.heavy_imports == 1


def test_another_name_of_the_module_imports_it_at_once(heavy):
    with late_imports.defer_import("heavy_thing", "twice"):
        import wants_a_number
    assert (wants_a_number.LIMIT, wants_a_number.twice(4), sys.heavy_imports) == (7, 8, 1)
    assert sys.modules["heavy_thing"].LIMIT == 7


def test_a_module_that_is_there_stays_itself(heavy):
    import heavy_thing

    with late_imports.defer_import("heavy_thing", "twice"):
        import wants_a_function
    assert wants_a_function.twice is heavy_thing.twice
    assert sys.modules["heavy_thing"] is heavy_thing


def test_a_failed_import_leaves_no_stand_in(heavy):
    with pytest.raises(ZeroDivisionError), late_imports.defer_import("heavy_thing", "twice"):
        raise ZeroDivisionError
    assert "heavy_thing" not in sys.modules


FRESH = """
import importlib.util, sys
from joulesweep.core import late_imports
library = late_imports.transformers()
import transformers, transformers.models
assert library is transformers and library.models is transformers.models
assert transformers.models is late_imports.transformers().models
assert importlib.util.find_spec("transformers.models.bert.modeling_bert")
from transformers.models import bert, DistilBertConfig
assert bert.BertConfig is transformers.BertConfig and DistilBertConfig is transformers.DistilBertConfig
assert not hasattr(transformers.models, "NoSuchModel")
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert "scipy.optimize" not in sys.modules
assert [list(map(int, found)) for found in linear_sum_assignment([[4, 1], [2, 3]])] == [[0, 1], [1, 0]]
import scipy.optimize
assert scipy.optimize.linear_sum_assignment is not linear_sum_assignment
with late_imports.defer_import("sklearn.metrics", "auc"):
    import zeus.monitor
import zeus.monitor.power
assert "sklearn" not in sys.modules
assert zeus.monitor.power.auc([0, 1, 2], [1, 1, 3]) == 3
assert "sklearn.metrics" in sys.modules
"""


@pytest.mark.slow
def test_the_libraries_are_whole_after_all():
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_a_model_is_the_one_that_transformers_loads(tmp_path, kind):
    from transformers import AutoModelForMaskedLM

    tiny_run.network(kind, seed=3).save_pretrained(tmp_path)
    ours, theirs = build(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    tied = [len({p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False)}) for model in (ours, theirs)]
    assert tied[0] == tied[1] < len(list(ours.named_parameters(remove_duplicate=False)))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits, rtol=0, atol=0)
