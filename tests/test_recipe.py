import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.base import Effect, Option, Pass
from onnxcompress.errors import UsageError
from onnxcompress.passes import Prune, Quant, Simplify
from onnxcompress.recipe import PRESETS, Recipe, as_recipe, preset
from onnxcompress.registry import passes


def values(each: Option) -> st.SearchStrategy[Any]:
    if each.choices:
        return st.sampled_from(each.choices)
    if each.kind is bool:
        return st.booleans()
    low, high = each.within or (-(2**31), 2**31)
    if each.kind is int:
        return st.integers(int(low), int(high))
    if each.kind is float:
        return st.floats(low, high, allow_nan=False)
    if each.pattern:
        return st.sampled_from(["fc.*", "conv[0-9]+", "a'b|\\d", "x\ny"])
    return st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)


def pass_of(kind: type[Pass]) -> st.SearchStrategy[Pass]:
    return st.fixed_dictionaries({}, optional={each.name: values(each) for each in kind.options()}).map(
        lambda options: kind(**options)
    )


recipes = st.lists(st.sampled_from(list(passes().values())).flatmap(pass_of), min_size=1, max_size=4).map(
    lambda each: Recipe(tuple(each))
)


@given(recipes)
def test_text_round_trips(recipe: Recipe) -> None:
    assert Recipe.parse(str(recipe)) == recipe


@given(recipes)
def test_toml_round_trips(recipe: Recipe) -> None:
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@given(st.text(string.ascii_letters + "()=,'\"\\ 0.5-", max_size=30))
def test_any_text_is_a_recipe_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        Recipe.parse(text)


def test_options_are_read_into_passes() -> None:
    recipe = Recipe.parse("simplify, prune( sparsity = 0.6, exclude='fc.*' ),quant")
    assert recipe == Recipe((Simplify(), Prune(sparsity=0.6, exclude="fc.*"), Quant()))
    assert str(recipe) == "simplify,prune(sparsity=0.6, exclude='fc.*'),quant"
    assert recipe.effect is Effect.LOSSY
    assert Recipe.parse("simplify").effect is Effect.EXACT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prnue", "prnue: no such pass; did you mean prune?"),
        ("prune(sparsty=0.5)", "prune: sparsty: no such option; did you mean sparsity?"),
        (
            "zzz",
            "zzz: no such pass; there are: simplify, fuse, remove-masked, equalize, prune, prune-channels, "
            "factorise, shrink-kernels, shuffle, cluster, ternarise, binarise, quant-log, quant-fixed, "
            "quant, quant-blocks, correct-bias, cast, encode",
        ),
        ("prune(sparsity=0.5, sparsity=0.6)", "prune: option sparsity is given twice"),
        ("prune(sparsity=2)", "prune: option sparsity is 2.0, expected 0 to 1"),
        ("prune(", "recipe: unexpected the end in 'prune(', expected an option"),
        ("prune quant", "recipe: unexpected quant in 'prune quant', expected , between passes"),
        (
            "prune;quant",
            "recipe: unexpected ';quant' in 'prune;quant', "
            "expected a pass, an option or a value (in quotes where it is no word or number)",
        ),
        ("", "recipe: unexpected the end in '', expected the name of a pass"),
        ("prune(sparsity)", "recipe: unexpected ) in 'prune(sparsity)', expected = after sparsity"),
        (
            "prune(sparsity=1e)",
            "recipe: unexpected '1e)' in 'prune(sparsity=1e)', "
            "expected a pass, an option or a value (in quotes where it is no word or number)",
        ),
    ],
)
def test_a_wrong_recipe_says_what_was_meant(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.parse(text)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "recipe: not TOML: "),
        ("a = 1", "recipe: expected [[pass]] tables and nothing else"),
        ("[[pass]]\nsparsity = 1", "recipe: a [[pass]] table has no name, expected name = '...'"),
        ('[[pass]]\nname = "prune"\nsparsity = "x"', "prune: option sparsity is 'x', expected float"),
        ('[[pass]]\nname = "prune"\nsparsity = [1]', "prune: option sparsity is [1], expected float"),
    ],
)
def test_a_wrong_toml_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.from_toml(text)
    assert str(error.value).startswith(said)


def test_a_recipe_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Recipe.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        Recipe.read(tmp_path / "binary.toml")


def test_presets_are_lists_of_passes() -> None:
    assert {name: str(preset(name)) for name in PRESETS} == PRESETS
    assert [each.name for each in preset("lossless").passes] == ["simplify", "fuse", "encode"]
    assert preset("lossless").effect is Effect.EXACT
    assert [each.name for each in preset("small").passes] == ["simplify", "fuse", "cluster", "encode"]
    with pytest.raises(UsageError, match="lossles: no such preset; did you mean lossless"):
        preset("lossles")


def test_python_takes_texts_passes_and_both() -> None:
    wanted = Recipe((Prune(), Quant()))
    assert as_recipe("prune,quant") == as_recipe([Prune(), "quant"]) == as_recipe(wanted) == wanted
    assert as_recipe(Prune()) == Recipe((Prune(),))
