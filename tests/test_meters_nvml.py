"""NVML through ctypes: against a small library with its functions here, and against the driver on a GPU."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, MeterMissing
from edgekit.runtimes.meters.nvml import Gpu, Nvml

# Written after nvml.h. The counter moves 2.5 J with every look; GPU 1 has none; GPU 2 is not there.
STAND_IN = r"""
#include <string.h>
struct field {
  unsigned id, scope;
  long long stamp, latency;
  unsigned kind;
  int status;
  union { double d; unsigned ui; unsigned long long ull; } value;
};
static char gpus[2];
static unsigned long long millijoules = 1000;
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Invalid Argument"; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = gpus + index; return index < 2 ? 0 : 2; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "A GPU", length); return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "580.1", length); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
  *energy = millijoules += 2500;
  return device == gpus ? 0 : 3;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *found) { found[0] = 73; found[1] = 9; return 0; }
int nvmlDeviceGetFieldValues(void *device, int count, struct field *values) {
  for (int k = 0; k < count; k++) {
    values[k].status = device == gpus ? 0 : 3;
    values[k].value.ui = values[k].id == 185 ? 118250 : values[k].id == 186 ? 121500 : 0;
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of libnvidia-ml")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(STAND_IN)
    built = folder / "libnvidia-ml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(folder / "nvml.c")], check=True)
    return str(built)


def test_the_share_of_time_in_kernels_is_read(library: str) -> None:
    with Gpu(0, library) as gpu:
        assert gpu.busy_share() == 0.73


def test_the_counter_is_read_in_joules(library: str) -> None:
    meter = Nvml(library=library)
    assert meter.available().ok
    counter = meter.open()
    first, last = counter.read(), counter.read()
    counter.close()
    assert last.joules["gpu"] - first.joules["gpu"] == 2.5
    assert counter.info.id == "nvml A GPU"
    assert "cpu" in counter.info.excludes


def test_both_powers_are_read_in_watts(library: str) -> None:
    with Gpu(library=library) as gpu:
        assert gpu.watts("average") == 118.25
        assert gpu.watts("instant") == 121.5
        assert gpu.driver() == "580.1"


def test_a_gpu_without_counter_says_what_nvml_says(library: str) -> None:
    said = Nvml(device=1, library=library).available()
    assert said.reason == "nvmlDeviceGetTotalEnergyConsumption says 'Not Supported'"
    with (
        Gpu(1, library) as gpu,
        pytest.raises(EdgekitError, match="nvmlDeviceGetFieldValues says 'Not Supported'"),
    ):
        gpu.watts("instant")


def test_a_gpu_that_is_not_there_is_refused(library: str) -> None:
    with pytest.raises(MeterMissing, match="nvmlDeviceGetHandleByIndex_v2 says 'Invalid Argument'"):
        Nvml(device=2, library=library).open()


def test_a_machine_without_the_driver_says_so(tmp_path: Path) -> None:
    gone = str(tmp_path / "libnvidia-ml.so.1")
    assert Nvml(library=gone).available().reason == f"there is no {gone}"


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA driver")
def test_the_drivers_counter_grows_with_time() -> None:
    counter = Nvml().open()
    first = counter.read()
    time.sleep(1)
    last = counter.read()
    counter.close()
    assert 10 < (last.joules["gpu"] - first.joules["gpu"]) / ((last.t_ns - first.t_ns) / 1e9) < 1500
