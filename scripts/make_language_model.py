"""A small language model, trained on questions: `make_language_model.py QQP_FOLDER OUTPUT_FOLDER`.

QQP_FOLDER holds train.parquet with `question1` and `question2`. A GPT-2 of 2.1 million parameters
learns them for two epochs with AdamW. The workloads `sentences` and `sentences-lora` fine-tune
it. Deterministic: the same input gives the same model on the same machine, with the same library
versions. Takes 9 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glue.errors import UsageParser, needs, run_cli

with needs("glue"):
    from glue.files import find_split, read_columns
    from make_sample import write_tokenizer
    from transformers import (
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainingArguments,
        set_seed,
    )

VOCABULARY = 4096
BLOCK = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = UsageParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of QQP's parquet files")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args(argv)
    [path] = find_split(arguments.source, "train")
    columns = read_columns(path)
    texts = [*columns["question1"], *columns["question2"]]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(texts, arguments.output, VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    rows = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    tokens = [token for row in rows for token in row]
    blocks = [tokens[at : at + BLOCK] for at in range(0, len(tokens) - BLOCK + 1, BLOCK)]
    set_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=192,
        n_layer=3,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # which its class name does not say
    training = TrainingArguments(
        output_dir=str(arguments.output),
        num_train_epochs=2,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        use_cpu=True,
    )
    data = [{"input_ids": block, "labels": block} for block in blocks]
    Trainer(model, training, train_dataset=data).train()
    model.save_pretrained(arguments.output)
    print(f"{model.num_parameters():,} parameters: {arguments.output}")


if __name__ == "__main__":
    run_cli(main)
