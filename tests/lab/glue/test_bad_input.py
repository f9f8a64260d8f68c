"""What a user can get wrong: one clear error, before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from unittest import mock

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
        (["--task_name", "STS-2", "--use_sample", "--do_eval"], "--task_name STS-2: no such one"),
        (["--use_sample", "--do_eval"], "--task_name is missing"),
        (["--task_name", "sst2", "--use_sample"], "nothing to do"),
        (
            ["--task_name", "rte", "--use_sample", "--do_eval"],
            "the sample is sst2's .*, not rte's validation",
        ),
        (["--task_name", "sst2", "--use_sample", "--do_predict"], "not sst2's test; use"),
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
            ["--task_name", "sst2", "--do_eval", "--model_name_or_path", "{tmp}/none"],
            "--model_name_or_path .*/none: .*no such folder",
        ),
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
        (
            [
                *"--task_name sst2 --use_sample --do_train --optim adamw_torch".split(),
                *"--optim_args preset=finetune".split(),
            ],
            "--optim adamw_torch --optim_args 'preset=finetune': they change nothing .*dwmgrad_",
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
        ["--remove_unused_columns", "false"],
        ["--no-remove-unused-columns"],
        ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "epoch"],
    ],
)
def test_the_bare_loop_says_what_it_cannot_honour(argv, words):
    name = words[0].lstrip("-").removeprefix("no-").replace("-", "_")
    with pytest.raises(UsageError, match=f"cannot honour --.*{name}"):
        load_script("run_glue_no_trainer").main(
            [*argv, "--task_name", "sst2", "--use_sample", "--do_train", "--do_eval", *words]
        )


SAMPLE = "--task_name sst2 --use_sample --do_train --do_eval".split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: must be at least 1"),
        ("--per_device_eval_batch_size -1", "--per_device_eval_batch_size -1: must be at least 1"),
        ("--gradient_accumulation_steps -2", "--gradient_accumulation_steps -2: must be at least"),
        ("--num_train_epochs 0", "--num_train_epochs 0.0: must be above 0"),
        ("--num_train_epochs nan", "--num_train_epochs nan: must be above 0"),
        ("--max_steps 0", "--max_steps 0: must be at least 1"),
        (
            "--warmup_ratio 2",
            "warmup_ratio.*(2.0: must be at least 0|must lie)",
        ),
        ("--warmup_ratio nan", "--warmup_ratio nan: must be"),
        ("--max_grad_norm -1", "--max_grad_norm -1.0: must be at least 0"),
        ("--max_grad_norm nan", "--max_grad_norm nan: must be at least 0"),
        ("--optim adamw_torch --optim_args= --learning_rate inf", "--learning_rate inf: must be"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers -1: must be at least 0"),
        ("--seed -1", "--seed -1: must be at least 0 and at most"),
        ("--lora_r 2 --lora_alpha 0", "--lora_alpha 0: must be above 0"),
        ("--max_seq_length 0", "--max_seq_length 0: must be at least 1"),
        ("--max_seq_length 2", "--max_seq_length 2: the tokenizer adds 2 .* give 3 or more"),
        (
            "--max_train_samples 3 --dataloader_drop_last",
            "--dataloader_drop_last: drops all 3 .* has 4; .* --per_device_train_batch_size 4",
        ),
        ('--lr_scheduler_kwargs {"foo":1}', "--lr_scheduler_type linear .*'foo'"),
    ],
)
def test_numbers_and_names_that_no_training_can_use(script, argv, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        script([*argv, *SAMPLE, *words.split()])
    assert not list((tmp_path / "out").glob("*")), "nothing was begun"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--accelerator_config nope.json", "No such file or directory: 'nope.json'"),
        ('--accelerator_config {"foo":1}', "unexpected keyword argument 'foo'"),
        ("--fsdp full_shard --fsdp_config nope.json", "No such file or directory: 'nope.json'"),
        pytest.param(  # accelerate 1.2 asks for a GPU before that
            "--fsdp full_shard", "fsdp only works in distributed", marks=pytest.mark.newest
        ),
        ("--torch_compile_backend nope", "'NOPE' is not a valid DynamoBackend"),
        ("--save_strategy best", "metric_for_best_model. must be provided"),
        ("--dataloader_num_workers 1 --dataloader_prefetch_factor 0", "factor 0: must be at lea"),
        ("--report_to wandbb", "--report_to wandbb: wandbb is not supported"),
        ("--batch_eval_metrics true", "--batch_eval_metrics: .* leave it out"),
        ("--prediction_loss_only true", "--prediction_loss_only: .* leave it out"),
        ("--eval_do_concat_batches false", "--eval_do_concat_batches: .* leave it out"),
        ("--metric_for_best_model acuracy", "--metric_for_best_model acuracy: .*loss, accuracy"),
    ],
)
def test_what_the_trainer_alone_refuses(run, words, message, tmp_path):
    # transformers writes into the environment
    with mock.patch.dict(os.environ), pytest.raises(UsageError, match=message) as caught:
        run(*SAMPLE, *words.split())
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("words", ["--report_to wandb", "--use_liger_kernel"])
def test_a_package_that_the_trainer_misses(run, words, tmp_path):
    name = words.split()[-1].removeprefix("--use_").removesuffix("_kernel")
    if importlib.util.find_spec(f"{name}_kernel" if name == "liger" else name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UsageError, match=f"pip install {name}"):
        run(*SAMPLE, *words.split())
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_without_a_tokenizer(script, argv, pretrained, tiny, tmp_path):
    """transformers makes one that knows no word of it."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((pretrained / name).read_bytes())
    with pytest.raises(
        UsageError, match=f"--model_name_or_path {bare}: (.*--tokenizer_name|cannot be loaded)"
    ):
        script([*argv, *SAMPLE, "--model_name_or_path", str(bare)])
    script([*argv, *SAMPLE, "--model_name_or_path", str(bare), "--tokenizer_name", str(tiny)])


