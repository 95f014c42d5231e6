"""Fetch models and texts, tokenise once per pair, and write the manifest. Nothing here is measured.

in:   the config's sources
out:  resources/models/<model>/, resources/datasets/<dataset>.jsonl, resources/tokens/<dataset>/<model>.safetensors,
      each with a manifest (.json) next to it; results/<sweep>/grid.json
"""


rule grid:
    input:
        lambda wildcards: sweep.correct_notes(),  # none
    output:
        f"{sweep.folder}/grid.json",
    log:
        f"{sweep.folder}/logs/grid.log",
    conda:
        "../envs/reporting.yaml"
    params:
        # A function, because in a plain string a prompt's {source} would be a wildcard.
        config=lambda wildcards: sweep.config_json(),
        code=staleness.code_digest("scripts.grid"),
        runs=sweep.runs_digest(),
    message:
        f"Write the grid of {len(sweep.runs)} runs"
    shell:
        "python -m scripts.grid --config {params.config:q} --output {output:q} 2>&1 | tee {log:q} >&2"


rule fetch_model:
    input:
        lambda wildcards: sweep.local_files("models", wildcards.model),
        texts=lambda wildcards: sweep.tokenizer_texts(wildcards.model),
    output:
        folder=directory("resources/models/{model}"),
        manifest="resources/models/{model}.json",
    log:
        "resources/models/{model}.log",
    conda:
        "../envs/training.yaml"
    resources:
        # Not a param: adding a task would fetch the model again.
        tasks=lambda wildcards: sweep.tasks(wildcards.model),
    params:
        source=lambda wildcards: sweep.model_json(wildcards.model),
        marked=lambda wildcards: sweep.marked_files("models", wildcards.model),
        code=staleness.code_digest("scripts.fetch_model"),
    message:
        "Fetch model {wildcards.model}"
    shell:
        "python -m scripts.fetch_model --source {params.source:q} --folder {output.folder:q}"
        " --manifest {output.manifest:q} --tasks {resources.tasks:q} --texts {input.texts:q} 2>&1 | tee {log:q} >&2"


rule fetch_dataset:
    input:
        lambda wildcards: sweep.local_files("datasets", wildcards.dataset),
    output:
        texts="resources/datasets/{dataset}.jsonl",
        manifest="resources/datasets/{dataset}.json",
    log:
        "resources/datasets/{dataset}.log",
    conda:
        "../envs/training.yaml"
    params:
        source=lambda wildcards: sweep.dataset_json(wildcards.dataset),
        marked=lambda wildcards: sweep.marked_files("datasets", wildcards.dataset),
        code=lambda wildcards: sweep.dataset_code(wildcards.dataset),
    message:
        "Fetch texts {wildcards.dataset}"
    shell:
        "python -m scripts.fetch_dataset --source {params.source:q} --output {output.texts:q}"
        " --manifest {output.manifest:q} 2>&1 | tee {log:q} >&2"


rule tokenise:
    input:
        texts=rules.fetch_dataset.output.texts,
        texts_manifest=rules.fetch_dataset.output.manifest,
        model_manifest=rules.fetch_model.output.manifest,
        model_folder=ancient(rules.fetch_model.output.folder),
    output:
        tokens="resources/tokens/{dataset}/{model}.safetensors",
        manifest="resources/tokens/{dataset}/{model}.json",
    log:
        "resources/tokens/{dataset}/{model}.log",
    conda:
        "../envs/training.yaml"
    params:
        code=staleness.code_digest("scripts.tokenise"),
    message:
        "Tokenise {wildcards.dataset} for {wildcards.model}"
    shell:
        "python -m scripts.tokenise --texts {input.texts:q} --texts-manifest {input.texts_manifest:q}"
        " --model-folder {input.model_folder:q}"
        " --output {output.tokens:q} --manifest {output.manifest:q} 2>&1 | tee {log:q} >&2"
