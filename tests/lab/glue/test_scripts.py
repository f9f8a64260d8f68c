"""Every task, end to end, with both scripts."""

from __future__ import annotations

import csv
import re

import pytest
from glue.tasks import TASKS

from .conftest import read_json

METRICS = {
    "cola": {"matthews_correlation"},
    "sst2": {"accuracy"},
    "mrpc": {"accuracy", "f1", "combined_score"},
    "stsb": {"pearson", "spearmanr", "combined_score"},
    "qqp": {"accuracy", "f1", "combined_score"},
    "mnli": {"accuracy", "accuracy_mm"},
    "qnli": {"accuracy"},
    "rte": {"accuracy"},
    "wnli": {"accuracy"},
}


@pytest.mark.parametrize("name", METRICS)
def test_train_evaluate_predict(script, name, argv, glue_dir, tmp_path, capsys):
    task, out = TASKS[name], tmp_path / "out"
    script(
        [
            *argv,
            "--task_name",
            name,
            "--data_dir",
            str(glue_dir),
            *"--do_train --do_eval --do_predict".split(),
        ]
    )
    results = read_json(out / "all_results.json")
    assert {f"eval_{metric}" for metric in METRICS[name]} <= results.keys()
    assert results["eval_samples"] == 9 and results["train_samples"] == 12
    assert read_json(out / "eval_results.json").items() <= results.items()
    assert read_json(out / "train_results.json")["train_loss"] > 0
    files = [*task.submission, *(["AX.tsv"] if name == "mnli" else [])]
    for file in files:
        with (out / "submission" / file).open(newline="") as text:
            rows = list(csv.reader(text, delimiter="\t"))
        assert rows[0] == ["index", "prediction"]
        assert [int(index) for index, _ in rows[1:]] == list(range(9))
        for _, value in rows[1:]:
            if task.is_regression:
                assert 0 <= float(value) <= 5
            elif task.write_names:
                assert value in task.labels
            else:
                assert 0 <= int(value) < task.num_labels
    text = capsys.readouterr().out
    assert task.main_metric in text and "Trainable parameters" in text and str(out) in text


def test_log_history_has_what_the_plot_draws(script, argv, tmp_path):
    script(
        [*argv, "--task_name", "sst2", "--use_sample", "--max_train_samples", "16", "--do_train"]
    )
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for name in ("loss", "learning_rate", "window", "effective_momentum", "epoch"):
        assert all(name in entry for entry in steps), name


def test_plot(script, argv, tmp_path):
    pytest.importorskip("matplotlib")
    script(
        [
            *argv,
            *"--task_name sst2 --use_sample --max_train_samples 16 --do_train --plot true".split(),
        ]
    )
    assert list((tmp_path / "out").rglob("*.png"))


def test_both_scripts_walk_the_same_way(argv, tmp_path):
    """The Trainer's metrics without training are the bare loop's: same seed, same weights."""
    from .conftest import SCRIPTS, load_script

    results = [
        load_script(name).main(
            [
                *argv,
                *"--task_name sst2 --use_sample --do_eval --output_dir".split(),
                str(tmp_path / name),
            ]
        )
        for name in SCRIPTS
    ]
    for key in ("eval_loss", "eval_accuracy", "eval_samples"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5)


