"""A rectification that is killed, cancelled or broken off goes on as if nothing had happened."""

from __future__ import annotations

import copy
import inspect
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rectify_widgets.engine.base import files
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import Edits, load_edits, save_edits
from rectify_widgets.engine.find.problem import MAX_REFERENCES
from rectify_widgets.engine.repair import rounds
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.refining import Goal, refine
from rectify_widgets.engine.repair.result import STEP_COLUMNS, Rectification
from rectify_widgets.engine.repair.rounds import REFINED
from tests.engine.killed import OPTIONS, put_down
from tests.engine.test_edit_keeping import bits, same
from tests.engine.toy import Toy, samples, stamped

FREE = {"memory_limit"}
"""Options that change no result, so that a run may go on with others."""
ROOT = Path(__file__).resolve().parents[2]


class PowerCutError(Exception):
    """Raised by a hook."""


@pytest.fixture(scope="module")
def reference(trojan: Toy) -> Tensor:
    """One in ten carries the corruption, so that the loop leaves some out."""
    found = trojan.reference.clone()
    found[5::10] = stamped(found[5::10])
    return found


def run(toy: Toy, reference: Tensor, path: Path | None, **options: Any) -> Rectification:
    return rectify(
        toy.model,
        toy.pairs[0],
        **{"reference": reference, "checkpoint": path, **OPTIONS, **options},
    )


@pytest.fixture(scope="module")
def whole(trojan: Toy, reference: Tensor) -> Rectification:
    """The run that nobody interrupts."""
    result = run(trojan, reference, None)
    assert len(result.flagged) > 5
    closed = [edit for edit in result.edits if not edit.refined]
    assert result.edits[: len(closed)] == closed
    assert len(closed) >= 2  # of which the third is followed by edits of many layers
    assert len(result.edits) >= len(closed) + 2
    assert result.stopped == REFINED
    return result


def kept_by(result: Rectification, rounds_done: int) -> int:
    """Edits that were kept in the first rounds."""
    return sum(step.accepted and step.round <= rounds_done for step in result.steps)


def check_equal(one: Rectification, other: Rectification) -> None:
    """To the bit, but for the time it took."""
    assert same(one.model, bits(other.model))
    for mine, theirs in zip(one.edits, other.edits, strict=True):
        assert torch.equal(mine.left, theirs.left)
        assert torch.equal(mine.right, theirs.right)
        assert repr(mine) == repr(theirs)
    reported = [
        [[getattr(step, name) for name in STEP_COLUMNS if name != "seconds"] for step in r.steps]
        for r in (one, other)
    ]
    assert reported[0] == reported[1]
    assert torch.equal(one.flagged, other.flagged)
    for name in ("stopped", "gap_before", "gap_after", "degradation", "evidence", "diagnosis"):
        assert getattr(one, name) == getattr(other, name)


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "last"),
    [
        ("round 3: trying", None),  # two edits are kept, a third is in the weights for a trial
        ("refining", None),  # in the middle of a step
        ("measuring ", -1),  # they are about to be kept
        ("stopped", 0),  # they are kept
        ("write 3", None),  # the first write claims the file, the second comes after round 1
    ],
)
def test_killed_and_resumed(
    trojan: Toy,
    reference: Tensor,
    whole: Rectification,
    tmp_path: Path,
    when: str,
    last: int | None,
) -> None:
    rounds_in_all = max(step.round for step in whole.steps)
    if last is None:
        first = min(step.round for step in whole.steps if step.refined)
        done = {"round": 2, "write": 1}.get(when.split(maxsplit=1)[0], first - 1)
    else:
        done = rounds_in_all + last
    put_down(tmp_path, trojan.model, trojan.pairs[0], reference)
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.killed", str(tmp_path), when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    file = tmp_path / "run.safetensors"
    kept = load_edits(file)  # what is on the disk is whole, and is a file of edits
    assert len(kept) == kept_by(whole, done)
    fresh = copy.deepcopy(trojan.model)
    kept.apply(fresh)
    Edits(whole.edits[: len(kept)]).apply(again := copy.deepcopy(trojan.model))
    assert same(fresh, bits(again))
    before, messages = bits(trojan.model), list[str]()
    result = run(trojan, reference, file, progress=lambda _, text: messages.append(text))
    assert same(trojan.model, before)
    assert any(text.startswith(f"round {done + 1}:") for text in messages) == (last != 0)
    assert not [text for text in messages if text.startswith(f"round {done}:")]
    check_equal(result, whole)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert [
        torch.equal(e.delta, w.delta) for e, w in zip(load_edits(file), whole.edits, strict=True)
    ]


