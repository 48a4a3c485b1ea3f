"""What tests of the command line share."""

import pytest

from palimpsest.agents.launch import start


@pytest.fixture
def started(tmp_path, monkeypatch):
    """An empty working directory; the configurations that would have been trained."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(start, "train", lambda config, engine: seen.append(config))
    return seen