def test_ax_with_a_model_of_another_label_order(script, argv, glue_dir, tiny, tmp_path):
    """A published MNLI model may number the classes its own way."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny, num_labels=3)
    config.id2label = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    model = AutoModelForSequenceClassification.from_config(config)
    model.classifier.out_proj.bias.data = model.classifier.out_proj.bias.new_tensor([0, 0, 9.0])
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "model")
    words = [w for w in argv if w not in ("--config_name", str(tiny))]
    words += ["--model_name_or_path", str(tmp_path / "model"), "--data_dir", str(glue_dir)]
    script([*words, "--task_name", "ax", "--do_predict"])
    lines = (tmp_path / "out" / "submission" / "AX.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[1] for line in lines} == {"entailment"}
    results = script([*words, "--task_name", "mnli", "--do_eval"])
    assert results["eval_accuracy"] == pytest.approx(3 / 9)
    assert results["eval_loss"] > 3  # two thirds of the examples are wrong by 9


def test_another_optimizer_with_the_same_words(script, argv):
    results = script(
        [
            *argv,
            *"--optim adamw_torch --optim_args".split(),
            "",
            *"--task_name sst2 --use_sample --max_train_samples 8 --do_train".split(),
            *"--gradient_accumulation_steps 2 --warmup_ratio 0.5 --group_by_length".split(),
        ]
    )
    assert results["train_loss"] > 0


def test_pad_to_max_length_and_truncation(script, argv):
    results = script(
        [
            *argv,
            *"--task_name sst2 --use_sample --max_eval_samples 9 --do_eval".split(),
            *"--pad_to_max_length --max_seq_length 16".split(),
        ]
    )
    assert results["eval_samples"] == 9


def test_examples_are_dropped_in_training_alone(script, argv, glue_dir, tmp_path):
    words = [*argv, "--task_name", "sst2", "--data_dir", str(glue_dir), "--do_eval", "--do_predict"]
    words += ["--per_device_eval_batch_size", "4"]  # of 9 examples
    whole = script(words)
    words += ["--dataloader_drop_last"]
    assert script(words)["eval_loss"] == whole["eval_loss"]
    assert len((tmp_path / "out" / "submission" / "SST-2.tsv").read_text().splitlines()) == 1 + 9
    batch = ["--per_device_train_batch_size", "5"]
    script([*words, *batch, "--do_train", "--output_dir", str(tmp_path / "trained")])
    assert read_json(tmp_path / "trained" / "trainer_state.json")["global_step"] == 12 // 5


def test_data_is_tokenized_once(script, argv, tmp_path, monkeypatch):
    """The second run reads what the first one left, from the disk."""
    from transformers import PreTrainedTokenizerFast

    words = [*argv, "--task_name", "sst2", "--use_sample", "--do_eval", "--max_eval_samples", "9"]
    words += ["--cache_dir", str(tmp_path / "cache")]
    first = script(words)
    [kept] = (tmp_path / "cache" / "dwmgrad-glue").glob("*.arrow")
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", None)
    assert script(words)["eval_loss"] == first["eval_loss"]
    with pytest.raises(TypeError):
        script([*words, "--max_seq_length", "16"])
    assert kept.exists()


def test_the_saved_tokenizer_does_not_depend_on_what_was_tokenized(script, argv, tmp_path):
    words = [*argv, *"--task_name sst2 --use_sample --do_train --max_steps 1".split()]
    words += ["--max_train_samples", "9", "--cache_dir", str(tmp_path / "cache")]
    saved = []
    for name in ("first", "second"):  # which has the tokens on the disk
        script([*words, "--output_dir", str(tmp_path / name)])
        saved.append((tmp_path / name / "tokenizer.json").read_text())
    assert saved[0] == saved[1] and '"truncation": null' in saved[0]


def test_without_a_place_for_tokenized_data(script, argv, tmp_path, caplog):
    words = ["--task_name", "sst2", "--use_sample", "--do_eval", "--max_eval_samples", "9"]
    assert script([*argv, *words, "--cache_dir", "/dev/null/x"])["eval_samples"] == 9
    assert re.search("--cache_dir: /dev/null/x/dwmgrad-glue/.*Not a directory", caplog.text)
    caplog.clear()
    more = ["--do_train", "--max_steps", "1", "--output_dir", str(tmp_path / "trained")]
    script([*argv, *words, *more, "--cache_dir", "/dev/null/x"])
    assert caplog.text.count("--cache_dir: ") == 1, "once, not for each split"
    words += ["--cache_dir", str(tmp_path / "cache")]
    script([*argv, *words])
    [kept] = (tmp_path / "cache" / "dwmgrad-glue").glob("*.arrow")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert script([*argv, *words])["eval_samples"] == 9
    assert f"--cache_dir: {kept} cannot be used" in caplog.text
