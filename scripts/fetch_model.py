"""Fetch a model's config, weights and tokenizer into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.core import files
from joulesweep.plan.config import ModelConfig
from joulesweep.prepare import sources
from joulesweep.prepare.model import fetch_model
from scripts import note_versions, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="the model's section of the config, as JSON")
    parser.add_argument("--folder", type=Path, required=True, help="where the model's files go")
    parser.add_argument("--manifest", type=Path, required=True, help="where its manifest goes")
    parser.add_argument(
        "--tasks", default="", help="tasks that it must be able to learn, separated by commas; by default any one"
    )
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="that its tokenizer is to be trained on")
    arguments = parser.parse_args()
    note_versions()
    tasks = [task for task in arguments.tasks.split(",") if task]
    model = sources.read_section(ModelConfig, arguments.source)
    files.write_json(arguments.manifest, fetch_model(model, arguments.folder, tasks, *arguments.texts))


if __name__ == "__main__":
    run_script(main, "fetching model {folder}")
