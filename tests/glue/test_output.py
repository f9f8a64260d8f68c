"""The output folder: what is gone on with, what is refused, what is drawn."""

from __future__ import annotations

import json

import pytest

from dwmgrad.glue.checkpoints import checkpoints
from dwmgrad.glue.errors import UsageError

from .conftest import load_script, read_json


@pytest.fixture
def words(argv):
    return [
        *argv, "--task_name", "sst2", "--use_sample", "--max_train_samples", "24",
        "--max_eval_samples", "20", "--do_train", "--do_eval", "--save_strategy", "epoch",
    ]  # fmt: skip


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


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path):
    for name, whole in (("checkpoint-5", True), ("checkpoint-10", False), ("checkpoint-x", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({}))
        if whole:
            (tmp_path / name / ".whole").touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5"]


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


def test_a_run_killed_before_its_first_checkpoint_starts_again(script, words, tmp_path):
    out = tmp_path / "out"
    script(words)
    for path in out.iterdir():
        if path.name.startswith("checkpoint-"):
            (path / ".whole").unlink()  # half written, for all that is known
        elif path.name != ".run_arguments.json":
            path.unlink() if path.is_file() else None
    with pytest.raises(UsageError, match="seed 42 there, 1 here"):
        script([*words, "--seed", "1"])
    script(words)
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
