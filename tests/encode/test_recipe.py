"""The language of methods and recipes, and tensors that a method cannot code."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_models import normal, save, saved_and_loaded, sqnr_db

from vqformat.encode.recipe import KINDS, METHODS, Match, Method, Option, Recipe, Term, parse_method
from vqformat.errors import EncodeError


def option_values(option: Option) -> st.SearchStrategy[int | float | str]:
    match option.default:
        case str():
            return st.sampled_from(option.allowed) if option.allowed else st.sampled_from(["a", "book-1", "x.y"])
        case int():
            return st.integers(int(option.allowed[0]), min(int(option.allowed[1]), 16))
    return st.floats(float(option.allowed[0]), float(option.allowed[1]))


@st.composite
def terms(draw: st.DrawFn, *, first: bool, alone: bool) -> Term:
    names = [name for name, kind in KINDS.items() if alone or (kind.in_sums and name != "uniform")]
    name = draw(st.sampled_from(names))
    barred = () if first else ("axis", "share", "seed")
    given = [(key, draw(option_values(option))) for key, option in KINDS[name].options.items()
             if key not in barred and key != "stages" and draw(st.booleans())]  # fmt: skip
    return Term(name, tuple((key, value) for key, value in given if value != KINDS[name].options[key].default))


@given(st.data(), st.integers(1, 3))
def test_text_of_a_method_reads_back_as_the_method(data: st.DataObject, n_terms: int) -> None:
    method = Method(tuple(data.draw(terms(first=i == 0, alone=n_terms == 1)) for i in range(n_terms)))

    assert parse_method(str(method)) == method


def test_text_is_canonical() -> None:
    assert str(parse_method("pq: entries=16 , dim=4")) == "pq:entries=16"  # defaults and order do not count
    assert str(parse_method("svd:rank=16 + pq:dim=8")) == "svd:rank=16+pq:dim=8"
    assert parse_method("uniform:step=1e-3") == parse_method("uniform:step=0.001")


def test_options_have_defaults() -> None:
    method = parse_method("pq:dim=2")

    assert method.terms[0]["dim"] == 2
    assert method.terms[0]["entries"] == 256
    assert method.get("rank") is None
    assert method.seed is None
    assert parse_method("vq:seed=7").seed == 7
    assert parse_method("vq:axis=columns").by_columns and not method.by_columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pg", "no method 'pg', did you mean 'pq'? known are raw, lossless"),
        ("", "no method ''; known are raw"),
        ("pq:dims=4", "no option 'dims', did you mean 'dim'? its options: dim, entries"),
        ("raw:dim=4", "raw has no option 'dim'; its options: none"),
        ("pq:dim", "has no value, as in dim=4"),
        ("pq:dim=4,dim=5", "given twice"),
        ("pq:dim=0", "'0'; allowed is a whole number from 1 to 4096"),
        ("pq:dim=2.5", "'2.5'; allowed is a whole number from 1 to 4096"),
        ("pq:dim=x", "'x'; allowed is a whole number"),
        ("kmeans:entries=65537", "allowed is a whole number from 1 to 65536"),
        ("uniform:step=nan", "'nan'; allowed is a number"),
        ("uniform:step=inf", "'inf'; allowed is a number"),
        ("binary:scale=block", "'block'; allowed are row, column, tensor, none"),
        ("vq:share=", "''; allowed are words"),
        ("pq+raw", "raw cannot be part of a sum; these can: uniform, binary"),
        ("uniform:bits=2+pq", "uniform cannot be the first of a sum"),
        ("svd+uniform", "uniform needs step or bits in a sum"),
        ("svd+pq:axis=columns", "option 'axis' is one of the first term only"),
        ("vq+vq:share=a", "option 'share' is one of the first term only"),
        ("pq+", "no method ''"),
        ("rq:stages=16+pq", "has 17 stages; a tensor can have 16"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        parse_method(text)

    assert message in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_method_or_an_encode_error(text: str) -> None:
    with contextlib.suppress(EncodeError):
        parse_method(text)


def test_every_method_has_a_line_of_help() -> None:
    assert METHODS.keys() == KINDS.keys()
    assert all(line and "\n" not in line for line in METHODS.values())
    assert "entries (values of a codebook; 16)" in METHODS["kmeans"]


# Recipes


def test_the_first_pattern_that_matches_wins() -> None:
    recipe = Recipe({"fc*": "pq", "*": "kmeans"})

    assert recipe.method_for("fc1.weight") == Match(parse_method("pq"), True)
    assert recipe.method_for("conv1.weight") == Match(parse_method("kmeans"), True)


def test_a_whole_name_comes_before_patterns() -> None:
    recipe = Recipe({"*": "kmeans", "fc1.weight": "raw", "layers[0].w": "binary"})

    assert recipe.method_for("fc1.weight") == Match(parse_method("raw"), False)
    assert recipe.method_for("layers[0].w") == Match(parse_method("binary"), False)


def test_without_a_match_the_default_holds() -> None:
    assert Recipe({"fc*": "pq"}).method_for("conv1") == Match(None, True)
    assert Recipe({"fc*": "pq"}, default="raw").method_for("conv1") == Match(parse_method("raw"), True)


def test_case_matters() -> None:
    assert Recipe({"FC*": "pq"}).method_for("fc1").method is None


def test_rules_are_parsed_at_their_first_equals_sign() -> None:
    recipe = Recipe.parse(["fc*=pq:dim=8,entries=16"], default="fine")

    assert recipe.method_for("fc1").method == parse_method("pq:dim=8,entries=16")
    assert recipe.default == parse_method("fine")


@pytest.mark.parametrize("rules", [["fc*"], ["=pq"], ["fc*=pq", "fc*=vq"], ["fc*="]])
def test_bad_rules_are_refused(rules: list[str]) -> None:
    with pytest.raises(EncodeError):
        Recipe.parse(rules)


def test_patterns_that_decide_nothing_are_known() -> None:
    recipe = Recipe.parse(["fc1=raw", "fc*=pq", "conv*=vq", "fc2*=kmeans"])

    assert recipe.unused(["fc1", "fc2"]) == ["conv*", "fc2*"]


def test_a_wildcard_falls_back_where_its_method_fails() -> None:
    """Sums of stages could leave the range of float16."""
    model = {"wide": np.clip(normal(64, 64) * 30_000, -65504, 65504).astype(np.float16), "fits": normal(64, 64)}

    for options in ({}, {"bits": 6}):
        loaded, report = saved_and_loaded(model, recipe={"*": "rq:entries=16,stages=3"}, **options)
        assert sqnr_db(model["wide"], loaded["wide"]) > 10
        assert len(report.notes) == 1 and "'wide'" in report.notes[0] and "rq:" in report.notes[0]
        assert report.tensors[1].bits_per_weight < 4

    with pytest.raises(EncodeError, match="'wide'"):
        save(model, recipe={"wide": "rq:entries=16,stages=3"})


def test_a_fallen_tensor_takes_part_in_the_budget() -> None:
    model = {"wide": np.clip(normal(128, 128) * 30_000, -65504, 65504).astype(np.float16)}

    data, _ = save(model, recipe="rq:entries=16,stages=3", bits=5)

    assert 0.99 * 10240 <= len(data) <= 10240
