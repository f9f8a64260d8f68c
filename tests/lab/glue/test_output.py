"""The output folder: what is gone on with, what is refused, what is drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from glue.checkpoints import begin, checkpoints, forget_later, lacks
from glue.errors import UsageError

from .conftest import load_script, read_json


@pytest.fixture
def words(argv):
    return [
        *argv,
        *"--task_name sst2 --use_sample --max_train_samples 24 --max_eval_samples 20".split(),
        *"--do_train --do_eval --save_strategy epoch".split(),
    ]


def as_if_killed(out: Path) -> None:
    """Just before the end: without its mark, and the figures that come before it."""
    (out / "train_results.json").unlink(missing_ok=True)
    record = read_json(out / ".run_arguments.json")
    del record["ended_after_steps"]
    (out / ".run_arguments.json").write_text(json.dumps(record))


def test_another_run_is_not_gone_on_with_by_itself(script, words):
    script(words)
    with pytest.raises(UsageError, match="other arguments .learning_rate 0.001 there, 0.01 here"):
        script([*words, "--learning_rate", "1e-2"])
    with pytest.raises(UsageError, match="optim dwmgrad there, adamw_torch here"):
        script([*words, "--optim", "adamw_torch", "--optim_args", ""])
    script([*words, "--learning_rate", "1e-2", "--overwrite_output_dir"])


def test_a_finished_run_is_left_as_it_is(script, words, tmp_path, capsys):
    first = script(words)
    again = script(words)
    assert "run's end; --overwrite_output_dir" in capsys.readouterr().out
    assert again["eval_accuracy"] == first["eval_accuracy"]
    assert "train_loss" not in again
    results = read_json(tmp_path / "out" / "train_results.json")
    assert results["train_loss"] == first["train_loss"]


def test_the_scripts_do_not_read_each_others_checkpoints(words, tmp_path):
    load_script("run_glue_no_trainer").main(words)
    with pytest.raises(UsageError, match="run_glue_no_trainer.py there, run_glue.py here"):
        load_script("run_glue").main(words)
    [checkpoint] = checkpoints(tmp_path / "out")
    words += ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "b")]
    with pytest.raises(UsageError, match="is a checkpoint of run_glue_no_trainer.py"):
        load_script("run_glue").main(words)


FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    ".whole",
)


def checkpoint(folder: Path, *without: str) -> Path:
    """A checkpoint as far as names go."""
    folder.mkdir()
    for name in set(FILES) - {*without}:
        if name == "rng_state.pth":
            torch.save({}, folder / name)
        else:
            (folder / name).write_text('{"global_step": 5}')
    return folder


@pytest.mark.parametrize("name", ["rng_state.pth", "rng_state_1.pth", "random_states_0.pkl"])
def test_random_states_that_were_half_written_do_not_count(tmp_path, name):
    """Accelerate logs that it cannot read them, and the run would end otherwise."""
    whole, half = checkpoint(tmp_path / "checkpoint-5"), checkpoint(tmp_path / "checkpoint-6")
    torch.save(torch.get_rng_state(), half / name)
    assert checkpoints(tmp_path) == [whole, half]
    (half / name).write_bytes((half / name).read_bytes()[:3000])
    assert checkpoints(tmp_path) == [whole]
    assert lacks(half) == [f"the end of {name}"]


def test_only_a_finished_checkpoint_with_all_that_resuming_needs_counts(tmp_path):
    good = checkpoint(tmp_path / "checkpoint-5")
    checkpoint(tmp_path / "checkpoint-x")
    for number, name in enumerate(FILES, 10):
        checkpoint(tmp_path / f"checkpoint-{number}", name)
    (checkpoint(tmp_path / "checkpoint-20") / "model.safetensors").write_text("")
    shards = checkpoint(tmp_path / "checkpoint-21", "model.safetensors")
    (shards / "model-00001-of-00002.safetensors").write_text("half")
    assert checkpoints(tmp_path) == [good]
    (shards / "model-00002-of-00002.safetensors").write_text("half")
    assert checkpoints(tmp_path) == [good, shards]


def test_odd_names_are_no_checkpoints(tmp_path):
    good = checkpoint(tmp_path / "checkpoint-5")
    for name in ("abc", "1.5", "00007", "-8", "9 ", "", "\u0669"):
        checkpoint(tmp_path / f"checkpoint-{name}")
    (tmp_path / "checkpoint-10").write_text("a file")
    (tmp_path / "checkpoint-11").symlink_to(tmp_path / "nowhere")
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / ".whole").mkdir()
    assert checkpoints(tmp_path) == [good]


def test_of_a_linked_checkpoint_only_the_link_goes(tmp_path):
    (tmp_path / "here").mkdir()
    elsewhere = checkpoint(tmp_path / "checkpoint-5")
    link = tmp_path / "here" / "checkpoint-5"
    link.symlink_to(elsewhere)
    assert checkpoints(tmp_path / "here") == [link]
    forget_later(tmp_path / "here", 0)
    assert not link.exists() and checkpoints(tmp_path) == [elsewhere]
    link.symlink_to(elsewhere)
    (tmp_path / "here" / "checkpoint-6").write_text("notes")
    for name in ("checkpoint-5", "checkpoint-6"):
        begin(tmp_path / "here" / name, writes=True)
        assert not (tmp_path / "here" / name).exists()
    assert checkpoints(tmp_path) == [elsewhere] and (elsewhere / "optimizer.pt").exists()
    assert (tmp_path / "here" / "checkpoint-6.file").read_text() == "notes"


def test_a_run_too_short_for_a_log_still_ends_with_its_table(script, words, capsys):
    words = [*words, "--plot", "true", "--logging_steps", "500"]
    script(words)
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "logged no loss" in shown


def test_flags_that_switch_off_and_the_no_of_yaml(script, words, tmp_path):
    config = tmp_path / "more.yaml"
    config.write_text("save_strategy: no\n")
    dropped = ("--save_strategy", "no", "epoch", "--plot", "false")
    words = [word for word in words if word not in dropped]
    script([str(config), *words, "--no_plot"])
    assert not (tmp_path / "out" / "window.png").exists()
    assert checkpoints(tmp_path / "out") == []


def test_a_run_killed_before_its_first_checkpoint_starts_again(script, words, tmp_path, capsys):
    out = tmp_path / "out"
    script(words)
    for path in out.iterdir():
        if path.name.startswith("checkpoint-"):
            (path / ".whole").unlink()  # half written, for all that is known
        elif path.name != ".run_arguments.json":
            path.unlink() if path.is_file() else None
    as_if_killed(out)
    with pytest.raises(UsageError, match="seed 42 there, 1 here"):
        script([*words, "--seed", "1"])
    capsys.readouterr()
    script(words)
    assert "lacks .whole, the mark of one that this script has" in capsys.readouterr().out
    assert (out / "all_results.json").is_file() and len(checkpoints(out)) == 1


def test_checkpoints_of_an_overwritten_run_no_longer_count(script, words, tmp_path):
    out = tmp_path / "out"
    script(words)
    [last] = checkpoints(out)
    last = last.rename(out / "checkpoint-999")  # of a longer run, once
    script([*words, "--overwrite_output_dir"])
    assert last not in checkpoints(out) and len(checkpoints(out)) == 1


def test_a_refused_command_changes_nothing(words, tmp_path):
    out = tmp_path / "out"
    words = [*words, "--num_train_epochs", "2"]
    load_script("run_glue_no_trainer").main(words)
    before = [path.name for path in checkpoints(out)], (out / ".run_arguments.json").read_text()
    assert len(before[0]) == 2
    first = str(checkpoints(out)[0])
    with pytest.raises(UsageError, match="is a checkpoint of run_glue_no_trainer.py"):
        load_script("run_glue").main([*words, "--resume_from_checkpoint", first])
    (out / before[0][0] / "optimizer.bin").write_bytes(b"spoilt")
    with pytest.raises(Exception):  # noqa: B017 - torch's, which differs from version to version
        load_script("run_glue_no_trainer").main([*words, "--resume_from_checkpoint", first])
    after = [path.name for path in checkpoints(out)], (out / ".run_arguments.json").read_text()
    assert after == before


@pytest.mark.parametrize(
    "extra",
    [
        ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "1"],
        ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "3"],
        ["--num_train_epochs", "1.5", "--save_strategy", "epoch"],
        ["--max_steps", "5", "--gradient_accumulation_steps", "3", "--save_strategy", "steps"],
    ],
)
def test_a_run_that_ended_inside_an_epoch_trains_nothing_more(
    script, words, extra, tmp_path, capsys
):
    out = tmp_path / "out"
    script([*words, *extra])
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    results = read_json(out / "all_results.json")
    script([*words, *extra])
    assert "run's end; --overwrite_output_dir" in capsys.readouterr().out
    changed = {p.name for p in out.rglob("*") if p.is_file() and p.read_bytes() != kept.get(p)}
    assert changed <= {"all_results.json", "eval_results.json"}  # evaluated again
    again = read_json(out / "all_results.json")
    assert again.keys() == results.keys() and again["train_loss"] == results["train_loss"]
    assert again["eval_loss"] == results["eval_loss"]


def test_a_run_killed_before_its_figures_ends_once(script, words, tmp_path):
    """They are lost; what is left of the run's end is not done over and over."""
    out, words = tmp_path / "out", [*words, "--max_steps", "4"]
    script(words)
    as_if_killed(out)
    script(words)
    written = (out / "model.safetensors").stat().st_mtime_ns
    script(words)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(out / "checkpoint-4")
    with pytest.raises(UsageError, match="its run has ended and without a checkpoint"):
        script(words)


