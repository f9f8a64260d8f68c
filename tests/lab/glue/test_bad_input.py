"""What a user can get wrong: one clear error, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue.errors import UsageError

from .conftest import load_script

GOOD = {"sentence": ["good", "bad", "fine"], "label": [1, 0, 1]}


def write(folder: Path, rows: dict[str, list], split: str = "train", suffix: str = ".parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}{suffix}"
    lines = [dict(zip(rows, values, strict=False)) for values in zip(*rows.values(), strict=False)]
    if suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(line) for line in lines))
    elif suffix == ".json":
        path.write_text(json.dumps(lines))
    else:
        tab = "," if suffix == ".csv" else "\t"
        table = [list(rows), *([str(v) for v in line.values()] for line in lines)]
        path.write_text("\n".join(tab.join(line) for line in table) + "\n")
    return folder


@pytest.fixture
def run(argv):
    main = load_script("run_glue").main
    return lambda *words: main([*argv, *map(str, words)])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".json"])
@pytest.mark.parametrize("folder", ["", "sst2", "SST-2"])
def test_every_format_and_folder(run, tmp_path, suffix, folder):
    write(tmp_path / "data" / folder, GOOD, "dev", suffix)
    results = run("--task_name", "sst2", "--data_dir", tmp_path / "data", "--do_eval")
    assert results["eval_samples"] == 3


def test_shards_and_label_names(run, tmp_path):
    rows = {**GOOD, "label": ["positive", "negative", "positive"]}
    for number in range(2):
        write(tmp_path / "data", rows, f"validation-0000{number}-of-00002")
    results = run("--task_name", "sst2", "--data_dir", tmp_path / "data", "--do_eval")
    assert results["eval_samples"] == 6


def test_quotation_marks_and_null_are_text_in_tsv(run, tmp_path):
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\n" a half quote\t1\nnull\t0\nNA\t1\n')
    results = run("--task_name", "sst2", "--data_dir", tmp_path, "--do_eval")
    assert results["eval_samples"] == 3


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("sst2", {"text": ["a"], "label": [1]}, r"train\.parquet.*missing sentence.*found text"),
        ("sst2", {"sentence": ["a"]}, "missing label"),
        ("mrpc", GOOD, "needs the columns sentence1, sentence2, label"),
        ("sst2", {"sentence": ["a", "b"], "label": [1, 2]}, "label 2 in row 1 is out of range"),
        ("sst2", {"sentence": ["a", "b"], "label": [-1, 0]}, "label -1 in row 0 is out of range"),
        ("sst2", {"sentence": ["a"], "label": [0.5]}, "label 0.5 in row 0 is not an integer"),
        ("sst2", {"sentence": ["a"], "label": ["x"]}, "label 'x' in row 0 is not an integer"),
        ("sst2", {"sentence": ["a"], "label": [None]}, "label None in row 0"),
        ("sst2", {"sentence": [7], "label": [1]}, "sentence in row 0 is 7, expected text"),
        (
            "stsb",
            {"sentence1": ["a"], "sentence2": ["b"], "label": ["high"]},
            "'high' in row 0 is not a number",
        ),
        (
            "stsb",
            {"sentence1": ["a"], "sentence2": ["b"], "label": [7.0]},
            "7.0 in row 0 is out of range",
        ),
        ("sst2", {"sentence": pa.array([], pa.string()), "label": pa.array([])}, "no examples"),
    ],
)
def test_bad_rows(run, tmp_path, task, rows, message):
    pq_rows = pa.table(rows)
    (tmp_path / task).mkdir()
    pq.write_table(pq_rows, tmp_path / task / "train.parquet")
    with pytest.raises(UsageError, match=message):
        run("--task_name", task, "--data_dir", tmp_path, "--do_train")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.parquet"])
def test_empty_files(run, tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=f"{name}"):
        run("--task_name", "sst2", "--data_dir", tmp_path, "--do_train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task_name", "sts2", "--use_sample", "--do_eval"], "mean stsb.*from: cola, sst2"),
        (["--use_sample", "--do_eval"], "--task_name is missing"),
        (["--task_name", "sst2", "--use_sample"], "nothing to do"),
        (["--task_name", "rte", "--use_sample", "--do_eval"], "the sample is sst2, not rte"),
        (["--task_name", "sst2", "--use_sample", "--do_predict"], "has no test split"),
        (["--task_name", "sst2", "--data_dir", "/nowhere", "--do_eval"], "no such folder"),
        (["--task_name", "sst2", "--data_dir", "{tmp}", "--do_eval"], "no validation split"),
        (["--task_name", "ax", "--data_dir", "{tmp}", "--do_train"], "Train on mnli"),
        (["--task_name", "ax", "--data_dir", "{tmp}", "--do_eval"], "use --do_predict"),
        (["--task_name", "sst2", "--do_eval"], "nyu-mll/glue.*--data_dir"),
        (
            ["--task_name", "sst2", "--use_sample", "--data_dir", "{tmp}", "--do_eval"],
            "exclude each other",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_eval", "--max_eval_samples", "0"],
            "--max_eval_samples 0",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_eval", "--max_seq_length", "0"],
            "--max_seq_length 0",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_eval", "--config_name", "{tmp}/none"],
            "--config_name",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_eval", "--lora_alpha", "4"],
            "--lora_alpha needs LoRA",
        ),
        (["--task_name", "sst2", "--use_sample", "--do_eval", "--lora_r", "0"], "--lora_r 0"),
        (
            [
                *"--task_name sst2 --use_sample --do_train --lora_r 2".split(),
                *"--lora_target_modules nothing".split(),
            ],
            "--lora_target_modules",
        ),
        (
            [
                *"--task_name sst2 --use_sample --do_train --adapter_name_or_path".split(),
                "{tmp}",
            ],
            "--adapter_name_or_path",
        ),
        (
            [
                *"--task_name sst2 --use_sample --do_train --resume_from_checkpoint".split(),
                "{tmp}/none",
            ],
            "--resume_from_checkpoint .*no such folder",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_train", "--optim_args", "max_windw=3"],
            "max_windw.*max_window",
        ),
        (
            ["--task_name", "sst2", "--use_sample", "--do_train", "--optim_args", "max_window=-3"],
            "max_window.*-3",
        ),
    ],
)
def test_bad_arguments(script, argv, tmp_path, words, message):
    (tmp_path / "data").mkdir()
    words = [word.replace("{tmp}", str(tmp_path / "data")) for word in words]
    with pytest.raises(UsageError, match=message):
        script([*argv, *words])


def test_no_model(run, argv, tmp_path, glue_dir):
    main = load_script("run_glue").main
    words = ["--task_name", "sst2", "--data_dir", str(glue_dir), "--do_eval", "--use_cpu"]
    with pytest.raises(UsageError, match="--model_name_or_path is missing"):
        main([*words, "--output_dir", str(tmp_path / "out")])


def test_a_head_of_another_size(run, argv, pretrained, glue_dir):
    words = ["--task_name", "mnli", "--data_dir", glue_dir, "--do_eval"]
    words += ["--model_name_or_path", pretrained, "--config_name", pretrained]
    with pytest.raises(UsageError, match="--ignore_mismatched_sizes"):
        run(*words)
    assert run(*words, "--ignore_mismatched_sizes")["eval_samples"] == 9


def test_an_output_folder_that_is_a_file_or_cannot_be_written(script, argv, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(UsageError, match=f"--output_dir {folder}: cannot be written"):
            script(
                [
                    *argv,
                    *"--task_name sst2 --use_sample --do_train --output_dir".split(),
                    str(folder),
                ]
            )


def test_an_output_folder_in_use(script, argv, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    words = [*argv, "--task_name", "sst2", "--use_sample", "--do_train", "--max_train_samples", "4"]
    with pytest.raises(UsageError, match="not empty .thesis.tex.*--overwrite_output_dir"):
        script(words)
    script([*words, "--overwrite_output_dir"])
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--load_best_model_at_end", "--eval_strategy", "epoch", "--save_strategy", "epoch"],
        ["--label_smoothing_factor", "0.1"],
        ["--report_to", "tensorboard"],
        ["--neftune_noise_alpha", "5"],
    ],
)
def test_the_bare_loop_says_what_it_cannot_honour(argv, words):
    name = words[0].lstrip("-")
    with pytest.raises(UsageError, match=f"cannot honour --.*{name}"):
        load_script("run_glue_no_trainer").main(
            [*argv, "--task_name", "sst2", "--use_sample", "--do_train", "--do_eval", *words]
        )
