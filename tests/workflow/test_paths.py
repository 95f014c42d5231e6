"""Paths and configs that mean something to Snakemake or the shell, through real Snakemake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from checkout import Checkout

ODD = 'data/{x} <b> $(touch Y)\'s "t";`touch Z`.jsonl'


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout in a folder with an odd name, on a model and texts with odd names."""
    made = Checkout(tmp_path_factory.mktemp("paths") / "a <c> $(touch X)'q\" d")
    (made.folder / "data" / "texts.jsonl").rename(made.folder / ODD)
    (made.folder / "data" / "model").rename(made.folder / "data" / "m{o}<d>")
    made.config["datasets"]["words"]["source"]["local"] = ODD
    made.config["models"]["tiny"]["source"]["local"] = "data/m{o}<d>"
    made.write_config()
    yield made


def test_odd_paths_are_paths_and_a_changed_file_is_read_again(checkout: Checkout) -> None:
    checkout.run("--quiet", "all", "--until", "tokenise")
    assert len(list((checkout.folder / "resources" / "tokens").glob("words-*/tiny-*.safetensors"))) == 1
    assert not [path for path in checkout.folder.rglob("*") if path.name in ("X", "Y", "Z")]
    assert "fetch_dataset" not in checkout.planned()
    file = checkout.folder / ODD
    file.write_text(file.read_text(encoding="utf-8") + '{"text": "one more"}\n', encoding="utf-8")
    assert checkout.planned()["fetch_dataset"] == 1


def test_a_file_that_is_no_sweep_is_refused_and_so_are_two(checkout: Checkout) -> None:
    mine = checkout.folder / "mine.yaml"
    mine.write_text("sweep: mine\ntrain: {epochs: 2}\n", encoding="utf-8")
    assert told(checkout, "--configfile", "mine.yaml") == "mine.yaml: grid: missing"  # the last of three lines
    line = told(checkout, "--configfile", "mine.yaml", "config/config.yaml")
    assert line.startswith(
        "--configfile: one file is one complete sweep, and these are 2: mine.yaml, config/config.yaml"
    )


def test_a_key_given_twice_is_refused_and_the_command_line_lies_over_the_file(checkout: Checkout) -> None:
    text = yaml.safe_dump(checkout.config)
    (checkout.folder / "mine.yaml").write_text(f"{text}sweep: other\n", encoding="utf-8")
    assert "sweep: the key is given twice, first in line " in told(checkout, "--configfile", "mine.yaml")
    output = checkout.run("-n", "--config", "sweep=other", "grid={repeats: 5, lr: [1e-4]}")
    assert "results/other/report.html" in output
    assert "other" in output and output.count("rule train:") + output.count("Run tiny-words") == 5
    assert told(checkout, "--config", "grid={repeats: none}").startswith("--config grid: grid.repeats: input should be")


def test_no_failure_is_silent(checkout: Checkout) -> None:
    """Not even that of a target that no rule makes, which no code of ours sees."""
    done = checkout.snakemake("nowhere.txt", "--quiet", "all")  # behind --quiet it would be one more kind of silence
    assert done.returncode != 0
    assert "No rule to produce nowhere.txt" in done.stderr


def told(checkout: Checkout, *arguments: str) -> str:
    """The last line that a failing Snakemake says under --quiet all."""
    done = checkout.snakemake("--quiet", "all", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_braces_in_the_checkouts_path_are_told(tmp_path: Path) -> None:
    made = Checkout(tmp_path / "a{b}")
    assert told(made).endswith("a{b}: braces mean something to Snakemake; move the checkout elsewhere")