def test_no_resuming_does_not_lose_a_checkpoint(script, words, tmp_path):
    words = [*words, "--resume_from_checkpoint", "false"]
    script(words)
    with pytest.raises(UsageError, match="false: .*checkpoint-6 would be lost; .*afresh"):
        script(words)


def test_a_run_killed_at_its_very_end_saves_what_is_missing(script, words, tmp_path, capsys):
    out, words = tmp_path / "out", [*words, "--max_steps", "4"]
    script(words)
    model = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    (out / "trainer_state.json").unlink()
    script(words)
    assert "run's end; --overwrite_output_dir" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == model
    assert read_json(out / "trainer_state.json")["global_step"] == 4


def test_the_best_weights_stay_the_model(words, tmp_path):
    main, out = load_script("run_glue").main, tmp_path / "out"
    words = [
        *words,
        *"--load_best_model_at_end --eval_strategy steps --eval_steps 1".split(),
        *"--save_strategy steps --save_steps 1 --max_steps 4 --metric_for_best_model loss".split(),
        *"--greater_is_better true".split(),
    ]
    first = main(words)
    model = (out / "model.safetensors").read_bytes()
    as_if_killed(out)  # the model is saved again
    assert main(words)["eval_loss"] == first["eval_loss"]
    assert (out / "model.safetensors").read_bytes() == model
    with pytest.raises(UsageError, match="load_best_model_at_end True there, False here"):
        main([word for word in words if word != "--load_best_model_at_end"])


