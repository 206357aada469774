"""The page of `AttributionViewer` that shows a whole set: distributions, and samples along them.

Imports ipywidgets and the contents of the page.  It holds the scores and maps that the viewer had
computed, shows them, and says which sample was clicked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as ipw

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.attribution import set_html
from rectify_widgets.widgets.attribution.concentration import Scores
from rectify_widgets.widgets.attribution.map_html import Look, Pictures, Tile, tile_html
from rectify_widgets.widgets.attribution.maps import SetScores, View, spread_order
from rectify_widgets.widgets.buttons import action_button, progress_bar, progress_line
from rectify_widgets.widgets.jobs import Job


class SetPage(ipw.VBox):
    """Distributions of a score, and for each column of inputs the samples at fixed percentiles.

    Args:
        pictures: the images, and the names of their columns.
        count: number of samples.
        ranking: a control that says whose percentiles they are; shown where there are two models.
        open_sample: called with the number of the sample whose button was pressed.
        stop, go_on: called by the buttons beside the progress.

    Attributes:
        order: the samples that are scored, see `maps.spread_order`.
        scores: by row, as far as they are known.
        tiles: maps of the samples that are shown, by row and number.
    """

    def __init__(
        self,
        pictures: Pictures,
        count: int,
        *,
        ranking: ipw.Widget,
        open_sample: Callable[[int], object],
        stop: Callable[[], object],
        go_on: Callable[[], object],
    ) -> None:
        self.order = spread_order(count)
        self.scores: Mapping[str, SetScores] = {}
        self.tiles: Mapping[str, Mapping[int, View]] = {}
        self._pictures, self._count = pictures, count
        self._drawn: object = None  # what the page shows now
        self._state = ipw.HTML(layout=ipw.Layout(flex="1 1 200px", width="auto", min_width="0"))
        self._bar = progress_bar()
        self._stop = action_button("Stop", "stop", "Stop scoring; what is scored stays", stop)
        self._go_on = action_button("Go on", "play", "Score the rest of the set", go_on)
        self._line = ipw.HBox(
            [self._state, self._bar, self._stop, self._go_on],
            layout=ipw.Layout(width="100%", align_items="center", flex_flow="row wrap"),
        )
        self._table = ipw.HTML(layout=ipw.Layout(width="100%", margin="0"))
        self._legend = ipw.HTML()
        self._ranking = ranking
        self._heads = {column: ipw.HTML() for column in pictures.columns}
        self._rows = {column: _TileRow(open_sample) for column in pictures.columns}
        tiles = [
            part for name in pictures.columns for part in (self._heads[name], self._rows[name])
        ]
        super().__init__(
            [self._line, self._table, ranking, *tiles, self._legend],
            layout=ipw.Layout(width="100%"),
        )
        self.add_class("rw-set")
        self.show_state("", None)

    def start(self, scores: Mapping[str, SetScores]) -> None:
        """Take scores that will come in; there are no maps for them yet."""
        self.scores, self.tiles = scores, {}
        self.show_state("Scoring waits for its turn …", 0.0)

    def finish(
        self, scores: Mapping[str, SetScores], tiles: Mapping[str, Mapping[int, View]], method: str
    ) -> str:
        """Take the scores and the maps, and say how many samples are scored."""
        self.scores, self.tiles = scores, tiles
        return self.stop(method)

    def stop(self, method: str) -> str:
        """Say how many samples are scored, now that scoring has come to an end."""
        done, total = min(part.done for part in self.scores.values()), len(self.order)
        text = f"{method}: {markup.some(done, 'sample')} scored"
        if done < total:
            text += f" of {total}, stopped"
        self.show_state(text if done < total else "", None, unfinished=done < total)
        return text

    def report(self, job: Job[Any]) -> str:
        """Show how far the scoring is, and say it."""
        text = progress_line(job)
        self.show_state(text, job.fraction)
        return text

    def show_state(self, text: str, fraction: float | None, *, unfinished: bool = False) -> None:
        """Say what is going on; ``fraction`` is None where nothing is."""
        self._state.value = markup.status_line(text)
        running = fraction is not None
        self._bar.value = fraction or 0.0
        self._bar.layout.display = None if running else "none"
        self._stop.layout.display = None if running else "none"
        self._go_on.layout.display = None if unfinished and not running else "none"
        self._line.layout.display = None if text or running or unfinished else "none"

    def show_ranking(self, *, shown: bool) -> None:
        """Show or hide the choice of the model that ranks."""
        self._ranking.layout.display = None if shown else "none"

    def show_error(self, error: BaseException | None) -> None:
        """Show what went wrong instead of the distributions."""
        self.show_state("", None, unfinished=True)
        self._table.value = markup.error_box(error)
        self._drawn = None

    def draw(self, look: Look, ranking: str) -> None:
        """Show the scores, and the samples where ``ranking`` has them at the percentiles."""
        drawn = (self.tiles, tuple((part, part.done) for part in self.scores.values()))
        if self._drawn == (drawn, look, ranking):
            return
        self._drawn = (drawn, look, ranking)
        page = self._contents(look, ranking)
        self._table.value = page.distributions
        for name, row in self._rows.items():
            tiles = page.tiles.get(name, ())
            row.show(tiles)
            self._heads[name].value = page.heads[name] if tiles else ""
        self._legend.value = f'<div class="rw-legend">{page.legend}</div>' if page.legend else ""

    def static_html(self, look: Look, ranking: str) -> str:
        """The same without controls."""
        return set_html.static_page(self._contents(look, ranking))

    def picked(self, scores: SetScores) -> list[int]:
        """Numbers of the samples that stand at the percentiles of these scores."""
        chosen = set_html.picked(scores, list(self._pictures.columns), self.order)
        return sorted({index for some in chosen.values() for index, _ in some})

    def by_sample(self) -> dict[tuple[str, str], Scores]:
        """Scores by (column, row): one a sample, NaN where there is none."""
        return {
            (column, row): set_html.by_sample(part.values[place], self.order, self._count)
            for row, part in self.scores.items()
            for place, column in enumerate(self._pictures.columns)
        }

    def forget(self) -> None:
        """Let go of scores and maps."""
        self.scores, self.tiles, self._drawn = {}, {}, None

    def _contents(self, look: Look, ranking: str) -> set_html.Contents:
        return set_html.contents(
            self._pictures,
            self.scores,
            self.tiles,
            order=self.order,
            ranking=ranking,
            look=look,
            count=self._count,
        )


class _TileRow(ipw.Box):
    """Tiles of one column, made when they are first needed."""

    def __init__(self, open_sample: Callable[[int], object]) -> None:
        super().__init__(layout=ipw.Layout(width="100%", flex_flow="row wrap"))
        self.add_class("rw-set-tiles")
        self._open = open_sample
        self._samples: list[int] = []
        self._pool: list[tuple[ipw.HTML, ipw.Button, ipw.VBox]] = []

    def show(self, tiles: Sequence[Tile]) -> None:
        self._samples = [one.index for one in tiles]
        grown = len(self._pool) < len(tiles)
        while len(self._pool) < len(tiles):
            self._pool.append(self._make(len(self._pool)))
        for one, (picture, button, _) in zip(tiles, self._pool, strict=False):
            picture.value = tile_html(one)
            button.description = f"Sample {one.index}"
            button.tooltip = f"Show sample {one.index} in full"
        boxes = [box for _, _, box in self._pool]
        for place, box in enumerate(boxes):
            box.layout.display = None if place < len(tiles) else "none"
        if grown:
            self.children = boxes

    def _make(self, place: int) -> tuple[ipw.HTML, ipw.Button, ipw.VBox]:
        picture = ipw.HTML(layout=ipw.Layout(width="auto", margin="0"))
        button = ipw.Button(layout=ipw.Layout(width="auto", height="24px", margin="3px 0 0 0"))
        button.add_class("rw-set-open")
        button.on_click(lambda _: self._open(self._samples[place]))
        box = ipw.VBox([picture, button], layout=ipw.Layout(width="auto", min_width="0"))
        box.add_class("rw-set-tile")
        return picture, button, box
