"""How widgets word the end of a rectification that fell short."""

from __future__ import annotations

from dataclasses import replace

from rectify_widgets.engine.repair.diagnosis import diagnose
from rectify_widgets.engine.repair.result import Evidence
from rectify_widgets.widgets import markup
from tests.test_history_viewer import rectification
from tests.test_timeline import joint, trial

EVIDENCE = Evidence(
    pairs=1,
    references=40,
    shared=True,
    shown=0.9,
    shown_pairs=1.0,
    unlike=0,
    classes=4,
    classes_seen=4,
    suspected=0.0,
    left=0.2,
    worst_left=(2, 0.6),
    changed=0.0,
    worst_changed=None,
)


def test_the_outcome_ends_with_the_diagnosis() -> None:
    result = replace(rectification(), evidence=EVIDENCE)
    result = replace(result, diagnosis=diagnose(result))
    assert len(result.diagnosis) >= 2
    text = markup.outcome(result)
    assert text == markup.outcome(rectification()) + " " + " ".join(result.diagnosis)
    assert text.startswith("Done after 3 edits, no further layer helps")
    assert "20.0 % of the references, most of all in class 2 (60.0 %)" in text


def test_a_rectification_of_which_no_more_is_known_says_how_it_ended() -> None:
    assert rectification().diagnosis == ()
    assert markup.outcome(rectification()).endswith("degradation 1.0 %.")


def test_edits_made_together_are_one_row_and_a_row_a_layer() -> None:
    steps = [
        trial(1, "a", gap=0.9),
        joint("stem", 0.8, 0.35, of=3),
        joint("<b>", 0.4, 0.6, of=3),
        joint("stem", 0.25, 0.3, of=3),
    ]
    last = trial(2, "stem", kept=True, gap=0.2)
    result = replace(rectification(), steps=[*steps, last])
    lines = str(result).splitlines()
    assert len(lines) == 1 + 1 + 1 + 3 + 1 + 1, "head, trial, summary, layers, trial, verdict"
    assert lines[2].split()[:4] == ["1", "2", "layers", "joint"]
    assert "1.000 → 0.250" in lines[2]
    assert lines[2].endswith("yes: 3 edits refined together")
    assert [line.split() for line in lines[4:6]] == [
        ["<b>", "1", "+0.350"],
        ["stem", "2", "+0.150"],
    ]
    html = result._repr_html_()
    assert html.count("<table>") == 2
    assert html.count("<tr>") == (1 + 3) + (1 + 2)
    assert html.index("&lt;b&gt;") < html.rindex("<code>stem")
    assert "+0.350" in html
    one = replace(result, steps=[joint("stem", 0.2, 0.9, of=1)])
    assert str(one).splitlines()[1].split()[1] == "stem", "one layer has its name"


def test_nothing_to_rectify_tells_why() -> None:
    evidence = replace(EVIDENCE, shown=0.0, shown_pairs=0.0)
    result = replace(rectification(), evidence=evidence, stopped="target", edits=[], steps=[])
    result = replace(result, diagnosis=diagnose(result))
    assert markup.outcome(result) == (
        "Nothing to rectify: the gap is 100.0 %, within its target. The corruption changes the class "
        "of none of the pairs: check whether the difference between corrupted and clean is what the "
        "model responds to."
    )