@pytest.mark.parametrize("lora", [[], ["--lora_r", "2"]])
def test_a_finished_run_without_checkpoints_is_left_alone(
    script, words, pretrained, tmp_path, lora
):
    words = [*words, "--save_strategy", "no", "--model_name_or_path", str(pretrained)]
    script([*words, *lora])
    [model] = (tmp_path / "out").glob("*model.safetensors")
    before = model.stat().st_mtime_ns
    with pytest.raises(UsageError, match="its run has ended and without a checkpoint") as caught:
        script([*words, *lora])
    assert model.stat().st_mtime_ns == before
    remedy = str(caught.value).split(", or ")[-1].partition(" to evaluate its weights")[0]
    kept = read_json(tmp_path / "out" / "all_results.json")
    again = script([*words, *remedy.split()])
    assert again["eval_loss"] == pytest.approx(kept["eval_loss"], rel=1e-5)


ANOTHER = [
    (["--max_train_samples", "20"], "max_train_samples 24 there, 20 here"),
    (["--max_seq_length", "16"], "max_seq_length 128 there, 16 here"),
    (["--pad_to_max_length"], "pad_to_max_length False there, True here"),
    (["--lora_r", "2"], "lora_r None there, 2 here"),
    (["--bf16"], "mixed_precision no there, bf16 here"),
    (["--warmup_steps", "3"], "warmup_steps"),
    (["--max_grad_norm", "2"], "max_grad_norm 1.0 there, 2.0 here"),
    (["--per_device_train_batch_size", "8"], "per_device_train_batch_size 4 there, 8 here"),
    (["--adam_epsilon", "1e-6"], "adam_epsilon"),
    (["--data_seed", "3"], "data_seed None there, 3 here"),
]


