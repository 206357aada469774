"""The options of a rectification: checked once, the same in every place that lists them."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields
from typing import Any

import pytest

from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.refining import REFINE_STEPS


def test_rectify_has_the_same_keywords_and_defaults() -> None:
    keywords = inspect.signature(rectify).parameters
    others = {
        "model", "pairs", "reference", "validation", "checkpoint", "progress", "cancel",
    }  # fmt: skip
    assert {name: keywords[name].default for name in keywords if name not in others} == {
        field.name: field.default for field in fields(RectifyOptions)
    }


def test_options_are_checked_and_put_in_one_form() -> None:
    options = RectifyOptions(
        directions="key", ridges=[1, 0.1], max_degradation=1, strategy="static"
    )
    assert (options.directions, options.ridges) == (("key",), (1.0, 0.1))
    assert (options.max_degradation, options.refine_steps) == (1.0, 0)
    assert (options.rounds, options.max_rounds) == (1, 8)
    assert RectifyOptions().refine_steps == REFINE_STEPS
    assert RectifyOptions().rounds == 8
    assert RectifyOptions(**asdict(options)) == options


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("strategy", "both", ValueError),
        ("layer", "conv", ValueError),  # with the dynamic strategy
        ("method", "guess", ValueError),
        ("max_rounds", 0, ValueError),
        ("max_degradation", 2.0, ValueError),
        ("target_gap", "small", TypeError),
        ("directions", [], ValueError),
        ("ridges", (-1.0,), ValueError),
        ("refine_steps", -1, ValueError),
        ("memory_limit", 0.5, TypeError),
        ("seed", -1, ValueError),
    ],
)
def test_a_wrong_option_is_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name}: got "):
        RectifyOptions(**{name: value})
