"""`rectify`: removing a behaviour by one edit of a named layer, or by edit after edit.

Imports torch only.  The loop is in ``rounds.py``; ``checkpoint.py`` lets it resume after the process
was killed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_inputs, check_labels, check_module
from rectify_widgets.engine.base.files import check_file
from rectify_widgets.engine.base.pace import Pace
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.model.catalog import LayerCatalog
from rectify_widgets.engine.model.heads import check_truth
from rectify_widgets.engine.model.running import copied, eval_mode, predict_all
from rectify_widgets.engine.repair.checkpoint import Checkpoint
from rectify_widgets.engine.repair.diagnosis import diagnose, gather_evidence
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.engine.repair.rounds import Rounds


def rectify(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    strategy: str = RectifyOptions.strategy,
    layer: str | None = RectifyOptions.layer,
    method: str = RectifyOptions.method,
    max_rounds: int = RectifyOptions.max_rounds,
    max_degradation: float = RectifyOptions.max_degradation,
    target_gap: float = RectifyOptions.target_gap,
    directions: Sequence[str] = RectifyOptions.directions,
    ridges: Sequence[float] = RectifyOptions.ridges,
    refine_steps: int | None = RectifyOptions.refine_steps,
    memory_limit: int | None = RectifyOptions.memory_limit,
    seed: int = RectifyOptions.seed,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Rectification:
    """Remove the behaviour that the pairs show from a copy of the model.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; one is enough.
        reference: unlabelled inputs like those of training (tensor, data set or loader); up to
            768 are used, or as many as 256 MiB hold.  Some may carry the corruption: they are detected and left out.  None
            works with a warning, from the pairs alone.
        validation: labelled inputs ``(x, y)``; the budget then counts accuracy on them.
        strategy: ``"dynamic"`` edits the most editable layer, round after round, and all layers
            together where that is too little; ``"static"`` edits one layer once.
        layer: name of the layer for ``"static"``; None means the last convolution or, without
            one, the last linear layer.
        method: how layers are ranked, see `localize`.
        max_rounds: bound on the number of rounds.
        max_degradation: budget for the loss of accuracy on uncorrupted inputs, a fraction; the
            class that suffers most may lose five times as much.
        target_gap: gap at which the behaviour counts as removed, a fraction.
        directions, ridges: the grid that edits are chosen from, see `localize`.
        refine_steps: gradient steps by which edits of all layers are refined together, see
            `rectify_widgets.engine.repair.refining`, where no closed form closes half of the gap
            that is left or comes within twice the target; 0 leaves all edits in closed form, as in the
            paper.  None means 300 for ``"dynamic"`` and 0 for ``"static"``.  It takes 64 references
            or more, to learn from some and judge on others, and learns from up to 1280 further ones, of 64 MiB;
            a step costs as much as training on 128 inputs and predicting 64.
        memory_limit: bytes to keep to beyond what model and data take, see `estimate_memory`: layers
            are then taken in parts, with the same result.  None keeps what saves time, such as
            second moments, factors and inputs of layers, in a quarter of the free memory, 2 GiB at
            most.  Either way few samples go through the model at once, three of 224 × 224 on a CPU.
        seed: of every random choice.
        checkpoint: name of a file that is replaced after each round (safetensors).  If it exists
            already, the run continues after its last kept edit and ends, on the same kind of
            machine, with exactly the edits of an uninterrupted run; one that has ended returns its
            result again.  The call must be the same, otherwise it is a `ValueError`.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.  On cancel the edits kept so
            far are returned, and with them the best one that the unfinished round has measured
            within the budget; its step says so.

    Raises:
        TypeError, ValueError: bad input, before anything is touched; a named layer that cannot be
            edited or that the corruption does not reach.
        Cancelled: ``cancel`` returned True before the gap was measured for the first time.

    Example:
        >>> rw.rectify(model, pairs, reference=reference)
        Rectification(1 edits in ... trials, gap 0.6... to 0.0..., stopped: target)
    """
    check_module("model", model)
    options = RectifyOptions(
        strategy=strategy, layer=layer, method=method, max_rounds=max_rounds,
        max_degradation=max_degradation, target_gap=target_gap, directions=directions,
        ridges=ridges, refine_steps=refine_steps, memory_limit=memory_limit,
        seed=seed,
    )  # fmt: skip
    path = None if checkpoint is None else check_file("checkpoint", checkpoint)
    pace = Pace(Monitor(progress, cancel))
    monitor = pace.stage("reading", lambda _: None)
    monitor.report(0.0, "looking at the pairs")
    work = copied(model)
    with eval_mode(work, "pairs") as module:
        problem = pose_problem(
            module, pairs, reference, seed=seed, memory_limit=memory_limit,
            own=True, spare=bool(options.refine_steps), monitor=monitor,
        )  # fmt: skip
        if strategy == "static":
            name = _last_layer(problem.catalog) if layer is None else layer
            chosen = problem.catalog.get("layer", name)
            problem = replace(problem, layers={chosen.name: chosen})
        like = problem.pairs.clean
        labelled = None if validation is None else check_validation(problem.model, validation, like)
        file = Checkpoint(path, problem, labelled, options)
        state = file.load()
        loop = Rounds(problem, labelled, options, pace)
        if state is not None:
            loop.restore(state)
        if loop.state.stopped is None:
            stopped = loop.run(lambda: file.save(loop.state))
            end = loop.state
            end.stopped = stopped
            if stopped != "cancelled":  # cancelling should not take longer
                ending = Monitor(progress)  # there is nothing left to stop
                ending.report(pace.fraction, f"stopped: {stopped}")
                end.evidence = gather_evidence(
                    problem, loop.judging, end.suspected, shared=loop.shared,
                    edited=bool(end.edits), monitor=ending.silent(),
                )  # fmt: skip
                file.save(end)
        end = loop.state
        if end.stopped != "cancelled":
            Monitor(progress).report(1.0, f"stopped: {end.stopped}")
    result = Rectification(
        model=work,
        edits=end.edits,
        steps=end.steps,
        strategy=options.strategy,
        stopped=str(end.stopped),
        gap_before=end.start.gap,
        gap_after=end.now.gap,
        degradation=end.now.degradation,
        flagged=torch.tensor(end.flagged, dtype=torch.long),
        seconds=end.seconds,
        max_degradation=options.max_degradation,
        target_gap=options.target_gap,
        evidence=end.evidence,
        options=options,
    )
    return replace(result, diagnosis=diagnose(result))


def _last_layer(catalog: LayerCatalog) -> str:
    """The last convolution or, without one, the last linear layer."""
    convolutions = [layer.name for layer in catalog if layer.is_convolution]
    return (convolutions or list(catalog.editable))[-1]


def check_validation(model: nn.Module, data: object, like: Tensor) -> tuple[Tensor, Tensor]:
    """Labelled inputs on the device of the references ``like``, checked."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(f"validation: got {type(data).__name__}, want (inputs, labels)")
    inputs = check_inputs("validation[0]", data[0], like=like).to(like)
    given = check_labels("validation[1]", data[1], count=len(inputs), hot=True)
    labels = check_truth("validation[1]", given, predict_all(model, inputs[:1]))
    return inputs, labels.to(inputs.device)
