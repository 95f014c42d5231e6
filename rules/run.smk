"""One job per run: the only rule that measures.

in:   the run's model and tokens, and the texts for their references. Its one param makes it stale: the spec and the
      digest of the code it uses. Inputs marked ancient are read but do not make a run stale: the manifests of model and
      tokens represent them.
out:  results/<sweep>/runs/<run>/: record.json, spec.json, steps.jsonl, epochs.jsonl, power.jsonl, summaries.jsonl (the
      generated texts, with references); model/ if it is kept, evaluations.jsonl if there are any. Anchors have the same files in
      results/<sweep>/anchors/<day>/<run>/.
"""


rule train:
    input:
        unpack(of_run(sweep.inputs)),
    output:
        record=f"{sweep.folder}/runs/{{run}}/record.json",
        spec=f"{sweep.folder}/runs/{{run}}/spec.json",
        steps=f"{sweep.folder}/runs/{{run}}/steps.jsonl",
        epochs=f"{sweep.folder}/runs/{{run}}/epochs.jsonl",
        power=f"{sweep.folder}/runs/{{run}}/power.jsonl",
        summaries=f"{sweep.folder}/runs/{{run}}/summaries.jsonl",
    log:
        f"{sweep.folder}/runs/{{run}}/run.log",
    priority: of_run(sweep.priority)
    conda:
        "../envs/training.yaml"
    threads: of_run(sweep.threads, cores)
    resources:
        gpu=of_run(sweep.gpus),
        mem_mb=of_run(sweep.memory_mb),
        runtime=of_run(sweep.runtime_min),
        attempt=attempt,
        whole_node=sweep.whole_node(),
        slurm_extra=sweep.slurm_extra(),
        # For several nodes. With mpi, Slurm's executor wraps the job in no step of one node, which cannot have all GPUs.
        nodes=sweep.on_nodes(lambda spec: spec.nodes),
        tasks=sweep.on_nodes(lambda spec: spec.nodes),
        tasks_per_gpu=sweep.on_nodes(lambda spec: 0),
        mpi=sweep.on_nodes(lambda spec: "srun"),
    params:
        job=of_run(sweep.job),
        folder=output_folder,
    message:
        "Run {wildcards.run}"
    shell:
        "python -m scripts.train --job {params.job:q} --model-folder {input.model_folder:q}"
        " --tokens {input.tokens:q} --texts {input.texts:q} --grid {input.grid:q} --folder {params.folder:q} --log {log:q}"
        " --evaluations {input.evaluations:q}"
        " --gpus {resources.gpu} --minutes {resources.runtime} --attempt {resources.attempt}"


# Repeat the first cell on a later day, to see how much days differ.
# No input makes an anchor stale: its measurement belongs to its day.
use rule train as anchor with:
    input:
        unpack(lambda wildcards: sweep.inputs(wildcards.run, wildcards.day)),
    output:
        record=f"{sweep.folder}/anchors/{{day}}/{{run}}/record.json",
        spec=f"{sweep.folder}/anchors/{{day}}/{{run}}/spec.json",
        steps=f"{sweep.folder}/anchors/{{day}}/{{run}}/steps.jsonl",
        epochs=f"{sweep.folder}/anchors/{{day}}/{{run}}/epochs.jsonl",
        power=f"{sweep.folder}/anchors/{{day}}/{{run}}/power.jsonl",
        summaries=f"{sweep.folder}/anchors/{{day}}/{{run}}/summaries.jsonl",
    log:
        f"{sweep.folder}/anchors/{{day}}/{{run}}/run.log",
    priority: 1_000_000_000
    params:
        job=lambda wildcards: sweep.anchor_job(wildcards.day, wildcards.run),
        folder=output_folder,
    message:
        "Anchor {wildcards.run} of {wildcards.day}"
