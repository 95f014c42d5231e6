#!/bin/sh
# properties = {properties}
# Snakemake passes neither --keep-going nor limits of resources on to its jobs; this profile has both.
export SNAKEMAKE_PROFILE=profiles/cluster-generic/in-job
{exec_job}