def test_what_decides_the_weights_is_the_same_in_every_run(
    script, words, tmp_path, tiny, pretrained, monkeypatch
):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    script([*words, "--max_steps", "3"])
    kept = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    other = shutil.copytree(tiny, tmp_path / "other")
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.5}))
    more = [
        (["--config_name", str(other)], "config_name tiny0 .content .* there, other .content"),
        (["--model_name_or_path", str(pretrained)], "model_name_or_path None there, pretrained0"),
    ]
    for extra, message in [*ANOTHER, *more]:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        with pytest.raises(UsageError, match=f"other arguments .*{message}.*--overwrite_output"):
            script([*words, "--max_steps", "3", *extra])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    after = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert after == kept
    script(
        [
            *words,
            *"--max_steps 3 --logging_steps 2 --save_total_limit 3 --max_eval_samples 8".split(),
            *"--eval_strategy epoch --config_name".split(),
            str(shutil.copytree(tiny, tmp_path / "tiny0")),
        ]
    )


def test_other_examples_are_noticed_and_other_places_are_not(script, argv, glue_dir, tmp_path):
    mine = shutil.copytree(glue_dir, tmp_path / "mine")
    words = [*argv, "--do_train", "--save_strategy", "steps", "--save_steps", "1"]

    def again(folder: Path, task: str = "rte") -> None:
        script([*words, "--data_dir", str(folder), "--task_name", task])

    again(mine)
    again(shutil.move(mine, tmp_path / "moved"), "RTE")
    with pytest.raises(UsageError, match="task_name rte there, mrpc here"):
        again(tmp_path / "moved", "mrpc")
    with pytest.raises(UsageError, match="use_sample False there, True here; data_dir given"):
        script([*words, "--use_sample", "--task_name", "sst2"])
    table = pq.read_table(tmp_path / "moved" / "rte" / "train.parquet").to_pydict()
    table["label"][3] = 1 - table["label"][3]
    pq.write_table(pa.table(table), tmp_path / "moved" / "rte" / "train.parquet")
    with pytest.raises(UsageError, match="training_data 12 examples .content .* there, 12 exa"):
        again(tmp_path / "moved")


