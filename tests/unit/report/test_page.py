import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import known_sweeps
import polars as pl
import pytest
import synthetic
from pages import build, page, rendered, words

from joulesweep.analyse import tables
from joulesweep.core import files
from joulesweep.report import markup
from joulesweep.report import page as report
from joulesweep.report.sections import configurations


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return report.build(*build(tmp_path_factory.mktemp("plain")))


def test_the_page_answers_first(plain):
    text = words(plain)
    order = ["24 of 24 runs ok", "Train with 2 processes on the CPU with DDP, bf16-mixed, batch", "How sure?"]
    order += ["Time and quality", "Where the savings come from", "What fits my budget?", "All configurations"]
    order += ["Can the numbers be trusted?", "How to reproduce it"]
    places = [text.index(word) for word in order[:3]]
    assert places == sorted(places)
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", plain)
    assert [heading for heading in headings if heading in order] == order[3:]
    assert re.search(r"it takes \d+ % less time \[\d+, \d+\] than one process on the CPU, fp32, batch \d+,", text)


def test_energy_is_not_measured_and_its_estimate_is_marked(plain):
    text = words(plain)
    assert "energy not measured" in text and "No kilowatt-hours: energy was not measured." in text
    assert re.search(r"≈ [\d.]+ J estimated, \[", text)
    assert "unavailable" in text and "no RAPL counters" in text
    assert "Cloud Carbon Footprint coefficients (EPYC 3rd Gen" in text and "Apache-2.0" in text
    assert not re.search(r"(?<![\d.,])0(\.0+)? k?J\b|NaN|None\b", text)


def test_every_estimate_is_in_a_marked_element(plain):
    class Marked(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.found = [], 0

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "br"):
                self.open.append((tag, dict(attrs).get("class") or ""))

        def handle_endtag(self, tag):
            while self.open.pop()[0] != tag:
                pass

        def handle_data(self, data):
            if "≈" in data and self.open[-1][0] != "script":
                self.found += 1
                assert any("estimated" in classes for _, classes in self.open), data

    marked = Marked()
    marked.feed(plain)
    assert marked.found >= 8 + 1  # configurations and cards


def test_measured_joules_are_shown_as_such(tmp_path):
    text = words(page(tmp_path, synthetic.measured, energy={"estimate": False}))
    assert "less energy [" in text and "24 runs: measured, scope cpu" in text
    assert "≈" not in text and "not measured" not in text


def test_what_a_run_reached_of_what_was_possible_is_shown_and_explained(tmp_path):
    text = words(page(tmp_path, synthetic.on_gpus, **synthetic.GPU_CONFIG))
    for heading in ("Spent on padding", "Of peak rate (MFU)", "Of possible speed (distance to floor)"):
        assert text.count(heading) == 2, heading  # the column, and what it means
    assert re.search(r"Tokens/s Spent on padding Of peak rate \(MFU\) Of possible speed", text)
    assert "Where it is missing" not in text


def test_peak_rates_from_memory_are_named_below_the_table(tmp_path):
    def on_3090(row):
        row = synthetic.on_gpus(row)
        name = "NVIDIA GeForce RTX 3090"
        boards = [{**board, "name": name, "memory_bytes": 24 * 2**30} for board in row["environment"]["gpus"]]
        return {**row, "environment": {**row["environment"], "gpus": boards}}

    said = "are from memory: compare resources/gpus.csv with the datasheet."
    assert f"Peak rates of NVIDIA GeForce RTX 3090 {said}" in words(
        page(tmp_path / "a", on_3090, **synthetic.GPU_CONFIG)
    )
    assert said not in words(page(tmp_path / "h200", synthetic.on_gpus, **synthetic.GPU_CONFIG))


def test_without_a_peak_rate_only_the_padding_is_shown(plain):
    text = words(plain)
    assert "Spent on padding" in text and "MFU" not in text and "distance to floor" not in text


def test_work_that_was_not_counted_has_no_column_and_where_some_was_a_reason(tmp_path):
    def older(row):
        return {**row, "measurement": {k: v for k, v in row["measurement"].items() if k != "phases"}}

    def some(row):
        return older(row) if row["spec"]["batch_size"] == 32 else row

    assert "Spent on padding" not in words(page(tmp_path / "all", older))
    text = words(page(tmp_path / "some", some))
    assert "Where it is missing: the record was written before FLOPs were counted." in text


