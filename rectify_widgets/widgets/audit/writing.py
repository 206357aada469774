"""Measures what an audit report states, and writes the page and its JSON.

Imports the engine, `explain`, the predictions of the viewers, and this folder's facts and page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_type
from rectify_widgets.engine.base.files import check_file, write_whole
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Labelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.groups import check_groups
from rectify_widgets.engine.measure.metrics import Report, evaluate
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.explain import ATTRIBUTION_METHODS, attribute
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.audit import facts, html
from rectify_widgets.widgets.checks import check_channels, check_classes, check_goal
from rectify_widgets.widgets.prediction.data import CONFIDENCE, predict

WIDTH = 132
"""Longer side of a picture in CSS pixels."""


@dataclass(frozen=True)
class Scene:
    """What is measured: the two models, the pairs that are shown, and what is known of classes."""

    before: nn.Module
    after: nn.Module
    pairs: SamplePairs
    target: int | None
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    attribution: str


def write_report(
    result: Rectification,
    path: str | Path,
    pairs: SamplePairs,
    *,
    clean: Labelled | None = None,
    corrupted: Labelled | None = None,
    target: int | str | None = None,
    groups: object = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    title: str = "Repair of an image classifier",
    code: str = "",
    attribution: str = "integrated-gradients",
    shown: int = 4,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Path:
    """Write the report of a repair; `Rectification.report` documents it."""
    page = check_page(path)
    check_type("pairs", pairs, SamplePairs, "SamplePairs")
    channels = pairs.corrupted.shape[1]
    names = check_classes(classes)
    goal = check_goal(target, names)
    check_groups(groups, None)
    if clean is None and (corrupted is not None or groups is not None):
        what = "corrupted" if corrupted is not None else "groups"
        raise ValueError(f"{what}: got it without clean inputs, want clean=(inputs, labels) too")
    check_type("title", title, str, "a headline")
    check_type("code", code, str, "a text")
    check_choice("attribution", attribution, ATTRIBUTION_METHODS)
    monitor = Monitor(progress, cancel)
    few = pairs[: check_int("shown", shown, low=1)]
    like = next(result.model.parameters(), pairs.corrupted)
    few = few.to(like.device, few.corrupted.dtype)
    scene = Scene(
        result.at(0), result.model, few, goal, names,
        check_channels("mean", mean, channels), check_channels("std", std, channels), attribution,
    )  # fmt: skip
    samples = _samples(scene, monitor.part(0.0, 0.5))
    reports: list[Report] = []
    for number, model in enumerate([scene.before, scene.after] if clean is not None else []):
        part = monitor.part(0.5 + number / 4, 0.75 + number / 4)
        reports.append(
            evaluate(
                model, clean, corrupted, goal, groups=groups,  # type: ignore[arg-type]
                confidence=CONFIDENCE, progress=part.report, cancel=monitor.cancelled,
            )
        )  # fmt: skip
    if reports:
        reports[1] = reports[1].beside(reports[0])
    given = {"clean": clean, "corrupted": corrupted, "target": goal, "groups": groups}
    after = reports[1] if reports else None
    stated: dict[str, Any] = {
        "format": facts.FORMAT,
        "title": title,
        "made": facts.now(),
        "model": facts.model_facts(scene.before, scene.after),
        "classes": None if names is None else list(names),
        "target": goal,
        "pairs": facts.pair_facts(pairs)
        | {
            "attribution": attribution,
            "shown": [{k: v for k, v in one.items() if k != "pictures"} for one in samples],
        },
        "measured": {
            name: facts.report_facts(report)
            for name, report in zip(("before", "after"), reports, strict=False)
        },
        "confidence": CONFIDENCE,
        "labels": facts.table_facts(after.by_label if after else None),
        "groups": facts.table_facts(after.groups if after else None),
        "edits": facts.edit_facts(result, scene.before),
        "repair": facts.repair_facts(result),
        "not_tried": facts.not_tried(
            result, scene.before, [name for name, value in given.items() if value is not None]
        ),
        "reproduce": facts.reproduce_facts(result, code),
    }
    text = html.page(stated, samples, reports, names, markup.outcome(result))
    stated_text = json.dumps(stated, indent=1, ensure_ascii=False, default=str)
    monitor.report(1.0, "report written")
    for file, content in ((page.with_suffix(".json"), stated_text), (page, text)):
        write_whole(file, lambda beside, content=content: beside.write_text(content, "utf-8"))  # type: ignore[misc]
    return page


def check_page(path: object) -> Path:
    """Where the page goes; the facts lie beside it."""
    page = check_file("path", path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"path: got {page.name!r}, want a name that ends in .html")
    check_file("path", page.with_suffix(".json"))
    return page


def _samples(scene: Scene, monitor: Monitor) -> list[dict[str, Any]]:
    """Of each pair that is shown: what the models answer, and pictures of inputs and maps."""
    columns = {"Clean": scene.pairs.clean, "Corrupted": scene.pairs.corrupted}
    old = predict(scene.before, columns, monitor.part(0.0, 0.1), scene.target)
    new = predict(scene.after, columns, monitor.part(0.1, 0.2), old.label)
    # What the corruption makes the network say; of several labels the one that is looked at.
    said: int | Tensor = (
        torch.from_numpy(old.classes["Corrupted"]) if old.label is None else old.label
    )
    maps = []
    jobs = [(scene.before, columns["Clean"]), (scene.before, columns["Corrupted"])]
    jobs.append((scene.after, columns["Corrupted"]))
    for number, (model, inputs) in enumerate(jobs):
        part = monitor.part(0.2 + 0.8 * number / 3, 0.2 + 0.8 * (number + 1) / 3)
        maps.append(
            attribute(
                model, inputs, method=scene.attribution, target=said, progress=part.report,
                cancel=monitor.cancelled,
            )
        )  # fmt: skip
    names = scene.classes
    if old.label is not None:
        label = markup.class_name(names, old.label)
        names = (f"without {label}", f"with {label}")
    labels = scene.pairs.labels
    found = []
    for row in range(len(scene.pairs)):
        answers: dict[str, dict[str, Any]] = {
            f"{when}_{column.lower()}": {
                "class": (number := int(one.classes[column][row])),
                "name": markup.class_name(names, number),
                "probability": float(one.probabilities[column][row, number]),
            }
            for when, one in (("before", old), ("after", new))
            for column in columns
        }
        explained = answers["before_corrupted"]["class"] if old.label is None else old.label
        single = labels is not None and labels.ndim == 1
        found.append(
            {
                "pair": row,
                "label": int(labels[row]) if single and labels is not None else None,
                "explained": explained,
                "explained_name": markup.class_name(scene.classes, int(explained)),
                **answers,
                "pictures": _pictures(scene, row, maps),
            }
        )
    return found


def _pictures(scene: Scene, row: int, maps: Sequence[Tensor]) -> list[str]:
    """Both inputs and the maps of one pair, all maps in one scale."""
    inputs = {"Clean input": scene.pairs.clean[row], "Corrupted input": scene.pairs.corrupted[row]}
    limits = None
    if scene.mean is None:
        limits = render.display_limits(torch.stack(list(inputs.values())))
    seen = {n: render.to_rgb(x, scene.mean, scene.std, limits) for n, x in inputs.items()}
    planes = [render.to_plane(one[row]) for one in maps]
    scale = render.shared_scale(planes)
    titles = ("clean input, before", "corrupted input, before", "corrupted input, after")
    under = (seen["Clean input"], seen["Corrupted input"], seen["Corrupted input"])
    for title, plane, pixels in zip(titles, planes, under, strict=True):
        seen[f"Attribution map of the {title}"] = render.overlay(pixels, plane, scale)
    return [
        render.image_tag(pixels, f"{name}, pair {row}", width=render.fit(pixels.shape, WIDTH))
        for name, pixels in seen.items()
    ]
