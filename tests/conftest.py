"""What all tests share: poisoned memory, the kernels under test, and the skip of GPU tests where there is none."""

from __future__ import annotations

import os
import warnings

import host_run
import kernels as kernel_choice
import pytest
import torch
from builds import build, setup_py, source_copy  # noqa: F401  fixtures
from configurations import CONFIGURATIONS
from filelock import FileLock
from hypothesis import HealthCheck, settings
from naming import reproduction
from nir_cases import nir, seeded  # noqa: F401  fixtures

import snnfast
from snnfast import backends

# The same examples on every run and machine: a red test stays red until its cause is gone. Fixtures of a function's
# scope may be shared by its examples: which kernels run is the same for all of them.
settings.register_profile(
    "snnfast",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
settings.load_profile("snnfast")

if "PYTEST_XDIST_WORKER" in os.environ:  # as many threads in all as without
    torch.set_num_threads(max(torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), 1))


def is_drawn(item: pytest.Item) -> bool:
    """Whether it is a case of a list of configurations (naming.each)."""
    return "configuration" in getattr(getattr(item, "callspec", None), "params", {})


def pytest_collection_modifyitems(config, items):
    """Without a GPU its tests are skipped. Of the thousands of drawn configurations one skip says it for all."""
    if torch.cuda.is_available() and backends.core.with_cuda:
        return
    why = "no GPU" if not torch.cuda.is_available() else "this build of snnfast has no CUDA kernels"
    drawn: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "cuda" not in item.keywords:
            continue
        if is_drawn(item):
            drawn.setdefault(f"{item.parent.nodeid}::{item.originalname}", []).append(item)
        else:
            item.add_marker(pytest.mark.skip(reason=why))
    for first, *others in drawn.values():
        first.add_marker(pytest.mark.skip(reason=f"{why}, for {1 + len(others)} configurations"))
    left_out = {item for _, *others in drawn.values() for item in others}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header():
    return f"snnfast {snnfast.__version__} from {snnfast.__file__}; {len(CONFIGURATIONS)} random configurations"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed and is_drawn(item):
        report.sections.append(("to run this case alone, in the folder of the tests", reproduction(item)))
    return report


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty is full of NaN: a kernel that leaves an element unwritten shows it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def one_thread():
    """For tensors of a few hundred numbers, which lose by more threads, and much on a machine in use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_other_warnings():
    """A warning that a test does not expect is an error; torch's own are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield


@pytest.fixture(scope="session")
def core_on_host(tmp_path_factory):
    """The CUDA kernels' own source, compiled for the host: once, by the first of pytest-xdist's processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    try:
        with FileLock(folder / "host_run.lock"):
            return host_run.build(folder / "host_run")
    except RuntimeError as error:
        if "no C++ compiler" in str(error):
            pytest.skip(f"the CUDA kernels cannot run on the host: {error}")
        raise


@pytest.fixture(params=["cpu", "cuda_on_host", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernels(request, monkeypatch):
    """The CPU kernels; the CUDA kernels run on the host; the CUDA kernels on a GPU."""
    return kernel_choice.chosen(request.param, lambda: request.getfixturevalue("core_on_host"), monkeypatch.setattr)