def test_what_was_chosen_is_shown_with_its_predicted_and_counted_cost(tmp_path):
    grid, made = build(tmp_path, synthetic.choosing, synthetic.METHODS)
    text, chosen = words(rendered(grid, made)), made.selections.filter(pl.col("name").str.starts_with("random"))
    begin = text.index("Which tensors trained, and at what cost")
    assert text.index("All configurations") < begin < text.index("Can the numbers be trusted?")
    costs = " ".join(f"{chosen[column].mean():.3f}" for column in ("predicted_cost", "counted_cost", "floor"))
    tensors, gap = f"{chosen['num_chosen'].mean():#.3g} of 42", f"{100 * chosen['gap'].max():#.3g} %"
    name = "random rho=0.5 single fp32 bs32"
    assert f"{name} 6 in 3 runs flops 0.5 {costs} 50.0 ms 250 ms {tensors} 25.0 % 80.0 % {gap}" in text[begin:]
    assert "of seconds on the run's device" not in text and "counted cost is missing" not in text


def test_a_choice_whose_cost_was_not_counted_has_a_dash_and_a_reason(tmp_path):
    def change(row):
        first = {"objective": "time", "flop_reason": "einsum is not counted"} if row["spec"]["repeat"] == 1 else {}
        return synthetic.choosing(row, importance_share=None, gap=0.0, **first)

    text = words(page(tmp_path, change, synthetic.METHODS))
    assert re.search(r"6 in 3 runs time 0\.5 0\.49\d – 0\.350 50\.0 ms 250 ms [\d.]+ of 42 25\.0 % – < 0\.01 %", text)
    assert "Where the counted cost is missing: einsum is not counted." in text
    assert "the prediction is of seconds on the run's device" in text


def test_methods_are_compared_at_equal_cost_with_a_sentence_first(tmp_path):
    def change(row):
        worse = 0.5 if row["spec"]["method"] == "greentrainer" else 0.0
        epochs = [{**one, "validation_loss": one["validation_loss"] + worse} for one in row["epochs"]]
        return synthetic.choosing({**row, "epochs": epochs})

    text = words(page(tmp_path, change, synthetic.METHODS))
    begin = text.index("At equal cost")
    section = text[begin : text.index("Which tensors trained, and")]
    said = "greentrainer(rho=0.5) is shown worse than full and random(rho=0.5)."
    assert section.index(said) < section.index("Method A Method B At a cost of")
    losses = r"[\d.]+ s \d\.\d{3} \d\.\d{3} \+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\] 3 B lower"
    assert re.search(rf"greentrainer\(rho=0\.5\) full {losses}", section)
    assert "Cost: CPU-seconds; energy was not measured." in section


def test_the_cost_is_joules_where_they_were_measured_and_one_seed_has_no_interval(tmp_path):
    axes = {**synthetic.METHODS, "repeats": 1}
    text = words(page(tmp_path, synthetic.on_gpus, axes, **synthetic.GPU_CONFIG))
    assert "Cost: joules, scope gpu, the counters' readings interpolated to the end of each epoch." in text
    assert "full: one common seed cannot tell it from greentrainer(rho=0.5) and random(rho=0.5)." in text
    assert re.search(r"full random\(rho=0\.5\) [\d.]+ kJ [\d.]+ [\d.]+ [+−][\d.]+ n=1, no interval 1 –", text)


def test_published_figures_stand_beside_measured_ratios(tmp_path):
    text = words(page(tmp_path, synthetic.choosing, synthetic.METHODS))
    begin = text.index("Beside the published figures")
    assert text.index("Can the numbers be trusted?") < begin < text.index("How to reproduce it")
    section = text[begin : text.index("How to reproduce it")]
    times = r"[\d.]+× \[[\d.]+, [\d.]+\], n=3"
    assert re.search(rf"greentrainer\(rho=0\.5\) 0\.50 to 0\.57× {times} 0\.48 to 0\.69× {times} 6 ", section)
    assert "random" not in section and "joules here" not in section and "Devices and precision" not in section
    assert "Huang et al., ICLR 2024 (arXiv 2309.13192)" in section and "recalled from the papers" in section


def test_measured_joules_stand_beside_published_hours(tmp_path):
    text = words(page(tmp_path, synthetic.on_gpus, synthetic.METHODS, **synthetic.GPU_CONFIG))
    assert "Time here Measured joules here Published settings" in text


def test_speeds_stand_beside_published_headlines(tmp_path):
    axes = {"strategy": ["dp", "ddp"], "precision": ["fp32", "fp16-mixed"]}
    text = words(page(tmp_path, axes=axes))
    assert "ddp over dp fp16-mixed over fp32 ddp with fp16-mixed over dp with fp32" in text
    ratio = r"[\d.]+ to [\d.]+× \d pairs"
    assert re.search(rf"training speed up to 3\.5× faster recalled, arXiv 2506\.08433 {ratio} {ratio} {ratio}", text)
    assert re.search(rf"validation accuracy no loss recalled, arXiv 2506\.08433 {ratio}", text)
    assert "power about 50 % lower recalled, arXiv 2506.08433 – – –" in text
    assert "Methods: cost over that of full training" not in text


def test_one_method_is_compared_with_none(plain):
    assert "At equal cost" not in words(plain) and "published figures" not in words(plain)


