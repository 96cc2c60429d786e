"""What all tests share: poisoned memory, the kernels under test, and the skip of GPU tests where there is none."""

from __future__ import annotations

import warnings

import host_run
import pytest
import torch
from builds import build, setup_py, source_copy  # noqa: F401  fixtures
from configurations import CONFIGURATIONS, Kernels

import snnfast
from snnfast import backends


def pytest_collection_modifyitems(items):
    usable = torch.cuda.is_available() and backends.core.with_cuda
    why = "no GPU" if not torch.cuda.is_available() else "this build of snnfast has no CUDA kernels"
    for item in items:
        if "cuda" in item.keywords and not usable:
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_report_header():
    return f"snnfast {snnfast.__version__} from {snnfast.__file__}; {len(CONFIGURATIONS)} random configurations"


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
    """The CUDA kernels' own source, compiled for the host."""
    try:
        return host_run.build(tmp_path_factory.mktemp("host_run"))
    except RuntimeError as error:
        if "no C++ compiler" in str(error):
            pytest.skip(f"the CUDA kernels cannot run on the host: {error}")
        raise


@pytest.fixture(params=["cpu", "cuda_on_host", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernels(request, monkeypatch):
    """The CPU kernels; the CUDA kernels run on the host; the CUDA kernels on a GPU."""
    if request.param == "cuda_on_host":
        core = request.getfixturevalue("core_on_host")
        monkeypatch.setattr(backends, "target", lambda tensor: (core, core.Where(0, 0, 0)))
    return Kernels(request.param, torch.device("cuda" if request.param == "cuda" else "cpu"))
