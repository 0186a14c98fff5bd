"""Models from the user's own files and packages, and everything that can be wrong with these."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, InvalidInput, UnknownName, UnsupportedModel
from edgekit.source import load

MODELS = Path(__file__).with_name("models.py")
LINEAR = "import torch\ndef make():\n    return torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)\n"


def write(folder: Path, text: str, name: str = "user_model.py") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_factory_in_a_file_is_called(tmp_path: Path) -> None:
    model = load(write(tmp_path, LINEAR) + ":make")
    assert (model.source.kind, model.name, model.inputs[0].shape) == ("python", "make", (1, 3))


def test_a_relative_path_is_taken_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "nested", LINEAR)
    monkeypatch.chdir(tmp_path)
    assert load("nested/user_model.py:make").inputs[0].shape == (1, 3)


def test_a_factory_in_a_package_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "edgekit_test_package", "", "__init__.py")
    write(tmp_path / "edgekit_test_package", "WIDTH = 5\n", "sizes.py")
    write(tmp_path / "edgekit_test_package", "from .sizes import WIDTH\n" + LINEAR.replace("3", "WIDTH"), "models.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("edgekit_test_package.models:make").inputs[0].shape == (1, 5)


def test_a_module_class_with_default_arguments_is_a_factory() -> None:
    assert load(f"{MODELS}:Mlp", inputs=["x:float32:1x16"]).outputs[0].shape == (1, 4)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 7\n", "edgekit_neighbour_a.py")
    ref = write(tmp_path, "from edgekit_neighbour_a import WIDTH\n" + LINEAR.replace("3", "WIDTH"))
    assert load(f"{ref}:make").inputs[0].shape == (1, 7)


def test_a_factory_may_import_its_neighbours_when_called(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 7\n", "edgekit_neighbour_b.py")
    lazy = LINEAR.replace("return", "from edgekit_neighbour_b import WIDTH\n    return").replace("3", "WIDTH")
    assert load(write(tmp_path, lazy) + ":make").inputs[0].shape == (1, 7)


def test_loading_leaves_the_import_path_as_it_was(tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    load(write(tmp_path, LINEAR) + ":make")
    with pytest.raises(InvalidInput):
        load(write(tmp_path, "1 / 0") + ":make")
    assert sys.path == before


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    width: int = 4\n" + LINEAR.replace("3", "Config().width")
    )
    assert load(write(tmp_path, text) + ":make").inputs[0].shape == (1, 4)


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", LINEAR), write(tmp_path / "b", LINEAR.replace("3", "9"))
    assert [load(f"{ref}:make").inputs[0].shape for ref in (first, second, first)] == [(1, 3), (1, 9), (1, 3)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file '.*gone.py'"):
        load(f"{tmp_path}/gone.py:make")


def test_a_missing_factory_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"models.py' is called 'smal_conv'. Did you mean 'small_conv'\?.*two_inputs"):
        load(f"{MODELS}:smal_conv")


@pytest.mark.parametrize("ref", ["no_such_package_x:make", "no_such_package_x.models:make", "json.gone:make"])
def test_a_missing_package_is_named(ref: str) -> None:
    with pytest.raises(InvalidInput, match=f"cannot import '{ref.partition(':')[0]}'.*No module named"):
        load(ref)


@pytest.mark.parametrize("ref", [":make", ".models:make", "..:make", ":", "a b:make", "/:make"])
def test_an_impossible_module_name_is_refused(ref: str) -> None:
    with pytest.raises(InvalidInput, match="import"):
        load(ref)


def test_a_missing_factory_name_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"There are:.*small_conv"):
        load(f"{MODELS}:")


def test_a_dependency_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"user_model.py'.*No module named 'no_such_dependency'"):
        load(write(tmp_path, "import no_such_dependency\n" + LINEAR) + ":make")


def test_a_syntax_error_is_shown_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"user_model.py' raised SyntaxError:.*line 2"):
        load(write(tmp_path, "import torch\ndef make(:\n") + ":make")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"make = 1\x00"])
def test_a_file_that_is_no_python_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "binary.py").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"importing '.*binary.py' raised"):
        load(f"{tmp_path}/binary.py:make")


def test_an_error_while_importing_is_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="raised ZeroDivisionError: division by zero"):
        load(write(tmp_path, "1 / 0\n" + LINEAR) + ":make")


def test_a_factory_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(UnsupportedModel, match=r"models.py:raising' raised RuntimeError: weights were not found"):
        load(f"{MODELS}:raising")


def test_a_factory_that_needs_arguments_is_told_to_take_none(tmp_path: Path) -> None:
    ref = write(tmp_path, LINEAR.replace("make()", "make(width)"))
    with pytest.raises(UnsupportedModel, match=r"make.*missing 1 required positional argument: 'width'"):
        load(f"{ref}:make")


@pytest.mark.parametrize("where", ["import", "factory"])
def test_a_file_that_exits_does_not_end_the_command(tmp_path: Path, where: str) -> None:
    text = "import sys\n" + ("sys.exit(0)\n" if where == "import" else "def make():\n    sys.exit(0)\n")
    with pytest.raises(EdgekitError, match=r"user_model.py.*raised SystemExit"):
        load(write(tmp_path, text) + ":make")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("'model'", "str"),
        ("None", "NoneType"),
        ("(1, 2)", "tuple"),
        ("(torch.nn.Identity(), torch.ones(1), 3)", "tuple"),
        ("[torch.nn.Identity()]", "list"),
        ("torch.nn.Identity", "type"),
        ("torch.nn.Identity().state_dict()", "OrderedDict"),
    ],
)
def test_a_factory_that_returns_something_else_is_refused(tmp_path: Path, value: str, kind: str) -> None:
    ref = write(tmp_path, f"import torch\ndef make():\n    return {value}\n")
    with pytest.raises(UnsupportedModel, match=rf"returned a {kind}; it must return a torch.nn.Module, or \(module"):
        load(f"{ref}:make")


def test_a_name_that_is_no_factory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no factory .* is called 'WIDTH'.*make"):
        load(write(tmp_path, LINEAR + "WIDTH = 3\n") + ":WIDTH")


def test_a_module_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "small.py").write_text(
        "import torch\ndef net(): return torch.nn.ReLU(), torch.ones(1, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load("my_nets.small:net").name == "net"
