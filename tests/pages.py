"""Bundles and measurements with something in every place that a page shows; no file behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle import (
    SCHEMA_VERSION,
    Artifact,
    Bundle,
    CalibrationRecord,
    Delegation,
    Fallback,
    Manifest,
    PlanRecord,
    WeightPrecision,
)
from edgekit.energy import NO_METER, Energy
from edgekit.intervals import Interval
from edgekit.measurement import (
    AgainstFloat,
    Comparison,
    GenerationTimes,
    HostState,
    Measurement,
    Sustained,
    Trial,
    summarize,
    verdict,
)
from edgekit.op_profile import OpEvent, OpProfile, summarize_ops
from edgekit.parity import TOLERANCES, GoldenReplay, ModuleError, OutputParity, Parity
from edgekit.types import Change, ModelSource, TensorSpec

Name = Callable[[str], str]  # what stands in a bundle where it could say `str`


def plain(name: str) -> str:
    return name


def state(name: Name = plain, **changes: Any) -> HostState:
    known = HostState(
        machine=name("aarch64"),
        system=name("Linux 6.6.31-rpt-rpi-2712"),
        cpu=name("Cortex-A76"),
        cores=4,
        python=name("3.11.7"),
        governor=name("ondemand"),
        clock_min_hz=1.5e9,
        clock_max_hz=2.4e9,
        clock_now_hz=2.4e9,
        temperature_c=52.0,
        affinity=(0, 1, 2, 3),
        power_mode=None,
        power_supply=name("mains"),
        throttle_flags=(),
    )
    return msgspec.structs.replace(known, **changes)


def slowing(calls: int = 1000, slow: float = 1.4) -> list[float]:
    """Times of a board that slows down after two thirds of its calls, with two calls that something interrupted."""
    steady = [1e-3 * (31 + 1.5 * math.sin(1.7 * call) + 0.8 * math.cos(0.13 * call)) for call in range(calls)]
    times = [time * (slow if call > 2 * calls // 3 else 1.0) for call, time in enumerate(steady)]
    times[calls // 4] *= 6
    times[calls // 2] *= 9
    return times


def measurement(name: Name = plain, **changes: Any) -> Measurement:
    known = Measurement(
        bundle=name("out/onnx"),
        artifact=name("model.onnx"),
        artifact_sha256="a" * 64,
        input_source=name("golden sample 0"),
        runtime=name("onnxruntime"),
        runtime_version=name("1.22.0"),
        runtime_build=name("cp311 0123456789ab"),
        threads=4,
        load_s=0.21,
        first_run_s=0.048,
        warmup_runs=40,
        warm=True,
        latency=summarize(slowing()),
        trials=tuple(
            Trial(process=at, load_s=0.2, first_run_s=0.05, calls=200, mean_s=0.031, p50_s=0.031 + at / 1000)
            for at in range(5)
        ),
        mean_ci_s=Interval(low=0.030, high=0.036),
        trial_cv=0.06,
        throttled=(name("soft temperature limit"),),
        overhead_s=16e-6,
        peak_rss_bytes=87_000_000,
        energy=NO_METER,
        before=state(name),
        after=state(name, clock_now_hz=1.8e9, temperature_c=82.0, throttle_flags=(name("throttled"),)),
    )
    return msgspec.structs.replace(known, **changes)


def metered(name: Name = plain) -> Measurement:
    """With joules of a meter, of a model, and a sustained run of a language model."""
    return measurement(
        name,
        ops=profiled(name),
        energy=Energy(
            provenance="measured.sampled",
            meter=name("pi5 pmic"),
            gross_j=0.1523,
            net_j=0.0871,
            u_rel=0.04,
            covers=(name("cpu"), name("dram")),
            excludes=(name("usb"),),
            window_s=5.1,
            iterations=164,
            updates_seen=51,
            idle_w=2.1,
            flags=(name("gain_unknown"),),
        ),
        modelled_energy_j=0.123456,
        modelled_energy_note=name("two states of raspberrypi5"),
        sustained=Sustained(
            asked_s=300,
            lasted_s=300,
            window_s=60,
            minute_1_p50_s=0.031,
            final_p50_s=0.044,
            minutes_p50_s=(0.031, 0.032, 0.036, 0.043, 0.044),
        ),
        generation=GenerationTimes(
            texts=6,
            prompt_tokens=32,
            time_to_first_token_s=0.4,
            prefill_tokens_per_s=80.0,
            decode_tokens_per_s=21.0,
            inter_token=summarize([0.047] * 40 + [0.049] * 20),
        ),
    )


def profiled(name: Name = plain) -> OpProfile:
    """Two types of ops on two units, one of which nobody can place."""
    events = [
        OpEvent(op=name("Conv"), unit=name("npu"), name=name("stem_conv"), module=name("stem"), seconds=0.0031),
        OpEvent(op=name("Conv"), unit=name("npu"), name=name("head_conv"), seconds=0.0011),
        OpEvent(op=name("Resize"), unit="cpu", module=name("up"), source=name("model.py:41"), seconds=0.0007),
    ]
    return summarize_ops(name("a profiler"), 0.0050, [0.0056, 0.0060], [events, events])


def comparison(name: Name = plain, ratio: float = 0.53) -> Comparison:
    a, b = measurement(name), measurement(name, bundle=name("out/tflite"))
    interval = Interval(low=0.9 * ratio, high=1.1 * ratio)
    said = verdict(a.bundle, b.bundle, ratio, interval)
    return Comparison(a=a, b=b, ratio=ratio, ratio_ci=interval, trial_ratios=(ratio,) * 5, rounds=6, verdict=said)


def emulated(name: Name = plain) -> Measurement:
    return measurement(name, before=state(name, emulated=True), after=state(name, emulated=True), throttled=())


def parity(name: Name = plain, ok: bool = True) -> Parity:
    """A passing one of two outputs, or one whose first output misses its gate."""
    sqnr = 21.5 if ok else 4.2
    return Parity(
        samples=32,
        synthetic_samples=3,
        max_abs=0.8,
        max_rel=0.064,
        cosine_min=0.989,
        sqnr_db=sqnr,
        worst_output=name("logits"),
        outputs=(
            OutputParity(name=name("logits"), max_abs=0.8, max_rel=0.064, cosine_min=0.989, sqnr_db=sqnr),
            OutputParity(name=name("embedding"), max_abs=0.1, max_rel=0.01, cosine_min=0.999, sqnr_db=33.0),
        ),
        top1_agreement=0.96,
        top1_samples=24,
        tolerance=TOLERANCES["int8"],
        ok=ok,
        misses=() if ok else (name("SQNR (dB) is 4.20, the gate is 14.00 (worst output 'logits')"),),
        first_divergent=None if ok else name("blocks.3.depthwise"),
        worst_modules=() if ok else (ModuleError(module=name("blocks.3.depthwise"), sqnr_db=2.1),),
        golden_run=GoldenReplay(
            tokens=32, agreeing=31, judged=20, judged_agreeing=20, first_difference=name("token 5 is 12 where 45")
        ),
    )


def bundle(
    name: Name = plain,
    *measurements: Measurement,
    format: str = "onnx",
    sha256: str = "a" * 64,
    found: Parity | None = None,
) -> Bundle:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name("efficientnet_lite0"),
        source=ModelSource(kind=name("zoo"), ref=name("efficientnet_lite0"), sha256=name("0" * 64)),
        device=name("raspberrypi5"),
        plan=PlanRecord(
            device="raspberrypi5",
            format=format,
            precision="int8",
            passes=({"pass": name("int8_static"), "per_channel": True},),
            reasons=(name("precision int8: the device is fast in it"),),
        ),
        precision=WeightPrecision(
            name="int8", weight_bytes={name("int8"): 4_600_000, "float32": 176_000}, quantized_ops=50, float_ops=1
        ),
        inputs=(TensorSpec(name=name("pixels"), dtype="float32", shape=(1, 3, 224, 224)),),
        outputs=(TensorSpec(name=name("logits"), dtype="float32", shape=(1, 1000)),),
        artifacts=(
            Artifact(
                path=name("model.onnx"),
                bytes=5_080_000,
                sha256=sha256,
                format=format,
                runtime=name("onnxruntime"),
                runtime_version_range=name("onnxruntime>=1.20"),
            ),
        ),
        calibration=CalibrationRecord(origin=name("photos"), samples=64, sha256="1" * 64),
        changes=(
            Change(tensor=name("stem.weight"), step=name("int8_static"), before="float32", after=name("int8"),
                   bytes_before=3456, bytes_after=864),
            Change(tensor=name("stem.bias"), step=name("int8_static"), before="float32", after="float32",
                   bytes_before=128, bytes_after=128, reason=name("added at accumulator precision")),
        ),
        parity=found or parity(name),
        delegation=Delegation(
            unit=name("npu"),
            units={name("npu"): {name("Conv"): 49}, "cpu": {name("Resize"): 2, "Softmax": 1}},
            partitions=2,
            layout_copies=3,
            layout_copies_share=0.04,
            float_islands=(name("blocks.2.norm"),),
            fallbacks=(
                Fallback(op=name("Resize"), where=name("up"), source=name("model.py:41"), reason=name("not nearest")),
            ),
        ),
        measurements=measurements,
        against_float=AgainstFloat(float_p50_s=0.06, ratio=0.53, ratio_ci=Interval(low=0.46, high=0.67)),
        warnings=(name("only 30 calibration samples"),),
        tool_versions={name("torch"): name("2.13.0")},
        created_utc=name("2026-11-22T04:18:35+00:00"),
    )  # fmt: skip
    return Bundle(Path("out") / format, manifest)


def full(
    name: Name = plain,
) -> tuple[list[Bundle], list[tuple[str, Measurement]], list[tuple[str, Comparison]]]:
    """Two bundles, one of which misses parity, three measurements from files (one of neither), and a comparison."""
    bundles = [
        bundle(name, measurement(name)),
        bundle(name, format="tflite", sha256="b" * 64, found=parity(name, ok=False)),
    ]
    saved = [
        ("profile.json", metered(name)),
        (name("emulated.json"), msgspec.structs.replace(emulated(name), artifact_sha256="b" * 64)),
        ("old.json", measurement(name, artifact_sha256="c" * 64, latency=summarize([0.02] * 12), trials=())),
    ]
    return bundles, saved, [(name("compare.json"), comparison(name))]
