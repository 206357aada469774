"""What README and guide print is what a reader gets: examples run, links lead somewhere.

The two commands are tried elsewhere: `.ci/run` takes the test command from the README itself.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image, ImageSequence
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def guide(repository: Path) -> Callable[[str], str]:
    pages = repository / "notebooks" / "guide"
    return lambda name: (pages / f"{name}.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)
    return [textwrap.dedent(block) for block in found]


def test_two_commands_set_up_everything(readme: str) -> None:
    assert readme.count("\n") <= 100
    start, test, whole = blocks(readme, "bash")
    assert whole == test.split(" && ")[-1].replace("-n 2", "-n 2 -m ''")
    commands = [start, test]
    for command in commands:
        assert command.count("\n") == 1, "one line to copy"
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_example_is_short_and_runs(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rectify_widgets as rw

    example, *_ = blocks(readme, "python")
    statements = [line for line in example.splitlines() if line.strip()]
    assert len(statements) <= 10

    case = rw.cases.load("trojan")
    x, y = case.clean
    triggered, _ = case.corrupted
    given = {
        "model": case.model,
        "x_bad": case.pairs.corrupted[:1],
        "x_good": case.pairs.clean[:1],
        "reference": case.reference[:128],
        "x": x[:500],
        "y": y[:500],
        "x_triggered": triggered[:500],
    }
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), given)  # noqa: S102  # our own README
    assert (tmp_path / "fix.safetensors").stat().st_size > 0


def test_a_corruption_is_shown_by_example_or_as_a_function(
    guide: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    import rectify_widgets as rw

    case = rw.cases.load("trojan")

    def photo_filter(inputs: torch.Tensor) -> torch.Tensor:
        return case.trigger(inputs)

    (example,) = blocks(guide("any_corruption"), "python")
    quick = example.replace("rectify(model, pairs,", "rectify(model, pairs, max_rounds=1,")
    given = {
        "rw": rw,
        "model": case.model,
        "pairs": case.pairs[:1],
        "x_bad": photo_filter(case.reference[:2]),
        "x_good": case.reference[:2],
        "reference": case.reference[:64],
        "photo_filter": photo_filter,
    }
    exec(compile(quick, "README.md", "exec"), given)  # noqa: S102  # our own README
    estimated, used = capsys.readouterr().out.splitlines()
    assert estimated.startswith("Transfer(Transplant(1 pair, opacity 1.00)")
    assert used == "UserFunction(photo_filter)"


def test_the_example_of_several_processes_runs_in_one(
    guide: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, free_tcp_port: int
) -> None:
    import rectify_widgets as rw

    (example,) = blocks(guide("large_and_long"), "python")
    on_a_cpu = re.sub(r"torch\.cuda\.set_device\(.*\)\n", "", example)
    on_a_cpu = on_a_cpu.replace(".cuda()", "").replace('"nccl"', '"gloo"')
    assert on_a_cpu.count("distributed=True") == 3
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_tcp_port),
    }.items():
        monkeypatch.setenv(name, value)
    case = rw.cases.load("trojan")
    given = {
        "model": case.model,
        "pairs": case.pairs[:1],
        "loader": DataLoader(TensorDataset(case.reference[:64]), batch_size=32),
        "test": tuple(part[:100] for part in case.clean),
        "triggered": tuple(part[:100] for part in case.corrupted),
    }
    try:
        exec(compile(on_a_cpu, "repair.py", "exec"), given)  # noqa: S102  # our own README
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(given["report"], rw.Report)


PROJECT = """
import torch

import rectify_widgets as rw

torch.set_num_threads(1)
case = rw.cases.load("trojan")
network, training_images = case.model, case.reference[:128]
"""


@pytest.mark.slow
def test_the_notebook_example_is_short_and_runs(
    guide: Callable[[str], str], tmp_path: Path
) -> None:
    import rectify_widgets as rw

    (example,) = blocks(guide("widgets"), "python")
    statements = [line for line in example.splitlines() if line.strip()]
    assert len(statements) <= 13, "an import more than a dozen"
    (tmp_path / "my_project.py").write_text(PROJECT, encoding="utf-8")
    pair = rw.cases.load("trojan").pairs[0]
    for name, image in {"with": pair.corrupted, "without": pair.clean}.items():
        pixels = (image[0, 0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(example)])  # type: ignore[no-untyped-call]
    resources = {"metadata": {"path": str(tmp_path)}}
    ran = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    shown = [output.data for output in ran.cells[0].outputs if "data" in output]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    edits = rw.load_edits(tmp_path / "fix.safetensors")
    edits.apply(rw.cases.load("trojan").model)
    assert len(edits) >= 1


def test_links_lead_somewhere(readme: str, repository: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    local = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert local
    missing = [target for target in local if not (repository / target).exists()]
    assert not missing


def test_the_first_picture_moves_and_has_a_still_for_those_who_want_none(
    readme: str, repository: Path
) -> None:
    (first, *_) = re.findall(r"<picture>.*?</picture>", readme, re.DOTALL)
    assert readme.count("![") == 0 or readme.index("![") > readme.index(first)
    (alt,) = re.findall(r' alt="([^"]+)"', first)
    assert len(alt) > 100
    sources = dict(re.findall(r'media="([^"]+)" srcset="([^"]+)"', first))
    stills = [path for media, path in sources.items() if "reduced-motion" in media]
    moving = [path for media, path in sources.items() if "reduced-motion" not in media]
    moving += re.findall(r' src="([^"]+)"', first)
    assert len(stills) == len(moving) == 2, "in both themes"
    for name in moving:
        assert (repository / name).stat().st_size <= 1_500_000, name
        with Image.open(repository / name) as picture:
            assert 900 <= picture.width <= 1000, name
            times = [int(f.copy().info["duration"]) for f in ImageSequence.Iterator(picture)]
            assert len(times) >= 12, name
            assert 15_000 <= sum(times) <= 25_000, name
    for name in stills:
        with Image.open(repository / name) as picture:
            assert getattr(picture, "n_frames", 1) == 1, name


def test_nothing_is_left_to_do(readme: str) -> None:
    left = [line for line in readme.splitlines() if "TODO" in line]
    assert not left
