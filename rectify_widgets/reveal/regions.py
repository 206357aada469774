"""Rectangles that carry a model's answer.  Imports the engine and the fills.

A region carries the answer if covering it changes the answer, and if it alone, put back onto the
picture whose whole surroundings are covered, restores it.  The first test finds any part of a
trigger, the second its extent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.reveal.fills import biharmonic, blur, texture

SIDES = (14 / 28, 8 / 28, 5 / 28, 3 / 28)
"""Sides of the square windows that are covered, as shares of the picture's shorter side."""
EVERYWHERE = 2
"""So many of these sides are tried everywhere, the others where a larger window or the attribution
says that it may be worth it."""
PROMISING = 24
"""Windows of a side that the attribution map chooses."""
SEEDS = 2
"""Windows of an input from which a region is cut out."""
TURNS = 2
"""So many times a region is cut out, the later times of a box that is just a little wider."""
LOCAL = 0.25
"""Share of the picture above which a region is not local."""
FEWEST, OVERLAP, SHARED = 3, 0.3, 0.5
"""Inputs, intersection over union, and share of the inputs from which on a region is shared."""
COVERS = (texture, biharmonic, blur)
"""Fills that a region is judged with: what one of them alone does is no evidence."""

Box: TypeAlias = tuple[int, int, int, int]
"""First row, first column, and the row and the column after the last."""