def test_weights_alone_are_not_gone_on_from(script, words, tmp_path, capsys, caplog):
    if script.name == "run_glue_no_trainer":
        with pytest.raises(UsageError, match="cannot honour --save_only_model"):
            script([*words, "--save_only_model"])
        return
    out, words = tmp_path / "out", [*words, "--save_strategy", "steps", "--save_steps", "1"]
    script([*words, "--save_only_model", "--save_total_limit", "2"])
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    assert "no run can go on from it, as it lacks the optimizer's state" in caplog.text
    assert checkpoints(out) == []
    with pytest.raises(UsageError, match="checkpoint-6.*lacks the optimizer's state"):
        script([*words, "--resume_from_checkpoint", str(out / "checkpoint-6")])
    as_if_killed(out)
    model = (out / "model.safetensors").read_bytes()
    script(words)
    assert "Not gone on from" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == model and len(checkpoints(out)) == 6


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\udcff", "[" * 100_000])
def test_damaged_records_are_told_in_one_line(script, words, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    data = content.encode("utf-8", "surrogateescape")
    (out / ".run_arguments.json").write_bytes(data)
    with pytest.raises(UsageError, match=r"run_arguments\.json: the record") as caught:
        script(words)
    assert "\n" not in str(caught.value)
    (out / ".run_arguments.json").unlink()
    (checkpoint(out / "checkpoint-5") / "trainer_state.json").write_bytes(data or b" ")
    with pytest.raises(UsageError, match="checkpoint-5: cannot be gone on from .trainer_s") as e:
        script(words)
    assert "\n" not in str(e.value)
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-5"]


def test_a_damaged_record_is_overwritten_where_that_is_asked_for(script, words, tmp_path):
    record = tmp_path / "out" / ".run_arguments.json"
    record.parent.mkdir()
    record.write_text("{")
    script([*words, "--overwrite_output_dir"])
    assert read_json(record)["task_name"] == "sst2"


def test_a_checkpoint_that_cannot_be_loaded_is_told_in_one_line(script, words, tmp_path):
    out, words = tmp_path / "out", [*words, "--max_steps", "3", "--save_strategy", "steps"]
    script(words)
    [last] = checkpoints(out)
    for path in last.glob("optimizer.*"):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UsageError, match="checkpoint-3: cannot be gone on from") as caught:
        script(words)
    assert "\n" not in str(caught.value) and checkpoints(out) == [last]


def test_half_written_results_are_kept_aside(script, words, tmp_path, capsys):
    out, words = tmp_path / "out", [*words, "--max_steps", "3"]
    script(words)
    (out / "all_results.json").write_text('{"eval_accuracy": 0.')
    script(words)
    assert "all_results.json is damaged" in capsys.readouterr().out
    assert "eval_accuracy" in read_json(out / "all_results.json")
    assert (out / "all_results.json.damaged").read_text() == '{"eval_accuracy": 0.'


LORA = ["--lora_r", "2", "--merge_adapter"]


@pytest.mark.parametrize(("first", "second"), [([], []), (LORA, []), ([], LORA[:2])])
def test_an_overwritten_run_leaves_nothing(script, words, glue_dir, tmp_path, first, second):
    """An adapter that stayed would be applied to the new weights, without a word."""
    out, words = tmp_path / "out", [*words, "--data_dir", str(glue_dir), "--use_sample", "false"]
    script([*words, *first, "--do_predict", "--plot", "true"])
    (out / "mine.safetensors").touch()
    words += ["--overwrite_output_dir", "--learning_rate", "1e-2", "--do_eval", "false", *second]
    script(words)
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    words = [word for word in words if word != "--overwrite_output_dir"]
    script([*words, "--output_dir", str(tmp_path / "clean")])
    clean = tmp_path / "clean"
    there = {path.relative_to(clean).as_posix() for path in clean.rglob("*") if path.is_file()}
    assert left == {*there, "mine.safetensors"}
    assert "window.png" not in (out / "README.md").read_text()
    assert "eval_accuracy" not in read_json(out / "all_results.json")


def test_an_overwritten_folder_of_somebody_elses_keeps_its_files(script, words, tmp_path):
    out, far = tmp_path / "out", tmp_path / "far"
    for path in (out, far):
        path.mkdir()
        (path / "pytorch_model.bin").touch()
    (out / "merged").symlink_to(far)
    for _ in range(2):  # the first run leaves its record, the second one goes by it
        assert (out / "pytorch_model.bin").exists() and (far / "pytorch_model.bin").exists()
        script([*words, "--overwrite_output_dir"])
    assert (far / "pytorch_model.bin").exists() and not (out / "pytorch_model.bin").exists()


def test_a_run_from_elsewhere_leaves_nothing_of_another(script, words, tmp_path):
    out = tmp_path / "out"
    script([*words, "--lora_r", "2"])
    script([*words, "--output_dir", str(tmp_path / "other"), "--max_steps", "3"])
    [last] = checkpoints(tmp_path / "other")
    script([*words, "--resume_from_checkpoint", str(last)])
    assert (out / "model.safetensors").exists() and not list(out.glob("adapter_*"))


def test_the_figures_of_two_models_are_not_mixed(script, argv, words, glue_dir, tmp_path, capsys):
    """A run's own model is evaluated in its folder; another, or another task, is not."""
    out = tmp_path / "out"
    script([*words, *LORA])
    kept = (out / "all_results.json").read_bytes()
    other = [*argv, "--do_eval", "--data_dir", str(glue_dir), "--task_name"]
    for task, message in (("sst2", "model None here"), ("stsb", "task_name sst2 there, stsb here")):
        with pytest.raises(UsageError, match=f"{message}.* give another folder") as caught:
            script([*other, task])
        remedy = f"give --adapter_name_or_path {out}"  # of no use on another task
        assert (remedy in str(caught.value)) == (task == "sst2")
    assert (out / "all_results.json").read_bytes() == kept
    capsys.readouterr()
    merged = script([*other, "sst2", "--model_name_or_path", str(out / "merged")])
    assert "sst2\n---" in capsys.readouterr().out, "the table names no optimizer"
    loaded = script([*other, "sst2", "--adapter_name_or_path", str(out)])
    assert merged["eval_accuracy"] == loaded["eval_accuracy"]
    assert "train_loss" in read_json(out / "all_results.json")
    for task in ("stsb", "sst2"):
        script([*other, task, "--output_dir", str(tmp_path / "evaluated")])
    assert "eval_pearson" not in read_json(tmp_path / "evaluated" / "all_results.json")


@pytest.mark.parametrize("below", ["", "merged", "checkpoint-*"])
def test_what_training_starts_from_is_not_removed(script, words, tmp_path, below):
    script([*words, *LORA, "--max_steps", "3"])
    [source] = (tmp_path / "out").glob(below) if below else [tmp_path / "out"]
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    name = "model_name_or_path" if below == "merged" else "adapter_name_or_path"
    with pytest.raises(UsageError, match=f"--{name} .*training replaces what is in --output_dir"):
        script([*words, "--overwrite_output_dir", f"--{name}", str(source)])
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
