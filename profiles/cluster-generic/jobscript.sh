#!/bin/sh
# properties = {properties}
# The runs of a job take turns, and one that fails does not keep the others from running: Snakemake passes neither its
# limits of resources nor --keep-going on to its jobs.
exec sh -c "$(sed 's/ -m snakemake / -m snakemake --keep-going --resources turn=1 /' << 'END'
{exec_job}
END
)"
