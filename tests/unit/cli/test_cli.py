"""The command says what a sweep is, repeats a run by hand, words mistakes in one line, and helps."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import tiny_run
import yaml

from joulesweep import cli
from joulesweep.cli import check, main, run
from joulesweep.core import files
from joulesweep.launch import lease
from joulesweep.launch.node import RunFailed
from joulesweep.plan import config
from joulesweep.plan.grid import dataset_key, dataset_source, expand, model_key, model_source
from joulesweep.runs import record


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lease, "folder", lambda: tmp_path_factory.getbasetemp())  # the machine is this test's alone


@pytest.fixture
def configfile(tmp_path):
    """A config of two runs, whose model and tokens are not there yet."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(tiny_run.config(grid__repeats=2, train__max_length=24)), encoding="utf-8")
    return path


@pytest.fixture
def runs(configfile):
    return list(expand(config.load(configfile)).runs)


@pytest.fixture
def prepared(configfile, tmp_path):
    """The model and the tokens where the rules put them."""
    found = config.load(configfile)
    model = model_key("bert", model_source(found.models["bert"]))
    dataset = dataset_key("texts", dataset_source(found.datasets["texts"]))
    tiny_run.model(tmp_path / "resources" / "models" / model)
    tiny_run.token_file(tmp_path / "resources" / "tokens" / dataset / f"{model}.safetensors")


def command(*arguments):
    return main.main([str(argument) for argument in arguments])


def test_check_counts_runs_and_excluded_cells(configfile, capsys):
    raw = tiny_run.config(
        grid__strategy=["single", "ddp"],
        grid__batch_size=[8, 16],
        exclude=[{"when": {"strategy": "ddp"}, "reason": "no"}],
    )
    configfile.write_text(yaml.safe_dump(raw))
    assert command("check", "--configfile", configfile) == 0
    assert capsys.readouterr().out == f"{configfile}: 2 cells, 6 runs, 2 cells excluded\n"


def test_check_takes_the_default_config_of_the_working_directory(configfile, tmp_path, capsys):
    (tmp_path / "config").mkdir()
    configfile.rename(tmp_path / "config" / "config.yaml")
    assert command("check") == 0
    assert capsys.readouterr().out == "config/config.yaml: 1 cell, 2 runs, 0 cells excluded\n"


def test_check_says_what_a_fetched_model_cannot_learn(configfile, prepared, capsys):
    configfile.write_text(yaml.safe_dump(tiny_run.config(grid__repeats=2, train__max_length=24, grid__task=["clm"])))
    assert command("check", "--configfile", configfile) == 0
    found = config.load(configfile)
    key = model_key("bert", model_source(found.models["bert"]))
    tasks = {"mlm": {"reason": None}, "clm": {"reason": "task clm: it is an encoder"}}
    files.write_json(configfile.parent / "resources" / "models" / f"{key}.json", {"tasks": tasks})
    assert command("check", "--configfile", configfile) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: my\.yaml:\d+: grid\.task\[0\]: model bert: task clm: it is an encoder\n", err)


def test_runs_lists_one_id_a_line(configfile, runs, capsys):
    assert command("runs", "--configfile", configfile) == 0
    assert capsys.readouterr().out.splitlines() == runs
    assert len(runs) == 2


def test_schema_writes_the_schema(tmp_path):
    assert command("schema", tmp_path / "new" / "schema.json") == 0
    assert json.loads((tmp_path / "new" / "schema.json").read_text()) == config.json_schema()


@pytest.mark.parametrize("name", ["check", "runs"])
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(configfile, capsys, name):
    configfile.write_text(yaml.safe_dump(tiny_run.config(grid__precision=["fp16"])))
    assert command(name, "--configfile", configfile) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: my\.yaml:16: grid\.precision\[0\]: unknown .*'fp16-mixed'\?\)\n", err)


def test_several_mistakes_are_a_line_each(configfile, capsys):
    configfile.write_text(yaml.safe_dump(tiny_run.config(grid__precision=["fp16"], grid__batch_size=8)))
    assert command("check", "--configfile", configfile) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: my.yaml:") for line in lines)


def test_a_missing_config_is_one_line(capsys):
    assert command("check", "--configfile", "nowhere.yaml") == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: No such file or directory\n"


def test_an_unknown_run_is_told_with_the_nearest_id(configfile, runs, capsys):
    assert command("run", runs[0][:-1] + "x", "--configfile", configfile) == 2
    told = f"error: unknown run '{runs[0][:-1]}x'; did you mean '{runs[0]}'? joulesweep runs lists all 2\n"
    assert capsys.readouterr().err == told


def test_a_run_that_was_not_prepared_says_how_to(configfile, runs, capsys):
    assert command("run", runs[0], "--configfile", configfile) == 2
    err = capsys.readouterr().err
    target = err.split()[-1]
    assert target.startswith("resources/tokens/texts-")
    assert err == f"error: {target}: not prepared yet; first: snakemake --cores 2 --configfile {configfile} {target}\n"


