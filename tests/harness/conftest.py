"""A small chat checkpoint."""

import pytest
from chat_checkpoint import make_chat_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_chat_checkpoint(tmp_path_factory.mktemp("chat"))
