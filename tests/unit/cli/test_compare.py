"""`joulesweep compare` fits a terminal, and says as JSON what it says on the screen."""

from __future__ import annotations

import json

import pytest
import synthetic

from joulesweep.analyse import collect, tables
from joulesweep.cli import main

AXES = {
    "strategy": ["single"],
    "method": ["full", {"greentrainer": {"rho": 0.5}}],
    "precision": ["fp32", "bf16-mixed"],
    "batch_size": [32, 64],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sweeps with some cells in common."""
    made = []
    for name, axes in (("a", AXES), ("b", {**AXES, "batch_size": [32]})):
        folder = tmp_path_factory.mktemp(name)
        raw = synthetic.raw_config(axes, hardware={"accelerator": "cuda"}, energy={})
        tables.write(collect.aggregate(*synthetic.write_sweep(folder, raw, synthetic.on_gpus)), folder / "tables")
        made.append(folder)
    return made


def printed(capsys, *words):
    assert main.main(["compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_every_line_fits_a_terminal(folders, capsys):
    lines = printed(capsys, *folders).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("single fp32 bs32") and "1.00" in line for line in lines)
    assert "Not compared: 4" in lines
    assert "A: single fp32 bs64: not in B" in lines


def test_a_folder_of_tables_is_taken_too(folders, capsys):
    a, b = folders
    text = printed(capsys, a / "tables", b / "tables")
    assert "single fp32 bs32" in text


def test_json_has_the_same_cells_and_their_reasons(folders, capsys):
    found = json.loads(printed(capsys, *folders, "--json"))
    assert found["cells"][0]["name"] == "single fp32 bs32"
    assert {row["loss"]["ratio"] for row in found["cells"]} == {1}
    assert len(found["unmatched"]) == 4 and {row["why"] for row in found["unmatched"]} == {"not in B"}
    assert found["a"]["machine"]["GPU"] == "NVIDIA H200"


def test_a_third_sweep_is_compared_with_the_first(folders, capsys):
    a, b = folders
    text = printed(capsys, a, b, a)
    assert max(map(len, text.splitlines())) <= 100
    assert "\nB over A\n" in text and "\nC over A\n" in text and "A: single fp32 bs64: not in B" in text
    assert "Ratios are C / A" in text and "fewest joules" in " ".join(text.split())
    found = json.loads(printed(capsys, a, b, a, "--json"))
    assert [set(one) & {"a", "b", "c"} for one in found["comparisons"]] == [{"a", "b"}, {"a", "c"}]


def test_more_sweeps_than_letters_are_refused(folders, capsys):
    assert main.main(["compare", *[str(folders[0])] * 27]) == 2
    assert "at most 26" in capsys.readouterr().err


def test_a_sweep_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line
