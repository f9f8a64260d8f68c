"""One's own data: files and data sets, labels found, stored and used again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue.errors import UsageError

from .conftest import read_json

NAMES = ("bad", "Good", "so-so")


def write(path: Path, rows: dict[str, list]) -> Path:
    lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    elif path.suffix in (".jsonl", ".json"):
        texts = map(json.dumps, lines)
        path.write_text("\n".join(texts) if path.suffix == ".jsonl" else f"[{','.join(texts)}]")
    else:
        with path.open("w", newline="") as file:
            table = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            table.writerows([list(rows), *(line.values() for line in lines)])
    return path


@pytest.fixture
def rows(sentences) -> dict[str, list]:
    """A text that says its label, so that training has something to find."""
    labels = [NAMES[i % 3] for i in range(48)]
    texts = [f"{label} " * 5 + text[:20] for label, text in zip(labels, sentences, strict=False)]
    return {"id": list(range(48)), "review": texts, "stars": labels}


COLUMNS = ["--text_column_name", "review", "--label_column_name", "stars"]


def predictions(folder: Path) -> list[str]:
    with (folder / "predictions" / "test.tsv").open(newline="") as file:
        header, *lines = csv.reader(file, delimiter="\t")
    assert header == ["index", "prediction"]
    assert [int(index) for index, _ in lines] == list(range(len(lines)))
    return [value for _, value in lines]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_classes(script, argv, rows, tmp_path, suffix, capsys):
    path, out = str(write(tmp_path / f"mine{suffix}", rows)), tmp_path / "out"
    words = [*argv, *COLUMNS, "--do_eval", "--validation_file", path, "--num_train_epochs", "16"]
    words += ["--learning_rate", "2e-2"]
    results = script([*words, "--do_train", "--train_file", path])
    assert results["eval_accuracy"] == results["eval_f1_macro"] == 1.0
    assert "eval_combined_score" not in results
    assert "Labels: Good, bad, so-so" in capsys.readouterr().out
    assert read_json(out / "config.json")["id2label"] == {"0": "Good", "1": "bad", "2": "so-so"}

    # later: the saved model, and a file that has no labels
    unknown = write(tmp_path / f"new{suffix}", {"review": rows["review"][:7]})
    saved = ["--model_name_or_path", str(out), "--config_name", str(out)]
    again = ["--output_dir", str(tmp_path / "again"), "--do_predict", "--test_file", str(unknown)]
    assert script([*words, *saved, *again])["eval_accuracy"] == 1.0
    assert predictions(tmp_path / "again") == rows["stars"][:7]


def test_pairs_and_scores(script, argv, sentences, tmp_path):
    first, second = sentences[:24], sentences[24:48]
    rows = {"one": first, "two": second, "label": [i * 0.5 - 40 for i in range(24)]}
    path, out = str(write(tmp_path / "mine.csv", rows)), tmp_path / "out"
    words = [*argv, "--text_column_name", "one", "two", "--validation_file", path, "--do_eval"]
    words += ["--test_file", path, "--do_predict"]
    results = script([*words, "--do_train", "--train_file", path, "--learning_rate", "0.1"])
    assert {"eval_pearson", "eval_spearmanr", "eval_loss"} <= results.keys()
    config = read_json(out / "config.json")
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    assert all(float(value) < -1 for value in predictions(out))  # nothing is cut to 0 .. 5
    before = predictions(out)
    saved = ["--model_name_or_path", str(out), "--config_name", str(out)]
    later = script([*words, *saved, "--output_dir", str(tmp_path / "again")])
    assert later["eval_loss"] == pytest.approx(results["eval_loss"])
    assert predictions(tmp_path / "again") == before


@pytest.mark.parametrize(
    ("labels", "words", "found"),
    [
        ([10, 2, 10, 2], [], ["2", "10"]),
        (["10", "2", "-1", "2"], [], ["-1", "2", "10"]),
        ([1.0, 2.0, 1.0, 2.0], [], None),
        ([1.0, 2.0, 1.0, 2.0], ["--do_regression", "false"], ["1.0", "2.0"]),
        ([1, 2, 3, 4], ["--do_regression", "true"], None),
        ([True, False, True, True], [], ["False", "True"]),
        (["1.5", "n/a", "2", "n/a"], [], ["1.5", "2", "n/a"]),
    ],
)
def test_what_labels_are_taken_for(script, argv, sentences, tmp_path, labels, words, found):
    path = write(tmp_path / "mine.jsonl", {"text": sentences[:4], "label": labels})
    script([*argv, "--do_train", "--train_file", str(path), *words])
    config = read_json(tmp_path / "out" / "config.json")
    if found is None:
        assert config["problem_type"] == "regression"
    else:
        assert list(config["id2label"].values()) == found


def test_a_data_set(script, argv, rows, tmp_path):
    """What datasets.load_dataset reads, with named classes; its parts as splits."""
    features = datasets.Features(
        {"review": datasets.Value("string"), "stars": datasets.ClassLabel(names=list(NAMES))}
    )
    data = {"review": rows["review"], "stars": rows["stars"]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "set/train.parquet")
    words = [*argv, *COLUMNS, "--dataset_name", str(tmp_path / "set")]
    words += ["--cache_dir", str(tmp_path / "cache")]
    parts = ["--train_split_name", "train[:75%]", "--validation_split_name", "train[75%:]"]
    results = script([*words, *parts, "--do_train", "--do_eval"])
    assert (results["train_samples"], results["eval_samples"]) == (36, 12)
    labels = read_json(tmp_path / "out" / "config.json")["id2label"].values()
    assert list(labels) == ["Good", "bad", "so-so"]
    with pytest.raises(UsageError, match="cannot load .*validation.*Unknown split.*'train'"):
        script([*words, "--do_eval", "--output_dir", str(tmp_path / "other")])


def test_an_adapter_keeps_the_labels(script, argv, rows, pretrained, tmp_path):
    path, out = str(write(tmp_path / "mine.csv", rows)), tmp_path / "out"
    base = ["--model_name_or_path", str(pretrained), "--ignore_mismatched_sizes"]
    words = [word for word in argv if word not in ("--config_name", argv[1])] + base + COLUMNS
    words += ["--validation_file", path, "--do_eval"]
    first = script([*words, "--do_train", "--train_file", path, "--lora_r", "2"])
    later = ["--adapter_name_or_path", str(out), "--output_dir", str(tmp_path / "again")]
    second = script([*words, *later, "--do_predict", "--test_file", path])
    assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)
    assert set(predictions(tmp_path / "again")) <= set(NAMES)


def test_trained_on_with_the_models_own_order(script, argv, rows, pretrained, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(pretrained, num_labels=3)
    config.id2label = dict(enumerate(("so-so", "bad", "Good")))
    config.label2id = {name: number for number, name in config.id2label.items()}
    model = AutoModelForSequenceClassification.from_config(config)
    model.classifier.out_proj.bias.data = model.classifier.out_proj.bias.new_tensor([0, 9.0, 0])
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(tmp_path / "model")
    path = str(write(tmp_path / "mine.csv", rows))
    words = [*argv, *COLUMNS, "--model_name_or_path", str(tmp_path / "model")]
    words += ["--config_name", str(tmp_path / "model"), "--learning_rate", "0"]
    words += ["--do_train", "--train_file", path, "--do_predict", "--test_file", path]
    script(words)
    assert set(predictions(tmp_path / "out")) == {"bad"}
    assert read_json(tmp_path / "out" / "config.json")["id2label"]["2"] == "Good"


GOOD = {"text": ["a", "b", "c"], "label": ["x", "y", "x"]}


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ({**GOOD, "id": [1, 2, 3]}, GOOD, r"--text_column_name is missing: .* has text, label, id"),
        (
            {"text": ["a"], "class": ["x"]},
            GOOD,
            "no column label; give --label_column_name: .text., .class.",
        ),
        ({"text;label": ["a;x"]}, GOOD, "its one column is 'text;label'; are there commas"),
        (GOOD, {"text": ["a"]}, "needs the columns text, label; missing label"),
        (GOOD, {"body": ["a"], "label": ["x"]}, "missing text; found body, label"),
        (GOOD, {"text": ["a"], "label": ["z"]}, "label 'z' in row 0 is unknown; the labels are x"),
        (GOOD, {"text": ["a"], "label": [""]}, "label '' in row 0 is missing"),
        ({**GOOD, "label": ["x", "", "y"]}, GOOD, "label in row 1 is missing"),
        ({**GOOD, "label": ["x", "x", "x"]}, GOOD, "label is x in every row: give two classes"),
        ({**GOOD, "text": ["a", " ", "c"]}, GOOD, "text in row 1 is ' ', expected text"),
        ({"text": [], "label": []}, GOOD, "train.csv: label has no row"),
        (GOOD, {"text": [], "label": []}, "validation.csv: no examples"),
        ({**GOOD, "label": [0.5, 1, 2]}, {"text": ["a"], "label": ["inf"]}, "'inf'.* not a number"),
    ],
)
def test_bad_files(script, argv, tmp_path, train, validation, message):
    words = [*argv, "--do_train", "--train_file", str(write(tmp_path / "train.csv", train))]
    words += ["--do_eval", "--validation_file", str(write(tmp_path / "validation.csv", validation))]
    with pytest.raises(UsageError, match=message):
        script(words)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--do_train", "--validation_file", "{csv}"], "--do_train needs --train_file: .parquet"),
        (["--do_eval", "--train_file", "{csv}"], "--do_eval needs --validation_file"),
        (["--do_predict", "--train_file", "{csv}"], "--do_predict needs --test_file"),
        (["--do_train", "--train_file", "mine.txt"], "mine.txt: its name must end in .parquet"),
        (["--do_train", "--train_file", "none.csv"], "cannot read none.csv"),
        (["--do_train", "--train_file", ""], "--train_file '': give a value"),
        (["--do_train", "--train_file", "{csv}", "--task_name", "sst2"], "--task_name sst2: and"),
        (
            ["--do_train", "--train_file", "{csv}", "--dataset_name", "x"],
            "--train_file .* and --da",
        ),
        (
            ["--do_train", "--train_file", "{csv}", "--train_split_name", "x"],
            "needs --dataset_name",
        ),
        (["--do_train", "--dataset_name", "no/such"], "cannot load no/such .*use --train_file"),
        (["--do_eval", "--task_name", "sst2", "--text_column_name", "x"], "needs --train_file"),
        (
            ["--do_train", "--train_file", "{csv}", "--text_column_name", "a", "b", "c"],
            "--text_column_name a b c: give one or two",
        ),
        (
            ["--do_train", "--train_file", "{csv}", "--text_column_name", "label"],
            "--text_column_name label: .* not --label_column_name label",
        ),
        (["--do_eval", "--validation_file", "{csv}"], "label 'x' .* unknown; the labels are LABEL"),
        (
            ["--do_eval", "--validation_file", "{csv}", "--do_regression", "true"],
            "--do_regression True: the model was trained for LABEL_0, LABEL_1",
        ),
    ],
)
def test_bad_words(script, argv, tmp_path, words, message):
    path = str(write(tmp_path / "mine.csv", GOOD))
    with pytest.raises(UsageError, match=message):
        script([*argv, *(word.replace("{csv}", path) for word in words)])
