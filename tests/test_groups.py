"""Parameter groups: the Trainer's choice of what decays, without a Trainer."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from ranks import run
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel

from dwmgrad import DWMGrad, param_groups

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
MODELS = {
    "roberta": ("RobertaForSequenceClassification", SMALL | {"num_attention_heads": 2}),
    "llama": ("LlamaForCausalLM", SMALL | {"num_attention_heads": 2, "attention_bias": True}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40},
    ),
    "vit": (
        "ViTForImageClassification",
        {**SMALL, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    ),
}


def build(kind: str) -> nn.Module:
    name, sizes = MODELS[kind]
    return getattr(transformers, name)(transformers.AutoConfig.for_model(kind, **sizes))


def names(model: nn.Module, group: dict) -> list[str]:
    found = {id(p): name for name, p in model.named_parameters()}
    return [found[id(p)] for p in group["params"]]


@pytest.mark.parametrize("kind", MODELS)
def test_the_groups_are_the_trainers(kind, tmp_path):
    model = build(kind)
    args = transformers.TrainingArguments(
        str(tmp_path), weight_decay=0.1, use_cpu=True, optim="adamw_torch", report_to="none"
    )
    theirs = transformers.Trainer(model, args).create_optimizer().param_groups
    ours = param_groups(model, 0.1)
    for mine, their in zip(ours, theirs, strict=True):
        assert mine["weight_decay"] == their["weight_decay"]
        assert names(model, mine) == names(model, their)


def test_frozen_ones_are_left_out_and_tied_ones_appear_once():
    model = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    model.transformer.wpe.weight.requires_grad_(False)
    decayed, others = (names(model, group) for group in param_groups(model, 0.1))
    assert len({*decayed, *others}) == len(decayed) + len(others)
    left_out = {name for name, _ in model.named_parameters()} - {*decayed, *others}
    assert left_out == {"transformer.wpe.weight"}


def test_of_an_adapter_only_what_is_trained():
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = get_peft_model(build("roberta"), config)
    decayed, others = (names(model, group) for group in param_groups(model, 0.1))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {*decayed, *others} == trained and all("bias" in name for name in others)


def test_biases_and_norms_of_any_shape():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_bias = nn.Parameter(torch.zeros(2, 3))
            self.norm = nn.LayerNorm((2, 3))
            self.scale = nn.Parameter(torch.ones(()))
            self.attention = nn.MultiheadAttention(4, 2)

    model = Experts()
    decayed, others = (names(model, group) for group in param_groups(model, 0.1))
    assert decayed == ["scale", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert "gate_bias" in others and "norm.weight" in others and "attention.in_proj_bias" in others


def test_a_step_decays_the_first_group_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = DWMGrad(param_groups(model, 0.5), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(loss=1.0)
    weight, *rest = model.parameters()
    assert torch.allclose(weight, before[0] * 0.95)
    assert all(torch.equal(p, was) for p, was in zip(rest, before[1:], strict=True))


@pytest.mark.parametrize(
    ("model", "weight_decay", "error"),
    [
        (nn.Linear(2, 2).parameters(), 0.1, "model must be a torch.nn.Module, got generator"),
        (nn.Linear(2, 2), -0.1, "weight_decay must be at least 0, got -0.1"),
        (nn.Linear(2, 2), float("nan"), "weight_decay must be at least 0, got nan"),
        (nn.Linear(2, 2).requires_grad_(False), 0.1, "no parameter with requires_grad=True"),
    ],
)
def test_bad_arguments(model, weight_decay, error):
    with pytest.raises((TypeError, ValueError), match=error):
        param_groups(model, weight_decay)


def sharded(rank: int) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))

    cpu = torch.device("cpu")
    wrapped_models = [FullyShardedDataParallel(model(), use_orig_params=True, device_id=cpu)]
    if hasattr(fsdp, "fully_shard"):  # torch 2.5 has it in another place
        wrapped_models.append(fsdp.fully_shard(model(), mesh=init_device_mesh("cpu", (2,))))
    for wrapped in wrapped_models:
        decayed, others = param_groups(wrapped, 0.1)
        assert (len(decayed["params"]), len(others["params"])) == (2, 4)
        optimizer = DWMGrad([decayed, others], lr=0.1)
        loss = wrapped(torch.ones(2, 4)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    with pytest.raises(ValueError, match="use_orig_params=True"):
        param_groups(FullyShardedDataParallel(model(), device_id=cpu), 0.1)


def test_shards_keep_their_group(tmp_path):
    run(sharded, tmp_path)
