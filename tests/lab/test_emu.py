"""Every runtime computes the same on an emulated Raspberry Pi's processor as here, and no time of it is a board's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lab.board import PI4, PI5, Personality, need_tool
from lab.conftest import Exported, need
from lab.emulator import QEMU, Emulator
from lab.environment import Environment
from language_models import save_folder

from edgekit.benchmark import finish, measurement
from edgekit.bundle import Bundle
from edgekit.decoding import Decoder, generation_of, timed_text
from edgekit.drafting import ExportOptions
from edgekit.errors import EdgekitError
from edgekit.generation import timing_prompt
from edgekit.inference import open_session
from edgekit.pipeline import export
from edgekit.place import Worker
from edgekit.source import load

pytestmark = [pytest.mark.lab, pytest.mark.emu, pytest.mark.toolchain]
BUNDLES = [("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"), ("tflite", "int8"), ("executorch", "fp32"),
           ("executorch", "int8")]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    need(need_tool, QEMU, "qemu-user-static")
    need(need_tool, "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


@pytest.mark.parametrize("personality", [PI4, PI5], ids=lambda p: p.name)
@pytest.mark.parametrize(("format", "precision"), BUNDLES)
def test_a_bundle_answers_and_is_timed_as_on_this_machine(
    lab: Environment, exported: Exported, tmp_path: Path, personality: Personality, format: str, precision: str
) -> None:
    bundle = exported(format, precision)
    with open_session(bundle) as session, Worker(bundle, 1, Emulator(lab, personality, tmp_path)) as worker:
        for feeds, _ in bundle.golden()[:3]:
            answers, seconds = worker.run(feeds)
            for name, here in session.run(feeds).items():
                step = np.ptp(here) / 64 if precision == "int8" else 0  # one step of the last int8 layer's input
                np.testing.assert_allclose(answers[name], here, rtol=1e-4, atol=1e-5 + step)
            assert 0 < seconds < 10
        ops = worker.ops(1)
        measured = measurement(bundle, 1, [finish(worker, (0, True), (worker.times(7),))])
    assert len(measured.latency.times_s) == 7
    assert min(measured.latency.times_s) > 0
    assert measured.before.machine == "aarch64"
    assert measured.before.emulated
    assert measured.after.emulated
    assert measured.peak_rss_bytes > 1e6
    assert bool(ops.ops) is (format != "executorch")  # whose native runner has no profiler
    assert ops.reason is None or ops.by == "the native runner"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small language model: a method for each chunk of tokens, and a cache."""
    folder = tmp_path_factory.mktemp("talker")
    options = ExportOptions(format="executorch", precision="fp32", measure=False)
    model = load(str(save_folder(folder / "llama", num_hidden_layers=2)), context=80)
    return export(model, "raspberrypi5", folder / "out", options)


def test_the_native_runner_writes_the_same_text(lab: Environment, talker: Bundle, tmp_path: Path) -> None:
    prompt = timing_prompt(generation_of(talker))
    assert len(prompt) > 33  # a whole chunk, a padded one, and the last token alone
    with open_session(talker) as session, Worker(talker, 1, Emulator(lab, PI5, tmp_path)) as worker:
        _, here = timed_text(Decoder.of(talker, session), prompt, 64)
        there = worker.text(64)
        assert there.prompt_tokens == len(prompt)
        assert list(there.ids) == here
        assert len(there.times_s) == len(here) == 80 - len(prompt)  # the cache is full
        assert list(there.times_s) == sorted(there.times_s)
        assert len(set(here)) > 8  # not one word again and again
        for feeds, _ in talker.golden()[:2]:
            answers, _ = worker.run(feeds)
            for name, value in session.run(feeds).items():
                np.testing.assert_allclose(answers[name], value, rtol=1e-3, atol=1e-4)
        assert min(worker.times(3)) > 0


def test_an_instruction_that_the_board_lacks_is_named(lab: Environment, exported: Exported, tmp_path: Path) -> None:
    older = Emulator(lab, PI5, tmp_path, qemu_cpu=PI4.qemu_cpu)  # says it has the dot product, and has not
    with pytest.raises(EdgekitError, match=r"killed by signal 4 \(SIGILL\): the processor lacks an instruction"):
        Worker(exported("onnx", "int8"), 1, older).stop()
