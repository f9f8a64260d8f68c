"""The name: there after register(), as if built in, and gone without a trace after unregister()."""

import copy
import copyreg
import json
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import transformers.trainer
from transformers import (
    HfArgumentParser,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from transformers.training_args import OptimizerNames

import dwmgrad
from dwmgrad import DWMGrad
from dwmgrad.integrations.optim_args import NAMES, OPTIM_ARGS, parse_optim_args

COMMAND_LINE = ["--output_dir", "x", "--optim", "dwmgrad", "--report_to", "none"]


def traces() -> list:
    help_text = HfArgumentParser(TrainingArguments).format_help()
    return [
        list(OptimizerNames),
        dict(OptimizerNames.__members__),
        dir(OptimizerNames),
        vars(Trainer)["get_optimizer_cls_and_kwargs"],
        vars(TrainingArguments)["__post_init__"],
        list(transformers.trainer.DEFAULT_CALLBACKS),
        "dwmgrad" in help_text,
        pickle.dumps(OptimizerNames.SGD),
        OptimizerNames in copyreg.dispatch_table,
        OptimizerNames in ForkingPickler._extra_reducers,
    ]


def test_unregister_leaves_no_trace_and_both_may_be_repeated() -> None:
    dwmgrad.unregister()
    before = traces()
    with pytest.raises(ValueError, match="dwmgrad"):
        OptimizerNames("dwmgrad")
    for _ in range(2):
        dwmgrad.register()
        once = traces()
        dwmgrad.register()
        assert traces() == once != before
        dwmgrad.unregister()
        dwmgrad.unregister()
        assert traces() == before


@pytest.mark.usefixtures("registered")
class TestTheName:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_a_member_like_the_others(self, name: str) -> None:
        member = getattr(OptimizerNames, name.upper())
        assert member in list(OptimizerNames)
        assert member is OptimizerNames(name) is OptimizerNames[name.upper()]
        assert (member.name, member.value, member == name) == (name.upper(), name, True)
        assert sys.version_info < (3, 12) or name in OptimizerNames
        assert copy.deepcopy(member) == member
        assert pickle.loads(pickle.dumps(OptimizerNames.SGD)) is OptimizerNames.SGD

    def test_on_the_command_line(self, capsys) -> None:
        parser = HfArgumentParser(TrainingArguments)
        (args,) = parser.parse_args_into_dataclasses(COMMAND_LINE)
        assert args.optim is OptimizerNames.DWMGRAD
        with pytest.raises(SystemExit):
            parser.parse_args_into_dataclasses([*COMMAND_LINE[:3], "dwmgrat"])
        assert "dwmgrad" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["yaml", "json"])
    def test_in_a_file(self, kind: str, tmp_path: Path) -> None:
        settings = {"output_dir": "x", "optim": "dwmgrad", "optim_args": "max_window=100"}
        path = tmp_path / f"arguments.{kind}"
        path.write_text(json.dumps(settings))  # JSON is YAML, too
        parser = HfArgumentParser(TrainingArguments)
        (args,) = getattr(parser, f"parse_{kind}_file")(str(path))
        _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
        assert (args.optim, kwargs["max_window"]) == (OptimizerNames.DWMGRAD, 100)

    def test_in_arguments_that_are_written_down(self, tmp_path: Path) -> None:
        args = TrainingArguments("x", optim="dwmgrad", report_to="none")
        assert args.to_dict()["optim"] == json.loads(args.to_json_string())["optim"] == "dwmgrad"
        assert args.set_optimizer("dwmgrad", learning_rate=0.1).optim is OptimizerNames.DWMGRAD
        torch.save(args, tmp_path / "training_args.bin")
        code = (
            "import torch; args = torch.load('training_args.bin', weights_only=False); "
            "import sys; assert 'dwmgrad' not in sys.modules; print(args.optim)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert found.stdout.strip() == "dwmgrad"
        loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
        assert Trainer.get_optimizer_cls_and_kwargs(loaded)[0] is DWMGrad

    def test_reaches_the_optimizer_with_its_arguments(self) -> None:
        args = TrainingArguments(
            "x",
            optim="dwmgrad",
            learning_rate=0.25,
            adam_epsilon=1e-6,
            optim_args="max_window=100, window_signal=loss,momentum=0.5,fused=False",
            report_to="none",
        )
        expected = {"lr": 0.25, "eps": 1e-6, "max_window": 100, "window_signal": "loss"}
        expected |= {"momentum": 0.5, "fused": False}
        assert Trainer.get_optimizer_cls_and_kwargs(args, None) == (DWMGrad, expected)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_name_is_known_and_sets_what_it_stands_for(self, name: str) -> None:
        args = TrainingArguments("x", optim=name, learning_rate=0.25, report_to="none")
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
        assert kind is DWMGrad and kwargs == {"lr": 0.25, "eps": 1e-8, **NAMES[name]}
        kind(torch.nn.Linear(2, 2).parameters(), **kwargs)

    def test_a_name_and_an_argument_that_exclude_each_other(self) -> None:
        args = TrainingArguments("x", optim="dwmgrad_8bit", report_to="none")
        args.optim_args = "state_dtype=bfloat16"
        for late in (
            lambda: TrainingArguments("x", optim=args.optim, optim_args=args.optim_args),
            lambda: Trainer.get_optimizer_cls_and_kwargs(args),
        ):
            with pytest.raises(ValueError, match="state_dtype=bfloat16 and --optim dwmgrad_8bit"):
                late()

    def test_eight_bits_leave_embeddings_in_float32(self) -> None:
        model = torch.nn.Sequential(torch.nn.Embedding(500, 64), torch.nn.Linear(64, 500))
        args = TrainingArguments("x", optim="dwmgrad_8bit", report_to="none")
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = kind(model.parameters(), **kwargs)
        model(torch.arange(9)).sum().backward()
        optimizer.step(loss=1.0)
        dtypes = [optimizer.state[p]["momentum_buffer"].dtype for p in model.parameters()]
        assert dtypes == [torch.float32, torch.int8, torch.float32]  # the bias is small

    def test_leaves_other_names_to_transformers(self) -> None:
        args = TrainingArguments("x", optim="sgd", report_to="none")
        assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is torch.optim.SGD

    @pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments])
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"optim_args": "max_windw=3"}, "'max_windw=3' is not understood.*max_window"),
            ({"optim_args": "max_window=0"}, "optim_args: max_window must be at least 1, got 0"),
            ({"optim_args": "momentum=2"}, r"optim_args: momentum must be in \[0, 1\), got 2"),
            ({"optim_args": "foreach=true,fused=true"}, "exclude each other"),
            ({"optim_args": "initial_window=20"}, "initial_window=20 and max_window=10"),
            ({"optim_args": {"max_window": 3}}, "optim_args: write key=value.*in one text"),
            ({"adam_epsilon": 0.0}, "--adam_epsilon: eps must be at least"),
            ({"learning_rate": -1.0}, "--learning_rate: lr must be in"),
        ],
        ids=str,
    )
    def test_a_mistake_ends_where_the_arguments_are_built(self, kind, settings, message) -> None:
        with pytest.raises(ValueError, match=message):
            kind("x", optim="dwmgrad", report_to="none", **settings)
        kind("x", optim="sgd", report_to="none", **settings)  # is for its own optimizer to judge

    def test_so_does_a_mistake_on_the_command_line(self) -> None:
        parser = HfArgumentParser(TrainingArguments)
        with pytest.raises(ValueError, match="did you mean max_window"):
            parser.parse_args_into_dataclasses([*COMMAND_LINE, "--optim_args", "max_windw=3"])

    def test_arguments_that_change_later_are_checked_before_training(
        self, model, dataset, arguments
    ) -> None:
        args = arguments(optim_args="max_window=3")
        args.optim_args = "max_windw=3"
        with pytest.raises(ValueError, match="'max_windw=3' is not understood.*max_window"):
            Trainer(model, args, train_dataset=dataset).train()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_windw=3", "'max_windw=3' is not understood; did you mean max_window.*momentum"),
        ("max_window", "'max_window' is not understood.*write key=value"),
        ("max_window=ten", "max_window cannot be 'ten'.*the keys are momentum"),
        ("max_window=1.5", "max_window cannot be '1.5'"),
        ("fused=2", r"fused cannot be '2' \(true or false\)"),
        ("window_signal=up", r"window_signal cannot be 'up' \(one of decrease, increase, loss\)"),
        ("momentum=0.9,momentum=0.8", "'momentum' is given twice"),
        ("weight_decay=0.1", "an argument of its own, --weight_decay"),
        ("lr=0.1", "an argument of its own, --learning_rate"),
        ("eps=1", "an argument of its own, --adam_epsilon"),
    ],
)
def test_optim_args_that_are_not_understood_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_optim_args(text)


def test_optim_args_are_typed() -> None:
    assert parse_optim_args(None) == parse_optim_args("") == {}
    assert parse_optim_args("maximize=False,fused=none,foreach=TRUE") == {
        "maximize": False,
        "fused": None,
        "foreach": True,
    }
    block = "state_dtype=int8,\n  loss_guard=3\n"  # as YAML's | and > give it
    assert parse_optim_args(block) == {"state_dtype": "int8", "loss_guard": 3.0}


def test_every_argument_can_be_named_in_optim_args() -> None:
    import inspect

    elsewhere = {"params", "lr", "eps", "weight_decay"}  # the Trainer's own arguments
    no_text = {"loss_group"}
    names = set(inspect.signature(DWMGrad).parameters)
    assert set(OPTIM_ARGS) == names - elsewhere - no_text
