"""Each process imports what it needs: a GPU host may have torch and nothing else, and imports cost CPU-seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiers
import tiny_run

from joulesweep.core.spec import full

CODE_OF = """
import sys
{code}
print(*sorted(name for name in {names} if name in sys.modules), file=sys.stderr)
"""


def imported(code: str, *names: str, arguments: tuple[str, ...] = ()) -> list[str]:
    """Which of the modules a fresh interpreter has after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", CODE_OF.format(code=code, names=names), *arguments],
        cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split() if done.stderr.strip() else []


def test_the_check_sees_an_import():
    """Else the tests below prove nothing."""
    assert imported("import json, polars", "polars", "torch", "json") == ["json", "polars"]


@pytest.mark.slow
def test_a_whole_training_imports_torch_transformers_and_zeus_and_nothing_of_the_other_sides(tmp_path):
    assets = tiny_run.assets(tmp_path)
    paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "folder": tmp_path}
    spec = full(tiny_run.spec(keep_model="last"))
    job = {"spec": spec, "boards": [], **{name: str(path) for name, path in paths.items()}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    found = imported(
        "from joulesweep.train import loop; assert loop.main(sys.argv) == 0",
        *("torch", "transformers", "zeus", "datasets", "polars", "altair", "snakemake"),
        *("scipy", "sklearn", "pandas", "pyarrow", "accelerate", "peft"),  # seconds of CPU that no training needs
        *(
            "joulesweep.plan.config",
            "joulesweep.report.theme",
            "joulesweep.analyse.collect",
            "joulesweep.report.page",
            "joulesweep.plan.sweep",
        ),
        arguments=(str(tmp_path / "job.json"),),
    )
    assert [name for name in found if name != "zeus"] == ["torch", "transformers"]  # Zeus only where there is a meter
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_plain_import_of_the_libraries_brings_what_a_training_does_without():
    """Else the names above say nothing; where this fails, `joulesweep.core.late_imports` has become superfluous."""
    code = "from transformers.modeling_utils import PreTrainedModel; from zeus.monitor import ZeusMonitor"
    assert imported(code, "scipy.optimize", "sklearn") == ["scipy.optimize", "sklearn"]


@pytest.mark.parametrize(
    "module",
    tiers.first(
        2, ["analyse.collect", "report.page", "report.charts", "report.charts.quality", "report.sections.answer"]
    ),
)
def test_reporting_imports_no_torch(module):
    names = ("torch", "transformers", "zeus", "datasets", "snakemake", f"joulesweep.{module}")
    assert imported(f"import joulesweep.{module}", *names) == [f"joulesweep.{module}"]


def test_parsing_a_workflow_imports_nothing_heavy(tmp_path):
    code = (
        "from joulesweep.report import charts; from joulesweep.analyse import columns\n"
        "from joulesweep.plan.sweep import load; import os, pathlib, types\n"
        "given = types.SimpleNamespace(configfiles=[pathlib.Path('config/config.yaml').absolute()], config_args=None)\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "shown = types.SimpleNamespace(quiet=None, dryrun=False)\n"
        "flags = dict.fromkeys(('is_main_process', 'local_exec', 'dryrun'), True)\n"
        "flags |= dict.fromkeys(('basedir', 'current_basedir'), os.getcwd())\n"
        "told = types.SimpleNamespace(output_settings=shown, config_settings=given, **flags)\n"
        "sweep = load(told)\n"
        "for run in sweep.runs: sweep.job(run), sweep.tokens(run), sweep.threads(run, 2)\n"
        "sweep.config_json(), sweep.finished(), [charts.caption(name) for name in charts.names()]"
    )
    heavy = ("torch", "transformers", "datasets", "polars", "altair", "zeus", "numpy", "pandas", "scipy")
    assert imported(code, *heavy, "joulesweep.plan.grid") == ["joulesweep.plan.grid"]


def test_checking_a_config_imports_nothing_heavy():
    code = "from joulesweep.cli import main as cli; assert cli.main(['check']) == 0"
    heavy = ("torch", "transformers", "datasets", "polars", "altair", "zeus", "numpy", "pandas", "scipy", "snakemake")
    assert imported(code, *heavy, "joulesweep.cli.main") == ["joulesweep.cli.main"]


def test_the_script_of_a_run_imports_nothing_heavy_itself():
    heavy = ("torch", "transformers", "datasets", "polars", "altair", "zeus", "pydantic")
    assert imported("import scripts.train", *heavy, "scripts.train") == ["scripts.train"]
