"""Energy-aware sweeps of language-model domain adaptation.

snakemake --cores 2                                   the sweep of config/config.yaml
snakemake --cores 2 --configfile config/yours.yaml    another one
snakemake --cores 2 partial                           tables, charts and report of the finished runs
"""

import signal
import sys

from snakemake.utils import min_version

min_version("9.17")
sys.path.insert(
    0, str(workflow.current_basedir)
)  # this file's, also as a module of another workflow

from joulesweep.analyse import columns
from joulesweep.core import interrupts
from joulesweep.plan import staleness
from joulesweep.plan.sweep import (
    anchors_folder,
    attempt,
    input_folder,
    load,
    of_run,
    output_folder,
    refused,
    runs_folder,
)
from joulesweep.report import charts, exports
from joulesweep.runs import aftermath

# One file is one complete sweep: --configfile replaces the default, config/config.yaml; it does not add to it.
sweep = load(workflow)
config["sweep"] = sweep.name  # for the caption of Snakemake's own report
cores = (
    workflow.resource_settings.cores
)  # None on a cluster; workflow.cores would fail there


wildcard_constraints:
    run="[a-z0-9._-]+",
    day="[0-9-]+",
    model="[a-z0-9._-]+",
    dataset="[a-z0-9._-]+",


onstart:
    interrupts.handle_in_a_thread(signal.SIGTERM)
    missing = sweep.missing_files()
    if missing:
        raise refused(missing[0], workflow)


onsuccess:
    sweep.set_aside()
    if note := sweep.unsettled():
        print(note, file=sys.stderr)


onerror:
    sweep.set_aside()
    folders = (sweep.record_path(run).parent for run in sweep.runs)
    for line in aftermath.lines(folders):
        print(line, file=sys.stderr)


report: "joulesweep/report/templates/captions/workflow.rst"


# In no batch job: the first ones are trivial, and many clusters let only the login node reach the network.
localrules:
    all,
    partial,
    grid,
    fetch_model,
    fetch_dataset,


rule all:
    default_target: True
    input:
        f"{sweep.folder}/report.html",
        expand(f"{sweep.folder}/exports/{{file}}", file=exports.names()),
        # Named too: otherwise Snakemake would not notice files that were moved away while the report exists, nor models
        # and texts that are to be fetched again while no run is left to do.
        lambda wildcards: sweep.lost_files(),
        lambda wildcards: sweep.prepared_files(),
    message:
        f"The sweep is complete: {sweep.folder}/report.html"


rule partial:
    input:
        f"{sweep.folder}/partial/report.html",
        expand(f"{sweep.folder}/partial/exports/{{file}}", file=exports.names()),
    message:
        f"The report of the finished runs: {sweep.folder}/partial/report.html"


include: "rules/prepare.smk"
include: "rules/run.smk"
include: "rules/analyse.smk"
