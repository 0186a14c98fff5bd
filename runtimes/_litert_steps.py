"""The integers that LiteRT computes for every tensor of a file, before anything is made a float again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edgekit.bundle import Bundle
from edgekit.errors import ToolchainMissing
from edgekit.processing import Array, Arrays
from edgekit.quiet import quiet_native
from edgekit.runtimes.litert import SIGNATURE, edges, open_interpreter

Steps = dict[int, Array]  # by the tensor's index in the file


class Border(NamedTuple):
    """Between named arrays of the manifest and integers of the file."""

    encode: Callable[[Arrays], Steps]
    outputs: dict[str, int]  # name in the manifest -> tensor in the file
    decode: Callable[[str, Array], Array]


def border(bundle: Bundle) -> Border:
    """How a bundle's inputs become steps, and steps its outputs. Raises `BundleCorrupt`, `ToolchainMissing`."""
    inputs, outputs = edges(open_interpreter(bundle, 1), bundle, SIGNATURE)
    names = [spec.name for spec in bundle.manifest.outputs]
    decoders = {name: decode for name, (_, decode) in zip(names, outputs, strict=True)}

    def decode(name: str, steps: Array) -> Array:
        found = decoders[name]
        return steps if found is None else found(steps)

    return Border(
        encode=lambda feeds: {i: feeds[n] if encode is None else encode(feeds[n]) for n, i, encode in inputs},
        outputs={name: index for name, (index, _) in zip(names, outputs, strict=True)},
        decode=decode,
    )


def reference_kernels(bundle: Bundle) -> Callable[[Steps], Steps]:
    """Every tensor that an op writes in a run by LiteRT's reference kernels, which keep to integers."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ToolchainMissing("LiteRT's reference kernels come with it: pip install 'edgekit[litert]'") from error
    with quiet_native():
        interpreter = Interpreter(
            model_path=str(bundle.artifact_path),
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        interpreter.allocate_tensors()
    wanted = sorted({int(i) for each in interpreter._get_ops_details() for i in each["outputs"] if i >= 0})
    return lambda given: _run(interpreter, given, wanted)


def default_kernels(bundle: Bundle) -> Callable[[Steps], Steps]:
    """The outputs of a run as applications get it, through XNNPACK where it takes the ops."""
    interpreter = open_interpreter(bundle, 1)
    wanted = [int(each["index"]) for each in interpreter.get_output_details()]
    return lambda given: _run(interpreter, given, wanted)


def _run(interpreter: Any, given: Steps, wanted: list[int]) -> Steps:
    for index, value in given.items():
        interpreter.set_tensor(index, value)
    interpreter.invoke()
    return {index: interpreter.get_tensor(index) for index in wanted}
