"""The dashboard's last button: the audit report of the version in view.  Imports the repair and `audit`.

`Reporting` knows what a report measures on besides the pairs: test sets and groups, which no edit ever
looks at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from rectify_widgets.engine.data.inputs import count_inputs
from rectify_widgets.engine.measure.groups import check_groups
from rectify_widgets.widgets.audit.writing import check_page
from rectify_widgets.widgets.checks import check_goal
from rectify_widgets.widgets.dashboard.recipe import Word
from rectify_widgets.widgets.dashboard.repair import Repair
from rectify_widgets.widgets.session import Job


class Reporting(Repair):
    """A repair that can be written up for whoever must approve it."""

    report_file = traitlets.Unicode("repair.html")
    """Where the report goes; its facts go beside it, as ``.json``."""

    def measure_on(self, *, clean: Any, corrupted: Any, groups: Any) -> None:
        """Measure reports on these test sets; without any, on the examples if these have labels.

        Raises:
            TypeError, ValueError: corrupted inputs or groups without clean ones, or such groups as
                `rectify_widgets.evaluate` refuses.
        """
        sets = {"clean": clean, "corrupted": corrupted, "groups": groups}
        words = {name: name for name in sets}
        examples, labels = self._examples, getattr(self._examples, "labels", None)
        if clean is None and corrupted is None and examples is not None and labels is not None:
            goal = check_goal(self._target, self._display["classes"])
            led = goal is None or labels.ndim > 1 or bool((labels != goal).any())
            for name in ("clean", "corrupted") if led else ("clean",):
                sets[name] = getattr(examples, name), labels
                words[name] = f"(examples.{name}, examples.labels)"
        for name in ("corrupted", "groups"):
            if sets[name] is not None and sets["clean"] is None:
                raise ValueError(
                    f"{name}: got it without clean inputs, want clean=(inputs, labels)"
                )
        held = sets["clean"]
        check_groups(groups, count_inputs(held) if isinstance(held, tuple) else None)
        self._sets = {name: one for name, one in sets.items() if one is not None}
        self._set_words = {name: Word(words[name]) for name in self._sets}

    def write_report(self, path: str | Path | None = None) -> Job[Path]:
        """Write the report of the version in view, see ``Rectification.report``.

        Its figures are those of the test sets that the dashboard was given, or of its labelled
        examples; without either the page says that the cost was not measured.  A report that is there
        is replaced, as by `save`, and the status says so.

        Args:
            path: of the page, ``.html``; None takes `report_file`.

        Raises:
            OSError: the folder is not there, or cannot be written to.
            TypeError, ValueError: there are no edits, or a name that does not end in ``.html``.
            RuntimeError: something is under way.
        """
        self.check_idle()
        bench, edits = self.bench, self.edits
        if not edits:
            raise ValueError("report: there are no edits at step 0; go to a later step first")
        try:
            page = check_page(self.report_file if path is None else path)
        except Exception:
            self.set_trait("status", "Report: not written")
            raise
        old = page.exists()
        given, words = self._options_of_report()
        call = str(page), words
        code, whole = self.recipe.code(edits, call), self.recipe.outcome(edits)
        trials = self.recipe.trials(edits)

        def work(job: Job[Path]) -> Path:
            result = bench.workshop.repaired(job, edits, whole, trials)
            return result.report(
                page, bench.pairs, code=code, progress=job.progress, cancel=job.cancelled,
                **given,
            )  # fmt: skip

        def show(_: Job[Path]) -> None:
            self.recipe.reported(edits, call)
            done, facts = "Replaced" if old else "Wrote", page.with_suffix(".json").name
            self.set_trait("status", f"{done} {page.name} and {facts}.")
            self._show()

        return self.act(work, "Report", show)

    def _options_of_report(self) -> tuple[dict[str, Any], dict[str, object]]:
        """What the report is given, and how the code says it; its maps are of the method in view."""
        names = {"target": self._target, "attribution": self.maps.method, **self._display}
        known = {name: one for name, one in names.items() if one is not None}
        spelled = {
            name: Word(name) if name in self._display else one for name, one in known.items()
        }
        return self._sets | known, self._set_words | spelled

    def _show(self) -> None:
        """Show what is known; the whole dashboard says how."""

    def forget(self) -> None:
        """Let go of the model, the references and the test sets."""
        super().forget()
        self._sets = {}
