"""What the tests of other libraries' trainers share."""

from pathlib import Path

import pytest

import dwmgrad


@pytest.fixture
def registered():
    dwmgrad.register()
    yield
    dwmgrad.unregister()


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory) -> Path:
    """A folder with a tiny Llama and its tokenizer, as the hub would have it."""
    from small import save_causal_lm

    return save_causal_lm(tmp_path_factory.mktemp("causal_lm"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A folder with a tiny BERT for classification and its tokenizer."""
    from small import save_encoder

    return save_encoder(tmp_path_factory.mktemp("encoder"))
