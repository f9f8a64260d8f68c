"""A run that stopped at a checkpoint ends where the uninterrupted one does, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from glue.errors import UsageError
from safetensors.torch import load_file

from .conftest import load_script, read_json


@pytest.fixture
def words(argv, tiny):
    return [
        *argv,
        *"--task_name sst2 --use_sample --max_train_samples 40 --max_eval_samples 20".split(),
        *"--num_train_epochs 2 --do_train --do_eval --save_strategy steps --save_steps 7".split(),
        *"--warmup_ratio 0.1".split(),
    ]


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--gradient_accumulation_steps", "2", "--save_steps", "3"],
        ["--group_by_length", "--eval_strategy", "steps", "--eval_steps", "3"],
        ["--optim", "adamw_torch", "--optim_args", ""],
        ["--lora_r", "2"],
    ],
)
def test_exact(script, words, tmp_path, extra):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    first = script([*words, *extra, "--output_dir", str(whole)])
    checkpoints = sorted(whole.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    parted.mkdir()
    shutil.copytree(checkpoints[0], parted / checkpoints[0].name)  # the run died after it
    second = script([*words, *extra, "--output_dir", str(parted)])
    for key in ("eval_loss", "eval_accuracy"):
        assert first[key] == second[key]
    file = "adapter_model.safetensors" if "--lora_r" in extra else "model.safetensors"
    one, two = load_file(whole / file), load_file(parted / file)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    histories = [
        [
            {k: entry[k] for k in ("loss", "step", "learning_rate", "window") if k in entry}
            for entry in read_json(folder / "trainer_state.json")["log_history"]
            if "loss" in entry
        ]
        for folder in (whole, parted)
    ]
    assert histories[0] == histories[1]


def test_the_checkpoint_by_its_path_and_afresh(script, words, tmp_path):
    out = tmp_path / "out"
    script(words)
    first = (out / "model.safetensors").read_bytes()
    script(
        [
            *words,
            "--resume_from_checkpoint",
            str(out / "checkpoint-7"),
            "--output_dir",
            str(tmp_path / "other"),
        ]
    )
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == first
    script([*words, "--overwrite_output_dir"])
    assert (out / "model.safetensors").read_bytes() == first


def test_a_run_that_has_ended_is_given_again(script, words, tmp_path):
    """With progress bars, which have not begun where no step is left."""
    words = [*words, "--disable_tqdm", "false"]
    first = script(words)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    again = script(words)
    assert again["eval_loss"] == first["eval_loss"] and "train_loss" not in again
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_old_checkpoints_go(script, words, tmp_path):
    script([*words, "--save_total_limit", "1"])
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-20"]


def test_a_folder_that_is_no_checkpoint_of_this_loop(words, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="--resume_from_checkpoint .*none"):
        load_script("run_glue_no_trainer").main(
            [*words, "--resume_from_checkpoint", str(tmp_path / "none")]
        )


class Hostile:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, trace) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_a_hostile_checkpoint_is_not_run(script, words, tmp_path):
    if script.name == "run_glue" and torch.__version__ < "2.6":
        pytest.skip("the Trainer of transformers 4.48 unpickles there")
    script(words)
    checkpoint = tmp_path / "out" / "checkpoint-7"
    name = "optimizer.pt" if script.name == "run_glue" else "optimizer.bin"
    torch.save({"state": Hostile(tmp_path / "trace"), "param_groups": []}, checkpoint / name)
    with pytest.raises(Exception, match="[Ww]eights[_ ]only"):
        script([*words, "--resume_from_checkpoint", str(checkpoint)])
    assert not (tmp_path / "trace").exists()


def test_what_an_overwritten_run_left_is_not_resumed(script, words, tmp_path):
    """A full model's checkpoint in the folder where an adapter's is written next."""
    out, clean = tmp_path / "out", tmp_path / "clean"
    script(words)
    script([*words, "--overwrite_output_dir", "--lora_r", "2"])
    script([*words, "--output_dir", str(clean), "--lora_r", "2"])
    names = [{p.name for p in (folder / "checkpoint-7").iterdir()} for folder in (out, clean)]
    assert names[0] == names[1]