def test_broken_off_at_many_points(
    trojan: Toy, reference: Tensor, whole: Rectification, tmp_path: Path
) -> None:
    """Each attempt gets a little further than the one before, all on one file."""
    file, attempts, limit = tmp_path / "run.safetensors", 0, 20
    while True:
        reported, limit, attempts = 0, limit + 7, attempts + 1

        def hook(fraction: float, message: str) -> None:
            nonlocal reported
            reported += 1
            if reported == limit:  # noqa: B023 - used at once
                raise PowerCutError

        try:
            result = run(trojan, reference, file, progress=hook)
        except PowerCutError:
            continue
        break
    assert attempts > 3
    check_equal(result, whole)


@pytest.mark.parametrize("when", ["round 3: trying", "measuring "])
def test_cancelled_and_resumed(
    trojan: Toy, reference: Tensor, whole: Rectification, tmp_path: Path, when: str
) -> None:
    file, reported = tmp_path / "run.safetensors", list[str]()
    options = {"cancel": lambda: any(t.startswith(when) for t in reported)}
    halted = run(trojan, reference, file, progress=lambda _, text: reported.append(text), **options)
    assert halted.stopped == "cancelled"
    last = max(step.round for step in whole.steps) if when == "measuring " else 3
    # What an unfinished round had found is in the result, not in the file: it goes on as if whole.
    assert len(load_edits(file)) == kept_by(whole, last - 1)
    assert (len(halted.edits) > len(load_edits(file))) == (when == "measuring ")
    check_equal(run(trojan, reference, file), whole)


def test_further_references_that_were_left_out_stay_so(
    trojan: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refining after the run was taken up again learns from what it would have learnt from."""
    more = samples(MAX_REFERENCES + 40, seed=30)[0]
    more[::20] = stamped(more[::20])
    file = tmp_path / "run.safetensors"
    options = {"refine_steps": 2, "max_rounds": 2, "ridges": (0.1,), "directions": "key"}
    goals: list[Goal] = []

    def refining(*args: Any, **given: Any) -> Any:
        goals.append(args[3])
        return refine(*args, **given)

    monkeypatch.setattr(rounds, "refine", refining)
    monkeypatch.setattr(rounds, "ENOUGH", 1.0)
    one = run(trojan, more, None, **options)
    wanted = goals[-1].references
    assert len(wanted) > len(goals) > 0
    texts: list[str] = []
    run(
        trojan, more, file, **options, progress=lambda _, text: texts.append(text),
        cancel=lambda: any(text.startswith("round 2: trying") for text in texts),
    )  # fmt: skip
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["state"])["spare_flagged"]
    goals.clear()
    check_equal(run(trojan, more, file, **options), one)
    assert all(torch.equal(goal.references, wanted) for goal in goals)
    assert goals


# --- ended ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"target_gap": 0.5}, {"strategy": "static", "layer": "block2.conv1"}, {"target_gap": 1.0}],
)
def test_an_ended_run_gives_its_result_again(
    trojan: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    few = trojan.reference[:40]
    file = tmp_path / "run.safetensors"
    first = run(trojan, few, file, **options)
    written = file.read_bytes()
    monkeypatch.setattr(rounds.Rounds, "_round", None)  # nothing is done again
    again = run(trojan, few, file, **options)
    check_equal(again, first)
    assert file.read_bytes() == written
    assert again.seconds["solving"] == first.seconds["solving"]
    assert same(again.at(0), bits(trojan.model))


def test_validation_and_no_references(trojan: Toy, tmp_path: Path) -> None:
    x, y = samples(30, seed=20)
    file = tmp_path / "run.safetensors"
    with pytest.warns(UserWarning, match="reference: none given"):
        first = rectify(
            trojan.model, trojan.pairs, validation=(x, y), max_rounds=1, checkpoint=str(file)
        )
    with pytest.warns(UserWarning, match="reference: none given"):
        again = rectify(
            trojan.model, trojan.pairs, validation=(x, y), max_rounds=1, checkpoint=file
        )
    check_equal(again, first)
    with (
        pytest.warns(UserWarning, match="reference: none given"),
        pytest.raises(ValueError, match="its validation was another"),
    ):
        rectify(
            trojan.model, trojan.pairs, validation=(x, y.flip(0)), max_rounds=1, checkpoint=file
        )


# --- refused -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(trojan: Toy, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a short run."""
    file = tmp_path_factory.mktemp("written") / "run.safetensors"
    run(trojan, trojan.reference[:40], file, max_rounds=1)
    return file.read_bytes()


def other_model(toy: Toy) -> nn.Module:
    model = copy.deepcopy(toy.model)
    with torch.no_grad():
        model.get_parameter("head.bias")[0] += 1e-6
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "its seed was 0, and not 1"),
        ({"method": "trial"}, 'its method was "edit-attribution", and not "trial"'),
        ({"max_rounds": 2}, "its max_rounds was 1, and not 2"),
        ({"refine_steps": 5}, "its refine_steps was 20, and not 5"),
        ({"ridges": (0.1,)}, r"its ridges was \[0.001, 0.01, 0.1, 1.0\], and not \[0.1\]"),
        ({"reference": slice(1, 41)}, "its reference was another"),
        ({"pairs": 1}, "its pairs was another"),
        ({"model": True}, "its model was another"),
    ],
)
def test_another_run_is_refused(
    trojan: Toy, tmp_path: Path, written: bytes, options: dict[str, Any], message: str
) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(written)
    asked: dict[str, Any] = {**OPTIONS, "max_rounds": 1, **options}
    model = other_model(trojan) if asked.pop("model", False) else trojan.model
    pairs = trojan.pairs[asked.pop("pairs", 0)]
    reference = trojan.reference[asked.pop("reference", slice(40))]
    with pytest.raises(ValueError, match=r"checkpoint: '.*' is of another run: " + message):
        rectify(model, pairs, reference=reference, checkpoint=file, **asked)
    assert file.read_bytes() == written


