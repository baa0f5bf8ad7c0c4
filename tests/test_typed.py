import json
import math
from dataclasses import dataclass, field

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import HOSTILE, made, real

from onnxcompress.errors import UsageError
from onnxcompress.report import SCHEMA, Report
from onnxcompress.typed import plain, read, schema


@dataclass
class Leaf:
    """A leaf."""

    number: float
    share: float | None = None


@dataclass
class Tree:
    """A tree of leaves."""

    name: str
    leaves: list[Leaf]
    pair: tuple[int, float] | None
    many: tuple[str, ...]
    known: dict[str, int | float | str] = field(default_factory=dict)
    flag: bool = False


def document(value: Tree) -> dict[str, object]:
    found: dict[str, object] = json.loads(json.dumps(plain(value), allow_nan=False))
    return found


trees = st.builds(
    Tree,
    st.text(),
    st.lists(st.builds(Leaf, st.floats(allow_nan=False, allow_infinity=False))),
    st.none() | st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    st.lists(st.text()).map(tuple),
    st.dictionaries(st.text(), st.integers() | st.floats(0.5, 0.75) | st.text()),
    st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(trees)
def test_what_was_written_is_read_back_and_fits_the_schema(tree: Tree) -> None:
    assert read(Tree, document(tree), "tree") == tree
    jsonschema.validate(document(tree), schema(Tree, {}, "Tree"))


def test_what_is_not_finite_is_null_and_read_as_infinity_where_none_is_not_meant() -> None:
    written = json.loads(json.dumps(plain(Leaf(math.inf, math.nan)), allow_nan=False))
    assert written == {"number": None, "share": None}
    assert read(Leaf, written, "leaf") == Leaf(math.inf, None)


WRONG = {
    "an array": ([], "tree: is an array, expected an object"),
    "a field more": ({"color": 1}, "tree: has a field 'color'"),
    "a field less": ({"name": ...}, "tree: has no name"),
    "a wrong type": ({"name": 3}, "tree.name: is 3, expected string"),
    "a wrong type below": ({"leaves": [{"number": "x"}]}, "tree.leaves[0].number: is 'x', expected number"),
    "a truth as a number": ({"leaves": [{"number": True}]}, "tree.leaves[0].number: is True"),
    "a short pair": ({"pair": [1]}, "tree.pair: is an array, expected an array"),
    "a wrong value": (
        {"known": {"a": []}},
        "known.a: is an array, expected integer or number or string",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_its_place_and_by_the_schema(case: str) -> None:
    changes, said = WRONG[case]
    given: object = changes
    if isinstance(changes, dict):
        whole = {**document(Tree("a", [], None, ())), **changes}
        given = {name: value for name, value in whole.items() if value is not ...}
    with pytest.raises(UsageError) as error:
        read(Tree, given, "tree")
    assert said in str(error.value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, schema(Tree, {}, "Tree"))


@pytest.mark.parametrize("report", [real, made, lambda: made(HOSTILE.replace("\ud800", ""))])
def test_reports_fit_the_schema_and_are_read_back(report) -> None:  # type: ignore[no-untyped-def]
    written = json.loads(report().as_json())
    jsonschema.validate(written, schema(Report, {"schema": {"const": SCHEMA}}, "Report"))
    assert written.pop("schema") == SCHEMA
    assert read(Report, written, "report") == report()
