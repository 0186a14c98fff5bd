"""What the ONNX exporter does to files and graphs, whatever their precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ToolchainMissing, UnsupportedModel

if TYPE_CHECKING:
    import onnx

MODULE = "edgekit.module"  # metadata key of a node: the path of its PyTorch module
FILE = "model.onnx"
DATA = "model.onnx.data"


def toolchain() -> Any:
    """The onnx package, or `ToolchainMissing` with the line that installs it."""
    try:
        import onnx
        import onnx.shape_inference
        import onnxscript  # noqa: F401  torch.onnx needs it and says so less clearly
    except ImportError as error:
        raise ToolchainMissing(f"exporter 'onnx' needs {error.name}: pip install 'edgekit[onnx]'") from error
    return onnx


def save(proto: onnx.ModelProto, path: Path, large: bool) -> None:
    """Write a model, its weights beside it when they are large; onnx would append them to those already there."""
    (path.parent / DATA).unlink(missing_ok=True)
    toolchain().save(proto, path, save_as_external_data=large, location=DATA)


def module_of(node: onnx.NodeProto) -> str | None:
    """The PyTorch module that a node came from."""
    return next((p.value for p in node.metadata_props if p.key == MODULE), None)


def rename_ends(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the model's names, and move inner values that hold these out of the way.

    An output that is an input, or the same value as another output, gets an Identity: names must be unique.
    """
    onnx = toolchain()
    graph = proto.graph
    if len(graph.input) != len(inputs) or len(graph.output) != len(outputs):
        raise UnsupportedModel(
            f"the converted graph has {len(graph.input)} inputs and {len(graph.output)} outputs, the model "
            f"{len(inputs)} and {len(outputs)}: return every tensor once, and use every input"
        )
    taken = {value.name for value in graph.input}
    for value in graph.output:
        if value.name in taken:
            source = value.name
            value.name = f"{source}.identity{len(graph.node)}"
            graph.node.append(onnx.helper.make_node("Identity", [source], [value.name], name=value.name))
        taken.add(value.name)
    wanted = {**{v.name: n for v, n in zip(graph.input, inputs, strict=True)}}
    wanted |= {v.name: n for v, n in zip(graph.output, outputs, strict=True)}
    inner = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    renamed = {name: f"{name}.inner" for name in inner if name in wanted.values()} | wanted
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = renamed.get(item.name, item.name)


def tag_modules(proto: onnx.ModelProto) -> None:
    """Keep the module path of each node and drop the rest of the trace."""
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
        del node.metadata_props[:]
        if scopes is not None:
            path = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
            node.metadata_props.add(key=MODULE, value=path[-2] if len(path) > 1 else "")
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