def test_labels_of_the_pairs_count(trojan: Toy, tmp_path: Path, written: bytes) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(written)
    pair = trojan.pairs[0]
    labelled = SamplePairs(pair.corrupted, pair.clean, torch.tensor([3]))
    with pytest.raises(ValueError, match="its pairs was another"):
        rectify(
            trojan.model, labelled, reference=trojan.reference[:40], checkpoint=file,
            **{**OPTIONS, "max_rounds": 1},
        )  # fmt: skip


def test_a_damaged_file_is_refused(trojan: Toy, tmp_path: Path, written: bytes) -> None:
    file, few = tmp_path / "run.safetensors", trojan.reference[:40]
    last = bytearray(written)
    last[-1] ^= 1  # of the last tensor: safetensors itself does not notice
    words = written.replace(b'\\"rounds\\": 1', b'\\"rounds\\": 0')
    assert words != written
    for damaged in (b"", b"nothing of the kind", written[:-20], bytes(last), words):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint: '.*' is damaged.*delete it to start"):
            run(trojan, few, file, max_rounds=1)
        assert file.read_bytes() == damaged


def test_a_file_of_edits_is_not_written_over(trojan: Toy, tmp_path: Path, written: bytes) -> None:
    file, few = tmp_path / "fix.safetensors", trojan.reference[:40]
    file.write_bytes(written)
    save_edits(load_edits(file), file)
    fix = file.read_bytes()
    with pytest.raises(ValueError, match="holds edits, but is no checkpoint"):
        run(trojan, few, file)
    assert file.read_bytes() == fix


def test_the_same_weights_in_another_network(trojan: Toy, tmp_path: Path, written: bytes) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(written)
    model = copy.deepcopy(trojan.model)
    model.register_forward_hook(lambda _, __, scores: scores / 2)
    with pytest.raises(ValueError, match=r"checkpoint: it began at a gap of 0\.\d+, and the same"):
        rectify(
            model, trojan.pairs[0], reference=trojan.reference[:40], checkpoint=file,
            **{**OPTIONS, "max_rounds": 1},
        )  # fmt: skip


def test_no_place_to_write(trojan: Toy, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="checkpoint: got int, want the name of a file"):
        run(trojan, trojan.reference, 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"checkpoint: '.*' is a folder"):
        run(trojan, trojan.reference, tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint: no folder"):
        run(trojan, trojan.reference, tmp_path / "absent" / "run.safetensors")


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(written)
    edits = load_edits(file)

    def full(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_edits(edits, file)
    assert file.read_bytes() == written
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "run.safetensors", tmp_path / "link.safetensors"
    file.write_bytes(written)
    link.symlink_to(file)
    save_edits([], link)
    assert link.is_symlink()
    assert not load_edits(file)


def test_what_the_file_holds(trojan: Toy, tmp_path: Path, written: bytes) -> None:
    """Edits and words, no weight of the model, and nothing that runs."""
    file = tmp_path / "run.safetensors"
    file.write_bytes(written)
    with safe_open(file, framework="pt") as opened:
        words = opened.metadata()
        assert sorted(opened.keys()) == ["0.left", "0.right"]
    run_of = json.loads(words["run"])
    assert {"model", "pairs", "reference", "validation"} < set(run_of)
    options = set(inspect.signature(rectify).parameters) - {"progress", "cancel", "checkpoint"}
    assert set(run_of) == options - FREE
    assert json.loads(words["state"])["stopped"] == "round limit"
    assert len(written) < 20_000
