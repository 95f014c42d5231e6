"""Turn records into tables, tables into charts, and both into one report. Imports no torch.

in:   results/<sweep>/grid.json and the records that it names (never a glob); anchor records of earlier days and of today
out:  results/<sweep>/tables/*.parquet, charts/*.svg, *.html and *.rst, report.html, exports/;
      README.md and passport.json in the folders of kept models;
      the same under results/<sweep>/partial/ from the finished runs
"""

CHARTS = charts.names()  # one file of joulesweep/report/charts each
EXPORTS = exports.names()


rule aggregate:
    input:
        grid=f"{sweep.folder}/grid.json",
        records=lambda wildcards: sweep.records(workflow),
        anchors=sweep.anchors(),
    output:
        expand(f"{sweep.folder}/tables/{{table}}.parquet", table=columns.TABLES),
    log:
        f"{sweep.folder}/logs/aggregate.log",
    conda:
        "../envs/reporting.yaml"
    params:
        code=staleness.code_digest("scripts.aggregate"),
        runs=runs_folder,
        anchors=anchors_folder,
        output=output_folder,
    message:
        "Aggregate the records into tables"
    shell:
        "python -m scripts.aggregate --grid {input.grid:q} --runs {params.runs:q}"
        " --anchors {params.anchors:q}"
        " --output {params.output:q} 2>&1 | tee {log:q} >&2"


rule charts:
    input:
        tables=rules.aggregate.output,
        grid=f"{sweep.folder}/grid.json",
    output:
        svg=[
            report(
                f"{sweep.folder}/charts/{chart}.svg",
                caption=Path(f"{sweep.folder}/charts/{chart}.rst").absolute(),
                category="Charts",
                labels={"chart": chart},
            )
            for chart in CHARTS
        ],
        html=expand(f"{sweep.folder}/charts/{{chart}}.html", chart=CHARTS),
        captions=expand(f"{sweep.folder}/charts/{{chart}}.rst", chart=CHARTS),
    log:
        f"{sweep.folder}/logs/charts.log",
    conda:
        "../envs/reporting.yaml"
    params:
        code=staleness.code_digest("scripts.charts"),
        said=[charts.caption(chart) for chart in CHARTS],
        tables=input_folder,
        output=output_folder,
    message:
        "Draw the charts"
    shell:
        "python -m scripts.charts --grid {input.grid:q} --tables {params.tables:q}"
        " --output {params.output:q} 2>&1 | tee {log:q} >&2"


rule report:
    input:
        tables=rules.aggregate.output,
        grid=f"{sweep.folder}/grid.json",
        charts=rules.charts.output.svg,
    output:
        report(
            f"{sweep.folder}/report.html",
            caption="../joulesweep/report/templates/captions/report.rst",
            category="Answer",
            labels={"page": "report"},
        ),
    log:
        f"{sweep.folder}/logs/report.log",
    conda:
        "../envs/reporting.yaml"
    params:
        code=staleness.code_digest("scripts.report"),
        tables=input_folder,
    message:
        "Write the report"
    shell:
        "python -m scripts.report --grid {input.grid:q} --tables {params.tables:q}"
        " --output {output:q} 2>&1 | tee {log:q} >&2"


rule exports:
    input:
        tables=rules.aggregate.output,
        grid=f"{sweep.folder}/grid.json",
        charts=rules.charts.output.svg,
    output:
        expand(f"{sweep.folder}/exports/{{file}}", file=EXPORTS),
    log:
        f"{sweep.folder}/logs/exports.log",
    conda:
        "../envs/reporting.yaml"
    params:
        code=staleness.code_digest("scripts.exports"),
        runs=runs_folder,
        tables=input_folder,
        charts=lambda wildcards, input: str(Path(input.charts[0]).parent),
        output=output_folder,
    message:
        "Export tables, charts and emissions"
    shell:
        "python -m scripts.exports --grid {input.grid:q} --runs {params.runs:q} --tables {params.tables:q}"
        " --charts {params.charts:q} --output {params.output:q} 2>&1 | tee {log:q} >&2"


use rule aggregate as aggregate_partial with:
    input:
        grid=f"{sweep.folder}/grid.json",
    output:
        expand(f"{sweep.folder}/partial/tables/{{table}}.parquet", table=columns.TABLES),
    log:
        f"{sweep.folder}/partial/logs/aggregate.log",
    params:
        code=staleness.code_digest("scripts.aggregate"),
        runs=runs_folder,
        anchors=anchors_folder,
        output=output_folder,
        finished=lambda wildcards: sweep.finished(),


use rule charts as charts_partial with:
    input:
        tables=rules.aggregate_partial.output,
        grid=f"{sweep.folder}/grid.json",
    output:
        svg=expand(f"{sweep.folder}/partial/charts/{{chart}}.svg", chart=CHARTS),
        html=expand(f"{sweep.folder}/partial/charts/{{chart}}.html", chart=CHARTS),
        captions=expand(f"{sweep.folder}/partial/charts/{{chart}}.rst", chart=CHARTS),
    log:
        f"{sweep.folder}/partial/logs/charts.log",
    params:
        code=staleness.code_digest("scripts.charts"),
        said=[charts.caption(chart) for chart in CHARTS],
        tables=input_folder,
        output=output_folder,


use rule report as report_partial with:
    input:
        tables=rules.aggregate_partial.output,
        grid=f"{sweep.folder}/grid.json",
        charts=rules.charts_partial.output.svg,
    output:
        f"{sweep.folder}/partial/report.html",
    log:
        f"{sweep.folder}/partial/logs/report.log",
    params:
        code=staleness.code_digest("scripts.report"),
        tables=input_folder,


use rule exports as exports_partial with:
    input:
        tables=rules.aggregate_partial.output,
        grid=f"{sweep.folder}/grid.json",
        charts=rules.charts_partial.output.svg,
    output:
        expand(f"{sweep.folder}/partial/exports/{{file}}", file=EXPORTS),
    log:
        f"{sweep.folder}/partial/logs/exports.log",
    params:
        code=staleness.code_digest("scripts.exports"),
        runs=runs_folder,
        tables=input_folder,
        charts=lambda wildcards, input: str(Path(input.charts[0]).parent),
        output=output_folder,