@pytest.mark.slow
def test_a_run_is_repeated_by_hand_beside_the_sweeps_own(configfile, runs, prepared, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # leave pytest's own handlers
    own = tmp_path / "results" / "tiny" / "runs" / runs[0] / "record.json"
    files.write_text(own, "untouched")
    assert command("run", runs[0], "--configfile", configfile) == 0
    by_hand = tmp_path / "results" / "tiny" / "by-hand" / runs[0] / "record.json"
    assert record.read(by_hand).status == "ok"
    line, path = capfd.readouterr().out.splitlines()
    assert path == str(by_hand.relative_to(tmp_path))
    assert re.fullmatch(rf"\[by hand\] {re.escape(runs[0])} · [\d.]+ s · (\S+ J · )?loss 4\.\d\d", line)
    assert own.read_text() == "untouched"


def test_a_run_that_fails_says_so_and_leaves_no_earlier_record(
    configfile, runs, prepared, tmp_path, monkeypatch, capsys
):
    earlier = tmp_path / "results" / "tiny" / "by-hand" / runs[0] / "record.json"
    files.write_text(earlier, "of an earlier run")

    def fails(spec, code, **given):
        assert (given["exclusive"], given["with_snakemake"]) == ("node", False)  # as the CPU's runs of a sweep
        assert given["references"] == []
        raise RunFailed("it broke")

    monkeypatch.setattr(run, "launch", fails)
    assert command("run", runs[0], "--configfile", configfile) == 1
    assert capsys.readouterr().err == f"FAILED {runs[0]}: it broke\n"
    assert not earlier.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name a command"),
        (["chek"], "unknown command 'chek'; did you mean 'check'?"),
        (["nonsense"], "unknown command 'nonsense'; joulesweep --help lists all"),
        (["main"], "unknown command 'main'; .*"),
        (["--verison"], "unknown option '--verison'; did you mean '--version'?"),
        (["check", "--confgfile=a.yaml"], "unknown option '--confgfile'; did you mean '--configfile'?"),
        (["check", "--colour"], "unknown option '--colour'; .*"),
        (["check", "a.yaml", "b.yaml"], "unknown argument 'b.yaml'; joulesweep check --help lists all"),
        (["run"], "joulesweep run: the following arguments are required: run_id; see joulesweep run --help"),
        (["certify", "--budget-s", "x"], "joulesweep certify: argument --budget-s: invalid float value: 'x'; see .*"),
    ],
)
def test_a_misused_command_is_one_line_and_exit_code_2(arguments, line, capsys):
    assert command(*arguments) == 2
    assert re.fullmatch(f"error: {line.replace('?', '[?]')}\n", capsys.readouterr().err)


def test_without_a_command_all_are_listed(capsys):
    command()
    listed = dict(re.findall(r"^  ([a-z]+)  +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert listed == {name: cli.load(name).HELP for name in cli.names()}
    assert {"check", "doctor", "rerun"} <= listed.keys()


def test_the_version_is_the_packages(capsys):
    assert command("--version") == 0
    assert re.fullmatch(r"joulesweep \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", cli.names())
def test_help_has_examples_that_parse_and_exit_codes(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(name, "--help")
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "exit codes:\n  0  done" in told
    for line in cli.load(name).EXAMPLES:
        assert f"  {line}\n" in told
        program, called, *words = shlex.split(line, comments=True)
        assert (program, called) == ("joulesweep", name)
        assert main.parser(name).parse_known_args(words)[1] == []


def test_help_imports_no_command():
    code = "import sys; from joulesweep.cli import main; main.main(['--help']); "
    code += "assert not {'pydantic', 'yaml', 'joulesweep.plan', 'joulesweep.measure'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_reader_that_goes_away_gets_no_traceback(configfile):
    line = [sys.executable, "-m", "joulesweep.cli.main", "runs", "--configfile", str(configfile)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b""


def test_an_interrupted_command_is_one_line_and_exit_code_130(configfile, capsys, monkeypatch):
    monkeypatch.setattr(check, "work", lambda args: os.kill(os.getpid(), signal.SIGINT))
    assert command("check", configfile) == 130
    assert capsys.readouterr() == ("", "interrupted; the same command does it from the start\n")


def test_a_run_that_is_interrupted_says_that_it_left_no_record(configfile, runs, prepared, capsys, monkeypatch):
    monkeypatch.setattr(run, "launch", lambda *given, **named: os.kill(os.getpid(), signal.SIGINT))
    assert command("run", runs[0], "--configfile", configfile) == 130
    assert capsys.readouterr().err == f"stopped: {runs[0]} left no record; the same command begins it again\n"
