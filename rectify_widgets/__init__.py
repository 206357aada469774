"""Find, show and mend the layer behind an unreliable behaviour of an image classifier.

The engine (``rectify_widgets.engine``) needs torch only; the widgets wrap it.  Imports run one way:
``widgets`` to ``explain`` and ``cases`` to ``engine``.
"""

from rectify_widgets import cases
from rectify_widgets.engine.detection import Found, find_corrupted
from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.editing import Edits, RankOneEdit, load_edits, save_edits
from rectify_widgets.engine.estimates import MemoryEstimate, estimate_memory
from rectify_widgets.engine.history import Rectification, Step
from rectify_widgets.engine.layers import LayerCatalog, editable_layers
from rectify_widgets.engine.localization import localize
from rectify_widgets.engine.metrics import Report, evaluate
from rectify_widgets.engine.outputs import adapt
from rectify_widgets.engine.pairs import SamplePairs, transplant
from rectify_widgets.engine.places import Places, find_places
from rectify_widgets.engine.progress import Cancelled
from rectify_widgets.engine.rectification import rectify
from rectify_widgets.engine.solving import solve_edit
from rectify_widgets.engine.statistics import KeyStatistics
from rectify_widgets.explain import attribute
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.prediction.viewer import PredictionViewer

__version__ = "0.1.0"

__all__ = [
    "AttributionViewer",
    "Cancelled",
    "EditabilityViewer",
    "Edits",
    "Found",
    "HistoryViewer",
    "KeyStatistics",
    "LayerCatalog",
    "Localization",
    "MemoryEstimate",
    "Places",
    "PredictionViewer",
    "RankOneEdit",
    "Rectification",
    "RectificationDashboard",
    "Report",
    "SamplePairs",
    "Step",
    "adapt",
    "attribute",
    "cases",
    "editable_layers",
    "estimate_memory",
    "evaluate",
    "find_corrupted",
    "find_places",
    "load_edits",
    "localize",
    "rectify",
    "save_edits",
    "solve_edit",
    "transplant",
]
