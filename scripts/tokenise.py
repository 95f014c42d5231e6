"""Tokenise a fetched data set with a fetched model's tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.core import files
from joulesweep.core.spec import SOURCE_OMISSION
from joulesweep.prepare import tokens
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="the texts, as scripts.fetch_dataset wrote them")
    parser.add_argument("--texts-manifest", type=Path, required=True, help="their manifest, which has the prompt")
    parser.add_argument("--model-folder", type=Path, required=True, help="as scripts.fetch_model wrote it")
    parser.add_argument("--output", type=Path, required=True, help="where the tokens go (safetensors)")
    parser.add_argument("--manifest", type=Path, required=True, help="where their manifest goes")
    arguments = parser.parse_args()
    described = files.read_json(arguments.texts_manifest, "manifest of a data set")
    prompt = described["source"].get("prompt", SOURCE_OMISSION["prompt"])
    token_set = tokens.tokenise(arguments.texts, arguments.model_folder, prompt)
    tokens.write(arguments.output, token_set)
    files.write_json(arguments.manifest, token_set.manifest)


if __name__ == "__main__":
    run_script(main, "tokenising {texts} for {model_folder}")
