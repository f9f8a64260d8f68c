"""A RoBERTa small enough to train in a test."""

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification


def tiny_roberta() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    model = RobertaForSequenceClassification(config)
    model.accepts_loss_kwargs = False  # its head ignores num_items_in_batch
    return model