def test_where_no_method_chooses_there_is_no_such_section(plain):
    assert "Which tensors trained" not in words(plain) and "figure-tensors" not in plain


def test_one_repeat_has_no_interval(tmp_path):
    text = words(page(tmp_path, axes={"repeats": 1}))
    assert "n=1, no interval" in text
    assert not re.search(r"95 % interval, paired by seed", text)


def test_a_partial_sweep_says_so(tmp_path):
    text = words(page(tmp_path, lambda row: None if row["spec"]["repeat"] == 3 else row))
    assert "16 of 24 runs ok" in text and "8 runs not done yet" in text
    assert "8 of 24 runs are not done yet: the answer may change." in text
    assert "no record" in text


def test_a_failed_sweep_still_reports(tmp_path):
    reason = "out of memory: asked for 2.0 GiB"
    text = words(page(tmp_path, lambda row: synthetic.failed(row, "oom", reason)))
    assert "No answer yet: no run finished: 24 oom." in text
    assert "0 of 24 runs ok" in text and "not done yet" not in text
    assert "single fp32 bs32 1, 2, 3 oom 2.00 GiB out of memory: asked for 2.0 GiB" in text
    assert "24 oom joulesweep rerun --status oom" in text


def test_runs_without_numbers_are_grouped_by_configuration_and_status(tmp_path):
    def change(row):
        a_spec = row["spec"]
        if a_spec["strategy"] == "ddp":
            return row if a_spec["precision"] == "fp32" else None
        if a_spec["precision"] == "fp32":
            reason = f"not finite by step {a_spec['repeat']}"
            return synthetic.failed(row, "diverged" if a_spec["repeat"] < 3 else "timeout", reason)
        return {**synthetic.failed(row, "oom", "full"), "oom_bytes": a_spec["repeat"] * 2**30}

    text = words(page(tmp_path, change, axes={"batch_size": [32]}))
    assert "Repeat Status Memory asked for Reason" in text
    assert "single fp32 bs32 1, 2 diverged – not finite by step 1; not finite by step 2 single fp32 bs32 3" in text
    assert "single fp32 bs32 3 timeout – not finite by step 3" in text
    assert "single bf16-mixed bs32 1, 2, 3 oom 1.00 to 3.00 GiB full" in text
    assert "ddp2 bf16-mixed bs32 1, 2, 3 missing – no record" in text
    for line in ("3 oom joulesweep rerun --status oom", "1 timeout joulesweep rerun --status timeout"):
        assert line in text
    assert "3 missing snakemake --cores 2" in text


def test_bytes_have_a_column_only_where_some_are_known(tmp_path, plain):
    text = words(page(tmp_path, lambda row: synthetic.failed(row, "timeout", "too slow")))
    assert "single fp32 bs32 1, 2, 3 timeout too slow" in text and "Memory asked for" not in text
    assert "joulesweep rerun" not in words(plain)


def test_excluded_cells_keep_their_reason(tmp_path):
    exclude = [{"when": {"strategy": "ddp", "batch_size": 32}, "reason": "too small to split"}]
    text = words(page(tmp_path, exclude=exclude))
    assert "Left out on purpose ddp2 fp32 bs32: too small to split" in text


def test_provenance(plain):
    text = words(plain)
    assert "commit 0123456789ab" in text and "digest c0dec0dec0dec0de" in text
    assert "AMD EPYC 7763" in text and "2.9.0" in text
    assert "sweep: synthetic" in text  # the config


def test_hostile_text_stays_text(tmp_path):
    evil = "</script><script>alert(1)</script>"
    html = page(tmp_path, lambda row: synthetic.failed(row, "unsupported", evil), exclude=[])
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert "<" not in markup.embedded({"text": evil})


def test_nothing_is_fetched(plain):
    outside_scripts = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", plain, flags=re.DOTALL)
    assert "<script>" in outside_scripts and not re.search(
        r"\bsrc=|\bhref=\"(?!#|exports/\w+\.\w+\")|url\(|@import", outside_scripts
    )
    assert "default-src 'none'" in plain


def test_script_writes_the_page(tmp_path):
    grid, made = build(tmp_path)
    files.write_json(tmp_path / "grid.json", grid)
    tables.write(made, tmp_path / "tables")
    arguments = ["--grid", "grid.json", "--tables", "tables", "--output", "report.html"]
    arguments = [word if word.startswith("--") else str(tmp_path / word) for word in arguments]
    subprocess.run([sys.executable, "-m", "scripts.report", *arguments], check=True)
    assert "24 of 24 runs ok" in (tmp_path / "report.html").read_text()


def test_reporting_needs_no_torch():
    code = "import sys, scripts.aggregate, scripts.charts, scripts.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


