"""Find, show and repair the layer behind an unreliable behaviour of an image classifier.

The engine (``rectify_widgets.engine``) needs torch only; the widgets wrap it.  Imports run one way:
``widgets`` to ``reveal`` and ``cases``, ``reveal`` to ``explain``, and all of them to ``engine``.
"""

from rectify_widgets import cases
from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.corruption import Corruption, Transplant
from rectify_widgets.engine.data.forms import Pattern, PlacedPatches, ToneCurve, Warp
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import Edits, RankOneEdit, load_edits, save_edits
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.adversarial import AdversarialPerturbation
from rectify_widgets.engine.find.corrupted import CorruptedInputs, find_corrupted
from rectify_widgets.engine.find.estimates import MemoryEstimate, estimate_memory
from rectify_widgets.engine.find.localization import Localization, localize
from rectify_widgets.engine.find.places import Places, find_places
from rectify_widgets.engine.find.transfer import Transfer, estimate_corruption
from rectify_widgets.engine.measure.groups import Group, GroupTable
from rectify_widgets.engine.measure.metrics import Report, evaluate
from rectify_widgets.engine.model.catalog import LayerCatalog, editable_layers
from rectify_widgets.engine.model.outputs import adapt
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.engine.repair.solving import solve_edit
from rectify_widgets.explain import attribute
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.reveal.dependence import Dependence, dependence
from rectify_widgets.reveal.masks import SuggestedMasks, suggest_masks
from rectify_widgets.reveal.reveal import reveal
from rectify_widgets.reveal.smallest_change import SmallestChange, smallest_changes
from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.audit.writing import write_report
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.painter.viewer import MaskPainter
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.suspicion.viewer import SuspicionViewer

__version__ = "0.1.0"

Rectification.writer = staticmethod(write_report)

__all__ = [
    "AdversarialPerturbation",
    "AttributionViewer",
    "Cancelled",
    "CorruptedInputs",
    "Corruption",
    "Dependence",
    "EditabilityViewer",
    "Edits",
    "Group",
    "GroupTable",
    "HistoryViewer",
    "KeyStatistics",
    "LayerCatalog",
    "Localization",
    "MaskPainter",
    "MemoryEstimate",
    "Pattern",
    "PlacedPatches",
    "Places",
    "PredictionViewer",
    "RankOneEdit",
    "Rectification",
    "RectificationDashboard",
    "Report",
    "SamplePairs",
    "SmallestChange",
    "Step",
    "SuggestedMasks",
    "Suspicion",
    "SuspicionViewer",
    "Suspicions",
    "ToneCurve",
    "Transfer",
    "Transplant",
    "Warp",
    "adapt",
    "attribute",
    "cases",
    "cleanse",
    "dependence",
    "editable_layers",
    "estimate_corruption",
    "estimate_memory",
    "evaluate",
    "find_corrupted",
    "find_places",
    "load_edits",
    "localize",
    "rectify",
    "reveal",
    "save_edits",
    "smallest_changes",
    "solve_edit",
    "suggest_masks",
]