class RegionSearch:
    """A model, the inputs and its answers to them."""

    def __init__(self, module: nn.Module, images: Tensor, size: int) -> None:
        self.module, self.images, self.size = module, images, size
        scores = predict_all(module, images, size)
        if scores.ndim > 2:
            raise ValueError(
                f"model: it decides on {scores.shape[1]} labels independently, want one answer an "
                "input; rw.adapt(model, output=f) can hand over the scores of one label alone"
            )
        self.classes = scores.argmax(dim=1)
        self.before = _log_odds(scores, self.classes)

    def ask(self, rows: Tensor, monitor: Monitor, *makers: Callable[[slice], Tensor]) -> Tensor:
        """What becomes of the rows' answers in the pictures that each maker makes.

        Returns ``makers × 2 × M`` for ``M`` rows: the log-odds of the input's own class, and its
        margin over the best other, below 0 where the answer has changed.
        """
        parts = []
        for start in range(0, len(rows), self.size):
            part = slice(start, start + self.size)
            answers = []
            for make in makers:
                monitor.check()
                scores = predict_all(self.module, make(part), self.size)
                own = self.classes[rows[part]]
                answers.append(torch.stack([_log_odds(scores, own), _margin(scores, own)]))
            parts.append(torch.stack(answers))
        return torch.cat(parts, dim=-1)

    def screen(self, maps: Tensor, monitor: Monitor) -> tuple[list[tuple[int, Box]], Tensor]:
        """Windows whose covering changes the answer, by input, and the least log-odds of each.

        Of every side the window with the least log-odds, smallest sides first, `SEEDS` of an input.
        """
        height, width = self.images.shape[-2:]
        least = self.before.clone()
        worth = torch.zeros(len(self.images), height, width, device=maps.device)
        seeds: dict[int, list[Box]] = {}
        heat = maps.abs().sum(dim=1, keepdim=True)
        for number, share in enumerate(SIDES):
            monitor.report(number / len(SIDES), f"covering windows, {share:.0%} of the side")
            side = max(round(share * min(height, width)), 2)
            windows = _windows(height, width, side).to(maps.device)
            tops, lefts = windows[:, 0], windows[:, 1]
            tried = worth[:, tops + side // 2, lefts + side // 2] > 0
            if number < EVERYWHERE:
                tried = torch.ones_like(tried)
            else:
                sums = functional.avg_pool2d(heat, side, stride=1)[:, 0, tops, lefts]
                best = sums.topk(min(PROMISING, len(windows)), dim=1).indices
                tried = tried.scatter(1, best, value=True)
            rows, chosen = tried.nonzero(as_tuple=True)
            odds, margin = self._covered(rows, windows[chosen], side, monitor)
            worth = torch.zeros_like(worth)
            for row in range(len(worth)):
                mine = rows == row
                if not bool(mine.any()):
                    continue
                least[row] = torch.minimum(least[row], odds[mine].min())
                flips = mine & (margin < 0)
                for top, left, bottom, right in windows[chosen[flips]].tolist():
                    worth[row, top:bottom, left:right] = 1.0
                if bool(flips.any()):
                    first = torch.where(flips, odds, math.inf).argmin()
                    top, left, bottom, right = windows[chosen[first]].tolist()
                    seeds.setdefault(row, []).insert(0, (top, left, bottom, right))
        return [(row, box) for row, found in seeds.items() for box in found[:SEEDS]], least

    def _covered(
        self, rows: Tensor, windows: Tensor, side: int, monitor: Monitor
    ) -> tuple[Tensor, Tensor]:
        """Log-odds and margin, each the largest over two quick fills, of covered windows."""

        def mean(part: slice) -> Tensor:
            masks = self._masks(windows[part])
            around = functional.max_pool2d(masks, 3, stride=1, padding=1) - masks
            images = self.images[rows[part]]
            total = around.sum(dim=(2, 3), keepdim=True)
            return torch.where(
                masks > 0, (images * around).sum(dim=(2, 3), keepdim=True) / total, images
            )

        def blurred(part: slice) -> Tensor:
            masks = self._masks(windows[part])
            images, sigma = self.images[rows[part]], max(side / 4, 1.0)
            seen = _gaussian(images * (1 - masks), sigma)
            weight = _gaussian(1 - masks, sigma).clamp_min(torch.finfo(masks.dtype).tiny)
            return torch.where(masks > 0, seen / weight, images)

        odds, margin = self.ask(rows, monitor, mean, blurred).amax(dim=0)
        return odds, margin

    def _masks(self, boxes: Tensor) -> Tensor:
        """``M × 1 × H × W``, 1 inside of each box."""
        height, width = self.images.shape[-2:]
        down = torch.arange(height, device=boxes.device)
        across = torch.arange(width, device=boxes.device)
        top, left, bottom, right = boxes.unsqueeze(-1).unbind(dim=1)
        rows = (down >= top) & (down < bottom)
        columns = (across >= left) & (across < right)
        return (rows[:, None, :, None] & columns[:, None, None, :]).to(self.images)

    def cut(self, seeds: list[tuple[int, Box]], keep: float, monitor: Monitor) -> dict[int, Box]:
        """The smallest region of each input that carries its answer."""
        if not seeds:
            return {}
        device = self.images.device
        rows = torch.tensor([row for row, _ in seeds], device=device)
        boxes = torch.tensor([box for _, box in seeds], device=device)
        sides = boxes[:, 2:] - boxes[:, :2]
        more = sides.amin(dim=1) // 2 + 1
        shorter = min(self.images.shape[-2:])
        for turn in range(TURNS):
            more = more.minimum((shorter - sides.amax(dim=1)).clamp_min(0) // 4)  # never everything
            part = monitor.part(turn / TURNS, (turn + 1) / TURNS)
            boxes = self._trimmed(rows, self._wider(boxes, more), keep, part)
            sides = boxes[:, 2:] - boxes[:, :2]
            more = (sides.amin(dim=1) // 5).clamp_min(2)
        area = sides.prod(dim=1)
        local = area <= LOCAL * self.images[0, 0].numel()
        rows, boxes, area = rows[local], boxes[local], area[local]
        found: dict[int, Box] = {}
        if len(rows):
            _, margin = self.without(rows, boxes, monitor)
            for place in area.argsort().tolist():
                if margin[place] < 0:
                    top, left, bottom, right = boxes[place].tolist()
                    found.setdefault(int(rows[place]), (top, left, bottom, right))
        return found

    def without(self, rows: Tensor, boxes: Tensor, monitor: Monitor) -> Tensor:
        """Log-odds and margin, ``2 × M``, the median over fills of the boxes and a pixel around."""
        covers = self._fill(rows, self._wider(boxes, torch.ones_like(rows)), monitor)
        return self._ask_covers(rows, covers, monitor).median(dim=0).values

    def figures(self, boxes: dict[int, Box], least: Tensor, monitor: Monitor) -> Tensor:
        """``N`` log-odds without the regions, and ``least`` where there is none."""
        if not boxes:
            return least
        rows = torch.tensor(list(boxes), device=least.device)
        every = torch.tensor(list(boxes.values()), device=least.device)
        return least.index_copy(0, rows, self.without(rows, every, monitor)[0])

    def _ask_covers(self, rows: Tensor, covers: list[Tensor], monitor: Monitor) -> Tensor:
        return self.ask(rows, monitor, *[lambda part, one=one: one[part] for one in covers])

    def _trimmed(self, rows: Tensor, boxes: Tensor, keep: float, monitor: Monitor) -> Tensor:
        """What is left of the boxes when side after side is taken off."""
        covers = self._fill(rows, boxes, monitor)
        base = self._ask_covers(rows, covers, monitor)[:, 0]

        def test(which: Tensor, now: Tensor, *, inside: bool) -> Tensor:
            """Answers, ``fills × 2 × M``, with only the inside of boxes, or only the rest, uncovered."""

            def mixed(cover: Tensor) -> Callable[[slice], Tensor]:
                def make(part: slice) -> Tensor:
                    kept = (self._masks(now[part]) > 0) == inside
                    return torch.where(kept, self.images[rows[which[part]]], cover[which[part]])

                return make

            return self.ask(rows[which], monitor, *map(mixed, covers))

        step = ((boxes[:, 2:] - boxes[:, :2]).amin(dim=1) // 5).clamp_min(1)
        rest = torch.arange(len(rows), device=rows.device)
        inward = torch.tensor([1, 1, -1, -1], device=rows.device).diag()
        while len(rest):
            monitor.report(1 - len(rest) / len(rows), f"cutting out: {len(rest)} left")
            options = (boxes[rest, None] + step[rest, None, None] * inward).flatten(0, 1)
            whole = (options[:, 2:] > options[:, :2]).all(dim=1)
            which = rest.repeat_interleave(4)
            options = torch.where(whole[:, None], options, boxes[which])
            low = base[:, which]
            span = (self.before[rows[which]] - low).clamp_min(1e-6)
            share = ((test(which, options, inside=True)[:, 0] - low) / span).median(dim=0).values
            value, best = share.where(whole, -math.inf).reshape(-1, 4).max(dim=1)
            picked = options.reshape(-1, 4, 4)[torch.arange(len(rest), device=best.device), best]
            margin = test(rest, picked, inside=False)[:, 1].median(dim=0).values
            taken = (value >= keep) & (margin < 0)
            boxes[rest[taken]] = picked[taken]
            stuck = rest[~taken]
            more = step[stuck] > self._finest()
            step[stuck] = (step[stuck] // 2).clamp_min(1)
            rest = torch.cat([rest[taken], stuck[more]])
        return boxes

    def agree(self, found: dict[int, Box], monitor: Monitor) -> dict[int, Box]:
        """The regions after what many inputs share has taken the place of what each suggests.

        A region is shared by the inputs whose regions overlap it by an IoU of `OVERLAP`; it is the
        median of theirs, side by side.  Where `SHARED` of the inputs have one, it becomes the
        region of every input whose answer it changes.
        """
        if len(found) < FEWEST:
            return found
        boxes = torch.tensor(list(found.values()), device=self.images.device)
        near = _overlap(boxes) >= OVERLAP
        middle = int(near.sum(dim=1).argmax())
        if int(near[middle].sum()) < max(FEWEST, SHARED * len(self.images)):
            return found
        common = boxes[near[middle]].median(dim=0).values
        rows = torch.arange(len(self.images), device=boxes.device)
        _, margin = self.without(rows, common.expand(len(rows), 4), monitor)
        top, left, bottom, right = common.tolist()
        changed = dict.fromkeys(rows[margin < 0].tolist(), (top, left, bottom, right))
        return found | changed

    def _finest(self) -> int:
        """Rows or columns that are taken off at least, to bound the number of steps."""
        return max(min(self.images.shape[-2:]) // 112, 1)

    def _wider(self, boxes: Tensor, more: Tensor) -> Tensor:
        """The boxes with so many pixels more on every side."""
        height, width = self.images.shape[-2:]
        outward = torch.tensor([-1, -1, 1, 1], device=boxes.device)
        limit = torch.tensor([height, width, height, width], device=boxes.device)
        return (boxes + more[:, None] * outward).clamp_min(0).minimum(limit)

    def _fill(self, rows: Tensor, boxes: Tensor, monitor: Monitor) -> list[Tensor]:
        """For each of `COVERS` the rows' pictures with their boxes filled."""
        masks = self._masks(boxes)[:, 0].bool().cpu().numpy()
        pictures = self.images.double().cpu().numpy()
        made: list[list[Tensor]] = [[] for _ in COVERS]
        for place, row in enumerate(rows.tolist()):
            monitor.check()
            for number, fill in enumerate(COVERS):
                filled = fill(pictures[row], masks[place])
                made[number].append(torch.from_numpy(filled).to(self.images))
        return [torch.stack(one) for one in made]


def _log_odds(scores: Tensor, classes: Tensor) -> Tensor:
    """Of each row's class against all others."""
    own, rest = _against(scores, classes)
    return own - rest.logsumexp(dim=1)


def _margin(scores: Tensor, classes: Tensor) -> Tensor:
    """Each row's class minus the best other."""
    own, rest = _against(scores, classes)
    return own - rest.amax(dim=1)


def _against(scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    own = scores.gather(1, classes[:, None])
    return own[:, 0], scores.scatter(1, classes[:, None], -math.inf)


def _overlap(boxes: Tensor) -> Tensor:
    """Intersection over union of each box with each, ``M × M``."""
    first = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    last = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (last - first).clamp_min(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return both / (area[:, None] + area[None] - both)


def _windows(height: int, width: int, side: int) -> Tensor:
    """Square windows a third of their side apart, the last ones at the border, as boxes."""
    step = max(side // 3, 1)
    down, across = (
        sorted({*range(0, length - side, step), length - side}) for length in (height, width)
    )
    return torch.tensor([(y, x, y + side, x + side) for y in down for x in across])


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    """Each channel convolved with a Gaussian that is cut off at three standard deviations."""
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-0.5 * (places / sigma).square()).exp().to(images)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = functional.conv2d(flat, (kernel / kernel.sum()).reshape(1, 1, -1, 1), padding=(reach, 0))
    flat = functional.conv2d(flat, (kernel / kernel.sum()).reshape(1, 1, 1, -1), padding=(0, reach))
    return flat.reshape(images.shape)
