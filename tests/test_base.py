from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    """Give the graph another name."""

    name: ClassVar[str] = "rename"
    effect: ClassVar[Effect] = Effect.EXACT
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TARGET})

    to: str = option("other", "the new name")
    times: int = option(1, "how often", within=(1, 3))
    share: float = option(0.5, "a share", within=(0.0, 1.0))
    loud: bool = option(False, "say it")
    mode: str = option("soft", "how", choices=("soft", "hard"))

    def call(self, model: ir.Model, context: Context) -> Result:
        result = Result(model)
        if model.graph.name == self.to:
            result.left("graph", "has that name")
        else:
            model.graph.name = self.to
            result.changed("graph", "renamed", times=self.times)
        return result


def model() -> ir.Model:
    return ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> a (float[N] x) => (float[N] y) { y = Relu(x) }'
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"times": 4}, "rename: option times is 4, expected 1 to 3"),
        ({"times": True}, "rename: option times is True, expected int"),
        ({"times": 1.5}, "rename: option times is 1.5, expected int"),
        ({"share": float("nan")}, "rename: option share is nan, expected 0 to 1"),
        ({"loud": 1}, "rename: option loud is 1, expected bool"),
        ({"mode": "odd"}, "rename: option mode is 'odd', expected one of soft, hard"),
        ({"mode": 3}, "rename: option mode is 3, expected one of soft, hard"),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_name(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        Rename(**options)  # type: ignore[arg-type]
    assert str(error.value) == said


def test_an_integer_serves_as_a_float() -> None:
    assert Rename(share=1).share == 1.0
    assert isinstance(Rename(share=1).share, float)


def test_text_form_shows_only_what_differs_from_the_defaults() -> None:
    assert str(Rename()) == "rename"
    assert str(Rename(to="a b", share=0.25)) == "rename(to='a b', share=0.25)"


def test_counts_and_modified_come_from_the_records() -> None:
    result = Result(model())
    assert not result.modified
    result.left("a", "too small")
    assert not result.modified
    result.changed("b", "pruned")
    result.changed("c", "pruned", zeros=3)
    assert result.modified
    assert result.counts(True) == {"pruned": 2}
    assert result.counts(False) == {"too small": 1}
    assert result.records[-1].numbers == {"zeros": 3}


def test_a_pass_says_what_it_lacks() -> None:
    with pytest.raises(UsageError, match="rename: needs target, none was given"):
        Rename().require(Context())


def test_a_bound_pass_joins_a_pipeline_of_onnx_ir() -> None:
    context = Context(target="host")
    pipeline = ir.passes.Sequential(Rename(to="new").bind(context), Rename(to="new").bind(context))
    given = model()
    done = pipeline(given)
    assert done.model is given
    assert done.modified
    assert given.graph.name == "new"
    assert not Rename(to="new").bind(context)(given).modified


def test_exclusion_takes_whole_names() -> None:
    context = Context(exclude=("fc.*",))
    assert context.excludes("fc1")
    assert not context.excludes("my_fc1")
    assert context.excludes("conv1", "conv[0-9]")
    assert not context.excludes("conv1", "")