GOLDEN = {
    ("single", "fp32"): ("oom", "out of memory: asked for 2.0 GiB"),
    ("single", "bf16-mixed"): ("diverged", "the loss is not finite after step 7"),
    ("ddp", "fp32"): ("unsupported", "this board cannot"),
    ("ddp", "bf16-mixed"): ("timeout", "ran longer than 3600 s"),
}


def golden(row):
    """Every outcome in the batches of 64, doubt and integrated joules in some others, on boards of two kinds."""
    a_spec = row["spec"]
    if a_spec["batch_size"] == 64 and a_spec["repeat"] < 3:
        return synthetic.failed(row, *GOLDEN[a_spec["strategy"], a_spec["precision"]])
    if a_spec["batch_size"] == 64:
        return None
    row = synthetic.on_gpus(row, **({"doubt": "power disagrees"} if a_spec["precision"] == "fp32" else {}))
    if a_spec["repeat"] < 3:
        return row
    boards = [{**board, "name": "NVIDIA A30"} for board in row["environment"]["gpus"]]
    return {**row, "environment": {**row["environment"], "gpus": boards}}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    axes = {"repeats": 4}
    return words(page(tmp_path_factory.mktemp("golden"), golden, axes, **synthetic.GPU_CONFIG))


@pytest.mark.parametrize("status", ["oom", "diverged", "unsupported", "timeout"])
def test_an_outcome_is_a_result_and_not_unfinished(mixed, status):
    assert f"2 {status}" in mixed and f"joulesweep rerun --status {status}" in mixed
    assert "8 of 32 runs are not done yet" in mixed  # the missing ones alone


def test_two_kinds_of_board_are_never_averaged_and_are_named(mixed):
    assert "Models, data sets and machines are compared within each row only." in mixed
    assert re.search(r"For Recommended Energy Cost against the baseline Time Loss above the best", mixed)
    assert "NVIDIA H200" in mixed and "NVIDIA A30" in mixed


def test_doubtful_joules_are_named_and_not_ranked(mixed):
    assert "are doubtful" in mixed and "Not ranked, since their joules are doubtful: single fp32 bs32" in mixed


def test_hostile_text_in_every_field_stays_text(tmp_path):
    evil = "</script><script>alert(1)</script>"

    def change(row):
        row = synthetic.on_gpus(row)
        if row["spec"]["batch_size"] == 64:
            return synthetic.failed(row, "unsupported", evil)
        boards = [{**board, "name": evil} for board in row["environment"]["gpus"]]
        named = {"hostname": evil, "cpu_model": evil, "gpus": boards, "driver": evil, "platform": evil}
        row = {**row, "environment": {**row["environment"], **named}}
        return synthetic.flagged(row, "throttled", evil)

    manifest, made = build(tmp_path, change, **synthetic.GPU_CONFIG)
    html = report.build({**manifest, "sweep": evil}, made)
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert html.count("<script") == html.count("</script>")


@pytest.mark.slow
def test_a_page_of_135_runs_is_read_in_minutes(tmp_path):
    html = page(tmp_path, known_sweeps.on_a30, known_sweeps.TWO_GPUS, **synthetic.GPU_CONFIG)
    prose = re.sub(r"<(table|pre)\b.*?</\1>", " ", html, flags=re.DOTALL)
    assert 300 < len(re.findall(r"[^\W\d_]{2,}", words(prose))) <= 1500


def test_what_is_not_drawn_is_said(tmp_path):
    text = words(report.build(*build(tmp_path, axes={"batch_size": [32]})))
    assert "Power while training. No power could be read." in text
    assert "Energy is not among them: it was not measured." in text


def test_rows_beyond_the_first_ones_are_kept_for_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(configurations, "MAX_ROWS", 3)
    html = page(tmp_path, synthetic.on_gpus, **synthetic.GPU_CONFIG)
    assert html.count('<tr data-cell="') == 3 and '<tr data-cell="' in html.partition('class="chosen"')[0]
    rest = json.loads(re.search(r'<script type="application/json" id="rest">(.*?)</script>', html)[1])
    assert len(rest) == 5 and all(len(row) == 3 for row in rest)
    assert "The recommended and the 2 cheapest of 8 configurations." in words(html)


def test_everything_that_scrolls_or_acts_has_a_name(plain):
    assert re.findall(r'<div class="scroll[^"]*"(?![^>]*aria-label="[^"]+")', plain) == []
    assert re.findall(r"<th(?![^>]*scope=)[ >]", plain) == []
    assert all(
        re.sub(r"<[^>]+>", "", text).strip() for text in re.findall(r"<button[^>]*>(.*?)</button>", plain, re.DOTALL)
    )
    ids = re.findall(r' id="([^"]+)"', plain)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', plain)) <= set(ids)
    for section in re.findall(r"<section [^>]*>", plain):
        assert re.search(r'aria-labelledby="([^"]+)"', section)[1] in ids