def test_a_tokenizer_that_cannot_pad_and_one_with_too_many_tokens(script, argv, tiny, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([*(f"word{number}" for number in range(3000)), " the"])
    tokenizer.save_pretrained(tmp_path / "more")
    assert tokenizer.encode("in the house")[2] >= 16_000
    with pytest.raises(UsageError, match="--tokenizer_name .*more: gives .* token .* embeddings"):
        script([*argv, *SAMPLE, "--tokenizer_name", str(tmp_path / "more")])
    none = shutil.copytree(tiny, tmp_path / "none")
    (none / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UsageError, match="--tokenizer_name .*none: .*pad_token"):
        script([*argv, *SAMPLE, "--tokenizer_name", str(tmp_path / "none")])


@pytest.mark.parametrize(
    "words",
    [
        '--learning_rate 1e-2 --lr_scheduler_type polynomial --lr_scheduler_kwargs {"lr_end":1e-3}',
        "--save_strategy no --save_steps 0 --eval_strategy no --eval_steps 0",
        "--logging_strategy epoch --logging_steps 0",
        "--save_strategy steps --save_steps 1 --save_total_limit 0",
    ],
)
def test_numbers_that_mean_something_or_are_not_used_are_taken(script, argv, words):
    script([*argv, *SAMPLE, *"--max_train_samples 8 --max_eval_samples 8".split(), *words.split()])


def test_padding_without_an_embedding(script, argv, tiny, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([f"word{number}" for number in range(3000)])
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(tmp_path / "padded")
    with pytest.raises(UsageError, match="gives the padding token .* embeddings"):
        script([*argv, *SAMPLE, "--tokenizer_name", str(tmp_path / "padded")])


def test_a_model_without_an_embedding_of_tokens(run, tmp_path):
    """CANINE hashes characters."""
    from transformers import CanineConfig, CanineTokenizer

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CanineConfig(intermediate_size=16, num_hash_buckets=64, **small).save_pretrained(tmp_path / "c")
    CanineTokenizer().save_pretrained(tmp_path / "c")
    few = "--max_train_samples 8 --max_eval_samples 8 --max_seq_length 64 --pad_to_max_length"
    run(*SAMPLE, *few.split(), "--config_name", tmp_path / "c")


def test_weights_that_were_half_copied(script, argv, pretrained, tmp_path):
    half = shutil.copytree(pretrained, tmp_path / "half")
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(UsageError, match=f"--model_name_or_path {half}: cannot be loaded"):
        script([*argv, *SAMPLE, "--model_name_or_path", str(half)])


def test_a_text_column_called_label(script, argv, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("label,stars\ngood,1\nbad,0\n")
    words = ["--train_file", str(path), "--label_column_name", "stars", "--do_train"]
    with pytest.raises(UsageError, match="--text_column_name label: .*rename"):
        script([*argv, *words])


def test_a_correlation_needs_two_examples(script, argv, glue_dir):
    words = ["--task_name", "stsb", "--data_dir", str(glue_dir), "--do_eval"]
    with pytest.raises(UsageError, match="one example, and a correlation needs two"):
        script([*argv, *words, "--max_eval_samples", "1"])


def test_sharded_weights_are_not_merged(run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    words = "--task_name sst2 --use_sample --do_eval --lora_r 2 --merge_adapter".split()
    with pytest.raises(UsageError, match="--merge_adapter: the weights are sharded; leave it out"):
        run(*words)


def test_a_model_that_needs_a_package(run, argv, tmp_path):
    source = Path(argv[argv.index("--config_name") + 1])
    shutil.copytree(source if source.is_dir() else source.parent, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model" / "mine.py").write_text("import no_such_package\n")
    words = ["--task_name", "sst2", "--use_sample", "--do_eval", "--trust_remote_code"]
    with pytest.raises(UsageError, match="--config_name .*cannot be loaded: .*no_such_package"):
        run(*words, "--config_name", tmp_path / "model")
