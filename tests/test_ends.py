from models import model

from onnxcompress.base import Context
from onnxcompress.ends import ends
from onnxcompress.layers import layers

BRANCHES = """g (float[N,4] x, float[N,4] z, bool c) => (float[N,4] y, float[N,4] v)
<float[4,4] w = {}, float[4,4] k = {}> {
    [one] a = MatMul(x, w)
    [two] b = MatMul(z, w)
    s = Add(a, b)
    [three] d = MatMul(s, k)
    [branch] e = If (c) <
        then_branch = g1 () => (float[N,4] t) { [inside] t = MatMul(d, k) },
        else_branch = g2 () => (float[N,4] f) { f = Relu(d) }
    >
    [four] y = MatMul(e, k)
    [five] v = MatMul(d, k)
}"""


def names(text: str) -> set[str]:
    made = model(text)
    return {layer.name for layer in ends(made.graph, layers(made, Context()))}


def test_every_input_has_a_first_layer_and_every_output_a_last_one() -> None:
    assert names(BRANCHES) == {"one", "two", "four", "five"}


def test_a_layer_in_a_branch_stands_where_the_branch_does() -> None:
    assert "inside" in names(BRANCHES.replace("[four] y = MatMul(e, k)", "y = Relu(e)"))


def test_a_layer_beside_the_way_of_others_is_no_end_where_they_read_it_later() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {}> {
        [first] a = MatMul(x, w)
        [way] b = MatMul(a, w)
        [shortcut] c = MatMul(a, w)
        s = Add(b, c)
        [last] y = MatMul(s, w)
    }"""
    assert names(text) == {"first", "last"}


def test_a_model_of_one_layer_has_but_ends() -> None:
    assert names("g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {}> { [only] y = MatMul(x, w) }") == {
        "only"
    }
