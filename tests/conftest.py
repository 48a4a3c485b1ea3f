"""What every test shares: one thread, fixed seeds, one place for tolerances; the fast tests' options and the order."""

import itertools
import os
import random
import tempfile

import gymnasium as gym
import hypothesis
import numpy as np
import pytest
import torch

from palimpsest import envs, machine_code

# how long an example takes says how busy the machine is
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

COMPILE = ("kernels", "laws")
"""Folders whose tests compile most of the kernels."""


def pytest_addoption(parser):
    parser.addoption(
        "--no-machine-code",
        action="store_true",
        help="skip a test where it asks for a compiled kernel; what computes by torch and numpy alone is tested",
    )
    parser.addoption(
        "--most-cases",
        type=int,
        metavar="N",
        help="of a test with more than N cases run N, drawn at random, the same ones every time",
    )


def pytest_configure(config):
    # Stable-Baselines3 makes a folder for every logger, also for one that writes nothing
    logs = tempfile.TemporaryDirectory(prefix="palimpsest-logs-")
    config.add_cleanup(logs.cleanup)
    os.environ["SB3_LOGDIR"] = logs.name
    if config.getoption("--no-machine-code"):
        # a test that is skipped where it is has closed nothing yet
        config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")
        machine_code._Cache.load_overload = lambda *_: pytest.skip("needs machine code; `make test` runs it")


@pytest.hookimpl(trylast=True)  # once `-m` has deselected
def pytest_collection_modifyitems(config, items):
    """Leave out cases, as `--most-cases` says; begin with the files that take longest.

    With xdist a file is one worker's work. A long one that begins last would leave the other worker idle.
    """
    most = config.getoption("--most-cases")
    if most is not None:
        tests = {}
        for item in items:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
        few = (random.Random(name).sample(cases, min(most, len(cases))) for name, cases in tests.items())
        drawn = {item for cases in few for item in cases}
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]
    trainings = {item.path for item in items if any(map(item.get_closest_marker, ("learning", "programs")))}
    items.sort(key=lambda item: 0 if item.path.parent.name in COMPILE else 1 if item.path in trainings else 2)


@pytest.fixture(autouse=True)
def _seeds(monkeypatch):
    """A test draws the same numbers alone as in the whole suite, and sums in the same order."""
    seeds, of_seed = itertools.count(), gym.utils.seeding.np_random
    # a space that nobody seeded samples from the system's entropy otherwise
    monkeypatch.setattr(
        gym.utils.seeding, "np_random", lambda seed=None: of_seed(next(seeds) if seed is None else seed)
    )
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries that still read the global generator
    torch.manual_seed(0)


@pytest.fixture(
    params=[
        "elsewhere",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
        ),
    ]
)
def device(request, monkeypatch):
    """A device that is not the CPU."""
    if request.param == "cuda":
        # cuDNN's recurrences round float32 otherwise
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield torch.device("cuda")
    else:
        from elsewhere import elsewhere

        with elsewhere(monkeypatch) as there:
            yield there


@pytest.fixture(scope="module")
def tiny_family():
    """The ids of `faces.TINIES` are registered."""
    from faces import TINIES

    for id, name in TINIES.items():
        envs.register(id, f"tiny_world:{name}", "An item shown once, to be named later.", limit=10)
    yield
    for id in TINIES:
        del envs.registration._ENTRIES[id], gym.registry[id]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The package's wheel."""
    from builds import build, copy_of_the_tree

    tmp = tmp_path_factory.mktemp("wheel")
    return build("wheel", copy_of_the_tree(tmp / "tree"), tmp / "out")


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A folder into which the wheel is installed, to be put on `PYTHONPATH`; the command is in its `bin`."""
    from builds import python

    folder = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """How closely two forms of one computation agree, as keywords of `torch.testing.assert_close`."""
    return {torch.float32: dict(rtol=1e-4, atol=2e-5), torch.float64: dict(rtol=1e-8, atol=1e-10)}[dtype]


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    """Stand in an empty folder, as bad arguments may be paths."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """An empty working directory; the configurations that a command line would have trained."""
    from palimpsest.agents.launch import start

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(start, "train", lambda config, engine: seen.append(config))
    return seen
